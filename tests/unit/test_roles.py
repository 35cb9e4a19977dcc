"""Users, roles and the audit in the real webserver, as the door hands on requests."""

import json
import time
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests
from dagster._core.execution.backfill import BulkActionStatus
from dagster_graphql.schema import create_schema
from graphql import (
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLScalarType,
    get_named_type,
    is_composite_type,
)
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from dagster_stack.errors import SettingsError
from dagster_stack.services.identity import Role, door_digest
from dagster_stack.services.mutations import MUTATIONS, OPEN, role_for
from dagster_stack.services.roles import LEAST
from dagster_stack.store.audit import Deed
from tests.unit.holders import Database
from tests.unit.real_dagit import real_dagit
from tests.waiting import wait_until

SECRET = "c0ffee" * 10
STORAGE = """
storage:
  custom:
    module: dagster_stack.store.instance_storage
    class: PooledPostgresStorage
    config: {{postgres_url: "{url}"}}
"""
CODE = Path(__file__).with_name("guarded_jobs.py").read_text()
USERS = {"vera": Role.VIEWER, "otto": Role.OPERATOR, "ana": Role.ADMIN}
LAUNCH = """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on Error { message } ... on PythonError { message stack } } }"""
LIMIT = 'mutation { setConcurrencyLimit(concurrencyKey: "db", limit: 1) }'


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guarded")


@pytest.fixture(scope="module")
def url(home: Path, database_url: str) -> Iterator[str]:
    """A Dagit with LOGIN=on, without its door."""
    digest = sha256(SECRET.encode()).hexdigest()
    storage = STORAGE.format(url=database_url)
    with real_dagit(home, storage, CODE, LOGIN="on", DOOR_SECRET_SHA256=digest) as url:
        yield url


def door(user: str, **others: str) -> dict[str, str]:
    """What the door says of a user."""
    return {
        "X-Stack-Door": SECRET,
        "X-Stack-User": user,
        "X-Stack-Role": USERS[user].value,
        "X-Stack-Address": "192.0.2.1",
        **others,
    }


class User:
    def __init__(self, url: str, name: str) -> None:
        self.url, self.name, self.headers = url, name, door(name)

    def send(self, query: str, variables: Mapping[str, Any] | None = None) -> requests.Response:
        body = {"query": query, "variables": variables or {}}
        return requests.post(f"{self.url}/graphql", json=body, headers=self.headers, timeout=120)

    def ask(self, query: str, variables: Mapping[str, Any] | None = None) -> Any:
        """The first field of the answer."""
        answer = self.send(query, variables).json()
        assert not answer.get("errors"), answer
        return next(iter(answer["data"].values()))

    def launch(self, job: str = "waiting", config: Any = None, **tags: str) -> Any:
        selector = {"repositoryLocationName": "jobs.py", "repositoryName": "__repository__", "jobName": job}
        params = {
            "selector": selector,
            "runConfigData": config or {},
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        }
        return self.ask(LAUNCH, {"params": params})

    def tags(self, run_id: str) -> dict[str, str]:
        query = "query($id: ID!) { runOrError(runId: $id) { ... on Run { tags { key value } } } }"
        return {each["key"]: each["value"] for each in self.ask(query, {"id": run_id})["tags"]}

    def status(self, run_id: str) -> str:
        return str(
            self.ask("query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", {"id": run_id})[
                "status"
            ]
        )


@pytest.fixture
def viewer(url: str) -> User:
    return User(url, "vera")


@pytest.fixture
def operator(url: str) -> User:
    return User(url, "otto")


@pytest.fixture
def admin(url: str) -> User:
    return User(url, "ana")


@pytest.fixture
def users(viewer: User, operator: User, admin: User) -> list[User]:
    return [viewer, operator, admin]


@pytest.fixture
def deeds(database: Database) -> Any:
    """What was recorded since the test began."""
    database.execute("DELETE FROM dagster_stack_audit")
    audit = database.process().run_storage.audit
    return audit.deeds


def brief(deeds: list[Deed]) -> list[tuple[str, str, bool]]:
    return [(each.user, each.operation, each.allowed) for each in deeds]


# --- who asks ----------------------------------------------------------------------------------------------------

PATHS = [
    "/", "/runs", "/server_info", "/dagit_info", "/graphql", "/graphql?query={version}", "/logs/x/out", "/notebook?path=x",
    "/dagit/notebook?path=x", "/download_debug/x", "/favicon.svg", "/_next/static/x.js", "/nothing", "//server_info/",
]  # fmt: skip
FORGED: list[dict[str, str]] = [
    {},
    {name: value for name, value in door("ana").items() if name != "X-Stack-Door"},
    door("ana") | {"X-Stack-Door": ""},
    door("ana") | {"X-Stack-Door": SECRET[:-1]},
    door("ana") | {"X-Stack-Door": SECRET + "0"},
    door("ana") | {"X-Stack-Door": sha256(SECRET.encode()).hexdigest()},
    door("ana") | {"X-Stack-User": ""},
    {"X_Stack_Door": SECRET, "X_Stack_User": "ana", "X_Stack_Role": "admin"},
    {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-User": "ana"},
]


@pytest.mark.parametrize("headers", FORGED)
def test_nothing_is_answered_but_to_the_door(url: str, headers: dict[str, str]) -> None:
    for path in PATHS:
        if path == "/server_info" and not any(each.startswith("X-Stack") for each in headers):
            continue
        answer = requests.get(url + path, headers=headers, timeout=30, allow_redirects=False)
        assert answer.status_code == 401, path
        assert "make up" in answer.text or "log in" in answer.text
    for path in (
        "/graphql",
        "/report_asset_materialization/x",
        "/report_asset_check/x",
        "/report_asset_observation/x",
    ):
        assert (
            requests.post(url + path, json={"query": LIMIT}, headers=headers, timeout=30).status_code == 401
        )
    for method in ("HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"):
        assert requests.request(method, f"{url}/graphql", headers=headers, timeout=30).status_code == 401
    with pytest.raises(InvalidStatus) as refused, socket(url, headers):
        pass
    assert refused.value.response.status_code == 401


def test_a_header_that_comes_twice_is_none(url: str) -> None:
    import http.client

    for name, second in (("X-Stack-Role", "admin"), ("X-Stack-User", "ana"), ("X-Stack-Door", SECRET)):
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        connection.putrequest("GET", "/server_info")
        for each in (*door("vera").items(), (name, second)):
            connection.putheader(*each)
        connection.endheaders()
        assert connection.getresponse().status == 401
        connection.close()


def test_the_health_check_needs_no_door(url: str) -> None:
    assert requests.get(f"{url}/server_info", timeout=30).status_code == 200
    assert requests.head(f"{url}/server_info", timeout=30).status_code == 200
    assert requests.post(f"{url}/server_info", timeout=30).status_code == 401


@pytest.mark.parametrize("role", ["", "root", "Admin", "viewer,admin"])
def test_a_user_without_a_role_gets_the_cure(url: str, role: str) -> None:
    answer = requests.get(f"{url}/", headers=door("ana", **{"X-Stack-Role": role}), timeout=30)
    assert answer.status_code == 403
    assert "make user" in answer.text


def test_the_secret_is_in_no_log_and_no_answer(home: Path, admin: User) -> None:
    answer = requests.get(f"{admin.url}/", headers=admin.headers, timeout=30)
    assert SECRET not in answer.text + str(answer.headers)
    admin.send("{ nonsense")
    requests.get(f"{admin.url}/notebook", headers=admin.headers, timeout=30)
    log = (home / "webserver.log").read_text()
    assert SECRET not in log
    assert "X-Stack" not in log
    assert "x-stack" not in log


@pytest.mark.parametrize(
    "environment",
    [
        {"LOGIN": "yes"}, {"LOGIN": "ON"}, {"LOGIN": "on"}, {"LOGIN": "on", "DOOR_SECRET_SHA256": ""},
        {"LOGIN": "on", "DOOR_SECRET_SHA256": SECRET}, {"LOGIN": "on", "DOOR_SECRET_SHA256": "x" * 64},
        # Whoever sends no secret would be the door
        {"LOGIN": "on", "DOOR_SECRET_SHA256": sha256(b"").hexdigest()},
    ],
)  # fmt: skip
def test_a_login_that_could_not_work_is_refused(environment: dict[str, str]) -> None:
    """Dagit does not start then: it would let everybody in, or nobody."""
    with pytest.raises(SettingsError, match=r"\.env|make up"):
        door_digest(environment)


def test_without_a_login_there_is_no_door() -> None:
    assert (
        door_digest({})
        is door_digest({"LOGIN": ""})
        is door_digest({"LOGIN": "off", "DOOR_SECRET_SHA256": "x"})
        is None
    )


def test_without_a_login_the_headers_mean_nothing(dagit_url: str) -> None:
    """Nobody is known, and everybody may do all."""
    query = "{ permissions { permission value } }"
    for headers in ({}, door("vera"), {"X-Stack-Role": "viewer"}):
        answer = requests.post(
            f"{dagit_url}/graphql", json={"query": query}, headers=headers, timeout=30
        ).json()
        refused = {each["permission"] for each in answer["data"]["permissions"] if not each["value"]}
        assert refused == {"edit_app_managed_components"}


# --- what roles may ----------------------------------------------------------------------------------------------


def test_the_page_is_told_what_its_user_may(users: list[User]) -> None:
    scoped = "{ workspaceOrError { ... on Workspace { locationEntries { permissions { permission value disabledReason } } } } }"
    for user in users:
        role = USERS[user.name]
        everywhere = user.ask("{ permissions { permission value disabledReason } }")
        here = user.ask(scoped)["locationEntries"][0]["permissions"]
        assert len(everywhere) > len(here) > 10
        for each in (*everywhere, *here):
            # This is only in Dagster's own cloud
            may = (
                role.includes(LEAST[each["permission"]])
                and each["permission"] != "edit_app_managed_components"
            )
            assert each["value"] == may, each
            # And the reason is what shows where the pointer is
            if not may and each["permission"] != "edit_app_managed_components":
                assert each["disabledReason"] == (
                    f"Your role is {role.value}; this needs {LEAST[each['permission']].value}"
                )


def literal(type_: Any) -> str:
    """Some value of a type, in GraphQL."""
    match type_:
        case GraphQLNonNull() | GraphQLList():
            inner = literal(type_.of_type)
            return f"[{inner}]" if isinstance(type_, GraphQLList) else inner
        case GraphQLEnumType():
            return next(iter(type_.values))
        case GraphQLInputObjectType():
            fields = {
                name: each.type
                for name, each in type_.fields.items()
                if isinstance(each.type, GraphQLNonNull)
            }
            return "{" + ", ".join(f"{name}: {literal(each)}" for name, each in fields.items()) + "}"
        case GraphQLScalarType(name="Boolean"):
            return "true"
        case GraphQLScalarType(name="Int"):
            return "1"
    return '"none"'


def written(name: str) -> str:
    """A mutation with some value for each argument that it needs."""
    mutations = create_schema().graphql_schema.mutation_type
    assert mutations
    field = mutations.fields[name]
    words = [
        f"{each}: {literal(argument.type)}"
        for each, argument in field.args.items()
        if isinstance(argument.type, GraphQLNonNull)
    ]
    content = (
        " { __typename ... on UnauthorizedError { message } }"
        if is_composite_type(get_named_type(field.type))
        else ""
    )
    if "UnauthorizedError" not in {each.name for each in getattr(get_named_type(field.type), "types", ())}:
        content = content and " { __typename }"
    written_arguments = f"({', '.join(words)})" if words else ""
    return f"mutation {{ {name}{written_arguments}{content} }}"


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_who_may_not_is_refused_and_on_record(users: list[User], deeds: Any, name: str) -> None:
    mutations = create_schema().graphql_schema.mutation_type
    if not mutations or name not in mutations.fields:
        pytest.skip("this release has no such mutation")
    wanted = role_for(name, {})
    refused = [user for user in users if not USERS[user.name].includes(wanted)]
    for user in refused:
        # When a user makes one by hand, alone or behind another name
        for query in (written(name), written(name).replace(f"{{ {name}", f"{{ other: {name}", 1)):
            answer = user.send(query)
            # Then it is refused, and the reason names the cure
            assert answer.status_code in (200, 400)
            assert f"may not do {name}" in answer.text
            assert f"ROLE={wanted.value}" in answer.text
    # And it is on record
    assert brief(deeds()) == [(user.name, name, False) for user in refused for _ in range(2)]


def test_no_way_leads_around_it(url: str, viewer: User, operator: User, admin: User, deeds: Any) -> None:
    for user in (viewer, operator):
        # When a mutation for admins comes in a body, an address, or as one of several
        target = f"{url}/graphql?query={quote(LIMIT)}"
        assert requests.get(target, headers=user.headers, timeout=30).status_code == 403
        assert requests.post(target, headers=user.headers, timeout=30).status_code == 403
        several = {
            "query": f"query Q {{ version }} mutation M {LIMIT.removeprefix('mutation')}",
            "operationName": "M",
        }
        fragment = {"query": f"mutation {{ ...f }} fragment f on Mutation {LIMIT.removeprefix('mutation')}"}
        batch = [{"query": LIMIT}]
        for body in (several, fragment, batch):
            answer = requests.post(f"{url}/graphql", json=body, headers=user.headers, timeout=30)
            assert answer.status_code >= 400
    # Or over a WebSocket, of whomever
    for user in (viewer, operator, admin):
        with socket(url, user.headers) as opened:
            opened.send(json.dumps({"type": "connection_init"}))
            assert json.loads(opened.recv(30)) == {"type": "connection_ack"}
            opened.send(json.dumps({"type": "start", "id": "1", "payload": {"query": LIMIT}}))
            assert json.loads(opened.recv(30))["type"] == "error"
    # Then it is not done
    limits = admin.ask("{ instance { concurrencyLimits { concurrencyKey } } }")["concurrencyLimits"]
    assert limits == []
    assert brief(deeds()) == [
        (name, "setConcurrencyLimit", False) for name in ("vera", "vera", "otto", "otto")
    ]


def socket(url: str, headers: Mapping[str, str]) -> Any:
    return connect(
        f"ws://{urlsplit(url).netloc}/graphql", subprotocols=["graphql-ws"], additional_headers=headers, proxy=None,  # type: ignore[list-item]
    )  # fmt: skip


def test_a_viewer_sees_all(viewer: User, operator: User) -> None:
    run_id = operator.launch()["run"]["runId"]
    assert viewer.status(run_id)
    assert requests.get(f"{viewer.url}/runs/{run_id}", headers=viewer.headers, timeout=30).ok
    assert requests.get(f"{viewer.url}/download_debug/{run_id}", headers=viewer.headers, timeout=30).ok
    with socket(viewer.url, viewer.headers) as opened:
        query = f'subscription {{ pipelineRunLogs(runId: "{run_id}") {{ __typename }} }}'
        opened.send(json.dumps({"type": "start", "id": "1", "payload": {"query": query}}))
        assert json.loads(opened.recv(30))["type"] == "data"


def test_what_the_page_sends_by_itself_is_everybodys_and_not_on_record(users: list[User], deeds: Any) -> None:
    telemetry = 'mutation { logTelemetry(action: "a", clientTime: "1", clientId: "c", metadata: "{}") { __typename } }'
    assert {"logTelemetry", "setNuxSeen"} == OPEN
    for user in users:
        assert user.ask("mutation { setNuxSeen }") is True
        assert user.send(telemetry).status_code == 200
    assert deeds() == []


@pytest.mark.parametrize("report", ["materialization", "check", "observation"])
def test_reports_of_assets_are_the_operators_and_on_record(
    users: list[User], deeds: Any, report: str
) -> None:
    path = f"/report_asset_{report}"
    for user in users:
        for target, body in (
            (f"{path}/shop/orders?passed=true&check_name=c", None),
            (f"{path}/", {"asset_key": ["shop", "orders"], "passed": True, "check_name": "c"}),
        ):
            answer = requests.post(user.url + target, json=body, headers=user.headers, timeout=30)
            assert answer.status_code == (403 if user.name == "vera" else 200), answer.text
            assert user.name != "vera" or "ROLE=operator" in answer.text
    assert brief(deeds()) == [(user.name, path[1:], user.name != "vera") for user in users for _ in range(2)]
    assert {each.target for each in deeds()} == {"asset shop/orders"}


# --- what they do ------------------------------------------------------------------------------------------------


def test_a_run_has_the_name_of_who_launched_it_whatever_they_say(operator: User, deeds: Any) -> None:
    # When a user launches a run, with another one's name in their tags
    run_id = operator.launch(user="ana", team="blue")["run"]["runId"]
    # Then the run has their own
    assert operator.tags(run_id)["user"] == "otto"
    assert operator.tags(run_id)["team"] == "blue"
    deed = deeds()[0]
    assert (deed.user, deed.role, deed.address, deed.operation, deed.target, deed.allowed) == (
        "otto", "operator", "192.0.2.1", "launchRun", "job waiting, location jobs.py", True,
    )  # fmt: skip


def test_a_re_execution_has_the_name_of_who_asked_for_it(operator: User, admin: User) -> None:
    run_id = operator.launch(team="blue")["run"]["runId"]
    wait_until(lambda: operator.status(run_id) == "SUCCESS", 60, "ends")
    query = """mutation($params: ReexecutionParams!) { launchRunReexecution(reexecutionParams: $params) {
        __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message stack } } }"""
    params = {
        "parentRunId": run_id,
        "strategy": "ALL_STEPS",
        "extraTags": [{"key": "user", "value": "otto"}],
    }
    again = admin.ask(query, {"params": params})["run"]["runId"]
    assert admin.tags(again)["user"] == "ana"
    assert admin.tags(again)["team"] == "blue"
    # And the page's other way, which names all tags
    selector = {"repositoryLocationName": "jobs.py", "repositoryName": "__repository__", "jobName": "waiting"}
    execution = {
        "selector": selector,
        "runConfigData": {},
        "executionMetadata": {
            "parentRunId": run_id, "rootRunId": run_id, "tags": [{"key": "user", "value": "otto"}],
        },
    }  # fmt: skip
    query = query.replace("reexecutionParams", "executionParams").replace(
        "ReexecutionParams", "ExecutionParams"
    )
    third = admin.ask(query, {"params": execution})["run"]["runId"]
    assert admin.tags(third)["user"] == "ana"


def test_several_runs_at_once_have_it(operator: User, deeds: Any) -> None:
    selector = {"repositoryLocationName": "jobs.py", "repositoryName": "__repository__", "jobName": "waiting"}
    query = """mutation($params: [ExecutionParams!]!) { launchMultipleRuns(executionParamsList: $params) {
        ... on LaunchMultipleRunsResult { launchMultipleRunsResult { ... on LaunchRunSuccess { run { runId } } } } } }"""
    answer = operator.ask(query, {"params": [{"selector": selector, "runConfigData": {}}] * 2})
    runs = [each["run"]["runId"] for each in answer["launchMultipleRunsResult"]]
    assert [operator.tags(run_id)["user"] for run_id in runs] == ["otto", "otto"]
    assert brief(deeds()) == [("otto", "launchMultipleRuns", True)]


BACKFILL = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
    ... on LaunchBackfillSuccess { backfillId launchedRunIds } ... on PythonError { message } } }"""


def spelled_params(**more: Any) -> dict[str, Any]:
    """A backfill, with another one's name in its tags."""
    return {
        "selector": {
            "partitionSetName": "spelled_partition_set",
            "repositorySelector": {
                "repositoryLocationName": "jobs.py",
                "repositoryName": "__repository__",
            },
        },
        "partitionNames": ["a", "b"],
        "tags": [{"key": "user", "value": "vera"}],
        **more,
    }


def who_backfills(user: User, backfill_id: str) -> Any:
    query = """query($id: String!) { partitionBackfillOrError(backfillId: $id) {
        ... on PartitionBackfill { user tags { key value } } } }"""
    found = user.ask(query, {"id": backfill_id})
    # The daemon gives a backfill's tags to its runs
    assert {"key": "user", "value": found["user"]} in found["tags"]
    return found["user"]


def test_a_backfill_has_it_also_again(operator: User, admin: User, database: Database, deeds: Any) -> None:
    # Given a backfill of one user, which has ended
    backfill_id = operator.ask(BACKFILL, {"params": spelled_params()})["backfillId"]
    assert who_backfills(operator, backfill_id) == "otto"
    storage = database.process().run_storage
    backfill = storage.get_backfill(backfill_id)
    assert backfill
    storage.update_backfill(backfill.with_status(BulkActionStatus.CANCELED))
    # When another one does it again
    query = """mutation($params: ReexecutionParams!) { reexecutePartitionBackfill(reexecutionParams: $params) {
        ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
    params = {"parentRunId": backfill_id, "strategy": "ALL_STEPS"}
    again = admin.ask(query, {"params": params})["backfillId"]
    # Then each has the name of its own
    assert who_backfills(admin, again) == "ana"
    assert who_backfills(admin, backfill_id) == "otto"
    assert [(each.operation, each.target) for each in deeds()] == [
        ("launchPartitionBackfill", "partition set spelled_partition_set, location jobs.py, partitions a b"),
        ("reexecutePartitionBackfill", f"parent run {backfill_id}"),
    ]


def test_runs_of_a_backfill_have_it(operator: User) -> None:
    answer = operator.ask(BACKFILL, {"params": spelled_params(forceSynchronousSubmission=True)})
    assert {operator.tags(run_id)["user"] for run_id in answer["launchedRunIds"]} == {"otto"}


def test_the_log_of_a_run_says_who_terminated_it(
    operator: User, viewer: User, tmp_path: Path, deeds: Any
) -> None:
    # Given a run that waits
    ended = tmp_path / "end"
    config = {"ops": {"wait": {"config": {"until": str(ended)}}}}
    run_id = operator.launch(config=config)["run"]["runId"]
    wait_until(lambda: operator.status(run_id) == "STARTED", 60, "starts")
    query = "mutation($id: String!) { terminateRun(runId: $id) { __typename ... on Error { message } } }"
    # When one who may not, and then one who may, terminates it
    try:
        assert viewer.ask(query, {"id": run_id})["__typename"] == "UnauthorizedError"
        assert engine_events(operator, run_id, "Terminated") == []
        assert operator.ask(query, {"id": run_id})["__typename"] == "TerminateRunSuccess"
        # Then its log says who
        assert engine_events(operator, run_id, "Terminated") == ["Terminated by otto."]
        wait_until(lambda: operator.status(run_id) == "CANCELED", 60, "ends")
    finally:
        ended.touch()
    # And a run that has ended is told nothing
    operator.ask(
        "mutation($id: [String!]!) { terminateRuns(runIds: $id) { __typename } }", {"id": [run_id, "none"]}
    )
    assert engine_events(operator, run_id, "Terminated") == ["Terminated by otto."]
    assert [(each.user, each.operation, each.allowed, each.target) for each in deeds()[1:]] == [
        ("vera", "terminateRun", False, f"run {run_id}"),
        ("otto", "terminateRun", True, f"run {run_id}"),
        ("otto", "terminateRuns", True, f"runs {run_id} none"),
    ]


def engine_events(user: User, run_id: str, beginning: str) -> list[str]:
    query = """query($id: ID!) { logsForRun(runId: $id) { ... on EventConnection { events { ... on EngineEvent { message } } } } }"""
    events = user.ask(query, {"id": run_id})["events"]
    return [each["message"] for each in events if each.get("message", "").startswith(beginning)]


def test_an_operator_does_an_operators_work(operator: User, deeds: Any) -> None:
    where = 'repositoryName: "__repository__", repositoryLocationName: "jobs.py"'
    done = {
        f'startSchedule(scheduleSelector: {{{where}, scheduleName: "yearly"}}) {{ __typename }}': "ScheduleStateResult",
        f'resetSchedule(scheduleSelector: {{{where}, scheduleName: "yearly"}}) {{ __typename }}': "ScheduleStateResult",
        f'startSensor(sensorSelector: {{{where}, sensorName: "looker"}}) {{ __typename }}': "Sensor",
        f'setSensorCursor(sensorSelector: {{{where}, sensorName: "looker"}}, cursor: "1") {{ __typename }}': "Sensor",
        f'sensorDryRun(selectorData: {{{where}, sensorName: "looker"}}, cursor: "1") {{ __typename ... on PythonError {{ message stack }} }}': "DryRunInstigationTick",
        f'addDynamicPartition(repositorySelector: {{{where}}}, partitionsDefName: "guests", partitionKey: "x") {{ __typename }}': "AddDynamicPartitionSuccess",
        f'deleteDynamicPartitions(repositorySelector: {{{where}}}, partitionsDefName: "guests", partitionKeys: ["x"]) {{ __typename }}': "DeleteDynamicPartitionsSuccess",
        'reportRunlessAssetEvents(eventParams: {eventType: ASSET_MATERIALIZATION, assetKey: {path: ["orders"]}}) { __typename }': "ReportRunlessAssetEventsSuccess",
    }  # fmt: skip
    for mutation, kind in done.items():
        answer = operator.ask(f"mutation {{ {mutation} }}")
        assert answer["__typename"] == kind, answer
    assert operator.ask("mutation { setAutoMaterializePaused(paused: true) }") is True
    assert all(each.allowed for each in deeds())
    assert len(deeds()) == len(done) + 1
    # And a report says whose it is
    query = """{ assetOrError(assetKey: {path: ["orders"]}) { ... on Asset {
        assetMaterializations(limit: 1) { tags { key value } } } } }"""
    (report,) = operator.ask(query)["assetMaterializations"]
    assert {"key": "dagster/reporting_user", "value": "otto"} in report["tags"]


def test_to_wipe_with_a_partition_is_not_an_operators(operator: User, deeds: Any) -> None:
    mutations = create_schema().graphql_schema.mutation_type
    if not mutations or "wipeMaterializations" not in mutations.fields["deleteDynamicPartitions"].args:
        pytest.skip("this release can't")
    query = """mutation { deleteDynamicPartitions(
        repositorySelector: {repositoryName: "__repository__", repositoryLocationName: "jobs.py"},
        partitionsDefName: "guests", partitionKeys: ["x"], wipeMaterializations: true) { __typename } }"""
    assert operator.ask(query)["__typename"] == "UnauthorizedError"
    (deed,) = deeds()
    assert not deed.allowed
    assert "wipe" in deed.target


@pytest.mark.parametrize(("kind", "name"), [("schedule", "yearly"), ("sensor", "looker")])
def test_what_is_stopped_by_its_id_is_on_record_by_its_name(
    operator: User, viewer: User, deeds: Any, kind: str, name: str
) -> None:
    where = 'repositoryName: "__repository__", repositoryLocationName: "jobs.py"'
    title = kind.title()
    query = f"""{{ {kind}OrError({kind}Selector: {{{where}, {kind}Name: "{name}"}}) {{
        ... on {title} {{ {kind}State {{ id }} }} }} }}"""
    state = operator.ask(query)[f"{kind}State"]["id"]
    stop = "stopRunningSchedule" if kind == "schedule" else "stopSensor"
    for user in (viewer, operator):
        answer = user.ask(f'mutation {{ {stop}(id: "{state}") {{ __typename }} }}')
        assert (answer["__typename"] == "UnauthorizedError") == (user is viewer)
    operator.send(f'mutation {{ {stop}(id: "no:thing") {{ __typename }} }}')
    assert [each.target for each in deeds()] == [f"{kind} {name}, location jobs.py"] * 2 + ["id no:thing"]


def test_an_admin_does_the_rest(admin: User, operator: User, deeds: Any) -> None:
    run_id = operator.launch()["run"]["runId"]
    wait_until(lambda: operator.status(run_id) == "SUCCESS", 60, "ends")
    delete = "mutation($id: String!) { deleteRun(runId: $id) { __typename } }"
    assert operator.ask(delete, {"id": run_id})["__typename"] == "UnauthorizedError"
    assert admin.ask(delete, {"id": run_id})["__typename"] == "DeletePipelineRunSuccess"
    assert admin.ask('mutation { setConcurrencyLimit(concurrencyKey: "db2", limit: 1) }') is True
    assert admin.ask('mutation { deleteConcurrencyLimit(concurrencyKey: "db2") }') is True
    reload = 'mutation { reloadRepositoryLocation(repositoryLocationName: "jobs.py") { __typename } }'
    assert admin.ask(reload)["__typename"] == "WorkspaceLocationEntry"
    assert admin.ask("mutation { reloadWorkspace { __typename } }")["__typename"] == "Workspace"
    assert [each.target for each in deeds() if each.operation == "setConcurrencyLimit"] == [
        "pool db2, limit 1"
    ]


def test_a_reload_leaves_its_answer_to_its_user(admin: User) -> None:
    query = """mutation { reloadRepositoryLocation(repositoryLocationName: "jobs.py") {
        ... on WorkspaceLocationEntry { permissions { permission value } } } }"""
    permissions = {each["permission"]: each["value"] for each in admin.ask(query)["permissions"]}
    assert permissions["wipe_assets"] is True


def test_what_can_not_be_recorded_is_not_done(admin: User, viewer: User, database: Database) -> None:
    # Given an audit that takes no rows
    database.execute("ALTER TABLE dagster_stack_audit RENAME TO elsewhere")
    try:
        # When somebody changes something
        answer = admin.send('mutation { setConcurrencyLimit(concurrencyKey: "unseen", limit: 1) }')
        report = requests.post(
            f"{admin.url}/report_asset_materialization/unseen", headers=admin.headers, timeout=30
        )
        # Then it is refused, with the reason
        assert answer.status_code == 400
        assert "can't be recorded" in answer.json()["errors"][0]["message"]
        assert report.status_code == 503
        assert "can't be recorded" in report.text
        # And looking is as before
        limits = viewer.ask("{ instance { concurrencyLimits { concurrencyKey } } }")["concurrencyLimits"]
        assert limits == []
    finally:
        database.execute("ALTER TABLE elsewhere RENAME TO dagster_stack_audit")


def test_names_may_be_of_any_letters(url: str, deeds: Any) -> None:
    for value, name in (("Jörg Ōkubo".encode(), "Jörg Ōkubo"), ("Jörg".encode("latin-1"), "Jörg")):
        headers: dict[str, str | bytes] = {**door("ana"), "X-Stack-User": value}
        body = {"query": 'mutation { deleteConcurrencyLimit(concurrencyKey: "none") }'}
        assert requests.post(f"{url}/graphql", json=body, headers=headers, timeout=30).status_code == 200
        assert deeds()[-1].user == name


def test_a_look_costs_less_than_a_millisecond() -> None:
    """What the door's headers cost each request, beside an answer of some milliseconds."""
    from dagster_stack.services.identity import Door

    headers = [(name.lower().encode(), value.encode()) for name, value in door("vera").items()]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/graphql",
        "client": ("192.0.2.9", 1),
        "headers": [*headers, *[(b"x", b"y")] * 15],
    }
    seen: list[Any] = []

    async def app(scope: Any, *_: Any) -> None:
        seen.append(scope)

    guard = Door(app, sha256(SECRET.encode()).hexdigest())
    started = time.perf_counter()
    for _ in range(1000):
        with pytest.raises(StopIteration):
            guard(scope, None, None).send(None)  # type: ignore[arg-type]
    assert len(seen) == 1000
    assert (time.perf_counter() - started) / 1000 < 0.001
