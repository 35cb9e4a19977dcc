"""What one step hands to the next: an object a thing, pickled, under the names of `keys`."""

import pickle
from abc import abstractmethod
from pathlib import Path
from typing import Any

from dagster import (
    FilesystemIOManager,
    InitResourceContext,
    InputContext,
    IOManager,
    MetadataValue,
    OutputContext,
)
from dagster._core.storage.fs_io_manager import PickledObjectFilesystemIOManager
from dagster._core.storage.upath_io_manager import UPathIOManager

from dagster_stack.objects import keys
from dagster_stack.objects.former_keys import FormerKeys
from dagster_stack.objects.object_store import replaced

#: The first pickle protocol that hands large buffers to the file uncopied.
PICKLE_PROTOCOL = 5

Context = InputContext | OutputContext


class Pickles(IOManager):
    """Dagster's UPathIOManager in what it does, but for the names: several partitions are loaded as a dict, and
    what is not there under its name is looked for under the one that `former` gave it."""

    def __init__(self, prefix: str, former: UPathIOManager, folding: bool = False) -> None:
        self._prefix, self._former, self._folding = prefix, former, folding

    @abstractmethod
    def dump(self, context: OutputContext, obj: Any, key: str) -> None:
        """Store an object under a key."""

    @abstractmethod
    def load(self, key: str) -> Any:
        """What is under a key; raises FileNotFoundError."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether something is under a key."""

    @abstractmethod
    def places(self, key: str) -> dict[str, MetadataValue[Any]]:
        """The metadata that say where an object lies."""

    def key(self, context: Context, partition: str | None = None) -> str:
        """The name of what a context is about: an asset, one partition of it, or an op's output."""
        return keys.key(self._prefix, segments(context, partition), self._folding)

    def handle_output(self, context: OutputContext, obj: Any) -> None:
        partition = None
        if context.has_asset_partitions:
            partitions = context.asset_partition_keys
            if len(partitions) != 1:
                raise ValueError(
                    f"This output has {len(partitions)} partitions, and one object can hold one: return None and"
                    " store them yourself, or launch the backfill with a run for each partition"
                    " (BackfillPolicy.multi_run)."
                )
            partition = partitions[0]
        key = self.key(context, partition)
        context.log.debug(f"Writing {key}")
        self.dump(context, obj, key)
        places = self.places(key)
        if obj is None:
            # Nobody meant to store it.
            places.pop("path", None)
        context.add_output_metadata(places)

    def load_input(self, context: InputContext) -> Any:
        former = FormerKeys(self._former, context)
        if not (context.has_asset_key and context.has_asset_partitions):
            return self._load(context, former)
        partitions = context.asset_partition_keys
        if not partitions:
            return None
        if len(partitions) == 1:
            return self._load_partition(context, former, partitions[0])
        found = {each: self._load_partition(context, former, each) for each in partitions}
        # In case some were skipped.
        return {partition: value for partition, value in found.items() if value is not None}

    def has_output(self, context: OutputContext) -> bool:
        partition = context.asset_partition_key if context.has_asset_partitions else None
        return self.exists(self.key(context, partition))

    def _load_partition(self, context: InputContext, former: FormerKeys, partition: str) -> Any:
        """None for one that is missing and may be."""
        try:
            return self._load(context, former, partition)
        except FileNotFoundError:
            if (context.definition_metadata or {}).get("allow_missing_partitions", False):
                context.log.warning(
                    f"Couldn't load partition {partition} and skipped it because the input metadata includes"
                    " allow_missing_partitions=True"
                )
                return None
            raise

    def _load(self, context: InputContext, former: FormerKeys, partition: str | None = None) -> Any:
        key = self.key(context, partition)
        context.log.debug(f"Loading {key}")
        try:
            return self.load(key)
        except FileNotFoundError as missing:
            for name in former.names(partition):
                if name == key or not self.could_be(name):
                    continue
                try:
                    value = self.load(name)
                except FileNotFoundError:
                    continue
                if partition is not None and (rivals := former.rivals(partition)):
                    raise FileNotFoundError(shared(name, partition, rivals)) from None
                context.log.debug(f"It is not at {key}. Loaded from its former place {name}")
                return value
            raise missing

    def could_be(self, name: str) -> bool:
        """Whether an object can have that name."""
        return keys.problem(name) is None


def segments(context: Context, partition: str | None) -> list[str]:
    """The name of what a context is about, without the place's prefix."""
    if context.has_asset_key:
        return keys.asset(context.asset_key.path, partition)
    output = context.upstream_output if isinstance(context, InputContext) else context
    if output is None or output.version is not None:
        return keys.versioned(context.get_identifier())
    return keys.output(output.run_id, output.step_key, output.name, output.mapping_key)


def shared(name: str, partition: str, rivals: list[str]) -> str:
    return (
        f"{name} was shared by the partitions {', '.join(map(repr, [partition, *rivals]))}, and holds what was written"
        f" last. Now each has an object of its own: materialise {partition!r} again."
    )


class LocalIOManager(FilesystemIOManager):
    """Dagster's FilesystemIOManager with the names of `keys`, for the embedded mode."""

    def create_io_manager(self, context: InitResourceContext) -> "LocalPickles":  # type: ignore[override]
        assert self.base_dir
        return LocalPickles(self.base_dir)


class LocalPickles(Pickles):
    """A folder. Its disk may take large and small letters for the same."""

    def __init__(self, folder: str) -> None:
        super().__init__("", PickledObjectFilesystemIOManager(folder), folding=True)
        self._folder = Path(folder)

    def dump(self, context: OutputContext, obj: Any, key: str) -> None:
        with replaced(self._folder / key) as file:
            pickle.dump(obj, file, PICKLE_PROTOCOL)

    def load(self, key: str) -> Any:
        # A former name is a whole path.
        path = self._folder / key
        try:
            with path.open("rb") as file:
                return pickle.load(file)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise FileNotFoundError(f"There is no {path}.") from None

    def exists(self, key: str) -> bool:
        return (self._folder / key).is_file()

    def places(self, key: str) -> dict[str, MetadataValue[Any]]:
        return {"path": MetadataValue.path(str(self._folder / key))}

    def could_be(self, name: str) -> bool:
        return "\0" not in name
