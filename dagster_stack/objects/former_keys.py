"""The names that objects had before `keys`: Dagster's own IO managers', under which what is there stays readable."""

from collections.abc import Iterable
from pathlib import PurePath

from dagster import AssetRecordsFilter, DagsterInstance, InputContext, MultiPartitionKey
from dagster._core.errors import DagsterInvariantViolationError
from dagster._core.storage.upath_io_manager import UPathIOManager, escape_leading_slash

from dagster_stack.objects.keys import PARTITIONS

#: Materialisations of other partitions that are looked at for their names.
MOST_RECORDS = 1000


class FormerKeys:
    """The former names of what one context loads. Some partitions shared one: then its owner is unknown."""

    def __init__(self, manager: UPathIOManager, context: InputContext) -> None:
        self._manager = manager
        self._context = context
        self._rivals: dict[str, set[str]] | None = None

    def names(self, partition: str | None = None) -> list[str]:
        """The most recent one first; none for what could not be stored under them."""
        try:
            if partition is None:
                return [self._manager._get_path(self._context).as_posix()]
            folder = self._manager._get_path_without_extension(self._context)
            return [
                self._manager.get_path_for_partition(self._context, folder, text).as_posix()
                for text in dict.fromkeys((slashed(partition), str(partition)))
            ]
        except Exception:
            # Whatever they did not take: a key that looks like an address of another store.
            return []

    def rivals(self, partition: str) -> list[str]:
        """Other partitions that were stored under the same former name."""
        try:
            instance = self._context.instance
        except DagsterInvariantViolationError:
            return []
        if self._rivals is None:
            self._rivals = grouped(instance.get_materialized_partitions(self._context.asset_key), partition)
        others = self._rivals.get(flat(partition, partition), set()) - {str(partition)}
        return sorted(others & self._formerly_stored(instance, others)) if others else []

    def _formerly_stored(self, instance: DagsterInstance, partitions: Iterable[str]) -> set[str]:
        """Those with a materialisation whose metadata do not say the name that `keys` gives."""
        asked = AssetRecordsFilter(asset_key=self._context.asset_key, asset_partitions=sorted(partitions))
        records = instance.fetch_materializations(asked, limit=MOST_RECORDS).records
        made = [record.asset_materialization for record in records]
        return {
            str(each.partition)
            for each in made
            if each and not any(f"/{PARTITIONS}/" in str(entry.value) for entry in each.metadata.values())
        }


def slashed(partition: str) -> str:
    """A partition as a path: the values of its dimensions, by their names."""
    if not isinstance(partition, MultiPartitionKey):
        return partition
    values = partition.keys_by_dimension
    return "/".join(values[name] for name in sorted(values))


def flat(partition: str, like: str) -> str:
    """What was left of a partition as a path; with several dimensions where `like` has them."""
    text = partition.replace("|", "/") if isinstance(like, MultiPartitionKey) else partition
    return PurePath("/", "x", escape_leading_slash(text)).as_posix()


def grouped(partitions: Iterable[str], like: str) -> dict[str, set[str]]:
    """Partitions by what was left of them."""
    found: dict[str, set[str]] = {}
    for partition in partitions:
        found.setdefault(flat(partition, like), set()).add(str(partition))
    return found
