"""The command line of the container: `serve`, and what make targets ask for."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from backup import bucket, database, mirror, papers, points, repository, service, state
from backup.errors import Failure
from backup.settings import Settings
from dagster_stack import authorities


def main() -> int:
    parser = argparse.ArgumentParser(prog="backup", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="the service: back up again and again")
    now = commands.add_parser("now", help="a base backup with a point, and the copy off this host, at once")
    now.add_argument("--full", action="store_true")
    keep = commands.add_parser("keep", help="keep what comes on standard input, encrypted")
    keep.add_argument("name", choices=[papers.SETTINGS, papers.VERSIONS, papers.USERS])
    commands.add_parser("list", help="what there is, as JSON")
    commands.add_parser("verify", help="read all that is in the repository")
    commands.add_parser("settings", help="print .env as it was kept")
    commands.add_parser("users", help="print who may log in, as it was kept")
    commands.add_parser(
        "compare",
        help="whether the bucket has what its copy has, byte by byte; and how much that is, as JSON",
    )
    commands.add_parser("fetch", help="bring the repository here from its copy")
    for name in ("plan", "database", "bucket"):
        command = commands.add_parser(name, help="of a restore")
        command.add_argument("--to", type=float, help="seconds since 1970")
    restored = commands.add_parser("restored", help="write down that there was a restore")
    restored.add_argument("--to", type=float)
    drilled = commands.add_parser("drilled", help="write down that a restore drill went well")
    drilled.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    try:
        authorities.write()
        do(arguments, Settings.read())
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


def do(arguments: argparse.Namespace, settings: Settings) -> None:
    if arguments.command in ("serve", "now", "keep", "verify", "drilled"):
        write(arguments, settings)
    else:
        read_or_restore(arguments, settings)


def write(arguments: argparse.Namespace, settings: Settings) -> None:
    """What changes the repository."""
    if arguments.command == "serve":
        service.serve(settings)
        return
    repository.require(settings)
    match arguments.command:
        case "now":
            back_up_now(settings, "full" if arguments.full else "incr")
        case "keep":
            is_first = papers.keep(settings, arguments.name, sys.stdin.read())
            print("first" if is_first else "kept")
        case "verify":
            service.verify(settings, now=True)
        case "drilled":
            state.note(drill=time.time(), drill_seconds=arguments.seconds)


def read_or_restore(arguments: argparse.Namespace, settings: Settings) -> None:
    """What goes back to it."""
    match arguments.command:
        case "list":
            print(json.dumps(listed(settings)))
        case "settings":
            print(papers.read(settings, papers.SETTINGS, "far" if settings.target else "kept"), end="")
        case "users":
            if papers.is_kept(papers.USERS):
                print(papers.read(settings, papers.USERS), end="")
        case "fetch":
            mirror.fetch(settings)
        case "plan":
            print(json.dumps(plan(settings, arguments.to)))
        case "database":
            restore_database(settings, arguments.to)
        case "bucket":
            bucket.restore(settings, points.choose(points.read()[0], arguments.to).stamp)
        case "compare":
            print(bucket.compare(settings))
        case "restored":
            points.add(points.Restore(time.time(), arguments.to))


def back_up_now(settings: Settings, kind: str) -> None:
    steps: list[tuple[str, Callable[[], object]]] = [("base backup", lambda: service.base(settings, kind))]
    if settings.target:
        steps.append(("copy off this host", lambda: service.copy_off_host(settings)))
    for name, step in steps:
        began = time.monotonic()
        step()
        service.note_error(name, None)
        print(f"{name} {time.monotonic() - began:.1f}", flush=True)


def listed(settings: Settings) -> dict[str, Any]:
    found, restores = points.read()
    objects, stored = bucket.size()
    return {
        "now": time.time(),
        "bases": [] if settings.is_outside_postgres else [asdict(base) for base in database.bases()],
        "points": [asdict(point) for point in found[:1] + found[-1:]],
        "restores": [asdict(restore) for restore in restores],
        "bucket": {"objects": objects, "bytes": stored},
        "state": state.read(),
        "errors": state.read(service.ERRORS),
        "target": settings.target,
    }


def plan(settings: Settings, to: float | None) -> dict[str, Any]:
    """What a restore would bring back; raises Failure where it can't."""
    point = points.choose(points.read()[0], to)
    objects, stored = bucket.size()
    found: dict[str, Any] = {"point": asdict(point), "bucket": {"objects": objects, "bytes": stored}}
    if not point.dump:
        found["base"] = asdict(chosen(point, to))
        found["to"] = point.at if to is None else to
    else:
        found["to"] = point.at
    return found


def chosen(point: points.Point, to: float | None) -> database.Base:
    return database.chosen_base(database.bases(), points.read()[1], point.at if to is None else to, point.at)


def restore_database(settings: Settings, to: float | None) -> None:
    point = points.choose(points.read()[0], to)
    if point.dump:
        database.load(settings, point.dump)
    else:
        database.restore(chosen(point, to), point, to)


if __name__ == "__main__":
    sys.exit(main())
