"""Code that runs and steps share in a process of a worker's pool."""
