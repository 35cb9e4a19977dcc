"""Whom services trust beside public authorities: a company's (TLS_CA_FILE), the stack's own (INTERNAL_TLS)."""

import base64
import ssl
from pathlib import Path

from dagster_stack.authorities import BUNDLE_VARIABLE, PUBLIC, VARIABLE
from scripts import env_file
from scripts.compose import compose, project
from scripts.console import BUILD_FOLDER, ROOT, Failure, done, run_logged
from scripts.preflight import Finding

SETTING = "TLS_CA_FILE"
#: Whether the stack's own stores have certificates of its own authority.
INTERNAL, MODES = "INTERNAL_TLS", ("off", "on")
#: Where containers have the public certificates and these: in scratch space that nobody clears.
BUNDLE = "/tmp/dagster/tls/bundle.pem"
#: Characters that it may have: Linux takes no longer variable.
MOST = 90_000


def file() -> Path:
    """The file by which Compose gives them to containers; there only where there is something to say."""
    return BUILD_FOLDER / "tls" / f"{project()}.env"


def findings() -> list[Finding]:
    """Whether INTERNAL_TLS is one of its values."""
    mode = env_file.settings().get(INTERNAL) or MODES[0]
    cure = "" if mode in MODES else f"{INTERNAL} in {env_file.env_path().name} is on or off"
    return [Finding("TLS to the stack's own stores", " or ".join(MODES), mode, cure)]


def issue() -> None:
    """Have the stack's own authority issue what is missing: before any container that trusts it, whoever makes that."""
    if env_file.has_internal_tls():
        run = ("--progress", "quiet", "run", "--rm", "--no-deps", "--no-TTY", "certificates")
        run_logged("Looking at the stores' certificates", [*compose(), *run])


def record() -> None:
    """Write for Compose what containers trust; raises Failure for a TLS_CA_FILE that holds no certificate."""
    values = variables()
    env_file.hand_on(file(), "".join(f"{name}={value}\n" for name, value in values.items()), like=ROOT)


def variables() -> dict[str, str]:
    settings = env_file.settings()
    values = {}
    if named := settings.get(SETTING):
        found = certificates(named)
        values = {VARIABLE: base64.b64encode(found.encode()).decode()}
    if named or env_file.has_internal_tls():
        # Whatever library user code has: OpenSSL, Go and Rust read the second, boto3 the third.
        values |= dict.fromkeys((BUNDLE_VARIABLE, "SSL_CERT_FILE", "AWS_CA_BUNDLE"), BUNDLE)
    own = env_file.has_internal_tls() and not settings.get("POSTGRES_HOST")
    if own or settings.get("POSTGRES_SSLMODE", "").startswith("verify-"):
        # Not for `require`: libpq would verify what was only to be encrypted.
        values["PGSSLROOTCERT"] = BUNDLE if named or env_file.has_internal_tls() else str(PUBLIC)
    return values


def certificates(named: str) -> str:
    """The file's text; raises Failure with the cure."""
    where = f"{SETTING}={named} in {env_file.env_path().name}"
    path = ROOT / Path(named).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        if "PRIVATE KEY-----" in text:
            raise Failure(
                f"{where} has a private key, which no service needs: name a file with the certificates alone."
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=text)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise Failure(
            f"{where} has no certificates that can be read ({error}): name the file of the company's CA, in PEM"
            " (-----BEGIN CERTIFICATE-----), or take the line out."
        ) from None
    if len(text) > MOST:
        raise Failure(
            f"{where} has {len(text):,} characters, and containers take {MOST:,}: name a file with the company's own"
            " certificates; the public ones are trusted anyway."
        )
    done(f"{context.cert_store_stats()['x509']} certificates of {path} are trusted, beside the public ones")
    return text
