"""Monitoring beside the event log and the broker: the right figures under load, and no harm when it is away."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import requests

from tests.stack import runs, work
from tests.stack.monitoring import FLOWER_USER, SERVICES, Figures, Monitoring
from tests.stack.stack import Stack
from tests.stack.work import MANY as STEPS
from tests.stack.work import MANY_STEPS as JOB
from tests.waiting import wait_until

WORKERS, FEWER = 8, 5
SCALE_SECS = 300
QUEUE = "dagster"
SUCCESSES = {"name": "dagster_steps_ended_total", "queue": QUEUE, "outcome": "success"}
#: How far the broker's own figures may move while one asks: they are counted every 2 s, and each worker holds one.
BETWEEN = WORKERS
#: Megabytes that the profile may take besides Grafana.
MOST_MEMORY = 600


@dataclass(frozen=True)
class Seen:
    """One look at the metrics, between two looks at the event log and two at the broker."""

    figures: Figures
    #: What the page gives to scripts.
    status: Mapping[str, Any]
    sent: tuple[int, int]
    ended: tuple[int, int]
    ready: tuple[int, int]
    in_flight: tuple[int, int]


@dataclass
class Watched:
    """A run of many steps on eight workers, one of which was killed; and what was seen meanwhile."""

    run_id: str
    before: Figures
    busy: list[Seen]
    killed: list[Seen]
    after: Figures


def look(monitoring: Monitoring, run_id: str) -> Seen:
    stack = monitoring.stack

    def log() -> tuple[int, int]:
        counts = ", ".join(
            f"count(*) FILTER (WHERE dagster_event_type = '{kind}')"
            for kind in ("STEP_WORKER_STARTING", "STEP_SUCCESS")
        )
        sent, ended = stack.sql(f"SELECT {counts} FROM event_logs WHERE run_id = '{run_id}'")[0]
        return int(sent), int(ended)

    def broker() -> tuple[int, int]:
        queue = stack.broker(f"queues/{stack.vhost}/{QUEUE}")
        return queue["messages_ready"], queue["messages_unacknowledged"]

    (sent, ended), (ready, in_flight) = log(), broker()
    figures = monitoring.figures()
    status = monitoring.get("METRICS_PORT", "/status.json").json()
    (ready_after, in_flight_after), (sent_after, ended_after) = broker(), log()
    return Seen(
        figures,
        status,
        (sent, sent_after),
        (ended, ended_after),
        (ready, ready_after),
        (in_flight, in_flight_after),
    )


@pytest.fixture(scope="module")
def watched(stack: Stack, monitoring: Monitoring) -> Iterator[Watched]:
    try:
        stack.compose("scale", f"worker={WORKERS}", timeout=SCALE_SECS)
        runs.wait_for_workers(stack, WORKERS, timeout=SCALE_SECS)
        wait_until(lambda: workers(monitoring.figures()), 30, "eight workers in the figures",
                   until=lambda number: number == WORKERS)  # fmt: skip
        before = monitoring.figures()
        run_id = work.begin_many_steps(stack)
        wait_until(
            lambda: monitoring.figures().sum("dagster_steps", queue=QUEUE), 120, "steps in the figures",
            until=lambda steps: steps > STEPS / 2,
        )  # fmt: skip
        busy = [look(monitoring, run_id) for _ in range(3)]
        # The engine starts a crashed worker again within a roll call at times; one that it was told to kill stays away.
        stack.docker("kill", victim := stack.container("worker"))
        missed = wait_until(lambda: look(monitoring, run_id), 60, "a worker less in the figures",
                            until=lambda seen: workers(seen.figures) != WORKERS)  # fmt: skip
        stack.docker("start", victim)
        killed = [missed]
        while stack.run(run_id)["status"] not in ("SUCCESS", "FAILURE", "CANCELED"):
            killed.append(look(monitoring, run_id))
        stack.wait_for_run(run_id)
        after = wait_until(
            monitoring.figures, 60, "the end in the figures",
            until=lambda figures: figures.sum("dagster_runs", status="started") == 0 and workers(figures) == WORKERS,
        )  # fmt: skip
        yield Watched(run_id, before, busy, killed, after)
    finally:
        stack.compose("scale", "worker=2")


def workers(figures: Figures) -> float:
    return figures.sum("dagster_workers", queue=QUEUE)


def test_finished_steps_are_counted_as_the_event_log_has_them(watched: Watched) -> None:
    # Given what had ended before the run
    begin = watched.before.sum(**SUCCESSES)
    for seen in (*watched.busy, *watched.killed):
        # Then a count lies between what the log said before and after the question
        counted = seen.figures.sum(**SUCCESSES) - begin
        assert seen.ended[0] <= counted <= seen.ended[1]


def test_steps_under_way_are_those_that_were_sent_and_have_not_ended(watched: Watched) -> None:
    for seen in (*watched.busy, *watched.killed):
        under_way = seen.figures.sum("dagster_steps", queue=QUEUE)
        assert seen.sent[0] - seen.ended[1] <= under_way <= seen.sent[1] - seen.ended[0]
        # As many as there are workers run, or a few less between two steps; one that was killed may hold one more
        running = seen.figures.sum("dagster_steps", queue=QUEUE, state="running")
        assert running <= WORKERS + 1
    assert max(seen.figures.sum("dagster_steps", queue=QUEUE, state="running") for seen in watched.busy) > 0


def test_the_page_says_of_runs_and_queues_what_the_log_says(watched: Watched) -> None:
    for seen in (*watched.busy, *watched.killed):
        if seen.ended[1] == STEPS:
            continue
        assert seen.status["runs"]["by_job"][JOB] == 1
        assert seen.status["runs"]["by_status"]["started"] >= 1
        (queue,) = [queue for queue in seen.status["queues"] if queue["name"] == QUEUE]
        under_way = queue["waiting"] + queue["running"]
        assert seen.sent[0] - seen.ended[1] <= under_way <= seen.sent[1] - seen.ended[0]


def test_queues_are_as_the_broker_has_them(watched: Watched) -> None:
    for seen in (*watched.busy, *watched.killed):
        for state, (first, last) in {"ready": seen.ready, "in_flight": seen.in_flight}.items():
            told = seen.figures.sum("dagster_queue_messages", queue=QUEUE, state=state)
            assert min(first, last) - BETWEEN <= told <= max(first, last) + BETWEEN, state


def test_a_killed_worker_is_missed_and_its_successor_seen(watched: Watched) -> None:
    assert {workers(seen.figures) for seen in watched.busy} == {WORKERS}
    assert workers(watched.killed[0].figures) == WORKERS - 1
    assert workers(watched.after) == WORKERS


def test_all_workers_have_the_code_of_this_deployment(watched: Watched) -> None:
    assert watched.after.labels("dagster_workers", "code") == watched.after.labels("dagster_code", "code")


def test_busy_workers_are_seen_as_busy(watched: Watched) -> None:
    utilised = [seen.figures.sum("dagster_queue_utilisation", queue=QUEUE) for seen in watched.busy]
    assert 0 < max(utilised) <= 1


def test_at_the_end_every_step_is_counted_once(stack: Stack, watched: Watched) -> None:
    log = runs.count_events(stack, watched.run_id, "STEP_SUCCESS")
    for name, labels in {
        "dagster_steps_ended_total": {"queue": QUEUE, "outcome": "success"},
        "dagster_step_duration_seconds_count": {"queue": QUEUE},
        "dagster_step_wait_seconds_count": {"queue": QUEUE},
    }.items():
        counted = watched.after.sum(name, **labels) - watched.before.sum(name, **labels)
        assert counted == len(log) == STEPS, name
    for state in ("waiting", "running"):
        assert watched.after.sum("dagster_steps", state=state) == 0
    assert watched.after.sum("dagster_step_oldest_wait_seconds") == 0


def test_what_is_executed_again_is_counted_as_redelivered(stack: Stack, watched: Watched) -> None:
    begun = runs.count_events(stack, watched.run_id, "STEP_WORKER_STARTED")
    again = sum(begun.values()) - len(begun)
    name = "dagster_step_redeliveries_total"
    assert watched.after.sum(name) - watched.before.sum(name) == again


def test_the_run_is_in_its_jobs_histogram(stack: Stack, watched: Watched) -> None:
    name, labels = "dagster_run_duration_seconds", {"job": JOB}
    run = stack.run(watched.run_id)
    before, after = (each.sum(f"{name}_sum", **labels) for each in (watched.before, watched.after))
    assert after - before == pytest.approx(run["endTime"] - run["startTime"], abs=0.1)


def test_prometheus_has_what_the_metrics_say(monitoring: Monitoring, watched: Watched) -> None:
    expression = f'sum(dagster_steps_ended_total{{queue="{QUEUE}",outcome="success"}})'
    wait_until(
        lambda: monitoring.value(expression), 60, "the last scrape",
        until=lambda value: value == watched.after.sum(**SUCCESSES),
    )  # fmt: skip


def test_flower_shows_job_step_and_run(monitoring: Monitoring, watched: Watched) -> None:
    tasks = wait_until(
        lambda: monitoring.flower("/api/tasks", limit=100, state="SUCCESS"), 60, "tasks in Flower"
    )
    # A worker sends events from when Flower asks for them, every 5 s: of its first task after a start there is the end alone.
    whole = [task for task in tasks.values() if task["received"]]
    assert len(whole) > len(tasks) / 2
    for task in whole:
        assert re.fullmatch(r"\w+: .+", task["name"]), task
    assert any(watched.run_id in task["args"] for task in whole)


def test_flower_forgets_a_worker_that_is_gone(monitoring: Monitoring, watched: Watched) -> None:
    def shown() -> list[str]:
        # As its page has them: the API's list is as of Flower's start.
        workers = monitoring.flower("/workers", json=1)["data"]
        return [each["hostname"] for each in workers if each["hostname"].startswith("dagster@")]

    # Given all that there are
    wait_until(shown, 60, "all workers in Flower", until=lambda names: len(names) >= WORKERS)
    # When some are taken away
    monitoring.stack.compose("scale", f"worker={FEWER}")
    # Then the others are left
    wait_until(shown, 120, "only the workers that are left", until=lambda names: len(names) == FEWER)


# --- what it must not do -------------------------------------------------------------------------------


def test_no_figure_names_a_run_or_a_secret(monitoring: Monitoring, watched: Watched) -> None:
    settings = monitoring.stack.settings
    secrets = [value for name, value in settings.items() if name.endswith(("PASSWORD", "SECRET_KEY"))]
    login = monitoring.flower_login
    pages = {
        "metrics": monitoring.get("METRICS_PORT", "/metrics"),
        "page": monitoring.get("METRICS_PORT", "/"),
        "status": monitoring.get("METRICS_PORT", "/status.json"),
        "flower's metrics": monitoring.get("FLOWER_PORT", "/metrics"),
        "flower": monitoring.get("FLOWER_PORT", "/workers", auth=login),
        "flower's broker": monitoring.get("FLOWER_PORT", "/broker", auth=login),
        "flower's workers": monitoring.get(
            "FLOWER_PORT", "/api/workers", params={"refresh": "1"}, auth=login
        ),
        "prometheus": monitoring.get("PROMETHEUS_PORT", "/api/v1/status/config"),
        "prometheus' flags": monitoring.get("PROMETHEUS_PORT", "/api/v1/status/flags"),
        "prometheus' targets": monitoring.get("PROMETHEUS_PORT", "/api/v1/targets"),
    }
    for name, page in pages.items():
        assert page.status_code == 200, name
        assert not [secret for secret in secrets if secret in page.text], name
    for name in ("metrics", "flower's metrics"):
        assert watched.run_id not in pages[name].text
    # Nor does what needs no login grow with the steps
    assert f"{JOB}: " not in pages["flower's metrics"].text


def test_flower_asks_for_its_login_and_changes_nothing(monitoring: Monitoring) -> None:
    assert monitoring.get("FLOWER_PORT", "/tasks").status_code == 401
    assert monitoring.get("FLOWER_PORT", "/tasks", auth=(FLOWER_USER, "wrong")).status_code == 401
    worker = next(iter(monitoring.flower("/api/workers")))
    port, login = monitoring.stack.settings["FLOWER_PORT"], monitoring.flower_login
    for action in ("shutdown", "pool/restart"):
        address = f"http://127.0.0.1:{port}/api/worker/{action}/{worker}"
        assert requests.post(address, auth=login, timeout=20).status_code == 403


def test_the_profile_takes_little_memory(stack: Stack, monitoring: Monitoring, watched: Watched) -> None:
    used = {service: memory(stack, service) for service in SERVICES}
    assert sum(used.values()) < MOST_MEMORY, used


def memory(stack: Stack, service: str) -> float:
    """Megabytes that a service's processes have for themselves, and their parts of what they share (PSS)."""
    text = stack.exec(service, "sh", "-c", "cat /proc/[0-9]*/smaps_rollup 2>/dev/null || true").stdout
    return sum(int(size) for size in re.findall(r"^Pss: +(\d+) kB$", text, re.MULTILINE)) / 1024


def test_a_scrape_fails_while_postgres_is_away_and_is_well_again_afterwards(
    stack: Stack, monitoring: Monitoring
) -> None:
    stack.compose("pause", "postgres")
    try:
        assert monitoring.get("METRICS_PORT", "/metrics").status_code == 500
        assert monitoring.get("METRICS_PORT", "/health").status_code == 200
    finally:
        stack.compose("unpause", "postgres")
    wait_until(
        lambda: monitoring.get("METRICS_PORT", "/metrics").status_code, 60, "a scrape that is well",
        until=lambda status: status == 200,
    )  # fmt: skip


def test_a_run_does_not_wait_for_monitoring(stack: Stack, monitoring: Monitoring) -> None:
    # Given all of monitoring paused: connected, and answering nothing
    for service in SERVICES:
        stack.compose("pause", service)
    try:
        # When a run of 50 steps goes on; Then it ends as soon as ever
        run = stack.wait_for_run(stack.launch("parallel_pipeline"), timeout=60)
    finally:
        for service in SERVICES:
            stack.compose("unpause", service)
    assert run["status"] == "SUCCESS"
    again = stack.wait_for_run(stack.launch("parallel_pipeline"), timeout=60)
    paused, running = (each["endTime"] - each["startTime"] for each in (run, again))
    assert paused < 2 * running + 2
