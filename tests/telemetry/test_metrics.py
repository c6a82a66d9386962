"""What the hooks make of what they are told, as metrics."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NoOpTracerProvider

from asm_runtime import Run, RunStatus, Session
from asm_runtime.observer import observer, set_observer
from asm_runtime.payload import JsonObject
from asm_runtime.telemetry import conventions, install
from asm_runtime.telemetry.metrics import Levels
from tests.telemetry.recorded import Recorded

SESSION = Session.new(agent_id="reviewer", id="ses_1")
NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


def executed(
    status: RunStatus = RunStatus.COMPLETED,
    *,
    attempt: int = 1,
    waited_s: float = 2,
    took_s: float = 3,
    token_usage: JsonObject | None = None,
    error: JsonObject | None = None,
    provider_metadata: JsonObject | None = None,
    model: str | None = None,
    metadata: JsonObject | None = None,
) -> None:
    """Tell of a run that was submitted, executed and ended here."""
    if model is not None:
        metadata = {"options": {"adapter_opts": {"model": model}}}
    run = Run.new(session_id="ses_1", id="run_1", provider="scripted", created_at=NOON, metadata=metadata)
    told = observer().run(run, "reviewer")
    told.queued(0)
    began = NOON + timedelta(seconds=waited_s)
    running = run.replace(attempt=attempt).with_status(RunStatus.RUNNING, at=began)
    told.started(running, SESSION)
    final = running.with_status(status, at=began + timedelta(seconds=took_s))
    told.ended(
        final.replace(token_usage=token_usage or {}, error=error, provider_metadata=provider_metadata or {})
    )


def test_the_levels_are_what_is_left_of_the_changes(recorded: Recorded) -> None:
    for change in (1, 1, 1, -1):
        observer().queue_depth_changed("ses_1", change)
        observer().in_flight_changed("ses_1", change)
        observer().waiters_changed(change)
    observer().in_flight_changed("ses_2", 1)
    assert recorded.value("asm.queue.depth") == 2
    assert recorded.value("asm.run.in_flight") == 3
    assert recorded.value("asm.store.waiters") == 2


def test_the_levels_are_right_when_loops_in_several_threads_change_them(recorded: Recorded) -> None:
    def change() -> None:
        for _ in range(2_000):
            observer().queue_depth_changed("ses_1", 1)
            observer().in_flight_changed("ses_1", 1)
            observer().queue_depth_changed("ses_1", -1)
            observer().in_flight_changed("ses_1", -1)

    threads = [threading.Thread(target=change) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorded.value("asm.queue.depth") == 0
    assert recorded.value("asm.run.in_flight") == 0


def test_a_session_that_has_nothing_in_flight_is_forgotten(recorded: Recorded) -> None:
    for number in range(1_000):
        observer().in_flight_changed(f"ses_{number}", 1)
        observer().in_flight_changed(f"ses_{number}", -1)
    levels = observer()
    assert isinstance(levels, Levels)
    assert levels._in_flight_by_session == {}


def test_how_many_runs_of_its_session_execute_is_said_with_an_execution(recorded: Recorded) -> None:
    observer().in_flight_changed("ses_1", 1)
    observer().in_flight_changed("ses_1", 1)
    observer().in_flight_changed("ses_2", 1)
    executed()
    observer().in_flight_changed("ses_1", -2)
    executed()
    first, second = recorded.spans("asm.run.execute")
    assert (first.attributes or {})["asm.session.in_flight_runs"] == 2
    assert "asm.session.in_flight_runs" not in (second.attributes or {})


def test_the_wait_and_the_duration_are_those_of_the_stored_run(recorded: Recorded) -> None:
    executed(waited_s=2, took_s=3)
    wait = recorded.histogram("asm.queue.wait")
    assert (wait.count, wait.sum) == (1, 2)
    duration = recorded.histogram(
        "asm.run.duration", {"gen_ai.provider.name": "scripted", "asm.run.status": "completed"}
    )
    assert (duration.count, duration.sum) == (1, 3)


def test_a_later_attempt_has_not_waited_since_its_submission(recorded: Recorded) -> None:
    executed(attempt=2)
    assert "asm.queue.wait" not in recorded.metrics()
    assert "asm.run.duration" in recorded.metrics()


def test_clocks_that_disagree_give_no_negative_times(recorded: Recorded) -> None:
    executed(waited_s=-5, took_s=-5)
    assert recorded.histogram("asm.queue.wait").sum == 0
    (duration,) = recorded.metrics()["asm.run.duration"]
    assert duration.attributes is not None
    assert recorded.histogram("asm.run.duration", duration.attributes).sum == 0


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("provider_timeout", "provider_timeout"),
        ("orphaned", "orphaned"),
        ("max_attempts_exceeded", "max_attempts_exceeded"),
        ("exit_17_of_/tmp/x", "_OTHER"),
    ],
)
def test_a_failure_is_told_by_a_code_that_is_one_of_few(recorded: Recorded, code: str, told: str) -> None:
    executed(RunStatus.FAILED, error={"code": code, "message": "it failed"})
    recorded.histogram(
        "asm.run.duration",
        {"gen_ai.provider.name": "scripted", "asm.run.status": "failed", "error.type": told},
    )


MODELS = {"gen_ai.request.model": "small", "gen_ai.response.model": "small-1"}
OPERATION = {"gen_ai.operation.name": "invoke_agent", "gen_ai.provider.name": "scripted"}


def test_tokens_are_counted_by_type_and_model(recorded: Recorded) -> None:
    usage: JsonObject = {"input_tokens": 12, "output_tokens": 34, "cached": 5}
    executed(token_usage=usage, provider_metadata={"model": "small-1"}, model="small")
    common = OPERATION | MODELS
    for kind, tokens in (("input", 12), ("output", 34)):
        point = recorded.histogram("gen_ai.client.token.usage", {**common, "gen_ai.token.type": kind})
        assert (point.count, point.sum) == (1, tokens)
        assert tuple(point.explicit_bounds) == conventions.TOKEN_USAGE_BOUNDARIES


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (RunStatus.COMPLETED, {}),
        (RunStatus.CANCELLED, {}),
        (RunStatus.FAILED, {"error.type": "_OTHER"}),
        (RunStatus.TIMEOUT, {"error.type": "_OTHER"}),
    ],
)
def test_the_duration_is_that_of_an_operation_too_with_its_models(
    recorded: Recorded, status: RunStatus, error: dict[str, str]
) -> None:
    executed(status, took_s=3, provider_metadata={"model": "small-1"}, model="small")
    point = recorded.histogram("gen_ai.client.operation.duration", OPERATION | MODELS | error)
    assert (point.count, point.sum) == (1, 3)
    assert tuple(point.explicit_bounds) == (
        *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    )


@pytest.mark.parametrize("code", ["run_cancelled", "interrupted"])
def test_a_run_that_was_cancelled_is_no_error(recorded: Recorded, code: str) -> None:
    executed(RunStatus.CANCELLED, error={"code": code, "message": "somebody did"})
    for name in ("gen_ai.client.operation.duration", "asm.run.duration"):
        assert "error.type" not in recorded.attributes_of_metric(name)


@pytest.mark.parametrize("metadata", [{}, {"options": 5}, {"options": {"adapter_opts": "x"}}])
def test_metadata_that_names_no_model_is_left_out(recorded: Recorded, metadata: JsonObject) -> None:
    executed(metadata=metadata, token_usage={"input_tokens": 1}, provider_metadata={"model": 5})
    for name in ("gen_ai.client.operation.duration", "gen_ai.client.token.usage"):
        assert not recorded.attributes_of_metric(name) & MODELS.keys()


@pytest.mark.parametrize("count", [None, -1, True, 1.5, "12", [1]])
def test_token_counts_that_are_none_are_left_out(recorded: Recorded, count: object) -> None:
    executed(token_usage={"input_tokens": count})
    assert "gen_ai.client.token.usage" not in recorded.metrics()


def test_only_the_process_that_executes_a_run_measures_it(recorded: Recorded) -> None:
    run = Run.new(session_id="ses_1", provider="scripted")
    elsewhere = run.replace(attempt=1).with_status(RunStatus.RUNNING)
    told = observer().run(run, "reviewer")
    told.ended(elsewhere.with_status(RunStatus.COMPLETED).replace(token_usage={"input_tokens": 5}))
    assert (
        recorded.metrics()
        .keys()
        .isdisjoint({"asm.run.duration", "asm.queue.wait", "gen_ai.client.token.usage"})
    )


@pytest.mark.parametrize("how", ["requeued", "abandoned"])
@pytest.mark.parametrize("is_traced", [True, False])
def test_a_run_that_was_given_away_is_measured_by_whoever_ends_it(how: str, is_traced: bool) -> None:
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    tracers = TracerProvider(shutdown_on_exit=False) if is_traced else NoOpTracerProvider()
    before = install(tracer_provider=tracers, meter_provider=meters)
    try:
        run = Run.new(session_id="ses_1", provider="scripted")
        running = run.replace(attempt=1).with_status(RunStatus.RUNNING)
        told = observer().run(run, "reviewer")
        told.started(running, SESSION)
        getattr(told, how)()
        told.ended(running.with_status(RunStatus.COMPLETED))
    finally:
        set_observer(before)
    assert "asm.run.duration" not in str(reader.get_metrics_data())


def test_a_run_is_measured_once(recorded: Recorded) -> None:
    run = Run.new(session_id="ses_1", provider="scripted")
    running = run.replace(attempt=1).with_status(RunStatus.RUNNING)
    told = observer().run(run, "reviewer")
    told.started(running, SESSION)
    told.ended(running.with_status(RunStatus.COMPLETED))
    told.ended(running.with_status(RunStatus.COMPLETED))
    (duration,) = recorded.metrics()["asm.run.duration"]
    assert duration.attributes is not None
    assert recorded.histogram("asm.run.duration", duration.attributes).count == 1


def test_late_events_are_counted_also_after_the_end(recorded: Recorded) -> None:
    told = observer().run(Run.new(session_id="ses_1"), "reviewer")
    told.late_event()
    told.abandoned()
    told.late_event()
    assert recorded.value("asm.run.late_events") == 2


def test_commits_are_measured_by_events_and_by_requests(recorded: Recorded) -> None:
    observer().group_committed(3, 10)
    observer().group_committed(1, 0)
    assert recorded.value("asm.store.appended_events") == 10
    events, requests = (
        recorded.histogram("asm.store.commit.events"),
        recorded.histogram("asm.store.commit.requests"),
    )
    assert (events.count, events.sum) == (2, 10)
    assert (requests.count, requests.sum) == (2, 4)


def test_a_subscription_that_lags_tells_by_how_much(recorded: Recorded) -> None:
    observer().subscriber_lagged("ses_1", 1024)
    lag = recorded.histogram("asm.subscription.lag")
    assert (lag.count, lag.sum) == (1, 1024)


def test_no_attribute_of_a_metric_is_an_id(recorded: Recorded) -> None:
    executed(RunStatus.FAILED, token_usage={"input_tokens": 1}, error={"code": "x", "message": "run_1"})
    observer().queue_depth_changed("ses_1", 1)
    observer().in_flight_changed("ses_1", 1)
    observer().subscriber_lagged("ses_1", 1)
    for points in recorded.metrics().values():
        for point in points:
            attributes = point.attributes or {}
            assert not [name for name in attributes if name.endswith(".id")]
            assert not {"ses_1", "run_1", "reviewer"} & {str(value) for value in attributes.values()}
