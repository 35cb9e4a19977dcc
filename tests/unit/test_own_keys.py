"""The stack's bucket is the platform's with its own keys: a project may have other ones, under the names that all libraries know."""

import json
import os
import threading
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import boto3
import pytest

from dagster_stack import environment
from dagster_stack.objects.client import s3_client
from dagster_stack.settings import Settings
from tests.unit.seaweed import ACCESS_KEY, BUCKET, SECRET_KEY


def test_the_platform_uses_its_own_keys_whatever_a_project_has(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given the stack's keys, and a project's of another store
    monkeypatch.setenv("DAGSTER_STACK_S3_BUCKET", BUCKET)
    monkeypatch.setenv("DAGSTER_STACK_S3_ENDPOINT_URL", s3_url)
    monkeypatch.setenv("DAGSTER_STACK_S3_ACCESS_KEY", ACCESS_KEY)
    monkeypatch.setenv("DAGSTER_STACK_S3_SECRET_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    s3_client.cache_clear()

    # Then what the platform does goes to its own
    place = Settings.from_environment().s3
    assert place
    client = s3_client(place.endpoint_url)
    client.put_object(Bucket=BUCKET, Key="own-keys", Body=b"x")
    assert client.get_object(Bucket=BUCKET, Key="own-keys")["Body"].read() == b"x"
    client.close()


# --- keys of the machine's role ------------------------------------------------------------------------

TOKEN = "a-role's-token"
ROLE = {
    "Code": "Success", "AccessKeyId": "ROLEKEY", "SecretAccessKey": "s", "Token": TOKEN,
    "Expiration": "2099-01-01T00:00:00Z", "LastUpdated": "2020-01-01T00:00:00Z", "Type": "AWS-HMAC",
}  # fmt: skip


class Machine(BaseHTTPRequestHandler):
    """A cloud machine's own address, which tells its role's keys, and an S3 store."""

    asked: ClassVar[list[Message]] = []

    def do_GET(self) -> None:
        answers = {
            "/latest/api/token": "t",
            "/latest/meta-data/iam/security-credentials/": "role",
            "/latest/meta-data/iam/security-credentials/role": json.dumps(ROLE),
        }
        if self.path not in answers:
            self.asked.append(self.headers)
        body = answers.get(self.path, "<ListAllMyBucketsResult/>").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: pytest's output is for tests."""


@pytest.fixture
def machine_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Machine)
    Machine.asked.clear()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    s3_client.cache_clear()
    yield url
    s3_client.cache_clear()
    server.shutdown()
    server.server_close()


def test_without_an_access_key_the_keys_are_those_of_the_machines_role_and_no_projects(
    machine_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a stack without keys on a machine with a role, and a project with keys of its own
    for name in ("ACCESS_KEY", "SECRET_KEY", "SESSION_TOKEN"):
        monkeypatch.setenv(f"DAGSTER_STACK_S3_{name}", "")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")

    s3_client(machine_url, impatient=True).list_buckets()

    assert "Credential=ROLEKEY/" in Machine.asked[0]["Authorization"]
    assert Machine.asked[0]["x-amz-security-token"] == TOKEN


def test_user_code_gets_the_role_too_since_no_empty_key_is_in_its_way(
    machine_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in environment.NEVER_EMPTY:
        monkeypatch.setenv(name, "")

    environment.complete()

    assert not {*environment.NEVER_EMPTY} & {*os.environ}
    boto3.Session().client("s3", endpoint_url=machine_url, region_name="us-east-1").list_buckets()
    assert "Credential=ROLEKEY/" in Machine.asked[0]["Authorization"]


def test_a_session_token_goes_with_its_keys(machine_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY": "a", "SECRET_KEY": "b", "SESSION_TOKEN": "c"}.items():
        monkeypatch.setenv(f"DAGSTER_STACK_S3_{name}", value)

    s3_client(machine_url, impatient=True).list_buckets()

    assert "Credential=a/" in Machine.asked[0]["Authorization"]
    assert Machine.asked[0]["x-amz-security-token"] == "c"
