"""A process that would die of what its child dies of, and stays: its tests see of what."""

from typing import NoReturn

import pytest


class Died(BaseException):
    """In place of this process's own death."""


def deaths(monkeypatch: pytest.MonkeyPatch, module: object) -> list[int]:
    """The codes by which a module lets this process die."""
    codes: list[int] = []

    def die(code: int) -> NoReturn:
        codes.append(code)
        raise Died

    monkeypatch.setattr(module, "die_likewise", die)
    return codes
