"""Forks: what a child may do, and that nothing acknowledged is lost by one.

Each test is a process of its own, which forks; see `tests.stores.sql.sqlite.forking`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.stores.sql.conftest import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")

Scenario = Callable[..., Any]


@pytest.fixture
def scenario(file: str) -> Scenario:
    """Runs a scenario to its end; what it said."""

    def run(name: str, *more: str) -> Any:
        process = subprocess.run(
            [sys.executable, "-m", "tests.stores.sql.sqlite.forking", name, file, *more],
            cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=100,
        )  # fmt: skip
        return json.loads(process.stdout.splitlines()[-1])

    return run


def refusals(outcomes: list[list[str]]) -> set[str]:
    """The classes of errors; each must name the way out."""
    for kind, message in outcomes:
        assert kind == "ok" or "spawn" in message, message
    return {kind for kind, _ in outcomes}


def test_a_child_is_refused_the_file_that_its_parent_has_open(scenario: Scenario) -> None:
    found = scenario("of_its_own")
    assert refusals(found["children"]) == {"StoreError"}
    assert found["numbers"] == [1, 2]


def test_every_call_on_an_inherited_store_fails_at_once(scenario: Scenario) -> None:
    *calls, stop, orphans = scenario("inherited")
    assert refusals(calls) == {"ActorStopped"}
    assert stop == ["ok", ""]
    assert orphans == []


@pytest.mark.parametrize("target", ["url", "engine"])
def test_the_end_of_a_child_touches_nothing_that_it_inherited(scenario: Scenario, target: str) -> None:
    assert scenario("at_the_end", target) == [0, 1, 2]


def test_a_fork_while_commits_are_under_way_leaves_sqlite_usable_on_both_sides(scenario: Scenario) -> None:
    assert scenario("under_load") == {"statuses": [0] * 40, "own": ["ok", ""], "lost": 0}


def test_a_fork_does_not_wait_for_a_thread_that_waits_for_a_lock(scenario: Scenario) -> None:
    scenario("while_waiting")


def test_a_child_made_while_a_file_is_prepared_keeps_no_lock(scenario: Scenario) -> None:
    assert scenario("while_opening") is True


def test_a_grandchild_is_refused_what_was_open_at_either_fork(scenario: Scenario) -> None:
    found = scenario("grandchild")
    of_the_oldest, of_its_parent, new = found["grandchild"]
    assert refusals([of_the_oldest, of_its_parent]) == {"StoreError"}
    assert new == ["ok", ""]
    assert found["numbers of the child"] == [1, 2]


def test_a_child_is_refused_what_the_application_had_open_and_given_what_was_closed(
    scenario: Scenario,
) -> None:
    held, closed = scenario("connections_of_others")
    assert refusals([held]) == {"StoreError"}
    assert closed == ["ok", ""]


def test_a_child_is_refused_engines_that_were_in_use(scenario: Scenario) -> None:
    *used, unused = scenario("engines")
    assert refusals(used) == {"StoreError"}
    assert unused == ["ok", ""]


def test_a_child_that_is_spawned_opens_the_file(scenario: Scenario) -> None:
    forked, spawned, served, latest = scenario("start_methods")
    assert refusals([forked]) == {"StoreError"}
    assert [spawned, served] == [["ok", ""]] * 2
    assert latest == 3
