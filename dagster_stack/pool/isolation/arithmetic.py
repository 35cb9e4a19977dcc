"""How a process computes: decimal and binary numbers, and those drawn at random."""

import ctypes
import decimal
import random
import sys
from typing import Any

DECIMAL = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")


def decimals() -> Any:
    default = decimal.DefaultContext
    return decimal.getcontext().copy(), [getattr(default, name) for name in DECIMAL], dict(default.traps)


def restore_decimals(saved: Any) -> None:
    context, values, traps = saved
    decimal.setcontext(context)
    for name, value in zip(DECIMAL, values, strict=True):
        setattr(decimal.DefaultContext, name, value)
    decimal.DefaultContext.traps.update(traps)


libm = ctypes.CDLL("libm.so.6")
#: Larger than `fenv_t` of any processor.
FENV_BYTES = 256


def floating_point() -> Any:
    environment = ctypes.create_string_buffer(FENV_BYTES)
    libm.fegetenv(environment)
    return environment


def restore_floating_point(saved: Any) -> None:
    libm.fesetenv(saved)


def seed_anew(_: None) -> None:
    """The seed of one step must not decide the numbers of the next. To put the state back would repeat those of this one."""
    random.seed()
    if numpy := sys.modules.get("numpy.random"):
        numpy.seed()
    if torch := sys.modules.get("torch"):
        torch.seed()
