"""TLS_CERT and TLS_KEY: one's own certificate for browsers, and what is wrong with it before a browser says so."""

import ssl
from collections.abc import Iterable
from pathlib import Path

from scripts.preflight import Finding

#: The certificate with those that stand between it and a known one, and its key.
CERTIFICATE, KEY = "TLS_CERT", "TLS_KEY"
SUBJECT, REQUIRED = "certificate for browsers", f"{CERTIFICATE} with its {KEY}, or none"
#: What the files begin with, somewhere.
MARKS = {CERTIFICATE: "-----BEGIN CERTIFICATE-----", KEY: "PRIVATE KEY-----"}


class Encrypted(Exception):
    """Raised when a key asks for a password."""


def findings(settings: dict[str, str], hosts: Iterable[str]) -> list[Finding]:
    """What the door could not take is fatal; what browsers will refuse or warn of is not: the stack runs with it. Empty
    where the door makes its own."""
    named = {name: settings[name] for name in (CERTIFICATE, KEY) if settings.get(name)}
    if not named:
        return []
    if cure := useless(named):
        return [Finding(SUBJECT, REQUIRED, "one of no use", cure)]
    paths = {name: Path(path).expanduser() for name, path in named.items()}
    warnings = [cure for host in hosts if (cure := refused(paths, named[CERTIFICATE], host))]
    return [
        Finding(SUBJECT, REQUIRED, "one that browsers refuse", cure, fatal=False)
        for cure in dict.fromkeys(warnings)
    ] or [Finding(SUBJECT, REQUIRED, named[CERTIFICATE])]


def useless(named: dict[str, str]) -> str:
    """Why the door could not take the pair; empty if it can."""
    if len(named) == 1:
        return f"{CERTIFICATE} and {KEY} go together: set both, or none for a certificate that the door makes"
    for name, path in named.items():
        if reason := unreadable(Path(path).expanduser(), MARKS[name]):
            return f"{name}={path} {reason}: name a file in PEM that you may read"
    pair = " and ".join(f"{name}={path}" for name, path in named.items())
    try:
        server_of({name: Path(path).expanduser() for name, path in named.items()})
    except Encrypted:
        return f"{KEY}={named[KEY]} asks for a password, which nobody types when the door starts: name a key without one"
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"{pair} do not belong together: name a certificate and its own key"
        return f"{pair} can't be used ({error.reason or error}): name others"
    return ""


def unreadable(path: Path, mark: str) -> str:
    try:
        return "" if mark in path.read_text(encoding="utf-8") else f"has no line {mark}"
    except UnicodeDecodeError:
        return "can't be read (it is not text)"
    except OSError as error:
        return f"can't be read ({error.strerror})"


def server_of(paths: dict[str, Path]) -> ssl.SSLContext:
    def refuse() -> str:
        raise Encrypted

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(paths[CERTIFICATE], paths[KEY], refuse)
    return context


def refused(paths: dict[str, Path], named: str, host: str) -> str:
    """Why a browser that trusts this very certificate would refuse it at an address; empty if it would not."""
    client = ssl.create_default_context(cafile=str(paths[CERTIFICATE]))
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        shake_hands(client, server_of(paths), host.strip("[]"))
    except ssl.SSLCertVerificationError as error:
        match error.verify_code:
            case 9:
                return f"{CERTIFICATE}={named} is not valid yet: browsers refuse it until then"
            case 10:
                return f"{CERTIFICATE}={named} has expired: browsers refuse it. Renew it, then `make up`"
            case 62 | 64:
                return (
                    f"{CERTIFICATE}={named} is not for {host}, which is in the address of Dagit: browsers refuse it."
                    " Set PUBLIC_HOST to a name that it is for, or name another one"
                )
        return f"{CERTIFICATE}={named}: browsers refuse it ({error.verify_message})"
    return ""


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> None:
    """A handshake in memory; raises SSLCertVerificationError as the client sees it."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    done: set[int] = set()
    while len(done) < len(ends):
        for number, end in enumerate(ends):
            try:
                end.do_handshake()
                done.add(number)
            except ssl.SSLWantReadError:
                continue
