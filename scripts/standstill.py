"""Services that stand still for a while, on this host and on further ones, and go on as before when something goes wrong."""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from scripts import compose
from scripts.console import ROOT, Failure, run_logged, warn
from scripts.hosts.host import Host, by_hand, skipped, together, wanted


@dataclass(frozen=True)
class Standstill:
    """Services that run on one host: on this one, where none is named."""

    host: Host | None
    services: tuple[str, ...]

    @staticmethod
    def of(host: Host | None, is_meant: Callable[[str], bool]) -> "Standstill":
        containers = host.containers() if host else compose.containers()
        running = {each.service for each in containers if each.state == "running"}
        return Standstill(host, tuple(sorted(filter(is_meant, running))))

    def command(self, verb: str) -> list[str]:
        words = ("--progress", "plain", verb, *self.services)
        return self.host.compose(*words) if self.host else [*compose.compose(), *words]

    @property
    def environment(self) -> Mapping[str, str]:
        return self.host.environment if self.host else os.environ

    def end(self) -> None:
        """In a session of its own: a second Ctrl-C must not end it."""
        again = subprocess.run(
            self.command("start"), cwd=ROOT, env=self.environment, capture_output=True, start_new_session=True,
            check=False,
        )  # fmt: skip
        if again.returncode:
            where = f" on {self.host.name}" if self.host else ""
            warn(f"{', '.join(self.services)}{where} could not be started again: `make up` does")


@contextmanager
def standing_still(is_meant: Callable[[str], bool], title: str = "") -> Iterator[None]:
    """Services that are meant stop on all hosts. What ends well leaves them so, for a swap; a failure starts them again."""
    found = [Standstill.of(host, is_meant) for host in (None, *wanted())]
    standstills = [each for each in found if each.services]
    try:
        with ThreadPoolExecutor() as pool:
            elsewhere = [
                pool.submit(each.host.output, *each.command("stop")) for each in standstills if each.host
            ]
            for each in standstills:
                if not each.host:
                    run_logged(title or f"Stopping {', '.join(each.services)}", each.command("stop"))
        for stopping in elsewhere:
            stopping.result()
        yield
    except BaseException:
        for each in standstills:
            each.end()
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
