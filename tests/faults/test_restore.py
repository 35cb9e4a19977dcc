"""Everything is lost but the copy off the host and the key: the stack is restored from these to a named second."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from scripts.console import ROOT
from scripts.test import settings_of_images
from tests.conftest import PROJECT, free_ports
from tests.faults.conftest import drill_stack
from tests.faults.grounds import Grounds
from tests.stack.stack import Stack
from tests.waiting import wait_until

NAME = f"{PROJECT}-restore"
#: The store that is not on this host, and its login.
FAR, LOGIN, BUCKET = f"{NAME}-far", "far", "copies"
#: What the log says, row by row, and how the runs are.
LOG = (
    "SELECT count(*), md5(string_agg(id || event || coalesce(step_key, ''), '' ORDER BY id)) FROM event_logs"
)
STATUSES = "SELECT run_id, status FROM runs ORDER BY run_id"
#: Keys of the load that is done, and of the one that is under way; and how long each of its steps takes.
DONE, UNDER_WAY, NAP_SECS = 20, 2, 15.0
#: What belongs to a restored stack before somebody has chosen, and what does not.
UP, DOWN = (
    {"postgres", "rabbitmq", "minio", "dagit"},
    {"daemon", "runner", "worker", "worker-heavy", "backup"},
)


@dataclass(frozen=True)
class Seen:
    """A stack at a moment."""

    log: list[list[str]]
    statuses: list[list[str]]
    objects: dict[str, str]


@pytest.fixture(scope="module")
def far() -> Iterator[dict[str, str]]:
    """An S3 store that has nothing to do with the stack; the settings by which the stack reaches it."""
    # It runs from the stack's image, and the stack starts when its store is there.
    build = [sys.executable, "-m", "scripts.images"]
    subprocess.run(build, cwd=ROOT, env=os.environ | settings_of_images(NAME), check=True)
    (port,) = free_ports(1)
    with store_at(port) as (stack_address, own_address):
        s3 = boto3.client(
            "s3",
            endpoint_url=own_address,
            region_name="us-east-1",
            aws_access_key_id=LOGIN,
            aws_secret_access_key=LOGIN * 3,
        )
        wait_until(lambda: made(s3), 30, f"a bucket in {FAR}")
        yield {
            "BACKUP_S3_ENDPOINT_URL": stack_address,
            "BACKUP_S3_ACCESS_KEY": LOGIN,
            "BACKUP_S3_SECRET_KEY": LOGIN * 3,
        }


@contextmanager
def store_at(port: str) -> Iterator[tuple[str, str]]:
    from scripts.engine import ask

    # Containers reach this host at the bridge's address, and nobody else does.
    gateway = ask("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}")
    ask("rm", "--force", "--volumes", FAR)
    ask(
        "run", "--detach", "--name", FAR, "--publish", f"127.0.0.1:{port}:9000", "--publish", f"{gateway}:{port}:9000",
        "--env", f"MINIO_ROOT_USER={LOGIN}", "--env", f"MINIO_ROOT_PASSWORD={LOGIN * 3}",
        f"{NAME}/minio",
    )  # fmt: skip
    try:
        yield f"http://host.docker.internal:{port}", f"http://127.0.0.1:{port}"
    finally:
        ask("rm", "--force", "--volumes", FAR)


def made(s3: Any) -> bool:
    try:
        s3.create_bucket(Bucket=BUCKET)
    except (BotoCoreError, ClientError):
        return False
    return True


@pytest.fixture(scope="module")
def stack(far: dict[str, str]) -> Iterator[Stack]:
    settings = {"BACKUP": "daily", "BACKUP_TARGET": f"s3:{BUCKET}/one", **far}
    with drill_stack(NAME, WORKERS="2", RUNNERS="1", **settings) as stack:
        yield stack


def seen(stack: Stack) -> Seen:
    pages = stack.s3.get_paginator("list_objects_v2").paginate(Bucket=stack.bucket, Prefix="storage/")
    objects = {each["Key"]: each["ETag"] for page in pages for each in page.get("Contents", [])}
    return Seen(stack.sql(LOG), stack.sql(STATUSES), objects)


def quiet_second(stack: Stack) -> tuple[datetime, Seen]:
    """A whole second around which nothing was written, and what there was."""

    def look() -> tuple[datetime, Seen] | None:
        before = seen(stack)
        began = time.time()
        time.sleep(1.5 - began % 1)  # Until half a second after the next whole one.
        after = seen(stack)
        return (datetime.fromtimestamp(int(began) + 1), after) if before == after else None

    found = wait_until(look, 60, "a second without events")
    assert found
    return found


def test_the_stack_is_restored_to_a_second_from_the_copy_and_the_key_alone(
    stack: Stack, far: dict[str, str]
) -> None:
    grounds = Grounds(stack)
    grounds.stack.graphql(
        "mutation ($key: String!) { setConcurrencyLimit(concurrencyKey: $key, limit: 4) }", key="drill"
    )
    # Given runs that have ended, a backup, and a run under way
    done = grounds.launch(DONE)
    assert grounds.wait_for([done]) == {done: "SUCCESS"}
    stack.make("backup")
    under_way = grounds.launch(UNDER_WAY, nap=NAP_SECS)
    wait_until(lambda: stack.run(under_way)["status"] == "STARTED", 60, "a run under way")
    second, there = quiet_second(stack)
    # And more work after a second, and the copy off this host
    later = grounds.launch(UNDER_WAY)
    assert grounds.wait_for([later, under_way]) == {later: "SUCCESS", under_way: "SUCCESS"}
    print(stack.make("backup").stdout)
    figures = stack.exec("backup", "python3", "-c", FIGURES).stdout
    assert re.search(r"^dagster_backup_copy_age_seconds \d$", figures, re.MULTILINE), figures
    # When all is lost but the copy and the key
    key = stack.settings["BACKUP_KEY"]
    env = stack.env.read_text()
    stack.make("clean")
    stack.env.unlink()
    # Then another key is refused, with what it is
    place = [f"FROM=s3:{BUCKET}/one", *(f"{name}={value}" for name, value in far.items())]
    refused = stack.make("restore", *place, "BACKUP_KEY=0123", check=False)
    assert "BACKUP_KEY is not the key of this repository" in refused.stderr
    assert not stack.env.exists()
    # And with the right one all is as it was at that second, .env too
    print(stack.make("restore", *place, f"BACKUP_KEY={key}", f"TO={second}", timeout=600).stdout)
    assert stack.env.read_text() == env
    now = seen(stack)
    assert (now.log, now.statuses) == (there.log, there.statuses)
    assert there.objects.items() <= now.objects.items()
    # And the world does not go on by itself
    running = {each.service for each in stack.containers() if each.state == "running"}
    assert running == UP
    assert "A restore waits for your choice" in stack.make("up", check=False).stderr
    # When the user lets runs go on
    said = stack.make("restore", "RUNS=resume", "SCHEDULES=skip", timeout=600).stdout
    assert under_way[:8] in said
    # Then the run under way ends, and what was after that second has never been
    assert grounds.wait_for([under_way]) == {under_way: "SUCCESS"}
    assert grounds.objects(under_way).keys() == grounds.objects(later).keys()
    assert [later] not in stack.sql("SELECT run_id FROM runs")
    # And backups go on in the new past
    print(stack.make("backup").stdout)
    listed = json.loads(stack.make("backups", "JSON=1").stdout)
    assert not listed["errors"]
    assert listed["restores"]


#: Asks the service for its figures, within its container.
FIGURES = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9854/metrics').read().decode())"
