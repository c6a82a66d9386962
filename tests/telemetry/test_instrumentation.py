"""How telemetry stands at the kernel's hooks: without an SDK, with a late one, with a broken one."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider

from asm_runtime import Event, Run, RunStatus, Session
from asm_runtime.observer import Observer, RunTrace, observer, set_observer
from asm_runtime.telemetry import conventions, install, instrumentation

ROOT = Path(__file__).parents[2]

SESSION = Session.new(agent_id="reviewer", id="ses_1")


def python(program: str) -> str:
    """What a program prints in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Broken(SpanProcessor):
    """What an application may have plugged in."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        raise RuntimeError("broken processor")


@pytest.fixture
def broken() -> Iterator[None]:
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(Broken())
    instrumentation._reported.clear()
    before = install(tracer_provider=tracers)
    yield
    set_observer(before)


def run_through_all_hooks() -> None:
    run = Run.new(session_id="ses_1", provider="scripted")
    running = run.replace(attempt=1).with_status(RunStatus.RUNNING)
    told = observer().run(run, "reviewer")
    told.queued(1)
    told.started(running, SESSION)
    told.execution_context()
    told.stored(Event.new(type="tool_call_started", session_id="ses_1", data={"tool_call_id": "1"}))
    told.late_event()
    told.ended(running.with_status(RunStatus.COMPLETED))
    told.requeued()
    told.abandoned()
    observer().trace_context()
    observer().session_stopped(observer().session_started(SESSION), None)
    observer().drain_ended(observer().drain_began("ses_1"), None)
    observer().write_ended(observer().write_began("append", "ses_1", 1), [], None)
    observer().queue_depth_changed("ses_1", 0)
    observer().in_flight_changed("ses_1", 0)
    observer().group_committed(1, 1)
    observer().waiters_changed(0)
    observer().subscriber_lagged("ses_1", 1)


def test_telemetry_that_is_broken_does_not_reach_the_runtime(
    broken: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        run_through_all_hooks()
        reported = len(caplog.records)
        run_through_all_hooks()
    assert "broken processor" in caplog.text
    assert len(caplog.records) == reported  # once for each hook, not for each run


def test_a_hook_that_fails_answers_as_if_nobody_listened(broken: None) -> None:
    assert type(observer().run(Run.new(session_id="ses_1"), None)) is RunTrace
    assert observer().session_started(SESSION) is None
    assert observer().write_began("append", "ses_1", 1) is None


@pytest.mark.parametrize("base", [Observer, RunTrace])
def test_every_hook_of_the_kernel_is_answered_with_its_own_signature(base: type) -> None:
    classes = [
        found
        for _, found in inspect.getmembers(instrumentation, inspect.isclass)
        if issubclass(found, base) and found is not base
    ]
    assert classes
    hooks = {name for name, member in vars(base).items() if inspect.isfunction(member)}
    for found in classes:
        for name in hooks:
            assert inspect.signature(getattr(found, name)) == inspect.signature(getattr(base, name))
    answered = {
        name for name in hooks for found in classes if getattr(found, name) is not getattr(base, name)
    }
    assert answered == hooks


def test_importing_the_runtime_installs_the_telemetry_without_the_sdk() -> None:
    loaded = python(
        "import asm_runtime, sys\n"
        "from asm_runtime.observer import observer\n"
        "print(type(observer()).__module__)\n"
        "heavy = ('opentelemetry.sdk', 'opentelemetry.semconv', 'opentelemetry.exporter')\n"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    assert loaded.split("\n")[:2] == ["asm_runtime.telemetry.instrumentation", "[]"]


def test_without_an_sdk_a_run_is_not_traced() -> None:
    told = python(
        "import asm_runtime\n"
        "from asm_runtime.observer import observer\n"
        "run = asm_runtime.Run.new(session_id='ses_1')\n"
        "told = observer().run(run, 'reviewer')\n"
        "print(type(told).__name__, told.execution_context(), observer().trace_context())\n"
        "print(observer().write_began('append', 'ses_1', 1, told), observer().drain_began('ses_1'))"
    )
    assert told == "_MeasuredRun None {}\nNone None\n"


def test_an_sdk_that_is_set_up_after_the_first_run_gets_what_follows() -> None:
    told = python(
        "import asm_runtime\n"
        "from asm_runtime.observer import observer\n"
        "from opentelemetry import metrics, trace\n"
        "from opentelemetry.sdk.metrics import MeterProvider\n"
        "from opentelemetry.sdk.metrics.export import InMemoryMetricReader\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "from opentelemetry.sdk.trace.export import SimpleSpanProcessor\n"
        "from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter\n"
        "run = asm_runtime.Run.new(session_id='ses_1')\n"
        "observer().run(run, 'early').abandoned()\n"
        "observer().queue_depth_changed('ses_1', 3)\n"
        "exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()\n"
        "trace.set_tracer_provider(TracerProvider())\n"
        "trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))\n"
        "metrics.set_meter_provider(MeterProvider([reader]))\n"
        "observer().run(run, 'late').abandoned()\n"
        "observer().queue_depth_changed('ses_1', -1)\n"
        "observer().group_committed(1, 7)\n"
        "print([span.name for span in exporter.get_finished_spans()])\n"
        "found = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics\n"
        "values = {metric.name: metric.data.data_points[0] for metric in found}\n"
        "print(values['asm.queue.depth'].value, values['asm.store.appended_events'].value)"
    )
    assert told == "['invoke_agent late']\n2 7\n"


def test_the_scope_has_the_version_of_the_release() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{conventions.SCOPE_VERSION}"' in project
