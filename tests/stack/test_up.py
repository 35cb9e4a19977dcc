"""`make up` on the copy of the tests, once more."""

from tests.stack.stack import Stack


def test_a_second_up_changes_nothing_and_says_so(stack: Stack) -> None:
    # Given a stack that is up
    before = {entry.name: entry.id for entry in stack.containers()}
    # When up runs again
    output = stack.make("up").stdout
    # Then no container was made anew, and each part says that it left things alone
    assert {entry.name: entry.id for entry in stack.containers()} == before
    assert "unchanged, not built again" in output
    assert "nothing to do" in output
    assert "kept as it is" in output
