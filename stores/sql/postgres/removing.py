"""Sessions deleted, and what they have left removed bit by bit.

Each of these is a transaction of its own and asks as it goes: they are rare.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import getrandbits

from asm_runtime.stores.sql.postgres import statements
from asm_runtime.stores.sql.postgres.connections import Connection

__all__ = ["delete_session", "remove_left"]

REMOVED_AT_ONCE = 2000
"""How many events, and how many runs, of deleted sessions one transaction removes. Some 20 ms."""


async def delete_session(connection: Connection, session_id: str) -> tuple[bool, bool]:
    """Delete a session; whether it was there, and whether nothing is left of it."""
    await _lock(connection, [session_id])
    gone = [await connection.execute(statement, session_id) for statement in statements.DELETE_SESSION[:-1]]
    last_sequence, last_position = await connection.fetchrow(statements.LEFT_BEHIND, session_id) or (
        None,
        None,
    )
    await connection.execute(statements.DELETE_SESSION[-1], session_id)
    existed = any(not tag.endswith(" 0") for tag in gone)
    if last_sequence is None and last_position is None:
        return existed, True
    await connection.execute(statements.BEGIN_REMOVAL, session_id, last_sequence or 0, last_position or 0)
    _, is_done = await _remove(connection, session_id, REMOVED_AT_ONCE)
    return True, is_done


async def remove_left(connection: Connection, session_ids: Sequence[str]) -> list[str]:
    """Remove some of what sessions have left; of which nothing is left then."""
    made = await _lock(connection, session_ids)
    room, done = REMOVED_AT_ONCE, list[str]()
    for session_id in session_ids:
        if room <= 0:
            break
        removed, is_done = await _remove(connection, session_id, room)
        room -= removed
        if is_done:
            done.append(session_id)
    await connection.execute(statements.DELETE_COUNTERS, made)
    return done


async def _remove(connection: Connection, session_id: str, room: int) -> tuple[int, bool]:
    """How many rows were removed, and whether those were the last."""
    row = await connection.fetchrow(statements.REMOVAL, session_id)
    if row is None:
        return 0, True
    last_sequence, last_position, head = row
    events = _count(await connection.execute(statements.REMOVE_EVENTS, session_id, head, last_sequence, room))
    runs = 0
    if events < room:
        runs = _count(
            await connection.execute(statements.REMOVE_RUNS, session_id, last_position, room - events)
        )
    is_done = events + runs < room
    if is_done:
        await connection.execute(statements.END_REMOVAL, session_id)
    return events + runs, is_done


async def _lock(connection: Connection, session_ids: Sequence[str]) -> list[str]:
    """Lock the counters; returns the sessions that had none."""
    made = {session_id: getrandbits(62) for session_id in sorted(set(session_ids))}
    rows = await connection.fetch(statements.LOCK_COUNTERS, list(made), list(made.values()), False)
    return [row["session_id"] for row in rows if row["incarnation"] == made[row["session_id"]]]


def _count(tag: str) -> int:
    """How many rows a statement changed, by what the server calls it: `DELETE 3`."""
    return int(tag.rpartition(" ")[2])
