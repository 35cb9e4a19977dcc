"""Puts a process back after each step, so that the next one finds it as new."""
