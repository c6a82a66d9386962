"""Where the runtime says what happens, so that telemetry can be added once, at the edges.

The kernel calls these hooks and does not know who listens. `asm_runtime.telemetry` puts its own
observer here when `asm_runtime` is imported. A hook must be quick and must not raise.
"""

from __future__ import annotations

import contextvars
from collections.abc import Sequence

from asm_runtime.records import Event, Run, Session

__all__ = ["Observer", "RunTrace", "observer", "set_observer"]


class RunTrace:
    """One run as this process sees it, from its submission or its claim to its end.

    It ends once, with `ended`, `requeued` or `abandoned`; of what is said after that, only late events
    count.
    """

    __slots__ = ()

    def queued(self, depth: int) -> None:
        """It was accepted; `depth` runs stand before it."""

    def started(self, run: Run, session: Session) -> None:
        """This process claimed it and begins attempt `run.attempt`."""

    def execution_context(self) -> contextvars.Context | None:
        """What the adapter's task runs in, so that its own spans belong to the run; None: the caller's."""
        return None

    def stored(self, event: Event) -> None:
        """One of its events is in the log."""

    def late_event(self) -> None:
        """Its adapter reported an event after its end; it was dropped."""

    def requeued(self) -> None:
        """It goes back to the queue; who claims it next begins another trace."""

    def ended(self, run: Run, events: Sequence[Event] = ()) -> None:
        """It reached a terminal status, here or, `run.owner` being another node, elsewhere.

        `events` were stored in one step with that status.
        """

    def abandoned(self) -> None:
        """This process no longer follows it, and does not know how it ends."""


class Observer:
    """The hooks; each does nothing."""

    __slots__ = ()

    def run(self, run: Run, agent_id: str | None, *, awaited: bool = False) -> RunTrace:
        """A run was submitted here, or claimed here though submitted elsewhere.

        Args:
            run: As it is stored.
            agent_id: Its session's, if known.
            awaited: Whether the caller executes it and waits for its end.
        """
        return _NO_TRACE

    def trace_context(self) -> dict[str, str]:
        """The caller's trace context (W3C `traceparent` …), stored with a run; {} if there is none."""
        return {}

    def session_started(self, session: Session) -> object:
        """A server serves the session; what this returns goes to `session_stopped`."""
        return None

    def session_stopped(self, token: object, reason: BaseException | None) -> None:
        """That server has ended."""

    def queue_depth_changed(self, session_id: str, change: int) -> None:
        """This many more runs (negative: fewer) wait in a queue that this process serves."""

    def in_flight_changed(self, session_id: str, change: int) -> None:
        """This many more runs (negative: fewer) execute in this process."""

    def drain_began(self, session_id: str) -> object:
        """A drain begins; what this returns goes to `drain_ended`."""
        return None

    def drain_ended(self, token: object, error: BaseException | None) -> None:
        """That drain has ended."""

    def write_began(self, kind: str, session_id: str, events: int, trace: RunTrace | None = None) -> object:
        """A store write of the runtime begins: `append` or `flush`, of `events` events, for that run."""
        return None

    def write_ended(self, token: object, stored: list[Event] | None, error: BaseException | None) -> None:
        """That write has ended; `stored` carries the sequence range."""

    def group_committed(self, requests: int, events: int) -> None:
        """A store committed one group: the number of requests, and of new events."""

    def waiters_changed(self, change: int) -> None:
        """This many more callers (negative: fewer) are parked in a store."""

    def subscriber_lagged(self, session_id: str, behind: int) -> None:
        """A subscription fell behind, by this many events, and goes back to reading from the store."""


_NO_TRACE = RunTrace()
_observer = Observer()


def observer() -> Observer:
    """The observer in force."""
    return _observer


def set_observer(new: Observer) -> Observer:
    """Put another observer in force, for the whole process; returns the one before."""
    global _observer
    before, _observer = _observer, new
    return before
