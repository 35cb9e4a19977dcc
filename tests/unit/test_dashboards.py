"""Grafana's dashboards and how they are provisioned: against Grafana's own model, PromQL's grammar, and what is measured."""

import json
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from dagster_stack.monitoring.gauges import QUESTIONS
from dagster_stack.monitoring.trends import TRENDS
from scripts.console import ROOT
from scripts.dashboards import write
from tests import compose_files
from tests.stack.dashboards import FOLDER, Query, dashboards, panels, queries

PROVISIONING = ROOT / "docker" / "grafana" / "provisioning"
NAMES = ["overview", "queues", "runs", "stores"]
#: The service `metrics`, beside the gauges in present.py: histograms have their buckets.
OURS = {
    *(question.name for question in QUESTIONS),
    "dagster_runs_ended_total", "dagster_steps_ended_total", "dagster_step_redeliveries_total",
    "dagster_steps_failed_by_delivery_limit_total", "dagster_steps_failed_by_code_total",
    "dagster_run_launch_to_start_seconds_bucket", "dagster_run_duration_seconds_bucket",
    "dagster_step_wait_seconds_bucket", "dagster_step_duration_seconds_bucket",
    "dagster_steps", "dagster_step_oldest_wait_seconds", "dagster_metrics_database_seconds",
    "dagster_queue_messages", "dagster_queue_consumers", "dagster_queue_utilisation", "dagster_workers",
    "dagster_worker_processes", "dagster_bucket_bytes", "dagster_bucket_objects", "dagster_code",
}  # fmt: skip
#: The service `backup`.
BACKUPS = {
    "dagster_backup_age_seconds", "dagster_backup_point_age_seconds", "dagster_backup_copy_age_seconds",
    "dagster_backup_verified_age_seconds", "dagster_backup_drill_age_seconds",
}  # fmt: skip
#: Prometheus itself, postgres-exporter, RabbitMQ's plugin (`/metrics`) and MinIO (`/minio/v2/metrics/cluster`).
OTHERS = {
    "ALERTS", "up", "scrape_duration_seconds",
    "pg_up", "pg_stat_database_xact_commit", "pg_stat_database_xact_rollback", "pg_stat_database_blks_read",
    "pg_stat_database_blks_hit", "pg_database_size_bytes",
    "rabbitmq_alarms_memory_used_watermark", "rabbitmq_alarms_free_disk_space_watermark",
    "rabbitmq_alarms_file_descriptor_limit", "rabbitmq_process_resident_memory_bytes",
    "rabbitmq_resident_memory_limit_bytes", "rabbitmq_disk_space_available_bytes",
    "rabbitmq_disk_space_available_limit_bytes", "rabbitmq_connections", "rabbitmq_channels",
    "rabbitmq_global_messages_received_total", "rabbitmq_global_messages_delivered_total",
    "minio_cluster_drive_offline_total", "minio_cluster_capacity_usable_free_bytes",
    "minio_cluster_capacity_usable_total_bytes", "minio_s3_requests_total", "minio_s3_requests_errors_total",
    "minio_s3_traffic_received_bytes", "minio_s3_traffic_sent_bytes",
}  # fmt: skip
#: Series that a healthy or idle stack may not have at all: a panel of them alone would say "No data".
AT_TIMES = BACKUPS | {
    "ALERTS", "dagster_runs_ended_total", "dagster_steps_ended_total", "dagster_step_redeliveries_total",
    "dagster_steps_failed_by_delivery_limit_total", "dagster_steps_failed_by_code_total", "dagster_ticks_failed",
    "dagster_backfill_runs", "dagster_concurrency_slots", "dagster_concurrency_waiting", "dagster_runs",
    "minio_s3_requests_errors_total",
}  # fmt: skip
#: Grafana's ids of the units in use.
UNITS = {"none", "short", "s", "ops", "percentunit", "decbytes", "Bps"}


def where(query: Query) -> str:
    return f"{query.dashboard}: {query.panel}"


def metrics_in(expression: str) -> set[str]:
    """The metrics that a query names. Raises ValueError where it is not PromQL."""
    found: set[str] = set()

    def note(part: Any) -> None:
        selector = getattr(part, "vector_selector", part)
        if isinstance(selector, promql_parser.VectorSelector):
            found.add(str(selector.name))

    promql_parser.walk(promql_parser.parse(expression), note)
    return found


def test_the_files_are_what_the_code_writes() -> None:
    """Else `make dashboards` was forgotten, or somebody edited the JSON."""
    assert {path.name: path.read_text() for path in FOLDER.glob("*.json")} == write.texts()


def test_writing_removes_what_no_code_makes(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")

    write.write(tmp_path)

    assert sorted(path.stem for path in tmp_path.glob("*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_grafanas_model_knows_every_field(name: str) -> None:
    """Read into it and written again nothing is lost: a field of another name or place would be."""
    register_default_plugins()
    dashboard = dashboards()[name]

    again = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))

    again["links"] = [{key: link[key] for key in link if key != "placement"} for link in again["links"]]
    assert again == dashboard


@pytest.mark.parametrize("name", NAMES)
def test_a_dashboard_is_found_and_its_panels_do_not_overlap(name: str) -> None:
    dashboard = dashboards()[name]

    assert dashboard["uid"] == f"dagster-{name}"
    assert dashboard["schemaVersion"] >= 41
    assert dashboard["title"]
    assert dashboard["editable"] is False
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + column, place["y"] + line)
            for column in range(place["w"])
            for line in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_uids_and_titles_are_unique() -> None:
    assert sorted(dashboards()) == NAMES
    for key in ("uid", "title"):
        assert len({dashboard[key] for dashboard in dashboards().values()}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_says_what_it_shows_in_which_unit_from_the_provisioned_source(name: str) -> None:
    source = {"type": "prometheus", "uid": datasource()["uid"]}
    dashboard = dashboards()[name]
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len(set(titles)) >= len(titles) - 2, "a title stands twice under other headings at most"
    for panel in panels(dashboard):
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert panel["datasource"] == source
        assert panel["targets"]
        assert all(target["datasource"] == source for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for variable in dashboard["templating"].get("list", []):
        assert variable["datasource"] == source


@pytest.mark.parametrize("query", queries(), ids=where)
def test_every_query_is_promql_on_metrics_that_exist(query: Query) -> None:
    named = metrics_in(query.expression)

    assert named
    assert named <= OURS | OTHERS | BACKUPS
    assert "$" not in query.expression


@pytest.mark.parametrize(
    "query", [query for query in queries() if metrics_in(query.expression) & AT_TIMES], ids=where
)
def test_what_may_have_no_series_has_a_0_in_its_place(query: Query) -> None:
    assert query.expression.endswith(" or on() vector(0)") or " or 0 * " in query.expression


@pytest.mark.parametrize("trend", TRENDS, ids=lambda trend: trend.key)
def test_the_charts_of_the_page_are_promql_on_metrics_that_exist(trend: Any) -> None:
    for query in trend.queries.values():
        named = metrics_in(query.replace("RANGE", "120s"))
        assert named
        assert named <= OURS


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ("up", {"up"}),
        ("sum by (queue) (dagster_steps{queue=~\".*\"}) or on() vector(0)", {"dagster_steps"}),
        ("1 - sum(a_b) / sum(c_d)", {"a_b", "c_d"}),
        ("histogram_quantile(0.5, sum by (le) (rate(x_bucket[1m])))", {"x_bucket"}),
        ("count(a_x > 0 unless on(queue) b_y > 0)", {"a_x", "b_y"}),
    ],
)  # fmt: skip
def test_metrics_are_read_out_of_a_query(expression: str, named: set[str]) -> None:
    assert metrics_in(expression) == named


# Provisioning.


def datasource() -> dict[str, Any]:
    content = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())
    assert content["apiVersion"] == 1
    (source,) = content["datasources"]
    return dict(source)


def grafana() -> dict[str, Any]:
    return compose_files.services()["grafana"]


def test_the_source_is_the_stacks_prometheus_and_cant_be_changed_in_the_browser() -> None:
    source = datasource()

    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    assert source["access"] == "proxy"
    assert source["editable"] is False


def test_grafana_reads_the_dashboards_from_where_they_are_mounted() -> None:
    content = yaml.safe_load((PROVISIONING / "dashboards" / "stack.yml").read_text())
    (provider,) = content["providers"]

    mounts = {
        inside: ROOT / outside for outside, inside, mode in (each.split(":") for each in grafana()["volumes"])
    }
    assert content["apiVersion"] == 1
    assert provider["allowUiUpdates"] is False
    assert mounts[provider["options"]["path"]] == FOLDER
    assert all(path.is_dir() for path in mounts.values())
    home = grafana()["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (mounts[str(Path(home).parent)] / Path(home).name).is_file()


def test_grafana_is_optional_closed_and_calls_nobody() -> None:
    service = grafana()
    environment = service["environment"]

    assert service["profiles"] == ["grafana"]
    assert "depends_on" not in service
    assert all(mount.endswith(":ro,z") for mount in service["volumes"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["ports"] == ["${BIND_ADDRESS:-127.0.0.1}:${GRAFANA_PORT:-3001}:3000"]
    assert environment["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_PASSWORD:?")
    assert "@sha256:" in (ROOT / ".env.example").read_text().partition("GRAFANA_IMAGE=")[2].partition("\n")[0]
    off = {name for name, value in environment.items() if value == "false"}
    assert off >= {
        "GF_USERS_ALLOW_SIGN_UP", "GF_AUTH_ANONYMOUS_ENABLED", "GF_ANALYTICS_REPORTING_ENABLED",
        "GF_ANALYTICS_CHECK_FOR_UPDATES", "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES", "GF_NEWS_NEWS_FEED_ENABLED",
        "GF_SNAPSHOTS_EXTERNAL_ENABLED", "GF_PLUGINS_PLUGIN_ADMIN_ENABLED",
    }  # fmt: skip
    others = compose_files.services().values()
    assert not any("grafana" in (each.get("depends_on") or {}) for each in others)
