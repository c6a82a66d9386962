"""The SDK that `configure` sets up. It can be set once in a process, so each test has its own."""

from __future__ import annotations

import json
import textwrap

import pytest

from asm_runtime.errors import ValidationError
from asm_runtime.telemetry import configure
from tests.telemetry.test_instrumentation import python


def program(text: str) -> str:
    return python(
        "import sys\n"
        "from asm_runtime import Run\n"
        "from asm_runtime.errors import AsmError\n"
        "from asm_runtime.observer import observer\n"
        "from asm_runtime.telemetry import configure\n" + textwrap.dedent(text)
    )


def test_the_console_gets_a_json_object_a_line_with_the_service_name() -> None:
    told = program("""
        with configure(service_name="shop", resource_attributes={"deployment.environment": "test"}):
            observer().run(Run.new(session_id="ses_1"), "reviewer").abandoned()
            observer().group_committed(1, 7)
    """)
    spans, metrics = (json.loads(line) for line in told.splitlines())
    assert spans["name"] == "invoke_agent reviewer"
    assert spans["resource"]["attributes"]["service.name"] == "shop"
    assert spans["resource"]["attributes"]["deployment.environment"] == "test"
    names = [metric["name"] for metric in metrics["resource_metrics"][0]["scope_metrics"][0]["metrics"]]
    assert "asm.store.appended_events" in names


def test_the_console_may_be_any_stream() -> None:
    told = program("""
        import io
        out = io.StringIO()
        handle = configure(stream=out, metric_exporter=None)
        observer().run(Run.new(session_id="ses_1"), "reviewer").abandoned()
        handle.flush()
        print(out.getvalue().count("invoke_agent reviewer"))
    """)
    assert told == "1\n"


def test_an_exporter_of_ones_own_gets_spans_and_metrics() -> None:
    told = program("""
        from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        class Metrics(MetricExporter):
            exported = 0
            def export(self, data, timeout_millis=10_000, **kwargs):
                self.exported += 1
                return MetricExportResult.SUCCESS
            def force_flush(self, timeout_millis=10_000):
                return True
            def shutdown(self, timeout_millis=30_000, **kwargs):
                pass

        spans, metrics = InMemorySpanExporter(), Metrics()
        handle = configure(span_exporter=spans, metric_exporter=metrics)
        observer().run(Run.new(session_id="ses_1"), "reviewer").abandoned()
        handle.flush()
        print([span.name for span in spans.get_finished_spans()], metrics.exported)
    """)
    assert told == "['invoke_agent reviewer'] 1\n"


def test_configuring_twice_alike_is_configuring_once() -> None:
    told = program("""
        first = configure(span_exporter="console", metric_exporter=None)
        second = configure(metric_exporter=None)
        print(first is second)
        observer().run(Run.new(session_id="ses_1"), "reviewer").abandoned()
        first.shutdown()
        first.shutdown()
    """)
    told, span = told.splitlines()
    assert told == "True"
    assert json.loads(span)["name"] == "invoke_agent reviewer"


@pytest.mark.parametrize(
    "beforehand",
    [
        "configure(metric_exporter=None)",
        "configure(service_name='other', metric_exporter=None).shutdown()",
        "trace.set_tracer_provider(TracerProvider())",
        "metrics.set_meter_provider(MeterProvider())",
    ],
)
def test_what_is_set_already_is_a_conflict_and_stays(beforehand: str) -> None:
    told = program(f"""
        import logging
        from opentelemetry import metrics, trace
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.trace import TracerProvider
        logging.disable()
        {beforehand}
        tracers, meters = trace.get_tracer_provider(), metrics.get_meter_provider()
        try:
            configure(service_name="other")
        except AsmError as refused:
            print(refused.code)
        print(trace.get_tracer_provider() is tracers, metrics.get_meter_provider() is meters)
    """)
    assert told == "conflict\nTrue True\n"


def test_without_the_sdk_the_error_names_the_extra() -> None:
    told = program("""
        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.startswith("opentelemetry.sdk"):
                    raise ImportError(name)

        sys.meta_path.insert(0, Missing())
        try:
            configure()
        except AsmError as refused:
            print(refused.code, refused)
    """)
    assert told.startswith("dependency_not_available")
    assert "asm-runtime[otel]" in told


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("service_name", ""),
        ("service_name", None),
        ("resource_attributes", {"a": [1]}),
        ("resource_attributes", "a=b"),
        ("span_exporter", "otlp"),
        ("span_exporter", 7),
        ("metric_exporter", "stdout"),
        ("metric_interval_ms", 0),
        ("metric_interval_ms", 1.5),
    ],
)
def test_a_bad_value_names_the_option_and_sets_nothing_up(option: str, value: object) -> None:
    with pytest.raises(ValidationError, match=option):
        configure(**{option: value})  # type: ignore[arg-type]  # that is the test


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        configure(exporter="console")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
