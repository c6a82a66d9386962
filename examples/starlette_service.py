"""Serve sessions over HTTP: submit runs, follow a session as server-sent events, resume by Last-Event-ID.

    python examples/starlette_service.py

    curl -X POST localhost:8000/sessions -d '{"agent_id": "shell"}'
    curl -X POST localhost:8000/sessions/SESSION/runs -d '{"command": "ls"}'
    curl -N localhost:8000/sessions/SESSION/events
    curl -N localhost:8000/sessions/SESSION/events -H 'Last-Event-ID: 3'

Every event carries its sequence number as its id. A browser's EventSource sends the last one when it
reconnects, so it misses nothing and sees nothing twice, also after a restart of this service. Mind
that whoever reaches this service may run commands: the shell is an example, localhost is its limit.
"""

import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from asm_runtime import AsmError, SessionServer, SessionSupervisor, errors
from asm_runtime.adapters import ShellAdapter
from asm_runtime.stores import SQLSessionStore

STATUS_OF: dict[type[AsmError], int] = {
    errors.NotFound: 404,
    errors.ValidationError: 422,
    errors.Conflict: 409,
    errors.InvalidTransition: 409,
    errors.QueueFull: 429,
    errors.Draining: 503,
    errors.StoreUnavailable: 503,
}


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[dict[str, Any]]:
    """Open the store and the supervisor with the service; close them with it."""
    async with (
        SQLSessionStore("sqlite:///service.db") as store,
        SessionSupervisor(store=store, adapter=ShellAdapter(), on_orphan="requeue") as supervisor,
    ):
        # What the last process left in a queue is taken up at once.
        for session in await store.list_sessions(status="active"):
            await supervisor.start_session(session_id=session.id)
        yield {"supervisor": supervisor}


async def create_session(request: Request) -> Response:
    supervisor: SessionSupervisor = request.state.supervisor
    server = await supervisor.start_session(session_opts=await request.json())
    return JSONResponse({"session_id": server.session_id}, status_code=201)


async def submit_run(request: Request) -> Response:
    server = await served(request)
    # A client that repeats its request with the same key gets the same run.
    run_id = await server.submit_run(await request.json(), run_id=request.headers.get("Idempotency-Key"))
    return JSONResponse({"run_id": run_id}, status_code=202)


async def stream_events(request: Request) -> Response:
    server = await served(request)
    last_seen = request.headers.get("Last-Event-ID", "0")
    if not last_seen.isdecimal():
        raise errors.ValidationError(f"Last-Event-ID must be a sequence number, not {last_seen!r}")
    return StreamingResponse(
        server_sent(server, after=int(last_seen)),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store"},
    )


async def server_sent(server: SessionServer, *, after: int) -> AsyncIterator[str]:
    async with server.subscribe(after=after) as events:
        async for event in events:
            data = json.dumps(event.to_dict())
            yield f"id: {event.sequence_number}\nevent: {event.type}\ndata: {data}\n\n"


async def served(request: Request) -> SessionServer:
    """The session's server, started if this process does not serve it yet."""
    supervisor: SessionSupervisor = request.state.supervisor
    return await supervisor.start_session(session_id=request.path_params["session_id"])


async def explain(request: Request, error: Exception) -> Response:
    status = next((code for kind, code in STATUS_OF.items() if isinstance(error, kind)), 500)
    assert isinstance(error, AsmError)  # it is registered for these
    return JSONResponse(error.to_dict(), status_code=status)


app = Starlette(
    routes=[
        Route("/sessions", create_session, methods=["POST"]),
        Route("/sessions/{session_id}/runs", submit_run, methods=["POST"]),
        Route("/sessions/{session_id}/events", stream_events),
    ],
    exception_handlers={AsmError: explain},
    lifespan=lifespan,
)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    # Streams end only when their reader leaves: a stop waits two seconds for those.
    uvicorn.run(app, host="127.0.0.1", port=port, timeout_graceful_shutdown=2)
