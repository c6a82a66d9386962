"""The instruments, and what is measured with each.

No attribute names a session, run, agent or tool: what has an id is found in the spans.
"""

from __future__ import annotations

import threading
from typing import TypeGuard, cast

from opentelemetry.metrics import Meter, Observation

from asm_runtime import errors
from asm_runtime.payload import JsonObject
from asm_runtime.records import Run, RunStatus
from asm_runtime.telemetry import conventions as names

__all__ = ["ERRORS", "Levels", "Metrics", "error_type", "is_count", "models", "token_counts", "word"]

MAX_WORD = 128

_SECONDS = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600)
_COUNTS = tuple(2**power for power in range(13))

ERRORS = frozenset((RunStatus.FAILED, RunStatus.TIMEOUT))
"""The ends that are errors; to be cancelled is none."""

_ERROR_CODES = frozenset(getattr(errors, name).code for name in errors.__all__) | {
    "max_attempts_exceeded",
    "orphaned",
}


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
        """More runs wait, or fewer."""
        with self._lock:
            self._queue_depth += change

    def in_flight_changed(self, session_id: str, change: int) -> None:
        """More runs execute, or fewer."""
        with self._lock:
            self._in_flight += change
            count = self._in_flight_by_session.get(session_id, 0) + change
            if count:
                self._in_flight_by_session[session_id] = count
            else:
                self._in_flight_by_session.pop(session_id, None)

    def waiters_changed(self, change: int) -> None:
        """More callers are parked, or fewer."""
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
        "_operation_duration",
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
        self._operation_duration = meter.create_histogram(
            names.METRIC_OPERATION_DURATION,
            unit="s",
            description="GenAI operation duration.",
            explicit_bucket_boundaries_advisory=names.OPERATION_DURATION_BOUNDARIES,
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
        operation = {
            names.GEN_AI_OPERATION_NAME: names.OPERATION_INVOKE_AGENT,
            names.GEN_AI_PROVIDER_NAME: run.provider or names.OTHER,
            **models(run),
        }
        for kind, tokens in token_counts(run.token_usage).items():
            self._token_usage.record(tokens, operation | {names.GEN_AI_TOKEN_TYPE: kind})
        if run.started_at is None or run.ended_at is None:
            return
        took = max((run.ended_at - run.started_at).total_seconds(), 0.0)
        error: dict[str, str] = {}
        if run.status in ERRORS:
            code = error_type(run)
            error[names.ERROR_TYPE] = code if code in _ERROR_CODES else names.OTHER
        self._operation_duration.record(took, operation | error)
        provider = operation[names.GEN_AI_PROVIDER_NAME]
        how = {names.GEN_AI_PROVIDER_NAME: provider, names.ASM_RUN_STATUS: run.status.value}
        self._run_duration.record(took, how | error)

    def late_event(self) -> None:
        """An adapter reported an event after its run's end."""
        self._late_events.add(1)

    # -- stores and subscriptions

    def group_committed(self, requests: int, events: int) -> None:
        """A store committed one group."""
        self._appended_events.add(events)
        self._commit_events.record(events)
        self._commit_requests.record(requests)

    def subscriber_lagged(self, behind: int) -> None:
        """A subscription went back to reading."""
        self._subscription_lag.record(behind)


def error_type(run: Run) -> str:
    """The code of a run's error, if it can be one: an adapter may have made a sentence of it."""
    return word((run.error or {}).get("code")) or names.OTHER


def word(value: object) -> str | None:
    """A short text without spaces, such as names and codes are; None for anything else."""
    is_one = isinstance(value, str) and 0 < len(value) <= MAX_WORD and len(value.split()) == 1
    return value if isinstance(value, str) and is_one else None


def models(run: Run) -> dict[str, str]:
    """The model that was asked for and the one that answered, as attributes, where they are known."""
    found = {
        names.GEN_AI_REQUEST_MODEL: _requested_model(run),
        names.GEN_AI_RESPONSE_MODEL: run.provider_metadata.get("model"),
    }
    return {name: model for name, model in found.items() if isinstance(model, str) and model}


def _requested_model(run: Run) -> object:
    options: object = run.metadata.get("options")  # anybody may have written the metadata
    given = cast(JsonObject, options).get("adapter_opts") if isinstance(options, dict) else None
    return cast(JsonObject, given).get("model") if isinstance(given, dict) else None


def token_counts(usage: JsonObject) -> dict[str, int]:
    """The counts of `input` and `output` tokens that a usage report holds."""
    counts = {"input": usage.get("input_tokens"), "output": usage.get("output_tokens")}
    return {kind: count for kind, count in counts.items() if is_count(count)}


def is_count(value: object) -> TypeGuard[int]:
    """Whether it can be a number of tokens."""
    return type(value) is int and value >= 0
