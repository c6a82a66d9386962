"""One session's runs in memory, in the order of their acceptance."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator
from heapq import merge

from asm_runtime.records import Run, RunStatus

__all__ = ["RunQueue"]


class RunQueue:
    """A session's runs in the order of their acceptance; a run's *place* is its index there."""

    __slots__ = ("_by_status", "_places", "all")

    def __init__(self) -> None:
        self.all: list[Run] = []
        self._places: dict[str, int] = {}
        self._by_status: dict[RunStatus, _Places] = {}

    @property
    def running_count(self) -> int:
        """How many are `running`."""
        return self._count(RunStatus.RUNNING)

    @property
    def open_count(self) -> int:
        """How many are `pending` or `running`."""
        return self._count(RunStatus.PENDING) + self._count(RunStatus.RUNNING)

    def get(self, run_id: str) -> Run | None:
        """The run with that id."""
        place = self._places.get(run_id)
        return None if place is None else self.all[place]

    def put(self, run: Run) -> bool:
        """Insert or replace; True if it is new."""
        place = self._places.get(run.id)
        if place is None:
            place = self._places[run.id] = len(self.all)
            self.all.append(run)
            self._with(run.status).add(place)
            return True
        before, self.all[place] = self.all[place], run
        if before.status is not run.status:
            self._with(before.status).remove(place)
            self._with(run.status).add(place)
        return False

    def first_pending(self) -> Run | None:
        """Whose turn it is."""
        return next(iter(self.with_status((RunStatus.PENDING,))), None)

    def earliest_started(self) -> Run | None:
        """The running one that started first; those without a time come last."""
        return min(
            self.with_status((RunStatus.RUNNING,)),
            key=lambda run: (run.started_at is None, run.started_at or run.created_at),
            default=None,
        )

    def with_status(
        self, statuses: Collection[RunStatus] | None, *, after: str | None = None
    ) -> Iterable[Run]:
        """Those with one of these statuses, in the order of acceptance; None: all.

        Args:
            statuses: Which.
            after: Only those accepted after this run.
        """
        start = 0 if after is None else self._places[after] + 1
        if statuses is None:
            return map(self.all.__getitem__, range(start, len(self.all)))
        places = [self._by_status[status].since(start) for status in statuses if status in self._by_status]
        return map(self.all.__getitem__, places[0] if len(places) == 1 else merge(*places))

    def _count(self, status: RunStatus) -> int:
        places = self._by_status.get(status)
        return 0 if places is None else len(places)

    def _with(self, status: RunStatus) -> _Places:
        places = self._by_status.get(status)
        if places is None:
            places = self._by_status[status] = _Places()
        return places


class _Places:
    """Sorted places; to take the first, to add the last and to add the first again moves no others."""

    __slots__ = ("_items", "_start")

    def __init__(self) -> None:
        self._items: list[int] = []
        self._start = 0
        """What stands before it was taken."""

    def __len__(self) -> int:
        return len(self._items) - self._start

    def add(self, place: int) -> None:
        items, start = self._items, self._start
        if start and (start == len(items) or place < items[start]):
            self._start = start - 1
            items[start - 1] = place
        else:
            insort(items, place, start)

    def remove(self, place: int) -> None:
        items, start = self._items, self._start
        if items[start] != place:
            del items[bisect_left(items, place, start)]
            return
        self._start = start + 1
        if 2 * self._start > len(items):
            del items[: self._start]
            self._start = 0

    def since(self, place: int) -> Iterator[int]:
        """Those from that place on."""
        items = self._items
        return map(items.__getitem__, range(bisect_left(items, place, self._start), len(items)))
