"""A dbt project as people have it, on Postgres and on DuckDB: `shop` beside it, served as it is."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.stack import runs
from tests.stack.stack import Stack

PASSWORD = "shop-of-a-test-0123456789"
PARTITION, DAYS = "dagster/partition", ("2024-01-01", "2024-01-02")


#: What the till of the shop has written, and the table of its days: two runs that both make that would be one too many.
TABLES = """
SET ROLE shop;
CREATE TABLE pg_raw_orders (id int, customer text, ordered_on text, cents int);
INSERT INTO pg_raw_orders VALUES (1, 'ada', '2024-01-01', 1000), (2, 'ben', '2024-01-01', 250), (3, 'ada', '2024-01-02', 4000);
CREATE TABLE pg_orders_of_a_day AS SELECT * FROM pg_raw_orders LIMIT 0;
"""


@dataclass(frozen=True)
class Shop:
    """The stack with the project in the place of the example, and runs that were launched at once: all tables, two days."""

    stack: Stack
    deployed: str
    run_id: str
    days: list[str]

    def psql(self, statement: str) -> str:
        return psql(self.stack, "shop", statement)

    def insist(self, run_id: str) -> None:
        assert self.stack.wait_for_run(run_id)["status"] == "SUCCESS", self.stack.failure_texts(run_id)


def psql(stack: Stack, database: str, statement: str) -> str:
    command = ("psql", "-X", "-A", "-t", "-F", "|", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", statement)
    return stack.exec("postgres", *command).stdout.strip()


@pytest.fixture(scope="module")
def shop(stack: Stack, tmp_path_factory: pytest.TempPathFactory, own_code_afterwards: None) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("dbt") / "shop"
    shutil.copytree(Path(__file__).with_name("shop"), folder)
    (folder / ".env").write_text(f"SHOP_PASSWORD={PASSWORD}\nSHOP_PORT=5432\nSHOP_TARGET=file\n")
    psql(stack, "postgres", f"CREATE ROLE shop LOGIN PASSWORD '{PASSWORD}'")
    psql(stack, "postgres", "CREATE DATABASE shop OWNER shop")
    psql(stack, "shop", TABLES)
    try:
        deployed = stack.make("deploy", f"PROJECT={folder}", "DEPLOY=hand-over")
        run_id = stack.launch("everything", location="shop")
        days = [stack.launch("a_day", tags={PARTITION: day}, location="shop") for day in DAYS]
        yield Shop(stack, deployed.stdout + deployed.stderr, run_id, days)
    finally:
        psql(stack, "postgres", "DROP DATABASE IF EXISTS shop WITH (FORCE)")
        psql(stack, "postgres", "DROP ROLE shop")
        stack.exec("worker", "rm", "-f", "/opt/data/shop.duckdb")


def test_the_build_makes_manifests_and_nothing_is_amiss(shop: Shop) -> None:
    assert "the code loads (1 code location)" in shop.deployed
    assert "manifest" not in shop.deployed
    assert "profiles.yml" not in shop.deployed


def test_both_projects_run_on_workers_and_their_tests_are_asset_checks(shop: Shop) -> None:
    shop.insist(shop.run_id)
    # Then tables are in the databases
    assert (
        shop.psql("SELECT customer, orders, spent::int FROM pg_customers ORDER BY 1") == "ada|2|50\nben|1|3"
    )
    read = "import duckdb; print(duckdb.connect('data/shop.duckdb', read_only=True).sql('from duck_customers').fetchall())"
    assert "('ada', 2" in shop.stack.exec("worker-heavy", "python", "-c", read).stdout
    # And checks, rows and assets in the run's log
    events = shop.stack.events(shop.run_id)
    assert sum(event.get("eventType") == "ASSET_CHECK_EVALUATION" for event in events) == 4
    assert shop.stack.metadata(shop.run_id, "tables")["dagster/row_count"] == 2
    assert {each.step for each in runs.executions(shop.stack, shop.run_id)} == {"tables", "shop_duck"}


def test_partitions_run_at_once_by_several_invocations_in_one_project(shop: Shop) -> None:
    for run_id in shop.days:
        shop.insist(run_id)

    assert shop.psql("SELECT id FROM pg_orders_of_a_day ORDER BY id").split() == ["1", "2", "3"]


def test_steps_leave_nothing_of_dbt_behind_and_the_image_has_no_secret(shop: Shop) -> None:
    for run_id in (shop.run_id, *shop.days):
        shop.insist(run_id)
    assert shop.stack.exec("worker", "sh", "-c", "ls -d /tmp/dbt* postgres/logs 2>&1", check=False).returncode
    found: subprocess.CompletedProcess[str] = shop.stack.exec(
        "worker", "grep", "-rl", PASSWORD, "/opt", check=False
    )
    assert not found.stdout
