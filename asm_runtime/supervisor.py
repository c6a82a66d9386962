"""Many sessions in one process: each has its own server, which is restarted when it crashes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal, Unpack, cast

from asm_runtime import options
from asm_runtime.actor import DEFAULT_RESTART_BACKOFF_MS, Supervisor
from asm_runtime.clock import SYSTEM_CLOCK
from asm_runtime.errors import Conflict
from asm_runtime.ids import new_id
from asm_runtime.ports import ProviderAdapter, SessionStore
from asm_runtime.runtime.server_options import ServerOptions, ServerSettings
from asm_runtime.server import SessionServer

__all__ = ["SessionSupervisor"]


class SessionSupervisor(Supervisor):
    """Starts a server for each session, and a successor on the same session when one crashes.

    One session's crashes never touch another: how often a server may crash is counted for each
    session alone. Callers that waited on a crashed server get `ActorStopped`; its successor settles the
    runs that it left and goes on with the queue.

    Args:
        store: Where the sessions live; started, and stopped after the supervisor, by its owner.
        adapter: What executes runs.
        max_restarts: Maximum number of restarts of one session's server within the window; then it is
            given up.
        window_ms: That window, in milliseconds.
        restart_backoff_ms: The pause before the second restart in a row, in milliseconds; it doubles.
        server_options: Defaults for the options of every server, see `SessionServer`.
    """

    __slots__ = ("_adapter", "_defaults", "_store")

    def __init__(
        self,
        *,
        store: SessionStore,
        adapter: ProviderAdapter,
        max_restarts: int = 3,
        window_ms: int = 5_000,
        restart_backoff_ms: int = DEFAULT_RESTART_BACKOFF_MS,
        **server_options: Unpack[ServerOptions],
    ) -> None:
        ServerSettings.of("SessionSupervisor", server_options)
        super().__init__(
            max_restarts=max_restarts,
            window_ms=window_ms,
            restart_backoff_ms=restart_backoff_ms,
            clock=server_options.get("clock", SYSTEM_CLOCK),
        )
        self._store = store
        self._adapter = adapter
        self._defaults = server_options

    async def start_session(
        self,
        *,
        session_id: str | None = None,
        session_opts: Mapping[str, Any] | None = None,
        **server_options: Unpack[ServerOptions],
    ) -> SessionServer:
        """The running server of a session, started if there is none.

        Args:
            session_id: The session to serve.
            session_opts: Arguments to create one. Together with `session_id`: serve that session if it
                exists, else create it, in one step, also if others do the same.
            server_options: For a server that is not running yet, see `SessionServer`.

        Raises:
            Conflict: Options were given, and the session's server is running already.
            SessionNotFound: There is no such session.
            InvalidTransition: The session has ended.
        """
        if not self.is_running:
            raise self._gone()
        ServerSettings.of("start_session", server_options)
        options.session_choice(session_id, session_opts)
        if session_id is None and session_opts is not None:
            session_opts = dict(session_opts)
            if session_opts.get("id") is None:
                session_opts["id"] = new_id("ses_")
            key = options.identifier("session_opts['id']", session_opts["id"])
        else:
            key = options.identifier("session_id", session_id)
        if key in self._children and (server_options or session_id is None):
            what = "its server's options cannot be changed" if server_options else "it exists"
            raise Conflict(f"session {key} is served already: {what}", details={"session_id": key})
        servers = _Servers(
            self, key, {**self._defaults, **server_options} if server_options else self._defaults
        )
        if session_opts is not None and key not in self._children:
            # Made before its session is, so that a bad option leaves nothing behind.
            servers.first = servers.make(session_id, session_opts)
        return await self.start_child(key, servers)

    def whereis(self, session_id: str) -> SessionServer | None:
        """The running server of that session, or None. Plain."""
        return cast(SessionServer | None, self.child(session_id))

    def list_sessions(self) -> list[str]:
        """The ids of the sessions that are served here. Plain."""
        return self.children()

    async def stop_session(self, session_id: str) -> None:
        """Stop that session's server; the session itself stays as it is. Idempotent."""
        await self.stop_child(session_id)

    async def drain_all(
        self, *, timeout_ms: int | None = 60_000, queued: Literal["run", "leave"] = "run"
    ) -> None:
        """Drain every server, all at once.

        Raises:
            DrainTimeout: One of them is not done in time; all go on refusing.
        """
        servers = [server for key in self.children() if (server := self.whereis(key)) is not None]
        ends = await asyncio.gather(
            *(server.drain(timeout_ms=timeout_ms, queued=queued) for server in servers),
            return_exceptions=True,
        )
        for end in ends:
            if isinstance(end, BaseException):
                raise end


class _Servers:
    """Makes the servers of one session, one after the other."""

    __slots__ = ("first", "key", "options", "supervisor")

    def __init__(self, supervisor: SessionSupervisor, key: str, server_options: ServerOptions) -> None:
        self.supervisor, self.key, self.options = supervisor, key, server_options
        # Where there is one, it makes the session too; successors find it.
        self.first: SessionServer | None = None

    def __call__(self) -> SessionServer:
        first, self.first = self.first, None
        return first or self.make(self.key, None)

    def make(self, session_id: str | None, session_opts: Mapping[str, Any] | None) -> SessionServer:
        supervisor = self.supervisor
        return SessionServer(
            store=supervisor._store,
            adapter=supervisor._adapter,
            session_id=session_id,
            session_opts=session_opts,
            **self.options,
        )
