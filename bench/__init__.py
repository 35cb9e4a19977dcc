"""Measures executors side by side on the running stack, and where a step's time goes: `make bench`."""
