"""Whom the stack's connections trust: public certificate authorities, a company's (TLS_CA_FILE), the stack's (INTERNAL_TLS)."""

import base64
import os
from pathlib import Path
from typing import Any

#: The company's certificates, as PEM in base64: in the environment, so that an engine elsewhere has them too.
VARIABLE = "DAGSTER_STACK_CA"
#: Names the file with the public ones and these.
BUNDLE_VARIABLE = "DAGSTER_STACK_CA_BUNDLE"
#: Debian's public ones, and the stack's own (docker/certificates).
PUBLIC, STACK = Path("/etc/ssl/certs/ca-certificates.crt"), Path("/trust/ca.pem")


def write(public: Path = PUBLIC, stack: Path = STACK) -> None:
    """Make the file, where others than the public ones are trusted; raises ValueError or OSError."""
    if file := bundle():
        trusted = [public.read_bytes(), base64.b64decode(os.environ.get(VARIABLE, ""), validate=True)]
        if stack.exists():
            trusted.append(stack.read_bytes())
        path = Path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Another process may read it meanwhile.
        new = path.with_name(f"{path.name}.{os.getpid()}")
        new.write_bytes(b"\n".join(trusted))
        new.replace(path)


def bundle() -> str | None:
    """The file with all; None where the public ones suffice."""
    return os.environ.get(BUNDLE_VARIABLE) or None


def broker_tls(address: str | None) -> dict[str, Any] | None:
    """How a broker's `amqps` address is verified, its host's name too, as kombu and Celery take it; None for another one."""
    if not (address or "").startswith("amqps:"):
        return None
    # kombu puts the address's host in place of this None.
    return {"server_hostname": None, "ca_certs": bundle()}
