"""Whose database, bucket prefix and vhost these are: a second stack on one of them is refused, with both names.

A stack is known by its project's name and the STACK_ID of its `.env`, and by its database, which may move with it.
"""

import json
import logging
import os
import re
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any
from uuid import uuid4

import amqp
import sqlalchemy
from botocore.exceptions import ClientError
from kombu.connection import Connection
from sqlalchemy.engine import Engine

from dagster_stack.authorities import broker_tls
from dagster_stack.errors import ProvisionError
from dagster_stack.messaging.app_factory import HIGHEST_PRIORITY, QUEUE
from dagster_stack.objects.client import s3_client
from dagster_stack.objects.comparison import Place
from dagster_stack.objects.conditions import ABSENT
from dagster_stack.settings import Settings, broker_address
from dagster_stack.store.facts import Facts

logger = logging.getLogger(__name__)

#: The fact, the object below `storage/` and the exchange that say whose this is.
FACT = "stack"
OBJECT = "@stack/owner.json"
EXCHANGE = "dagster.stack"
#: Seconds since its daemon's last sign of life for which another stack on the database counts as running.
ALIVE_SECS = 60
LAST_BEAT = sqlalchemy.text(
    "SELECT extract(epoch FROM now() AT TIME ZONE 'utc' - max(timestamp)) FROM daemon_heartbeats"
)
#: RabbitMQ's answer to who declares a queue with arguments that its vhost's type of queue does not know.
OTHER_TYPE = re.compile(r"of queue type rabbit_(\w+)_queue")
#: RabbitMQ's answer to who declares the exchange with another alternate than it has names the one that it has; the answer
#: has 255 bytes at most. And an alternate that is no stack's.
CURRENT, NOBODY = re.compile(r"but current is '([^']*)"), "?"


@dataclass(frozen=True)
class Owner:
    """A stack: its project, the STACK_ID of its `.env` (empty in older ones), its database."""

    project: str
    id: str = ""
    database: str = ""

    @staticmethod
    def of(found: dict[str, Any]) -> "Owner":
        return Owner(**{name: str(found.get(name, "")) for name in ("project", "id", "database")})

    def is_same(self, other: "Owner") -> bool:
        return self.has_name_of(other) or bool(other.database and self.database.startswith(other.database))

    def has_name_of(self, other: "Owner") -> bool:
        return self.project == other.project and (self.id == other.id or not self.id or not other.id)

    @property
    def mark(self) -> str:
        """In few letters; of the database the beginning."""
        return f"{self.project}|{self.id}|{self.database[:8]}"

    def __str__(self) -> str:
        return f"{self.project} ({self.id or 'no STACK_ID'})"


@dataclass(frozen=True)
class Claimant:
    """This stack, which may take over what was another's."""

    owner: Owner
    takes_over: bool

    def refuse(self, what: str, other: Owner, cure: str) -> None:
        """Raise ProvisionError unless it takes over."""
        if not self.takes_over:
            raise ProvisionError(
                f"{what} belongs to the stack {other}, and this is {self.owner}. {cure} in .env."
                " If the other one is gone for good, or was moved here, take over once: TAKE_OVER=1 make up"
            )
        logger.warning(
            "%s was of the stack %s and is of %s now", what, other, self.owner, extra={"action": "stack.taken_over"}
        )  # fmt: skip


def this_stack() -> Claimant:
    return Claimant(
        Owner(os.environ.get("DAGSTER_STACK_PROJECT", ""), os.environ.get("DAGSTER_STACK_ID", "")),
        bool(os.environ.get("DAGSTER_STACK_TAKE_OVER")),
    )


def own_places(settings: Settings, facts: Facts, engine: Engine) -> None:
    """Mark database, bucket prefix and outside vhost as this stack's; raises ProvisionError for one that is another's."""
    claimant = this_stack()
    if not claimant.owner.project:
        return
    claimant = own_database(claimant, facts, engine)
    own_prefix(claimant, settings)
    if url := broker_address():
        own_vhost(claimant, url)


def own_target(settings: Settings, facts: Facts, engine: Engine) -> None:
    """Mark the bucket prefix that a move goes to. Raises ProvisionError where it holds what is not this stack's, which the
    move would delete; and where the bucket that it comes from has places of other stacks, which it would copy."""
    source, target = Place.source(), Place.target()
    mark = f"{settings.data_prefix}/{OBJECT}"
    require_marked_or_empty(target, mark)
    for place in (source, target):
        require_no_other_stack(place, mark)
    own_prefix(own_database(this_stack(), facts, engine), settings)


def require_marked_or_empty(target: Place, mark: str) -> None:
    """Whose the mark is, `own_prefix` looks at."""
    keys = [key for key, _, _ in islice(target.objects(), 2)]
    if keys and not has(target, mark):
        raise ProvisionError(
            f"s3://{target.bucket}/{target.key_prefix} has objects, such as {keys[0]}, and no mark of this stack. A move deletes"
            " there what the stack does not have: name a bucket in which nothing is."
        )


def has(place: Place, key: str) -> bool:
    return any(found == key for found, _, _ in islice(replace(place, key_prefix=key).objects(), 1))


def require_no_other_stack(place: Place, mark: str) -> None:
    """Only a stack without a prefix has its objects beside those of others."""
    if place.key_prefix:
        return
    for key, _, _ in place.objects():
        if key != mark and key.endswith(f"/{mark}"):
            other = key.removesuffix(mark)
            raise ProvisionError(
                f"The bucket {place.bucket} has objects of another stack under {other}, and this one has no S3_PREFIX by which"
                " its own could be told from them. Move that stack first, or name another bucket."
            )


def own_database(claimant: Claimant, facts: Facts, engine: Engine) -> Claimant:
    """A database whose stack is not running becomes this one's: that was renamed, moved or restored."""
    found = facts.read(FACT)
    before = Owner.of(found) if found else None
    if before and not before.has_name_of(claimant.owner):
        with engine.connect() as connection:
            age = connection.execute(LAST_BEAT).scalar()
        if age is not None and age < ALIVE_SECS:
            claimant.refuse(
                "The database", before, "Stop that one and wait a minute, or set a POSTGRES_DB of its own"
            )
    database = before.database if before else str(uuid4())
    owner = Owner(claimant.owner.project, claimant.owner.id, database)
    facts.note(FACT, asdict(owner))
    return Claimant(owner, claimant.takes_over)


def own_prefix(claimant: Claimant, settings: Settings) -> None:
    assert settings.s3 is not None
    client = s3_client(settings.s3.endpoint_url)
    where = {"Bucket": settings.s3.bucket, "Key": f"{settings.data_prefix}/{OBJECT}"}
    try:
        before = Owner.of(json.loads(client.get_object(**where)["Body"].read()))
    except ClientError as error:
        if error.response["Error"]["Code"] not in ABSENT:
            raise
        before = None
    # In the stack's own MinIO it is at home.
    if before and not claimant.owner.is_same(before) and os.environ.get("DAGSTER_STACK_OUTSIDE_S3"):
        place = f"s3://{settings.s3.bucket}/{settings.s3.key_prefix}"
        claimant.refuse(place, before, "Set a S3_PREFIX or S3_BUCKET of its own")
    if before != claimant.owner:
        client.put_object(**where, Body=json.dumps(asdict(claimant.owner)).encode())


def own_vhost(claimant: Claimant, url: str) -> None:
    """The mark is an exchange that nobody uses; whose it is stands in the name of its alternate."""
    with Connection(url, connect_timeout=5, ssl=broker_tls(url) or False) as connection:
        try:
            connection.connect()
        except amqp.exceptions.AccessRefused as error:
            raise ProvisionError(
                f"RabbitMQ refuses the login {connection.userid}: {error}. Correct RABBITMQ_USER, RABBITMQ_PASSWORD and"
                " RABBITMQ_VHOST in .env: they stand there as they are, not percent-encoded."
            ) from error
        require_classic_queues(connection)
        try:
            before = marked(connection, claimant.owner.mark)
            if before is None:
                return
            if not claimant.owner.is_same(before):
                claimant.refuse(
                    f"The vhost {connection.virtual_host}", before, "Set a RABBITMQ_VHOST of its own"
                )
            connection.channel().exchange_delete(EXCHANGE)
            declare(connection, claimant.owner.mark)
        except amqp.exceptions.AMQPError as error:
            logger.warning(
                "the vhost can't be marked as this stack's: %s", error, extra={"action": "vhost.not_marked"}
            )


def require_classic_queues(connection: Connection) -> None:
    """Declare the queue that every worker takes from; raises ProvisionError where the vhost makes one of another type."""
    try:
        connection.channel().queue_declare(
            QUEUE, durable=True, auto_delete=False, arguments={"x-max-priority": HIGHEST_PRIORITY}
        )
    except amqp.exceptions.PreconditionFailed as error:
        vhost = connection.virtual_host
        if found := OTHER_TYPE.search(str(error)):
            raise ProvisionError(
                f"The vhost {vhost} of RABBITMQ_HOST makes {found[1]} queues where nothing else is said. The stack needs classic"
                f" queues, as no others have its {HIGHEST_PRIORITY + 1} priorities: rabbitmqctl update_vhost_metadata {vhost}"
                " --default-queue-type classic. Or set a RABBITMQ_VHOST of its own."
            ) from error
        raise ProvisionError(
            f"In the vhost {vhost} is already a queue {QUEUE}, which is not the stack's: {error}. Delete it, or set a"
            " RABBITMQ_VHOST of its own."
        ) from error
    except amqp.exceptions.AMQPError as error:
        logger.warning("the vhost's queues can't be tried: %s", error, extra={"action": "vhost.not_tried"})


def marked(connection: Connection, mark: str) -> Owner | None:
    """None when the vhost has this mark by now; else whose mark it has."""
    try:
        declare(connection, mark)
        return None
    except amqp.exceptions.PreconditionFailed:
        pass
    try:
        declare(connection, NOBODY)
    except amqp.exceptions.PreconditionFailed as error:
        if found := CURRENT.search(str(error)):
            return Owner(*[*found[1].split("|"), "", ""][:3])
    return Owner("of an unknown name")


def declare(connection: Connection, mark: str) -> None:
    connection.channel().exchange_declare(
        EXCHANGE, "fanout", durable=True, auto_delete=False, arguments={"alternate-exchange": mark}
    )
