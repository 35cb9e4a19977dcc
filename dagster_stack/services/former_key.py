"""An S3 key that another one has replaced: for a week it may read, so that signed links still open; then nothing."""

import json
import re
from datetime import datetime, timedelta
from typing import Any

from minio import MinioAdmin

from dagster_stack.objects.client import LINK_LIFETIME_SECS
from dagster_stack.settings import S3Settings

#: The policy of a former key; the day on which it ends is a part of the name.
POLICY_NAME = "dagster-stack-until-{:%Y%m%d}"
ENDED = re.compile(r"dagster-stack-until-(\d{8})")


def close(admin: MinioAdmin, place: S3Settings, key: str, now: datetime) -> datetime | None:
    """Let it read until links that it has signed end; the store itself watches the time. None where the key is gone."""
    found = users(admin).get(key)
    if found is None:
        return None
    attached = [name for name in str(found.get("policyName", "")).split(",") if name]
    until = now + timedelta(seconds=LINK_LIFETIME_SECS)
    if not any(map(ENDED.fullmatch, attached)):
        policy = POLICY_NAME.format(until + timedelta(days=1))
        admin.policy_add(policy, policy=reading(place, until))
        admin.attach_policy([policy], user=key)
    if others := [name for name in attached if not ENDED.fullmatch(name)]:
        admin.detach_policy(others, user=key)
    return until


def reading(place: S3Settings, until: datetime) -> dict[str, Any]:
    statement = {
        "Effect": "Allow",
        "Action": ["s3:GetObject"],
        "Resource": [f"arn:aws:s3:::{place.bucket}/{place.key_prefix}*"],
        "Condition": {"DateLessThan": {"aws:CurrentTime": f"{until:%Y-%m-%dT%H:%M:%SZ}"}},
    }
    return {"Version": "2012-10-17", "Statement": [statement]}


def remove_ended(admin: MinioAdmin, now: datetime) -> list[str]:
    """Remove the keys whose week is over, which may do nothing any more."""
    removed = []
    for key, user in users(admin).items():
        ended = ENDED.fullmatch(str(user.get("policyName", "")))
        if ended and ended[1] < f"{now:%Y%m%d}":
            admin.user_remove(key)
            removed.append(key)
    for policy in json.loads(admin.policy_list()) if removed else ():
        ended = ENDED.fullmatch(policy)
        if ended and ended[1] < f"{now:%Y%m%d}":
            admin.policy_remove(policy)
    return removed


def users(admin: MinioAdmin) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(admin.user_list())
    return found
