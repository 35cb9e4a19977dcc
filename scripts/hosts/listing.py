"""`make hosts`: which machines belong to the stack, whether they answer, and what runs there."""

from collections import Counter

from scripts import compose, env_file
from scripts.console import main, say
from scripts.hosts import services
from scripts.hosts.host import Host, joined


def listing() -> None:
    compose.require_env_file()
    found = joined()
    if not found:
        say("No further host has joined: `make host ADD=ssh://user@box2` (docs/several-hosts.md).")
        return
    address = env_file.settings().get("CLUSTER_ADDRESS", "")
    rows = [
        ("host", "engine", "state"),
        ("this one", address, "stores, daemon, Dagit, workers"),
        *map(row, found),
    ]
    wide = [max(len(each[column]) for each in rows) for column in (0, 1)]
    for name, engine, state in rows:
        say(f"{name:<{wide[0]}}  {engine:<{wide[1]}}  {state}".rstrip())


def row(host: Host) -> tuple[str, str, str]:
    if not host.engine:
        return host.name, "by hand", "`make workers` shows whether its workers answer"
    if problem := host.problem():
        return host.name, host.engine, f"can't be reached: {problem.splitlines()[-1]}"
    return host.name, host.engine, state(host)


def state(host: Host) -> str:
    counted = Counter((each.service, each.condition) for each in host.containers())
    running = ", ".join(
        f"{number} {service} {condition}" for (service, condition), number in sorted(counted.items())
    )
    return f"{running or 'nothing runs'}{'' if services.is_up(host) else '; not as it should be: `make up`'}"


if __name__ == "__main__":
    main(listing)
