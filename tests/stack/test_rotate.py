"""`make rotate` under load: every step ends well, and no store takes a former password; a signed link still opens."""

import os
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import requests
from botocore.exceptions import ClientError

from pipelines.queues import HEAVY, LIGHT
from tests.stack import runs
from tests.stack.stack import Stack
from tests.waiting import wait_until

STEPS = [op.name for op in LIGHT + HEAVY]
#: Runs of 17 steps each, more than are driven at once: 204 steps.
RUNS = 12
NAPS = {"ops": {name: {"config": {"seconds": 0.2}} for name in STEPS}}
#: By which a client logs in: psycopg2, kombu.
POSTGRES = "import sys, psycopg2; psycopg2.connect(host='postgres', dbname='dagster', user=sys.argv[1], password=sys.argv[2])"
RABBITMQ = (
    "import sys, kombu; kombu.Connection('amqp://{}:{}@rabbitmq/dagster'.format(*sys.argv[1:])).connect()"
)


def forget_clients(stack: Stack) -> None:
    """Those that this stack's tests have made, with former keys."""
    for name in ("s3", "s3_root"):
        vars(stack).pop(name, None)


def launched(stack: Stack) -> list[str]:
    """Runs of which as many as can be are under way."""
    run_ids = [stack.launch("queues", NAPS) for _ in range(RUNS)]
    wait_until(
        lambda: Counter(stack.run(run_id)["status"] for run_id in run_ids), 120, "eight runs under way",
        until=lambda seen: seen["STARTED"] + seen["SUCCESS"] >= 8,
    )  # fmt: skip
    return run_ids


def assert_all_well(stack: Stack, run_ids: list[str]) -> None:
    """Every run succeeded, no step failed, none is missing and none counts twice."""
    for run_id in run_ids:
        assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
        expected = Counter(dict.fromkeys([*STEPS, "start_order"], 1))
        assert runs.count_events(stack, run_id, "STEP_SUCCESS") == expected
        assert not runs.count_events(stack, run_id, "STEP_FAILURE")


def logs_in(stack: Stack, script: str, login: str, password: str) -> bool:
    answer = stack.exec("worker", "python", "-c", script, login, password, check=False)
    assert answer.returncode == 0 or re.search(
        r"(?i)refused|authentication failed|not permitted", answer.stderr
    )
    return answer.returncode == 0


def assert_only_the_new_ones_open(stack: Stack, former: dict[str, str]) -> None:
    forget_clients(stack)
    now = stack.settings
    assert now["ROTATING"] == ""
    for settings, is_open in ((former, False), (now, True)):
        for script, store in ((POSTGRES, "POSTGRES"), (RABBITMQ, "RABBITMQ")):
            login = settings[f"{store}_USER"], settings[f"{store}_PASSWORD"]
            assert logs_in(stack, script, *login) == is_open, (store, login)
    # And no former password of the logins that are the same
    api = f"http://127.0.0.1:{now['RABBITMQ_PORT']}/api/overview"
    for name in ("ADMIN", "MONITOR"):
        login = name.lower(), former[f"RABBITMQ_{name}_PASSWORD"]
        assert requests.get(api, auth=login, timeout=20).status_code == 401
    assert stack.broker("overview")
    with pytest.raises(ClientError, match=r"SignatureDoesNotMatch|InvalidAccessKeyId"):
        stack.s3_client("root", former["MINIO_ROOT_PASSWORD"]).list_buckets()
    assert stack.s3_root.list_buckets()


def test_all_are_rotated_while_200_steps_are_handed_over(stack: Stack) -> None:
    # Given an object, a link to it that was signed before, and 200 steps in flight
    former = stack.settings
    key = {"Bucket": stack.bucket, "Key": "rotate/object"}
    stack.s3.put_object(**key, Body=b"x")
    link = stack.s3.generate_presigned_url("get_object", Params=key, ExpiresIn=3600)
    before = launched(stack)

    # When all passwords are rotated without waiting for them
    said = stack.make("rotate", "DEPLOY=hand-over").stdout

    # Then every step ended well, and so does new work
    assert_all_well(stack, [*before, stack.launch("queues", NAPS)])
    assert "New passwords for Postgres, RabbitMQ, MinIO, and those of people" in said
    # And no former password opens a store
    assert_only_the_new_ones_open(stack, former)
    # But the link opens, since its key may still read, and nothing else
    assert requests.get(link, timeout=20).content == b"x"
    old = stack.s3_client(former["S3_ACCESS_KEY"], former["S3_SECRET_KEY"])
    with pytest.raises(ClientError, match="AccessDenied"):
        old.put_object(**key, Body=b"y")
    with pytest.raises(ClientError, match="AccessDenied"):
        old.list_objects_v2(Bucket=stack.bucket)
    # And all is as `make up` would have it
    assert "nothing to do" in stack.make("up").stdout


def test_it_waits_for_runs_and_up_completes_one_that_was_killed(stack: Stack, tmp_path: Path) -> None:
    # Given runs under way, and a rotation that is killed once it has begun to swap
    former, before = stack.settings, launched(stack)
    log = tmp_path / "rotate.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["make", "rotate"], cwd=stack.checkout, env=stack.environment, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until(lambda: stack.settings["ROTATING"], 300, f"the swap begins ({log.read_text()})")
        # Then no step was interrupted: what was under way has ended
        assert not [run_id for run_id in before if stack.run(run_id)["status"] == "STARTED"]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    # When the stack is brought up
    stack.make("up")

    # Then it is completed, and each step ran once
    assert_all_well(stack, before)
    for run_id in before:
        assert set(runs.count_events(stack, run_id, "STEP_START").values()) == {1}
    assert_only_the_new_ones_open(stack, former)
