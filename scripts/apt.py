"""Debian's package manager: its sources, a pinned suite, installs with a progress line."""

import os
import re
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from scripts.console import Failure, run_logged

APT_FOLDER = Path("/etc/apt")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
NONINTERACTIVE = {"DEBIAN_FRONTEND": "noninteractive"}


@dataclass(frozen=True)
class Distribution:
    """What /etc/os-release says; `major` is 0 where there is no version (Debian sid)."""

    id: str
    name: str
    major: int
    codename: str


@dataclass(frozen=True)
class Source:
    """One archive of the machine's apt sources."""

    uri: str
    suite: str


def distribution(file: Path = Path("/etc/os-release")) -> Distribution:
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', file.read_text(), re.MULTILINE)) if file.exists() else {}
    return Distribution(
        id=fields.get("ID", "unknown"),
        name=fields.get("PRETTY_NAME", "an unknown system"),
        major=int(re.match(r"\d*", fields.get("VERSION_ID", "")).group() or 0),  # type: ignore[union-attr]
        codename=fields.get("VERSION_CODENAME", ""),
    )


def sources(folder: Path = APT_FOLDER) -> list[Source]:
    """The archives of `sources.list`, `*.list` and `*.sources`, in that order."""
    found: list[Source] = []
    for file in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*.list"))]:
        if file.exists():
            lines = re.findall(r"^deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)", file.read_text(), re.MULTILINE)
            found += [Source(uri.rstrip("/"), suite) for uri, suite in lines]
    for file in sorted((folder / "sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", file.read_text()):
            fields = dict(re.findall(r"^(\w[\w-]*):\s*(.*)$", stanza, re.MULTILINE))
            if "deb" in fields.get("Types", "").split() and fields.get("Enabled", "yes") != "no":
                found += [
                    Source(uri.rstrip("/"), suite)
                    for uri in fields.get("URIs", "").split()
                    for suite in fields.get("Suites", "").split()
                ]
    return found


def mirror(suite_suffix: str = "") -> str | None:
    """The machine's own mirror of its release (`-security` for the security archive); None when unknown."""
    codename = distribution().codename
    for source in sources():
        if source.suite == f"{codename}{suite_suffix}":
            return source.uri
    return None


def pin_suite(suite: str) -> None:
    """Make a later suite available from the machine's own mirror, and take nothing from it unasked."""
    uri = mirror()
    if uri is None:
        raise Failure(
            f"apt's sources name no mirror of {distribution().name}, so there is none to take {suite} from."
            " Install Docker Engine 25 or later with its Compose plugin yourself."
        )
    write(
        APT_FOLDER / f"sources.list.d/dagster-stack-{suite}.sources",
        f"Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\nSigned-By: {KEYRING}\n",
    )
    write(
        APT_FOLDER / f"preferences.d/dagster-stack-{suite}",
        f"# Only packages that are asked for by name come from {suite}: nothing else is upgraded.\n"
        f"Package: *\nPin: release n={suite}\nPin-Priority: 50\n",
    )
    update.cache_clear()
    update()


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@cache
def update() -> None:
    # One unreachable third-party archive must not stop us: apt-get ends with 0 and uses what it has.
    run_logged("Reading package lists", ["apt-get", "update"], environment=NONINTERACTIVE)


def install(title: str, packages: list[str]) -> None:
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    run_logged(title, command, environment=NONINTERACTIVE)


def ensure(title: str, program: str, packages: list[str]) -> None:
    """Install packages when a program is missing; raises Failure where only a person can."""
    if shutil.which(program):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Failure(f"{program} is missing. Install it ({' '.join(packages)} on Debian and Ubuntu).")
    update()
    install(title, packages)
