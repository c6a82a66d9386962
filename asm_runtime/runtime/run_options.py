"""How a run is to be executed: options that are accepted with it and stored with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict, cast

import msgspec

from asm_runtime import options
from asm_runtime.errors import ValidationError
from asm_runtime.payload import JsonObject, canonical_object
from asm_runtime.ports import EventCallback
from asm_runtime.records import Run

__all__ = ["RunOptionArgs", "RunOptions", "callbacks_of", "stored_options"]


class RunOptionArgs(TypedDict, total=False):
    """The keyword arguments that every call which accepts a run takes."""

    run_timeout_ms: int | None
    """How long the run may take in all, in milliseconds; None: no limit."""
    idle_timeout_ms: int | None
    """How long it may report no event, in milliseconds; None: no limit."""
    adapter_opts: JsonObject
    """For the adapter; a JSON object."""
    continuation: bool | str
    """Whether the adapter is given the session's messages so far: False, True, "auto", "replay"."""
    continuation_opts: JsonObject
    """Bounds of that history: `max_messages`, `max_chars`; the newest are kept."""
    event_callback: EventCallback | None
    """Given every stored event of the run, in order, while this process executes it."""


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a run, for the process that executes it."""

    run_timeout_ms: int | None = None
    idle_timeout_ms: int | None = None
    adapter_opts: JsonObject = {}
    continuation: bool | str = False
    continuation_opts: JsonObject = {}

    @classmethod
    def of(cls, run: Run) -> RunOptions:
        """The options stored with a run; what this release does not know is left out."""
        stored: Any = run.metadata.get("options")
        if not isinstance(stored, dict):
            return cls()
        known: JsonObject = {name: stored[name] for name in cls.__struct_fields__ if name in stored}
        return cls(**_checked(known))


def stored_options(
    call: str, given: Mapping[str, object], defaults: Mapping[str, object] | None = None
) -> JsonObject:
    """What is stored as `run.metadata["options"]`: the defaults with what was given laid over them.

    `adapter_opts` and `continuation_opts` are merged key by key.

    Args:
        call: The name of the call, for the error.
        given: The caller's keyword arguments.
        defaults: The accepting server's `default_run_options`.

    Raises:
        TypeError: An option is unknown.
        ValidationError: A value is not what is allowed.
    """
    for name in given:
        if name not in RunOptionArgs.__annotations__:
            raise TypeError(f"{call}() got an unexpected keyword argument {name!r}")
    merged: dict[str, Any] = {**(defaults or {})}
    for name, value in given.items():
        if name in ("adapter_opts", "continuation_opts") and isinstance(merged.get(name), dict):
            merged[name] = merged[name] | canonical_object(value, name)
        else:
            merged[name] = value
    for callback in (merged.pop("event_callback", None), given.get("event_callback")):
        if callback is not None and not callable(callback):
            raise options.refused("event_callback", callback, "a function, a coroutine function or None")
    return _checked(merged)


def callbacks_of(*options_given: Mapping[str, object] | None) -> list[EventCallback]:
    """The event callbacks among several sets of options; all are called."""
    found = [given["event_callback"] for given in options_given if given and given.get("event_callback")]
    return [cast(Callable[..., object], callback) for callback in found]


def _checked(given: dict[str, Any]) -> JsonObject:
    checked: JsonObject = {}
    for name, value in given.items():
        if name in ("run_timeout_ms", "idle_timeout_ms"):
            checked[name] = options.integer(name, value, minimum=1, optional=True)
        elif name == "continuation":
            if not isinstance(value, bool) and value not in ("auto", "replay"):
                raise options.refused(name, value, "False, True, 'auto' or 'replay'")
            checked[name] = value
        elif name == "continuation_opts":
            checked[name] = _checked_continuation(canonical_object(value, name))
        else:
            checked[name] = canonical_object(value, name)
    return checked


def _checked_continuation(opts: JsonObject) -> JsonObject:
    for name, value in opts.items():
        if name not in ("max_messages", "max_chars"):
            raise ValidationError(
                f"continuation_opts has no {name!r}: max_messages and max_chars are allowed",
                details={"option": f"continuation_opts.{name}"},
            )
        options.integer(f"continuation_opts.{name}", value, minimum=1, optional=True)
    return opts
