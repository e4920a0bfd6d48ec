"""Objectives of training: a Protocol, and one class per objective."""
