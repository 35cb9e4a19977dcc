"""`make bench`: executors side by side on the running stack, and the pages in docs/ that show the figures."""

import json
import os
import re
import signal
import subprocess
from base64 import b64decode
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

from bench import pages
from bench.figures import Results
from bench.tables import TABLES, made
from bench.works import (
    BACKFILL,
    INTERVALS,
    LAUNCH,
    MEMORY,
    PARTS,
    SCRAPE,
    STEPS,
    TRANSFER,
    WORKS,
)
from scripts import compose, engine, env_file, turns
from scripts.bench_services import CODE, Services, code
from scripts.connections import require_connections
from scripts.console import BUILD_FOLDER, ROOT, Failure, done, main, say, warn
from scripts.engine import docker
from scripts.up import make_readable

#: How often each executor gets a work, unless ROUNDS says otherwise; slow ones get it less often.
ROUNDS = 5
#: All measurements, for readers who want more than the pages show.
RAW = BUILD_FOLDER / "bench.json"
DOCS = ROOT / "docs"
#: The pages there that show tables and pictures.
PAGES = ("performance.md", "where-a-step-goes.md")
#: Numbers of workers at which memory is measured: the difference is what a further one takes.
FEW, MANY = 2, 8
#: Enough for as many processes of runs as there are places with runners.
STOCK_MEMORY = "6g"
#: Seconds between two looks at the memory, until it changes by less than one in a hundred; and how long at most.
SETTLE_SECS, SETTLED_WITHIN_SECS = 3, 90


def bench() -> int:
    compose.require_env_file()
    chosen = wanted(os.environ.get("WORK", ""))
    rounds = count(os.environ.get("ROUNDS", ""))
    everything = chosen == [*WORKS, *PARTS]
    if everything:
        # Check first that each table has a place: the measurement takes half an hour.
        with_tables(dict.fromkeys(TABLES, ""))
    services = Services(require_up())
    make_readable(CODE)
    if os.getloadavg()[0] > 0.75 * (os.cpu_count() or 1):
        warn(f"this machine is busy (load {os.getloadavg()[0]:.1f}): it will show in the figures")
    results: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "measured": chosen,
        "samples": [],
        "notes": [],
        **ask("machine"),
    }
    results["machine"] |= {
        "processes of a worker": str(env_file.number("WORKER_CONCURRENCY", 1)),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }
    # `kill` ends it as Ctrl-C does: with as many workers as before, and without the runs.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as afterwards:
        # The last one first, and each whatever becomes of the others.
        afterwards.callback(services.restore)
        afterwards.callback(clean)
        afterwards.callback(save, results, monotonic())
        measure(chosen, rounds, results, services)
    show(Results(results))
    if everything:
        write_pages(results)
    else:
        done(f"docs/ is as it was: only all of it is put there. All figures: {RAW.relative_to(ROOT)}")
    return 1 if any(note["failed"] for note in results["notes"]) else 0


def measure(chosen: list[str], rounds: int, results: dict[str, Any], services: Services) -> None:
    """Everything that was chosen, into `results` as it comes."""
    if MEMORY in chosen:
        measure_memory(results, services)
    # It takes effect at the next scaling, so no service is made anew twice.
    services.needs_code = not {*WORKS, LAUNCH, BACKFILL}.isdisjoint(chosen)
    for workers in sorted({work.workers for work in WORKS.values()}, reverse=True):
        names = [name for name, work in WORKS.items() if name in chosen and work.workers == workers]
        if names:
            services.scale(workers)
            ask("warm-up")
        for name in names:
            try:
                merge(results, ask("runs", name, "--rounds", str(rounds)))
            except Failure as failure:
                # The other works go on: they were expensive.
                warn(str(failure))
                results["notes"].append({"work": name, "variant": "", "note": str(failure), "failed": True})
    services.scale(FEW)
    if TRANSFER in chosen:
        merge(results, ask("transfer", "--rounds", str(rounds)))
    if STEPS in chosen:
        merge(results, ask("steps"))
    if parts := [each for each in (LAUNCH, BACKFILL) if each in chosen]:
        measure_launches(parts, results, services)
    if SCRAPE in chosen:
        merge(results, ask("scrape"))


def measure_launches(parts: list[str], results: dict[str, Any], services: Services) -> None:
    with services.launching():
        merge(results, ask("launches", "stack", *parts))
    for variant in INTERVALS:
        # The interval of the run queue's looks does not bound a backfill of Dagster's own.
        merge(results, stock_launches(variant, parts if variant == "stock" else [LAUNCH]))


def stock_launches(variant: str, parts: list[str]) -> dict[str, Any]:
    """The same with Dagster's own launcher, in a container like the daemon's: its runs are processes there."""
    places = env_file.number("RUNNERS", 2) * env_file.number("RUNNER_CONCURRENCY", 4)
    memory = {"DAEMON_MEMORY": STOCK_MEMORY}
    return ask("launches", variant, *parts, "--at-once", str(places), service="daemon", environment=memory)


def merge(results: dict[str, Any], more: dict[str, Any]) -> None:
    """Lists grow, anything else is set."""
    for name, value in more.items():
        results[name] = results[name] + value if isinstance(results.get(name), list) else value


# --- what is wanted, and whether it can be -----------------------------------------------------------


def wanted(text: str) -> list[str]:
    """The works and parts that WORK names, all without it; raises Failure for an unknown one."""
    names = [name for name in re.split(r"[,\s]+", text) if name]
    known = [*WORKS, *PARTS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise Failure(f"WORK={text}: there is no {unknown[0]}. There are {', '.join(known)}")
    return [name for name in known if name in names or not names]


def count(text: str) -> int:
    if text and not (text.isascii() and text.isdecimal() and 0 < int(text) <= 100):
        raise Failure(f"How many rounds? make bench ROUNDS=5 (1 to 100; found {text})")
    return int(text or ROUNDS)


def require_up() -> Counter[str]:
    """How many containers each service has; raises Failure unless the whole stack is up and well, on this machine."""
    found = compose.containers()
    unwell = [f"{container.service} ({container.condition})" for container in found if not container.is_well]
    if unwell or not found:
        raise Failure(f"The stack is not up{': ' * bool(unwell)}{', '.join(unwell)}. `make up` first.")
    if engine.is_elsewhere():
        raise Failure("The engine is on another machine, which does not see bench/: call `make bench` there.")
    require_connections(MANY)
    return Counter(container.service for container in found)


# --- the half beside the stack -----------------------------------------------------------------------


def ask(
    *arguments: str,
    given: str | None = None,
    service: str = "cli",
    environment: dict[str, str] | None = None,
) -> dict[str, Any]:
    """What `python -m bench` answers, beside a service; its progress goes to this terminal."""
    name = f"{compose.project()}-bench-{uuid4().hex[:12]}"
    start = ["--progress", "quiet", "run", "--rm", "--no-deps", "--no-TTY", "--name", name]
    # A session of its own: at Ctrl-C Compose would leave before the container has ended its run.
    process = subprocess.Popen(
        [*compose.compose(), *start, service, "python", "-m", "bench", *arguments],
        cwd=ROOT, env={**os.environ, **code(), **(environment or {})}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        answer, _ = process.communicate(given)
    except KeyboardInterrupt:
        subprocess.run([docker(), "kill", "--signal", "INT", name], capture_output=True, check=False)
        process.wait()
        raise
    if process.returncode:
        raise Failure(f"`{' '.join(arguments)}` ended with {process.returncode}; the reason stands above")
    result: dict[str, Any] = json.loads(answer)
    return result


def clean() -> None:
    say(f"  · {ask('clean')['removed']} runs of this benchmark removed")


# --- memory ------------------------------------------------------------------------------------------


def measure_memory(results: dict[str, Any], services: Services) -> None:
    services.scale(FEW)
    few = settled_memory()
    services.scale(MANY)
    many = settled_memory()
    results["memory"] = {
        "services": few,
        "idle_stack": sum(few.values()),
        "further_worker": (sum(many.values()) - sum(few.values())) / (MANY - FEW),
    }


def settled_memory() -> dict[str, int]:
    """The PSS of each service's containers in bytes, once it does not change any more."""
    until = monotonic() + SETTLED_WITHIN_SECS
    before = service_memory()
    while True:
        sleep(SETTLE_SECS)
        now = service_memory()
        change = abs(sum(now.values()) - sum(before.values()))
        if change < sum(now.values()) / 100 or monotonic() > until:
            return now
        before = now


def service_memory() -> dict[str, int]:
    sizes: dict[str, int] = {}
    for container in compose.containers():
        if container.state == "running":
            sizes[container.service] = sizes.get(container.service, 0) + memory(container.name)
    return sizes


def memory(container: str) -> int:
    """The PSS of all processes of a container, in bytes."""
    # A process may end while it is looked at.
    command = [docker(), "exec", container, "sh", "-c", "cat /proc/[0-9]*/smaps_rollup 2>/dev/null; true"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Failure(f"The memory of {container} can't be read: {result.stderr.strip()}")
    return sum(int(size) for size in re.findall(r"^Pss: +(\d+) kB$", result.stdout, re.MULTILINE)) * 1024


# --- what comes of it --------------------------------------------------------------------------------


def save(results: dict[str, Any], started: float) -> None:
    """Keep what there is, complete or not."""
    results["machine"]["measured in"] = f"{(monotonic() - started) / 60:.0f} minutes"
    RAW.parent.mkdir(parents=True, exist_ok=True)
    RAW.write_text(json.dumps(results), encoding="utf-8")


def show(results: Results) -> None:
    """The tables, on this terminal."""
    for name, text in made(results).items():
        if text and name != "machine":
            say(f"\n{TABLES[name].title}\n\n{text}")
    say("")
    for note in results.content["notes"]:
        warn(f"{note['work']} {note['variant']}: {note['note']}")


def write_pages(results: dict[str, Any]) -> None:
    """Put the tables into the pages, and the pictures beside them; raises Failure for a page without a table's place."""
    for name, text in with_tables(made(Results(results))).items():
        (DOCS / name).write_text(text, encoding="utf-8")
        done(f"docs/{name}: tables written")
    (DOCS / "pictures").mkdir(exist_ok=True)
    for name, data in ask("pictures", given=json.dumps(results)).items():
        (DOCS / "pictures" / name).write_bytes(b64decode(data))
        done(f"docs/pictures/{name} written")


def with_tables(tables: dict[str, str]) -> dict[str, str]:
    """The pages by their names, with these tables in their places."""
    return pages.filled({name: (DOCS / name).read_text(encoding="utf-8") for name in PAGES}, tables)


if __name__ == "__main__":
    main(turns.alone(bench))
