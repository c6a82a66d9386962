"""What people, models and tools said: in no span, unless it is switched on.

The messages of errors belong to it: they quote prompts, commands and arguments.
"""

from __future__ import annotations

import os
from typing import Any, cast

from asm_runtime.payload import JsonObject, encode
from asm_runtime.telemetry import conventions as names

__all__ = ["MAX_CHARS", "capture_content", "input_messages", "is_captured", "output_messages", "shown"]

MAX_CHARS = 32_768
"""How much of one text a span gets, in characters: collectors refuse spans of megabytes."""

_ON = frozenset(("true", "span_only", "span_and_event"))

_is_captured = os.environ.get(names.CAPTURE_CONTENT, "").strip().lower() in _ON


def capture_content(on: bool = True) -> None:
    """Have spans carry prompts, outputs, tool arguments and results, and the messages of errors. Plain.

    For the whole process, from now on. At the start it is what the environment variable
    `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT` says: on for `true`, `span_only` and
    `span_and_event`, else off. Consider who can read what is exported.
    """
    global _is_captured
    _is_captured = on


def is_captured() -> bool:
    """Whether spans carry content."""
    return _is_captured


def input_messages(given: Any) -> str:
    """A run's input as `gen_ai.input.messages` has it: JSON, for an attribute holds no objects."""
    messages: list[Any] = [{"role": "user", "content": given}]
    if isinstance(given, dict):
        asked = cast(JsonObject, given)
        if isinstance(asked.get("messages"), list):
            messages = asked["messages"]
        elif "prompt" in asked:
            messages = [{"role": "user", "content": asked["prompt"]}]
    return _json([_message(message) for message in messages])


def output_messages(output: Any, finish_reason: str | None) -> str:
    """A run's output as `gen_ai.output.messages` has it."""
    said: Any = output
    if isinstance(output, dict):
        said = cast(JsonObject, output).get("content", said)
    message = _message({"role": "assistant", "content": said})
    return _json([message | {"finish_reason": finish_reason or "stop"}])


def shown(value: Any) -> str:
    """A value as the text of an attribute: a text as it stands, anything else as JSON."""
    return _short(value if isinstance(value, str) else _json(value))


def _message(message: Any) -> JsonObject:
    if not isinstance(message, dict):
        message = {"role": "user", "content": message}
    found = cast(JsonObject, message)
    content = found.get("content", {key: value for key, value in found.items() if key != "role"})
    return {"role": str(found.get("role", "user")), "parts": [{"type": "text", "content": shown(content)}]}


def _json(value: Any) -> str:
    return encode(value).decode()


def _short(text: str) -> str:
    return text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS - 1]}…"
