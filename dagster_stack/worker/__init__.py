"""A Celery worker: how its processes execute steps, and how they stop."""
