"""What every registry of artifacts checks, wherever it keeps its rows."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from asm_runtime import options
from asm_runtime.errors import ArtifactNotFound, Conflict
from asm_runtime.records import Artifact
from asm_runtime.stores import rules

__all__ = [
    "Replaced",
    "RowFilter",
    "check_registration",
    "new_row",
    "not_found",
    "one_row",
    "replaced",
]

Replaced = bool | str
"""Whether a live row is replaced; a text: only the one with this id."""


class RowFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows a list has, in canonical form."""

    session_id: str | None
    run_id: str | None
    prefix: str
    include_deleted: bool
    limit: int | None
    after: tuple[datetime, str] | None
    """Of the row that the list begins after."""

    @classmethod
    def checked(
        cls,
        *,
        session_id: Any,
        run_id: Any,
        prefix: Any,
        include_deleted: Any,
        limit: Any,
        after: Any,
    ) -> RowFilter:
        """The filter of a call's arguments.

        Raises:
            ValidationError: One of them is not what is allowed.
        """
        if after is not None:
            after = _checked("after", after)
        return cls(
            session_id=options.optional_identifier("session_id", session_id),
            run_id=options.optional_identifier("run_id", run_id),
            prefix="" if isinstance(prefix, str) and not prefix else options.identifier("prefix", prefix),
            include_deleted=_flag("include_deleted", include_deleted),
            limit=options.integer("limit", limit, minimum=1, optional=True),
            after=None if after is None else (after.created_at, after.id),
        )

    def wants(self, row: Artifact) -> bool:
        """Whether it wants a row, wherever that lies."""
        return (
            (self.session_id is None or row.session_id == self.session_id)
            and (self.run_id is None or row.run_id == self.run_id)
            and (self.include_deleted or row.deleted_at is None)
            and row.key.startswith(self.prefix)
        )


def new_row(artifact: Any) -> Artifact:
    """The registry's own copy of an artifact that is to be registered.

    Raises:
        ValidationError: It is none, or deleted.
    """
    row = _checked("artifact", artifact)
    if row.deleted_at is not None:
        raise options.refused("artifact.deleted_at", row.deleted_at, "None")
    return row


def replaced(replace: Any) -> Replaced:
    """What `register(replace=…)` means."""
    if isinstance(replace, Artifact):
        return options.identifier("replace.id", replace.id)
    return _flag("replace", replace)


def one_row(key: Any) -> tuple[str, str | None]:
    """The key of a row, and its id where only that row is meant."""
    if isinstance(key, Artifact):
        return options.identifier("key.key", key.key), options.identifier("key.id", key.id)
    return options.identifier("key", key), None


def check_registration(
    row: Artifact, same_id: Artifact | None, live: Artifact | None, replace: Replaced
) -> Artifact | None:
    """See that a row may be stored.

    Args:
        row: It.
        same_id: The stored one that has its id.
        live: The live one that has its key.
        replace: What may be done to that.

    Returns:
        The stored row, if it is this very one and live; else the row is to be stored, and `live` deleted.

    Raises:
        Conflict: It may not.
    """
    if same_id is not None:
        if rules.same_json(same_id, row):
            return same_id
        raise Conflict(
            f"the id {row.id} is taken by {'a deleted' if same_id.deleted_at else 'another'} artifact",
            details={"id": row.id, "key": same_id.key},
        )
    if isinstance(replace, str):
        may_be_stored = live is not None and live.id == replace
    else:
        may_be_stored = replace or live is None
    if may_be_stored:
        return None
    if live is None:
        raise Conflict(f"no live artifact {row.key}, so none to replace", details={"key": row.key})
    raise Conflict(
        f"a live artifact has the key {row.key}: {live.id}", details={"key": row.key, "id": live.id}
    )


def not_found(key: str) -> ArtifactNotFound:
    """The error for a key that no live row has."""
    return ArtifactNotFound(f"no artifact {key}", details={"key": key})


def _checked(name: str, artifact: Any) -> Artifact:
    if not isinstance(artifact, Artifact):
        raise options.refused(name, artifact, "an Artifact")
    return artifact.checked()


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise options.refused(name, value, "True or False")
    return value
