"""Parts of Dagster and of its libraries. What only has a leading underscore in its module's name is no part of these."""

from functools import partial

from dagster_stack.patches.part import Part

# fmt: off
_dagster = partial(Part, read="dagster 1.13.27")
_library = partial(Part, read="dagster-aws, dagster-celery, dagster-postgres 0.29.27")

# --- replaced: logs -----------------------------------------------------------------------------------------

#: Of runs, and of sensors and schedules.
CONSOLE_LOGGERS = tuple(
    _dagster(f"{module}:create_console_logger", "name, level",
        "each step would set up a coloured console of its own, beside the service's log.")
    for module in ("dagster._loggers", "dagster._core.definitions.instigation_logger")
)
#: Of Dagster's commands, by their modules.
CONFIGURE_LOGGERS = {
    module: _dagster(f"{module}:configure_loggers", "handler, formatter, log_level",
        "a command of Dagster's sets up handlers, and each line would be printed twice.")
    for module in ("dagster._cli.api", "dagster._daemon.controller", "dagster_webserver.cli")
}

# --- replaced: services -------------------------------------------------------------------------------------

DAEMON_INTERVAL = _dagster("dagster._daemon.controller:DEFAULT_DAEMON_INTERVAL_SECONDS", "30",
    "a backfill begins, and goes on, only every 30 s, and no setting changes that.",
    upstream="https://github.com/dagster-io/dagster/issues/11649")
CHECK_WORKSPACE = _dagster("dagster._daemon.controller:DagsterDaemonController.check_workspace_freshness",
    "self, last_workspace_update_time",
    "the daemon would launch with the old definitions for up to a minute after a reload in Dagit.")
DAEMON_START = _dagster("dagster._daemon.controller:DagsterDaemonController.__init__",
    "self, workspace_process_context, daemons, grpc_server_registry, heartbeat_interval_seconds,"
    " heartbeat_tolerance_seconds, error_interval_seconds",
    "a daemon that stands by has loaded the code already when it takes over, and the constructor starts the threads.")
RELOADS = tuple(
    _dagster(f"dagster._core.workspace.context:WorkspaceProcessContext.{name}", shape,
        "workers must know of a reload in Dagit, and Dagster tells nobody.")
    for name, shape in (("reload_code_location", "self, name"), ("reload_workspace", "self"))
)
CODE_SERVER_COMMAND = _dagster("dagster._grpc.server:get_python_environment_entry_point", "executable_path",
    "a code server has the service's log, and the stack's defaults, only as a program of ours.")
CODE_SERVER_START = _dagster("dagster._grpc.server:open_ipc_subprocess", "parts, kwargs",
    "each code server would load the platform anew: 200 MB and 4 s for each code location.")
WEBSERVER_APP = _dagster("dagster_webserver.cli:create_app_from_workspace_process_context",
    "workspace_process_context, path_prefix, live_data_poll_rate, kwargs",
    "no option adds the middleware that refuses foreign pages.")
WEBSERVER_CONTEXT = _dagster("dagster_webserver.cli:WorkspaceProcessContext",
    "instance, workspace_load_target, version, read_only, grpc_server_registry, code_server_log_level, server_command",
    "no option gives a user's requests the permissions of their role.")
WEBSERVER_SCHEMA = _dagster("dagster_webserver.webserver:create_schema", "",
    "each mutation is recorded, and refused to who may not do it, also one whose resolver forgets to ask.")
REPORT_REFUSAL = _dagster("dagster_webserver.external_assets:_unauthorized_response_or_none", "context, asset_key",
    "each report of an asset is recorded, and only this knows the asset before the report is stored.")
STATUS_CODE = _dagster("dagster_webserver.graphql:GraphQLServer._determine_status_code",
    "self, resolver_errors, captured_errors", "HTTP 500 hides the answer when it is Postgres that refused a value.")
JSON_RESPONSE = _dagster("dagster_webserver.graphql:JSONResponse",
    "content, status_code, headers, media_type, background",
    "a lone surrogate in an answer can't be encoded: HTTP 500.")

# --- replaced: what a project gets that names nothing ---------------------------------------------------------

DEFAULT_EXECUTOR = _dagster("dagster._core.definitions.job_definition:DEFAULT_EXECUTOR_DEF", "ExecutorDefinition",
    "an instance can't name the executor of jobs that name none, and `Definitions.merge` refuses two that do.",
    upstream="https://github.com/dagster-io/dagster/issues/8473")
MULTIPROCESS = _dagster("dagster._core.definitions.executor_definition:_core_multiprocess_executor_creation",
    "config", "EXECUTOR=celery maps jobs with Dagster's multiprocess executor to the workers.")
TELEMETRY = _dagster("dagster._core.telemetry:_get_instance_telemetry_enabled", "instance",
    "an instance that user code makes has no dagster.yaml, which says no, and no folder for an id.")
STATE_FOLDER = _dagster("dagster.components.utils.project_paths:get_local_state_dir", "key, project_root",
    "components keep their state beside the code, which can only be read.")
BACKOFF = _dagster("dagster._utils.backoff:backoff", "fn, retry_on, args, kwargs, max_retries, delay_generator",
    "DuckDB's resource tries for 102 s to open a file in a folder that can only be read.",
    upstream="https://github.com/dagster-io/dagster/issues/33802")

# --- replaced: what is stored ---------------------------------------------------------------------------------

ERROR_FROM_TRACEBACK = _dagster("dagster_shared.error:SerializableErrorInfo.from_traceback", "tb",
    "it follows a chain of errors by recursion, and keeps a text of any length.")
SERIALIZE_RUN = _dagster("dagster._core.storage.runs.sql_run_storage:serialize_value",
    "val, whitelist_map, json_kwargs", "it sorts keys, and the config of a run keeps the order of its launch.")

# --- used though private, or repeated ----------------------------------------------------------------------------

_POOLS = "a run that goes on with another process claims no slot again for a step that has ended."
_KEYS = "objects that Dagster's own IO managers have stored stay readable under their names."
_COLUMNS = "this project reads and writes rows of the table itself, many at once."

USED = (
    *(
        _dagster(f"dagster._core.execution.plan.instance_concurrency_context:InstanceConcurrencyContext.{name}",
            "attribute", _POOLS)
        for name in ("_instance", "_run_id", "_pending_claims", "_pending_timeouts")
    ),
    *(
        _dagster(f"dagster._core.storage.upath_io_manager:UPathIOManager.{name}", "self, context", _KEYS)
        for name in ("_get_path", "_get_path_without_extension")
    ),
    _dagster("dagster._core.run_coordinator.queued_run_coordinator:QueuedRunCoordinator.dequeue_interval_seconds",
        "property", "the run queue looks every half second, and Dagster's setting takes whole ones."),
    *(
        _library(f"dagster_celery.tasks:{name}", shape,
            "tasks of dagster-celery's own executor and launcher are executed with one more argument before theirs.")
        for name, shape in (
            ("create_task", "celery_app, task_kwargs"),
            ("create_execute_job_task", "celery, task_kwargs"),
            ("create_resume_job_task", "celery, task_kwargs"),
        )
    ),
    _dagster("dagster._core.instance:MayHaveInstanceWeakref._instance", "property",
        "storages and launchers have no public way to their instance."),
    _dagster("dagster._daemon.controller:DagsterDaemonController._instance", "attribute",
        "the daemon's loop has no public way to its instance."),
    _dagster("dagster._core.execution.context.output:OutputContext._step_context", "attribute",
        "an IO manager asks for the lease of its step."),
    _dagster("dagster._core.execution.context.system:StepExecutionContext._step_launcher", "attribute",
        "a step's time limit holds for its user code alone."),
    _dagster("dagster._core.definitions.job_definition:JobDefinition._tags", "attribute",
        "what a step changes of its job's tags is undone."),
    _library("dagster_postgres.event_log:PostgresEventLogStorage._event_to_row", "self, event",
        "many events are stored by one statement."),
    _library("dagster_postgres.event_log:PostgresEventLogStorage._store_asset_event", "self, conn, event, event_id",
        "many events are stored by one statement."),
    _library("dagster_postgres.event_log:PostgresEventLogStorage._store_asset_event_tags",
        "self, conn, events, event_ids", "many events are stored by one statement."),
    _library("dagster_postgres.event_log:PostgresEventLogStorage._connect", "self",
        "event, run and schedule storage of a process share one pool of connections."),
    _library("dagster_postgres.run_storage:PostgresRunStorage._get_run_by_id", "self, run_id",
        "a run's status is read inside the transaction that changes it."),
    _library("dagster_postgres.run_storage:PostgresRunStorage._engine", "attribute",
        "event, run and schedule storage of a process share one pool of connections."),
    *(
        _library(f"dagster_aws.s3.compute_log_manager:S3ComputeLogManager.{name}", "attribute",
            "the constructor, which sets it, makes an S3 client of its own: 15 MB and 150 ms for each process.")
        for name in (
            "_s3_session", "_s3_bucket", "_s3_prefix", "_upload_interval", "_local_manager",
            "_subscription_manager", "_inst_data",
        )
    ),
    _library("dagster_aws.s3.compute_log_manager:S3ComputeLogManager._s3_key", "self, log_key, io_type, partial",
        "output is uploaded, and read, under Dagster's own names."),
    *(
        _dagster(f"dagster._core.storage.compute_log_manager:CapturedLogSubscription.{name}", "attribute",
            "a subscription in Dagit looks for the end of its output.")
        for name in ("_manager", "_log_key")
    ),
    _dagster("dagster._core.execution.context_creation_job:execution_context_event_generator",
        "job, execution_plan, run_config, dagster_run, instance, retry_mode, scoped_resources_builder_cm,"
        " raise_on_error, output_capture, step_dependency_config",
        "`step/step_context.py` does the same with a job that is loaded and validated already.",
        source="7e19a53d966e"),
    *(
        _dagster(f"dagster._core.storage.{table}", f"columns {columns}", _COLUMNS)
        for table, columns in (
            (
                "event_log.schema:SqlEventLogStorageTable",
                "id, run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition",
            ),
            (
                "runs.schema:RunsTable",
                "id, run_id, snapshot_id, pipeline_name, mode, status, run_body, partition, partition_set,"
                " create_timestamp, update_timestamp, start_time, end_time, backfill_id",
            ),
            ("runs.schema:RunTagsTable", "id, run_id, key, value"),
            ("runs.schema:DaemonHeartbeatsTable", "id, daemon_type, daemon_id, timestamp, body"),
            (
                "runs.schema:BulkActionsTable",
                "id, key, status, timestamp, body, action_type, selector_id, job_name",
            ),
            (
                "event_log.schema:ConcurrencySlotsTable",
                "id, concurrency_key, run_id, step_key, deleted, create_timestamp",
            ),
            (
                "schedules.schema:JobTable",
                "id, job_origin_id, selector_id, repository_origin_id, status, job_type, job_body, create_timestamp,"
                " update_timestamp",
            ),
            (
                "schedules.schema:JobTickTable",
                "id, job_origin_id, selector_id, status, type, timestamp, tick_body, create_timestamp, update_timestamp",
            ),
            (
                "event_log.schema:PendingStepsTable",
                "id, concurrency_key, run_id, step_key, priority, assigned_timestamp, create_timestamp",
            ),
        )
    ),
)
