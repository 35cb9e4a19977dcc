"""A Celery worker's main process, without Dagster: what it takes, how it stops, what its processes die of."""
