"""Copies that user code gets of what a process keeps warm, made only of what its step needs.

A job's config, plan and definitions are shared by all its steps and runs in a process. Whatever a step changes of them
must not reach the next one, and a job of 1,000 ops must not be copied for each of its steps.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, TypeVar

from dagster import JobDefinition
from dagster._core.definitions.input import InputDefinition
from dagster._core.execution.context.system import StepExecutionContext
from dagster._core.execution.plan.inputs import FromDefaultValue, FromDirectInputValue, StepInput
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.system_config.objects import ResolvedRunConfig

Value = TypeVar("Value")


class Copies(dict[str, Value]):
    """A mapping whose values are copied when they are first asked for, and the same copies from then on."""

    def __init__(self, originals: Mapping[str, Value]) -> None:
        super().__init__(originals)
        self._is_copied: set[str] = set()

    def __getitem__(self, key: str) -> Value:
        if key not in self._is_copied:
            self[key] = deepcopy(super().__getitem__(key))
            self._is_copied.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self:
            return default
        return self[key]

    def values(self) -> Any:
        return [self[key] for key in self]

    def items(self) -> Any:
        return [(key, self[key]) for key in self]


def fresh_config(config: ResolvedRunConfig, launched: Mapping[str, object]) -> ResolvedRunConfig:
    """The config of one step; `launched` is a copy already."""
    return config._replace(
        ops=Copies(config.ops),
        resources=Copies(config.resources),
        loggers=Copies(config.loggers),
        inputs=Copies(config.inputs),
        original_config_dict=launched,
    )


class FreshDefault(FromDefaultValue):
    """Loads a copy of an input's default value, which is one object for all steps of a process."""

    def load_input_object(
        self, step_context: StepExecutionContext, input_def: InputDefinition
    ) -> Iterator[object]:
        yield from map(copied, super().load_input_object(step_context, input_def))


class FreshDirectValue(FromDirectInputValue):
    """Loads a copy of a value that the job was made with."""

    def load_input_object(
        self, step_context: StepExecutionContext, input_def: InputDefinition
    ) -> Iterator[object]:
        yield from map(copied, super().load_input_object(step_context, input_def))


def fresh_step(step: ExecutionStep) -> ExecutionStep:
    """A step with tags and input values of its own."""
    inputs = {name: _fresh_input(each) for name, each in step.step_input_dict.items()}
    return step._replace(step_input_dict=inputs, tags=dict(step.tags), logging_tags=dict(step.logging_tags))


def _fresh_input(step_input: StepInput) -> StepInput:
    source = step_input.source
    if type(source) is FromDefaultValue:
        fresh: Any = FreshDefault(node_handle=source.node_handle, input_name=source.input_name)
    elif type(source) is FromDirectInputValue:
        fresh = FreshDirectValue(input_name=source.input_name)
    else:
        return step_input
    return StepInput(name=step_input.name, dagster_type_key=step_input.dagster_type_key, source=fresh)


def copied(value: Any) -> Any:
    """A copy of a value; the value itself when it can't be copied, such as a lock or a connection."""
    try:
        return deepcopy(value)
    except Exception:
        return value


@contextmanager
def kept_definitions(job: JobDefinition, step: ExecutionStep) -> Iterator[None]:
    """Undo what a step changes of tags and metadata of its op, its assets and its job: Dagster hands those out."""
    found = [each for each in _mappings(job, step) if isinstance(each, dict)]
    saved = [{name: _plain(value) for name, value in each.items()} for each in found]
    try:
        yield
    finally:
        for each, before in zip(found, saved, strict=True):
            if each != before or list(each) != list(before):
                each.clear()
                each.update(before)


def _plain(value: Any) -> Any:
    """A copy of metadata: its values are immutable, except plain lists and mappings."""
    return copied(value) if isinstance(value, dict | list | set) else value


def _mappings(job: JobDefinition, step: ExecutionStep) -> Iterator[Any]:
    definition = job.get_node(step.node_handle).definition
    yield from (job.metadata, job.run_tags, job._tags, job.graph.tags, definition.tags)
    yield from (each.metadata for each in definition.input_defs)
    yield from (each.metadata for each in definition.output_defs)
    assets = job.asset_layer.get_assets_def_for_node(step.node_handle)
    for spec in assets.specs if assets else ():
        yield from (spec.metadata, spec.tags)
