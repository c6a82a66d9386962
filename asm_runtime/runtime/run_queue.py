"""A server's view of its session's queue. The queue itself is in the store."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence

from asm_runtime.observer import RunTrace
from asm_runtime.ports import EventCallback
from asm_runtime.records import Run

__all__ = ["RunQueue", "Submission"]

MOST_REMEMBERED = 10_000
"""How many runs may leave the queue while it is recounted; then that count is out of date and dropped."""


class Submission:
    """A run that was submitted here: what its submitter gave along with it, for its execution here.

    It begins before the store is asked to accept the run, which may start before its submitter
    hears that it was accepted.

    Attributes:
        run: As it was to be stored; None once it is known to be accepted.
        callbacks: Given the run's events while it executes here.
        trace: Told what happens to it, once it is accepted.
        has_left: Whether the run has left the queue: it was claimed, or has ended.
    """

    __slots__ = ("callbacks", "has_left", "run", "trace")

    def __init__(self, run: Run, callbacks: Sequence[EventCallback]) -> None:
        self.run: Run | None = run
        self.callbacks = callbacks
        self.trace: RunTrace | None = None
        self.has_left = False


class RunQueue:
    """Which runs are pending, as the server last saw it, and which of them were submitted to it.

    It follows the server's own submissions and claims at once; what other servers do is seen by
    recounting. Every step costs the same however long the queue is, only a recount reads it all.
    """

    __slots__ = ("_joined", "_left", "_missing", "_pending", "_seen", "_submissions")

    def __init__(self) -> None:
        self._pending: dict[str, None] = {}
        # By run: the one that was accepted, or those that the store has not answered yet.
        self._submissions: dict[str, list[Submission]] | None = None
        # During a recount: what it has seen, which own runs it has not, and what has happened meanwhile.
        self._seen: dict[str, None] | None = None
        self._missing: dict[str, None] | None = None
        self._joined: dict[str, None] | None = None
        self._left: set[str] | None = None

    def __len__(self) -> int:
        return len(self._pending)

    def run_ids(self) -> list[str]:
        """The pending runs, first in first out."""
        return list(self._pending)

    @property
    def has_own(self) -> bool:
        """Whether a run submitted here waits, or is being accepted."""
        return bool(self._submissions)

    def has_accepted(self, run_id: str) -> bool:
        """Whether that run waits, and was submitted here."""
        submissions = self._submissions_of(run_id)
        return bool(submissions) and submissions[0].run is None and run_id in self._pending

    # -- submissions

    def submitting(self, run: Run, callbacks: Sequence[EventCallback]) -> Submission:
        """The store is asked to accept a run."""
        submission = Submission(run, callbacks)
        if self._submissions is None:
            self._submissions = {}
        self._submissions.setdefault(run.id, []).append(submission)
        return submission

    def accepted(self, submission: Submission) -> bool:
        """The store has that run as pending; whether it waits here because of this submission.

        Not if it was claimed meanwhile, nor if it was submitted here before: then this is the same
        submission again, and the first one's callbacks are the run's.
        """
        run = submission.run
        if run is None or submission.has_left:
            return False
        others = self._submissions_of(run.id)
        if any(other.run is None for other in others):
            self.refused(submission)
            return False
        submission.run = None
        others.remove(submission)
        others.insert(0, submission)
        self._joins(run.id)
        return True

    def refused(self, submission: Submission) -> None:
        """The store did not accept it, or has that run as started or ended; or nobody knows. Idempotent."""
        if submission.run is not None and not submission.has_left:
            others = self._submissions_of(submission.run.id)
            if submission in others:
                others.remove(submission)
            self._tidy(submission.run.id)

    def returned(self, run_id: str, submission: Submission) -> None:
        """Its run was claimed here, but the attempt did not end it: it may be queued again."""
        submission.has_left = False
        submission.run = submission.trace = None
        if self._submissions is None:
            self._submissions = {}
        self._submissions.setdefault(run_id, []).insert(0, submission)
        if self._joined is not None:
            self._joined[run_id] = None
        if self._missing is not None:
            self._missing.pop(run_id, None)

    # -- claims and ends

    def left(self, run: Run) -> tuple[bool, Submission | None]:
        """A run was claimed or ended here; whether it was seen waiting, and its submitter."""
        waited = run.id in self._pending
        if waited:
            del self._pending[run.id]
        if self._left is not None:
            self._left.add(run.id)
            if len(self._left) > MOST_REMEMBERED:
                self.stop_counting()
        if self._submissions is None:
            return waited, None
        submissions = self._submissions.pop(run.id, ())
        self._submissions = self._submissions or None
        owner = None
        for submission in submissions:
            submission.has_left = True
            # One that was not answered yet may be refused still, if it has another input.
            if owner is None and (submission.run is None or submission.run.input == run.input):
                owner = submission
        return waited, owner

    def clear(self) -> Iterator[Submission]:
        """Nobody looks at the queue here any more; returns the submissions whose runs waited."""
        self.stop_counting()
        submissions = self._submissions or {}
        self._pending, self._submissions = {}, None
        return (those[0] for those in submissions.values() if those[0].run is None)

    # -- recounts

    def count(self) -> None:
        """A recount begins: the store is asked now."""
        self._seen, self._joined, self._left = {}, {}, set()
        self._missing = dict.fromkeys(self._submissions or ())

    def saw(self, run_ids: Iterable[str]) -> None:
        """The next pending runs, in order, as the store had them at some moment since it began."""
        if self._seen is not None and self._missing is not None:
            for run_id in run_ids:
                self._seen[run_id] = None
                self._missing.pop(run_id, None)

    def counted(self, resting: Container[str] = ()) -> list[Submission]:
        """It ends; the queue is what was seen, and what has happened meanwhile.

        That costs what has happened, and what is gone: a long queue is not gone through again.

        Args:
            resting: Orphaned runs that will be queued again.

        Returns:
            The submissions whose runs are no longer pending though this server did not take them.
        """
        seen, missing, joined, left = self._seen, self._missing, self._joined, self._left
        self.stop_counting()
        if seen is None or missing is None or joined is None or left is None:
            return []
        for run_id in left:
            seen.pop(run_id, None)
        for run_id in joined:
            if run_id in self._pending:
                seen.setdefault(run_id)
        self._pending = seen
        gone: list[Submission] = []
        for run_id in missing:
            submissions = self._submissions_of(run_id)
            if submissions and submissions[0].run is None and run_id not in joined and run_id not in resting:
                gone.append(submissions.pop(0))
                self._tidy(run_id)
        return gone

    def stop_counting(self) -> None:
        """Forget what the recount has seen: the store did not answer."""
        self._seen = self._missing = self._joined = self._left = None

    # -- the inside

    def _joins(self, run_id: str) -> None:
        self._pending.setdefault(run_id)
        if self._left is not None:
            self._left.discard(run_id)
        if self._joined is not None:
            self._joined[run_id] = None

    def _submissions_of(self, run_id: str) -> list[Submission]:
        return (self._submissions or {}).get(run_id, [])

    def _tidy(self, run_id: str) -> None:
        """Nothing is kept of runs that nobody submits."""
        if self._submissions is not None and not self._submissions.get(run_id, True):
            del self._submissions[run_id]
            self._submissions = self._submissions or None
