"""Rewards for calls of tools: whether they are well formed, valid, the right ones, and recover from errors."""
