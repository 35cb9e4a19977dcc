"""The IO manager of a job that names none: Dagster looks for its name in variables."""

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

from dagster import InitResourceContext, IOManager, ResourceDefinition, io_manager
from dagster._core.definitions import job_definition
from dagster._core.storage.fs_io_manager import PickledObjectFilesystemIOManager

from dagster_stack.objects.resources import stack_resources

#: Where Dagster looks.
MODULE, ATTRIBUTE = "DAGSTER_DEFAULT_IO_MANAGER_MODULE", "DAGSTER_DEFAULT_IO_MANAGER_ATTRIBUTE"
VARIABLES = {MODULE: __name__, ATTRIBUTE: "default_io_manager"}


@io_manager(description="The one of stack_resources().")
def default_io_manager(context: InitResourceContext) -> IOManager:
    """The IO manager of each job that names none."""
    assert context.instance
    if context.instance.is_ephemeral:
        # A test of the user's, such as materialize([asset]), must not write over what the stack holds.
        return PickledObjectFilesystemIOManager(context.instance.storage_directory())
    made: IOManager = _io_manager().create_io_manager(context)
    return made


@cache
def _io_manager() -> Any:
    """Kept: to make the resources takes a millisecond."""
    return stack_resources()["io_manager"]


def quick(resources: Mapping[str, ResourceDefinition]) -> Mapping[str, ResourceDefinition]:
    """The resources of a step, with the default IO manager itself in the place of the one that looks for its name.

    Dagster's would take 3 ms for each step.
    """
    if any(os.environ.get(name) != value for name, value in VARIABLES.items()):
        return resources
    return {
        key: default_io_manager if each is job_definition.default_job_io_manager else each
        for key, each in resources.items()
    }
