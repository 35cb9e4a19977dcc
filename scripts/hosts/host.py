"""One further host: its file of settings beside `.env`, its engine, Compose there."""

import json
import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts import engine, env_file
from scripts.compose import Container, listing, parsed, project
from scripts.console import ROOT, Failure

#: The names of those that have joined, in `.env`; and those to go on without, in the environment.
SETTING, SKIP = "HOSTS", "SKIP"
#: What names a host's engine in its file; without a value nobody but its own people reaches it.
ENGINE = "HOST_ENGINE"
NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,28}[a-z0-9])?")
#: Files beside `.env` that are no host's.
RESERVED = {"example", "new", "s3"}
SERVICES_FILE = "compose.worker.yaml"
#: Seconds that an engine has to say that it is there.
ANSWER_SECS = 20
#: How many there are on the first host where `.env` does not say.
HERE = {"RUNNERS": 2, "DAEMONS": 1}
#: Of the shell, which would win over a host's file.
OF_OTHERS = {"DOCKER_HOST", "DOCKER_CONTEXT", "COMPOSE_FILE", "COMPOSE_PROFILES", "COMPOSE_ENV_FILES"}


@dataclass(frozen=True)
class Host:
    """By its name, which is in the names of its logins and of its file."""

    name: str
    #: Of one that has no file yet.
    address: str = ""

    @property
    def file(self) -> Path:
        path = env_file.env_path()
        return path.with_name(f"{path.name}.{self.name}")

    @property
    def settings(self) -> dict[str, str]:
        return env_file.read(self.file)

    @property
    def engine(self) -> str:
        """Its address or context, as `docker` takes it; empty for one that is looked after by hand."""
        return self.address or self.settings.get(ENGINE, "")

    # --- its engine --------------------------------------------------------------------------------------

    def docker(self, *arguments: str) -> list[str]:
        return [*client(self.engine), *arguments]

    def compose(self, *arguments: str) -> list[str]:
        files = (
            "--project-directory",
            str(ROOT),
            "--env-file",
            str(self.file),
            "--file",
            str(ROOT / SERVICES_FILE),
        )
        return self.docker("compose", *files, *arguments)

    @property
    def environment(self) -> dict[str, str]:
        """This process's own, without what would win over its file."""
        return {name: value for name, value in os.environ.items() if name not in {*self.settings, *OF_OTHERS}}

    def output(self, *command: str, given: str | None = None) -> str:
        """What a command prints; raises Failure with its own words."""
        result = subprocess.run(
            command, cwd=ROOT, env=self.environment, input=given, capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise Failure(f"{self.name}: `{' '.join(command[:8])} …` failed:\n{result.stderr.strip()}")
        return result.stdout

    def problem(self) -> str:
        """Why its engine does not answer; empty when it does."""
        return unreachable(self.engine)

    def containers(self) -> list[Container]:
        return parsed(self.output(*self.docker(*listing(project()))))

    def config_hashes(self) -> dict[str, str]:
        """What `up` would label each service's containers with now: without the files of variables, whose values are in it."""
        config = self.output(*self.compose("config", "--format", "json"))
        given = self.docker(
            "compose", "--project-directory", str(ROOT), "--file", "-", "config", "--hash", "*"
        )
        return dict(line.split() for line in self.output(*given, given=config).splitlines())

    def inspected(self, names: Iterable[str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.output(*self.docker("inspect", *names)))
        return found

    def image_id(self, image: str) -> str:
        """The id of an image there; empty when there is none."""
        command = self.docker("image", "inspect", "--format", "{{.Id}}", image)
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def client(address: str) -> list[str]:
    """The docker client for an engine: a url is an address, any other name a context."""
    option = "--host" if "://" in address else "--context"
    return [engine.docker(), option, address]


def unreachable(address: str, environment: Mapping[str, str] | None = None) -> str:
    """Why an engine does not answer, in the client's words; empty when it does. With an environment of its own nobody is asked
    on the terminal either."""
    command = [*client(address), "version", "--format", "{{.Server.Version}}"]
    try:
        result = subprocess.run(
            command,
            env=environment,
            start_new_session=environment is not None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ANSWER_SECS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {ANSWER_SECS} s"
    return "" if result.returncode == 0 else words(result.stderr) or "no answer"


def words(stderr: str) -> str:
    """Of what the client tells of its ssh, ssh's last line, which says what came of all it tried."""
    _, of_ssh, said = stderr.rpartition("stderr=")
    return (said.strip().splitlines() or [""])[-1].strip() if of_ssh else said.strip()


# --- all of them ---------------------------------------------------------------------------------------


def names() -> list[str]:
    return [name for part in env_file.settings().get(SETTING, "").split(",") if (name := part.strip())]


def joined() -> list[Host]:
    """All that have joined; raises Failure for one whose file is gone."""
    found = [Host(name) for name in names()]
    for host in found:
        if not host.file.exists():
            raise Failure(
                f"{SETTING} in {env_file.env_path().name} has {host.name}, whose {host.file.name} is not there: bring it back,"
                f" or `make host REMOVE={host.name}`."
            )
    return found


def by_engine() -> list[Host]:
    """Those whose engine can be asked from here, if it answers."""
    return [host for host in joined() if host.engine]


def shut_out() -> list[Host]:
    """Those that are no longer named, and whose logins may be open still: their files are there."""
    path = env_file.env_path()
    found = [
        Host(each.name.removeprefix(f"{path.name}.")) for each in sorted(path.parent.glob(f"{path.name}.*"))
    ]
    known = {*names(), *RESERVED}
    return [
        each
        for each in found
        if NAME.fullmatch(each.name) and each.name not in known and each.settings.get("HOST") == each.name
    ]


def by_hand() -> list[Host]:
    """Those that only their own people reach."""
    return [host for host in joined() if not host.engine]


def skipped() -> set[str]:
    """Those that the user goes on without; raises Failure for a name that no host has."""
    wanted = {name for name in os.environ.get(SKIP, "").replace(",", " ").split() if name}
    if unknown := sorted(wanted - set(names())):
        raise Failure(f"{SKIP}={','.join(unknown)}: no such host. There are {', '.join(names()) or 'none'}.")
    return wanted


def wanted() -> list[Host]:
    """Those that a command looks after: all but skipped ones, and those by hand."""
    left = skipped()
    return [host for host in by_engine() if host.name not in left]


def require_reachable() -> list[Host]:
    """Those that a command looks after; raises Failure that names each one that does not answer, with the cure."""
    found = wanted()
    problems = {host: problem for host in found if (problem := host.problem())}
    lines = "".join(f"\n    {host.name}: {problem}" for host, problem in problems.items())
    # Its code is not asked for, as a worker's is: it would launch what schedules and sensors of before ask for.
    for each in joined():
        if number(each, "DAEMONS", 0) and (each not in found or each in problems):
            raise Failure(daemon_out_of_reach(each) + lines)
    if problems:
        raise Failure(
            f"Not all hosts can be reached, and nothing was changed:{lines}\n"
            f"  {SKIP}={together(list(problems), ',')} goes on without. Workers there refuse other code until `make up` finds"
            " them again."
        )
    return found


def daemon_out_of_reach(host: Host) -> str:
    if not host.engine:
        return f"{host.name} is looked after by hand, so no command can stop its daemon: DAEMONS=0 in {host.file.name}, here and there."
    return (
        f"{host.name} has a daemon (DAEMONS in {host.file.name}) that can't be told anything: it may lead, with the code of before. Nothing"
        f" was changed. `make host REMOVE={host.name}` shuts it out, `make host ADD={host.engine} NAME={host.name}` brings it back."
    )


def named(name: str) -> Host:
    """The host of that name; raises Failure."""
    if name not in {*names(), *(each.name for each in shut_out())}:
        raise Failure(f"There is no host {name}; there are {', '.join(names()) or 'none'} (`make hosts`).")
    return Host(name)


def number(host: Host, setting: str, default: int) -> int:
    """A number of a host's file; raises Failure that names it."""
    text = host.settings.get(setting) or str(default)
    if not (text.isascii() and text.isdecimal()):
        raise Failure(f"{setting}={text} in {host.file.name} is not a whole number: change it there.")
    return int(text)


def in_all(setting: str) -> int:
    """How many there are on this host, as `.env` says, and on all further ones: of RUNNERS, DAEMONS."""
    return env_file.number(setting, HERE[setting]) + elsewhere(setting)


def elsewhere(setting: str) -> int:
    return sum(number(host, setting, 0) for host in joined())


def together(hosts: Sequence[Host], between: str = ", ") -> str:
    return between.join(host.name for host in hosts)
