"""See the spans and metrics of a run on the console.

    python examples/otel_console.py

`configure` sets up an OpenTelemetry SDK for programs that have none; an application that has one
needs no call at all: the runtime finds its providers.
"""

import asyncio

from opentelemetry import trace

from asm_runtime import SessionServer
from asm_runtime.adapters import ShellAdapter
from asm_runtime.stores import SQLSessionStore
from asm_runtime.telemetry import configure


async def main() -> None:
    tracer = trace.get_tracer("example")
    async with (
        SQLSessionStore("sqlite:///traced.db") as store,
        SessionServer(store=store, adapter=ShellAdapter(), session_opts={"agent_id": "traced"}) as server,
    ):
        with tracer.start_as_current_span("a request of my service"):
            run_id = await server.submit_run({"command": "echo hello"})
        await server.await_run(run_id)


if __name__ == "__main__":
    with configure(service_name="otel-console-example"):
        asyncio.run(main())
