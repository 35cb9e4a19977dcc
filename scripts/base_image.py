"""The base of every image: Debian trixie, pulled, or made from Debian's packages where no registry answers."""

import os
import shutil
import subprocess
from pathlib import Path

from scripts import apt, env_file, proxies
from scripts.console import Failure, done, run_logged, warn
from scripts.engine import answers, docker

PUBLIC_IMAGE = "debian:trixie-slim"
LOCAL_IMAGE = "dagster-celery-stack-base:trixie"
SUITE = "trixie"
#: Seconds after which a registry that does not answer counts as absent.
PULL_TIMEOUT_SECS = 90


def ensure() -> None:
    """Make or pull the image that BASE_IMAGE names; choose one when it names none."""
    named = env_file.settings().get("BASE_IMAGE")
    image = named or PUBLIC_IMAGE
    if not named and is_here(LOCAL_IMAGE):
        image = LOCAL_IMAGE
    if is_here(image):
        done(f"base image {image} is here")
    elif image == LOCAL_IMAGE:
        make()
    elif pulled(image):
        done(f"base image {image} pulled")
    elif named:
        raise Failure(
            f"The base image {image} of {env_file.env_path()} can't be pulled. Check the name and the"
            " registry, or delete the line BASE_IMAGE there: then it is made from Debian's packages."
        )
    else:
        why = "does the engine know the proxy?" if proxies.recorded() else "no registry?"
        done(f"{PUBLIC_IMAGE} can't be pulled ({why}): making the same from Debian's packages")
        image = LOCAL_IMAGE
        make()
    if image != named:
        env_file.set_value("BASE_IMAGE", image)


def renew() -> None:
    """Make or pull the base image once more, for newer packages; what is here stays where no registry answers."""
    image = env_file.settings()["BASE_IMAGE"]
    if image == LOCAL_IMAGE:
        make()
    elif not pulled(image):
        warn(f"the base image {image} can't be pulled again: images get its newer packages one by one")


def is_here(image: str) -> bool:
    return answers([docker(), "image", "inspect", image])


def pulled(image: str) -> bool:
    return answers([docker(), "pull", "--quiet", image], timeout=PULL_TIMEOUT_SECS)


def make() -> None:
    """Make a minimal Debian with mmdebstrap and import it under the local name."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Failure(
            f"{PUBLIC_IMAGE} can't be pulled, and only root on Debian or Ubuntu can make it: run"
            " `sudo make up`, or set BASE_IMAGE in .env to a Debian trixie image that can be pulled here."
        )
    if not (shutil.which("mmdebstrap") and Path(apt.KEYRING).exists()):
        apt.install("Installing mmdebstrap", ["mmdebstrap", "debian-archive-keyring"])
    script = f'set -o pipefail; umask 022; mmdebstrap --variant=minbase {SUITE} - "$@" | {docker()} import - {LOCAL_IMAGE}'
    run_logged(
        f"Making the base image {LOCAL_IMAGE}",
        ["bash", "-c", script, "bash", *archives()],
        environment=proxies.recorded(),
    )


def archives() -> list[str]:
    """The lines of the image's own sources, from the machine's mirrors; empty: mmdebstrap's default."""
    if apt.distribution().id != "debian":
        return []
    lines = []
    for suffix in ("", "-updates", "-security"):
        uri = apt.mirror(suffix)
        if uri:
            lines.append(f"deb {uri} {SUITE}{suffix} main")
    return lines


def image_id(image: str) -> str:
    """The id of an image; empty when it is not here."""
    command = [docker(), "image", "inspect", "--format", "{{.Id}}", image]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
