"""Runs on the broker: how one is handed over, driven by whoever takes it, and looked after while nobody does."""
