"""The user's project: where its code, files and variables come from, and what the platform gives it unasked."""
