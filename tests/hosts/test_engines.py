"""The engines that stand in for hosts have nothing in common but the network, and that can be cut in each direction."""

import subprocess
from collections.abc import Iterator, Sequence

import pytest

from scripts import base_image, engine, env_file
from tests.hosts.engines import FIRST, Engine

PORT = 5999
NAME = "dcs-hosts-page"
SERVE = f"""
$server = IO::Socket::INET->new(LocalPort => {PORT}, Listen => 5, ReuseAddr => 1);
while ($client = $server->accept) {{ print $client "hello\\n"; close $client }}
"""
ASK = f"read -t 3 line < /dev/tcp/{FIRST}/{PORT} && echo $line"
IMAGE = env_file.read(env_file.env_path()).get("BASE_IMAGE") or base_image.LOCAL_IMAGE


@pytest.fixture(scope="module")
def served() -> Iterator[None]:
    """A container of the first engine that answers on its address among the hosts."""
    listen = ("--publish", f"{FIRST}:{PORT}:{PORT}", IMAGE, "perl", "-MIO::Socket::INET", "-e", SERVE)
    engine.ask("run", "--detach", "--rm", "--name", NAME, *listen)
    yield
    engine.ask("rm", "--force", NAME)


@pytest.fixture(scope="module")
def with_image(boxes: Sequence[Engine]) -> Sequence[Engine]:
    for box in boxes:
        with subprocess.Popen([engine.docker(), "save", IMAGE], stdout=subprocess.PIPE) as saved:
            load = [engine.docker(), "-H", box.url, "load"]
            subprocess.run(load, stdin=saved.stdout, capture_output=True, check=True)
    return boxes


def ask(box: Engine) -> str:
    """What a container there hears from the first host."""
    return box.docker("run", "--rm", IMAGE, "timeout", "5", "bash", "-c", ASK, check=False).strip()


def test_a_container_of_one_host_reaches_what_another_publishes(
    served: None, with_image: Sequence[Engine]
) -> None:
    assert [ask(box) for box in with_image] == ["hello", "hello"]


def test_each_host_has_containers_of_its_own(served: None, with_image: Sequence[Engine]) -> None:
    for box in with_image:
        assert NAME not in box.docker("ps", "--format", "{{.Names}}")


def test_a_host_can_be_cut_off_in_each_direction_and_comes_back(
    served: None, with_image: Sequence[Engine]
) -> None:
    box, other = with_image
    for cut in (box.deaf, box.mute, box.cut_off):
        with cut():
            assert ask(box) == ""
            assert ask(other) == "hello"
        assert ask(box) == "hello"


def test_a_host_that_lost_power_comes_back_with_its_images(
    served: None, with_image: Sequence[Engine]
) -> None:
    box, _ = with_image
    box.docker("run", "--detach", "--restart", "unless-stopped", "--name", "stays", IMAGE, "sleep", "600")
    box.lose()
    assert box.docker("version", check=False) == ""
    box.power_on()
    assert ask(box) == "hello"
    assert "stays" in box.docker("ps", "--format", "{{.Names}}").split()
    box.docker("rm", "--force", "stays")
