"""What runs and steps have in common in a process of a worker's pool."""
