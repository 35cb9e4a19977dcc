"""A step is executed, in a process of a worker's pool."""
