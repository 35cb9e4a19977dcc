"""How long an execution of a step may take: the setting, the interrupt at that time, and the end of its process.

The interrupt becomes a failure of the attempt as any other, so that a retry policy applies to it. A process that goes on
after its grace is ended by the kernel, since code that keeps Python's global lock lets no thread of its process do so;
whoever gets the step's message next reports the failure.
"""

import ctypes
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Timer
from typing import Any

from dagster import DagsterEvent
from dagster._core.definitions.events import RetryRequested
from dagster._core.definitions.step_launcher import StepLauncher
from dagster._core.errors import DagsterExecutionStepExecutionError
from dagster._core.execution.context.system import StepExecutionContext
from dagster._core.execution.plan.execute_step import core_dagster_event_sequence_for_step
from dagster._core.execution.plan.utils import op_execution_error_boundary
from dagster._utils.interrupts import pop_captured_interrupt

from dagster_stack import tags
from dagster_stack.errors import StepTimedOut
from dagster_stack.logs.context import in_context
from dagster_stack.step.interruption import Interruption
from dagster_stack.timing import GRACE_SECS
from dagster_stack.worker.lost_processes import LIMIT_SIGNAL

#: Seconds of three years: what clocks can be set to for certain.
LONGEST_SECS = 1e8


@dataclass(frozen=True)
class TimeLimit:
    """Seconds after which an execution is interrupted, and after which its process is killed."""

    interrupt: float
    kill: float
    #: The tag or setting that says so.
    source: str

    @classmethod
    def of(
        cls,
        step_tags: Mapping[str, str],
        run_tags: Mapping[str, str],
        of_celery: Sequence[float | None] | None,
    ) -> "TimeLimit | None":
        """The limit of a step: its own tag's, else its run's, else Celery's, of which the hard one comes first."""
        if found := tags.timeout(step_tags, run_tags):
            seconds, source = found
            return cls(seconds, seconds + GRACE_SECS, source)
        hard, soft = of_celery or (None, None)
        if soft and (not hard or soft < hard):
            return cls(soft, hard or soft + GRACE_SECS, "task_soft_time_limit")
        return cls(hard, hard + GRACE_SECS, "task_time_limit") if hard else None

    def __str__(self) -> str:
        return f"{self.interrupt:g} s ({self.source})"


class Deadline:
    """Ends what is done within it once its time is over. Handed to Dagster as the step's launcher, it sees its errors.

    `kills`: whether its process is one that may be ended.
    """

    def __init__(self, limit: TimeLimit, interruption: Interruption, kills: bool) -> None:
        self._limit = limit
        self._interruption = interruption
        self._kernel_timer = KernelTimer() if kills else None
        self._timer = Timer(min(limit.interrupt, LONGEST_SECS), in_context(self._interrupt))
        self._timer.daemon, self._timer.name = True, "interruption"
        #: What launches the step, if its resources do that.
        self.launcher: StepLauncher | None = None

    def __enter__(self) -> "Deadline":
        if self._kernel_timer:
            self._kernel_timer.set(min(self._limit.kill, LONGEST_SECS))
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_met()

    def is_met(self) -> None:
        """The step has ended: its hooks take as long as they take."""
        self._timer.cancel()
        if self._kernel_timer:
            self._kernel_timer.cancel()

    @property
    def has_passed(self) -> bool:
        """Whether the step was interrupted for taking too long, and for no other reason."""
        return self._interruption.is_of_limit

    @property
    def failure(self) -> str:
        return f"It took longer than its limit of {self._limit}, and was interrupted."

    def launch_step(self, step_context: StepExecutionContext) -> Iterator[DagsterEvent]:
        """Execute the step; when its time is over it fails by the limit, even if it then returns a result."""
        events = (
            self.launcher.launch_step(step_context)
            if self.launcher
            else core_dagster_event_sequence_for_step(step_context)
        )
        late: BaseException | None = None
        try:
            for event in events:
                yield event
                if self.has_passed and not event.is_step_success:
                    # Now: later it would put things back in the middle of the next step.
                    if isinstance(events, Generator):
                        events.close()
                    break
            else:
                return
        except GeneratorExit:
            raise
        except BaseException as error:
            if not self.has_passed:
                raise
            late = error
        # While Dagster keeps interrupts for later, this one has not reached the step.
        pop_captured_interrupt()
        failure = StepTimedOut(self.failure)
        if isinstance(late, RetryRequested):
            # By its policy, or by its own wish after the interrupt.
            raise RetryRequested(late.max_retries, late.seconds_to_wait) from failure
        with op_execution_error_boundary(
            DagsterExecutionStepExecutionError,
            msg_fn=lambda: self.failure,
            step_context=step_context,
            step_key=step_context.step.key,
            op_def_name=step_context.op_def.name,
            op_name=step_context.op.name,
        ):
            raise failure from late

    def _interrupt(self) -> None:
        if self._kernel_timer:
            self._kernel_timer.insist()
        self._interruption.begin(f"it takes longer than {self._limit}", of_limit=True)


class SignalEvent(ctypes.Structure):
    """The kernel's `struct sigevent`."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("padding", ctypes.c_byte * 48),
    )


class KernelTimer:
    """Lets the kernel end this process by LIMIT_SIGNAL, whatever it does then. A forked child has none."""

    def __init__(self) -> None:
        self._libc: Any = ctypes.CDLL(None, use_errno=True)
        #: The first one's number is 0.
        self._timer = ctypes.c_void_p()
        self._is_gone = False
        event = SignalEvent(signal=LIMIT_SIGNAL)
        self._check(
            self._libc.timer_create(
                ctypes.c_int(1),  # CLOCK_MONOTONIC
                ctypes.byref(event),
                ctypes.byref(self._timer),
            )
        )

    def set(self, seconds: float) -> None:
        """End the process so many seconds from now."""
        whole = int(seconds)
        # struct itimerspec: the interval, none, and the first time.
        times = (ctypes.c_long * 4)(0, 0, whole, int((seconds - whole) * 1e9))
        self._check(self._libc.timer_settime(self._timer, 0, times, None))

    def insist(self) -> None:
        """Restore the signal's default action, which ends the process; Python's own way would need its main thread."""
        self._libc.signal(LIMIT_SIGNAL, None)

    def cancel(self) -> None:
        """End it no more; a second call changes nothing."""
        if not self._is_gone:
            self._is_gone = True
            self._libc.timer_delete(self._timer)

    @staticmethod
    def _check(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
