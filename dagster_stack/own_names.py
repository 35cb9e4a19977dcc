"""The names under which the stack's pages are reached: whatever asks for another one is a foreign page's doing."""

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from dagster_stack.errors import SettingsError

PUBLIC_VARIABLE = "PUBLIC_HOST"
BIND_VARIABLE = "BIND_ADDRESS"
#: This host, by the names that no DNS server of somebody else answers for.
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

#: `host` or `host:port`, as a Host header has it: no user, no path. A dot at the end changes no name.
AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)\.?(?::(\d{0,5}))?", re.ASCII)
#: One of PUBLIC_HOST: with or without what the browser's address line puts around it.
PUBLIC = re.compile(r"(?:https?://)?([^/]+)/?")
ORIGIN = re.compile(r"(https?)://(.+)")
DEFAULT_PORTS = {"http": "80", "https": "443"}


@dataclass(frozen=True)
class Authority:
    """A host in one spelling, and its port; "" where none is named."""

    host: str
    port: str

    @staticmethod
    def of(text: str) -> "Authority | None":
        """None when the text is no `host[:port]`."""
        match = AUTHORITY.fullmatch(text.lower())
        if match is None:
            return None
        host, port = match[1], match[2] or ""
        if host.startswith("["):
            try:
                host = f"[{ipaddress.IPv6Address(host[1:-1])}]"
            except ValueError:
                return None
        return Authority(host, port)

    @staticmethod
    def of_origin(text: str) -> "Authority | None":
        """Of an Origin header; None for `null`, and for what is no page of a web server."""
        match = ORIGIN.fullmatch(text)
        found = Authority.of(match[2]) if match else None
        return found and match and found.without(DEFAULT_PORTS[match[1]])

    def without(self, *ports: str) -> "Authority":
        return Authority(self.host, "") if self.port in ports else self

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if self.port else self.host


@dataclass(frozen=True)
class OwnNames:
    """`hosts` are the stack's under any port, as tunnels map them; `public` is where a proxy before it is reached."""

    hosts: frozenset[str]
    public: frozenset[Authority] = frozenset()

    @staticmethod
    def of(service: str, environment: Mapping[str, str] = os.environ) -> "OwnNames":
        """The names of a service's page; raises SettingsError when PUBLIC_HOST holds what is no name."""
        public = public_hosts(environment.get(PUBLIC_VARIABLE) or "")
        bound = bound_host(environment.get(BIND_VARIABLE) or "")
        hosts = {*LOOPBACK, service, *(each.host for each in public), *([bound] if bound else [])}
        return OwnNames(frozenset(hosts), frozenset(public))

    def has(self, host: Authority) -> bool:
        return host.host in self.hosts

    def is_own_origin(self, origin: Authority, host: Authority) -> bool:
        """Whether a page of `origin` is the one behind `host`, also where a proxy gave that another name. Another
        port is another page."""
        return origin == host or (origin.host != host.host and origin in self.public)


def public_hosts(text: str) -> list[Authority]:
    """Names that commas or spaces part; raises SettingsError for one that is none."""
    return [public_host(part) for part in re.split(r"[\s,]+", text) if part]


def public_host(text: str) -> Authority:
    match = PUBLIC.fullmatch(text)
    found = Authority.of(match[1]) if match else None
    if found is None or is_everywhere(found.host):
        raise SettingsError(
            f"{PUBLIC_VARIABLE} must hold names such as dagit.example.com or dagit.example.com:8443, with commas"
            f" between several, and {text!r} is none. Change it in .env."
        )
    # Browsers leave these out.
    return found.without(*DEFAULT_PORTS.values())


def bound_host(address: str) -> str | None:
    """The host in a page's address when it listens on `address`; None where that is every address."""
    found = Authority.of(f"[{address}]" if ":" in address and not address.startswith("[") else address)
    return found.host if found and not is_everywhere(found.host) else None


def is_everywhere(host: str) -> bool:
    return host in ("0.0.0.0", "[::]")
