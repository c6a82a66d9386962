"""What a store asks of a database, whichever it is.

A database is a few roles. Each is used from the event loop and blocks nothing; whatever fails raises errors
of `asm_runtime.errors`, by the database's own `ErrorTable`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime
from typing import Protocol, TypeAlias

import msgspec

from asm_runtime.ports import ArtifactStats
from asm_runtime.records import Artifact, Event, Run, RunStatus, Session, SessionStatus
from asm_runtime.stores.artifact_rules import RowFilter
from asm_runtime.stores.filters import EventFilter
from asm_runtime.stores.sql.outcome import Outcome, Request

__all__ = ["ChangeSource", "Database", "Liveness", "Page", "Reader", "Writer"]


class Page(msgspec.Struct, frozen=True, gc=False):
    """A piece of a log."""

    head: int | None
    """The latest number of the log, in the same snapshot; None: it has no counter."""
    incarnation: int | None
    """Of the session; None: likewise."""
    events: list[Event]
    position: int | None
    """The number up to which, in the order of the page, all was looked at; None: nothing follows."""
    room: int | None
    """How many bytes of the filter's `max_bytes` are left."""


class Writer(Protocol):
    """Writes groups of requests: see `group` for what is tried when the database refuses one."""

    def write(self, requests: Sequence[Request], now: datetime) -> asyncio.Future[Outcome]:
        """Run requests in order, in as few transactions as their errors allow.

        A request's error is its result. Two groups are written in the order in which they were given; the
        second may be given before the first is written. A caller that gives up does not undo the group.

        Args:
            requests: What waits.
            now: The time of the transaction.

        Raises:
            StoreError: Nothing is known of any of the requests.
        """
        ...


class Reader(Protocol):
    """Answers questions, each from one snapshot that has all that was committed before."""

    def events(
        self,
        session_id: str,
        filter: EventFilter,
        *,
        limit: int,
        max_bytes: int,
        examined: int,
        has_room: bool,
    ) -> Awaitable[Page]:
        """The first page of what a filter wants.

        Where no index says which events are wanted, it looks at a few and may be empty though others
        follow: no other reader has to wait for long.

        Args:
            session_id: Whose log.
            filter: What is wanted.
            limit: How many events at most.
            max_bytes: How large they may be all in all; one that is larger comes alone.
            examined: How many it looks at to find them.
            has_room: The first one is wanted even if it exceeds the filter's own `max_bytes`.

        Raises:
            StoreError: One of them cannot be read; names it.
        """
        ...

    def latest_sequence(self, session_id: str) -> Awaitable[int]:
        """The greatest number ever given in a log."""
        ...

    def session(self, session_id: str) -> Awaitable[Session]:
        """A session that is not deleted.

        Raises:
            SessionNotFound: There is none.
        """
        ...

    def sessions(
        self,
        statuses: frozenset[SessionStatus] | None,
        agent_ids: frozenset[str] | None,
        after: Session | None,
        offset: int,
        limit: int,
        max_bytes: int,
    ) -> Awaitable[tuple[list[Session], bool]]:
        """A page of sessions, the oldest first, and whether others may follow.

        Args:
            statuses: Of one of these statuses; None: of any.
            agent_ids: Likewise.
            after: The last of the page before; None: from the first.
            offset: How many to pass over.
            limit: How many at most.
            max_bytes: How large they may be all in all; one that is larger comes alone.

        Raises:
            StoreError: One of them cannot be read; names it.
        """
        ...

    def run(self, run_id: str, session_id: str | None) -> Awaitable[Run]:
        """A run by its id.

        Raises:
            RunNotFound: There is none.
            Conflict: Several sessions have one, and none is named.
        """
        ...

    def runs(
        self,
        session_id: str,
        statuses: frozenset[RunStatus] | None,
        after: str | None,
        limit: int,
        max_bytes: int,
    ) -> Awaitable[tuple[list[Run], bool]]:
        """Likewise of a session's runs, in the order of acceptance; `after`: those accepted after that run.

        Raises:
            RunNotFound: There is no such run.
            StoreError: One of them cannot be read; names it.
        """
        ...

    def active_run(self, session_id: str) -> Awaitable[Run | None]:
        """The running run that was started first."""
        ...

    def run_revision(self, session_id: str) -> Awaitable[int]:
        """The number of the last change of a session's runs, or of its status."""
        ...

    def owners(self, session_id: str | None) -> Awaitable[Collection[str | None]]:
        """Who executes the running runs, of one session or of all; None: there is one that nobody does."""
        ...

    def orphans(
        self,
        session_id: str | None,
        dead: Collection[str],
        after: tuple[str, int],
        limit: int,
        max_bytes: int,
    ) -> Awaitable[tuple[list[Run], tuple[str, int] | None]]:
        """A page of running runs without an owner or with one of these, and where the next one begins.

        Args:
            session_id: Of which session; None: of all.
            dead: The owners.
            after: Where it begins: after this session and position.
            limit: How many at most.
            max_bytes: As for `sessions`.
        """
        ...

    def removals(self, past: str, limit: int) -> Awaitable[list[str]]:
        """Deleted sessions that have left something, in the order of their ids, past an id."""
        ...

    def artifact(self, key: str) -> Awaitable[Artifact]:
        """The live row of an artifact that has a key.

        Raises:
            ArtifactNotFound: There is none.
        """
        ...

    def artifacts(self, filter: RowFilter, limit: int) -> Awaitable[list[Artifact]]:
        """The first rows that a filter wants, at most `limit`."""
        ...

    def artifact_stats(self, session_id: str) -> Awaitable[ArtifactStats]:
        """The live rows of a session, counted."""
        ...


class Liveness(Protocol):
    """Which nodes are alive, this one among them: a lock, or a lease that is renewed."""

    @property
    def has_joined(self) -> bool:
        """Whether others see this node as alive."""
        ...

    async def join(self) -> None:
        """Be seen as alive until the database is closed. Before the first claim; idempotent.

        Raises:
            StoreUnavailable: It cannot be made known.
        """
        ...

    def dead(self, node_ids: Collection[str]) -> Awaitable[Collection[str]]:
        """Which of those nodes are not alive. After an outage nobody is, for as long as a lease lasts."""
        ...


Told: TypeAlias = "Callable[[Collection[str] | None], None]"


class ChangeSource(Protocol):
    """What other stores commit. What was found while writing is in the `Outcome`."""

    @property
    def look_every_seconds(self) -> float | None:
        """How often to look while somebody waits; None: nobody else writes."""
        ...

    def look(self, awaited: Collection[str]) -> Awaitable[Collection[str] | None]:
        """See what has changed since the last look.

        Args:
            awaited: The sessions that somebody waits for.

        Returns:
            Sessions that others have changed; None: more than is known.
        """
        ...

    def listen(self, told: Told) -> None:
        """Have the loop call `told` with such an answer as soon as there is one, where there is a bell."""
        ...


class Database(Protocol):
    """A database, and what a store does with it between `open` and `close`."""

    name: str
    """What names it in errors."""

    @property
    def writer(self) -> Writer:
        """What writes to it."""
        ...

    @property
    def reader(self) -> Reader:
        """What reads it."""
        ...

    @property
    def liveness(self) -> Liveness:
        """Who else uses it."""
        ...

    @property
    def changes(self) -> ChangeSource:
        """What others write to it."""
        ...

    async def open(self, inherited: Callable[[str], None]) -> bool:
        """Connect and bring the schema up to date, or see that it is.

        Args:
            inherited: Called in a forked child, where none of it can be used, with the reason.

        Returns:
            Whether deleted sessions have left something that is still to be removed.

        Raises:
            StoreUnavailable: The database cannot be reached, or is locked for too long.
            MigrationRequired: The schema is not the one that is needed.
            StoreError: It is no database, or not one that can be used.
        """
        ...

    async def close(self) -> None:
        """Finish what waits, leave, and close the connections. Idempotent."""
        ...

    def close_soon(self) -> None:
        """Begin to close and wait for nothing: the store has crashed."""
        ...
