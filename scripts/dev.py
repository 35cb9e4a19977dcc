"""`make dev`: the same project without Docker. SQLite, local files, a worker of its own, no service."""

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from dagster_stack.project import VARIABLE as PROJECT
from dagster_stack.project.data import DATA
from dagster_stack.project.discovery import Project
from dagster_stack.project.variables import OF_LOCATIONS, VARIABLE
from scripts import data_folder, env_file, project, project_packages, variables, venv
from scripts.code_location import DIRECTLY
from scripts.console import LOG_FOLDER, ROOT, Failure, Progress, done, main, say, warn
from scripts.dev_worker import DevWorker
from scripts.preflight import HIGHEST_PORT, bind_problem

#: Runs, event log and objects of the embedded mode; `rm -r .dagster` forgets them.
HOME = ROOT / ".dagster"
#: What was found in the project's folder, written at every start.
FOUND = HOME / "project.json"
#: The last one of Dagster's SQLite files that is made.
MADE = Path("schedules", "schedules.db")
#: Seconds until Dagit must answer; a cold start on 2 cores takes 15.
START_TIMEOUT_SECS = 120
#: Seconds between looks whether the worker lives.
REVIVE_SECS = 1
#: Seconds that Dagit gets to stop.
STOP_TIMEOUT_SECS = 20

INSTANCE = """\
# Written by `make dev` at every start. SQLite and local files; the stack's own is ../dagster.yaml.
telemetry: {enabled: false}
nux: {enabled: false}
# Jobs that name no executor, or no IO manager, get the stack's.
instance_class: {module: dagster_stack.project.defaults, class: StackInstance}
"""

#: Variables of the stack that would mix it with the embedded mode.
FOREIGN_VARIABLES = ("DAGSTER_STACK_S3_BUCKET", "CELERY_BROKER_URL", "AWS_ENDPOINT_URL_S3")


def dev() -> int:
    """`dagster dev` on this terminal, with a worker beside it; Ctrl-C ends both and leaves nothing running."""
    port = os.environ.get("DAGIT_PORT") or "3000"
    require_free_port(port)
    prepare()
    # Only absent manifests, as in the image's build: `dagster dev` renews those that it makes itself.
    run("dagster_stack.project.manifests", "absent", str(folder()))
    # Only variables that are not set: the other checks of `make up` would load the code once more.
    run("dagster_stack.project.check", "unset")
    name_other_data()
    make_databases()
    say(f"\n  Dagit: http://127.0.0.1:{port} once it says so below; Ctrl-C ends it. Data: {HOME}\n")
    with DevWorker(HOME, environment(), folder()) as worker:
        process = start(dagster_dev(port))
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: process.send_signal(signal.SIGINT))
        while True:
            try:
                return process.wait(REVIVE_SECS)
            except subprocess.TimeoutExpired:
                worker.revive()
            except KeyboardInterrupt:
                # The terminal sent it to Dagit too, which now ends.
                continue


def demo() -> int:
    """Run the flights in the embedded mode, to the same report; returns the command line's exit code."""
    prepare()
    make_databases()
    with DevWorker(HOME, environment(), folder()), dagit() as url:
        command = [str(python()), "-m", "dagster_stack", "demo"]
        code = subprocess.run(
            command, cwd=ROOT, env={**environment(), "DAGSTER_STACK_DAGIT_URL": url}, check=False
        ).returncode
    say("\n  This was the embedded mode. `make dev` shows the same run in Dagit.")
    return code


@contextmanager
def dagit() -> Iterator[str]:
    """Dagit of the embedded mode on a free port while the context lasts; yields its address."""
    LOG_FOLDER.mkdir(parents=True, exist_ok=True)
    log = LOG_FOLDER / "dagster-dev.log"
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as file:
        process = start(dagster_dev(str(port)), stdout=file, stderr=file, start_new_session=True)
    try:
        wait_until_answers(url, process, log)
        yield url
    finally:
        stop(process)


def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Dagster in the project's folder; SIGINT ends it, also where a shell has put this process in the background."""
    # Such a shell lets it ignore SIGINT, and so would Dagster, which heeds nothing else.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(command, cwd=folder(), env=environment(), **options)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End `dagster dev` with all that it started."""
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_SECS)
    with suppress(ProcessLookupError):
        # It has a session of its own: whatever is left of it goes too, and nothing else.
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECS
    with Progress("Starting Dagit on this machine"):
        while time.monotonic() < deadline and process.poll() is None:
            try:
                DIRECTLY.open(f"{url}/server_info", timeout=2).close()
                break
            except OSError:
                time.sleep(0.3)
        else:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            raise Failure(f"Dagit does not start. The end of {log}:\n\n{tail}")
    done(f"Dagit answers at {url}")


def prepare() -> None:
    """Install what is missing, and find the project; raises Failure."""
    venv.ensure()
    find_project()
    project_packages.ensure(project.folder())


def make_databases() -> None:
    """Dagster makes its SQLite files when it is opened; two processes that do so at once leave broken ones."""
    if not (HOME / MADE).exists():
        opens = "from dagster import DagsterInstance as I; I.get().all_asset_keys()"
        command = [*with_variables(), str(python()), "-P", "-c", opens]
        subprocess.run(command, cwd=folder(), env=environment(), check=True)


def name_other_data() -> None:
    """Say so when the stack keeps its data in another folder than the embedded mode, which uses the project's."""
    named, own = env_file.settings().get(data_folder.VARIABLE, ""), folder() / DATA
    if named and Path(named).resolve() != own.resolve():
        warn(f"{data_folder.VARIABLE}={named} is the stack's: here files under {DATA}/ are in {own}")


def find_project() -> None:
    """Write the workspace file of the project that PROJECT names; raises Failure, with the cure, for what is none.

    In the environment's Python, since this one may read no YAML.
    """
    HOME.mkdir(exist_ok=True)
    command = [str(venv.PYTHON), "-m", "dagster_stack.project", str(project.folder()), str(HOME)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Failure(result.stderr.strip())


@cache
def found() -> Project:
    """The project of the embedded mode."""
    return Project.from_dict(json.loads(FOUND.read_text(encoding="utf-8")))


def dagster_dev(port: str) -> list[str]:
    command = [str(python()), "-m", "dagster", "dev", "--workspace", str(HOME / "workspace.yaml")]
    return [*with_variables(), *command, "--host", "127.0.0.1", "--port", port]


def with_variables() -> list[str]:
    """The start of a command that has the project's own variables."""
    return [str(python()), "-P", "-m", "dagster_stack.project.variables"]


def run(module: str, *arguments: str) -> None:
    """Run a module of the platform that reports on the project, with the project's variables."""
    command = [*with_variables(), str(python()), "-m", module, *arguments]
    subprocess.run(command, cwd=ROOT, env=environment(), check=False)


def python() -> Path:
    """The Python that has the project's packages."""
    return project_packages.python(project.folder())


def folder() -> Path:
    """Where all of it runs: the project's root. Dagster reads the `.env` there, and this checkout's is the stack's."""
    root = Path(found().root)
    return project.folder() if root == ROOT else root


def path() -> list[str]:
    """What all processes import from: of several code locations each has its own folders alone."""
    project = found() if FOUND.exists() else None
    return project.path if project and len(project.locations) == 1 else []


def environment() -> dict[str, str]:
    """This process's environment, made the embedded mode's."""
    HOME.mkdir(exist_ok=True)
    (HOME / "dagster.yaml").write_text(INSTANCE)
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}
    return {
        **kept,
        "DAGSTER_HOME": str(HOME),
        "DAGSTER_STACK_EXECUTOR": kept.get("EXECUTOR")
        or env_file.read(env_file.env_path()).get("EXECUTOR", ""),
        # Dagster itself lets the project's .env win.
        VARIABLE: variables.found([*reversed(variables.sources())]),
        # Dagster's own loader may read these files where they lie.
        OF_LOCATIONS: json.dumps(
            {name: str(file.parent) for name, file in variables.sources_of_locations().items()}
        ),
        PROJECT: str(project.folder()),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys([str(ROOT), *path()])),
        # All is on this host: no request may go through a company's proxy.
        **{
            name: ",".join(filter(None, ["127.0.0.1,localhost", kept.get(name)]))
            for name in ("no_proxy", "NO_PROXY")
        },
        # The project's programs, such as dbt, before the platform's.
        "PATH": os.pathsep.join(
            dict.fromkeys([str(python().parent), str(venv.FOLDER / "bin"), kept.get("PATH", "")])
        ),
        "MPLCONFIGDIR": str(Path(tempfile.gettempdir()) / "matplotlib"),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def require_free_port(text: str) -> None:
    if not text.isdecimal() or not 0 < int(text) <= HIGHEST_PORT:
        raise Failure(f"DAGIT_PORT={text} is no port: make dev DAGIT_PORT=3010")
    problem = bind_problem("127.0.0.1", int(text))
    if problem:
        raise Failure(
            f"Port {text} is {problem} (the stack's own Dagit?). Another one: make dev DAGIT_PORT=3010"
        )


if __name__ == "__main__":
    main(dev)
