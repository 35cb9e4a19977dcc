"""What comes to a process from outside of its code: timers, signals and their handlers."""

import faulthandler
import signal
import threading

# Python's own wrap each number that they return in an enumeration: 30 µs.
from _signal import getsignal, pthread_sigmask, sigpending  # type: ignore[import-not-found]
from time import monotonic
from typing import Any

TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
SIGNALS = tuple(map(int, sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})))
#: On which faulthandler can be told to dump; Python does not see that there is a handler.
DUMPING = tuple({*SIGNALS} - {signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT, signal.SIGBUS, signal.SIGILL})
#: A timer that went off while the step had it.
SOON_SECS = 0.001


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def timers() -> tuple[float, list[tuple[float, float]]]:
    return monotonic(), [signal.getitimer(timer) for timer in TIMERS]


def restore_timers(saved: tuple[float, list[tuple[float, float]]]) -> None:
    at, before = saved
    for timer, (left, interval) in zip(TIMERS, before, strict=True):
        if left:
            signal.setitimer(timer, max(left + at - monotonic(), SOON_SECS), interval)
        elif signal.getitimer(timer)[0]:
            signal.setitimer(timer, 0)


def handlers() -> tuple[list[Any], set[int]]:
    return list(map(getsignal, SIGNALS)), pthread_sigmask(signal.SIG_BLOCK, ())


def restore_handlers(saved: tuple[list[Any], set[int]]) -> None:
    before, mask = saved
    if not _is_main():
        return
    waiting = sigpending() - mask
    if not waiting and handlers() == saved:
        return
    for number, handler in zip(SIGNALS, before, strict=True):
        # None: C code has set it, and only C code can.
        if handler is None:
            continue
        if number in waiting and handler == signal.SIG_DFL:
            # One that the step has blocked would end the process now: to ignore it is to forget it.
            signal.signal(number, signal.SIG_IGN)
            signal.signal(number, handler)
        elif getsignal(number) is not handler:
            signal.signal(number, handler)
    pthread_sigmask(signal.SIG_SETMASK, mask)


def wakeup_descriptor() -> int:
    if not _is_main():
        return -1
    descriptor = signal.set_wakeup_fd(-1)
    if descriptor != -1:
        signal.set_wakeup_fd(descriptor)
    return descriptor


def restore_wakeup_descriptor(saved: int) -> None:
    if _is_main():
        signal.set_wakeup_fd(saved)


def restore_faulthandler(was_enabled: bool) -> None:
    # A dump that is due later might end the process in the middle of the next step.
    faulthandler.cancel_dump_traceback_later()
    for number in DUMPING:
        faulthandler.unregister(number)
    if faulthandler.is_enabled() != was_enabled:
        (faulthandler.enable if was_enabled else faulthandler.disable)()
