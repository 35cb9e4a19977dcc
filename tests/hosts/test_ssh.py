"""An engine that is reached by ssh, through a real sshd."""

from collections.abc import Sequence

from scripts.hosts import host, images
from scripts.hosts.host import Host
from tests.hosts.engines import Engine
from tests.hosts.sshd import Access
from tests.hosts.test_engines import IMAGE


def test_an_engine_is_reached_and_given_an_image_by_ssh(boxes: Sequence[Engine], by_ssh: Access) -> None:
    assert host.unreachable(by_ssh.url) == ""
    reached = Host(boxes[-1].name, by_ssh.url)
    images.ship(reached, f"{IMAGE}")
    assert (
        reached.image_id(IMAGE) == boxes[-1].docker("image", "inspect", "--format", "{{.Id}}", IMAGE).strip()
    )


def test_a_key_that_is_not_taken_is_said(by_ssh: Access) -> None:
    wrong = by_ssh.url.replace("root@", "nobody-there@")
    assert "Permission denied" in host.unreachable(wrong)
