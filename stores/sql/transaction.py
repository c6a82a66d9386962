"""What `operations` ask of a write transaction, on whatever database.

All of it is plain: where a question would be a round trip, the facts that a group's requests need are read
before the first of them runs, and what they write is sent after the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from asm_runtime.records import Artifact, Event, Fence, Run, Session
from asm_runtime.stores.sql.rows import EventRow, Row

__all__ = ["Transaction"]


class Transaction(Protocol):
    """What the requests of one transaction share. Each sees what those before it have written."""

    node_id: str
    """Of the store that writes."""
    now: datetime
    """The time of the transaction."""

    # -- what is stored

    def session_status(self, session_id: str) -> str | None:
        """The status of a session, deleted softly or not; None: there is none."""
        ...

    def stored_session(self, session_id: str) -> Session | None:
        """The whole row."""
        ...

    def run_state(self, session_id: str, run_id: str) -> tuple[str, int] | None:
        """The status and the attempt of a run; None: there is none."""
        ...

    def run_states(self, fences: Sequence[Fence]) -> dict[tuple[str, str], tuple[str, int]]:
        """The same of the runs that fences name, by session and run; what is missing, is not."""
        ...

    def stored_run(self, session_id: str, run_id: str) -> Run | None:
        """The whole row."""
        ...

    def open_runs(self, session_id: str) -> int:
        """How many of a session's runs are pending or running."""
        ...

    def before_enqueue(self, run: Run) -> tuple[str | None, int, Run | None]:
        """The session's status, how many of its runs are open, and the run that has the new one's id."""
        ...

    def before_claim(
        self, session_id: str, max_running: int, run_id: str | None
    ) -> tuple[str | None, int, Row] | None:
        """What a claim depends on; None: nothing is pending.

        Args:
            session_id: Whose.
            max_running: How far the running ones are counted.
            run_id: Only this one; None: whichever is pending first.

        Returns:
            The session's status, how many of its runs are running, and the pending one as a row.
        """
        ...

    def artifact(self, id: str) -> Artifact | None:
        """A row of an artifact, deleted softly or not."""
        ...

    def live_artifact(self, key: str) -> Artifact | None:
        """The live row that has a key."""
        ...

    # -- what is written

    def append(self, batches: Sequence[Sequence[EventRow]]) -> list[list[Event]]:
        """Number and insert events; returns, for each, the stored one.

        The events are the store's own copies, which nobody else holds yet: they get their numbers
        in place.
        """
        ...

    def save_session(self, session: Session) -> None:
        """Upsert a session."""
        ...

    def save_run(self, run: Run) -> None:
        """Upsert a run. A new one gets the next place in its session's queue."""
        ...

    def claim(self, run: Run) -> None:
        """Write status, owner, attempt and start of a run that was pending."""
        ...

    def release(self, fence: Fence) -> bool:
        """Clear the owner of a run that still runs under that attempt; whether there was one."""
        ...

    def unclaim(self, fence: Fence) -> bool:
        """Have a run that still runs under that attempt pend again; whether there was one."""
        ...

    def run_changed(self, session_id: str, *, opened: int = 0) -> None:
        """Note that a run of the session, or its own status, changes in this transaction.

        Args:
            session_id: Whose.
            opened: How many more runs are pending or running.
        """
        ...

    def delete_session(self, session_id: str) -> bool:
        """Delete a session: it is gone for everybody. Whether nothing is left of it either."""
        ...

    def remove_left(self, session_id: str) -> bool:
        """Remove some of what a deleted session has left; whether that was all.

        How much one transaction removes is bounded, whatever the number of sessions.
        """
        ...

    def insert_artifact(self, artifact: Artifact) -> None:
        """Store a row of an artifact; neither its id nor, among the live ones, its key is there."""
        ...

    def delete_artifact(self, id: str) -> None:
        """Delete a row softly, now."""
        ...
