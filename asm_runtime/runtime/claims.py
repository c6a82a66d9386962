"""What this process has claimed of a store, so that a claim whose answer is lost strands no run.

A claim may be made in the store, and its answer never come: then the run is `running`, its owner lives,
and nobody executes it. So all that execute runs on one store claim through its `Claims`, which know
what each claim has given. After one that failed they look, a few times, for runs that this node has
claimed and nobody here knows of, and release them: from then on they are orphans like others.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from asm_runtime.clock import Clock, all_done, sleep
from asm_runtime.errors import ActorStopped, AsmError, StoreUnavailable
from asm_runtime.ports import Fence, SessionStore
from asm_runtime.records import Run, RunStatus
from asm_runtime.runtime.foreign import answered
from asm_runtime.tasks import leave_behind, start_task

__all__ = ["Claims"]

logger = logging.getLogger(__name__)

LOOKS = 3
"""How many looks find nothing before it is believed that a failed claim was not made."""

FIRST_LOOK_S = 1.0
"""How long after the failure the first look comes; the pause before each further one is doubled."""

ANSWER_GRACE_S = 1.0
"""How long a look waits for the answers of claims that are under way."""

PAGE = 500

_claims: dict[int, Claims] = {}
"""By the store's id, while there is anything to know: a store may not be hashable or weakly referable."""


class Claims:
    """The claims of this process on one store."""

    __slots__ = ("_doubts", "_known", "_node", "_store", "_under_way")

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self._node: Any = getattr(store, "node_id", None)
        self._known: set[Fence] = set()
        self._under_way: dict[str, set[asyncio.Future[None]]] = {}
        # By session: how many looks are left until a failed claim is forgotten.
        self._doubts: dict[str, int] = {}

    @classmethod
    def on(cls, store: SessionStore) -> Claims:
        """Those of that store."""
        claims = _claims.get(id(store))
        if claims is None:
            claims = _claims[id(store)] = cls(store)
        return claims

    async def claim(
        self,
        session_id: str,
        *,
        clock: Clock,
        max_concurrent_runs: int | None = None,
        run_id: str | None = None,
    ) -> Run | None:
        """See `SessionStore.claim_run`. The caller executes the run, and says so with `executes`."""
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        under_way = self._under_way.setdefault(session_id, set())
        under_way.add(over)
        try:
            run = await answered(
                self._store.claim_run(session_id, max_concurrent_runs=max_concurrent_runs, run_id=run_id)
            )
            if run is not None:
                self._known.add(run.fence)
                self._node = run.owner or self._node
            return run
        except ActorStopped:
            raise
        except AsmError:
            self._doubt(session_id, clock)
            raise
        finally:
            over.set_result(None)
            under_way.discard(over)
            if not under_way:
                self._under_way.pop(session_id, None)
            self._tidy()

    def executes(self, run: Run, attempt: asyncio.Future[Any]) -> None:
        """Somebody here executes the run, until that future is done."""
        attempt.add_done_callback(lambda _: self._let_go(run.fence))

    def _let_go(self, fence: Fence) -> None:
        self._known.discard(fence)
        self._tidy()

    def _tidy(self) -> None:
        if not (self._known or self._under_way or self._doubts) and _claims.get(id(self._store)) is self:
            del _claims[id(self._store)]

    # -- claims that failed

    def _doubt(self, session_id: str, clock: Clock) -> None:
        is_looking = session_id in self._doubts
        self._doubts[session_id] = LOOKS
        if not is_looking:
            leave_behind(start_task(self._look(session_id, clock)))

    async def _look(self, session_id: str, clock: Clock) -> None:
        try:
            while left := self._doubts[session_id]:
                await sleep(clock, FIRST_LOOK_S * 2 ** (LOOKS - left))
                try:
                    for run in await self._strays(session_id, clock):
                        logger.warning("run %s was claimed, and the answer lost: it is released", run.id)
                        await answered(self._store.release_run(run.fence))
                except ActorStopped:  # which lets them go too
                    return
                except AsmError as error:
                    logger.warning("session %s is looked at again for lost claims: %r", session_id, error)
                else:
                    if self._doubts[session_id] == left:  # else another claim has failed meanwhile
                        self._doubts[session_id] = left - 1
        finally:
            self._doubts.pop(session_id, None)
            self._tidy()

    async def _strays(self, session_id: str, clock: Clock) -> list[Run]:
        """Runs that this node has claimed, and nobody here knows of."""
        strays: list[Run] = []
        last: str | None = None
        while True:
            page = await answered(
                self._store.list_runs(session_id, status=RunStatus.RUNNING, limit=PAGE, after=last)
            )
            strays += (run for run in page if run.owner == self._node is not None)
            if len(page) < PAGE:
                break
            last = page[-1].id
        # One that was claimed just now is known when its claim is answered.
        if strays and not await all_done(clock, ANSWER_GRACE_S, *self._under_way.get(session_id, ())):
            raise StoreUnavailable("claims are under way, and nobody knows of which runs")
        return [run for run in strays if run.fence not in self._known]
