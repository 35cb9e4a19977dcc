"""Modules that need BACKUP=daily: to switch it on and off again takes two minutes, so they share that."""
