"""One session's runs in memory, in the order of their acceptance."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable

from asm_runtime.records import Run, RunStatus

__all__ = ["RunQueue"]


class RunQueue:
    """A session's runs in the order of their acceptance; a run's *place* is its index there."""

    __slots__ = ("_pending", "_places", "_running", "all")

    def __init__(self) -> None:
        self.all: list[Run] = []
        self._places: dict[str, int] = {}
        self._pending: list[int] = []
        """Sorted, so that a run that is queued again has its old place. Taking the first of 10 000 moves
        80 kB, a few microseconds."""
        self._running: list[int] = []
        """Sorted."""

    @property
    def running_count(self) -> int:
        """How many are `running`."""
        return len(self._running)

    @property
    def open_count(self) -> int:
        """How many are `pending` or `running`."""
        return len(self._pending) + len(self._running)

    def get(self, run_id: str) -> Run | None:
        """The run with that id."""
        place = self._places.get(run_id)
        return None if place is None else self.all[place]

    def put(self, run: Run) -> bool:
        """Insert or replace; True if it is new."""
        place = self._places.get(run.id)
        new = place is None
        if place is None:
            place = self._places[run.id] = len(self.all)
            self.all.append(run)
        else:
            before, self.all[place] = self.all[place], run
            places = self._places_with(before.status)
            if places is not None:
                del places[bisect_left(places, place)]
        places = self._places_with(run.status)
        if places is not None:
            insort(places, place)
        return new

    def first_pending(self) -> Run | None:
        """Whose turn it is."""
        return self.all[self._pending[0]] if self._pending else None

    def earliest_started(self) -> Run | None:
        """The running one that started first; those without a time come last."""
        return min(
            (self.all[place] for place in self._running),
            key=lambda run: (run.started_at is None, run.started_at or run.created_at),
            default=None,
        )

    def with_status(self, statuses: Collection[RunStatus] | None) -> Iterable[Run]:
        """Those with one of these statuses, in the order of acceptance; None: all."""
        if statuses is None:
            return self.all
        if len(statuses) == 1:
            places = self._places_with(next(iter(statuses)))
            if places is not None:
                return (self.all[place] for place in places)
        return (run for run in self.all if run.status in statuses)

    def _places_with(self, status: RunStatus) -> list[int] | None:
        """The index of the open statuses."""
        if status is RunStatus.PENDING:
            return self._pending
        return self._running if status is RunStatus.RUNNING else None
