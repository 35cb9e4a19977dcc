"""The alert rules as Prometheus gets them, and by what event each is seen to fire."""

from typing import Any

import yaml

from scripts.console import ROOT

RULES: list[dict[str, Any]] = [
    rule
    for file in sorted((ROOT / "docker" / "prometheus" / "rules").glob("*.yml"))
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
]

#: What `tests/faults/test_alerts.py` lets happen for each alert.
EVENTS = {
    "NoFigures": "Flower is stopped",
    "DaemonSilent": "the daemon is stopped",
    "RunsStuck": "a run is started, and there is no runner",
    "RunQueueStandsStill": "a run is launched, and there is no daemon",
    "TicksFail": "a sensor raises an error at each tick",
    "NoWorkerOnQueue": "a run's message is sent, and there is no runner",
    "StepWaitsTooLong": "a step is sent, and its queue's only worker does not take it",
    "DeliveryLimitHit": "a step ends each process that executes it",
    "CodeMismatch": "a worker with other code joins",
    "NoWorkerWithTheCode": "a step is sent, and its queue's only worker has other code",
    "BrokerMemoryAlarm": "RabbitMQ has less memory than it uses",
    "BrokerDiskAlarm": "RabbitMQ wants more disk than there is",
    "DatabaseConnectionsNearLimit": "somebody holds nine tenths of Postgres's connections",
    "BucketNearlyFull": "MinIO's disk is full",
    "RetentionFails": "Postgres deletes no run, and an old one is to go",
    "BackupPointTooOld": "the repository of backups takes no file of Postgres' journal",
}
#: Alerts whose event can't be made, and why.
NO_EVENT = {
    "HostSilent": "it needs a further host; tests/hosts/test_losses.py sees its figure",
    "BackupTooOld": "each start of the service makes one; its figure is seen by test_restore.py",
    "BackupCopyTooOld": "what was never copied is as old as the service, so a shorter time is never quiet; the same",
    "BackupUnverified": "what was never read is as old as the service; the same",
}

#: Times in the expressions for which no test can wait: the rule's, and the one in its place.
SHORTER = {
    # Above the 30 s after which a daemon shows itself again.
    "DaemonSilent": ("> 180", "> 45"),
    "RunsStuck": ("> 600", "> 5"),
    "RunQueueStandsStill": ("> 3600", "> 5"),
    "StepWaitsTooLong": ("> 1800", "> 5"),
    # So that a step which failed before, on a copy that was kept, counts no more.
    "DeliveryLimitHit": ("[15m]", "[1m]"),
    "NoWorkerWithTheCode": ("[15m]", "[1m]"),
    # Above the half minute between two.
    "BackupPointTooOld": ("> 1800", "> 60"),
}


def shortened(rule: dict[str, Any]) -> str:
    """A rule's expression, with a shorter time where there is one."""
    expression, (time, shorter) = str(rule["expr"]), SHORTER.get(rule["alert"], ("", ""))
    assert time in expression, f"{rule['alert']}: SHORTER names a time that its expression does not have"
    return expression.replace(time, shorter) if time else expression
