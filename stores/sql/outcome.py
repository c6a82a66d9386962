"""What is asked of a database that writes, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from asm_runtime.records import Event

__all__ = ["Appended", "Deleted", "Effect", "Outcome", "Request", "RunsChanged"]

Request: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...]]
"""One of `operations`, and its arguments after the transaction."""


class Appended(msgspec.Struct, frozen=True, gc=False):
    """New events are in the logs, in ascending order within each session."""

    events: list[Event]

    def by_session(self) -> dict[str, list[Event]]:
        """Them, apart by session."""
        sessions: dict[str, list[Event]] = {}
        for event in self.events:
            sessions.setdefault(event.session_id, []).append(event)
        return sessions


class RunsChanged(msgspec.Struct, frozen=True, gc=False):
    """A run of the session, or the session's own status, has changed."""

    session_id: str
    revision: int


class Deleted(msgspec.Struct, frozen=True, gc=False):
    """The session is gone."""

    session_id: str


Effect: TypeAlias = "Appended | RunsChanged | Deleted"


class Outcome(msgspec.Struct, gc=False):
    """What became of a group."""

    results: list[Any]
    """For each request what it returned, or the exception that it raised."""
    effects: list[Effect]
    """What was committed, in order."""
    foreign: list[str] | None
    """Sessions that others have changed; None: more than is known."""
    commits: int
    """How many transactions have changed something."""
    sync_bound: bool
    """Whether the last commit took longer than what was committed: the disk is slow to sync."""
    has_removals: bool = False
    """Whether somebody is seen to have left what a deleted session had. It is looked for now and then."""
