"""The client of Dagit's GraphQL: its answers and errors, from a stub and, at the end, against the real schema."""

from collections.abc import Iterator
from typing import Any

import pytest
from graphql import GraphQLSchema, parse, validate

from dagster_stack.client import dagit as module
from dagster_stack.client.dagit import Dagit, Job, choose_job, launch_error, load_errors
from dagster_stack.errors import DagitError, DagitUnreachable, ExitCode, LaunchRefused
from tests.unit.dagit_stub import RUN_ID, DagitStub, event

JOBS = [
    Job("flights", "__repository__", "pipelines"),
    Job("queues", "__repository__", "pipelines"),
    Job("__ASSET_JOB", "__repository__", "pipelines"),
]
FLIGHTS = JOBS[0]


@pytest.fixture
def stub() -> Iterator[DagitStub]:
    with DagitStub() as stub:
        yield stub


@pytest.fixture
def dagit(stub: DagitStub) -> Dagit:
    return Dagit(stub.url)


def test_run_page_is_under_the_public_address() -> None:
    environment = {
        "DAGSTER_STACK_DAGIT_URL": "http://dagit:3000",
        "DAGSTER_STACK_DAGIT_PUBLIC_URL": "http://127.0.0.1:3005/",
    }

    assert Dagit.from_environment(environment).run_page("x") == "http://127.0.0.1:3005/runs/x"
    assert Dagit.from_environment({}).run_page("x") == "http://127.0.0.1:3000/runs/x"


def test_where_people_log_in_make_commands_come_in_beside_the_door() -> None:
    own = {name.lower() for name in ("X-Stack-Door", "X-Stack-User", "X-Stack-Role")}

    headers = Dagit.from_environment({"DOOR_SECRET": "c0ffee"})._session.headers
    assert {name: headers[name] for name in own} == {
        "x-stack-door": "c0ffee",
        "x-stack-user": "make",
        "x-stack-role": "admin",
    }
    assert not own & {name.lower() for name in Dagit.from_environment({})._session.headers}


def test_launch_sends_job_config_and_tags_as_the_launchpad_does(stub: DagitStub, dagit: Dagit) -> None:
    run_id = dagit.launch(FLIGHTS, "ops: {}", {"team": "data"})

    assert run_id == RUN_ID
    assert stub.launched == [
        {
            "selector": {
                "jobName": "flights",
                "repositoryName": "__repository__",
                "repositoryLocationName": "pipelines",
            },
            "runConfigData": "ops: {}",
            "executionMetadata": {"tags": [{"key": "team", "value": "data"}]},
        }
    ]


def test_a_job_is_found_with_its_repository_and_location(dagit: Dagit) -> None:
    assert dagit.find_job("flights") == FLIGHTS


def test_an_unknown_job_is_answered_with_the_nearest_and_all_names() -> None:
    with pytest.raises(LaunchRefused) as caught:
        choose_job(JOBS, {}, "flihgts", None)

    assert str(caught.value) == ("There is no job 'flihgts'. Did you mean 'flights'?\nJobs: flights, queues.")
    assert caught.value.exit_code is ExitCode.USAGE


def test_an_unknown_job_is_answered_with_code_that_could_not_be_loaded() -> None:
    with pytest.raises(LaunchRefused, match=r"'pipelines' could not be loaded: ImportError: no polars"):
        choose_job([], {"pipelines": "could not be loaded: ImportError: no polars"}, "flights", None)


def test_load_errors_name_broken_and_loading_locations_only() -> None:
    def entry(name: str, status: str, content: Any) -> dict[str, Any]:
        return {"name": name, "loadStatus": status, "locationOrLoadError": content}

    workspace = {
        "locationEntries": [
            entry("good", "LOADED", {"__typename": "RepositoryLocation"}),
            entry("broken", "LOADED", {"__typename": "PythonError", "message": "ImportError: x\n"}),
            entry("slow", "LOADING", None),
        ]
    }

    assert load_errors(workspace) == {
        "broken": "could not be loaded: ImportError: x",
        "slow": "is still being loaded",
    }


def test_a_job_in_two_locations_needs_the_location() -> None:
    other = Job("flights", "__repository__", "other")

    with pytest.raises(LaunchRefused, match=r"other, pipelines\): which one\? LOCATION=other"):
        choose_job([*JOBS, other], {}, "flights", None)
    assert choose_job([*JOBS, other], {}, "flights", "other") is other


def stack(*fields: str) -> list[dict[str, str | int]]:
    return [{"fieldName": field} for field in fields]


INVALID_CONFIG = {
    "__typename": "RunConfigValidationInvalid",
    "errors": [
        {"message": "Invalid scalar at path root:ops:n.", "stack": {"entries": stack("ops", "n")}},
        {"message": "Wrong item.", "stack": {"entries": [*stack("ops"), {"listIndex": 2}]}},
        {"message": "Missing entry at the root.\n", "stack": {"entries": []}},
    ],
}


def test_invalid_config_is_answered_with_every_error_and_its_path(stub: DagitStub, dagit: Dagit) -> None:
    stub.launch_answer = INVALID_CONFIG

    with pytest.raises(LaunchRefused) as caught:
        dagit.launch(FLIGHTS, "", {})

    assert str(caught.value).splitlines()[1:] == [
        "  Invalid scalar at path root:ops:n.",
        "  root:ops:2: Wrong item.",
        "  Missing entry at the root.",
    ]


@pytest.mark.parametrize(
    ("answer", "words", "code"),
    [
        ({"__typename": "InvalidStepError", "invalidStepKey": "x"}, "no step 'x'", ExitCode.USAGE),
        (
            {"__typename": "InvalidOutputError", "stepKey": "x", "invalidOutputName": "y"},
            "'x' has no output 'y'",
            ExitCode.USAGE,
        ),
        ({"__typename": "PipelineNotFoundError", "message": "gone"}, "gone", ExitCode.USAGE),
        ({"__typename": "RunConflict", "message": "twice"}, "twice", ExitCode.FAILED),
        ({"__typename": "UnauthorizedError", "message": "no"}, "read-only", ExitCode.FAILED),
        (
            {"__typename": "PythonError", "message": "A: a\n", "causes": [{"message": "B: b\n"}]},
            "A: a\n  caused by B: b",
            ExitCode.FAILED,
        ),
        ({"__typename": "SomethingNew"}, "SomethingNew", ExitCode.FAILED),
    ],
)
def test_each_refusal_has_its_message_and_exit_code(
    answer: dict[str, Any], words: str, code: ExitCode
) -> None:
    error = launch_error("flights", answer)

    assert words in str(error)
    assert error.exit_code is code


def test_no_answer_names_the_address_and_the_cure() -> None:
    with pytest.raises(DagitUnreachable) as caught:
        Dagit("http://127.0.0.1:1").find_job("flights")

    assert "http://127.0.0.1:1 (connection refused)" in str(caught.value)
    assert "make up" in str(caught.value)
    assert caught.value.exit_code is ExitCode.UNREACHABLE


@pytest.mark.parametrize("url", ["dagit:3000", "dagit", "ftp://dagit"])
def test_an_address_that_is_none_names_the_variable(url: str) -> None:
    with pytest.raises(DagitUnreachable, match="DAGSTER_STACK_DAGIT_URL"):
        Dagit(url).find_job("flights")


def test_another_service_on_the_port_is_told_from_dagit(stub: DagitStub, dagit: Dagit) -> None:
    stub.raw_body, stub.http_status = b"<html>hello</html>", 404

    with pytest.raises(DagitUnreachable, match="is not Dagit"):
        dagit.find_job("flights")


def test_an_overloaded_dagit_counts_as_not_reachable(stub: DagitStub, dagit: Dagit) -> None:
    stub.http_status = 503

    with pytest.raises(DagitUnreachable, match="HTTP status 503"):
        dagit.find_job("flights")


def test_a_query_that_dagit_does_not_understand_is_an_error_with_its_words(
    stub: DagitStub, dagit: Dagit
) -> None:
    stub.raw_body, stub.http_status = b'{"errors": [{"message": "Cannot query field"}]}', 400

    with pytest.raises(DagitError, match="Cannot query field"):
        dagit.find_job("flights")


def entry(name: str, error: str = "") -> dict[str, Any]:
    content = (
        {"__typename": "PythonError", "message": error} if error else {"__typename": "RepositoryLocation"}
    )
    return {"name": name, "loadStatus": "LOADED", "locationOrLoadError": content}


def test_a_reload_names_the_locations_or_what_is_wrong_with_one(stub: DagitStub, dagit: Dagit) -> None:
    stub.locations = [entry("pipelines"), entry("shop")]
    assert dagit.reload() == ["pipelines", "shop"]

    stub.locations = [entry("pipelines"), entry("shop", "no table orders")]
    with pytest.raises(DagitError, match="shop could not be loaded: no table orders"):
        dagit.reload()


def test_a_proxy_in_the_environment_is_not_used(
    stub: DagitStub, dagit: Dagit, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    assert dagit.find_job("flights") == FLIGHTS


def test_output_metadata_is_collected_over_all_pages(
    stub: DagitStub, dagit: Dagit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVENTS_PER_ANSWER", 2)
    entries = [
        {"__typename": "IntMetadataEntry", "label": "rows", "intRepr": "9007199254740993"},
        {"__typename": "UrlMetadataEntry", "label": "report", "url": "http://x/r.html"},
        {"__typename": "TextMetadataEntry", "label": "ignored"},
    ]
    stub.events = [
        event("STEP_OUTPUT", "other", metadataEntries=[{**entries[0], "intRepr": "1"}]),
        *[{} for _ in range(5)],
        event("STEP_OUTPUT", "report", metadataEntries=entries),
    ]

    assert dagit.output_metadata(RUN_ID, "report") == {
        "rows": 9007199254740993,
        "report": "http://x/r.html",
    }


@pytest.fixture(scope="module")
def schema() -> GraphQLSchema:
    from dagster_graphql.schema import create_schema

    schema: GraphQLSchema = create_schema().graphql_schema
    return schema


@pytest.mark.parametrize("query", [name for name in dir(module) if name.endswith(("_QUERY", "_MUTATION"))])
def test_every_query_fits_the_schema_of_the_installed_dagster(query: str, schema: GraphQLSchema) -> None:
    assert validate(schema, parse(getattr(module, query))) == []
