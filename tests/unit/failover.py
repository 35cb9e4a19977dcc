"""A Postgres that is read-only for a while, as in a failover."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.unit.clock import Clock
from tests.unit.holders import Database
from tests.unit.postgres_server import PostgresServer
from tests.waiting import wait_until


class Server:
    """The server, which can be made read-only: for sessions that are open, too."""

    def __init__(self, server: PostgresServer, database: Database) -> None:
        self._server, self._database = server, database

    def set(self, read_only: bool) -> None:
        value = "on" if read_only else "off"
        self._server.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        self._server.execute("SELECT pg_reload_conf()")
        shown = "SHOW default_transaction_read_only"
        wait_until(
            lambda: self._database.execute(shown) == [(value,)], 10, f"read-only is {value}", pause=0.01
        )

    @contextmanager
    def read_only(self, clock: Clock, seconds: float) -> Iterator[None]:
        """Until somebody has waited for so many seconds of the clock."""
        over_at = clock.now + seconds
        sleep = clock.sleep

        def sleeping(seconds: float) -> None:
            sleep(seconds)
            if clock.now >= over_at:
                self.set(False)

        clock.sleep = sleeping  # type: ignore[method-assign]
        self.set(True)
        try:
            yield
        finally:
            clock.sleep = sleep  # type: ignore[method-assign]
            self.set(False)
