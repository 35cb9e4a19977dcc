"""Whom the stack's connections trust: the public certificate authorities, and a company's own (TLS_CA_FILE in `.env`)."""

import base64
import os
from pathlib import Path
from typing import Any

#: The company's certificates, as PEM in base64: in the environment, so that an engine elsewhere has them too.
VARIABLE = "DAGSTER_STACK_CA"
#: Names the file with the public ones and these.
BUNDLE_VARIABLE = "DAGSTER_STACK_CA_BUNDLE"
#: Debian's public ones.
PUBLIC = Path("/etc/ssl/certs/ca-certificates.crt")


def write(public: Path = PUBLIC) -> None:
    """Make the file, where a company has certificates of its own; raises ValueError or OSError."""
    if (own := os.environ.get(VARIABLE)) and (file := bundle()):
        path = Path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(public.read_bytes() + b"\n" + base64.b64decode(own, validate=True))


def bundle() -> str | None:
    """The file with all; None where the public ones suffice."""
    return os.environ.get(BUNDLE_VARIABLE) or None


def broker_tls(address: str | None) -> dict[str, Any] | None:
    """How a broker's `amqps` address is verified, its host's name too, as kombu and Celery take it; None for another one."""
    if not (address or "").startswith("amqps:"):
        return None
    # kombu puts the address's host in place of this None.
    return {"server_hostname": None, "ca_certs": bundle()}
