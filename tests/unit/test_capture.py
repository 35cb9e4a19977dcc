"""What a step prints: all of it in files, whoever prints it, and still where it went before."""

import ctypes
import io
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from celery.concurrency.asynpool import AsynPool

from dagster_stack.objects.capture import PUMP, CapturedStream, captured, descriptor_of
from dagster_stack.worker.prefork_pool import TidyPool
from tests.waiting import wait_until


class Streams:
    """The standard streams of this process as files of a test, on descriptors of their own.

    In a worker they are descriptors 1 and 2. pytest has replaced those, and what is printed at that level would
    not come back to a test. `begin` stands in the test itself: pytest sets the streams anew before it.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.out, self.err = folder / "worker.out", folder / "worker.err"
        self.stdout, self.stderr = self.out.open("w"), self.err.open("w")

    def begin(self) -> None:
        self._monkeypatch.setattr(sys, "stdout", self.stdout)
        self._monkeypatch.setattr(sys, "stderr", self.stderr)


@pytest.fixture
def streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Streams]:
    streams = Streams(tmp_path, monkeypatch)
    yield streams
    monkeypatch.undo()
    streams.stdout.close()
    streams.stderr.close()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "step" / "a.out"


@pytest.fixture
def err(tmp_path: Path) -> Path:
    return tmp_path / "step" / "a.err"


def test_what_is_printed_is_in_the_file_of_its_stream_and_where_it_went_before(
    streams: Streams, out: Path, err: Path
) -> None:
    streams.begin()
    with captured(out, err):
        print("to stdout: ünïcode ✓")
        print("to stderr", file=sys.stderr)

    assert out.read_text() == streams.out.read_text() == "to stdout: ünïcode ✓\n"
    assert err.read_text() == streams.err.read_text() == "to stderr\n"


def test_what_c_code_and_subprocesses_write_is_captured_too(streams: Streams, out: Path, err: Path) -> None:
    streams.begin()
    descriptor = streams.stdout.fileno()

    with captured(out, err):
        os.write(descriptor, b"by its descriptor\n")
        subprocess.run(["echo", "by a program"], stdout=descriptor, check=True)
        ctypes.CDLL(None).dprintf(descriptor, b"by a library in C\n")

    expected = "by its descriptor\nby a program\nby a library in C\n"
    assert out.read_text() == streams.out.read_text() == expected


def test_the_order_of_what_is_printed_is_kept(streams: Streams, out: Path, err: Path) -> None:
    streams.begin()
    with captured(out, err):
        for number in range(100):
            print(number, flush=True)
            os.write(streams.stdout.fileno(), b"-\n")

    assert out.read_text() == "".join(f"{number}\n-\n" for number in range(100))


def test_what_was_printed_before_and_after_is_not_captured(streams: Streams, out: Path, err: Path) -> None:
    streams.begin()
    print("before, not flushed yet")
    with captured(out, err):
        print("during")
    print("after")
    streams.stdout.flush()

    assert out.read_text() == "during\n"
    assert streams.out.read_text() == "before, not flushed yet\nduring\nafter\n"


def test_after_an_error_the_streams_are_where_they_were(streams: Streams, out: Path, err: Path) -> None:
    streams.begin()
    with suppress(RuntimeError), captured(out, err):
        print("during")
        raise RuntimeError
    print("after", flush=True)

    assert out.read_text() == "during\n"
    assert streams.out.read_text() == "during\nafter\n"


def test_what_is_forwarded_is_forwarded_once(streams: Streams, out: Path, err: Path) -> None:
    """While a step runs its worker's log has what it printed so far."""
    streams.begin()
    with captured(out, err) as (stdout, _):
        print("first", flush=True)
        wait_until(lambda: stdout.size, 10, "it is in its file", until=len("first\n").__eq__, pause=0.01)
        stdout.forward()
        assert streams.out.read_text() == "first\n"
        stdout.forward()
        print("second")

    assert streams.out.read_text() == "first\nsecond\n"


def test_much_output_is_forwarded_in_pieces_and_whole(streams: Streams, out: Path, err: Path) -> None:
    streams.begin()
    line = "x" * 999 + "\n"

    with captured(out, err):
        for _ in range(3000):
            sys.stdout.write(line)

    assert out.stat().st_size == streams.out.stat().st_size == 3_000_000


def test_captures_may_be_nested(streams: Streams, out: Path, err: Path, tmp_path: Path) -> None:
    """A step that executes a job in its own process captures again."""
    streams.begin()
    inner = tmp_path / "inner.out"

    with captured(out, err):
        print("outside")
        with captured(inner, tmp_path / "inner.err"):
            print("inside")
        print("outside again")

    assert inner.read_text() == "inside\n"
    assert out.read_text() == streams.out.read_text() == "outside\ninside\noutside again\n"


def test_no_file_stays_open(streams: Streams, out: Path, err: Path) -> None:
    streams.begin()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(RuntimeError), captured(out, err):
            raise RuntimeError

    assert len(os.listdir("/proc/self/fd")) == before


def test_a_second_attempt_adds_to_the_file_of_the_first(streams: Streams, out: Path, err: Path) -> None:
    streams.begin()
    for attempt in (1, 2):
        with captured(out, err):
            print(f"attempt {attempt}")

    assert out.read_text() == "attempt 1\nattempt 2\n"


def test_a_stream_that_user_code_replaced_is_captured_at_its_standard_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", io.StringIO())

    assert descriptor_of(sys.stdout) == 1
    assert descriptor_of(sys.stderr) == 2


def test_a_stream_that_user_code_replaced_while_it_ran_does_not_keep_the_capture_from_ending(
    streams: Streams, out: Path, err: Path
) -> None:
    streams.begin()
    with captured(out, err):
        print("during")
        sys.stdout = io.StringIO()
        print("elsewhere")
    sys.stdout = streams.stdout

    assert out.read_text() == streams.out.read_text() == "during\n"


def test_a_stream_that_user_code_closed_is_no_matter_for_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: Path, err: Path
) -> None:
    """`sys.stdout.close()` in a step: its descriptor is still there, and the next step on the process prints."""
    own = (tmp_path / "own").open("w")
    stdout = open(own.fileno(), "w", closefd=False)  # noqa: SIM115
    try:
        monkeypatch.setattr(sys, "stdout", stdout)
        with captured(out, err):
            print("before", flush=True)
            sys.stdout.close()
        monkeypatch.setattr(sys, "stdout", own)
        with captured(tmp_path / "next.out", err):
            print("the next step")
        assert out.read_text() == "before\n"
        assert (tmp_path / "next.out").read_text() == "the next step\n"
        assert (tmp_path / "own").read_text() == "before\nthe next step\n"
    finally:
        monkeypatch.undo()
        own.close()


def test_a_stream_that_leads_nowhere_does_not_keep_the_other_one_captured(
    streams: Streams, monkeypatch: pytest.MonkeyPatch, out: Path, err: Path
) -> None:
    """The pipe to a log collector that died: what a step prints is in its file all the same."""
    streams.begin()
    reader, writer = os.pipe()
    os.close(reader)
    stdout = os.fdopen(writer, "w")
    try:
        monkeypatch.setattr(sys, "stdout", stdout)
        with suppress(BrokenPipeError), captured(out, err):
            print("hello")
        print("after", file=sys.stderr, flush=True)

        assert out.read_text() == "hello\n"
        assert streams.err.read_text() == "after\n"
    finally:
        monkeypatch.undo()
        with suppress(BrokenPipeError):
            stdout.close()


def test_a_file_that_can_not_be_made_leaves_the_streams_alone(
    streams: Streams, out: Path, tmp_path: Path
) -> None:
    streams.begin()
    folder = tmp_path / "a_folder"
    folder.mkdir()

    with pytest.raises(OSError, match="a_folder"), captured(out, folder):
        pass
    print("after", flush=True)

    assert streams.out.read_text() == "after\n"


def test_a_captured_stream_is_one_for_its_owner_alone(streams: Streams, out: Path) -> None:
    """It may hold data of the user's."""
    streams.begin()
    out.parent.mkdir()
    CapturedStream(sys.stdout, out, 1000).close()

    assert out.stat().st_mode & 0o777 == 0o600


# --- much output, and bad times for it ------------------------------------------------------------------------------


def test_of_much_output_the_beginning_is_kept_then_a_line_that_says_so(
    streams: Streams, out: Path, err: Path
) -> None:
    streams.begin()
    with captured(out, err, most=1000):
        print("x" * 999)
        print("y" * 1_000_000)
        print("to stderr", file=sys.stderr)

    note = "[dagster-stack: the first 1,000 bytes are kept, what follows is left out]"
    assert out.read_text() == streams.out.read_text() == "x" * 999 + f"\n\n{note}\n"
    assert err.read_text() == "to stderr\n"


def test_more_than_any_disk_holds_is_printed_in_one_write_and_by_a_program(
    streams: Streams, out: Path, err: Path
) -> None:
    streams.begin()
    descriptor = streams.stdout.fileno()
    with captured(out, err, most=1_000_000):
        os.write(descriptor, bytes(1_300_000_000))
        subprocess.run(["head", "-c", "130000000", "/dev/zero"], stdout=descriptor, check=True)

    assert 1_000_000 < out.stat().st_size < 1_001_000


def test_a_call_in_c_that_holds_the_global_lock_prints_more_than_a_pipe_holds(
    streams: Streams, out: Path, err: Path
) -> None:
    """As solvers and trainers do: nobody in this process could read meanwhile."""
    streams.begin()
    with captured(out, err):
        ctypes.PyDLL(None).write(streams.stdout.fileno(), b"x" * 5_000_000, ctypes.c_size_t(5_000_000))

    assert out.stat().st_size == 5_000_000


def test_a_program_that_goes_on_printing_does_not_keep_the_capture_from_ending(
    streams: Streams, out: Path, err: Path
) -> None:
    """Nor does it fail, or fill the disk."""
    streams.begin()
    with captured(out, err, most=100_000_000):
        program = subprocess.Popen(["yes"], stdout=streams.stdout.fileno())
    out.unlink()
    try:
        sizes = []
        for _ in range(3):
            before = printed_by(program)
            wait_until(
                partial(printed_by, program),
                10,
                "it prints on",
                until=(before + 3_000_000).__le__,
                pause=0.01,
            )
            sizes.append(held_by_the_pump(out))
        assert sizes[1] == sizes[2] < 100_000_000
    finally:
        program.kill()
        program.wait()


def printed_by(program: "subprocess.Popen[bytes]") -> int:
    """The bytes that a program has written."""
    found = re.search(r"wchar: (\d+)", Path(f"/proc/{program.pid}/io").read_text())
    assert found
    return int(found[1])


def held_by_the_pump(file: Path) -> int:
    """The size of a file that is deleted."""
    assert PUMP._process
    for entry in Path(f"/proc/{PUMP._process.pid}/fd").iterdir():
        if str(entry.readlink()) == f"{file} (deleted)":
            return entry.stat().st_size
    raise AssertionError(f"{file} is not held")


def test_a_pump_that_is_killed_is_replaced(streams: Streams, out: Path, err: Path) -> None:
    streams.begin()
    with captured(out, err) as (stdout, _):
        print("before", flush=True)
        wait_until(lambda: stdout.size, 10, "it is in its file", pause=0.01)
        assert PUMP._process
        PUMP._process.kill()
        PUMP._process.wait()
        print("meanwhile", flush=True)
        stdout.forward()
        print("x" * 1_000_000)
    with captured(out, err):
        print("the next one")
        assert PUMP._process
        PUMP._process.kill()
        PUMP._process.wait()
        print("without any")

    assert out.read_text() == "before\nmeanwhile\n" + "x" * 1_000_000 + "\nthe next one\nwithout any\n"


def test_a_worker_whose_pump_was_killed_has_another_one_before_its_next_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its processes share it; and nothing stays of the one that was killed."""
    monkeypatch.setattr(AsynPool, "_create_worker_process", lambda *_: PUMP._process)
    PUMP.start()
    killed = PUMP._process
    assert killed
    killed.kill()
    wait_until(lambda: PUMP.is_gone, 10, "it is gone", pause=0.01)

    shared = TidyPool.__new__(TidyPool)._create_worker_process(0)

    assert shared.pid != killed.pid
    assert not PUMP.is_gone
    assert not Path(f"/proc/{killed.pid}").exists()


def test_a_forked_child_that_ends_the_capture_leaves_it_to_its_parent(
    streams: Streams, out: Path, err: Path
) -> None:
    streams.begin()
    parent = os.getpid()
    try:
        with captured(out, err):
            child = os.fork()
            if child == 0:
                print("by the child", flush=True)
                raise RuntimeError
            os.waitpid(child, 0)
            print("by the parent")
    finally:
        if os.getpid() != parent:
            os._exit(0)

    assert out.read_text() == streams.out.read_text() == "by the child\nby the parent\n"


def test_where_there_is_no_room_printing_goes_on_and_the_file_says_so(
    streams: Streams, out: Path, err: Path, tmp_path: Path
) -> None:
    """A limit for files stands in for a disk that is full: what is beyond it is an error of the write."""
    streams.begin()
    with captured(out, err):
        assert PUMP._process
        resource.prlimit(PUMP._process.pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        try:
            print("x" * 1_000_000)
            print("on it goes", flush=True)
            wait_until(lambda: "could not be kept" in out.read_text(), 10, "the file says so", pause=0.01)
        finally:
            limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(PUMP._process.pid, resource.RLIMIT_FSIZE, limit)

    assert out.stat().st_size <= 100_000
