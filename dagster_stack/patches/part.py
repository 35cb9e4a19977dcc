"""A part of another library that this project replaces, or uses though nobody promises it."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from dagster_stack.errors import PartMissing


@dataclass(frozen=True)
class Part:
    """Where a part is, why it is needed, and how it looked in the release in which it was read last."""

    #: `module:name` or `module:Class.name`.
    where: str
    #: The names of its parameters, with a comma between; of what is no function, its `repr`, its type or "attribute".
    shape: str
    why: str
    #: The release that it was read in.
    read: str
    #: What its authors have been told, as an address.
    upstream: str = ""
    #: Of code that is repeated here with a change: the beginning of its source's SHA-256.
    source: str = ""

    @property
    def name(self) -> str:
        return self.where.rpartition(":")[2].rpartition(".")[2]

    def owner(self) -> Any:
        """The module or class that has it; raises PartMissing."""
        module, _, path = self.where.partition(":")
        try:
            owner: Any = import_module(module)
            for name in path.split(".")[:-1]:
                owner = getattr(owner, name)
        except (ImportError, AttributeError) as error:
            raise PartMissing(self._complaint()) from error
        return owner

    def found(self) -> Any:
        """What it is at the moment; raises PartMissing."""
        try:
            return getattr(self.owner(), self.name)
        except AttributeError as error:
            raise PartMissing(self._complaint()) from error

    def replace(self, by: object) -> Any:
        """Let it be something else in this process; returns what it was. Raises PartMissing."""
        before = self.found()
        setattr(self.owner(), self.name, by)
        return before

    def _complaint(self) -> str:
        return (
            f"{self.where} is not there, which was in {self.read}: the installed release is another one. Install what"
            f" requirements/stack.lock names. It is needed because {self.why}"
        )
