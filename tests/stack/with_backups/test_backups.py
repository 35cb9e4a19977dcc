"""The small restore drill: a backup of the running stack is restored beside it, and goes on in nobody's way."""

import json
import re
from typing import Any

from tests.stack.stack import Stack


def listed(stack: Stack) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stack.make("backups", "JSON=1").stdout)
    return found


def test_a_backup_is_restored_beside_the_stack_while_work_goes_on(stack: Stack) -> None:
    # Given a run that has ended, and a backup of it
    ended = stack.succeed("queues")
    stack.make("backup")
    made = listed(stack)
    ((runs, events),) = stack.sql("SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM event_logs)")
    assert made["bases"]
    assert not made["errors"]
    # When it is restored beside the stack, and a run is launched meanwhile
    under_way = stack.launch("parallel_pipeline")
    said = stack.make("restore-drill").stdout
    # Then it has all that was there at least
    found = re.search(r"([\d,]+) runs, ([\d,]+) events, ([\d,]+) objects", said)
    assert found, said
    restored = [int(number.replace(",", "")) for number in found.groups()]
    assert restored >= [int(runs), int(events), 1]
    assert restored[2] >= len(stack.keys(f"storage/storage/{ended}/"))
    assert listed(stack)["state"]["drill"] >= made["now"]
    # And nothing of it is left, and the run did not notice
    assert stack.wait_for_run(under_way)["status"] == "SUCCESS"
    for kind in ("container", "volume", "network"):
        left = stack.docker(
            kind, "ls", "--quiet", "--filter", f"label=com.docker.compose.project={stack.project}-drill"
        )
        assert not left.stdout, kind
