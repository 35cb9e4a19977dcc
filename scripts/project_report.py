"""`make project`: what the image holds of the user's project."""

from typing import Any

from scripts import code_check, images, up
from scripts.console import main, say, warn

#: Names listed of each kind.
NAMED = 12


def project() -> int:
    """`make project`: what was found in the folder that PROJECT names. Returns 1 when it would not load."""
    up.prepare()
    with images.kept():
        images.ensure()
        found = code_check.ask()
    show(found)
    return 1 if found["errors"] else 0


def show(found: dict[str, Any]) -> None:
    """Print it all, for people."""
    root = found["project"]["root"]
    say(f"\n  Found by {found['project']['source']}")
    for location, report in zip(found["project"]["locations"], found["reports"], strict=True):
        say(f"\n  {location['name']}  ({report['secs']:.1f} s to load)")
        path = [entry.removeprefix(root).strip("/") or "." for entry in location["path"]]
        row("code", f"{location['target'].removeprefix(root).strip('/')}, imported from {' and '.join(path)}")
        for kind in ("jobs", "assets", "schedules", "sensors"):
            row(kind, listed(report[kind]))
        executors = (f"{name} ({counted(len(jobs), 'job')})" for name, jobs in report["executors"].items())
        row("executors", ", ".join(executors) or "-")
        row("IO managers", ", ".join(f"{key}: {kind}" for key, kind in report["io_managers"].items()) or "-")
        if report["error"]:
            row("error", report["error"].replace("\n", f"\n{'':18}"))
    if found["dbt"]:
        say("\n  dbt projects")
        for name, text in found["dbt"].items():
            row(name, text)
    if found["variables"]:
        say("\n  Variables that the code asks for")
        for name, place in found["variables"].items():
            row(name, f"{'NOT SET' if name in found['missing'] else 'set'}, {place}")
    say("")
    for warning in found["warnings"]:
        warn(warning)


def row(title: str, text: str) -> None:
    say(f"    {title:<13} {text}")


def listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)}: {', '.join(names[:NAMED])}{more}" if names else "-"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


if __name__ == "__main__":
    main(project)
