"""The user's project: what the platform gives it without being named."""
