"""The stack's own images: built when their inputs changed, with the certificates of the host's network."""

import hashlib
import os
import re
import subprocess
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dagster_stack.packages import explain
from scripts import base_image, commits, dbt_targets, env_file, package_index, proxies
from scripts import project as user_project
from scripts.compose import compose, project
from scripts.console import BUILD_FOLDER, ROOT, Failure, done, main, run_logged, tail, warn
from scripts.engine import ask, docker

#: Where Debian and its kin keep certificates that an administrator added.
CERTIFICATES_FOLDER = Path("/usr/local/share/ca-certificates")
CERTIFICATES_FILE = BUILD_FOLDER / "extra-ca.crt"
#: The label that remembers what an image was built from.
INPUTS_LABEL = "dagster-celery-stack.inputs"
#: The label of Dagster's image with the git commit that it was built at.
COMMIT_LABEL = "dagster-celery-stack.commit"
#: The profile that has Prometheus.
MONITORING = "monitoring"
#: How pip, Go and apt say that they don't trust a server's certificate.
UNTRUSTED = (
    "CERTIFICATE_VERIFY_FAILED",
    "certificate signed by unknown authority",
    "certificate verification failed",
)
#: How they say that the proxy is of no use, and that nothing answers.
REFUSED_BY_PROXY = ("407 Proxy", "Proxy Authentication Required", "proxyconnect", "Cannot connect to proxy")
UNREACHABLE = (
    "Temporary failure resolving",
    "Temporary failure in name resolution",
    "Network is unreachable",
    "no such host",
    "i/o timeout",
)


@dataclass(frozen=True)
class Image:
    """An image, the Compose service that builds it, and the files that go into it: of the checkout, and staged ones."""

    name: str
    service: str
    inputs: tuple[str, ...]
    note: str = ""
    #: Settings that the build gets.
    settings: tuple[str, ...] = ()
    #: Folders that are made for the build.
    staged: tuple[Path, ...] = ()

    def files(self) -> Iterator[Path]:
        for path in (*(ROOT / name for name in self.inputs), *self.staged):
            found = sorted(path.rglob("*")) if path.is_dir() else [path]
            for file in found:
                if (file.is_file() or file.is_symlink()) and "__pycache__" not in file.parts:
                    yield file

    def digest(self, base_id: str) -> str:
        """Changes when the base image, a name or a content changes. Modes don't count: each COPY sets its own."""
        digest = hashlib.sha256(base_id.encode())
        for file in self.files():
            digest.update(f"{file.relative_to(ROOT)}\0".encode(errors="surrogateescape"))
            content = os.fsencode(os.readlink(file)) if file.is_symlink() else file.read_bytes()
            digest.update(hashlib.sha256(content).digest())
        for name in self.settings:
            digest.update(f"{name}={env_file.settings().get(name, '')}\0".encode())
        return digest.hexdigest()

    @property
    def variable(self) -> str:
        return f"{self.service.upper().replace('-', '_')}_INPUTS"


def images() -> list[Image]:
    """Every image of the stack. Each copy of the stack has its own, so that what one builds is not what another runs."""
    return [
        of_service("postgres"),
        of_service("rabbitmq"),
        dagster(),
        of_service("minio", note="compiles MinIO, 5 minutes on 2 cores"),
        of_service("backup", "dagster_stack/authorities.py"),
        of_service("prometheus"),
        of_service("door"),
        of_service("certificates"),
        of_service("postgres-exporter"),
    ]


def of_service(service: str, *more: str, note: str = "") -> Image:
    """The image of a service that has its name, and a folder in `docker/`."""
    return Image(f"{project()}/{service}", service, (f"docker/{service}", *more), note)


def dagster() -> Image:
    """The image that holds the user's code."""
    return Image(
        f"{project()}/dagster",
        "init",
        ("docker/dagster", "requirements", "dagster.yaml", "celery.yaml", "dagster_stack"),
        staged=(user_project.context(),),
        settings=("DATA_PATHS",),
    )


def dagster_id() -> str:
    """The image that has Dagster's name now; empty when there is none."""
    return base_image.image_id(dagster().name)


def ensure(behind: Collection[str] = ()) -> None:
    """Build the images whose inputs changed, and those that are behind Debian's archive; say which ones were left alone."""
    write_certificates()
    user_project.stage()
    dbt_targets.write()
    package_index.write()
    build_stale(wanted(), behind)


def ensure_only(*services: str) -> None:
    """Build the images of these services alone, where their inputs changed: no other is made anew."""
    write_certificates()
    build_stale([image for image in images() if image.service in services])


def build_stale(some: list[Image], behind: Collection[str] = ()) -> None:
    base_id = base_image.image_id(env_file.settings()["BASE_IMAGE"])
    digests = {image: image.digest(base_id) for image in some}
    stale = [
        image
        for image, digest in digests.items()
        if image.name in behind or not (built_from(image) == digest or take_over(image, digest))
    ]
    fresh = [image.name for image in digests if image not in stale]
    if fresh:
        done(f"unchanged, not built again: {', '.join(fresh)}")
    # Named without their values: a password may be among these.
    proxied = proxies.recorded()
    arguments = [part for name in proxied for part in ("--build-arg", name)]
    environment = {
        **proxied,
        **{image.variable: digest for image, digest in digests.items()},
        "INIT_COMMIT": commits.commit(),
    }
    for number, image in enumerate(stale, 1):
        note = f" ({image.note})" if image.note else ""
        # Layers that are kept have the packages of the day on which they were made. Later builds use the new ones.
        anew = ["--no-cache"] if image.name in behind else []
        run_logged(
            f"Building image {number} of {len(stale)}: {image.name}{note}",
            [*compose(), "--progress", "plain", "build", *anew, *arguments, image.service],
            detail=build_step,
            excerpt=reason,
            environment=environment,
        )


def reason(log: str) -> str:
    """What a failed build's log says: the lines that name the failure, else its end; then what to do."""
    said = explain.excerpt(log) or tail(log)
    return f"{said}{cure(said)}"


def build() -> None:
    """Everything that `make up` builds, and nothing started: settings and base image are seen to."""
    env_file.complete()
    proxies.record()
    base_image.ensure()
    ensure()


@contextmanager
def kept_on_failure(untouched: str, before: Mapping[str, str] | None = None) -> Iterator[None]:
    """Give names back to the images that had them before, unless all goes well, and say what that means.

    A restart would take the others. Without `before` it is Dagster's image, as it is now.
    """
    before = {dagster().name: dagster_id()} if before is None else before
    try:
        yield
    except BaseException as error:
        for name, image_id in before.items():
            give_back(image_id, name)
        if isinstance(error, Failure):
            raise Failure(f"{error}\n\n  {untouched}") from None
        warn(untouched)
        raise


@contextmanager
def kept() -> Iterator[None]:
    """Afterwards the image that has Dagster's name now has it again: images built meanwhile are only inspected."""
    before = dagster_id()
    try:
        yield
    finally:
        give_back(before)


def give_back(image_id: str, name: str = "") -> None:
    """A name to an image, that of Dagster's where none is named."""
    if image_id:
        command = [docker(), "tag", image_id, name or dagster().name]
        subprocess.run(command, capture_output=True, check=False)


def cure(log: str) -> str:
    """What to do about a failed build, where its log says why."""
    if any(sign in log for sign in UNTRUSTED):
        return (
            "\n\nThe build met a certificate that it does not trust: this network seems to re-sign TLS. Put the"
            f" network's own certificate as a .crt file into {CERTIFICATES_FOLDER} and run `make up` again;"
            " builds get all certificates of that folder."
        )
    if any(sign in log for sign in REFUSED_BY_PROXY):
        return (
            "\n\nThe network's proxy refused the build, or does not answer. `make up` says above which one it found and"
            " where; HTTP_PROXY and HTTPS_PROXY in .env go before that, with user:password@ where it wants a login."
        )
    if any(sign in log for sign in UNREACHABLE):
        return (
            "\n\nThe build could not reach the outside. When this network has a proxy, name it: HTTP_PROXY and"
            " HTTPS_PROXY in .env."
        )
    if unknown := re.search(r"E: (?:Unable to locate package|Package '?)\s*([\w.+:-]+)", log):
        return (
            f"\n\nThe image's Debian has no package {unknown[1]}, which packages.txt of the project names: correct the name"
            " there, or take it out."
        )
    if "no space left on device" in log.lower():
        return "\n\nThe disk is full: make room (`docker system df` shows what is there), then run `make up` again."
    return ""


#: What names a store outside, in place of the service.
OUTSIDE = {
    "postgres": "POSTGRES_HOST",
    "postgres-exporter": "POSTGRES_HOST",
    "rabbitmq": "RABBITMQ_HOST",
    "minio": "S3_ENDPOINT_URL",
}


def wanted() -> list[Image]:
    """Dagster's image, those of the stores that are not outside ones, and those of profiles that are on."""
    return [image for image in images() if image.service == "init" or is_started(image.service)]


def is_started(service: str) -> bool:
    """Whether a service's own container is part of the stack: its profile is on, its store is no outside one."""
    settings, profiles = env_file.settings(), env_file.profiles()
    is_wanted = {
        "door": env_file.has_login(),
        "certificates": env_file.has_internal_tls(),
        "prometheus": MONITORING in profiles,
        "postgres-exporter": MONITORING in profiles,
        "backup": settings.get("BACKUP", "off") == "daily",
    }.get(service, service in profiles)
    return is_wanted and not settings.get(OUTSIDE.get(service, ""))


def built_from(image: Image) -> str:
    """The digest that the image was built from; empty when there is no such image."""
    template = f'{{{{index .Config.Labels "{INPUTS_LABEL}"}}}}'
    command = [docker(), "image", "inspect", "--format", template, image.name]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def take_over(image: Image, digest: str) -> bool:
    """Give this copy's name to what another copy of the stack has built from the same; whether there was one.

    Dagster's is always built: its packages come from where this copy's settings say.
    """
    if image.service == "init":
        return False
    label = f"label={INPUTS_LABEL}={digest}"
    # The newest comes first: a later one may have newer packages of Debian.
    found = ask("image", "ls", "--quiet", "--no-trunc", "--filter", label).split()
    if found:
        give_back(found[0], image.name)
    return bool(found)


def build_step(line: str) -> str | None:
    """From BuildKit's plain output, the step under way: `[build 3/4] RUN go install …`."""
    match = re.match(r"#\d+ \[(?:\S+ )?([^\]]*\d+/\d+)\] (.*)", line)
    return f"[{match[1]}] {match[2]}" if match else None


def write_certificates(folder: Path = CERTIFICATES_FOLDER, file: Path = CERTIFICATES_FILE) -> None:
    """Collect the host's extra certificates for the builds; an empty file when there are none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    found = [path.read_bytes() for path in sorted(folder.glob("**/*.crt")) if path.is_file()]
    # Anything that is not PEM (a binary certificate, a broken link) would spoil the whole bundle.
    content = b"".join(text.rstrip() + b"\n" for text in found if b"-----BEGIN CERTIFICATE-----" in text)
    # Left alone when it is the same: its time stamp must not invalidate anything.
    if not file.exists() or file.read_bytes() != content:
        file.write_bytes(content)


if __name__ == "__main__":
    main(build)
