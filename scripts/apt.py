"""Debian's package manager: its sources, a pinned suite, installs with a progress line."""

import os
import re
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from scripts.console import LOG_FOLDER, Failure, run_logged, warn

APT_FOLDER = Path("/etc/apt")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
#: How a deb822 field says no.
NO = ("no", "false", "without", "off", "disable")
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
    text = file.read_text() if file.exists() else ""
    fields = dict(re.findall(r"""^(\w+)=["']?(.*?)["']?$""", text, re.MULTILINE))
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
            lines = re.findall(r"^\s*deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)", file.read_text(), re.MULTILINE)
            found += [Source(archive(uri), suite) for uri, suite in lines]
    for file in sorted((folder / "sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", file.read_text()):
            fields = stanza_fields(stanza)
            if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() not in NO:
                found += [
                    Source(archive(uri), suite)
                    for uri in fields.get("uris", "").split()
                    for suite in fields.get("suites", "").split()
                ]
    return found


def stanza_fields(stanza: str) -> dict[str, str]:
    """The fields of a deb822 stanza: names in lower case, continued lines joined, comments left out."""
    text = re.sub(r"^#.*\n?", "", stanza, flags=re.MULTILINE)
    fields = re.findall(r"^([\w-]+):(.*(?:\n[ \t].*)*)", text, re.MULTILINE)
    return {name.lower(): value.strip() for name, value in fields}


def archive(uri: str) -> str:
    """An archive's address; Debian's cloud images name a file of mirrors, of which the first is taken."""
    if uri.startswith("mirror+file:"):
        file = Path("/" + uri.partition(":")[2].lstrip("/"))
        mirrors = file.read_text().split() if file.exists() else []
        uri = mirrors[0] if mirrors else uri
    return uri.rstrip("/")


def mirror(suite_suffix: str = "") -> str | None:
    """The machine's own mirror of its release (`-security` for the security archive); None when unknown."""
    codename = distribution().codename
    for source in sources():
        if source.suite == f"{codename}{suite_suffix}":
            return source.uri
    return None


def pin_suite(suite: str) -> None:
    """Make a later suite available from the machine's own mirror; only packages asked for by name come from it."""
    if any(source.suite == suite for source in sources()):
        return
    uri = mirror()
    if uri is None:
        raise Failure(
            f"apt's sources name no mirror of {distribution().name}, so there is none to take {suite} from."
            " Install Docker Engine 25 or later with its Compose plugin yourself."
        )
    # The pin first: without it the suite would upgrade the machine.
    write(
        APT_FOLDER / f"preferences.d/dagster-stack-{suite}",
        f"# Only packages that are asked for by name come from {suite}: nothing else is upgraded.\n"
        f"Package: *\nPin: release n={suite}\nPin-Priority: 50\n",
    )
    write(
        APT_FOLDER / f"sources.list.d/dagster-stack-{suite}.sources",
        f"Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\nSigned-By: {KEYRING}\n",
    )
    update.cache_clear()


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    # For every user, as apt's own files are, whatever the umask.
    path.chmod(0o644)


@cache
def update() -> None:
    """Read the package lists, once a process."""
    try:
        run_logged("Reading package lists", ["apt-get", "update"], environment=NONINTERACTIVE)
    except Failure:
        # One broken third-party archive must not stop us: the install names packages that are missing.
        warn(f"some package lists could not be read, going on with the others (see {LOG_FOLDER})")


def install(title: str, packages: list[str]) -> None:
    """Install packages and remove none: an engine from elsewhere, for example, stays what it is."""
    update()
    command = ["apt-get", "install", "--yes", "--no-remove", "--no-install-recommends", *packages]
    run_logged(title, command, environment=NONINTERACTIVE)


def ensure(title: str, program: str, packages: list[str]) -> None:
    """Install packages when a program is missing; raises Failure where only a person can."""
    if shutil.which(program):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Failure(
            f"{program} is missing, and only root on Debian or Ubuntu can have it installed from here:"
            f" sudo apt-get install {' '.join(packages)}"
        )
    install(title, packages)
