"""A real S3 server for the tests: SeaweedFS from PyPI, in a folder of its own, up in a second or two."""

import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.waiting import wait_until

ACCESS_KEY, SECRET_KEY, BUCKET = "test", "test-secret", "dagster"
WEED = Path(sys.executable).parent / "weed"
#: SeaweedFS listens for gRPC on each port plus this.
GRPC_OFFSET = 10_000


@contextmanager
def seaweed(folder: Path) -> Iterator[str]:
    """A server with one empty bucket while the context lasts; yields its address."""
    keys = folder / "s3.json"
    credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    keys.write_text(
        json.dumps({"identities": [{"name": "test", "credentials": credentials, "actions": ["Admin"]}]})
    )
    with one_at_a_time():
        s3, process = start(folder, keys)
    try:
        yield f"http://127.0.0.1:{s3}"
    finally:
        process.kill()
        process.wait()


def start(folder: Path, keys: Path) -> tuple[int, "subprocess.Popen[bytes]"]:
    """A server that has an empty bucket, and its port."""
    master, volume, filer, s3 = free_ports(4)
    command = [
        str(WEED), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-master.port={master}",
        f"-volume.port={volume}", f"-filer.port={filer}", "-s3", f"-s3.port={s3}", f"-s3.config={keys}",
        "-s3.allowDeleteBucketNotEmpty=true", "-master.volumeSizeLimitMB=64", "-volume.max=20", "-master.telemetry=false",
        # What has a port of its own, the same for all servers.
        "-s3.port.iceberg=0", "-s3.port.lance=0",
    ]  # fmt: skip
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=folder)
    try:
        with client(f"http://127.0.0.1:{s3}") as s3_client:
            wait_until(
                lambda: process.poll() is not None or bucket_made(s3_client),
                90,
                f"SeaweedFS makes a bucket (its log: {log})",
                pause=0.1,
            )
        if process.poll() is not None:
            raise AssertionError(f"SeaweedFS ended with {process.returncode}: {log}")
    except BaseException:
        process.kill()
        process.wait()
        raise
    return s3, process


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Of all sessions on this host one starts a server, until its ports are taken: others would choose the same."""
    folder = os.open(tempfile.gettempdir(), os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@contextmanager
def client(url: str) -> Iterator[Any]:
    config = Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=5)
    keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY, "region_name": "us-east-1"}
    made = boto3.client("s3", endpoint_url=url, config=config, **keys)
    try:
        yield made
    finally:
        made.close()


def bucket_made(s3_client: Any) -> bool:
    try:
        s3_client.create_bucket(Bucket=BUCKET)
        # Writing needs more of the server than a bucket does.
        s3_client.put_object(Bucket=BUCKET, Key="probe", Body=b"1")
        s3_client.delete_object(Bucket=BUCKET, Key="probe")
    except (BotoCoreError, ClientError):
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Ports that are free together with their gRPC port."""
    found: list[int] = []
    for port in range(20_011, 30_000, 7):
        if all(is_free(number) for number in (port, port + GRPC_OFFSET)):
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
