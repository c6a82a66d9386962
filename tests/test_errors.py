from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest

from asm_runtime import errors
from asm_runtime.errors import (
    ActorStopped,
    AsmError,
    Conflict,
    InvalidTransition,
    NotFound,
    ProviderError,
    ProviderRateLimited,
    RunFailed,
    SessionNotFound,
    StoreError,
    StoreUnavailable,
    ValidationError,
)

ALL: list[type[AsmError]] = [getattr(errors, name) for name in errors.__all__]

CODES = {
    "ActorStopped": "actor_stopped",
    "ArtifactNotFound": "artifact_not_found",
    "AwaitTimeout": "await_timeout",
    "CapabilityMissing": "missing_required_capability",
    "Conflict": "conflict",
    "DependencyMissing": "dependency_not_available",
    "DrainTimeout": "drain_timeout",
    "Draining": "draining",
    "InvalidTransition": "invalid_transition",
    "LeaseLost": "lease_lost",
    "MigrationRequired": "migration_required",
    "PolicyViolation": "policy_violation",
    "ProviderAuthenticationFailed": "provider_authentication_failed",
    "ProviderError": "provider_error",
    "ProviderRateLimited": "provider_rate_limited",
    "ProviderTimeout": "provider_timeout",
    "ProviderUnavailable": "provider_unavailable",
    "QueueFull": "max_runs_exceeded",
    "RunCancelled": "run_cancelled",
    "RunNotFound": "run_not_found",
    "RunTimeout": "run_timeout",
    "SessionNotFound": "session_not_found",
    "StoreError": "storage_error",
    "StoreUnavailable": "storage_connection_failed",
    "ValidationError": "validation_error",
}

RETRYABLE = {
    "Draining",
    "MailboxFull",
    "ProviderRateLimited",
    "ProviderTimeout",
    "ProviderUnavailable",
    "QueueFull",
    "StoreUnavailable",
}


def facts(error: AsmError) -> dict[str, Any]:
    return {"class": type(error), "args": error.args, **vars(error), **error.to_dict()}


def test_each_class_has_the_code_that_the_contract_gives_it() -> None:
    assert {name: getattr(errors, name).code for name in CODES} == CODES


def test_no_two_classes_share_a_code() -> None:
    codes = [kind.code for kind in ALL]
    assert len(codes) == len(set(codes))


def test_exactly_the_passing_troubles_are_retryable() -> None:
    assert {kind.__name__ for kind in ALL if kind.retryable} == RETRYABLE


def test_the_tree_in_the_docstring_shows_every_class_under_its_parent() -> None:
    parents: dict[str, str] = {}
    branch: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        _, bullet, rest = line.partition("── ")
        if bullet:
            name, depth = rest.split()[0], line.index("── ") // 4
            branch[depth - 1 :] = [name]
            parents[name] = "AsmError" if depth == 1 else branch[depth - 2]
    expected = {kind.__name__: kind.__mro__[1].__name__ for kind in ALL if kind is not AsmError}
    assert parents == expected


def test_families_are_caught_by_their_base() -> None:
    assert issubclass(SessionNotFound, NotFound)
    assert issubclass(StoreUnavailable, StoreError)
    assert issubclass(ProviderRateLimited, ProviderError)
    assert not issubclass(Conflict, NotFound)


def test_an_error_says_its_message() -> None:
    assert str(Conflict("somebody was first")) == "somebody was first"


def test_details_are_the_errors_own_copy() -> None:
    details = {"path": "a"}
    error = ValidationError("no", details=details)
    details["path"] = "b"
    assert error.details == {"path": "a"}


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_round_trips_through_json(kind: type[AsmError]) -> None:
    error = kind("what happened", details={"session_id": "s", "n": 1})
    stored = json.loads(json.dumps(error.to_dict()))
    again = AsmError.from_dict(stored)
    assert again.to_dict() == stored
    assert again.retryable == error.retryable
    assert type(again) is (RunFailed if kind is AsmError else kind)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling_and_copying(kind: type[AsmError]) -> None:
    error = kind("what happened", details={"n": 1})
    error.session_id, error.run_id = "ses", "run"
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert facts(again) == facts(error)


def test_the_statuses_of_an_invalid_transition_survive_storage() -> None:
    error = InvalidTransition("no", from_status="completed", to_status="running", details={"id": "run"})
    again = AsmError.from_dict(json.loads(json.dumps(error.to_dict())))
    assert isinstance(again, InvalidTransition)
    assert (again.from_status, again.to_status) == ("completed", "running")
    assert again.details["id"] == "run"


def test_the_error_of_an_unknown_code_is_a_failed_run_with_that_code() -> None:
    again = AsmError.from_dict({"code": "tool_exploded", "message": "boom", "details": {}, "retryable": True})
    assert type(again) is RunFailed
    assert (again.code, again.message, again.retryable) == ("tool_exploded", "boom", True)
    assert RunFailed.code == "run_failed"


def test_a_failed_run_carries_a_code_of_its_own() -> None:
    error = RunFailed("left behind", code="orphaned")
    assert error.code == "orphaned"
    assert pickle.loads(pickle.dumps(error)).code == "orphaned"
    assert AsmError.from_dict(error.to_dict()).code == "orphaned"


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"code": None, "message": None, "details": None, "retryable": None},
        {"code": 7, "message": [], "details": ["not", "a", "dict"]},
        {"code": "conflict", "details": "text"},
    ],
)
def test_a_stored_error_that_somebody_else_wrote_still_makes_an_error(stored: dict[str, Any]) -> None:
    error = AsmError.from_dict(stored)
    assert str(error)
    assert error.details == {}


def test_an_applications_own_error_comes_back_as_its_class() -> None:
    class OutOfCredit(AsmError):
        """A constructor of another shape than the base's."""

        code = "test_out_of_credit"

        def __init__(self, account: str, missing: int) -> None:
            super().__init__(f"{account} lacks {missing}", details={"account": account, "missing": missing})

    error = OutOfCredit("acme", 7)
    again = AsmError.from_dict(error.to_dict())
    assert type(again) is OutOfCredit
    assert again.to_dict() == error.to_dict()
    assert facts(copy.copy(error)) == facts(error)


def test_an_applications_own_error_cannot_take_over_a_code_of_ours() -> None:
    class Impostor(AsmError):  # pyright: ignore[reportUnusedClass]
        code = "actor_stopped"

    assert type(AsmError.from_dict(ActorStopped("gone").to_dict())) is ActorStopped
