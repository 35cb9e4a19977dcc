"""Prometheus's own tool on its configuration, and on the tests of each rule in tests/prometheus."""

from scripts.console import ROOT
from tests.stack.monitoring import Monitoring
from tests.stack.stack import Stack

TESTS = ROOT / "tests" / "prometheus"


def promtool(stack: Stack, command: str) -> str:
    """What promtool of the image says; fails when it finds anything."""
    image = f"{stack.project}/prometheus"
    mount = f"{TESTS}:/tests:ro"
    return stack.docker(
        "run",
        "--rm",
        "--network",
        "none",
        "-v",
        mount,
        "--entrypoint",
        "sh",
        image,
        "-c",
        f"promtool {command}",
    ).stdout


def test_every_rule_fires_when_it_should_and_only_then(stack: Stack, monitoring: Monitoring) -> None:
    said = promtool(stack, "test rules /tests/*.yml")
    assert said.count("SUCCESS") == len(list(TESTS.glob("*.yml")))


def test_the_configuration_has_no_mistake(stack: Stack, monitoring: Monitoring) -> None:
    assert (
        "SUCCESS"
        in stack.exec("prometheus", "promtool", "check", "config", "/etc/prometheus/prometheus.yml").stdout
    )


def test_prometheus_has_loaded_every_rule_and_none_fails(monitoring: Monitoring) -> None:
    groups = monitoring.get("PROMETHEUS_PORT", "/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) >= 10
    assert {rule["name"]: rule["lastError"] for rule in rules if rule.get("lastError")} == {}
