from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from itertools import pairwise

import pytest

from asm_runtime.ids import new_id

MAKE_SOME = "from asm_runtime.ids import new_id\nfor _ in range(1000): print(new_id('run_'))"


def test_an_id_is_its_prefix_and_32_hex_digits() -> None:
    assert re.fullmatch(r"run_[0-9a-f]{32}", new_id("run_"))


def test_ids_made_by_one_process_increase_strictly_in_text_order() -> None:
    ids = [new_id("run_") for _ in range(50_000)]
    assert all(first < second for first, second in pairwise(ids))


def test_an_id_begins_with_the_time_at_which_it_was_made() -> None:
    before = time.time_ns() // 1_000_000
    milliseconds = int(new_id("")[:12], 16)
    assert before <= milliseconds <= time.time_ns() // 1_000_000


def test_ids_increase_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    moments = iter([now, now - 3_600 * 10**9, now - 3_600 * 10**9, now + 10**6])
    monkeypatch.setattr(time, "time_ns", lambda: next(moments))
    ids = [new_id("run_") for _ in range(4)]
    assert ids == sorted(set(ids))


def test_threads_that_make_ids_at_once_never_make_one_twice() -> None:
    made: list[list[str]] = [[] for _ in range(4)]

    def make(ids: list[str]) -> None:
        ids.extend(new_id("run_") for _ in range(10_000))

    threads = [threading.Thread(target=make, args=(ids,)) for ids in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = [id for ids in made for id in ids]
    assert len(set(together)) == len(together)
    for ids in made:
        assert ids == sorted(ids)


def test_processes_that_make_ids_at_once_do_not_meet() -> None:
    makers = [
        subprocess.Popen([sys.executable, "-c", MAKE_SOME], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    together = [line for maker in makers for line in maker.communicate()[0].split()]
    assert len(together) == 3000
    assert len(set(together)) == 3000


FORK = """
import os, sys
from asm_runtime.ids import new_id
new_id("")
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        os.write(1, "".join(new_id("run_") + "\\n" for _ in range(100)).encode())
        os._exit(0)
    children.append(child)
os.write(1, "".join(new_id("run_") + "\\n" for _ in range(100)).encode())
for child in children:
    os.waitpid(child, 0)
"""


def test_a_forked_child_does_not_repeat_its_parents_ids() -> None:
    ids = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(ids) == 400
    assert len(set(ids)) == 400
