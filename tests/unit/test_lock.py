"""`make lock`: what moves, what stays, what is refused. Real uv, with packages made here and no network."""

import contextlib
import re
from pathlib import Path

import pytest

from scripts import lock, uv, venv
from scripts.console import ROOT, Failure
from tests.unit.wheels import no_network, wheel

UV = ROOT / ".venv/bin/uv"
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


class Checkout:
    """A checkout with a pyproject.toml of its own and an index of wheels; `lock` works there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.index = folder, folder / "index"
        (folder / "requirements").mkdir()
        self.asks(["dagster==1.13.*", "frame"])
        (folder / "requirements/build.in").write_text("frame\n")
        (folder / "requirements/flights.in").write_text("frame\n")
        wheel(self.index, "dagster", "1.13.27")
        wheel(self.index, "frame", "1.0")

    def asks(self, requirements: list[str]) -> None:
        (self.folder / "pyproject.toml").write_text(
            f'[project]\nname = "x"\nversion = "0"\ndependencies = {requirements}\n[dependency-groups]\ndev = ["frame"]\n'
        )

    def path(self, name: str = "stack") -> Path:
        return self.folder / "requirements" / f"{name}.lock"

    def locked(self, name: str = "stack") -> list[str]:
        return [line.split()[0] for line in self.path(name).read_text().splitlines() if "==" in line]


ALL = dict(lock.LOCKS)


@pytest.fixture
def _all_locks(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the stack's alone, which is enough for most of what is to be seen."""
    monkeypatch.setattr(lock, "LOCKS", ALL)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    checkout = Checkout(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lock, "ROOT", tmp_path)
    monkeypatch.setattr(lock, "LOCKS", {"stack": lock.LOCKS["stack"]})
    monkeypatch.setattr(uv, "ensure", lambda: UV)
    for name, value in no_network(tmp_path, checkout.index).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("UPGRADE", raising=False)
    return checkout


@pytest.mark.usefixtures("_all_locks")
def test_a_first_lock_has_hashes_and_no_address(checkout: Checkout) -> None:
    lock.lock()

    assert checkout.locked() == ["dagster==1.13.27", "frame==1.0"]
    for name in ("stack", "build", "dev"):
        assert HASH.search(checkout.path(name).read_text())
        assert "://" not in checkout.path(name).read_text()


def test_what_is_locked_stays_though_newer_versions_are_there(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    lock.lock()
    wheel(checkout.index, "frame", "2.0")
    capsys.readouterr()

    lock.lock()

    assert "frame==1.0" in checkout.locked()
    assert "stack.lock: as it was (2 packages)" in capsys.readouterr().out


def test_a_new_package_moves_no_other_and_is_said(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a locked package of which there is a newer version
    lock.lock()
    wheel(checkout.index, "frame", "2.0")
    wheel(checkout.index, "plot", "3.1", "frame")

    # When another one is asked for, and later no longer
    checkout.asks(["dagster==1.13.*", "frame", "plot"])
    lock.lock()
    added = capsys.readouterr().out
    checkout.asks(["dagster==1.13.*", "frame"])
    lock.lock()
    removed = capsys.readouterr().out

    # Then only that one came and went
    assert checkout.locked() == ["dagster==1.13.27", "frame==1.0"]
    assert "added plot 3.1" in added
    assert "removed plot 3.1" in removed


@pytest.mark.parametrize(
    ("upgrade", "locked"),
    [
        ("frame", ["frame==2.0", "plot==1.0"]),
        ("frame, plot", ["frame==2.0", "plot==2.0"]),
        ("frame==1.5", ["frame==1.5", "plot==1.0"]),
        ("all", ["frame==2.0", "plot==2.0"]),
    ],
)
def test_only_what_is_asked_is_upgraded(
    checkout: Checkout,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    upgrade: str,
    locked: list[str],
) -> None:
    wheel(checkout.index, "plot", "1.0")
    checkout.asks(["dagster==1.13.*", "frame", "plot"])
    lock.lock()
    for name, version in [("frame", "1.5"), ("frame", "2.0"), ("plot", "2.0")]:
        wheel(checkout.index, name, version)

    monkeypatch.setenv("UPGRADE", upgrade)
    lock.lock()

    assert checkout.locked()[1:] == locked
    assert f"moved frame 1.0 → {locked[0].partition('==')[2]}" in capsys.readouterr().out


@pytest.mark.parametrize("upgrade", ["pandsa", "--offline", "frame plot"])
def test_a_name_that_no_lock_has_is_refused_with_the_cure(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, upgrade: str
) -> None:
    lock.lock()
    monkeypatch.setenv("UPGRADE", upgrade)

    with pytest.raises(Failure, match=r"no lock has such a package\. A new one goes into pyproject\.toml"):
        lock.lock()


def test_a_lock_that_can_not_be_installed_is_corrected(checkout: Checkout) -> None:
    # Given a lock with a package that no index has, and one of a version that is gone
    lock.lock()
    gone = "0" * 64
    text = checkout.path().read_text().replace("frame==1.0", "frame==0.9")
    checkout.path().write_text(f"{text}ghost==1.0 \\\n    --hash=sha256:{gone}\n")

    lock.lock()

    assert checkout.locked() == ["dagster==1.13.27", "frame==1.0"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: f"<<<<<<< ours\n{text}=======\nframe==7 \\\n    --hash=sha256:12\n>>>>>>> theirs\n",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("sha256:", "sha256:zz"),
        lambda _: "\x00\x01",
        lambda _: "",
    ],
    ids=["a merge", "half of it", "hashes", "no text", "nothing"],
)
def test_a_damaged_lock_is_written_anew(checkout: Checkout, damage) -> None:  # type: ignore[no-untyped-def]
    lock.lock()
    good = checkout.path().read_text()
    checkout.path().write_text(damage(good))

    lock.lock()

    assert checkout.path().read_text() == good


def test_what_conflicts_is_said_with_both_sides_and_nothing_changes(checkout: Checkout) -> None:
    # Given a package that wants another version than pyproject.toml
    lock.lock()
    before = checkout.path().read_text()
    wheel(checkout.index, "frame", "9.0")
    wheel(checkout.index, "plot", "3.1", "frame>=9")
    checkout.asks(["dagster==1.13.*", "frame<2", "plot"])

    with pytest.raises(Failure) as refused:
        lock.lock()

    # Then the sentence names them, and the cure
    text = " ".join(str(refused.value).split())
    assert "plot" in text
    assert "frame>=9" in text
    assert "frame<2" in text
    assert "pyproject.toml: allow other versions there" in text
    assert checkout.path().read_text() == before


# --- libraries of Dagster's ----------------------------------------------------------------------------


def test_a_library_of_another_dagster_is_replaced_by_the_one_that_belongs(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given an early release, of a higher number for a resolver's eyes, that names no Dagster
    wheel(checkout.index, "dagster-frames", "0.29.27", "dagster==1.13.27")
    wheel(checkout.index, "dagster-frames", "0.31.0")
    checkout.asks(["dagster==1.13.*", "dagster-frames"])

    lock.lock()

    assert "dagster-frames==0.29.27" in checkout.locked()
    assert "dagster-frames 0.31.0: of another Dagster than 1.13.27" in capsys.readouterr().out


def test_a_library_of_another_dagster_is_refused_where_the_right_one_conflicts(checkout: Checkout) -> None:
    # Given the right release, which wants an older package than the rest
    wheel(checkout.index, "dagster-frames", "0.11.14")
    wheel(checkout.index, "dagster-frames", "0.29.27", "dagster==1.13.27", "frame<1")
    checkout.asks(["dagster==1.13.*", "frame>=1", "dagster-frames"])

    with pytest.raises(Failure) as refused:
        lock.lock()

    text = " ".join(str(refused.value).split())
    assert "dagster-frames 0.11.14 does not belong to Dagster 1.13.27" in text
    assert "frame<1" in text
    assert not checkout.path().exists()


def test_a_package_of_others_may_be_named_like_a_library(checkout: Checkout) -> None:
    wheel(checkout.index, "dagster-evidence", "0.3.1", "dagster>=1.9")
    checkout.asks(["dagster==1.13.*", "dagster-evidence"])

    lock.lock()

    assert "dagster-evidence==0.3.1" in checkout.locked()


def test_dagsters_parts_are_upgraded_together(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(checkout.index, "dagster-frames", "0.29.27", "dagster==1.13.27")
    checkout.asks(["dagster==1.13.*", "dagster-frames"])
    lock.lock()
    wheel(checkout.index, "dagster", "1.13.28")
    wheel(checkout.index, "dagster-frames", "0.29.28", "dagster==1.13.28")

    monkeypatch.setenv("UPGRADE", "dagster")
    lock.lock()

    assert checkout.locked() == ["dagster==1.13.28", "dagster-frames==0.29.28"]


# --- uv on this host -----------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would install uv, which are not run."""
    seen: list[list[str]] = []

    def run_logged(title: str, command: list[str], **_: object) -> None:
        seen.append(command)
        (tmp_path / "uv/bin").mkdir(exist_ok=True)
        (tmp_path / "uv/bin/uv").touch()

    monkeypatch.setattr(uv, "FOLDER", tmp_path / "uv")
    monkeypatch.setattr(uv, "LOCK", tmp_path / "build.lock")
    monkeypatch.setattr(venv, "make", lambda folder: folder.mkdir(exist_ok=True))
    monkeypatch.setattr(uv, "run_logged", run_logged)
    return seen


def test_uv_alone_is_installed_once_in_the_locked_version(installed: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "build.lock").write_text(
        f"frame==1 \\\n    --hash=sha256:{'a' * 64}\nuv==0.13.9 \\\n    --hash=sha256:{'b' * 64}\n"
    )

    assert uv.ensure() == uv.ensure() == tmp_path / "uv/bin/uv"

    assert len(installed) == 1
    assert "--require-hashes" in installed[0]
    assert (tmp_path / "uv/requirements.lock").read_text() == f"uv==0.13.9 \\\n    --hash=sha256:{'b' * 64}\n"


def test_with_a_damaged_build_lock_the_newest_uv_repairs_it(
    installed: list[list[str]], tmp_path: Path
) -> None:
    (tmp_path / "build.lock").write_text("<<<<<<<\n")

    uv.ensure()

    assert installed[0][-1] == "uv"
    assert "--require-hashes" not in installed[0]


def test_locks_are_resolved_beside_those_that_are_there_until_they_are_taken(checkout: Checkout) -> None:
    lock.lock()
    wheel(checkout.index, "frame", "2.0")

    lock.resolve_all("all")

    assert "frame==1.0" in checkout.locked()
    assert "frame==2.0" in lock.resolved("stack")


def test_locks_that_were_taken_are_given_back_when_what_follows_fails(checkout: Checkout) -> None:
    lock.lock()
    wheel(checkout.index, "frame", "2.0")
    lock.resolve_all("all")

    with contextlib.suppress(Failure), lock.kept_on_failure():
        lock.take()
        assert "frame==2.0" in checkout.locked()
        raise Failure

    assert "frame==1.0" in checkout.locked()
