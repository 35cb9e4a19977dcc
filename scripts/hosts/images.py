"""Dagster's image on a further host: the very image of the first one, of which only layers are sent that are not there yet.

No host builds: it would need the package indexes, and its image would be another one. `docker save` writes all layers, and an
engine that has some of them needs no more than their names.
"""

import json
import subprocess
import tarfile
from collections.abc import Sequence
from typing import IO, Any, cast

from scripts import base_image, engine, images
from scripts.console import Failure, Progress, done
from scripts.hosts.host import Host


def ship(host: Host, image: str) -> None:
    """Have a tagged image of this host there, by the same name and id; raises Failure with the engine's words."""
    wanted = base_image.image_id(image)
    if host.image_id(image) == wanted:
        return
    if host.image_id(wanted) == wanted:
        host.output(*host.docker("tag", wanted, image))
        return
    with Progress(f"Sending {image} to {host.name}") as progress:
        sent = send(host, image, progress)
        if host.image_id(image) != wanted:
            # An engine that wants all layers: that of another storage driver.
            sent += send(host, image, progress, whole=True)
        elapsed = progress.elapsed
    if (found := host.image_id(image)) != wanted:
        raise Failure(
            f"{host.name} has {found or 'no image'} in place of {wanted} as {image}: its engine did not load it."
        )
    done(f"{host.name} has {image}: {sent / 1e6:.1f} MB sent ({elapsed})")


def send(host: Host, image: str, progress: Progress, whole: bool = False) -> int:
    """Pass the image on, without layers that the host has; how many bytes went there."""
    spared = set() if whole else layers_there(host, image)
    command = host.docker("load", "--quiet")
    with (
        subprocess.Popen([engine.docker(), "save", image], stdout=subprocess.PIPE) as saved,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=host.environment,
        ) as load,
    ):
        assert saved.stdout
        assert load.stdin
        assert load.stderr
        try:
            sent = pass_on(saved.stdout, load.stdin, spared, progress)
        except BrokenPipeError:
            sent = 0
        said = load.stderr.read().decode(errors="replace").strip()
    if load.returncode and (whole or not spared):
        raise Failure(f"{host.name} can't take {image}: {said}")
    return sent


def layers_there(host: Host, image: str) -> set[str]:
    """The layers of the image, from its lowest one on, that some image of the host has too: by their content's hash."""
    wanted = layers(json.loads(engine.ask("image", "inspect", image)))[0]
    ids = host.output(*host.docker("image", "ls", "--quiet", "--no-trunc")).split()
    there = layers(json.loads(host.output(*host.docker("image", "inspect", *ids)))) if ids else []
    most = max((common(wanted, each) for each in there), default=0)
    # The same content may be a layer once more further up, which is another layer to the engine.
    return {each.removeprefix("sha256:") for each in {*wanted[:most]} - {*wanted[most:]}}


def layers(inspected: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [each["RootFS"].get("Layers") or [] for each in inspected]


def common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many layers both begin with: an engine knows a layer by all that are below it."""
    number = 0
    for mine, its in zip(one, other, strict=False):
        if mine != its:
            break
        number += 1
    return number


def pass_on(source: IO[bytes], target: IO[bytes], spared: set[str], progress: Progress) -> int:
    """Copy an archive of `docker save` but for the spared layers; how many bytes were written."""
    counted = Counted(target)
    with (
        tarfile.open(fileobj=source, mode="r|") as archive,
        tarfile.open(fileobj=cast(IO[bytes], counted), mode="w|") as kept,
    ):
        for member in archive:
            if member.isfile() and is_spared(member.name, spared):
                continue
            kept.addfile(member, archive.extractfile(member) if member.isfile() else None)
            progress.at(f"{counted.bytes / 1e6:.0f} MB")
    target.close()
    return counted.bytes


def is_spared(name: str, spared: set[str]) -> bool:
    """Whether a file of the archive is such a layer: `blobs/sha256/…` is named by its content."""
    folder, _, digest = name.rpartition("/")
    return folder == "blobs/sha256" and digest in spared


class Counted:
    """Counts what is written."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self.bytes += len(data)
        self._target.write(data)
        return len(data)


def remove_unused(host: Host) -> None:
    """Images of former deployments that have no name any more."""
    unused = ("image", "prune", "--force", "--filter", f"label={images.COMMIT_LABEL}")
    subprocess.run(host.docker(*unused), capture_output=True, check=False)
