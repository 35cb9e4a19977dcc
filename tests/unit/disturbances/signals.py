"""Timers, signals, faulthandler."""

import faulthandler
import os
import re
import signal
import threading
from pathlib import Path

from dagster_stack.pool.isolation import signals
from tests.unit.disturbances import disturbance


@disturbance("timers", lambda: [round(signal.getitimer(which)[0] / 300) for which in signals.TIMERS])
def leave_an_alarm(_: Path) -> None:
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.alarm(100)
    signal.setitimer(signal.ITIMER_VIRTUAL, 100, 5)


@disturbance("signals", lambda: [signal.getsignal(number) for number in signals.SIGNALS])
def handle_every_signal(_: Path) -> None:
    for number in signals.SIGNALS:
        if number not in (32, 33):
            signal.signal(number, lambda *_: None)


@disturbance("signals", lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()))
def block_signals_that_come(_: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})
    # To this thread: another one that a test has left would take a signal to the process, which would end of it.
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)


@disturbance("wakeup descriptor", signals.wakeup_descriptor)
def leave_a_wakeup_descriptor(_: Path) -> None:
    _reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)


@disturbance("faulthandler", faulthandler.is_enabled)
def change_the_faulthandler(_: Path) -> None:
    (faulthandler.disable if faulthandler.is_enabled() else faulthandler.enable)()
    faulthandler.dump_traceback_later(0.3, exit=True)


@disturbance("faulthandler", lambda: re.findall(r"SigCgt:.*", Path("/proc/self/status").read_text()))
def dump_on_a_signal(_: Path) -> None:
    faulthandler.register(signal.SIGUSR1, 2)
