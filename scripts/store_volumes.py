"""The stores of the stack's own where images change: which are swapped, and whether the new ones open their volumes."""

from scripts import base_image, code_versions, compose, images
from scripts.console import Failure, Progress

#: In the order in which they are swapped.
STORES = ("postgres", "rabbitmq", "minio")
#: Those whose start (docker/*/start) refuses a volume of another version. It is asked before the former container goes.
CHECKED = ("postgres", "rabbitmq")
CHECK = ("--progress", "quiet", "run", "--rm", "--no-deps", "--no-TTY")


def unwell() -> list[str]:
    """The stores that do not run well, such as one whose swap was killed."""
    well = {each.service for each in compose.containers() if each.is_well}
    return [each for each in STORES if images.is_started(each) and each not in well]


def outdated() -> list[str]:
    """The stores that run with another image than the one that has their name now. It may have had another name then."""
    names = [each.name for each in compose.containers() if each.service in STORES and each.state == "running"]
    running = {
        each["Config"]["Labels"]["com.docker.compose.service"]: each["Image"]
        for each in code_versions.inspected("container", names)
    }
    return [
        store
        for store in STORES
        if store in running and running[store] != base_image.image_id(images.of_service(store).name)
    ]


def require_openable() -> None:
    """Raises Failure with the words of a new image that would not open its volume."""
    for store in outdated():
        if store in CHECKED:
            try:
                with Progress(f"Asking the new {store} whether it opens the volume"):
                    compose.output(*CHECK, store, "check")
            except Failure as failure:
                raise Failure(str(failure).partition("\n")[2]) from None
