"""The network of a build: extra certificates, package indexes and their logins, all from build secrets.

`python3 -m dagster_stack.packages.network COMMAND …` runs a command in it. Logins for indexes and for git over https
may also stand in ~/.netrc, which the build mounts.
"""

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

SECRETS = Path("/run/secrets")
NETRC = Path.home() / ".netrc"
SYSTEM_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
CERTIFICATES = Path("/tmp/ca.pem")
#: By which pip, uv, git and what compiles packages know the certificates.
CERTIFICATE_VARIABLES = (
    "PIP_CERT",
    "SSL_CERT_FILE",
    "GIT_SSL_CAINFO",
    "REQUESTS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
)
#: What uv calls pip's variables.
OF_PIP = {"PIP_INDEX_URL": "UV_DEFAULT_INDEX", "PIP_EXTRA_INDEX_URL": "UV_EXTRA_INDEX_URL"}
HIDDEN = "****"


def environment() -> dict[str, str]:
    """This process's environment with what the secrets say; writes the bundle of certificates."""
    extra = SECRETS / "extra_ca"
    CERTIFICATES.write_bytes(
        SYSTEM_CERTIFICATES.read_bytes() + (extra.read_bytes() if extra.exists() else b"")
    )
    return {**os.environ, **dict.fromkeys(CERTIFICATE_VARIABLES, str(CERTIFICATES)), **of_uv(variables())}


def of_uv(indexes: Mapping[str, str]) -> dict[str, str]:
    """Variables that name package indexes, with what uv calls those of pip."""
    return {**{OF_PIP[name]: value for name, value in indexes.items() if name in OF_PIP}, **indexes}


def variables() -> dict[str, str]:
    """The package indexes of the secret."""
    secret = SECRETS / "package_index"
    text = secret.read_text(encoding="utf-8") if secret.exists() else ""
    return dict(json.loads(text)) if text.strip() else {}


def passwords() -> set[str]:
    """What must not be printed: logins in addresses, passwords of indexes and of ~/.netrc."""
    found = logins(variables())
    if NETRC.exists():
        found |= set(re.findall(r"\bpassword\s+(\S+)", NETRC.read_text(encoding="utf-8")))
    return {each for each in found if each}


def logins(indexes: Mapping[str, str]) -> set[str]:
    """The passwords of package indexes."""
    found = {value for name, value in indexes.items() if name.endswith("PASSWORD")}
    for value in indexes.values():
        for login in re.findall(r"://([^/@\s]+)@", value):
            found |= {login, login.rpartition(":")[2]}
    return found - {""}


def hidden(text: str, found: set[str] | None = None) -> str:
    """A text without these passwords, by default those that this build was given."""
    for password in sorted(passwords() if found is None else found, key=len, reverse=True):
        text = text.replace(password, HIDDEN)
    return text


if __name__ == "__main__":
    os.execvpe(sys.argv[1], sys.argv[1:], environment())
