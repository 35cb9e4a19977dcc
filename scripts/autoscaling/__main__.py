"""`make autoscale`: as many workers as there is work, between the numbers of AUTOSCALE in `.env`, until Ctrl-C.

The numbers are those of all hosts together. It runs on the first one, which alone may start containers.
"""

import os
import signal
import time

from scripts import compose, turns
from scripts.autoscaling import services, systemd_unit
from scripts.autoscaling.controller import NAME, Controller
from scripts.autoscaling.feed import Feed
from scripts.autoscaling.hosts import Hosts
from scripts.console import main, say
from scripts.hosts.host import skipped, together, wanted


def autoscale() -> None:
    compose.require_env_file()
    scaled = services.scaled()
    if os.environ.get("UNIT"):
        systemd_unit.write()
        return
    hosts = Hosts(skipped())
    turns.hold("autoscale", f"process {os.getpid()}", f"`{NAME}` runs already ({{holder}}).")
    # `kill` ends it as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for service in scaled:
        limits = service.limits
        say(f"  {service.name}: {limits.least} to {limits.most}, for the work in {', '.join(service.queues)}")
    if others := together(wanted()):
        say(f"  on this host and {others}")
    controller = Controller(Feed(), hosts)
    try:
        while True:
            time.sleep(controller.look())
    except KeyboardInterrupt:
        say("\n  ended: the workers stay as they are")
    finally:
        controller.feed.close()


if __name__ == "__main__":
    main(autoscale)
