"""Every error that this package raises on purpose, and the exit codes that the command line gives them."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What `dagster-stack` exits with; scripts rely on it."""

    #: The run succeeded, or the command did what it says.
    SUCCESS = 0
    #: The run failed, or the command could not do its work.
    FAILED = 1
    #: The command line, the run config or the job's name is wrong: no run was launched.
    USAGE = 2
    #: Dagit or the broker does not answer; a run that was launched goes on.
    UNREACHABLE = 3
    #: The run was canceled, from here or from elsewhere.
    CANCELED = 4
    #: Ctrl-C or SIGTERM: a run that was launched goes on.
    INTERRUPTED = 130


class StackError(Exception):
    """Base of all: the message says what is wrong and how to cure it."""

    #: What the command line exits with when it meets this error.
    exit_code = ExitCode.FAILED


class SettingsError(StackError):
    """Raised when environment variables or `celery.yaml` contradict each other or can't be read."""


class ProjectError(StackError):
    """Raised when the project's code locations can't be told from its files."""


class PartMissing(StackError):
    """Raised when another library lacks what this project replaces in it, or uses of it (`patches/`)."""


class NotRestored(StackError):
    """Raised when what a step did to its process can't be undone; the message says what it was."""


class StepTimedOut(StackError):
    """Raised in place of what an attempt of a step does when it takes longer than its limit."""


class ObjectNotFound(StackError):
    """Raised when the object store has nothing under a key."""


class InvalidKey(ObjectNotFound, ValueError):
    """Raised when a key can't be an object's in every store."""


class OutputUnreadable(StackError):
    """Raised when the store does not hand out what a step printed, although it may be there."""


class ProvisionError(StackError):
    """Raised when a store refuses what the stack needs of it."""


class UsageError(StackError):
    """Raised when what the user gave on the command line can't be used."""

    exit_code = ExitCode.USAGE


class DagitError(StackError):
    """Raised when Dagit answers a request with an error."""


class DagitUnreachable(DagitError):
    """Raised when nothing that is Dagit answers at its address."""

    exit_code = ExitCode.UNREACHABLE


class LaunchRefused(DagitError):
    """Raised when Dagit launches no run because of its job's name, its config or its tags."""

    exit_code = ExitCode.USAGE


class BrokerUnreachable(StackError):
    """Raised when the broker does not answer at its address."""

    exit_code = ExitCode.UNREACHABLE


class DatabaseUnreachable(StackError):
    """Raised when Postgres does not answer what a command asks."""

    exit_code = ExitCode.UNREACHABLE


class PrometheusUnreachable(StackError):
    """Raised when Prometheus does not answer at its address."""

    exit_code = ExitCode.UNREACHABLE


class Fenced(StackError):
    """Raised when a process reports on work that another process has taken over."""


class ForeignCode(StackError):
    """Raised when a message belongs to a run that other code drives."""

    def __init__(self, theirs: str, ours: str) -> None:
        super().__init__(
            f"The run belongs to code {theirs}, and this process has code {ours}. `make deploy` brings all services"
            " to the same code; a run that was launched before it can be started again on the new one."
        )
        self.theirs, self.ours = theirs, ours


class OldDefinitions(StackError):
    """Raised when a run has newer definitions than the process, which is replaced."""


class NoSuchRun(StackError):
    """Raised when a message names a run that the database does not have."""


class NoSuchJob(StackError):
    """Raised when the code has no job, or no step, of the name that a message gives."""


class GivenUp(Fenced):
    """Raised when a process reports on work after the database was away for longer than its patience."""


class RetentionFailed(StackError):
    """Raised when a store does not answer, or refuses, while old runs are removed by hand."""


class ObjectsForbidden(StackError):
    """Raised when the object store lets the stack's keys not list, or not delete."""


class RunDoomed(StackError):
    """Raised when a run is to follow on one that retention removes."""


class Refused(StackError):
    """Raised when the database does not take an event, and never will."""


class NoRoom(StackError):
    """Raised when a worker's scratch space is too full for the next step."""


class AlreadyHeld(StackError):
    """Raised when a message names work that another living process does."""


class AlreadyDone(StackError):
    """Raised when a message names work that is done, or that is not to be done any more."""


class HandedOver(StackError):
    """Raised when a process that stops has let go of its work, and whoever gets the message next goes on with it."""
