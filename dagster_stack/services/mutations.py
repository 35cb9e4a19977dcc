"""All that changes something through Dagit: what each mutation asks for, and the record of who did it.

Dagster's resolvers check permissions by themselves. Here each mutation is checked before its resolver, so that one that
forgets to, as a new one may, is for admins alone until it has a line below; and what is done is recorded first.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from inspect import isawaitable
from typing import Any

from dagster import DagsterInstance
from dagster._core.definitions.asset_key import AssetKey
from dagster._core.workspace.permissions import Permissions
from dagster_graphql.schema.errors import GrapheneUnauthorizedError
from graphql import GraphQLError, GraphQLResolveInfo, GraphQLUnionType, get_named_type
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse

from dagster_stack.patches.dagster import REPORT_REFUSAL, WEBSERVER_CONTEXT, WEBSERVER_SCHEMA
from dagster_stack.services.identity import RANKS, Role
from dagster_stack.services.roles import UserProcessContext, UserRequestContext, least
from dagster_stack.store.audit import acting_for
from dagster_stack.store.sqlstate import sentence

Resolver = Callable[..., Any]

_LAUNCH, _AGAIN = ("launch_pipeline_execution",), ("launch_pipeline_reexecution",)
_TERMINATE, _DELETE = ("terminate_pipeline_execution",), ("delete_pipeline_run",)
_BACKFILL, _SENSOR = ("launch_partition_backfill",), ("edit_sensor",)
_RELOAD, _POOLS = ("reload_repository_location",), ("edit_concurrency_limit",)
_REPORT, _COMPONENTS = ("report_runless_asset_events",), ("edit_app_managed_components",)

#: All mutations of Dagster, with the permissions that each asks for.
MUTATIONS: dict[str, tuple[str, ...]] = {
    "launchPipelineExecution": _LAUNCH,
    "launchRun": _LAUNCH,
    "launchMultipleRuns": _LAUNCH,
    "launchPipelineReexecution": _AGAIN,
    "launchRunReexecution": _AGAIN,
    "terminatePipelineExecution": _TERMINATE,
    "terminateRun": _TERMINATE,
    "terminateRuns": _TERMINATE,
    "deletePipelineRun": _DELETE,
    "deleteRun": _DELETE,
    "launchPartitionBackfill": _BACKFILL,
    "resumePartitionBackfill": _BACKFILL,
    "reexecutePartitionBackfill": _BACKFILL,
    "cancelPartitionBackfill": ("cancel_partition_backfill",),
    "startSchedule": ("start_schedule",),
    "stopRunningSchedule": ("stop_running_schedule",),
    "resetSchedule": ("start_schedule", "stop_running_schedule"),
    "scheduleDryRun": ("schedule_dry_run",),
    "startSensor": _SENSOR,
    "stopSensor": _SENSOR,
    "resetSensor": _SENSOR,
    "setSensorCursor": ("update_sensor_cursor",),
    "sensorDryRun": ("sensor_dry_run",),
    "setAutoMaterializePaused": ("toggle_auto_materialize",),
    "addDynamicPartition": ("edit_dynamic_partitions",),
    "deleteDynamicPartitions": ("edit_dynamic_partitions",),
    "reportRunlessAssetEvents": _REPORT,
    "reportAssetCheckEvaluations": _REPORT,
    "wipeAssets": ("wipe_assets",),
    "reloadRepositoryLocation": _RELOAD,
    "shutdownRepositoryLocation": _RELOAD,
    "reloadWorkspace": ("reload_workspace",),
    "setConcurrencyLimit": _POOLS,
    "deleteConcurrencyLimit": _POOLS,
    "freeConcurrencySlots": _POOLS,
    "freeConcurrencySlotsForRun": _POOLS,
    "setAppManagedComponent": _COMPONENTS,
    "deleteAppManagedComponent": _COMPONENTS,
    "refreshComponentState": ("refresh_component_state",),
}
#: Asked for as well when an argument of a mutation is true.
FURTHER = {("deleteDynamicPartitions", "wipeMaterializations"): "wipe_assets"}
#: Dagster asks for none, and here everybody may, without a record. The page sends both by itself: the first one does
#: nothing, since telemetry is off; the second one notes that the welcome was shown, for all users.
OPEN = frozenset({"logTelemetry", "setNuxSeen"})

#: What of a mutation's arguments the audit has, and how it calls that. Never config and tags, which may hold secrets.
TARGETS = {
    "runId": "run",
    "runIds": "runs",
    "parentRunId": "parent run",
    "jobName": "job",
    "pipelineName": "job",
    "stepKey": "step",
    "stepKeys": "steps",
    "repositoryLocationName": "location",
    "locationName": "location",
    "scheduleName": "schedule",
    "sensorName": "sensor",
    "id": "id",
    "job_origin_id": "id",
    "schedule_origin_id": "id",
    "backfillId": "backfill",
    "partitionSetName": "partition set",
    "partitionsDefName": "partitions",
    "partitionKey": "partition",
    "partitionKeys": "partitions",
    "partitionNames": "partitions",
    "allPartitions": "all partitions",
    "start": "from",
    "end": "to",
    "path": "asset",
    "checkName": "check",
    "wipeMaterializations": "wipe",
    "concurrencyKey": "pool",
    "limit": "limit",
    "paused": "paused",
    "componentId": "component",
    "defsStateKey": "state",
}
#: Those that hold the id of a schedule or sensor.
BY_ID = frozenset({"id", "job_origin_id", "schedule_origin_id"})
#: Arguments in which the audit looks for these.
AROUND = frozenset({
    "executionParams", "executionParamsList", "executionMetadata", "reexecutionParams", "backfillParams", "selector",
    "repositorySelector", "schedule_selector", "sensor_selector", "assetPartitionRanges", "partitionsByAssets",
    "partitions", "range", "ranges", "assetSelection", "assetKey", "eventParams",
})  # fmt: skip


def needed(mutation: str, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """The permissions that a mutation with these arguments asks for."""
    further = (
        permission
        for (name, argument), permission in FURTHER.items()
        if name == mutation and arguments.get(argument)
    )
    return (*MUTATIONS[mutation], *further)


def role_for(mutation: str, arguments: Mapping[str, Any]) -> Role:
    """The least role that may do it; one that is not listed is for admins."""
    roles = [least(each) for each in needed(mutation, arguments)] if mutation in MUTATIONS else [Role.ADMIN]
    return max(roles, key=RANKS.__getitem__)


def target_of(arguments: Mapping[str, Any]) -> str:
    """What a mutation is about, for people."""
    return ", ".join(dict.fromkeys(_targets(arguments)))


def stopped(context: UserRequestContext, arguments: Mapping[str, Any]) -> str | None:
    """The schedule or sensor that is named by an id alone, as those are that somebody stops; None when there is none."""
    ids = {str(arguments.get(name) or "").partition(":")[0] for name in BY_ID}
    for location in context.code_locations:
        for repository in location.get_repositories().values():
            for kind, found in (
                ("schedule", repository.get_schedules()),
                ("sensor", repository.get_sensors()),
            ):
                for each in found:
                    if each.get_remote_origin_id() in ids:
                        return f"{kind} {each.name}, location {location.name}"
    return None


def _targets(arguments: Mapping[str, Any]) -> Iterator[str]:
    for name, value in arguments.items():
        if name in AROUND:
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, Mapping):
                    yield from _targets(each)
        elif name in TARGETS and value is not None and value is not False:
            separator = "/" if name == "path" else " "
            texts = (
                [str(each) for each in value]
                if isinstance(value, list)
                else []
                if value is True
                else [str(value)]
            )
            yield " ".join([TARGETS[name], separator.join(texts)]).strip()


# --- mutations of GraphQL ----------------------------------------------------------------------------------------


def guard(schema: Any) -> Any:
    """Let each mutation of a schema of graphene's be checked and recorded before it is done. Queries are what they were."""
    mutations = schema.graphql_schema.mutation_type
    for name, field in (mutations.fields if mutations else {}).items():
        if name not in OPEN and field.resolve:
            is_told = "UnauthorizedError" in type_names(field.type)
            field.resolve = guarded(name, field.resolve, is_told)
    return schema


def type_names(type_: Any) -> set[str]:
    """Of a union's types."""
    named = get_named_type(type_)
    return {each.name for each in named.types} if isinstance(named, GraphQLUnionType) else set()


def guarded(mutation: str, resolve: Resolver, is_told: bool) -> Resolver:
    """A mutation's resolver that checks and records first. `is_told`: its answer may be Dagster's own refusal."""

    def checked(root: Any, info: GraphQLResolveInfo, **arguments: Any) -> Any:
        context: UserRequestContext = info.context
        wanted = role_for(mutation, arguments)
        allowed = context.identity.role.includes(wanted)
        try:
            by_id = not BY_ID.isdisjoint(arguments) and stopped(context, arguments)
            context.record(mutation, by_id or target_of(arguments), allowed)
        except SQLAlchemyError as error:
            raise failure(info, unrecorded(mutation, error)) from error
        if not allowed:
            reason = refusal(context, mutation, wanted)
            if is_told:
                return GrapheneUnauthorizedError(message=reason)  # type: ignore[no-untyped-call]
            raise failure(info, reason)
        user = context.identity.user
        note_termination(mutation, arguments, context.instance, user)
        with acting_for(user):
            result = resolve(root, info, **arguments)
        return finished(result, user) if isawaitable(result) else result

    return checked


async def finished(result: Awaitable[Any], user: str) -> Any:
    with acting_for(user):
        return await result


def refusal(context: UserRequestContext, operation: str, wanted: Role) -> str:
    user = context.identity
    return (
        f"{user.user or 'Nobody'} may not do {operation}: it needs the role {wanted.value}, and yours is"
        f" {user.role.value}. An admin gives you another one: make user NAME=… ROLE={wanted.value}"
    )


def unrecorded(operation: str, error: SQLAlchemyError) -> str:
    return (
        f"{operation} was not done, since it can't be recorded who did it: {sentence(error)}. Try again when Postgres"
        " answers: `make status` tells."
    )


def failure(info: GraphQLResolveInfo, message: str) -> GraphQLError:
    """An error that is the user's and not the server's: with a path it is passed on as it is."""
    return GraphQLError(message, nodes=info.field_nodes, path=info.path.as_list())


def note_termination(
    mutation: str, arguments: Mapping[str, Any], instance: DagsterInstance, user: str
) -> None:
    """Say in the logs of runs who ends them."""
    if MUTATIONS.get(mutation) != _TERMINATE:
        return
    for run_id in arguments.get("runIds") or [arguments.get("runId")]:
        run = instance.get_run_by_id(run_id) if run_id else None
        if run and not run.is_finished:
            instance.report_engine_event(f"Terminated by {user}.", run)


# --- reports over HTTP -------------------------------------------------------------------------------------------


def report_refusal(context: UserRequestContext, asset_key: AssetKey) -> JSONResponse | None:
    """In the place of Dagster's own check, which each of the three routes asks before it stores a report."""
    assert isinstance(context.source, HTTPConnection)
    operation = context.source.url.path.strip("/").split("/")[0]
    allowed = context.has_permission_for_selector(Permissions.REPORT_RUNLESS_ASSET_EVENTS, asset_key)
    try:
        context.record(operation, f"asset {'/'.join(asset_key.path)}", allowed)
    except SQLAlchemyError as error:
        return JSONResponse({"error": unrecorded(operation, error)}, 503)
    if allowed:
        return None
    return JSONResponse({"error": refusal(context, operation, least(_REPORT[0]))}, 403)


def use_in_webserver() -> None:
    """Let Dagster's webserver in this process know users, check what they do, and record it."""
    WEBSERVER_CONTEXT.replace(UserProcessContext)
    make_schema = WEBSERVER_SCHEMA.found()
    WEBSERVER_SCHEMA.replace(lambda: guard(make_schema()))
    REPORT_REFUSAL.replace(report_refusal)
