"""Connections to a PostgreSQL server: one that writes, and a few that read."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

import asyncpg

from asm_runtime.errors import AsmError
from asm_runtime.stores.sql.postgres.errors import is_lost, translating

__all__ = ["Connection", "Connections", "Settings"]

T = TypeVar("T")
REPEATS = 2
"""How often a question is asked again whose connection was lost: it may have been lost long ago."""

Connection: TypeAlias = "asyncpg.Connection[Any]"


class Settings:
    """How to reach a server.

    Args:
        url: With the password, if there is one.
        connect_timeout: In seconds, until there is a connection.
        statement_timeout: In seconds, until a statement has answered. It is kept here and not by the
            server, so that it holds behind a pooler too.
    """

    def __init__(self, url: str, *, connect_timeout: float, statement_timeout: float) -> None:
        scheme, _, rest = url.partition("://")
        self.dsn = f"{scheme.partition('+')[0]}://{rest}"
        self.name = _without_secrets(self.dsn)
        self._connect_timeout = connect_timeout
        self._statement_timeout = statement_timeout

    async def connect(self) -> Connection:
        """A new connection.

        Raises:
            Exception: The driver's.
        """
        return await asyncpg.connect(
            self.dsn, timeout=self._connect_timeout, command_timeout=self._statement_timeout
        )


class Connections:
    """A few connections that are kept; whoever needs one and finds none waits for it.

    Args:
        settings: How to connect.
        size: How many there are at most.
    """

    def __init__(self, settings: Settings, size: int) -> None:
        self.name = settings.name
        self._settings = settings
        self._free = asyncio.Semaphore(size)
        self._idle: deque[Connection] = deque()
        self._closed = False

    async def read(self, job: Callable[[Connection], Awaitable[T]]) -> T:
        """Have a connection answer a question; asked again if it is lost on the way.

        Raises:
            StoreError: What the driver's error means.
        """
        with translating(self.name):
            async with self._free:
                for _ in range(REPEATS):
                    connection = await self._taken()
                    try:
                        async with self._kept(connection):
                            return await job(connection)
                    except Exception as error:
                        if not is_lost(error) or isinstance(error, TimeoutError):
                            raise
                async with self._kept(connection := await self._settings.connect()):
                    return await job(connection)

    async def close(self) -> None:
        """Close those that nobody uses. Idempotent."""
        self.close_soon()

    def close_soon(self) -> None:
        """The same at once."""
        self._closed = True
        while self._idle:
            self._idle.popleft().terminate()

    async def _taken(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return await self._settings.connect()

    @asynccontextmanager
    async def _kept(self, connection: Connection) -> AsyncGenerator[None]:
        """Keep a connection after its use, unless it broke."""
        try:
            yield
        except (asyncpg.PostgresError, AsmError) as error:
            if is_lost(error):
                connection.terminate()
            raise
        except BaseException:  # it may be amid an answer
            connection.terminate()
            raise
        finally:
            if self._closed:
                connection.terminate()
            elif not connection.is_closed():
                self._idle.append(connection)


def _without_secrets(dsn: str) -> str:
    """The URL without user, password and parameters."""
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"
