"""Postgres, RabbitMQ, MinIO, and what watches them."""

from grafana_foundation_sdk.builders import dashboard as grafana

from scripts.dashboards.parts import board, chart, figure, or_0, rate, row


def dashboard() -> grafana.Dashboard:
    return board("dagster-stores", "Stores", "Postgres, RabbitMQ and MinIO; an outside one has only the figures that this stack takes itself.", [
        row("Now"),
        figure(
            "Postgres away", "0: postgres-exporter reaches it.", "none", "1 - min(pg_up)", warning=1, critical=1,
        ),
        figure(
            "RabbitMQ's alarms", "Memory, disk or files: while one lasts RabbitMQ takes no messages.", "none",
            "max(rabbitmq_alarms_memory_used_watermark) + max(rabbitmq_alarms_free_disk_space_watermark)"
            " + max(rabbitmq_alarms_file_descriptor_limit)", warning=1, critical=1,
        ),
        figure(
            "MinIO's drives offline", "Each one that does not answer.", "none", "sum(minio_cluster_drive_offline_total)",
            warning=1, critical=1,
        ),
        figure(
            "Connections to Postgres", "In use, of those that it has to give.", "percentunit",
            "sum(dagster_database_connections) / max(dagster_database_connections_limit)", warning=0.8, critical=0.9,
        ),
        figure(
            "RabbitMQ's memory", "Used, of what it allows itself before the alarm.", "percentunit",
            "max(rabbitmq_process_resident_memory_bytes) / max(rabbitmq_resident_memory_limit_bytes)", warning=0.7, critical=0.9,
        ),
        figure(
            "MinIO's space", "Used, of the disk under its volume.", "percentunit",
            "1 - sum(minio_cluster_capacity_usable_free_bytes) / sum(minio_cluster_capacity_usable_total_bytes)",
            warning=0.8, critical=0.9,
        ),
        row("Postgres"),
        chart("Connections", "To Dagster's database by state, and what the server has to give.", "short", {
            "{{state}}": "sum by (state) (dagster_database_connections)",
            "limit": "max(dagster_database_connections_limit)",
        }),
        chart("Transactions", "A second, of all databases.", "ops", {
            "committed": "sum(rate(pg_stat_database_xact_commit[$__rate_interval]))",
            "rolled back": "sum(rate(pg_stat_database_xact_rollback[$__rate_interval]))",
        }),
        chart("Event log", "Its table with indexes, and the whole database.", "decbytes", {
            "event log": "max(dagster_event_log_bytes)",
            "{{datname}}": "max by (datname) (pg_database_size_bytes)",
        }),
        chart("Retention", "What the last pass freed, in Postgres and in the bucket.", "decbytes", {
            "{{store}}": "max by (store) (dagster_retention_freed_bytes)",
        }),
        chart("Rows of the event log", "As Postgres estimates them.", "short", {"rows": "max(dagster_event_log_rows)"}),
        chart("Read from disk", "Blocks a second that were not in Postgres's own memory, and those that were.", "ops", {
            "read": "sum(rate(pg_stat_database_blks_read[$__rate_interval]))",
            "hit": "sum(rate(pg_stat_database_blks_hit[$__rate_interval]))",
        }),
        chart("What the figures cost", "Seconds of Postgres's time for one scrape of the service metrics.", "s", {
            "a scrape": "max(dagster_metrics_database_seconds)",
        }),
        row("RabbitMQ"),
        chart("Memory", "Resident, and where the alarm begins.", "decbytes", {
            "used": "max(rabbitmq_process_resident_memory_bytes)", "alarm": "max(rabbitmq_resident_memory_limit_bytes)",
        }),
        chart("Disk", "Free, and where the alarm begins.", "decbytes", {
            "free": "max(rabbitmq_disk_space_available_bytes)", "alarm": "max(rabbitmq_disk_space_available_limit_bytes)",
        }),
        chart("Connections", "And channels on them.", "short", {
            "connections": "max(rabbitmq_connections)", "channels": "max(rabbitmq_channels)",
        }),
        chart("Messages", "A second: published, and delivered to workers.", "ops", {
            "published": "sum(rate(rabbitmq_global_messages_received_total[$__rate_interval]))",
            "delivered": "sum(rate(rabbitmq_global_messages_delivered_total[$__rate_interval]))",
        }, width=24),
        row("MinIO"),
        chart("Bucket", "The stack's objects, by prefix.", "decbytes", {
            "{{prefix}}": or_0("sum by (prefix) (dagster_bucket_bytes)"),
        }),
        chart("Space", "Free and all, of the disk under its volume.", "decbytes", {
            "free": "sum(minio_cluster_capacity_usable_free_bytes)", "all": "sum(minio_cluster_capacity_usable_total_bytes)",
        }),
        chart("Requests", "A second, by kind.", "ops", {"{{api}}": rate("minio_s3_requests_total", "api")}),
        chart("Errors", "Requests a second that MinIO refused or could not do, by kind; a conditional write that loses is one.", "ops", {
            "{{api}}": rate("minio_s3_requests_errors_total", "api"),
        }),
        chart("Traffic", "Bytes a second.", "Bps", {
            "received": or_0("sum(rate(minio_s3_traffic_received_bytes[$__rate_interval]))"),
            "sent": or_0("sum(rate(minio_s3_traffic_sent_bytes[$__rate_interval]))"),
        }),
        row("Backups"),
        chart("How old", "The last base backup, the newest moment that can be restored, and the copy off this host; 0 with BACKUP=off.", "s", {
            "base backup": or_0("max(dagster_backup_age_seconds)"), "moment": or_0("max(dagster_backup_point_age_seconds)"),
            "copy": or_0("max(dagster_backup_copy_age_seconds)"),
        }, width=12),
        chart("Proven", "Since the repository was read as a whole, and since the last restore drill.", "s", {
            "read": or_0("max(dagster_backup_verified_age_seconds)"), "drill": or_0("max(dagster_backup_drill_age_seconds)"),
        }, width=12),
        row("What watches them"),
        chart("Answering", "1: Prometheus gets figures from it.", "short", {"{{job}}": "min by (job) (up)"}, width=12, high=1),
        chart("Scrapes", "How long each takes.", "s", {"{{job}}": "max by (job) (scrape_duration_seconds)"}, width=12),
    ])  # fmt: skip
