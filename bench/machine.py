"""What this was measured with: processors, memory, kernel, and versions of what takes part."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg2  # type: ignore[import-untyped]
from celery import Celery
from dagster import DagsterInstance

PACKAGES = ("dagster", "dagster-celery", "dagster-postgres", "dagster-aws", "celery", "kombu", "boto3")


def machine() -> dict[str, str]:
    """By the name that the page gives each."""
    return {
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "memory": f"{memory_size() / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "Postgres": postgres_version(),
        "RabbitMQ": broker_version(),
    }


def processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def memory_size() -> int:
    found = re.search(r"^MemTotal:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def postgres_version() -> str:
    with DagsterInstance.get() as instance:
        url = instance.event_log_storage.postgres_url  # type: ignore[attr-defined]
    connection = psycopg2.connect(url)
    try:
        return str(connection.info.parameter_status("server_version")).split()[0]
    finally:
        connection.close()


def broker_version() -> str:
    # Its address is in CELERY_BROKER_URL, where Celery finds it.
    with Celery(set_as_current=False).connection_for_write() as connection:
        connection.connect()
        properties: dict[str, Any] = connection.connection.server_properties
        return str(properties.get("version", "?"))
