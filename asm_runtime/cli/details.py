"""All that is known of one run."""

from __future__ import annotations

import sys
from typing import Any, cast

from asm_runtime.cli.exits import ExitCode
from asm_runtime.cli.log import stored
from asm_runtime.cli.lookup import find_run, find_session
from asm_runtime.cli.output import Output, input_text, json_text
from asm_runtime.cli.store_option import reading
from asm_runtime.payload import JsonObject
from asm_runtime.ports import SessionStore
from asm_runtime.records import EventType, Run

__all__ = ["show"]


async def show(where: str | None, run: str, *, session: str | None, json: bool) -> ExitCode:
    """Print a run: its status, its attempts, its input, and its output or error."""
    output = Output(sys.stdout)
    async with reading(where) as store:
        session_id = None if session is None else await find_session(store, session)
        found = await find_run(store, run, session_id=session_id)
        if json:
            await output.json([found])
            return ExitCode.DONE
        for name, value in [*_facts(found), *[("attempt", line) for line in await _attempts(store, found)]]:
            title = f"{name:<9}" if output.is_terminal else name
            await output.lines([[(title, "dim"), (value, "")]])
        for title, text in _texts(found):
            await output.lines([[(title, "bold")]])
            await output.text(text if text.endswith("\n") else f"{text}\n")
    return ExitCode.DONE


def _facts(run: Run) -> list[tuple[str, str]]:
    facts: dict[str, Any] = {
        "run": run.id,
        "session": run.session_id,
        "status": run.status,
        "provider": run.provider,
        "owner": run.owner,
        "created": run.created_at,
        "started": run.started_at,
        "ended": run.ended_at,
        "tokens": ", ".join(f"{count} {name}" for name, count in run.token_usage.items()),
        "cost": None if run.cost_usd is None else f"{run.cost_usd} USD",
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


async def _attempts(store: SessionStore, run: Run) -> list[str]:
    """When each attempt began, and the last one's number where the log does not say."""
    begun: list[str] = []
    async for page in stored(store, run.session_id, run_id=run.id, type=EventType.RUN_STARTED):
        begun += [f"{event.data.get('attempt', '?')}, from {event.timestamp}" for event in page]
    return begun or ([str(run.attempt)] if run.attempt else [])


def _texts(run: Run) -> list[tuple[str, str]]:
    texts = [("input", input_text(run.input))]
    if run.output is not None:
        output: Any = run.output
        said = cast(JsonObject, output).get("content") if isinstance(output, dict) else output
        texts.append(("output", said if isinstance(said, str) else json_text(cast(object, output))))
    if run.error:
        error: JsonObject = run.error
        texts.append(("error", f"{error.get('code')}: {error.get('message')}"))
        details: Any = error.get("details")
        stderr = cast(JsonObject, details).get("stderr") if isinstance(details, dict) else None
        if isinstance(stderr, str) and stderr:
            texts.append(("stderr", stderr))
    return texts
