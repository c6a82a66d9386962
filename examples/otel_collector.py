"""Send the spans and metrics of a run to an OpenTelemetry collector.

    pip install 'asm-runtime[otel]' opentelemetry-exporter-otlp-proto-http
    python examples/otel_collector.py

The collector is expected at localhost:4318, or where OTEL_EXPORTER_OTLP_ENDPOINT says;
examples/otel_collector.yaml configures one. What people and models said is not sent, unless
OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true is set.
"""

import asyncio

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from asm_runtime import SessionServer
from asm_runtime.adapters import ShellAdapter
from asm_runtime.stores import InMemorySessionStore
from asm_runtime.telemetry import configure


async def main() -> None:
    async with (
        InMemorySessionStore() as store,
        SessionServer(store=store, adapter=ShellAdapter(), session_opts={"agent_id": "traced"}) as server,
    ):
        result = await server.execute_run({"command": "echo traced"})
        print(result.status)


if __name__ == "__main__":
    # Leaving the block sends what is left. It blocks: that is why it is around the loop, not inside.
    with configure(
        service_name="my-service", span_exporter=OTLPSpanExporter(), metric_exporter=OTLPMetricExporter()
    ):
        asyncio.run(main())
