"""The environment and `celery.yaml`, good and bad."""

import subprocess
import sys
from pathlib import Path

import pytest

from dagster_stack.errors import SettingsError
from dagster_stack.settings import DEFAULT_CELERY_YAML, CeleryConfig, Settings
from scripts.console import ROOT


def test_an_empty_environment_is_the_embedded_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    settings = Settings.from_environment({})

    assert settings.embedded
    assert settings.s3 is None
    assert settings.store_folder == tmp_path / ".dagster" / "store"
    assert settings.broker_folder == tmp_path / ".dagster" / "broker"
    assert settings.celery_yaml == DEFAULT_CELERY_YAML


def test_a_bucket_is_the_stack() -> None:
    settings = Settings.from_environment(
        {
            "DAGSTER_STACK_S3_BUCKET": "dagster",
            "AWS_ENDPOINT_URL_S3": "http://minio:9000",
            "DAGSTER_STACK_S3_PUBLIC_URL": "http://127.0.0.1:9000",
        }
    )

    assert not settings.embedded
    assert settings.s3 is not None
    assert (settings.s3.bucket, settings.s3.endpoint_url) == ("dagster", "http://minio:9000")
    assert settings.s3.public_url == "http://127.0.0.1:9000"


@pytest.mark.parametrize("public", [{}, {"DAGSTER_STACK_S3_PUBLIC_URL": ""}])
def test_without_a_public_address_browsers_use_the_stores_own(public: dict[str, str]) -> None:
    environment = {"DAGSTER_STACK_S3_BUCKET": "b", "AWS_ENDPOINT_URL_S3": "https://s3.example", **public}

    settings = Settings.from_environment(environment)

    assert settings.s3 is not None
    assert settings.s3.public_url == "https://s3.example"


def test_an_empty_address_is_amazons_own() -> None:
    settings = Settings.from_environment({"DAGSTER_STACK_S3_BUCKET": "b", "AWS_ENDPOINT_URL_S3": ""})

    assert settings.s3 is not None
    assert settings.s3.endpoint_url is None
    assert settings.s3.public_url is None


def test_the_embedded_store_can_be_moved(tmp_path: Path) -> None:
    assert Settings.from_environment({"DAGSTER_HOME": str(tmp_path)}).store_folder == tmp_path / "store"
    assert (
        Settings.from_environment({"DAGSTER_STACK_STORE": str(tmp_path / "x")}).store_folder == tmp_path / "x"
    )


def test_the_folder_of_messages_is_the_same_for_a_run_and_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step may change its folder, and a worker may be started in another one."""
    monkeypatch.chdir(tmp_path)

    settings = Settings.from_environment({"DAGSTER_HOME": "home"})

    assert settings.broker_folder == tmp_path / "home" / "broker"
    assert settings.broker_folder.is_absolute()


# --- celery.yaml --------------------------------------------------------------------------------------------


def load(tmp_path: Path, text: str | bytes) -> CeleryConfig:
    file = tmp_path / "celery.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return CeleryConfig.load(file)


def test_all_fields_of_the_stock_format_are_read(tmp_path: Path) -> None:
    text = """
        execution:
          config:
            broker: amqp://b
            backend: rpc://
            include: [my.tasks]
            config_source: {task_acks_late: true}
            retries: {enabled: {}}
    """

    assert load(tmp_path, text) == CeleryConfig("amqp://b", "rpc://", ["my.tasks"], {"task_acks_late": True})


def test_a_value_may_stand_in_the_environment_as_in_the_stock_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_BROKER", "amqp://from-the-environment")

    config = load(tmp_path, "execution: {config: {broker: {env: MY_BROKER}}}")

    assert config.broker == "amqp://from-the-environment"


@pytest.mark.parametrize(
    "text", ["", "execution:", "execution: {config: }", "execution: {config: {}}", "# nothing"]
)
def test_a_file_that_says_nothing_leaves_every_default(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) == CeleryConfig()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "execution: {config: {brokr: x}}",
            "unexpected field 'brokr'; there are broker, backend, include, config_source, retries",
        ),
        ("execution: {config: {broker: 3}}", "broker"),
        ("execution: {config: {broker: {env: NOT_SET_ANYWHERE}}}", "NOT_SET_ANYWHERE"),
        ("execution: {config: {config_source: [a]}}", "config_source"),
        ("execution: {config: {include: x}}", "include"),
        ("execution: {config: {backend: [a]}}", "backend must be a str"),
        ("execution: {config: {broker: {env: A, more: B}}}", "broker must be a str"),
        ("execution: {config: {retries: 3}}", "retries must be a dict"),
        ("execution: {config: [a]}", "under execution.config"),
        ("execution: {config: 3}", "expected fields, found 3"),
        ("- a list", "must hold `execution: config: …`"),
        ("just text", "must hold `execution: config: …`"),
        ("execution: 3", "must hold `execution: config: …`"),
        ("execution: [", "can't be read"),
        (b"\xff\xfe\x00", "can't be read"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_the_reason(
    tmp_path: Path, text: str | bytes, reason: str
) -> None:
    with pytest.raises(SettingsError) as error:
        load(tmp_path, text)

    assert str(tmp_path / "celery.yaml") in str(error.value)
    assert reason in str(error.value)


def test_a_job_may_retry_as_it_likes_whatever_the_file_says_of_retries(tmp_path: Path) -> None:
    """The stock format allows the field; it belongs to a job, and the workers have no use for it."""
    assert load(tmp_path, "execution: {config: {retries: {disabled: {}}}}") == CeleryConfig()


def test_the_file_is_read_without_dagster() -> None:
    """A worker's main process does without it: 90 MB for each worker."""
    code = (
        "import sys; from dagster_stack.settings import *; CeleryConfig.load(DEFAULT_CELERY_YAML);"
        " sys.exit('dagster' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0


def test_a_missing_file_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none.yaml can't be read: .*No such file"):
        CeleryConfig.load(tmp_path / "none.yaml")


def test_the_committed_file_names_no_broker_and_no_secret() -> None:
    """The broker's address holds a password: it comes from the environment alone."""
    config = CeleryConfig.load(DEFAULT_CELERY_YAML)

    assert config.broker is None
    assert config.backend == "rpc://"
    assert "@" not in DEFAULT_CELERY_YAML.read_text()


@pytest.mark.parametrize(("text", "prefix"), [("", ""), ("team-a", "team-a/"), ("/a/b/", "a/b/"), ("/", "")])
def test_a_prefix_stands_before_all_that_the_stack_stores(text: str, prefix: str) -> None:
    settings = Settings.from_environment({"DAGSTER_STACK_S3_BUCKET": "b", "DAGSTER_STACK_S3_PREFIX": text})

    assert settings.s3
    assert settings.s3.key_prefix == prefix
    assert settings.data_prefix == f"{prefix}storage"
    assert settings.log_prefix == f"{prefix}logs"


@pytest.mark.parametrize("text", ["a//b", "../a", "a b", "a/.", "x" * 201, "ü", "@assets"])
def test_a_prefix_that_no_key_can_begin_with_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="S3_PREFIX"):
        Settings.from_environment({"DAGSTER_STACK_S3_BUCKET": "b", "DAGSTER_STACK_S3_PREFIX": text})
