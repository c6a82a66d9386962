"""What a run of the shell adapter is to do, read from its input and checked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from asm_runtime import options
from asm_runtime.errors import ValidationError
from asm_runtime.payload import JsonObject, canonical

__all__ = ["PER_RUN_OPTIONS", "Command", "environment", "refuse_unknown", "text", "texts"]

PER_RUN_OPTIONS = ("cwd", "env", "timeout_ms")
"""What a run may set for itself, in its input or in `adapter_opts`."""

_INPUT_KEYS = ("command", "args", "prompt", "messages", *PER_RUN_OPTIONS, "stdin")


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A command: a text for the shell, or a program with its arguments."""

    script: str | None = None
    argv: list[str] = []
    cwd: str | None = None
    env: dict[str, str] = {}
    timeout_ms: int | None = None
    stdin: str = ""

    @classmethod
    def of(cls, asked: Any, adapter_opts: JsonObject, *, timeout_ms: int | None) -> Command:
        """The command of a run's input.

        Args:
            asked: The input, as `ShellAdapter` describes it.
            adapter_opts: Hold where the input says nothing.
            timeout_ms: Holds where neither says anything.

        Raises:
            ValidationError: It means nothing; names what is wrong.
        """
        if not isinstance(asked, str | dict):
            raise options.refused("input", asked, "a string or an object")
        own: JsonObject = asked if isinstance(asked, dict) else {"command": asked}  # pyright: ignore[reportUnknownVariableType]
        refuse_unknown("input", own, _INPUT_KEYS)
        script, argv = _script_or_argv(own)
        cwd = adapter_opts.get("cwd") if own.get("cwd") is None else own["cwd"]
        limit = own.get("timeout_ms", adapter_opts.get("timeout_ms", timeout_ms))
        stdin = own.get("stdin")
        return cls(
            script=script,
            argv=argv,
            cwd=None if cwd is None else text("cwd", cwd),
            env=environment("env", adapter_opts.get("env")) | environment("env", own.get("env")),
            timeout_ms=options.integer("timeout_ms", limit, minimum=1, optional=True),
            stdin="" if stdin is None else _string("stdin", stdin),
        )

    @property
    def shown(self) -> JsonObject:
        """How events and errors show it: `command`, and `args` where there is no shell."""
        if self.script is not None:
            return {"command": self.script}
        return {"command": self.argv[0], "args": self.argv[1:]}


def refuse_unknown(name: str, given: JsonObject, known: Iterable[str]) -> None:
    """Refuse keys that mean nothing: a misspelt `timeout_ms` must not be a missing one."""
    for key in given:
        if key not in known:
            raise ValidationError(
                f"{name} has no {key!r}: {', '.join(known)} are allowed",
                details={"option": f"{name}.{key}"},
            )


def text(name: str, value: Any) -> str:
    """A text that can be a path or an argument: not empty, no NUL."""
    if not _string(name, value) or "\0" in value:
        raise options.refused(name, value, "a string without NUL, not empty")
    return str(value)


def texts(name: str, value: Any) -> list[str]:
    """A list of such texts."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise options.refused(name, value, "a list of strings")
    items: Iterable[Any] = value  # pyright: ignore[reportUnknownVariableType]
    return [text(name, item) for item in items]


def environment(name: str, value: Any) -> dict[str, str]:
    """Variables and their values; none for None. An error does not show the values: they may be secret."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValidationError(f"{name} must be an object of strings", details={"option": name})
    variables: dict[str, Any] = canonical(value, name)
    for variable, content in variables.items():
        if not variable or "=" in variable or "\0" in variable:
            raise options.refused(name, variable, "an object of variables, not empty, without '=' and NUL")
        if not isinstance(content, str) or "\0" in content:
            raise ValidationError(
                f"{name}.{variable} must be a string without NUL", details={"option": f"{name}.{variable}"}
            )
    return variables


def _script_or_argv(own: JsonObject) -> tuple[str | None, list[str]]:
    asked = [key for key in ("command", "prompt", "messages") if own.get(key) is not None]
    if len(asked) != 1:
        raise ValidationError(
            "input must have one of command, prompt and messages, not "
            + (" and ".join(asked) if asked else "none of them"),
            details={"option": "input"},
        )
    key, args = asked[0], own.get("args")
    if key == "command" and (args is not None or isinstance(own[key], list)):
        return None, _argv(own[key], args)
    if args is not None:
        raise ValidationError("args belong to a command", details={"option": "input.args"})
    script = text(key, "\n".join(_user_texts(own[key])) if key == "messages" else own[key])
    if not script.strip():
        raise options.refused(key, script, "a command, not just space")
    return script, []


def _argv(command: Any, args: Any) -> list[str]:
    if args is not None:
        return [text("command", command), *_arguments("args", args)]
    argv = _arguments("command", command)
    if not argv or not argv[0]:
        raise options.refused("command", argv, "a program and its arguments")
    return argv


def _arguments(name: str, value: Any) -> list[str]:
    """Like `texts`, but an argument may be empty."""
    if not isinstance(value, list):
        raise options.refused(name, value, "a list of strings")
    items: list[Any] = value  # pyright: ignore[reportUnknownVariableType]
    for index, item in enumerate(items):
        if "\0" in _string(f"{name}[{index}]", item):
            raise options.refused(f"{name}[{index}]", item, "a string without NUL")
    return items


def _user_texts(messages: Any) -> list[str]:
    if not isinstance(messages, list):
        raise options.refused("messages", messages, "a list of objects with role and content")
    found: list[str] = []
    items: list[Any] = messages  # pyright: ignore[reportUnknownVariableType]
    for message in items:
        match message:
            case {"role": "user", "content": str(content)}:
                found.append(content)
            case {"role": str(role)} if role != "user":
                pass
            case _:
                raise options.refused("messages", message, "objects with role and content, both strings")
    return found


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise options.refused(name, value, "a string")
    return canonical(value, name)  # type: ignore[no-any-return]  # a str gives a str
