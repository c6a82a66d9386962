"""Checks of option values: each returns the value or names the option, the value, what is allowed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

from asm_runtime.errors import ValidationError

__all__ = [
    "MAX_ID_BYTES",
    "choice",
    "identifier",
    "identifiers",
    "integer",
    "member",
    "members",
    "optional_identifier",
    "refused",
    "session_choice",
    "utc",
]

MAX_ID_BYTES = 1024
"""How long an id (or any text that is a key of an index) may be, in bytes of UTF-8.

Two of them fit in one index entry of every database.
Source: PostgreSQL's B-tree takes 2704 bytes an entry on 8 kB pages, InnoDB's 3072.
"""

E = TypeVar("E", bound=StrEnum)


def refused(name: str, value: object, allowed: str) -> ValidationError:
    """The error for a bad value."""
    shown = f"{_shown(value):.80}"
    return ValidationError(f"{name} must be {allowed}, not {shown}", details={"option": name, "value": shown})


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # an int of more than 4300 digits, a __repr__ that raises
        return f"<{type(value).__name__}>"


def integer(name: str, value: Any, *, minimum: int, optional: bool = False) -> Any:
    """A whole number from `minimum` to 2**63-1; None too where it is `optional`."""
    if value is None and optional:
        return None
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, int)):
        raise refused(name, value, f"a whole number ≥ {minimum}" + (" or None" if optional else ""))
    if not minimum <= value < 2**63:
        raise refused(name, value, f"a whole number ≥ {minimum}" + (" or None" if optional else ""))
    return int(value)


def identifier(name: str, value: Any) -> str:
    """A text that can be a key in every database: 1 to 1024 bytes of UTF-8, no NUL."""
    if type(value) is str and value.isascii() and 0 < len(value) <= MAX_ID_BYTES and "\0" not in value:
        return value  # nearly all of them: every event has two or three
    if isinstance(value, str) and value and len(value) <= MAX_ID_BYTES:
        text = str.__str__(value)
        if "\0" not in text:
            if text.isascii():
                return text
            try:
                if len(text.encode()) <= MAX_ID_BYTES:
                    return text
            except UnicodeEncodeError:
                pass
    raise refused(name, value, f"a string of 1 to {MAX_ID_BYTES} bytes of UTF-8 without NUL")


def optional_identifier(name: str, value: Any) -> str | None:
    """Like `identifier`, or None."""
    return None if value is None else identifier(name, value)


def utc(name: str, value: Any) -> datetime:
    """An aware datetime, converted to UTC."""
    if type(value) is datetime and value.tzinfo is UTC:
        return value
    if not isinstance(value, datetime) or value.tzinfo is None or value.utcoffset() is None:
        raise refused(name, value, "a timezone-aware datetime")
    try:
        moved = value.astimezone(UTC)
    except OverflowError:
        raise refused(name, value, "a datetime that exists in UTC") from None
    return datetime(
        moved.year, moved.month, moved.day, moved.hour, moved.minute, moved.second, moved.microsecond, UTC
    )


def member(name: str, value: Any, kind: type[E]) -> E:
    """The member of an enum that `value` is or spells."""
    if type(value) is kind:
        return value
    if isinstance(value, str):
        try:
            return kind(value)
        except ValueError:
            pass
    raise refused(name, value, f"one of {', '.join(kind)}")


def members(name: str, value: Any, kind: type[E]) -> frozenset[E] | None:
    """The members that one value or a collection of them names; None for None."""
    if value is None:
        return None
    if isinstance(value, str):
        return frozenset((member(name, value, kind),))
    if not isinstance(value, Collection):
        raise refused(name, value, f"one or a collection of {', '.join(kind)}")
    items: Collection[Any] = value  # pyright: ignore[reportUnknownVariableType]
    return frozenset(member(name, item, kind) for item in items)


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """One of a few words."""
    if value not in allowed:
        raise refused(name, value, f"one of {', '.join(allowed)}")
    return str(value)


def identifiers(name: str, value: Any) -> frozenset[str] | None:
    """The ids that one value or a collection of them names; None for None."""
    if value is None:
        return None
    if isinstance(value, str):
        return frozenset((identifier(name, value),))
    if not isinstance(value, Collection):
        raise refused(name, value, "one or a collection of ids")
    items: Collection[Any] = value  # pyright: ignore[reportUnknownVariableType]
    return frozenset(identifier(name, item) for item in items)


def session_choice(session_id: object, session_opts: Any) -> None:
    """Which session is meant: an id, or what to create one with, or both if they name the same."""
    if session_opts is None:
        if session_id is None:
            raise ValidationError("give session_id (attach), session_opts (create), or both")
    elif not isinstance(session_opts, Mapping):
        raise refused("session_opts", session_opts, "a dict or None")
    elif session_id is not None and session_opts.get("id", session_id) != session_id:  # pyright: ignore[reportUnknownMemberType]
        raise ValidationError("session_opts names another id than session_id")
