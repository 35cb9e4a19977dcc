"""Several daemons (DAEMONS in `.env`): in a deployment the first of the new code takes over before the old ones leave.

So there is no time without schedules and sensors. Only the run queue rests, as each daemon does when it is told to.
"""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from scripts import compose, engine, env_file, up
from scripts.console import run_logged

#: What a daemon does at these signals (dagster_stack/services/daemon.py).
REST, GO_ON = "USR1", "USR2"
#: Seconds between two of them: its rest ends by itself after a minute.
TELL_SECS = 20
#: One more, and nothing else is touched.
ADD = ("--progress", "plain", "create", "--no-recreate")


def wanted() -> int:
    return env_file.number("DAEMONS", 1)


def are_several() -> bool:
    """Whether one of those that run could take over from another one, and will be able to."""
    return wanted() > 1 and len(running()) > 1


def running() -> list[str]:
    """The containers of daemons that are well: they have loaded the code, and hear signals."""
    return [each.name for each in compose.containers() if each.service == "daemon" and each.is_well]


def tell(signal: str) -> None:
    for name in running():
        # One that has just ended needs not be told.
        command = [engine.docker(), "kill", "--signal", signal, name]
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
    """Let a daemon with the new image and settings take over from all that run; these are removed."""
    old = running()
    up.run(
        "Making a daemon with the new code, beside the old ones",
        (*ADD, "--scale", f"daemon={len(old) + 1}", "daemon"),
    )
    up.start_made()
    up.wait_until_healthy("daemon")
    tell(REST)
    # All at once, so that no old one takes over from another.
    run_logged("Letting it take over", [engine.docker(), "stop", *old])
    engine.ask("rm", "--force", *old)
