"""Times as they are typed: how long ago, or when."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

__all__ = ["moment"]

_AGO = re.compile(r"(\d{1,9})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def moment(kind: Any, tokens: Sequence[Any]) -> datetime:
    """The time that an option names; one without a timezone is local.

    Raises:
        ValueError: It names none.
    """
    text: str = tokens[0].value
    if (ago := _AGO.fullmatch(text)) is not None:
        try:
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is neither an age such as 10m nor a time such as 2026-01-31T12:00"
        ) from None
