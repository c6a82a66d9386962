"""Serve sessions from a FastAPI application: submit runs, await and cancel them, follow a session's events.

    pip install fastapi uvicorn
    python examples/fastapi_service.py

    curl localhost:8000/sessions --json '{"agent_id": "shell"}'
    curl localhost:8000/sessions/SESSION/runs --json '{"command": "ls"}'
    curl localhost:8000/sessions/SESSION/runs/RUN
    curl -N localhost:8000/sessions/SESSION/events

The store and the supervisor live as long as the application (its lifespan). Several workers may serve one
file: `uvicorn --workers 4` opens a store in each, and they share the queues.

Everybody who can reach this service can run commands: there is no authentication. It listens on localhost and
refuses what a web page may have a browser send there (`Guard`). Add authentication before others share the
machine or the port.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asm_runtime import AsmError, SessionServer, SessionSupervisor, errors
from asm_runtime.adapters import ShellAdapter
from asm_runtime.stores import SQLSessionStore
from asm_runtime.subscription import Subscription

HOSTS = ["localhost", "127.0.0.1"]
MAX_BODY_BYTES = 1_048_576
BODY_TIMEOUT_S = 10.0

STATUS_OF: dict[type[AsmError], int] = {
    errors.NotFound: 404,
    errors.ValidationError: 422,
    errors.Conflict: 409,
    errors.InvalidTransition: 409,
    errors.QueueFull: 429,
}


class Guard:
    """Refuses what a web page of another origin may have a browser send, and bodies that are long or slow.

    A page may send any site a form or plain text without asking first.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            check_headers(scope)
            body = await body_of(receive) if scope["type"] == "http" else b""
        except HTTPException as refused:
            answer = JSONResponse({"message": refused.detail}, status_code=refused.status_code)
            await answer(scope, receive, send)
            return
        read: list[Message] = []
        if scope["type"] == "http":
            read.append({"type": "http.request", "body": body, "more_body": False})

        async def again() -> Message:
            return read.pop() if read else await receive()

        await self._app(scope, again, send)


def check_headers(scope: Scope) -> None:
    headers = Headers(scope=scope)
    host = headers.get("host", "").lower()
    if headers.get("origin") not in (None, f"http://{host}") or headers.get("sec-fetch-site") not in (
        None,  # programs such as curl
        "none",  # typed by the user
        "same-origin",
    ):
        raise HTTPException(403, "not from another origin")
    # A browser asks before it sends JSON to another origin, and gets no permission here.
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if scope.get("method") == "POST" and kind != "application/json":
        raise HTTPException(415, "the content type must be application/json")


async def body_of(receive: Receive) -> bytes:
    """The body of a request; a client can make it neither large nor slow."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > MAX_BODY_BYTES:
                    raise HTTPException(413, f"the body must be no longer than {MAX_BODY_BYTES} bytes")
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise HTTPException(408, "the body took too long") from None


class NewSession(BaseModel):
    """What a client may say of a session."""

    model_config = ConfigDict(extra="forbid")

    agent_id: str
    id: str | None = None
    tags: list[str] = []


class NewRun(BaseModel):
    """What a client may say of a run: part of the input of `ShellAdapter`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    command: str | list[str]
    timeout_ms: int | None = Field(default=None, ge=1, lt=2**63)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[dict[str, Any]]:
    """Open the store and the supervisor with the application; close them with it."""
    async with (
        SQLSessionStore("sqlite:///fastapi.db") as store,
        SessionSupervisor(store=store, adapter=ShellAdapter(), on_orphan="requeue") as supervisor,
    ):
        # What the last process left in a queue is taken up at once.
        for session in await store.list_sessions(status="active"):
            await supervisor.start_session(session_id=session.id)
        yield {"supervisor": supervisor}


def supervisor_of(request: Request) -> SessionSupervisor:
    return request.state.supervisor  # type: ignore[no-any-return]


Supervisor = Annotated[SessionSupervisor, Depends(supervisor_of)]


async def server_of(session_id: str, supervisor: Supervisor) -> SessionServer:
    """The session's server, started if this process does not serve it yet."""
    return await supervisor.start_session(session_id=session_id)


Server = Annotated[SessionServer, Depends(server_of)]

app = FastAPI(lifespan=lifespan)
app.add_middleware(Guard)
# Against DNS rebinding: a page may give this machine's address a host name of its own. The last one added
# is the first to look.
app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)


@app.post("/sessions", status_code=201)
async def create_session(wanted: NewSession, supervisor: Supervisor) -> dict[str, str]:
    server = await supervisor.start_session(session_opts=wanted.model_dump())
    return {"session_id": server.session_id}


@app.post("/sessions/{session_id}/runs", status_code=202)
async def submit_run(
    wanted: NewRun, server: Server, idempotency_key: Annotated[str | None, Header()] = None
) -> dict[str, str]:
    # A client that repeats its request with the same key gets the same run.
    run_id = await server.submit_run(wanted.model_dump(exclude_none=True), run_id=idempotency_key)
    return {"run_id": run_id}


@app.get("/sessions/{session_id}/runs/{run_id}")
async def show_run(run_id: str, server: Server, request: Request) -> JSONResponse:
    run = await server.manager.store.get_run(run_id, session_id=server.session_id)
    return JSONResponse({"status": run.status, "output": run.output, "error": run.error})


@app.delete("/sessions/{session_id}/runs/{run_id}", status_code=204)
async def cancel_run(run_id: str, server: Server) -> None:
    await server.cancel_run(run_id)


@app.get("/sessions/{session_id}/events")
async def stream_events(server: Server, last_event_id: Annotated[str, Header()] = "0") -> StreamingResponse:
    """Server-sent events: a browser's EventSource comes back with the last id that it saw."""
    if not (last_event_id.isascii() and last_event_id.isdecimal() and len(last_event_id) <= 18):
        raise errors.ValidationError("Last-Event-ID must be the sequence number of an event")
    return StreamingResponse(
        server_sent(server.subscribe(after=int(last_event_id))),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store"},
    )


async def server_sent(subscription: Subscription) -> AsyncIterator[str]:
    with suppress(errors.ActorStopped):  # the server crashed or stops: the reader comes back by itself
        async with subscription as events:
            async for event in events:
                data = json.dumps(event.to_dict())
                yield f"id: {event.sequence_number}\nevent: {event.type}\ndata: {data}\n\n"


@app.exception_handler(AsmError)
async def explain(request: Request, error: AsmError) -> JSONResponse:
    """Say all of what the client can mend, and of the rest no more than a code."""
    status = next((code for kind, code in STATUS_OF.items() if isinstance(error, kind)), None)
    if status is None:
        return JSONResponse(
            {"code": error.code, "retryable": error.retryable}, status_code=503 if error.retryable else 500
        )
    return JSONResponse(error.to_dict(), status_code=status)


@app.exception_handler(RequestValidationError)
async def explain_request(request: Request, error: RequestValidationError) -> JSONResponse:
    """As the others. FastAPI's own answer repeats what was sent, which may be no JSON: NaN, for instance."""
    problems = [f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors()]
    return JSONResponse({"code": "validation_error", "message": "; ".join(problems)}, status_code=422)


@app.exception_handler(HTTPException)
async def explain_http(request: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse({"message": error.detail}, status_code=error.status_code, headers=error.headers)


if __name__ == "__main__":
    os.umask(0o077)  # what sessions say and do is this user's alone
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    # Streams end only when their reader leaves: a stop waits two seconds for those.
    uvicorn.run(app, host="127.0.0.1", port=port, timeout_graceful_shutdown=2)
