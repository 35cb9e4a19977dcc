"""Several daemons (DAEMONS of all hosts): in a deployment the first of the new code takes over before the old ones leave.

So there is no time without schedules and sensors. Only the run queue rests, as each daemon does when it is told to.
"""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from scripts import compose, engine, up
from scripts.console import Failure, run_logged
from scripts.hosts import host as hosts
from scripts.hosts.host import Host

#: What a daemon does at these signals (dagster_stack/services/daemon.py).
REST, GO_ON = "USR1", "USR2"
#: Seconds between two of them: its rest ends by itself after a minute.
TELL_SECS = 20
#: One more, and nothing else is touched.
ADD = ("--progress", "plain", "create", "--no-recreate")


def wanted() -> int:
    return hosts.in_all("DAEMONS")


def are_several() -> bool:
    """Whether one of those that run could take over from another one, and will be able to."""
    unwell = [each for each in compose.containers() if each.service == "daemon" and not each.is_well]
    return wanted() > 1 and not unwell and len(running()) + sum(map(len, elsewhere().values())) > 1


def running(host: Host | None = None) -> list[str]:
    """The containers of daemons that are well, here or on a host: they have loaded the code, and hear signals."""
    containers = host.containers() if host else compose.containers()
    return [each.name for each in containers if each.service == "daemon" and each.is_well]


def elsewhere() -> dict[Host, list[str]]:
    """Those of further hosts that have any."""
    return {host: names for host in hosts.wanted() if (names := running(host))}


def tell(signal: str) -> None:
    """A host that does not answer now is left out: it is asked again, and the swap says why it does not."""
    for host in (None, *hosts.wanted()):
        with suppress(Failure):
            for name in running(host):
                # One that has just ended needs not be told.
                kill = ("kill", "--signal", signal, name)
                command = host.docker(*kill) if host else [engine.docker(), *kill]
                subprocess.run(command, capture_output=True, start_new_session=True, check=False)


@contextmanager
def queue_resting() -> Iterator[None]:
    """No queued run starts in here, and for up to a minute afterwards; after a failure the queue goes on at once."""
    done = threading.Event()

    def keep_resting() -> None:
        while not done.wait(TELL_SECS):
            tell(REST)

    tell(REST)
    telling = threading.Thread(target=keep_resting, name="rest", daemon=True)
    telling.start()
    try:
        yield
    except BaseException:
        done.set()
        telling.join()
        tell(GO_ON)
        raise
    finally:
        done.set()
        telling.join()


def hand_over() -> None:
    """Let a daemon with the new image and settings take over from all that run, on whatever hosts; those of this one are
    removed, and the swap makes others anew."""
    old, others = running(), elsewhere()
    up.run(
        "Making a daemon with the new code, beside the old ones",
        (*ADD, "--scale", f"daemon={len(old) + 1}", "daemon"),
    )
    up.start_made()
    up.wait_until_healthy("daemon")
    tell(REST)
    # All at once, so that no old one takes over from another.
    stopping = [
        subprocess.Popen(
            host.docker("stop", *names),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=host.environment,
        )
        for host, names in others.items()
    ]
    if old:
        run_logged("Letting it take over", [engine.docker(), "stop", *old])
        engine.ask("rm", "--force", *old)
    for process in stopping:
        process.wait()
