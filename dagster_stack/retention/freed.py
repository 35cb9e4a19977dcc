"""What retention has freed, or would free."""

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass
class Freed:
    """Numbers of things, and bytes. Those of rows are what Postgres can use again, without indexes."""

    runs: int = 0
    rows: int = 0
    row_bytes: int = 0
    objects: int = 0
    object_bytes: int = 0
    snapshots: int = 0
    backfills: int = 0

    def add(self, other: "Freed") -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    @property
    def anything(self) -> bool:
        return any(asdict(self).values())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        runs = f"{self.runs:,} runs" if self.runs else ""
        rows = f"{self.rows:,} rows ({in_mb(self.row_bytes)})" if self.rows else ""
        objects = f"{self.objects:,} objects ({in_mb(self.object_bytes)})" if self.objects else ""
        return ", ".join(part for part in (runs, rows, objects) if part) or "nothing"


def in_mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
