"""Step logs expire; nothing of others does, and no rule of theirs is lost."""

import logging
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from dagster_stack.services import lifecycle

FOREIGN: dict[str, Any] = {
    "ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": "mine/"}, "Expiration": {"Days": 3},
}  # fmt: skip
OURS: dict[str, Any] = {
    "ID": "expire-step-logs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 30},
}  # fmt: skip
OURS_OF_A = {**OURS, "ID": "expire-step-logs:team/a", "Filter": {"Prefix": "team/a/logs/"}}
OLD = {"ID": "old", "Status": "Enabled", "Prefix": "x/", "Expiration": {"Days": 3}}


class Bucket:
    """A bucket with rules and objects, as far as `lifecycle` asks for them. S3 answers an error where there is no rule."""

    def __init__(self, rules: list[dict[str, Any]], *keys: str) -> None:
        self.rules, self.keys = rules, keys
        self.puts = 0
        self.client = boto3.client(
            "s3", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
        )

    def get_bucket_lifecycle_configuration(self, **_: Any) -> dict[str, Any]:
        if not self.rules:
            with Stubber(self.client) as stubber:
                stubber.add_client_error("get_bucket_lifecycle_configuration", "NoSuchLifecycleConfiguration")
                self.client.get_bucket_lifecycle_configuration(Bucket="b")
        return {"Rules": list(self.rules), "TransitionDefaultMinimumObjectSize": "varies_by_storage_class"}

    def put_bucket_lifecycle_configuration(
        self,
        LifecycleConfiguration: dict[str, Any],  # noqa: N803
        **others: Any,
    ) -> None:
        if self.rules:
            assert others["TransitionDefaultMinimumObjectSize"] == "varies_by_storage_class"
        self.rules = LifecycleConfiguration["Rules"]
        self.puts += 1

    def delete_bucket_lifecycle(self, **_: Any) -> None:
        self.rules = []

    def list_objects_v2(self, Prefix: str, Delimiter: str = "", **_: Any) -> dict[str, Any]:  # noqa: N803
        found = [key for key in self.keys if key.startswith(Prefix)]
        if not Delimiter:
            return {"Contents": [{"Key": key} for key in found]}
        rests = [key.removeprefix(Prefix) for key in found]
        return {
            "Contents": [{"Key": Prefix + rest} for rest in rests if "/" not in rest],
            "CommonPrefixes": [
                {"Prefix": f"{Prefix}{name}/"}
                for name in {rest.partition("/")[0] for rest in rests if "/" in rest}
            ],
        }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], [OURS]),
        ([FOREIGN], [FOREIGN, OURS]),
        ([{**OURS, "Expiration": {"Days": 9}}, FOREIGN], [FOREIGN, OURS]),
        ([OURS_OF_A], [OURS_OF_A, OURS]),
        ([OLD], [OLD, {key: value for key, value in OURS.items() if key != "Filter"} | {"Prefix": "logs/"}]),
    ],
    ids=["none", "others", "an older one of ours", "another stack's", "others of the older form"],
)
def test_our_rule_comes_beside_those_of_others(
    before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> None:
    bucket = Bucket(before)

    for _ in range(2):
        lifecycle.set_log_expiry(bucket, "b", "logs")

    assert bucket.rules == after
    assert bucket.puts == 1


def test_each_stack_of_a_bucket_has_a_rule_of_its_own() -> None:
    bucket = Bucket([OURS])

    lifecycle.expire_logs_of_outside_bucket(bucket, "b", "team/a/logs", "team/a/", False)

    assert bucket.rules == [OURS, OURS_OF_A]


STEP_LOGS = (
    "logs/storage/r-1/compute_logs/abc.err",
    "logs/storage/r-1/compute_logs/abc.out.partial",
    "other/x",
)


@pytest.mark.parametrize("key", ["logs/theirs.log", "logs/app/a.out", "logs/storage/theirs.gz"])
def test_others_objects_among_step_logs_do_not_expire_and_that_is_said(
    key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where an earlier version had made the rule."""
    caplog.set_level(logging.WARNING)
    for before, after in (([OURS, FOREIGN], [FOREIGN]), ([OURS], []), ([FOREIGN], [FOREIGN])):
        bucket = Bucket(before, key, *STEP_LOGS)

        lifecycle.expire_logs_of_outside_bucket(bucket, "b", "logs", "", False)

        assert bucket.rules == after
    assert "Set S3_PREFIX" in caplog.text


@pytest.mark.parametrize("keys", [(), STEP_LOGS], ids=["empty", "step logs alone"])
def test_where_there_are_step_logs_alone_they_expire(keys: tuple[str, ...]) -> None:
    bucket = Bucket([FOREIGN], *keys)

    lifecycle.expire_logs_of_outside_bucket(bucket, "b", "logs", "", False)

    assert bucket.rules == [FOREIGN, OURS]


def test_a_real_store_keeps_the_rules_of_others(s3_url: str) -> None:
    from dagster_stack.objects.client import s3_client
    from tests.unit.seaweed import BUCKET

    client = s3_client(s3_url)
    client.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": [FOREIGN]})

    lifecycle.expire_logs_of_outside_bucket(client, BUCKET, "logs", "", False)

    rules = client.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    prefixes = {rule.get("Filter", {}).get("Prefix", rule.get("Prefix")) for rule in rules}
    assert prefixes == {"mine/", "logs/"}
