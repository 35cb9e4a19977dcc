"""`make dashboards`: with the Python of the developers' environment, which has Grafana's builders."""

import os

from scripts import venv
from scripts.console import ROOT, main


def become_writer() -> None:
    python = str(venv.ensure("dev"))
    os.chdir(ROOT)
    os.execv(python, [python, "-m", "scripts.dashboards.write"])


if __name__ == "__main__":
    main(become_writer)
