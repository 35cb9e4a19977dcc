"""The command line `dagster-stack`: thin commands, each of which imports what it needs when it is called."""

import logging
import os
import sys
from collections.abc import Mapping, Sequence

import click

from dagster_stack.errors import ExitCode, StackError, UsageError
from dagster_stack.loading import uncollected

#: The run config's content, for a container that can't see the host's files.
CONFIG_VARIABLE = "RUN_CONFIG"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Run jobs on this stack and look after it.

    Exit codes: 0 success, 1 the run failed, 2 wrong usage, config or job name, 3 Dagit, the broker or a
    store does not answer, 4 the run was canceled, 130 interrupted (a launched run goes on).
    """


@cli.command()
@click.argument("job")
@click.option("--config", metavar="FILE", help="Run config as YAML; - reads it from standard input.")
@click.option(
    "--env-config", is_flag=True, help=f"Run config is the content of the variable {CONFIG_VARIABLE}."
)
@click.option("--tags", metavar="K=V,...", multiple=True, help="Tags of the run; may be repeated.")
@click.option("--location", metavar="NAME", help="Code location, where several have a job of that name.")
def run(
    job: str, config: str | None, env_config: bool, tags: tuple[str, ...], location: str | None
) -> ExitCode:
    """Launch JOB through Dagit and show its progress until it ends."""
    request_config, request_tags = read_config(config, env_config), parse_tags(tags)

    from dagster_stack.client.dagit import Dagit
    from dagster_stack.client.display import choose_view
    from dagster_stack.client.watch import Request, Watch
    from dagster_stack.messaging.management import BrokerApi

    watch = Watch(Dagit.from_environment(), choose_view(sys.stdout, sys.stdin), BrokerApi.from_environment())
    return watch.run(Request(job, request_config, request_tags, location))


@cli.command()
def demo() -> ExitCode:
    """Run the flights job and print its totals and where its report is."""
    from dagster_stack.client import demo as demonstration
    from dagster_stack.client.dagit import Dagit
    from dagster_stack.client.display import choose_view
    from dagster_stack.messaging.management import BrokerApi

    view = choose_view(sys.stdout, sys.stdin)
    return demonstration.demo(Dagit.from_environment(), view, BrokerApi.from_environment())


@cli.command()
def reload() -> ExitCode:
    """Load definitions anew that code makes when it is imported: in Dagit, and in whoever takes part in later runs."""
    from dagster_stack.client.dagit import Dagit

    names = Dagit.from_environment().reload()
    click.echo(
        f"Loaded anew: {', '.join(names)}. Runs from now on have these definitions on all runners and workers."
    )
    return ExitCode.SUCCESS


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def workers(as_json: bool) -> ExitCode:
    """Show who is alive, on which queue, doing what."""
    from dagster_stack.client.workers import show_workers

    return show_workers(sys.stdout, as_json)


@cli.command()
def worker_feed() -> ExitCode:
    """Answer `make autoscale` on standard input and output."""
    from dagster_stack.client.worker_feed import serve

    return serve(sys.stdin, sys.stdout)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, once, instead of a screen.")
@click.option("--once", is_flag=True, help="Print it once, as without a terminal.")
def status(as_json: bool, once: bool) -> ExitCode:
    """Show runs, queues, workers, stores and alarms until Ctrl-C; exit code 3 when a store does not answer."""
    from dagster_stack.client.status import show_status
    from dagster_stack.monitoring.metrics import figures_of_stack

    return show_status(sys.stdout, figures_of_stack().collect, as_json=as_json, once=once)


@cli.command()
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, with all of each message, instead of a table."
)
def dead_letters(as_json: bool) -> ExitCode:
    """Show the messages that no worker could use, and why."""
    from dagster_stack.client.dead_letters import show_dead_letters

    return show_dead_letters(sys.stdout, as_json)


@cli.command()
@click.option("--user", metavar="NAME", help="What this user did.")
@click.option("--since", metavar="TIME", help="From then on: 10m, 2h, 3d ago, or 2026-11-29.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def audit(user: str | None, since: str | None, as_json: bool) -> ExitCode:
    """Show who did what in Dagit, the oldest first."""
    from dagster_stack.client.audit import show_audit

    return show_audit(sys.stdout, user, since, as_json=as_json)


@cli.command()
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@click.option("--yes", is_flag=True, help="Ask nothing.")
def retention(dry_run: bool, yes: bool) -> ExitCode:
    """Remove what is older than KEEP_DETAILS_DAYS and KEEP_RUNS_DAYS, now instead of within the hour."""
    from dagster_stack.client.retention import retain

    asks = None if yes or not (sys.stdin.isatty() and sys.stdout.isatty()) else click.confirm
    return retain(sys.stdout, dry_run=dry_run, asks=asks)


@cli.command()
@click.option("--runs", type=click.Choice(["resume", "cancel"]), help="What becomes of runs under way.")
@click.option("--schedules", type=click.Choice(["catch-up", "skip"]), help="What of times that have passed.")
def restored(runs: str | None, schedules: str | None) -> None:
    """After a restore: print what is under way and which schedules are on, or decide on it."""
    import json

    from dagster import DagsterInstance

    from dagster_stack.services import restored

    with DagsterInstance.get() as instance:
        if runs == "cancel":
            click.echo(f"canceled: {restored.cancel(instance)}")
        if schedules == "skip":
            click.echo(f"schedules that go on from now: {restored.skip(instance)}")
        if not (runs or schedules):
            click.echo(json.dumps(restored.found(instance)))


@cli.command()
@click.option(
    "--migrate", is_flag=True, help="Migrate the database's schema where it is older than the code's."
)
def init(migrate: bool) -> None:
    """Make schema, bucket, S3 user and data folder: the service `init`, safe to repeat."""
    with uncollected():
        from dagster_stack.logs.service import configure
        from dagster_stack.services.provision import provision, provision_files

    configure("init")
    provision_files()
    provision(migrates=migrate)


@cli.command()
@click.argument("key")
def close_key(key: str) -> None:
    """Let a former S3 KEY of the stack's own store only read, for a week: `make rotate` has replaced it."""
    with uncollected():
        from dagster_stack.logs.service import configure
        from dagster_stack.services.provision import close_former_key

    configure("init")
    close_former_key(key)


@cli.command("host-keys")
@click.option(
    "--make",
    "makes",
    is_flag=True,
    help="Make those that standard input has, a JSON object of key and secret.",
)
@click.option("--remove", metavar="KEY", help="Remove one, and with it the links that it has signed.")
def host_keys(makes: bool, remove: str | None) -> None:
    """List the keys of further hosts in the stack's own S3 store, make some or remove one: for `make host`."""
    import json

    with uncollected():
        from dagster_stack.logs.service import configure
        from dagster_stack.services import host_keys as keys
        from dagster_stack.services.provision import own_administration

    configure("init")
    admin = own_administration()
    if makes:
        keys.make(admin, json.load(sys.stdin))
    elif remove:
        keys.remove(admin, remove)
    else:
        click.echo("\n".join(keys.present(admin)))


@cli.command("check-s3")
def check_s3() -> ExitCode:
    """Try whether the S3 store does all that the stack needs; what it tries is gone afterwards."""
    from dagster_stack.client.store_check import check_store

    return check_store(sys.stdout)


@cli.command("prepare-s3")
def prepare_s3() -> None:
    """Make the bucket of the S3 store that `make move-s3` goes to, and mark it as this stack's."""
    with uncollected():
        from dagster_stack.logs.service import configure
        from dagster_stack.services.provision import prepare_store

    configure("init")
    prepare_store()


@cli.command("compare-s3")
def compare_s3() -> ExitCode:
    """Compare the S3 store with the one that `make move-s3` comes from, object by object."""
    from dagster_stack.client.store_comparison import compare_stores

    return compare_stores(sys.stdout)


@cli.command()
@click.option(
    "--workspace", metavar="FILE", multiple=True, required=True, help="Names code locations; may be repeated."
)
def daemon(workspace: tuple[str, ...]) -> None:
    """Run Dagster's daemon: the service `daemon`."""
    from dagster_stack.services import fork_server

    fork_server.begin()
    with uncollected():
        from dagster_stack.logs.service import configure
        from dagster_stack.services.daemon import run_daemon

    configure("daemon")
    run_daemon(workspace)


@cli.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def dagit(words: tuple[str, ...]) -> None:
    """Run Dagster's webserver, with the words of its own command line: the service `dagit`."""
    from dagster_stack.services import fork_server

    fork_server.begin()
    with uncollected():
        from dagster_stack.services import webserver

    webserver.run_webserver(words)


@cli.command()
def metrics() -> None:
    """Answer Prometheus: the service `metrics`."""
    from dagster_stack.logs.service import configure
    from dagster_stack.monitoring.exporter import Exporter
    from dagster_stack.monitoring.metrics import figures_of_stack
    from dagster_stack.monitoring.prometheus import Prometheus

    configure("metrics")
    Exporter(figures_of_stack(), prometheus=Prometheus.from_environment()).serve_forever()


def log_to_stderr() -> None:
    """For a program that prints an answer: beside it, what its libraries have to say. Services set up their own."""
    from dagster_stack.logs.service import configure

    configure("cli", logging.WARNING, sys.stderr)


def read_config(file: str | None, from_environment: bool, environment: Mapping[str, str] = os.environ) -> str:
    """The run config's YAML, checked to be a mapping; empty without one. Raises UsageError."""
    import yaml

    if file is not None and from_environment:
        raise UsageError("--config and --env-config name two run configs: give one of them.")
    if from_environment:
        source, text = CONFIG_VARIABLE, environment.get(CONFIG_VARIABLE, "")
    elif file is not None:
        source = "standard input" if file == "-" else file
        try:
            with click.open_file(file, encoding="utf-8") as stream:
                text = stream.read()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"The run config {source} can't be read: {error}") from error
    else:
        return ""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"The run config from {source} is not YAML: {error}") from error
    if content is None:
        return ""
    if not isinstance(content, dict):
        raise UsageError(
            f"The run config from {source} must be a mapping such as `ops: …`, it is a"
            f" {type(content).__name__}."
        )
    return text


def parse_tags(options: Sequence[str]) -> dict[str, str]:
    """`a=1,b=2` as a dict; a value may hold `=` but no comma. Raises UsageError."""
    tags: dict[str, str] = {}
    for piece in (piece.strip() for option in options for piece in option.split(",")):
        if not piece:
            continue
        key, sign, value = piece.partition("=")
        if not sign or not key.strip():
            raise UsageError(f"The tag {piece!r} is not of the form key=value.")
        tags[key.strip()] = value.strip()
    return tags


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code."""
    try:
        if arguments is None:
            log_to_stderr()
        code = cli.main(args=arguments, prog_name="dagster-stack", standalone_mode=False)
        return int(code or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except StackError as error:
        click.echo(f"Error: {error}", err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted.", err=True)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # Whoever read this has gone: Python must not complain again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
