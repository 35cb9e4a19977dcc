"""Services that stand still for a while, on this host and on further ones, and go on as before when something goes wrong."""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from scripts import compose
from scripts.console import ROOT, Failure, run_logged, warn
from scripts.hosts.host import Host, by_hand, skipped, together, wanted

#: States of a container that does nothing.
ENDED = ("created", "exited", "dead")


@dataclass(frozen=True)
class Standstill:
    """Containers of one host, of this one where none is named, and their services."""

    host: Host | None
    containers: tuple[str, ...]
    services: tuple[str, ...]

    @staticmethod
    def of(host: Host | None, is_meant: Callable[[str], bool]) -> "Standstill":
        listed = host.containers() if host else compose.containers()
        found = [each for each in listed if is_meant(each.service) and each.state not in ENDED]
        return Standstill(
            host,
            tuple(sorted(each.name for each in found)),
            tuple(sorted({each.service for each in found})),
        )

    def command(self, verb: str) -> list[str]:
        if self.host:
            return self.host.docker(verb, *self.containers)
        return [*compose.compose(), "--progress", "plain", verb, *self.services]

    @property
    def environment(self) -> Mapping[str, str]:
        return self.host.environment if self.host else os.environ

    def end(self) -> None:
        """In a session of its own: a second Ctrl-C must not end it."""
        again = subprocess.run(
            self.command("start"),
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            start_new_session=True,
            check=False,
        )
        if again.returncode:
            where = f" on {self.host.name}" if self.host else ""
            warn(f"{', '.join(self.services)}{where} could not be started again: `make up` does")


def begin(is_meant: Callable[[str], bool], hosts: Sequence[Host | None], title: str = "") -> list[Standstill]:
    """Stop services that are meant, on all of these hosts at once (None: this one); after a failure they go on as before."""
    found = [each for host in hosts if (each := Standstill.of(host, is_meant)).containers]
    try:
        with ThreadPoolExecutor() as pool:
            elsewhere = [pool.submit(each.host.output, *each.command("stop")) for each in found if each.host]
            for each in found:
                if not each.host:
                    run_logged(title or f"Stopping {', '.join(each.services)}", each.command("stop"))
        for stopping in elsewhere:
            stopping.result()
    except BaseException:
        end(found)
        raise
    return found


def end(standstills: Sequence[Standstill]) -> None:
    for each in standstills:
        each.end()


@contextmanager
def standing_still(is_meant: Callable[[str], bool], title: str = "") -> Iterator[None]:
    """Services that are meant stop on all hosts. What ends well leaves them so, for a swap; a failure starts them again."""
    found = begin(is_meant, [None, *wanted()], title)
    try:
        yield
    except BaseException:
        end(found)
        raise


def require_possible(why: str) -> None:
    """Raises Failure while there are hosts whose services can't be stopped from here; it says why they must be."""
    beyond = [*by_hand(), *(Host(name) for name in sorted(skipped()))]
    if beyond:
        cures = ", ".join(f"`make host REMOVE={each.name}`" for each in beyond)
        raise Failure(
            f"Workers of {together(beyond)} can't be stopped from here, and {why}. Shut them out first: {cures}."
            " They may join again afterwards."
        )
