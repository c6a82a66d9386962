"""Telemetry with providers of its own for every test, exported to memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from asm_runtime.observer import set_observer
from asm_runtime.telemetry import install
from tests.telemetry.recorded import OpenSpans, Recorded


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    """What the runtime reports while the test runs; fails a test that leaves a span open."""
    exporter, reader, open_spans = InMemorySpanExporter(), InMemoryMetricReader(), OpenSpans()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(open_spans)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    meters = MeterProvider([reader], shutdown_on_exit=False)
    before = install(tracer_provider=tracers, meter_provider=meters)
    try:
        yield Recorded(tracers, exporter, reader, open_spans)
    finally:
        set_observer(before)
        left = open_spans.names()
        tracers.shutdown()
        meters.shutdown()
    assert left == []
    assert open_spans.ended_twice == []
