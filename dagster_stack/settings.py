"""What the environment and `celery.yaml` say, read once into frozen objects."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dagster_stack.errors import SettingsError

#: Where `celery.yaml` lies when `DAGSTER_STACK_CELERY_YAML` is not set: beside the package.
DEFAULT_CELERY_YAML = Path(__file__).resolve().parent.parent / "celery.yaml"

#: What Celery itself takes from the environment, before any configuration file.
BROKER_VARIABLE = "CELERY_BROKER_URL"
BUCKET_VARIABLE = "DAGSTER_STACK_S3_BUCKET"


@dataclass(frozen=True)
class S3Settings:
    """The bucket and its two addresses: boto3 takes keys and region from `AWS_*` itself."""

    bucket: str
    #: None: Amazon's own.
    endpoint_url: str | None
    #: The address under which a user's browser reaches the same store.
    public_url: str | None


@dataclass(frozen=True)
class Settings:
    """One process's settings. `s3` is None in embedded mode: local files, no broker, no service."""

    s3: S3Settings | None
    #: Where the embedded mode keeps objects, an absolute path.
    store_folder: Path
    celery_yaml: Path
    #: Path prefixes inside the store, so that an expiry rule can name them.
    data_prefix: str = "storage"
    log_prefix: str = "logs"

    @property
    def embedded(self) -> bool:
        return self.s3 is None

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> "Settings":
        bucket = environment.get(BUCKET_VARIABLE)
        home = Path(environment.get("DAGSTER_HOME") or ".dagster").resolve()
        return Settings(
            s3=S3Settings(
                bucket=bucket,
                endpoint_url=environment.get("AWS_ENDPOINT_URL_S3") or None,
                public_url=environment.get("DAGSTER_STACK_S3_PUBLIC_URL")
                or environment.get("AWS_ENDPOINT_URL_S3")
                or None,
            )
            if bucket
            else None,
            store_folder=Path(environment.get("DAGSTER_STACK_STORE") or home / "store").resolve(),
            celery_yaml=Path(environment.get("DAGSTER_STACK_CELERY_YAML") or DEFAULT_CELERY_YAML),
        )


@dataclass(frozen=True)
class CeleryConfig:
    """The executor's block of `celery.yaml`, the format of `dagster-celery worker start -y`."""

    broker: str | None = None
    backend: str | None = None
    include: list[str] = field(default_factory=list)
    config_source: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def load(path: Path) -> "CeleryConfig":
        """Read `path`; raises SettingsError for a missing file, bad YAML, an unknown field or a wrong type."""
        import yaml
        from dagster._config import process_config
        from dagster_celery.executor import CELERY_CONFIG

        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SettingsError(f"{path} can't be read: {error}") from error
        block = content
        for key in ("execution", "config"):
            if not isinstance(block, dict | None):
                raise SettingsError(
                    f"{path} must hold `execution: config: …`, as `dagster-celery worker start -y` reads it."
                )
            block = (block or {}).get(key)
        # The stock command line checks and resolves (`broker: {env: …}`) it the same way.
        result = process_config(CELERY_CONFIG, block or {})
        if not result.success:
            reasons = "; ".join(error.message for error in result.errors or [])
            raise SettingsError(f"{path}, under execution.config: {reasons}")
        given = {key: value for key, value in (result.value or {}).items() if key in (block or {})}
        return CeleryConfig(
            broker=given.get("broker"),
            backend=given.get("backend"),
            include=given.get("include") or [],
            config_source=given.get("config_source") or {},
        )
