"""A server's view of its session's queue. The queue itself is in the store."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["RunQueue"]


class RunQueue:
    """Which runs are pending, as the server last saw it, and which of them it accepted itself.

    It follows the server's own submissions and claims at once; what other servers do is seen by
    recounting. Every step costs the same however long the queue is, only a recount reads it all.
    """

    __slots__ = ("_claimed", "_own", "_pending", "_submitted", "_submitting")

    def __init__(self) -> None:
        self._pending: dict[str, None] = {}
        self._own: set[str] | None = None
        self._submitting = 0
        # What happened since the last mark, or while a submission is under way.
        self._claimed: set[str] | None = None
        self._submitted: list[str] | None = None

    def __len__(self) -> int:
        return len(self._pending)

    def run_ids(self) -> list[str]:
        """The pending runs, first in first out."""
        return list(self._pending)

    @property
    def has_own(self) -> bool:
        """Whether a run accepted here waits, or is being accepted."""
        return bool(self._own) or self._submitting > 0

    def submitting(self) -> None:
        """A submission is under way."""
        self._submitting += 1
        if self._claimed is None:
            self._claimed = set()

    def submitted(self, run_id: str | None) -> bool:
        """It has ended, with a run that is pending now, or (None) without one; whether that run is new here.

        A run may be claimed before its submitter hears that it was accepted: then it does not wait
        any more. And it may be counted before that: it is the submitter's own all the same.
        """
        self._submitting -= 1
        new = run_id is not None and run_id not in (self._claimed or ()) and run_id not in (self._own or ())
        if new and run_id is not None:
            self._pending.setdefault(run_id)
            self._own = self._own or set()
            self._own.add(run_id)
            if self._submitted is not None:
                self._submitted.append(run_id)
        self._forget()
        return new

    def left(self, run_id: str) -> bool:
        """A run was claimed or ended here; whether it was seen waiting."""
        if self._claimed is not None:
            self._claimed.add(run_id)
        if self._own is not None:
            self._own.discard(run_id)
        if run_id in self._pending:
            del self._pending[run_id]
            return True
        return False

    def mark(self) -> None:
        """A recount begins: the store is asked now."""
        self._claimed = self._claimed or set()
        self._submitted = []

    def recount(self, pending: Iterable[str]) -> set[str]:
        """It ends: `pending` is what the store had at some moment since the mark.

        Returns:
            The runs accepted here that are no longer pending though this server did not take them.
        """
        claimed, submitted = self._claimed or set(), self._submitted or []
        now = {run_id: None for run_id in pending if run_id not in claimed}
        for run_id in submitted:
            if run_id not in claimed:
                now.setdefault(run_id)
        gone = {run_id for run_id in self._own or () if run_id not in now}
        if self._own is not None:
            self._own -= gone
        self._pending = now
        self._submitted = None
        self._forget()
        return gone

    def _forget(self) -> None:
        if not self._submitting and self._submitted is None:
            self._claimed = None
        if not self._own:
            self._own = None
