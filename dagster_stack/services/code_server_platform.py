"""What all code servers share: imported by the process that they are forked from, before there is any user code.

gRPC is imported, and nothing of it is made: its objects do not outlive a fork, its code does.
"""

from dagster_stack.loading import uncollected

with uncollected():
    import dagster._cli
    import dagster._cli.api
    import dagster._grpc.server  # noqa: F401

    import dagster_stack.messaging.address
    import dagster_stack.objects.compute_logs
    import dagster_stack.objects.object_store
    import dagster_stack.project.defaults
    import dagster_stack.project.read_only
    import dagster_stack.run.executor
    import dagster_stack.services.code_server
    import dagster_stack.store.instance_storage  # noqa: F401
