"""The peers under faults: dagster-celery's executor and launcher, on this stack's Postgres, RabbitMQ and MinIO."""
