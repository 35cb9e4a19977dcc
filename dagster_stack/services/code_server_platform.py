"""What all code servers share: imported by the process that they are forked from, before there is any user code."""

from dagster_stack.loading import uncollected

with uncollected():
    import dagster_stack.project.defaults
    import dagster_stack.project.read_only
    import dagster_stack.services.code_server
    import dagster_stack.storage.compute_logs
    import dagster_stack.storage.objects
    import dagster_stack.storage.postgres  # noqa: F401
