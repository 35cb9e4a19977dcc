"""`make deploy`: the code as it is now, on a stack that runs; no run fails and no step is lost.

The new image is built and tried while everything runs. Then the daemon stops, so that no queued run starts, and runs
under way end first (`DEPLOY=wait`) or go on with the new code (`DEPLOY=hand-over`). Until the swap begins, whatever
goes wrong leaves the old stack as it was. With DAEMONS=2 schedules and sensors go on all the time.
"""

import json
import signal
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from scripts import (
    backups,
    certificates,
    code_check,
    code_versions,
    compose,
    daemons,
    env_file,
    images,
    schema,
    standstill,
    store_volumes,
    turns,
    unfinished,
    up,
)
from scripts.console import Failure, Progress, done, main, say, warn
from scripts.hosts import services as hosts
from scripts.hosts.host import wanted as wanted_hosts

#: What to do with runs under way; and the minutes after which those that are waited for are handed over.
HOW = ("wait", "hand-over")
WAIT_MINUTES = 30
#: Seconds between two looks at the runs that are waited for.
LOOK_SECS = 2
#: Seconds that runs get to start. One whose message was lost never starts, as the daemon that would send it again is
#: stopped. None of them has executed anything, so they start with the new code.
START_SECS = 60
#: Runs that are named while they are waited for.
NAMED_RUNS = 3
UNTOUCHED = "Nothing was deployed: the stack goes on as it was."
#: What that means for runs under way.
WAYS = {
    "wait": "Runs under way end first, at most {minutes} min; then all services are swapped.",
    "hand-over": "All services are swapped at once; runs under way go on with the new ones.",
}
#: A query comes on standard input.
ASK_DAGIT = ("curl", "-fsS", "-m", "30", "--data-binary", "@-", "--header", "Content-Type: application/json",
             "http://127.0.0.1:3000/graphql")  # fmt: skip
#: Not with --no-deps: Compose then labels containers with another hash, and makes them once more at its next `up`.
PREPARE = ("--progress", "plain", "up", "--detach", "init")
#: Makes what is new and ends what was before, all side by side.
SWAP = ("--progress", "plain", "create", "--remove-orphans")
#: What to do when Dagit does not answer: for `make deploy` and `make rotate`.
UNASKED = "the same command with `DEPLOY=hand-over` does not ask."
SILENT = f"\n\n  Dagit must say which runs are under way. `docker compose logs dagit` may say why it does not; {UNASKED}"
#: Runs that a process may be driving. Those of the run queue, QUEUED, are not among them.
UNDER_WAY = """
{ runsOrError(filter: {statuses: [STARTING, STARTED, CANCELING]}) {
  __typename
  ... on Error { message }
  ... on Runs { results { runId jobName status } }
} }
"""


def deploy() -> None:
    compose.require_env_file()
    unfinished.require_none()
    how, minutes = wanted()
    # `kill` ends it as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    up.prepare()
    code_versions.keep_running()
    with images.kept_on_failure(UNTOUCHED):
        say("Building images")
        images.ensure()
        certificates.issue()
        hosts.bring()
        if up.is_up():
            code_versions.forget_rollback()
            up.close_former_logins()
            done("all services run with this code and these settings: nothing to deploy")
            return
        old, new = running_code(), code_check.check()
        code_versions.warn_of_rollback()
        store_volumes.require_openable()
        migration = schema.required(up.start_postgres)
        say(f"Deploying {change(old, new)}")
        # What is migrated must not be written to.
        with queue_stopped() if migration else queue_held():
            settle_runs(how, minutes)
            if migration:
                migration.run(new)
            code_versions.keep(images.dagster_id(), new)
            code_versions.forget_rollback()
    swap()
    up.close_former_logins()
    backups.keep()
    done(f"{change(old, new)}: deployed")


def wanted() -> tuple[str, int]:
    """How to treat runs under way, and for how many minutes to wait; raises Failure that names the setting."""
    how = env_file.settings().get("DEPLOY") or HOW[0]
    if how not in HOW:
        raise Failure(f"DEPLOY={how}: there are {' and '.join(HOW)} (see {env_file.EXAMPLE.name}).")
    return how, env_file.number("DEPLOY_WAIT_MINUTES", WAIT_MINUTES)


# --- the code's hash ---------------------------------------------------------------------------------


def running_code() -> str:
    """The hash of the code that the stack runs with; empty when Dagit is down."""
    dagit = [image for image, services in code_versions.running().items() if "dagit" in services]
    return code_versions.code_of(dagit[0]) if dagit else ""


def change(old: str, new: str) -> str:
    return f"code {new}" + (
        " (unchanged) with new settings" if old == new else f" in place of {old or 'none'}"
    )


# --- runs under way ------------------------------------------------------------------------------------


def queue_stopped() -> AbstractContextManager[None]:
    """No queued run starts in here, and schedules and sensors pause; after a failure they go on as before."""
    return standstill.standing_still("daemon".__eq__, "Stopping the run queue, schedules and sensors")


def queue_held() -> AbstractContextManager[None]:
    """The same; with several daemons schedules and sensors go on."""
    return daemons.queue_resting() if daemons.are_several() else queue_stopped()


def settle_runs(how: str, minutes: int) -> None:
    """Wait for runs under way, where that is wanted and any process drives runs."""
    running = {each.service for each in compose.containers() if each.state == "running"}
    if how == "wait" and running & {"dagit", "runner"}:
        wait_for_runs(minutes)


def wait_for_runs(minutes: int) -> None:
    """Wait until all runs under way have ended; after so many minutes those that go on are handed over.

    Runs that do not start are waited for START_SECS.
    """
    began = time.monotonic()
    with Progress(f"Waiting for runs under way, at most {minutes} min") as progress:
        while found := runs_under_way():
            waited_secs = time.monotonic() - began
            only_starting = all(run["status"] == "STARTING" for run in found)
            if waited_secs > 60 * minutes or (only_starting and waited_secs > START_SECS):
                break
            progress.at(described(found))
            time.sleep(LOOK_SECS)
        waited = progress.elapsed
    if not found:
        done(f"no run is under way ({waited})")
    elif only_starting:
        warn(f"{described(found)} not started yet: they start with the new code")
    else:
        warn(f"after {minutes} min {described(found)} still going on: handed over to the new code")


def runs_under_way() -> list[dict[str, Any]]:
    """What Dagit knows of them. Asked inside its container, or in the door's, which knows the secret: its port may be bound
    on another machine."""
    running = {each.service for each in compose.containers() if each.state == "running"}
    if "dagit" not in running:
        raise Failure(
            f"Dagit is not running, so it can't be said whether runs are under way. `make up` starts it; {UNASKED}"
        )
    asking = ("door", "ask-dagit") if "door" in running else ("dagit", *ASK_DAGIT)
    try:
        answer = compose.output("exec", "--no-TTY", *asking, given=json.dumps({"query": UNDER_WAY}))
    except Failure as failure:
        raise Failure(f"{failure}{SILENT}") from None
    found = json.loads(answer)["data"]["runsOrError"]
    if found["__typename"] != "Runs":
        raise Failure(f"Dagit can't list the runs: {found.get('message')}{SILENT}")
    results: list[dict[str, Any]] = found["results"]
    return results


def described(runs: list[dict[str, Any]]) -> str:
    names = [f"{run['jobName']} {run['runId'][:8]}" for run in runs[:NAMED_RUNS]]
    more = f" and {len(runs) - NAMED_RUNS} more" if len(runs) > NAMED_RUNS else ""
    return f"{len(runs)} run{'s' * (len(runs) > 1)} ({', '.join(names)}{more})"


# --- the swap ------------------------------------------------------------------------------------------


def swap() -> None:
    """All services with the new image and settings.

    `init` first: it gives runs under way the new code, while the old services go on. Then, where there are several daemons on
    whatever hosts, a new one on this host, which takes over from all of them. Then all others at once, each container once,
    those of further hosts beside them: old runners hand their runs over, old workers end their steps within their grace
    period or give them back.
    """
    up.remove_unwanted()
    up.remove_abandoned()
    several = daemons.are_several()
    try:
        with daemons.queue_resting() if several else nullcontext():
            up.run("Preparing stores and runs for the new code", PREPARE)
            up.wait_until_healthy("init")
            if several:
                daemons.hand_over()
            else:
                standstill.begin("daemon".__eq__, wanted_hosts())
            with hosts.swapping():
                up.run("Swapping the services", SWAP)
                up.start_made()
                up.wait_until_healthy()
        if several:
            daemons.tell(daemons.GO_ON)
    except KeyboardInterrupt:
        raise Failure(
            "Interrupted while services were swapped: `make deploy` or `make up` completes it."
        ) from None
    up.check_code_location()


if __name__ == "__main__":
    main(turns.alone(deploy))
