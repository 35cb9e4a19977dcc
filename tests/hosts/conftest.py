"""Three hosts on one machine: the stack's own engine, and two that can join it."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from scripts.console import BUILD_FOLDER
from tests.conftest import KEEP, PROJECT, copy_of_stack
from tests.hosts.cluster import Cluster
from tests.hosts.engines import FIRST, Engine, engines
from tests.hosts.sshd import Access, sshd

HOSTS = ("box2", "box3")
#: What its workers execute; a copy, since a test edits it.
SOURCE = Path(__file__).parent / "project"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First what there is before any host has joined."""
    items.sort(key=lambda item: item.path.stem != "test_joining")


@pytest.fixture(scope="session")
def boxes() -> Iterator[Sequence[Engine]]:
    """Engines that have nothing of the stack yet."""
    if os.geteuid():
        pytest.skip("network namespaces need root")
    with engines(*HOSTS, keep=bool(os.environ.get(KEEP))) as made:
        yield made


@pytest.fixture(scope="session")
def by_ssh(boxes: Sequence[Engine]) -> Iterator[Access]:
    """The last one's engine, as others are reached: by this session's `docker`, and by all that it starts."""
    with sshd(boxes[-1]) as access, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", access.path)
        yield access


@pytest.fixture(scope="session")
def alone(boxes: Sequence[Engine], by_ssh: Access) -> Iterator[Cluster]:
    """A stack on the first host that others may join; none has."""
    name = f"{PROJECT}-hosts"
    project = BUILD_FOLDER / name / "code"
    if not project.exists():
        shutil.copytree(SOURCE, project, ignore=shutil.ignore_patterns("__pycache__"))
    settings = {
        "CLUSTER_ADDRESS": FIRST,
        "PROJECT": str(project),
        "WORKERS": "1",
        "HEAVY_WORKERS": "0",
        "RUNNERS": "1",
    }
    with copy_of_stack(name, settings) as stack:
        yield Cluster(stack, {box.name: box for box in boxes}, project)


@pytest.fixture(scope="session")
def cluster(alone: Cluster, by_ssh: Access) -> Cluster:
    """The same with both others, of which one has joined by ssh."""
    alone.join(HOSTS[0])
    alone.join(HOSTS[1], by_ssh.url)
    return alone
