"""The alert rules: what each says, where it is explained, and that it is tested."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.console import ROOT
from tests.alert_rules import EVENTS, NO_EVENT, RULES, SHORTER, shortened

PAGES = ROOT / "docs" / "runbooks"
TESTS = [
    each
    for file in sorted((ROOT / "tests" / "prometheus").glob("*.yml"))
    for test in yaml.safe_load(file.read_text())["tests"]
    for each in test["alert_rule_test"]
]


def names(rule: dict[str, Any]) -> str:
    return str(rule["alert"])


@pytest.mark.parametrize("rule", RULES, ids=names)
def test_a_rule_says_what_it_is_and_where_the_cure_stands(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"]
    assert (ROOT / rule["annotations"]["runbook"]).is_file()


@pytest.mark.parametrize("rule", RULES, ids=names)
def test_a_rule_is_tested_when_it_fires_and_when_it_does_not(rule: dict[str, Any]) -> None:
    expected = [bool(test["exp_alerts"]) for test in TESTS if test["alertname"] == rule["alert"]]
    assert set(expected) == {True, False}


def test_each_alert_has_an_event_in_the_drills_or_a_reason_for_none() -> None:
    alerts = [rule["alert"] for rule in RULES]
    assert sorted([*EVENTS, *NO_EVENT]) == sorted(alerts)
    assert SHORTER.keys() <= EVENTS.keys()


@pytest.mark.parametrize("rule", RULES, ids=names)
def test_the_drill_asks_a_rules_own_expression_but_for_its_times(rule: dict[str, Any]) -> None:
    assert re.sub(r"\d+", "", shortened(rule)) == re.sub(r"\d+", "", rule["expr"])


def test_every_page_belongs_to_a_rule_and_the_table_names_all() -> None:
    pages = {Path(rule["annotations"]["runbook"]).name for rule in RULES}
    assert {page.name for page in PAGES.glob("*.md")} == pages | {"README.md"}
    table = (PAGES / "README.md").read_text()
    assert [rule["alert"] for rule in RULES if f"`{rule['alert']}`" not in table] == []
