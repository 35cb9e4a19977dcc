"""Backups of the stack: what the service `backup` does by itself, and what `make backup` and `make restore` ask of it."""
