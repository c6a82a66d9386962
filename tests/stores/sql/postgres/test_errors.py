"""What an error of the server or of the driver becomes."""

from __future__ import annotations

import asyncpg
import pytest

from asm_runtime.errors import StoreUnavailable
from asm_runtime.stores.sql.postgres.errors import MEANINGS, ErrorTable, translated

DATABASE = "postgresql://host/db"


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (asyncpg.DeadlockDetectedError("x"), True),
        (asyncpg.QueryCanceledError("x"), True),
        (asyncpg.LockNotAvailableError("x"), True),
        (asyncpg.TooManyConnectionsError("x"), True),
        (asyncpg.DiskFullError("x"), True),
        (asyncpg.ReadOnlySQLTransactionError("x"), True),
        (asyncpg.AdminShutdownError("x"), True),
        (asyncpg.ConnectionDoesNotExistError("x"), True),
        (asyncpg.InternalClientError("x"), True),
        (asyncpg.InterfaceError("x"), True),
        (ConnectionResetError("x"), True),
        (TimeoutError("x"), True),
        (asyncpg.InvalidPasswordError("x"), False),
        (asyncpg.InvalidCatalogNameError("x"), False),
        (asyncpg.UndefinedTableError("x"), False),
        (asyncpg.DataCorruptedError("x"), False),
    ],
)
def test_what_may_pass_is_unavailable_and_what_stays_is_an_error(error: Exception, retryable: bool) -> None:
    made = translated(error, DATABASE)
    assert made is not None
    assert isinstance(made, StoreUnavailable) == made.retryable == retryable
    assert made.__cause__ is error
    assert DATABASE in str(made)


def test_every_class_of_errors_that_the_driver_knows_has_a_meaning_or_is_internal() -> None:
    codes = [str(getattr(one, "sqlstate", None) or "") for one in vars(asyncpg).values()]
    classes = {code[:2] for code in codes if code}
    # Warnings, and what no statement of the store can bring about.
    others = {
        "00", "01", "02", "03", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "10", "20", "21", "24", "25", "26",
        "27", "2B", "2D", "2F", "34", "38", "39", "3B", "44", "F0", "HV", "P0", "XX", "_",
    }  # fmt: skip
    assert {one for one in classes - others if one not in MEANINGS} == set()


def test_what_is_none_of_the_drivers_is_left_alone() -> None:
    assert translated(KeyError("x"), DATABASE) is None
    assert ErrorTable(DATABASE).translated(KeyError("x")) is None


def test_where_the_server_is_gone_the_others_of_a_group_are_not_tried() -> None:
    table = ErrorTable(DATABASE)
    assert table.is_busy(ConnectionResetError())
    assert table.is_busy(asyncpg.AdminShutdownError("x"))
    assert not table.is_busy(asyncpg.NumericValueOutOfRangeError("x"))
    assert table.is_duplicate(asyncpg.UniqueViolationError("x"))
