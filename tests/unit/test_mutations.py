"""The list of what each mutation asks for, against the installed Dagster."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dagster._core.workspace.permissions import Permissions
from dagster_graphql.schema import create_schema
from dagster_graphql.schema.roots.mutation import GrapheneMutation

from dagster_stack.services.identity import Role
from dagster_stack.services.mutations import (
    FURTHER,
    MUTATIONS,
    OPEN,
    guard,
    needed,
    role_for,
    target_of,
)
from dagster_stack.services.roles import LEAST


def installed() -> set[str]:
    mutations = create_schema().graphql_schema.mutation_type
    assert mutations
    return set(mutations.fields)


def test_each_mutation_of_the_installed_dagster_is_on_the_list() -> None:
    """It fails with a release that has a new one: read what its resolver does and asks for, then add a line."""
    assert installed() - MUTATIONS.keys() - OPEN == set()


def test_nothing_is_on_the_list_that_dagster_no_longer_has() -> None:
    # The oldest release that the pins allow has no such mutation
    assert MUTATIONS.keys() - installed() <= {"refreshComponentState"}
    assert not MUTATIONS.keys() & OPEN


def checks_of(function: Callable[..., Any]) -> Iterator[str]:
    """The permissions that Dagster's decorators around a resolver name."""
    for cell in function.__closure__ or ():
        content = cell.cell_contents
        if isinstance(content, Permissions):
            yield content.value
        elif callable(content) and hasattr(content, "__closure__"):
            yield from checks_of(content)


def resolvers() -> dict[str, Callable[..., Any]]:
    fields = GrapheneMutation._meta.fields
    return {name: field.resolver for name, field in fields.items()}


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_dagsters_own_resolver_asks_for_the_same(name: str) -> None:
    """It fails with a release whose resolver asks for another permission, or for none."""
    if name not in resolvers():
        pytest.skip("this release has no such mutation")
    asked = set(checks_of(resolvers()[name]))
    # Each of its runs is launched by launchRun's resolver, which asks
    assert asked == (set() if name == "launchMultipleRuns" else set(MUTATIONS[name]))


@pytest.mark.parametrize("name", sorted(OPEN))
def test_what_everybody_may_asks_for_nothing(name: str) -> None:
    """It fails with a release that guards one: then it belongs on the list."""
    assert set(checks_of(resolvers()[name])) == set()


def test_each_permission_of_dagster_has_a_role() -> None:
    """It fails with a release that has a new one; until it has a role it is the admins'."""
    assert {each.value for each in Permissions} - LEAST.keys() == set()
    assert {each for names in MUTATIONS.values() for each in names} | set(FURTHER.values()) <= LEAST.keys()


def test_the_roles_are_those_of_the_docs() -> None:
    operators = {name for name in MUTATIONS if role_for(name, {}) is Role.OPERATOR}
    assert {
        "launchRun",
        "terminateRuns",
        "launchPartitionBackfill",
        "startSchedule",
        "stopSensor",
    } <= operators
    assert {name for name in MUTATIONS if role_for(name, {}) is Role.ADMIN} == {
        "deleteRun", "deletePipelineRun", "wipeAssets", "reloadRepositoryLocation", "shutdownRepositoryLocation",
        "reloadWorkspace", "setConcurrencyLimit", "deleteConcurrencyLimit", "freeConcurrencySlots",
        "freeConcurrencySlotsForRun", "setAppManagedComponent", "deleteAppManagedComponent", "refreshComponentState",
    }  # fmt: skip
    assert operators | {name for name in MUTATIONS if role_for(name, {}) is Role.ADMIN} == MUTATIONS.keys()


def test_to_wipe_with_a_partition_is_to_wipe() -> None:
    keep, wipe = {"wipeMaterializations": False}, {"wipeMaterializations": True}
    assert role_for("deleteDynamicPartitions", keep) is Role.OPERATOR
    assert role_for("deleteDynamicPartitions", wipe) is Role.ADMIN
    assert "wipe_assets" in needed("deleteDynamicPartitions", wipe)


def test_a_mutation_that_is_not_listed_is_for_admins() -> None:
    assert role_for("launchMissiles", {}) is Role.ADMIN


def test_each_mutation_is_guarded_and_no_query() -> None:
    plain, guarded = create_schema().graphql_schema, guard(create_schema()).graphql_schema
    assert plain.mutation_type
    assert guarded.mutation_type
    assert guarded.query_type
    for name, field in guarded.mutation_type.fields.items():
        assert field.resolve
        assert (field.resolve.__module__ == "dagster_stack.services.mutations") == (name not in OPEN), name
    for field in guarded.query_type.fields.values():
        assert not field.resolve or field.resolve.__module__ != "dagster_stack.services.mutations"


def test_a_target_is_what_people_call_it_and_never_config_or_tags() -> None:
    launch = {
        "executionParams": {
            "selector": {
                "jobName": "flights",
                "repositoryName": "__repository__",
                "repositoryLocationName": "main",
            },
            "runConfigData": {"path": "secret", "selector": {"jobName": "secret"}, "id": "secret"},
            "executionMetadata": {"tags": [{"key": "token", "value": "secret"}], "parentRunId": "1f0c"},
        }
    }
    assert target_of(launch) == "job flights, location main, parent run 1f0c"
    assert target_of({"runIds": ["a", "b"]}) == "runs a b"
    wipe = {
        "assetPartitionRanges": [{"assetKey": {"path": ["shop", "orders"]}}, {"assetKey": {"path": ["x"]}}]
    }
    assert target_of(wipe) == "asset shop/orders, asset x"
    assert target_of({"concurrencyKey": "db", "limit": 3}) == "pool db, limit 3"
    assert target_of({"paused": False}) == ""
    assert (
        target_of({"backfillParams": {"allPartitions": True, "partitionNames": ["1", "2"]}})
        == "all partitions, partitions 1 2"
    )


def test_a_subscription_only_reads() -> None:
    """It fails with a release that has a new one: read whether its resolver changes anything."""
    subscriptions = create_schema().graphql_schema.subscription_type
    assert subscriptions
    assert set(subscriptions.fields) <= {"pipelineRunLogs", "capturedLogs", "locationStateChangeEvents"}
