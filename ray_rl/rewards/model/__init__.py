"""Reward models as judges."""
