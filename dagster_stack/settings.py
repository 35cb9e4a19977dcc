"""What the environment and `celery.yaml` say, read once into frozen objects."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dagster_stack.errors import SettingsError

#: Where `celery.yaml` lies when `DAGSTER_STACK_CELERY_YAML` is not set: beside the package.
DEFAULT_CELERY_YAML = Path(__file__).resolve().parent.parent / "celery.yaml"

DEFAULT_WORKSPACE_YAML = DEFAULT_CELERY_YAML.with_name("workspace.yaml")

#: What Celery itself takes from the environment, before any configuration file.
BROKER_VARIABLE = "CELERY_BROKER_URL"
#: Of what it is made where it is not set, since in an address a password's characters mean something else.
BROKER_PARTS = {
    part: f"DAGSTER_STACK_BROKER_{part}" for part in ("SCHEME", "HOST", "PORT", "VHOST", "USER", "PASSWORD")
}
BUCKET_VARIABLE = "DAGSTER_STACK_S3_BUCKET"
ENDPOINT_VARIABLE = "DAGSTER_STACK_S3_ENDPOINT_URL"
PREFIX_VARIABLE = "DAGSTER_STACK_S3_PREFIX"
#: Bytes of it at most: names of objects need the rest.
LONGEST_PREFIX = 200
#: How often a step is given to a worker before it counts as the cause of the workers' deaths.
MAX_DELIVERIES_VARIABLE = "MAX_DELIVERIES"
MAX_DELIVERIES = 3
#: Days that what steps print is kept.
LOG_EXPIRY_DAYS = 30
LOG_FORMAT_VARIABLE = "LOG_FORMAT"
LOG_FORMATS = ("text", "json")
EXECUTOR_VARIABLE = "DAGSTER_STACK_EXECUTOR"
EXECUTORS = ("job", "celery")


@dataclass(frozen=True)
class S3Settings:
    """The bucket and its two addresses; keys and region are `objects/client.py`'s."""

    bucket: str
    #: None: Amazon's own.
    endpoint_url: str | None
    #: The address under which a user's browser reaches the same store.
    public_url: str | None
    #: What the keys of all of this stack's objects begin with: empty, or it ends in a slash.
    key_prefix: str = ""


@dataclass(frozen=True)
class Settings:
    """One process's settings. `s3` is None in embedded mode: local files, no broker, no service."""

    s3: S3Settings | None
    #: Where the embedded mode keeps objects, and messages; absolute paths.
    store_folder: Path
    broker_folder: Path
    celery_yaml: Path
    #: Names the modules that hold the user's code.
    workspace_yaml: Path = DEFAULT_WORKSPACE_YAML
    #: Path prefixes inside the store, so that an expiry rule can name them.
    data_prefix: str = "storage"
    log_prefix: str = "logs"
    max_deliveries: int = MAX_DELIVERIES
    #: The form of the services' log lines: one of LOG_FORMATS.
    log_format: str = LOG_FORMATS[0]
    #: What jobs get that name Dagster's multiprocess executor: that one, or the workers.
    executor: str = EXECUTORS[0]

    @property
    def embedded(self) -> bool:
        return self.s3 is None

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> "Settings":
        bucket = environment.get(BUCKET_VARIABLE)
        key_prefix = s3_key_prefix(environment) if bucket else ""
        # Where the stack names none of its own, boto3's.
        endpoint_url = environment.get(ENDPOINT_VARIABLE) or environment.get("AWS_ENDPOINT_URL_S3") or None
        if endpoint_url and not re.match(r"https?://[^/]", endpoint_url):
            raise SettingsError(
                f"S3_ENDPOINT_URL is {endpoint_url!r}: an address begins with http:// or https://, then the host's name."
            )
        home = Path(environment.get("DAGSTER_HOME") or ".dagster").resolve()
        return Settings(
            s3=S3Settings(
                bucket=bucket,
                endpoint_url=endpoint_url,
                public_url=environment.get("DAGSTER_STACK_S3_PUBLIC_URL") or endpoint_url,
                key_prefix=key_prefix,
            )
            if bucket
            else None,
            data_prefix=f"{key_prefix}{Settings.data_prefix}",
            log_prefix=f"{key_prefix}{Settings.log_prefix}",
            store_folder=Path(environment.get("DAGSTER_STACK_STORE") or home / "store").resolve(),
            broker_folder=home / "broker",
            celery_yaml=Path(environment.get("DAGSTER_STACK_CELERY_YAML") or DEFAULT_CELERY_YAML),
            max_deliveries=_count(environment, MAX_DELIVERIES_VARIABLE, MAX_DELIVERIES),
            log_format=_choice(environment, LOG_FORMAT_VARIABLE, LOG_FORMATS),
            executor=_choice(environment, EXECUTOR_VARIABLE, EXECUTORS),
        )


def broker_address(environment: Mapping[str, str] = os.environ) -> str | None:
    """The broker's address as the environment says, or as its parts say; None where neither does."""
    if named := environment.get(BROKER_VARIABLE):
        return named
    scheme, host, port, *quotable = (environment.get(name, "") for name in BROKER_PARTS.values())
    vhost, user, password = (quote(text, safe="") for text in quotable)
    if not (host and password):
        return None
    host = f"[{host.strip('[]')}]" if ":" in host else host
    return f"{scheme or 'amqp'}://{user}:{password}@{host}:{port or 5672}/{vhost}"


def s3_key_prefix(environment: Mapping[str, str] = os.environ) -> str:
    """What S3_PREFIX says, with a slash at its end; empty without it. Raises SettingsError for what no key can begin with."""
    text = environment.get(PREFIX_VARIABLE, "").strip("/")
    parts = text.split("/")
    if text and (
        not re.fullmatch(r"[A-Za-z0-9_.=/-]+", text)
        or not {"", ".", ".."}.isdisjoint(parts)
        or len(text) > LONGEST_PREFIX
    ):
        raise SettingsError(
            f"S3_PREFIX is {text!r}: it may have letters, digits and _ . = - between single slashes, and"
            f" {LONGEST_PREFIX} characters. Change it in .env."
        )
    return f"{text}/" if text else ""


def _count(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.strip().isdecimal() or int(text) < 1:
        raise SettingsError(f"{name} must be a whole number from 1, it is {text!r}.")
    return int(text)


def _choice(environment: Mapping[str, str], name: str, choices: Sequence[str]) -> str:
    text = environment.get(name) or choices[0]
    if text not in choices:
        name = name.removeprefix("DAGSTER_STACK_")
        raise SettingsError(f"{name} must be one of {', '.join(choices)}, it is {text!r}. Change it in .env.")
    return text


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
        try:
            return CeleryConfig._from_block({} if block is None else block)
        except ValueError as error:
            raise SettingsError(f"{path}, under execution.config: {error}") from error

    @staticmethod
    def _from_block(block: Any) -> "CeleryConfig":
        # By hand and not by Dagster's schema, which says the same: a worker's main process does without Dagster.
        if not isinstance(block, dict):
            raise ValueError(f"expected fields, found {block!r}")
        unknown = sorted(set(block) - FIELDS.keys())
        if unknown:
            raise ValueError(f"unexpected field {unknown[0]!r}; there are {', '.join(FIELDS)}")
        values = {name: _resolved(name, value) for name, value in block.items() if value is not None}
        for name, value in values.items():
            if not isinstance(value, FIELDS[name]):
                raise ValueError(f"{name} must be a {FIELDS[name].__name__}, found {value!r}")
        values.pop("retries", None)
        return CeleryConfig(**values)


#: The stock executor's fields and their types. `retries` is the job's, and only allowed here.
FIELDS: dict[str, type] = {
    "broker": str,
    "backend": str,
    "include": list,
    "config_source": dict,
    "retries": dict,
}


def _resolved(name: str, value: Any) -> Any:
    """A text that stands in the environment (`{env: NAME}`), as Dagster's configuration has it."""
    if FIELDS[name] is str and isinstance(value, dict) and set(value) == {"env"}:
        if value["env"] not in os.environ:
            raise ValueError(f"{name} is taken from the variable {value['env']}, which is not set")
        return os.environ[value["env"]]
    return value
