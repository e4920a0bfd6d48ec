"""Measurements, run by `make bench`. They print; they do not judge."""
