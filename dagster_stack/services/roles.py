"""What each role may do in Dagit, by Dagster's own permissions: the page greys out what its user may not."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from dagster._core.storage.tags import REPORTING_USER_TAG
from dagster._core.workspace.context import WorkspaceProcessContext, WorkspaceRequestContext
from dagster._core.workspace.permissions import PermissionResult

from dagster_stack.errors import SettingsError
from dagster_stack.services.identity import Identity, Role, identity_of
from dagster_stack.store.audit import Deed
from dagster_stack.store.ledger import stack_storage

#: The least role that has each of Dagster's permissions. One that is not here is for admins.
LEAST: dict[str, Role] = {
    **dict.fromkeys(
        (
            "launch_pipeline_execution",
            "launch_pipeline_reexecution",
            "terminate_pipeline_execution",
            "launch_partition_backfill",
            "cancel_partition_backfill",
            "start_schedule",
            "stop_running_schedule",
            "schedule_dry_run",
            "edit_sensor",
            "sensor_dry_run",
            "update_sensor_cursor",
            "toggle_auto_materialize",
            "edit_dynamic_partitions",
            "report_runless_asset_events",
        ),
        Role.OPERATOR,
    ),
    **dict.fromkeys(
        (
            "delete_pipeline_run",
            "wipe_assets",
            "reload_repository_location",
            "reload_workspace",
            "refresh_component_state",
            "edit_concurrency_limit",
            "edit_app_managed_components",
        ),
        Role.ADMIN,
    ),
}


def least(permission: str) -> Role:
    return LEAST.get(permission, Role.ADMIN)


def restricted(role: Role, permissions: Mapping[str, PermissionResult]) -> Mapping[str, PermissionResult]:
    """Those of Dagster, without what a role may not do."""
    return {
        name: found
        if not found.enabled or role.includes(least(name))
        else PermissionResult(False, f"Your role is {role.value}; this needs {least(name).value}")
        for name, found in permissions.items()
    }


class UserRequestContext(WorkspaceRequestContext):
    """What answers one request, of a user. A request of nobody may only look."""

    def __init__(self, identity: Identity | None, **options: Any) -> None:
        super().__init__(**options)
        self.identity = identity or Identity("", Role.VIEWER)
        self._of_locations: dict[str, Mapping[str, PermissionResult]] = {}

    @cached_property
    def permissions(self) -> Mapping[str, PermissionResult]:
        return restricted(self.identity.role, super().permissions)

    def permissions_for_location(self, *, location_name: str) -> Mapping[str, PermissionResult]:
        if location_name not in self._of_locations:
            found = super().permissions_for_location(location_name=location_name)
            self._of_locations[location_name] = restricted(self.identity.role, found)
        return self._of_locations[location_name]

    def get_reporting_user_tags(self) -> dict[str, str]:
        return {REPORTING_USER_TAG: self.identity.user} if self.identity.user else {}

    def record(self, operation: str, target: str, allowed: bool) -> None:
        """Note in the audit what the user does, or may not do. Raises SQLAlchemy's error when that is not possible."""
        storage = stack_storage(self.instance)
        if storage is None:
            raise SettingsError(
                "LOGIN=on needs the stack's own storage: who does what is recorded in its Postgres."
            )
        user = self.identity
        storage.audit.record(Deed(user.user, user.role.value, user.address, operation, target, allowed))


class UserProcessContext(WorkspaceProcessContext):
    """Dagster's own, whose requests know their user."""

    def create_request_context(self, source: object | None = None) -> UserRequestContext:
        plain = super().create_request_context(source)
        return UserRequestContext(
            identity_of(source),
            instance=plain.instance,
            current_workspace=plain.get_current_workspace(),
            process_context=self,
            version=plain.version,
            source=source,
            read_only=plain.read_only,
        )
