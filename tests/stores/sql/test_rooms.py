"""Which module may know which database."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
STORES = ROOT / "stores"
ROOMS = {name: f"asm_runtime.stores.sql.{name}" for name in ("sqlite", "postgres")}
DRIVERS = {"sqlite3", "aiosqlite", "asyncpg", "aiomysql", "asyncmy"}
CHOOSES = STORES / "sql" / "target.py"
"""The one that knows which URL means which database."""
SQL = re.compile(r"\s*((SELECT|INSERT|UPDATE|DELETE|WITH|PRAGMA|BEGIN) [A-Za-z(*]|(COMMIT|ROLLBACK)$)")

SHARED = [
    path
    for package in ("asm_runtime", "stores", "adapters", "telemetry")
    for path in (ROOT / package).rglob("*.py")
    if path.parent.name not in ROOMS
]
OWN = [path for path in STORES.rglob("*.py") if path.parent.name in ROOMS]


def imported(module: ast.Module) -> Iterator[str]:
    """The full names of what a module imports, wherever in it."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def in_room(name: str, *rooms: str) -> bool:
    return any(f"{name}.".startswith(f"{ROOMS[room]}.") for room in rooms)


@pytest.mark.parametrize("path", SHARED, ids=[str(path.relative_to(ROOT)) for path in SHARED])
def test_what_databases_share_knows_none_of_them(path: Path) -> None:
    module = ast.parse(path.read_text())
    known = {name for name in imported(module) if name.split(".")[0] in DRIVERS}
    if path != CHOOSES:
        known |= {name for name in imported(module) if in_room(name, *ROOMS)}
    texts = [node.value for node in ast.walk(module) if isinstance(node, ast.Constant)]
    assert known == set()
    assert [text for text in texts if isinstance(text, str) and SQL.match(text)] == []


@pytest.mark.parametrize("path", OWN, ids=[str(path.relative_to(STORES)) for path in OWN])
def test_a_database_knows_no_other(path: Path) -> None:
    others = ROOMS.keys() - {path.parent.name}
    assert [name for name in imported(ast.parse(path.read_text())) if in_room(name, *others)] == []


def test_the_rule_sees_what_it_is_to_see() -> None:
    room = ROOMS["sqlite"]
    program = f"def late():\n    from {room} import statements\n    import sqlite3\n    'SELECT 1'"
    module = ast.parse(program)
    assert list(imported(module)) == [f"{room}.statements", "sqlite3"]
    assert SQL.match("\nSELECT id")
