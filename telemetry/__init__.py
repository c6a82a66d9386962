"""Spans and metrics of the runtime, through the OpenTelemetry API.

The runtime only speaks to the API: without a provider set by the application nothing is recorded,
nothing is exported, and next to nothing is spent. Providers may be set before or after the import.
docs/telemetry.md lists every span and metric.
"""

from __future__ import annotations

from asm_runtime.telemetry.configure import ConfiguredTelemetry, configure
from asm_runtime.telemetry.content import capture_content
from asm_runtime.telemetry.instrumentation import install

__all__ = ["ConfiguredTelemetry", "capture_content", "configure", "install"]
