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


class ObjectNotFound(StackError):
    """Raised when the object store has nothing under a key."""


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
