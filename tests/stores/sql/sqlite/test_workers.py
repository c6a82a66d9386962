"""Threads that are used again."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import pytest

from asm_runtime import Event
from asm_runtime.stores import SQLSessionStore
from asm_runtime.stores.sql.sqlite import workers


@pytest.fixture(autouse=True)
def no_idle_threads() -> Generator[None]:
    """Those of other tests are put aside."""
    others, workers._idle[:] = workers._idle[:], []
    yield
    workers._idle.extend(others)


def work_of(work: Callable[[], object], name: str = "at work") -> tuple[threading.Thread, object]:
    """Have it done; in which thread that was, and what it returned."""
    done: list[tuple[threading.Thread, object]] = []
    told = threading.Event()

    def then(result: object) -> None:
        done.append((threading.current_thread(), result))
        told.set()

    workers.start(name, work, then)
    assert told.wait(10)
    return done[0]


def test_a_thread_that_has_done_its_work_is_used_again_under_the_next_name() -> None:
    one, name = work_of(lambda: threading.current_thread().name, "one")
    assert name == "one"
    other, name = work_of(lambda: threading.current_thread().name, "other")
    assert name == "other"
    assert one is other


def test_two_at_once_have_a_thread_each() -> None:
    both = threading.Barrier(2, timeout=10)
    told: list[int] = []
    ended = threading.Semaphore(0)

    def then(_: object) -> None:
        told.append(threading.get_ident())
        ended.release()

    for _ in range(2):
        workers.start("at work", both.wait, then)
    for _ in range(2):
        assert ended.acquire(timeout=10)
    assert len(set(told)) == 2


def test_what_raises_is_told_of_and_its_thread_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    uncaught: list[object] = []

    def note(told: threading.ExceptHookArgs) -> None:
        uncaught.append(told.exc_value)

    monkeypatch.setattr(threading, "excepthook", note)
    error = ValueError("no")

    def fail() -> None:
        raise error

    thread, result = work_of(fail)
    assert result is None
    thread.join(10)
    assert not thread.is_alive()
    assert uncaught == [error]
    assert work_of(lambda: 7)[0] is not thread


def test_only_a_few_idle_threads_are_kept_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "IDLE_SECONDS", 0.01)
    monkeypatch.setattr(workers, "KEPT", 1)
    both = threading.Barrier(2, timeout=10)
    threads: list[threading.Thread] = []
    ended = threading.Semaphore(0)

    def then(_: object) -> None:
        threads.append(threading.current_thread())
        ended.release()

    for _ in range(2):
        workers.start("at work", both.wait, then)
    for _ in range(2):
        assert ended.acquire(timeout=10)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert workers._idle == []


def test_an_order_that_comes_as_the_thread_gives_up_waiting_is_carried_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "IDLE_SECONDS", 0.0)
    for number in range(300):
        assert work_of(partial(int, number))[1] == number


def test_an_idle_thread_holds_nothing_of_its_work() -> None:
    class Work:
        def __call__(self) -> None:
            pass

    work = Work()
    held = weakref.ref(work)
    work_of(work)
    work_of(lambda: None)  # behind the rest of the last turn
    del work
    gc.collect()
    assert held() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_has_threads_of_its_own() -> None:
    work_of(lambda: None)
    child = os.fork()
    if not child:
        answered = threading.Event()
        workers.start("at work", lambda: None, lambda _: answered.set())
        os._exit(0 if answered.wait(10) else 1)
    assert os.waitpid(child, 0)[1] == 0


async def test_a_store_that_is_opened_after_another_needs_no_new_thread(tmp_path: Path) -> None:
    started: list[str] = []
    start = threading.Thread.start

    def counted(thread: threading.Thread) -> None:
        started.append(thread.name)
        start(thread)

    async def open_and_read() -> None:
        async with SQLSessionStore(f"sqlite:///{tmp_path}/asm.db") as store:
            assert len(await store.get_events("s")) == 1

    async with SQLSessionStore(f"sqlite:///{tmp_path}/asm.db") as store:
        await store.append_event(Event.new(type="custom", session_id="s"))
        await open_and_read()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading.Thread, "start", counted)
            await open_and_read()
    assert started == []
