"""`make compact`, without an engine."""

from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import compact
from scripts.console import Failure


class Server:
    """What programs in Postgres's container would print; which tables were compacted."""

    def __init__(self, sizes: dict[str, int], free: int) -> None:
        self.sizes, self.free = sizes, free
        self.statements: list[str] = []
        self.repacked: list[list[str]] = []
        self.broken = False

    def inside(self, *command: str) -> str:
        if command[0] == "df":
            return f"Avail\n{self.free}\n"
        statement = next(word for word in command if word.startswith("--command=")).removeprefix("--command=")
        self.statements.append(statement)
        if statement == compact.TABLES:
            return "".join(
                f"{table} {size}\n" for table, size in sorted(self.sizes.items(), key=lambda each: each[1])
            )
        return ""

    def run_logged(self, title: str, command: list[str], **_: object) -> None:
        if self.broken:
            raise Failure("pg_repack failed")
        self.repacked.append(command)
        self.sizes[title.rsplit(maxsplit=1)[-1]] //= 2


@pytest.fixture
def server(env: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Server]:
    env.write_text("POSTGRES_DB=mine\n")

    def made(free: int = 10**10, **sizes: int) -> Server:
        server = Server(sizes, free)
        monkeypatch.setattr(compact, "inside", server.inside)
        monkeypatch.setattr(compact, "run_logged", server.run_logged)
        monkeypatch.setattr("scripts.compose.compose", lambda: ["compose"])
        return server

    return made


def test_large_tables_are_compacted_the_smallest_first(
    server: Callable[..., Server], capsys: pytest.CaptureFixture[str]
) -> None:
    found = server(event_logs=800_000_000, runs=50_000_000, run_tags=1000)
    compact.compact()
    assert [next(word for word in command if "--table" in word) for command in found.repacked] == [
        "--table=public.runs",
        "--table=public.event_logs",
    ]
    assert all("--dbname=mine" in command and "--no-kill-backend" in command for command in found.repacked)
    shown = capsys.readouterr().out
    assert "event_logs: 800 MB before, 400 MB now" in shown
    assert "the disk has 425 MB more" in shown


def test_without_room_for_a_copy_it_is_refused(server: Callable[..., Server]) -> None:
    found = server(free=900_000_000, event_logs=800_000_000)
    with pytest.raises(Failure, match=r"has 900 MB free, and the copy of its largest table needs 960 MB"):
        compact.compact()
    assert not found.repacked


def test_the_extension_is_there_only_meanwhile(server: Callable[..., Server]) -> None:
    found = server(event_logs=800_000_000)
    found.broken = True
    with pytest.raises(Failure, match="pg_repack failed"):
        compact.compact()
    assert found.statements[-1] == "DROP EXTENSION IF EXISTS pg_repack"


def test_small_tables_stay(server: Callable[..., Server], capsys: pytest.CaptureFixture[str]) -> None:
    found = server(event_logs=1000)
    compact.compact()
    assert not found.repacked
    assert "no table is large enough" in capsys.readouterr().out


def test_an_outside_postgres_is_its_operators(env: Path) -> None:
    env.write_text("POSTGRES_HOST=db.example.com\n")
    with pytest.raises(Failure, match="Postgres is an outside store"):
        compact.compact()
