"""S3 keys of further hosts' workers in the stack's own store: each host has its own, so that it can be shut out alone."""

from collections.abc import Mapping

from minio import MinioAdmin

from dagster_stack.services import former_key
from dagster_stack.services.provision import POLICY_NAME, attach_policy

#: How all of them begin.
PREFIX = "host-"


def present(admin: MinioAdmin) -> list[str]:
    """Those that may write; a former one only reads, until its week is over."""
    found = former_key.users(admin)
    return sorted(
        key
        for key, user in found.items()
        if key.startswith(PREFIX) and POLICY_NAME in str(user.get("policyName", "")).split(",")
    )


def make(admin: MinioAdmin, keys: Mapping[str, str]) -> None:
    """Each may do what the stack's own user may."""
    for key, secret in keys.items():
        admin.user_add(key, secret)
        attach_policy(admin, key, POLICY_NAME)


def remove(admin: MinioAdmin, key: str) -> None:
    """At once, with links that it has signed. One that is gone is no error."""
    if key in former_key.users(admin):
        admin.user_remove(key)
