"""Parts of botocore: the connections of a client, of which a forked child must not use, or close, its parent's."""

from functools import partial
from typing import Any

from urllib3 import PoolManager

from dagster_stack.patches.part import Part

_botocore = partial(
    Part,
    read="botocore 1.44.5",
    why="a client takes 15 MB and 150 ms: a child keeps it, without its connections.",
)

USED = (
    _botocore(where="botocore.client:BaseClient._endpoint", shape="attribute"),
    _botocore(where="botocore.httpsession:URLLib3Session._manager", shape="attribute"),
    _botocore(where="botocore.httpsession:URLLib3Session._proxy_managers", shape="attribute"),
    _botocore(where="botocore.httpsession:URLLib3Session._pool_classes_by_scheme", shape="attribute"),
    _botocore(
        where="botocore.httpsession:URLLib3Session._get_pool_manager_kwargs", shape="self, extra_kwargs"
    ),
)


def renew_connections(client: Any) -> Any:
    """Let a client make connections of its own; returns what keeps the former ones."""
    session = client._endpoint.http_session
    former = session._manager, session._proxy_managers
    session._manager = PoolManager(**session._get_pool_manager_kwargs())
    session._manager.pool_classes_by_scheme = session._pool_classes_by_scheme
    session._proxy_managers = {}
    return former
