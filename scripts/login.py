"""LOGIN: whether the pages stand behind a login, the door; what its container is told, and its certificate."""

import base64
import hashlib
import ipaddress
import re
import ssl
import urllib.request
from pathlib import Path

from dagster_stack.errors import SettingsError
from dagster_stack.own_names import LOOPBACK, OwnNames, bound_host, public_hosts
from scripts import compose, env_file, own_certificate
from scripts.console import BUILD_FOLDER, Failure, done, warn
from scripts.own_certificate import CERTIFICATE, KEY
from scripts.preflight import Finding

VARIABLE = "LOGIN"
MODES = ("off", "on")
#: The user that .env makes, so that somebody can always log in.
ADMIN = "admin"
#: From the least to the most that a user may do.
ROLES = ("viewer", "operator", "admin")
#: All or none of them.
OIDC = ("OIDC_ISSUER", "OIDC_CLIENT_ID", "OIDC_CLIENT_SECRET", "OIDC_ROLE_CLAIM", "OIDC_ROLES")
#: Seconds that the issuer has for an answer.
ISSUER_SECS = 10
#: What a claim may be called, and a value of it: they stand in the door's configuration.
CLAIM = re.compile(r"[A-Za-z0-9_]+")
CLAIM_VALUE = re.compile(r"[A-Za-z0-9_./ @-]+")


# --- before anything is started ------------------------------------------------------------------------


def findings() -> list[Finding]:
    """Refuses pages without a login where anybody but this host's users could open them."""
    settings, file = env_file.settings(), env_file.env_path().name
    mode = settings.get(VARIABLE) or "off"
    required = "on, or pages for this host alone"
    if mode not in MODES:
        return [Finding("login", required, f"LOGIN={mode}", f"LOGIN in {file} is on or off")]
    if mode == "off":
        opened = opened_by(settings)
        cure = f"{' and '.join(opened)} in {file} opens pages that nobody must log in to: set LOGIN=on there"
        return [Finding("login", required, "off", cure if opened else "")]
    cures = oidc_cures(settings)
    found = [Finding("login", required, "on", cure) for cure in cures] or [Finding("login", required, "on")]
    return [*found, *own_certificate.findings(settings, address_hosts(settings))]


def opened_by(settings: dict[str, str]) -> list[str]:
    """The settings by which others than this host's users would reach a page."""
    address = settings.get("BIND_ADDRESS") or "127.0.0.1"
    bound = bound_host(address)
    names = settings.get("PUBLIC_HOST") or ""
    try:
        public = [each.host for each in public_hosts(names)]
    except SettingsError:
        # Another finding says so.
        public = []
    opened = [] if bound and is_loopback(bound) else [f"BIND_ADDRESS={address}"]
    return opened + ([] if all(map(is_loopback, public)) else [f"PUBLIC_HOST={names}"])


def is_loopback(host: str) -> bool:
    if host in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def oidc_cures(settings: dict[str, str]) -> list[str]:
    """What is wrong with the issuer's settings."""
    given = [name for name in OIDC if settings.get(name)]
    if not given:
        return []
    if missing := [name for name in OIDC if name not in given]:
        return [f"{', '.join(missing)} must be set too, or none of OIDC_* (docs/operations.md)"]
    cures = []
    if not re.fullmatch(r"https?://[^\s\"'<>]+", settings["OIDC_ISSUER"]):
        cures.append("OIDC_ISSUER must be the issuer's address: https://…")
    if not CLAIM.fullmatch(settings["OIDC_ROLE_CLAIM"]):
        cures.append("OIDC_ROLE_CLAIM must be the name of a claim, such as groups")
    pairs = [part.partition(":") for part in settings["OIDC_ROLES"].split(",")]
    if not all(role in ROLES and CLAIM_VALUE.fullmatch(value) for role, _, value in pairs):
        cures.append(
            f"OIDC_ROLES must name roles ({', '.join(ROLES)}) with values of the claim:"
            " viewer:everyone,operator:data,admin:ops"
        )
    return cures


# --- what the containers are told ----------------------------------------------------------------------


def derive() -> None:
    """Write into .env what follows from its other settings and Compose can't compute."""
    present = env_file.read(env_file.env_path())
    for name, value in derived(env_file.settings()).items():
        if present.get(name) != value:
            env_file.set_value(name, value)


def derived(settings: dict[str, str]) -> dict[str, str]:
    """The door's addresses, empty without a login; the names in its certificate; by what Dagit knows it."""
    secret = settings.get("DOOR_SECRET", "")
    on = settings.get(VARIABLE) == "on"
    return {
        "DOOR_URL": address(settings) if on else "",
        "DOOR_S3_URL": s3_address(settings) if on else "",
        "DOOR_NAMES": certificate_names(settings),
        "DOOR_SECRET_SHA256": hashlib.sha256(secret.encode()).hexdigest() if secret else "",
    }


def address(settings: dict[str, str]) -> str:
    """Where browsers find the door: by the first name of PUBLIC_HOST, else where it listens."""
    public = public_hosts(settings.get("PUBLIC_HOST") or "")
    if public and public[0].port:
        return f"https://{public[0]}"
    return with_port(host(settings), settings.get("DAGIT_PORT") or "3000")


def s3_address(settings: dict[str, str]) -> str:
    return with_port(host(settings), settings.get("MINIO_PORT") or "9000")


def with_port(name: str, port: str) -> str:
    return f"https://{name}" if port == "443" else f"https://{name}:{port}"


def host(settings: dict[str, str]) -> str:
    public = public_hosts(settings.get("PUBLIC_HOST") or "")
    return public[0].host if public else bound_host(settings.get("BIND_ADDRESS") or "") or "127.0.0.1"


def address_hosts(settings: dict[str, str]) -> list[str]:
    """What stands in the address line of whoever opens the door; none where a name of PUBLIC_HOST is none, as another
    finding says."""
    try:
        return [each.host for each in public_hosts(settings.get("PUBLIC_HOST") or "")] or [host(settings)]
    except SettingsError:
        return []


def certificate_names(settings: dict[str, str]) -> str:
    """As openssl has them: DNS:localhost,IP:127.0.0.1."""
    own = OwnNames.of("localhost", settings)
    return ",".join(sorted(map(alternative_name, own.hosts)))


def alternative_name(host: str) -> str:
    try:
        return f"IP:{ipaddress.ip_address(host.strip('[]'))}"
    except ValueError:
        return f"DNS:{host}"


# --- once it runs --------------------------------------------------------------------------------------


def hand_over_certificate() -> None:
    """Give the door one's own certificate, or let it make one; keep the public part for programs of this host."""
    settings = env_file.settings()
    if settings.get(CERTIFICATE):
        paths = [Path(settings[name]).expanduser() for name in (CERTIFICATE, KEY)]
        text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
        try:
            in_door("certificate", "own", given=text)
        except Failure as failure:
            raise Failure(f"{CERTIFICATE} and {KEY} are of no use to the door: {failure}") from None
    else:
        in_door("certificate", "generated")
    public = in_door("openssl", "x509", "-in", "/data/certificate.pem")
    if not (file := certificate_file()).exists() or file.read_text(encoding="utf-8") != public:
        env_file.hand_on(file, public, like=env_file.env_path())
        done(f"the door's certificate is in {file}")


def ask_issuer() -> None:
    """Say so where the door can't ask the issuer: it may only be away, and local users get in."""
    if not (issuer := env_file.settings().get("OIDC_ISSUER")):
        return
    page = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
    try:
        in_door("curl", "-fsS", "-m", str(ISSUER_SECS), "-o", "/dev/null", page)
    except Failure as failure:
        # It says more about itself.
        said = re.search(r"curl: .*", str(failure))
        reason = said[0].rstrip(".") if said else str(failure)
        cure = (
            f" TLS_CA_FILE in {env_file.env_path().name} names the certificates of a company's own authority."
            if "certificate" in reason
            else ""
        )
        warn(f"nobody can log in at OIDC_ISSUER: the door asked {page} — {reason}.{cure}")
    else:
        done(f"the door can ask {issuer}")


def in_door(*command: str, given: str | None = None) -> str:
    """What a program says within the door's container; raises Failure."""
    return compose.output("exec", "--no-TTY", "door", *command, given=given)


def certificate_file() -> Path:
    return BUILD_FOLDER / "door" / f"{compose.project()}.crt"


def opener() -> urllib.request.OpenerDirector:
    """Asks through the door as `admin`, past the proxy of a company's network. It trusts the door's own certificate alone,
    whatever name that is for."""
    context = ssl.create_default_context(cafile=str(certificate_file()))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    found = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    login = f"{ADMIN}:{env_file.settings()['DOOR_ADMIN_PASSWORD']}".encode()
    found.addheaders = [("Authorization", f"Basic {base64.b64encode(login).decode()}")]
    return found
