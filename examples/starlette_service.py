"""Serve sessions over HTTP: submit runs, follow a session as server-sent events, resume by Last-Event-ID.

    python examples/starlette_service.py

    curl localhost:8000/sessions --json '{"agent_id": "shell"}'
    curl localhost:8000/sessions/SESSION/runs --json '{"command": "ls"}'
    curl -N localhost:8000/sessions/SESSION/events
    curl -N localhost:8000/sessions/SESSION/events -H 'Last-Event-ID: 3'

Every event carries its sequence number as its id. A browser's EventSource sends the last one when it
reconnects, so it misses nothing and sees nothing twice, also after a restart of this service.

Everybody who can reach this service can run commands: there is no authentication. It listens on localhost and
refuses what a web page may have a browser send there (`SameOrigin`). Add authentication before others
share the machine or the port.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from asm_runtime import AsmError, SessionServer, SessionSupervisor, errors
from asm_runtime.adapters import ShellAdapter
from asm_runtime.stores import SQLSessionStore
from asm_runtime.subscription import Subscription

HOSTS = {"localhost", "127.0.0.1", "::1"}
MAX_BODY_BYTES = 1_048_576
BODY_TIMEOUT_S = 10.0

STATUS_OF: dict[type[AsmError], int] = {
    errors.NotFound: 404,
    errors.ValidationError: 422,
    errors.Conflict: 409,
    errors.InvalidTransition: 409,
    errors.QueueFull: 429,
}


class NewSession(msgspec.Struct, forbid_unknown_fields=True):
    """What a client may say of a session."""

    agent_id: str
    id: str | None = None
    tags: list[str] = []


class NewRun(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a client may say of a run: part of the input of `ShellAdapter`."""

    command: str | list[str]
    timeout_ms: int | None = None


class SameOrigin:
    """Refuses what a web page of another origin may have a browser send.

    A page may send any site a form or plain text without asking first, and by DNS rebinding it may
    give this machine's address a host name of its own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it, or refuse it."""
        app = self._app
        if scope["type"] in ("http", "websocket") and not is_same_origin(Headers(scope=scope)):
            app = JSONResponse({"code": "forbidden", "message": "not from another origin"}, status_code=403)
        await app(scope, receive, send)


def is_same_origin(headers: Headers) -> bool:
    host = headers.get("host", "").lower()
    try:
        if urlsplit(f"//{host}").hostname not in HOSTS:
            return False
    except ValueError:
        return False
    origin = headers.get("origin")  # programs such as curl send none
    return origin in (None, f"http://{host}") and headers.get("sec-fetch-site") in (
        None,
        "none",  # typed by the user
        "same-origin",
    )


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
    wanted = await body_of(request, NewSession)
    server = await supervisor.start_session(session_opts=msgspec.structs.asdict(wanted))
    return JSONResponse({"session_id": server.session_id}, status_code=201)


async def submit_run(request: Request) -> Response:
    server = await served(request)
    wanted = await body_of(request, NewRun)
    # A client that repeats its request with the same key gets the same run.
    run_id = await server.submit_run(
        msgspec.to_builtins(wanted), run_id=request.headers.get("Idempotency-Key")
    )
    return JSONResponse({"run_id": run_id}, status_code=202)


async def stream_events(request: Request) -> Response:
    server = await served(request)
    last_seen = request.headers.get("Last-Event-ID", "0")
    if not (last_seen.isascii() and last_seen.isdecimal() and len(last_seen) <= 18):
        raise errors.ValidationError("Last-Event-ID must be the sequence number of an event")
    return StreamingResponse(
        server_sent(server.subscribe(after=int(last_seen))),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store"},
    )


async def server_sent(subscription: Subscription) -> AsyncIterator[str]:
    with suppress(errors.ActorStopped):  # the server crashed or stops: the reader comes back by itself
        async with subscription as events:
            async for event in events:
                data = json.dumps(event.to_dict())
                yield f"id: {event.sequence_number}\nevent: {event.type}\ndata: {data}\n\n"


async def served(request: Request) -> SessionServer:
    """The session's server, started if this process does not serve it yet."""
    supervisor: SessionSupervisor = request.state.supervisor
    return await supervisor.start_session(session_id=request.path_params["session_id"])


T = TypeVar("T")


async def body_of(request: Request, kind: type[T]) -> T:
    """The JSON of a request; a client can make it neither large nor slow."""
    # A browser asks before it sends JSON to another origin, and gets no permission here.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the content type must be application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                body += piece
                if len(body) > MAX_BODY_BYTES:
                    raise HTTPException(413, f"the body must be no longer than {MAX_BODY_BYTES} bytes")
    except TimeoutError:
        raise HTTPException(408, "the body took too long") from None
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise HTTPException(400, str(error)) from None


async def explain(request: Request, error: Exception) -> Response:
    """Say all of what the client can mend, and of the rest no more than a code."""
    assert isinstance(error, AsmError)  # it is registered for these
    status = next((code for kind, code in STATUS_OF.items() if isinstance(error, kind)), None)
    if status is None:
        return JSONResponse(
            {"code": error.code, "retryable": error.retryable}, status_code=503 if error.retryable else 500
        )
    return JSONResponse(error.to_dict(), status_code=status)


async def explain_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"message": error.detail}, status_code=error.status_code, headers=error.headers)


async def nobody_listens(request: Request, error: Exception) -> Response:
    return Response(status_code=400)


app = Starlette(
    routes=[
        Route("/sessions", create_session, methods=["POST"]),
        Route("/sessions/{session_id}/runs", submit_run, methods=["POST"]),
        Route("/sessions/{session_id}/events", stream_events),
    ],
    middleware=[Middleware(SameOrigin)],
    exception_handlers={
        AsmError: explain,
        HTTPException: explain_http,
        ClientDisconnect: nobody_listens,
    },
    lifespan=lifespan,
)


if __name__ == "__main__":
    os.umask(0o077)  # what sessions say and do is this user's alone
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    # Streams end only when their reader leaves: a stop waits two seconds for those.
    uvicorn.run(app, host="127.0.0.1", port=port, timeout_graceful_shutdown=2)
