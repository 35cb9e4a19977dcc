"""What belongs to a backup beside database and bucket: `.env`, the door's users, the versions, and the broker's dead letters."""

import base64
import json
import os
import urllib.request
from urllib.parse import quote

from backup.errors import Failure
from backup.programs import rclone
from backup.settings import KEPT, Settings

SETTINGS, VERSIONS, USERS = "settings/env", "settings/versions.json", "settings/users"
LETTERS = "dead-letters.json"
#: Dead letters that are kept, at most.
MOST_LETTERS = 10_000
#: Said after database and bucket.
UNTOLD = "The broker does not give its dead letters, so this backup has the dead letters of the one before: `make status`.\n{}"


def keep(settings: Settings, name: str, text: str) -> bool:
    """Keep a text, encrypted; returns whether it is the first one. One that is the same is left alone."""
    is_first = not is_kept(name)
    if is_first or read(settings, name) != text:
        rclone(settings, "rcat", f"kept:{name}", given=text)
    return is_first


def is_kept(name: str) -> bool:
    return (KEPT / f"{name}.bin").exists()


def read(settings: Settings, name: str, remote: str = "kept") -> str:
    return rclone(settings, "cat", f"{remote}:{name}")


def keep_dead_letters(settings: Settings) -> None:
    """All other messages are sent again by themselves. They stay in their queue."""
    if not settings.broker:
        return
    queue = f"{settings.broker}/api/queues/{quote(os.environ['RABBITMQ_VHOST'], safe='')}/dead-letters/get"
    asked = {"count": MOST_LETTERS, "ackmode": "ack_requeue_true", "encoding": "auto"}
    login = f"{os.environ['RABBITMQ_ADMIN_USER']}:{os.environ['RABBITMQ_ADMIN_PASSWORD']}"
    request = urllib.request.Request(
        queue,
        data=json.dumps(asked).encode(),
        headers={
            "Content-Type": "application/json",
            "Authorization": "Basic " + base64.b64encode(login.encode()).decode(),
        },
    )
    # No proxy: it is a service of this stack.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            letters = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise Failure(UNTOLD.format(error)) from None
        # There was no letter yet, so there is no queue.
        letters = []
    except OSError as error:
        raise Failure(UNTOLD.format(error)) from None
    keep(settings, LETTERS, json.dumps(letters))
