"""The instruments, and what is measured with each.

No attribute names a session, run, agent or tool: what has an id is found in the spans.
"""

from __future__ import annotations

import threading

from opentelemetry.metrics import Meter, Observation

from asm_runtime import errors
from asm_runtime.payload import JsonObject
from asm_runtime.records import Run
from asm_runtime.telemetry import conventions as names

__all__ = ["Levels", "Metrics", "error_type", "token_counts"]

_SECONDS = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600)
_COUNTS = tuple(2**power for power in range(13))

_ERROR_CODES = frozenset(getattr(errors, name).code for name in errors.__all__) | {"orphaned"}


class Levels:
    """What goes up and down: runs that wait, runs that execute, callers that are parked.

    They are counted here and read by the exporter, so that they are right too if metrics are
    configured while runs wait and execute. These three are the observer's hooks themselves: they are
    called more often than all the others.
    """

    __slots__ = ("_in_flight", "_in_flight_by_session", "_lock", "_queue_depth", "_waiters")

    def __init__(self) -> None:
        self._lock = threading.Lock()  # sessions may be served by loops in several threads
        self._queue_depth = 0
        self._in_flight = 0
        self._in_flight_by_session: dict[str, int] = {}
        self._waiters = 0

    def queue_depth_changed(self, session_id: str, change: int) -> None:
        """So many more (or fewer) runs wait."""
        with self._lock:
            self._queue_depth += change

    def in_flight_changed(self, session_id: str, change: int) -> None:
        """So many more (or fewer) runs execute."""
        with self._lock:
            self._in_flight += change
            count = self._in_flight_by_session.get(session_id, 0) + change
            if count:
                self._in_flight_by_session[session_id] = count
            else:
                self._in_flight_by_session.pop(session_id, None)

    def waiters_changed(self, change: int) -> None:
        """So many more (or fewer) callers are parked."""
        with self._lock:
            self._waiters += change

    def in_flight_of(self, session_id: str) -> int:
        """How many runs of that session execute here."""
        return self._in_flight_by_session.get(session_id, 0)

    def observed_by(self, meter: Meter) -> None:
        """Have a meter read them."""
        meter.create_observable_up_down_counter(
            names.METRIC_QUEUE_DEPTH,
            [lambda _: (Observation(self._queue_depth),)],
            unit="{run}",
            description="Runs that wait in the queues which this process serves.",
        )
        meter.create_observable_up_down_counter(
            names.METRIC_IN_FLIGHT_RUNS,
            [lambda _: (Observation(self._in_flight),)],
            unit="{run}",
            description="Runs that execute in this process.",
        )
        meter.create_observable_up_down_counter(
            names.METRIC_WAITERS,
            [lambda _: (Observation(self._waiters),)],
            unit="{waiter}",
            description="Callers that are parked in a store of this process until something is appended.",
        )


class Metrics:
    """What is counted and measured as it happens."""

    __slots__ = (
        "_appended_events",
        "_commit_events",
        "_commit_requests",
        "_late_events",
        "_queue_wait",
        "_run_duration",
        "_subscription_lag",
        "_token_usage",
    )

    def __init__(self, meter: Meter) -> None:
        self._queue_wait = meter.create_histogram(
            names.METRIC_QUEUE_WAIT,
            unit="s",
            description="From the submission of a run to the start of its first attempt.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._run_duration = meter.create_histogram(
            names.METRIC_RUN_DURATION,
            unit="s",
            description="From the start of a run's last attempt to its end.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._token_usage = meter.create_histogram(
            names.METRIC_TOKEN_USAGE,
            unit="{token}",
            description="Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=names.TOKEN_USAGE_BOUNDARIES,
        )
        self._late_events = meter.create_counter(
            names.METRIC_LATE_EVENTS,
            unit="{event}",
            description="Events that adapters reported after the end of their run, and that were dropped.",
        )
        self._appended_events = meter.create_counter(
            names.METRIC_APPENDED_EVENTS,
            unit="{event}",
            description="New events in the logs of this process's stores.",
        )
        self._commit_events = meter.create_histogram(
            names.METRIC_COMMIT_EVENTS,
            unit="{event}",
            description="New events that one commit of a store made durable.",
            explicit_bucket_boundaries_advisory=_COUNTS,
        )
        self._commit_requests = meter.create_histogram(
            names.METRIC_COMMIT_REQUESTS,
            unit="{request}",
            description="Calls that shared one commit of a store.",
            explicit_bucket_boundaries_advisory=_COUNTS,
        )
        self._subscription_lag = meter.create_histogram(
            names.METRIC_SUBSCRIPTION_LAG,
            unit="{event}",
            description="How far a slow subscription was behind when it went back to reading its store.",
            explicit_bucket_boundaries_advisory=_COUNTS,
        )

    # -- runs, measured by the process that executes them

    def run_started(self, run: Run) -> None:
        """An attempt begins here."""
        if run.attempt == 1 and run.started_at is not None:
            waited = (run.started_at - run.created_at).total_seconds()
            self._queue_wait.record(max(waited, 0.0))

    def run_ended(self, run: Run) -> None:
        """A run that was executing here has ended."""
        provider = run.provider or names.OTHER
        if run.started_at is not None and run.ended_at is not None:
            attributes = {names.GEN_AI_PROVIDER_NAME: provider, names.ASM_RUN_STATUS: run.status.value}
            if run.error is not None:
                code = error_type(run)
                attributes[names.ERROR_TYPE] = code if code in _ERROR_CODES else names.OTHER
            took = (run.ended_at - run.started_at).total_seconds()
            self._run_duration.record(max(took, 0.0), attributes)
        if run.token_usage:
            self._tokens_used(run, provider)

    def _tokens_used(self, run: Run, provider: str) -> None:
        model = run.provider_metadata.get("model")
        for kind, tokens in token_counts(run.token_usage).items():
            attributes = {
                names.GEN_AI_OPERATION_NAME: names.OPERATION_INVOKE_AGENT,
                names.GEN_AI_PROVIDER_NAME: provider,
                names.GEN_AI_TOKEN_TYPE: kind,
            }
            if isinstance(model, str):
                attributes[names.GEN_AI_RESPONSE_MODEL] = model
            self._token_usage.record(tokens, attributes)

    def late_event(self) -> None:
        """An adapter reported an event after its run's end."""
        self._late_events.add(1)

    # -- stores and subscriptions

    def group_committed(self, requests: int, events: int) -> None:
        """A store committed one group."""
        if events:
            self._appended_events.add(events)
        self._commit_events.record(events)
        self._commit_requests.record(requests)

    def subscriber_lagged(self, behind: int) -> None:
        """A subscription went back to reading."""
        self._subscription_lag.record(behind)


def error_type(run: Run) -> str:
    """The code of a run's error."""
    return str((run.error or {}).get("code") or names.OTHER)


def token_counts(usage: JsonObject) -> dict[str, int]:
    """The counts of `input` and `output` tokens that a usage report holds."""
    counts = {"input": usage.get("input_tokens"), "output": usage.get("output_tokens")}
    return {kind: count for kind, count in counts.items() if type(count) is int and count >= 0}
