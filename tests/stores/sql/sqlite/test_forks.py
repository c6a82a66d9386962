"""Forks: what a child may do, and that nothing acknowledged is lost by one.

Each test is a process of its own, which forks; see `tests.stores.sql.sqlite.forking`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from asm_runtime.stores.sql.sqlite import forks
from tests.stores.sql.conftest import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")

Scenario = Callable[..., Any]


@pytest.fixture
def scenario(file: str) -> Scenario:
    """Runs a scenario to its end; what it said."""

    def run(name: str, *more: str) -> Any:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.stores.sql.sqlite.forking", name, file, *more],
            cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=100)
        except BaseException:
            os.killpg(process.pid, signal.SIGABRT)  # each process says where it is
            raise
        assert process.returncode == 0
        return json.loads(said.splitlines()[-1])

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


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Counts the looks of a fork at a thread at work, each a second after the other."""
    counted = count()
    monkeypatch.setattr(forks, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(forks, "time", SimpleNamespace(monotonic=lambda: next(counted)))
    return counted


def test_a_fork_waits_for_a_thread_at_work_however_slow_the_disk(looks: Any) -> None:
    working = forks.Working()
    with ThreadPoolExecutor() as threads:
        with working:
            rested = threads.submit(working.rest, 1e9)
            while next(looks) < 1000:
                assert not rested.done()
        assert rested.result() is True
        working.go_on()


def test_a_fork_does_not_wait_for_a_broken_disk(looks: Any) -> None:
    working = forks.Working()
    with working, ThreadPoolExecutor() as threads:
        assert threads.submit(working.rest, 5).result() is False


def test_a_fork_gives_a_thread_that_may_wait_for_others_a_moment(looks: Any) -> None:
    working = forks.Working()
    with ThreadPoolExecutor() as threads:
        with working:
            with forks.WAITING:
                assert threads.submit(working.rest, 1e9).result() is False
                assert next(looks) > forks.WAITING_SECONDS
            assert working.waits_since is None
        assert threads.submit(working.rest, 1e9).result() is True


def test_a_thread_that_never_pauses_does_not_keep_a_fork_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "_forking", forking := threading.Lock())
    working, entered, stopped = forks.Working(), 0, threading.Event()

    def work() -> None:
        nonlocal entered
        while not stopped.is_set():
            with working:
                entered += 1

    with ThreadPoolExecutor() as threads:
        threads.submit(work)
        try:
            while entered < 1000:
                pass
            with forking:
                assert working.rest(1e9)
                seen = entered
                for _ in range(1000):
                    working.go_on()
                    time.sleep(0)  # let it run, if it would
                    assert working.rest(1e9)
                working.go_on()
                assert entered <= seen + 1  # it may have looked before
            while entered < seen + 1000:
                pass
        finally:
            stopped.set()
