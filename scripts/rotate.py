"""`make rotate`: new passwords for the stack's own stores, and no run fails.

As with `make deploy` the daemon stops and runs under way end first, or are handed over. Then `.env` gets new logins, stores
learn them beside the former ones, services are swapped, and the former ones are closed. Killed before the swap it leaves
all as it was; later `make rotate` or `make up` completes it.
"""

import os
import signal

from scripts import backups, compose, deploy, env_file, login, store_logins, turns, unfinished, up
from scripts.console import Failure, done, main, say
from scripts.hosts import logins as hosts_logins
from scripts.hosts import services as hosts


def rotate() -> None:
    compose.require_env_file()
    unfinished.require_none()
    env_file.require_clear()
    hosts.prepare()
    how, minutes = deploy.wanted()
    # `kill` ends it as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if store_logins.former():
        say("Completing the rotation that was interrupted")
    else:
        what = os.environ.get("WHAT") or store_logins.ALL
        described(store_logins.chosen(what), what, deploy.WAYS[how].format(minutes=minutes))
        store_logins.renewed(what)
        if not up.is_up(with_images=False):
            raise Failure(
                "Not all services are up and healthy with the settings of .env: `make up` first, then rotate."
            )
        with deploy.queue_stopped():
            if how == "wait":
                deploy.wait_for_runs(minutes)
            env_file.set_values(store_logins.renewed(what))
            hosts_logins.renew(store_logins.chosen(what))
            done(
                f"new passwords are in {env_file.env_path().name}: keep it with your backups, unless BACKUP=daily does"
            )
    # The door's secret is a new one too, and Dagit knows its hash.
    login.derive()
    deploy.swap()
    up.close_former_logins()
    backups.keep()
    done("all services have the new passwords, and no store takes the former ones")


def described(stores: list[str], what: str, way: str) -> None:
    titles = [store_logins.STORES[name].title for name in stores]
    others = ", and those of people, pages and monitoring" if what == store_logins.ALL else ""
    say(f"New passwords for {', '.join(titles)}{others}")
    say(
        f"  {way} Stores restart for that, but queued runs wait meanwhile. Then the former passwords are refused."
    )


if __name__ == "__main__":
    main(turns.alone(rotate))
