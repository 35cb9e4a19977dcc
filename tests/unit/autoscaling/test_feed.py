"""Questions to a container, whatever it answers."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts import compose
from scripts.autoscaling import feed
from scripts.autoscaling.feed import Feed
from scripts.console import Failure

ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"


@pytest.fixture
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Feed]]:
    """A feed whose container is a program of these lines."""
    found = Feed()

    def run(code: str) -> Feed:
        monkeypatch.setattr(compose, "compose", lambda: [sys.executable, "-c", code])
        return found

    monkeypatch.setattr(feed, "COMMAND", ())
    monkeypatch.setattr(feed, "LOG_FOLDER", tmp_path)
    monkeypatch.setattr(feed, "LOG", tmp_path / "autoscale.log")
    monkeypatch.setattr(feed, "FIRST_SECS", 20)
    yield run
    found.close()


def test_each_question_has_an_answer(answering: Callable[[str], Feed]) -> None:
    it = answering(ECHO)

    assert it.ask({"workers": True}) == {"workers": True}
    assert it.ask({"rest": {"a": 1.5}}) == {"rest": {"a": 1.5}}


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (
            "import sys; sys.exit('RabbitMQ does not answer: timed out')",
            "RabbitMQ does not answer: timed out",
        ),
        ("pass", "its container has ended"),
        ("print('<html>', flush=True)\n" + ECHO, "it says something else"),
        ("print('[1]', flush=True)\n" + ECHO, "it says something else"),
        ("print('{}{}', flush=True)\n" + ECHO, "it says something else"),
    ],
)
def test_no_answer_or_nonsense_is_a_failure_and_the_next_question_begins_afresh(
    answering: Callable[[str], Feed], code: str, why: str
) -> None:
    with pytest.raises(Failure, match=f"the stack does not answer: {why}"):
        answering(code).ask({})

    assert answering(ECHO).ask({"a": 1}) == {"a": 1}


@pytest.mark.parametrize("begun", ["", '{"queues"'])
def test_an_answer_is_not_waited_for_for_ever(
    answering: Callable[[str], Feed], monkeypatch: pytest.MonkeyPatch, begun: str
) -> None:
    monkeypatch.setattr(feed, "FIRST_SECS", 0.5)
    it = answering(f"import sys; print({begun!r}, end='', flush=True); sys.stdin.read()")

    with pytest.raises(Failure, match=r"nothing within 0\.5 s"):
        it.ask({})


def test_one_that_does_not_end_is_killed(
    answering: Callable[[str], Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "END_SECS", 0.2)
    it = answering("import threading\nprint(input(), flush=True)\nthreading.Event().wait()")
    it.ask({})

    it.close()
