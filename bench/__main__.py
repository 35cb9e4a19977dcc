"""`python -m bench`: the half of `make bench` that runs beside the stack. Prints JSON."""

import argparse
import json
import sys
from base64 import b64encode
from importlib.machinery import PathFinder
from typing import Any

from bench.works import BACKFILL, INTERVALS, LAUNCH, LAUNCH_ROUNDS, LAUNCHERS, WORKS
from dagster_stack.project import found

#: The name by which this package is imported, as what is in the user's project is.
NAME = "bench"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("warm-up", help="let all workers load what they have not yet")
    runs = commands.add_parser("runs", help="a work by all executors, in turn")
    runs.add_argument("work", choices=WORKS)
    transfer = commands.add_parser("transfer", help="200 MB through S3")
    for command in (runs, transfer):
        command.add_argument("--rounds", type=int, default=5)
    commands.add_parser("steps", help="where a worker's time for a step goes, and what the storages take")
    launches = commands.add_parser("launches", help="launches through Dagit, by one launcher")
    launches.add_argument("variant", choices=LAUNCHERS)
    launches.add_argument("parts", nargs="+", choices=(LAUNCH, BACKFILL))
    launches.add_argument("--at-once", type=int, default=8, help="runs at once, for Dagster's own run queue")
    commands.add_parser("scrape", help="what monitoring asks of a database with a million events")
    commands.add_parser("machine", help="what this is measured with")
    commands.add_parser("clean", help="remove the runs of this benchmark")
    commands.add_parser("pictures", help="those of the pages, from the results on standard input")
    arguments = parser.parse_args()
    require_own_name()
    print(json.dumps(COMMANDS[arguments.command](arguments)))


def require_own_name() -> None:
    """End with the cure where the project has a module of this name too: whoever imports it would get the other one."""
    if spec := PathFinder.find_spec(NAME, found().path):
        places = spec.origin or ", ".join(spec.submodule_search_locations or ())
        sys.exit(
            f"Your project has a module `{NAME}` ({places}), and so has this benchmark: rename it, or measure with another"
            " project (PROJECT in .env)."
        )


def warm_up(_: argparse.Namespace) -> dict[str, Any]:
    from bench import rounds

    rounds.warm_up()
    return {}


def runs(arguments: argparse.Namespace) -> dict[str, Any]:
    from bench import rounds

    return rounds.measure(arguments.work, arguments.rounds)


def transfer(arguments: argparse.Namespace) -> dict[str, Any]:
    from bench import transfer

    return {"transfers": transfer.measure(arguments.rounds)}


def steps(_: argparse.Namespace) -> dict[str, Any]:
    from bench import limits, profiling
    from bench.forked import forked

    profiles = {variant: forked(profiling.profile, variant) for variant in profiling.WORKERS}
    return {"steps": profiles, "limits": forked(limits.measure, profiles["stack"]["run_id"])}


def launches(arguments: argparse.Namespace) -> dict[str, Any]:
    from dagster import DagsterInstance

    from bench.launches import Launches
    from bench.stock_service import stock_service
    from dagster_stack.client.dagit import Dagit

    def measure(dagit: Dagit, instance: DagsterInstance) -> dict[str, Any]:
        measuring = Launches(arguments.variant, dagit, instance)
        measuring.warm_up()
        return {
            "launches": measuring.launch(LAUNCH_ROUNDS if LAUNCH in arguments.parts else 0),
            "backfills": measuring.backfill(BACKFILL in arguments.parts),
        }

    if arguments.variant not in INTERVALS:
        with DagsterInstance.get() as instance:
            return measure(Dagit.from_environment(), instance)
    with stock_service(INTERVALS[arguments.variant], arguments.at_once) as (dagit, instance):
        return measure(dagit, instance)


def scrape(_: argparse.Namespace) -> dict[str, Any]:
    from bench import scrape

    return {"scrape": scrape.measure()}


def machine(_: argparse.Namespace) -> dict[str, Any]:
    from bench import machine

    return {"machine": machine.machine()}


def clean(_: argparse.Namespace) -> dict[str, Any]:
    from bench import leftovers

    return {"removed": leftovers.remove()}


def pictures(_: argparse.Namespace) -> dict[str, Any]:
    from bench import charts
    from bench.figures import Results

    return {
        name: b64encode(data).decode() for name, data in charts.draw(Results(json.load(sys.stdin))).items()
    }


COMMANDS = {
    "warm-up": warm_up,
    "runs": runs,
    "transfer": transfer,
    "steps": steps,
    "launches": launches,
    "scrape": scrape,
    "machine": machine,
    "clean": clean,
    "pictures": pictures,
}

if __name__ == "__main__":
    main()
