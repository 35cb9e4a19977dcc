"""S3 keys that others have replaced: they read for a week, then are removed."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dagster_stack.services.former_key import close, remove_ended
from dagster_stack.settings import S3Settings

NOW = datetime(2026, 11, 29, 23, 30, tzinfo=UTC)
PLACE = S3Settings("bucket", "http://minio:9000", None, "team/")


class Admin:
    """MinIO's administration: users with their policies, as it lists them."""

    def __init__(self, **users: str) -> None:
        self.attached = {
            user: [name for name in policies.split(",") if name] for user, policies in users.items()
        }
        self.policies: dict[str, Any] = {name: {} for names in self.attached.values() for name in names}

    def user_list(self) -> str:
        return json.dumps({
            user: {"policyName": ",".join(names), "status": "enabled"} for user, names in self.attached.items()
        })  # fmt: skip

    def policy_list(self) -> str:
        return json.dumps(self.policies)

    def policy_add(self, name: str, policy: dict[str, Any]) -> None:
        self.policies[name] = policy

    def policy_remove(self, name: str) -> None:
        del self.policies[name]

    def attach_policy(self, names: list[str], user: str) -> None:
        assert not set(names) & set(self.attached[user])
        self.attached[user] += names

    def detach_policy(self, names: list[str], user: str) -> None:
        for name in names:
            self.attached[user].remove(name)

    def user_remove(self, user: str) -> None:
        del self.attached[user]


@pytest.fixture
def admin() -> Any:
    return Admin(dagster="dagster-stack", monitor="dagster-stack-monitor")


def test_a_former_key_reads_objects_of_its_stack_until_its_links_end(admin: Any) -> None:
    until = close(admin, PLACE, "dagster", NOW)

    assert until == NOW + timedelta(days=7)
    [name] = admin.attached["dagster"]
    [statement] = admin.policies[name]["Statement"]
    assert statement["Action"] == ["s3:GetObject"]
    assert statement["Resource"] == ["arn:aws:s3:::bucket/team/*"]
    assert statement["Condition"] == {"DateLessThan": {"aws:CurrentTime": "2026-12-06T23:30:00Z"}}


def test_closing_it_again_changes_nothing(admin: Any) -> None:
    close(admin, PLACE, "dagster", NOW)
    before = json.dumps([admin.attached, admin.policies])

    close(admin, PLACE, "dagster", NOW + timedelta(days=1))

    assert json.dumps([admin.attached, admin.policies]) == before


def test_a_closing_that_was_interrupted_is_completed(admin: Any) -> None:
    close(admin, PLACE, "dagster", NOW)
    admin.attached["dagster"].append("dagster-stack")

    close(admin, PLACE, "dagster", NOW)

    assert admin.attached["dagster"] == ["dagster-stack-until-20261207"]


def test_a_key_that_is_gone_is_no_error(admin: Any) -> None:
    assert close(admin, PLACE, "nobody", NOW) is None


@pytest.mark.parametrize(("days", "removed"), [(7, []), (9, ["dagster"])])
def test_after_its_week_it_is_removed_with_its_policy(admin: Any, days: int, removed: list[str]) -> None:
    close(admin, PLACE, "dagster", NOW)

    assert remove_ended(admin, NOW + timedelta(days=days)) == removed

    assert ("dagster" in admin.attached) == (not removed)
    assert ("dagster-stack-until-20261207" in admin.policies) == (not removed)
    assert admin.attached["monitor"] == ["dagster-stack-monitor"]


def test_one_that_env_names_again_is_not_removed(admin: Any) -> None:
    close(admin, PLACE, "dagster", NOW)
    admin.attach_policy(["dagster-stack"], user="dagster")

    assert remove_ended(admin, NOW + timedelta(days=9)) == []
