"""Decimal and binary numbers."""

import decimal
from pathlib import Path

from dagster_stack.pool.isolation import arithmetic
from tests.unit.disturbances import disturbance


@disturbance("decimal", lambda: (decimal.Decimal(1) / 3, decimal.DefaultContext.prec))
def compute_with_three_digits(_: Path) -> None:
    decimal.getcontext().prec = 3
    decimal.DefaultContext.prec = 3
    decimal.getcontext().traps[decimal.Inexact] = True


@disturbance("floating point", lambda: (arithmetic.libm.fegetround(), 0.1 + 0.7))
def round_upward(_: Path) -> None:
    arithmetic.libm.fesetround(0x800)
