"""Which revision of the schema this release works with."""

from __future__ import annotations

from asm_runtime.errors import MigrationRequired

__all__ = ["KNOWN", "VERSION_TABLE", "can_be_upgraded", "check"]

VERSION_TABLE = "asm_schema_version"
"""Where the revision of a database stands; no other Alembic environment uses that name."""

KNOWN: tuple[str, ...] = ("0001",)
"""All revisions, the oldest first; the last is what this release needs.

Written down so that opening a database whose schema is up to date loads neither Alembic nor its
scripts; a test holds it against them.
"""


def can_be_upgraded(revision: str | None) -> bool:
    """Whether there is a way from that revision (None: no schema) to the one that is needed."""
    return revision is None or revision in KNOWN[:-1]


def check(revision: str | None, url: str) -> None:
    """See that a database stands at the revision that this release needs.

    Args:
        revision: Its revision; None: it has no schema.
        url: What names it in the message.

    Raises:
        MigrationRequired: It does not.
    """
    if revision == KNOWN[-1]:
        return
    details = {"found": revision, "needed": KNOWN[-1]}
    if revision is not None and revision not in KNOWN:
        raise MigrationRequired(
            f"the schema of {url} is at revision {revision}, which this release does not know "
            f"(it needs {KNOWN[-1]}): use the release that made it, or a newer one",
            details=details,
        )
    state = "missing" if revision is None else f"at revision {revision}, older than {KNOWN[-1]}"
    raise MigrationRequired(
        f"the schema of {url} is {state}: run `asm-runtime migrate {url}`", details=details
    )
