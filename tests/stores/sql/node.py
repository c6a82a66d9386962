"""A process with a store on a file, which does what it is told, one line at a time.

Run as `python -m tests.stores.sql.node FILE`. It says `ready`, then for each line read from stdin
what it did. `FILE` may be followed by one command, done at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from asm_runtime import Event, Run
from asm_runtime.observer import Observer, set_observer
from asm_runtime.stores import SQLSessionStore
from asm_runtime.stores.sql.sqlite import transaction


class Dying(Observer):
    """Kills the process on the way between a commit and its acknowledgement."""

    def __init__(self, commits: int = 1) -> None:
        self._left = commits

    def group_committed(self, requests: int, events: int) -> None:
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


def say(*words: object) -> None:
    print(*words, flush=True)


async def obey(store: SQLSessionStore, command: str, *args: str) -> None:
    match command:
        case "append":
            session, count = args
            for _ in range(int(count)):
                await store.append_event_with_sequence(Event.new(type="custom", session_id=session))
            say("appended")
        case "append-told":
            session, count = args
            batch = [Event.new(type="custom", session_id=session) for _ in range(int(count))]
            await asyncio.gather(*map(store.append_event, batch))
            say(*(event.id for event in batch))
        case "append-until-killed":
            while True:
                stored = await store.append_event_with_sequence(Event.new(type="custom", session_id=args[0]))
                say(stored.id)
        case "append-and-die":
            set_observer(Dying())
            await store.append_event(Event.new(type="custom", session_id=args[0], id=args[1]))
        case "delete-and-die":
            session, transaction.REMOVED_AT_ONCE, commits = args[0], int(args[1]), int(args[2])
            set_observer(Dying(commits))
            await store.delete_session(session)
        case "delete-until-killed":
            session, transaction.REMOVED_AT_ONCE = args[0], 5
            while True:
                await store.append_events([Event.new(type="custom", session_id=session) for _ in range(40)])
                say("appended")
                await store.delete_session(session)
                say("deleted")
        case "enqueue":
            await store.enqueue_run(Run.new(session_id=args[0], id=args[1]))
            say("enqueued")
        case "claim":
            run = await store.claim_run(args[0])
            say(run and run.id)
        case "wait":
            events = await store.get_events(args[0], after=int(args[1]), wait_timeout_ms=60_000)
            say(*(event.sequence_number for event in events))
        case "fork":
            child = os.fork()
            if child == 0:
                os.closerange(0, 2)  # or whoever reads from the parent would wait for the child
                signal.pause()
            say(child)
        case _:
            raise ValueError(command)


async def main(file: str, *command: str) -> None:
    async with SQLSessionStore(f"sqlite:///{file}") as store:
        if command:
            await obey(store, *command)
            return
        say("ready")
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            await obey(store, *line.split())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
