"""What a step may say, print and leave behind: its run's page shows it, and later steps of its worker work."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests
from websockets.sync.client import connect

from tests.stack import runs
from tests.stack.ad_hoc import AdHoc, Spec
from tests.stack.stack import Stack
from tests.waiting import wait_until

SHOWN = "file\\udcff␀😀"
#: What Dagit's page of a run asks for, in one.
PAGE = """
    ... on MessageEvent { runId message timestamp level stepKey eventType }
    ... on DisplayableEvent {
      label description
      metadataEntries {
        __typename label description
        ... on PathMetadataEntry { path }
        ... on JsonMetadataEntry { jsonString }
        ... on UrlMetadataEntry { url }
        ... on TextMetadataEntry { text }
        ... on MarkdownMetadataEntry { mdStr }
        ... on FloatMetadataEntry { floatValue floatRepr }
        ... on IntMetadataEntry { intValue intRepr }
        ... on TimestampMetadataEntry { timestamp }
        ... on TableMetadataEntry { table { records schema { columns { name type } } } }
      }
    }
    ... on ErrorEvent {
      error { message className stack errorChain { isExplicitLink error { message className stack } } }
    }
    ... on MaterializationEvent { assetKey { path } }
"""
RUN = """
    query Shown($run: ID!) {
      runOrError(runId: $run) {
        ... on Run {
          status runConfigYaml tags { key value }
          eventConnection(limit: 1000) { events { __typename PAGE } }
        }
      }
      assetNodes { id }
      assetsOrError { ... on AssetConnection { nodes { key { path } assetMaterializations(limit: 1) { description } } } }
    }
""".replace("PAGE", PAGE)
FOLLOWED = """
    subscription Follow($run: ID!) {
      pipelineRunLogs(runId: $run, cursor: null) {
        ... on PipelineRunLogsSubscriptionSuccess { hasMorePastEvents messages { __typename PAGE } }
      }
    }
""".replace("PAGE", PAGE)


@pytest.fixture(scope="module")
def made(jobs: AdHoc) -> dict[str, str]:
    """The runs of this module by their jobs, begun at once."""
    names = ("talking_oddly", "printing_much", "leaving_files")
    return dict(zip(names, jobs.begin(*map(Spec, names)), strict=True))


def page(stack: Stack, run_id: str) -> dict[str, Any]:
    """What Dagit answers its own page; as JavaScript reads it, which knows no NaN."""
    response = requests.post(
        f"{stack.dagit_url}/graphql", json={"query": RUN, "variables": {"run": run_id}}, timeout=60
    )
    assert response.status_code == 200, response.text[:2000]
    body: dict[str, Any] = json.loads(response.content.decode(), parse_constant=not_json)
    assert "errors" not in body
    found: dict[str, Any] = body["data"]["runOrError"]
    return found


def not_json(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def test_whatever_text_a_step_brings_its_runs_page_shows_it(stack: Stack, made: dict[str, str]) -> None:
    # Given a run whose steps said, reported and raised what can't be encoded, stored or read
    run_id = made["talking_oddly"]
    stack.wait_for_run(run_id)

    # When Dagit's page asks for it
    shown = page(stack, run_id)

    # Then it went as it should, and all of it is there, replaced visibly or cut
    assert runs.statuses(stack, run_id) == {"talk_oddly": "SUCCESS", "fail_oddly": "FAILURE"}
    assert {"key": f"tag {SHOWN}", "value": SHOWN} in shown["tags"]
    events = shown["eventConnection"]["events"]
    messages = [event["message"] for event in events]
    assert f"said {SHOWN}" in messages
    assert any("of 10,000,000 characters]" in message for message in messages)
    (materialized,) = [event for event in events if event["__typename"] == "MaterializationEvent"]
    assert materialized["description"] == SHOWN
    entries = {entry["label"]: entry for entry in materialized["metadataEntries"]}
    assert (
        entries[SHOWN]["text"]
        == entries["path"]["path"].rpartition("/")[2]
        == entries["md"]["mdStr"]
        == SHOWN
    )
    assert json.loads(entries["json"]["jsonString"], parse_constant=not_json) == {SHOWN: [SHOWN, "nan"]}
    assert json.loads(entries["table"]["table"]["records"][0], parse_constant=not_json) == {
        "text": SHOWN,
        "number": "inf",
    }
    assert entries["long json"]["text"].startswith("[cut: Json of")
    assert entries["number"]["floatRepr"] == "nan"
    assert entries["large"]["intRepr"] == str(10**30)
    (failed,) = [event for event in events if event["__typename"] == "ExecutionStepFailureEvent"]
    chain = [failed["error"], *(link["error"] for link in failed["error"]["errorChain"])]
    assert any(f"OSError: {SHOWN}" in error["message"] for error in chain)
    assert any("more errors that led to this one are left out" in error["message"] for error in chain)

    # And on its WebSocket, and in what was printed
    assert f"said {SHOWN}" in [event["message"] for event in followed(stack, run_id)]
    printed = runs.output(stack, run_id, "talk_oddly")
    assert printed
    assert "not UTF-8: �" in printed.stdout

    # When the database holds an event as it was stored before
    stack.sql(
        f"UPDATE event_logs SET event = replace(event, 'said file', 'said \\\\udcff') WHERE run_id = '{run_id}'"
    )

    # Then the page is shown all the same
    for found in (page(stack, run_id)["eventConnection"]["events"], followed(stack, run_id)):
        assert "said \udcff" in "".join(event["message"] for event in found)


def followed(stack: Stack, run_id: str) -> list[dict[str, Any]]:
    """The events of a run as an open page gets them."""
    url = f"{stack.dagit_url.replace('http', 'ws')}/graphql"
    with connect(url, subprotocols=["graphql-ws"], max_size=None) as socket:  # type: ignore[list-item]
        socket.send(json.dumps({"type": "connection_init"}))
        payload = {"query": FOLLOWED, "variables": {"run": run_id}}
        socket.send(json.dumps({"type": "start", "id": "1", "payload": payload}))
        while True:
            answer = json.loads(socket.recv(60))
            if answer["type"] == "data":
                assert "errors" not in answer["payload"]
                found: list[dict[str, Any]] = answer["payload"]["data"]["pipelineRunLogs"]["messages"]
                return found


def test_a_step_may_print_more_than_its_disk_and_memory_hold(stack: Stack, made: dict[str, str]) -> None:
    run_id = made["printing_much"]

    run = stack.wait_for_run(run_id)

    assert run["status"] == "SUCCESS", stack.failure_texts(run_id)
    assert runs.count_events(stack, run_id, "STEP_START") == {"print_much": 1}

    # Then its output is kept, which is brought away while the run goes on, and ends
    def said() -> bool:
        printed = runs.output(stack, run_id, "print_much")
        return bool(printed and "it goes on" in printed.stderr)

    end = b" bytes are kept, what follows is left out]\n"

    def kept() -> tuple[int, bytes]:
        (key,) = [key for key in stack.keys(f"logs/storage/{run_id}") if key.endswith(".out")]
        body: bytes = stack.s3.get_object(Bucket=stack.bucket, Key=key)["Body"].read()
        return len(body), body[-len(end) :]

    wait_until(said, 60, "the end of what it printed")
    size, _ = wait_until(kept, 60, "the end of what is kept", until=lambda found: found[1] == end)
    # DAGSTER_TRUNCATE_COMPUTE_LOGS_UPLOAD_BYTES
    assert size < 50 * 1024 * 1024 + 200


def test_what_steps_leave_in_scratch_space_fails_no_later_step(stack: Stack, made: dict[str, str]) -> None:
    # Given a worker on which four steps leave 300 MB each, then one that needs more than there is
    run_id = made["leaving_files"]

    stack.wait_for_run(run_id)

    # Then the four have room, and the last one's error says what is full, and who has how much
    left = {f"leave_{number}": "SUCCESS" for number in range(1, 5)}
    assert runs.statuses(stack, run_id) == {"heavy_step": "SUCCESS", **left, "fill": "FAILURE"}
    errors = " ".join(stack.failure_texts(run_id))
    assert "[Errno 28]" in errors
    assert "/tmp of this worker has 1,074 MB (WORKER_TMP in .env" in errors
    assert "this step's folder" in errors
    assert "/tmp/left by leave_4, which a step made, 315 MB" in errors


def test_a_worker_without_room_takes_no_step_until_there_is_some(
    stack: Stack, jobs: AdHoc, made: dict[str, str]
) -> None:
    # Given scratch space that something holds which is no step
    stack.wait_for_run(made["leaving_files"])
    with held(stack, stack.container("worker-heavy"), megabytes=950):
        # When a step comes
        (run_id,) = jobs.begin(Spec("heavy_alone"))

        # Then it waits, and its run's log says for what
        def told() -> list[str]:
            return [event["message"] for event in stack.events(run_id) if "is delayed" in event["message"]]

        (reason,) = wait_until(told, 120, "it is told why the step waits")
        assert "has no room for it" in reason
        assert "/tmp/held, which a step made, 996 MB" in reason
        assert not runs.count_events(stack, run_id, "STEP_START")

    # And is executed once there is room, as if nothing had been
    assert stack.wait_for_run(run_id)["status"] == "SUCCESS"
    assert len(told()) == 1
    assert runs.count_events(stack, run_id, "STEP_START").total() == 1
    assert len(runs.executions(stack, run_id)) == 1


@contextmanager
def held(stack: Stack, container: str, megabytes: int) -> Iterator[None]:
    """A file in a container's scratch space that a program beside the worker has open."""
    program = (
        "import os,time; file = open('/tmp/held', 'wb');"
        f" os.posix_fallocate(file.fileno(), 0, {megabytes} << 20); open('/tmp/held.pid', 'w').write(str(os.getpid()));"
        " time.sleep(600)"
    )
    stack.docker("exec", container, "sh", "-c", "rm -rf /tmp/left*")
    stack.docker("exec", "-d", container, "python3", "-c", program)
    try:
        wait_until(
            lambda: stack.docker("exec", container, "cat", "/tmp/held.pid", check=False).stdout,
            30,
            "it is held",
        )
        yield
    finally:
        stack.docker(
            "exec", container, "sh", "-c", "kill $(cat /tmp/held.pid); rm -f /tmp/held /tmp/held.pid"
        )
