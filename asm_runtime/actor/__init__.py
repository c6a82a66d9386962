"""The actor kernel: state, a mailbox, and handlers that run one at a time.

An actor's handlers are its own methods. Its public methods `call` or `cast` them::

    class Counter(Actor):
        def __init__(self) -> None:
            super().__init__()
            self._count = 0

        async def add(self, amount: int) -> int:
            return await self.call(self._add, amount)

        def _add(self, amount: int) -> int:
            self._count += amount
            return self._count

    async with Counter() as counter:
        print(await counter.add(2))

An idle actor is an object and nothing else: no task, no queue. The first message schedules one
callback on the loop, and that handles everything that has arrived by then. A plain handler runs
right there; a coroutine handler gets a task, and the mail after it waits.

A handler that raises does not take the actor with it if there is a caller to tell: the caller of a
`call` gets the exception, the actor goes on. A `cast`, a timer or an owned task has no caller, so an
exception there is a *crash*: it is logged, what is left in the mailbox is answered with
`ActorStopped`, the monitors are told, and a `Supervisor` starts a successor.
"""

from __future__ import annotations

from asm_runtime.actor.actor import Actor, Monitor, Spawn, Watcher
from asm_runtime.actor.group import GroupActor
from asm_runtime.actor.mailbox import DEFAULT_MAILBOX_LIMIT, Letter, answer
from asm_runtime.actor.supervisor import DEFAULT_RESTART_BACKOFF_MS, Supervisor
from asm_runtime.tasks import leave_behind

__all__ = [
    "DEFAULT_MAILBOX_LIMIT",
    "DEFAULT_RESTART_BACKOFF_MS",
    "Actor",
    "GroupActor",
    "Letter",
    "Monitor",
    "Spawn",
    "Supervisor",
    "Watcher",
    "answer",
    "leave_behind",
]
