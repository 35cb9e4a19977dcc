"""The proxies of this machine's network, for builds and containers; the stack's own services are never asked through them."""

import ipaddress
import json
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from scripts import engine, env_file
from scripts.compose import project
from scripts.console import BUILD_FOLDER, ROOT, done, warn

#: Variables that name a proxy, and what Docker's client configuration calls them.
PROXIES = {
    "HTTP_PROXY": "httpProxy",
    "HTTPS_PROXY": "httpsProxy",
    "FTP_PROXY": "ftpProxy",
    "ALL_PROXY": "allProxy",
}
NAMES = {**PROXIES, "NO_PROXY": "noProxy"}
#: Hosts that are never asked through a proxy.
OWN_HOSTS_FILE = ROOT / "docker" / "no-proxy.env"
#: The engine's own proxies, as JSON.
ENGINE_FORMAT = (
    '{"HTTP_PROXY": {{json .HTTPProxy}}, "HTTPS_PROXY": {{json .HTTPSProxy}}, "NO_PROXY": {{json .NoProxy}}}'
)
#: In the place of a user and password that the engine does not show.
HIDDEN = "xxxxx"
#: What containers call this host.
THIS_HOST = "host.docker.internal"
#: Seconds that a proxy on this very host has to answer.
CONNECT_SECS = 2


def file() -> Path:
    """The file that compose.yaml gives to containers; there only where the network has a proxy."""
    return BUILD_FOLDER / "proxies" / f"{project()}.env"


def record() -> None:
    """Find out what builds and containers get, and write it for Compose; say so where there is a proxy."""
    source, values = found()
    # In single quotes a $ of a password stands for itself.
    env_file.hand_on(file(), "".join(f"{name}='{value}'\n" for name, value in values.items()), like=ROOT)
    if not values:
        return
    named = ", ".join(sorted({without_login(values[name]) for name in PROXIES if name in values}))
    done(f"proxy for builds and user code, from {source}: {named}")


def recorded() -> dict[str, str]:
    """What `record` wrote."""
    return env_file.read(file())


def found() -> tuple[str, dict[str, str]]:
    """The first place that names a proxy, and what follows: every variable in upper and lower case.

    `NO_PROXY` is what all places name, and the stack's own hosts. Nothing where no place names a proxy.
    """
    places = {
        env_file.env_path().name: cased(env_file.read(env_file.env_path())),
        "Docker's client configuration": cased(of_client()),
        "the environment": cased(os.environ),
        "the Docker engine": cased(of_engine()),
    }
    for place, values in places.items():
        proxies = {name: value for name, value in values.items() if name.upper() in PROXIES}
        if proxies := reachable(proxies, place):
            direct = direct_hosts([each["NO_PROXY"] for each in places.values() if "NO_PROXY" in each])
            return place, {**proxies, "NO_PROXY": direct, "no_proxy": direct}
    return "", {}


def cased(variables: Mapping[str, str]) -> dict[str, str]:
    """The proxy variables among these in both cases; one that has a value in one case alone has it in the other too."""
    both: dict[str, str] = {}
    for name in NAMES:
        upper, lower = variables.get(name, ""), variables.get(name.lower(), "")
        if upper or lower:
            both |= {name: upper or lower, name.lower(): lower or upper}
    if "NO_PROXY" in both:
        both["NO_PROXY"] = both["no_proxy"] = joined([both["NO_PROXY"], both["no_proxy"]])
    return both


def direct_hosts(named: list[str]) -> str:
    """NO_PROXY: the stack's own hosts, an outside broker, which is spoken to directly anyway, and what the user named."""
    own = env_file.read(OWN_HOSTS_FILE)["NO_PROXY"]
    return joined([own, env_file.settings().get("RABBITMQ_HOST", ""), *named])


def joined(lists: list[str]) -> str:
    """Lists as one, each entry once. Few programs understand a * beside other entries."""
    entries = dict.fromkeys(entry for each in lists for entry in re.split(r"[,\s]+", each) if entry)
    return "*" if "*" in entries else ",".join(entries)


def of_client() -> dict[str, str]:
    """`proxies` of Docker's client configuration, as the client would give them to a container of this engine."""
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        proxies = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("proxies") or {}
        chosen = proxies.get(engine.endpoint()) if len(proxies) > 1 else None
        chosen = chosen or proxies.get("default") or {}
        return {name: chosen[key] for name, key in NAMES.items() if chosen.get(key)}
    except (OSError, ValueError, AttributeError):
        # The client itself says what is wrong with it.
        return {}


def of_engine() -> dict[str, str]:
    """What the engine pulls images through. It does not show a user and password: such a one can't be handed on."""
    try:
        values = json.loads(engine.ask("info", "--format", ENGINE_FORMAT))
        named = {name: value for name, value in values.items() if value}
    except (ValueError, AttributeError):
        return {}
    if any(HIDDEN in named.get(name, "") for name in PROXIES):
        return {}
    return named


def reachable(proxies: dict[str, str], place: str) -> dict[str, str]:
    """The proxies as a container reaches them: one that listens on this host's loopback alone is left out, with a warning."""
    found, closed = {}, set()
    for name, given in proxies.items():
        # What an address says by %27 as well, and a file of variables could not hold.
        value = given.replace("'", "%27")
        if host_of(value) == THIS_HOST:
            # The containers' own name for it: builds don't know that.
            found[name] = on_bridge(value) or value
        elif not is_loopback(value):
            found[name] = value
        elif outside := on_bridge(value):
            found[name] = outside
        else:
            closed.add(without_login(value))
    for value in sorted(closed):
        warn(
            f"proxy {value}, from {place}: in builds and containers that address is the container itself, so they get no"
            " proxy. Let it listen on the address of Docker's bridge too, or name another in .env (HTTP_PROXY)"
        )
    return found


def is_loopback(value: str) -> bool:
    host = host_of(value)
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def on_bridge(value: str) -> str:
    """The same proxy at the address of the engine's bridge, where containers reach this host; empty when it isn't there."""
    parts = parsed(value)
    gateway = engine.ask("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}")
    try:
        socket.create_connection((gateway, parts.port or 80), CONNECT_SECS).close()
    except (OSError, ValueError):
        return ""
    login, at, _ = parts.netloc.rpartition("@")
    port = f":{parts.port}" if parts.port else ""
    return parts._replace(netloc=f"{login}{at}{gateway}{port}").geturl()


def host_of(value: str) -> str:
    try:
        return parsed(value).hostname or ""
    except ValueError:
        return ""


def parsed(value: str) -> SplitResult:
    """An address as its parts. curl and Go take one without a scheme for HTTP."""
    return urlsplit(value if "://" in value else f"http://{value}")


def without_login(value: str) -> str:
    """An address that may be printed."""
    scheme, slashes, rest = value.rpartition("://")
    return f"{scheme}{slashes}{rest.rpartition('@')[2]}"
