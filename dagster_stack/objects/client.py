"""The process's S3 client, without Dagster: a process that only looks at the bucket stays small."""

import os
from functools import cache
from typing import Any, cast

import boto3
import botocore.session
from botocore.config import Config

from dagster_stack.authorities import bundle
from dagster_stack.patches.botocore import renew_connections

#: Seconds that a link given to a browser stays valid: the longest that S3 signatures allow, 7 days.
LINK_LIFETIME_SECS = 7 * 24 * 3600
#: What boto3 calls the keys, and the ends of the variables' names.
KEYS = {
    "aws_access_key_id": "ACCESS_KEY",
    "aws_secret_access_key": "SECRET_KEY",
    "aws_session_token": "SESSION_TOKEN",
    "region_name": "REGION",
}
#: How the names of the variables begin. One for the access key that is there and empty: the machine has a role.
VARIABLES = "DAGSTER_STACK_S3_"
ACCESS_KEY_VARIABLE = f"{VARIABLES}ACCESS_KEY"
#: The cure for a request that S3 takes for too old or too new.
CLOCKS = "this machine's clock and the store's differ by more than 15 minutes. Set both by NTP."


@cache
def s3_client(endpoint_url: str | None, impatient: bool = False) -> Any:
    """The process's S3 client for an address: making one takes 120 ms, so it is kept (it is thread-safe).

    An `impatient` one is for somebody who waits for an answer on a page: it gives up after seconds.
    """
    # Pauses double from 1 s at most to 20 s: about a minute in all, longer than a restart of the store takes.
    patience: dict[str, Any] = {"retries": {"max_attempts": 10, "mode": "standard"}}
    if impatient:
        patience = {"retries": {"total_max_attempts": 2}, "connect_timeout": 3, "read_timeout": 10}
    config = Config(
        **patience,
        signature_version="s3v4",
        # The signature covers a hash of the content already; a second checksum costs each request 1 ms, and
        # older S3 stores refuse its form.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    client = new_client(endpoint_url, config)
    _clients.append(client)
    return client


def new_client(endpoint_url: str | None, config: Config | None = None, variables: str = VARIABLES) -> Any:
    """A client with the stack's own keys, or those of the machine's role, which trusts a company's own certificates too."""
    session = botocore.session.Session()
    if os.environ.get(f"{variables}ACCESS_KEY") == "":
        # A project's own keys may be in the environment.
        session.get_component("credential_provider").remove("env")
    return boto3.Session(botocore_session=session).client(
        "s3", endpoint_url=endpoint_url, config=config, verify=bundle(), **own_keys(variables)
    )


def own_keys(variables: str = VARIABLES) -> dict[str, str]:
    """The stack's own keys and region, as boto3 takes them: `AWS_*` may be a project's. Empty where it has none."""
    return {
        argument: value for argument, name in KEYS.items() if (value := os.environ.get(f"{variables}{name}"))
    }


_clients: list[Any] = []
#: Connections of this process's ancestors, never used and never closed here.
_inherited: list[Any] = []


def _leave_connections_to_parent() -> None:
    """In a forked child: the clients, which are costly, stay; their connections, and the locks of these, do not."""
    _inherited.extend(map(renew_connections, _clients))


os.register_at_fork(after_in_child=_leave_connections_to_parent)


def presigned_link(public_url: str | None, bucket: str, key: str) -> str:
    """A signed GET address on the host-reachable endpoint. Signing needs no connection."""
    link = s3_client(public_url).generate_presigned_url(
        "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=LINK_LIFETIME_SECS
    )
    return cast(str, link)
