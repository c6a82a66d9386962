"""From a session's queue into a server's slots: looking for work, claiming it, executing it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import islice
from typing import Any

from asm_runtime.actor import Spawn, answer
from asm_runtime.clock import Timer, all_done
from asm_runtime.errors import ActorStopped, AsmError, StoreError
from asm_runtime.manager import SessionManager
from asm_runtime.observer import observer
from asm_runtime.ports import SessionStore
from asm_runtime.records import Run, RunStatus
from asm_runtime.runtime.claims import Claims
from asm_runtime.runtime.endings import RunOutcome
from asm_runtime.runtime.execution import RunExecution
from asm_runtime.runtime.foreign import answered
from asm_runtime.runtime.orphans import Orphans
from asm_runtime.runtime.run_options import callbacks_of
from asm_runtime.runtime.run_queue import RunQueue, Submission
from asm_runtime.runtime.server_options import ServerSettings
from asm_runtime.tasks import start_task

__all__ = ["STORE_GRACE_S", "Dispatcher"]

logger = logging.getLogger(__name__)

RETRY_DELAY_S = 1.0
"""Pause before what the store failed to do is tried again."""

RECOUNT_INTERVAL_S = 0.25
RECOUNT_SHARE = 20
"""The minimum time between two recounts of the queue, and the same in durations of the last one."""

RECOUNT_PAGE = 500
"""How many runs a recount reads at once."""

ABANDONED_A_TURN = 500
"""How many submissions are let go before the loop has a turn."""

STORE_GRACE_S = 1.0
"""How long the store may take to write what is decided, where somebody waits for no more than that."""


class Dispatcher:
    """Takes a session's runs from the queue in the store to the slots of one server.

    Free slots are filled at once, by as many claims at once as there are slots and runs. Everything
    else (orphans, runs that somebody else has ended, the view of the queue) is looked after in a task
    of its own, which no claim waits for. What the store refuses or fails to answer is tried again after a
    pause; it stops nothing else. State changes in plain steps.

    Args:
        manager: Of the store, the adapter and the rules.
        session_id: Whose queue.
        settings: The server's options.
        spawn: Gives work a task of the server.
        context: What a task that is not spawned runs in.
        on_end: Told how each attempt has ended that was executed here, when its slot is free.

    Attributes:
        queue: The session's queue, as last seen.
        in_flight: The runs that execute here, by their id, in the order of their start.
        claiming: Whether runs are taken up; False: those in flight end, nothing follows them.
    """

    __slots__ = (
        "_claim_retry",
        "_claims",
        "_clock",
        "_context",
        "_drains",
        "_dry",
        "_is_forgetting",
        "_is_new",
        "_is_open",
        "_look_again",
        "_look_retry",
        "_looking",
        "_manager",
        "_more",
        "_news",
        "_on_end",
        "_orphan_timer",
        "_orphans",
        "_recount_at",
        "_recount_timer",
        "_revision",
        "_session_id",
        "_settings",
        "_settled_orphans",
        "_settling",
        "_spawn",
        "_store",
        "_watch",
        "_watch_retry",
        "claiming",
        "in_flight",
        "queue",
    )

    def __init__(
        self,
        manager: SessionManager,
        session_id: str,
        settings: ServerSettings,
        *,
        spawn: Spawn,
        context: contextvars.Context,
        on_end: Callable[[str, RunOutcome], None],
    ) -> None:
        self._manager = manager
        self._store: SessionStore = manager.store
        self._session_id = session_id
        self._settings = settings
        self._clock = settings.clock
        self._spawn = spawn
        self._context = context
        self._on_end = on_end
        self.queue = RunQueue()
        self.in_flight: dict[str, RunExecution] = {}
        self.claiming = True
        self._is_open = self._is_new = self._is_forgetting = False
        # Whether a claim may find something: there was news since the last one that found nothing.
        self._more = False
        self._news = 0
        self._dry = True
        self._settled_orphans = False
        self._look_again = False
        # What an idle server does without is made when it is needed.
        self._claims: set[asyncio.Task[None]] | None = None
        self._claim_retry: Timer | None = None
        self._looking: asyncio.Task[None] | None = None
        self._look_retry: Timer | None = None
        self._orphans: Orphans | None = None
        self._orphan_timer: Timer | None = None
        self._settling: dict[str, asyncio.Task[None]] | None = None
        self._recount_at = 0.0
        self._recount_timer: Timer | None = None
        self._watch: asyncio.Task[int] | None = None
        self._watch_retry: Timer | None = None
        self._revision: int | None = None
        self._drains: dict[asyncio.Future[None], str] | None = None

    # -- begin and end

    def open(self, *, is_new: bool) -> None:
        """Settle what is orphaned, then take runs up, whenever there are some. Plain.

        Args:
            is_new: The session was made for this server a moment ago: there are no orphans, and if there
                are runs a claim brings news of them.
        """
        self._is_open = True
        self._is_new = self._settled_orphans = is_new
        self._watch_runs(None, look=False)  # the answer comes at once, and is news

    def close(self) -> list[asyncio.Task[Any]]:
        """Take up and look after nothing any more; runs in flight go on. Plain, idempotent.

        Returns:
            What was under way and is cancelled.
        """
        self._is_open = self.claiming = False
        timers = (
            self._claim_retry, self._look_retry, self._orphan_timer, self._recount_timer, self._watch_retry
        )  # fmt: skip
        for timer in timers:
            if timer is not None:
                timer.cancel()
        claims, settling = self._claims or (), (self._settling or {}).values()
        tasks = [task for task in (self._watch, self._looking, *claims, *settling) if task is not None]
        self._watch = None
        for task in tasks:
            task.cancel()
        return tasks

    def forget(self) -> None:
        """Tell the traces of what is queued here that nobody here follows it any more."""
        observer().queue_depth_changed(self._session_id, -len(self.queue))
        self._abandon(self.queue.clear())

    async def forgotten(self) -> None:
        """Return when all that `forget` tells is told."""
        while self._is_forgetting:  # noqa: ASYNC110  # a few turns, and seldom
            await asyncio.sleep(0)

    async def end_runs(self, *, requeue: bool) -> bool:
        """Cancel the runs in flight, or queue them again; whether all that is written in time."""
        executions = list(self.in_flight.values())
        for execution in executions:
            if requeue:
                execution.requeue()
            else:
                execution.cancel("server_stopped")
            logger.info("run %s is stopped with its server", execution.claimed.id)
        if await self.ended(executions):
            return True
        logger.warning("runs of session %s are abandoned by its server", self._session_id)
        return False

    async def ended(self, executions: Collection[RunExecution], *, waited_s: float = 0.0) -> bool:
        """Wait for the ends of executions that were told to end; whether they came in time.

        That is the adapters' grace, and for those whose adapter has used it up, what the store then
        needs.
        """
        grace_s = max(self._settings.cancel_grace_s - waited_s, 0.0)
        if await all_done(self._clock, grace_s, *(execution.outcome for execution in executions)):
            return True
        late = [execution.outcome for execution in executions if not execution.adapter_stopped]
        await all_done(self._clock, STORE_GRACE_S, *late)
        return all(execution.outcome.done() for execution in executions)

    def drain(self, reply: asyncio.Future[None], queued: str) -> None:
        """Answer when nothing is in flight here and, if `queued` is "run", nothing of its own is queued."""
        if self._drains is None:
            self._drains = {}
        self._drains[reply] = queued
        reply.add_done_callback(self._drains.pop)
        self._answer_drains()

    def _answer_drains(self) -> None:
        if self._drains and self._is_open and not (self._claims or self.in_flight):
            for reply, queued in self._drains.items():
                if queued == "leave" or not self.queue.has_own:
                    answer(reply, None)

    # -- news

    def _watch_runs(self, revision: int | None, *, look: bool = True) -> None:
        """Look for work, and again whenever anybody has changed the session's runs since. Plain.

        The store's own coroutine is the task: with a hundred thousand idle sessions, one more
        around it would be felt.
        """
        self._watch_retry = None
        if look:
            self.look()
        self._revision = revision
        # The server's own context, not a copy for the task and another for its callback.
        waiting = self._store.wait_for_runs(self._session_id, after=revision, timeout_ms=None)
        self._watch = start_task(waiting, context=self._context)
        self._watch.add_done_callback(self._runs_changed, context=self._context)

    def _runs_changed(self, watch: asyncio.Task[int]) -> None:
        if watch is not self._watch or not self._is_open:
            return
        before = self._revision
        error = StoreError("the wait was cut off") if watch.cancelled() else watch.exception()
        if error is None and watch.result() != before:
            self._watch_runs(watch.result())
        elif isinstance(error, ActorStopped):
            logger.warning("the store of session %s stopped before its server", self._session_id)
        else:
            # The store failed, or answered early: neither may make us spin.
            if error is not None:
                logger.warning("session %s waits for its store: %r", self._session_id, error)
            self._watch = None
            self._watch_retry = self._clock.call_later(RETRY_DELAY_S, self._watch_runs, before)

    def look(self) -> None:
        """Something may have changed: fill the free slots, and look after the rest. Plain."""
        if not self._is_open:
            return
        self._news += 1
        self._more = True
        self._fill()
        if self._is_new:
            self._is_new = False
        else:
            self._look_after()

    # -- claims

    def _fill(self) -> None:
        """Have as many claims under way as there are free slots and, as far as is known, runs for them.

        After one that found nothing, one goes ahead: the session may be paused, or others have the slots.
        """
        if not (self.claiming and self._more and self._settled_orphans) or self._claim_retry is not None:
            return
        claims = self._claims or set()
        runs = 1 if self._dry else max(len(self.queue), 1)
        for _ in range(min(self._settings.max_concurrent_runs - len(self.in_flight), runs) - len(claims)):
            claim = self._spawn(self._claim())
            claims.add(claim)
            claim.add_done_callback(self._claimed)
        self._claims = claims or None  # an empty set is 216 bytes, on each idle server

    async def _claim(self) -> None:
        news = self._news
        try:
            run = await Claims.on(self._store).claim(
                self._session_id, clock=self._clock, max_concurrent_runs=self._settings.max_concurrent_runs
            )
        except ActorStopped:
            self._more = False
        except AsmError as error:
            logger.warning("session %s claims again soon: %r", self._session_id, error)
            if self._is_open and self._claim_retry is None:
                self._claim_retry = self._clock.call_later(RETRY_DELAY_S, self._claim_again)
        else:
            self._dry = run is None
            if run is not None:
                self._execute(run)
            elif news == self._news:
                self._more = False

    def _claimed(self, claim: asyncio.Task[None]) -> None:
        if self._claims is not None:
            self._claims.discard(claim)
            self._claims = self._claims or None
        self._fill()
        self._answer_drains()

    def _claim_again(self) -> None:
        self._claim_retry = None
        self._fill()

    def _execute(self, run: Run) -> None:
        """Give a claimed run its execution. Plain: between claim and execution nothing can happen."""
        submission = self._left(run)
        trace = None if submission is None else submission.trace
        execution = RunExecution(
            store=self._store,
            adapter=self._manager.adapter,
            run=run,
            callbacks=[
                *callbacks_of(self._settings.default_run_options),
                *(() if submission is None else submission.callbacks),
            ],
            trace=observer().run(run, None) if trace is None else trace,
            clock=self._clock,
            cancel_grace_ms=self._settings.cancel_grace_ms,
        )
        Claims.on(self._store).executes(run, execution.outcome)
        self.in_flight[run.id] = execution
        observer().in_flight_changed(self._session_id, 1)
        execution.outcome.add_done_callback(partial(self._ended, execution, submission))
        execution.start(self._spawn)

    def _ended(
        self, execution: RunExecution, submission: Submission | None, outcome: asyncio.Future[RunOutcome]
    ) -> None:
        run_id = execution.claimed.id
        # A later attempt of the run may have its place: this one was taken away, and stopped slowly.
        if self.in_flight.get(run_id) is execution:
            del self.in_flight[run_id]
            if submission is not None and self._is_open and not outcome.result().is_final:
                self.queue.returned(run_id, submission)
        observer().in_flight_changed(self._session_id, -1)
        self._on_end(run_id, outcome.result())
        self.look()
        self._answer_drains()

    # -- what else there is to look after

    def _look_after(self) -> None:
        """Have a task look around; one that does so already does so once more. Plain."""
        if self._looking is not None:
            self._look_again = True
        elif self._look_retry is None and self._is_open:
            self._look_again = False
            self._looking = self._spawn(self._look_around())
            self._looking.add_done_callback(self._looked)

    def _looked(self, looking: asyncio.Task[None]) -> None:
        self._looking = None
        if self._look_again:
            self._look_after()

    async def _look_around(self) -> None:
        """Orphans, runs that somebody else has ended, the view of the queue; each fails alone."""
        steps = (self._settle_orphans, self._drop_lost_runs, self._recount_now_and_then)
        for step in steps:
            try:
                await answered(step())
            except ActorStopped:
                return
            except AsmError as error:
                logger.warning("session %s looks again soon: %r", self._session_id, error)
                if self._is_open and self._look_retry is None:
                    self._look_retry = self._clock.call_later(RETRY_DELAY_S, self._look_after_pause)
            if not self._settled_orphans:
                # From now on nothing waits for orphans; but those that a server finds at its start go first.
                self._settled_orphans = True
                self._fill()

    def _look_after_pause(self) -> None:
        self._look_retry = None
        self.look()

    async def _settle_orphans(self) -> None:
        found = await self._store.list_orphaned_runs(session_id=self._session_id)
        if not found and self._orphans is None:
            return
        if self._orphans is None:
            self._orphans = Orphans(
                self._clock,
                max_attempts=self._max_attempts(),
                backoff_s=self._settings.requeue_backoff_ms / 1000,
            )
        settling = self._settling = self._settling or {}
        for orphan in self._orphans.seen(found):
            if orphan.id not in settling:
                settling[orphan.id] = self._spawn(self._settle(self._orphans, orphan))
                settling[orphan.id].add_done_callback(partial(self._settled, orphan.id))
        if not self._settled_orphans:
            await all_done(self._clock, STORE_GRACE_S, *settling.values())
        self._await_next_orphan(self._orphans)

    def _max_attempts(self) -> int | None:
        """Orphans are queued again until this many attempts were lost; None: they fail."""
        return self._settings.max_attempts if self._settings.requeues else None

    async def _settle(self, orphans: Orphans, orphan: Run) -> None:
        try:
            await answered(self._manager.settle_orphan(orphan, max_attempts=self._max_attempts()))
        except ActorStopped:
            return
        except AsmError as error:
            logger.warning("run %s is an orphan that cannot be settled: %r", orphan.id, error)
            orphans.failed(orphan)
            self._await_next_orphan(orphans)

    def _settled(self, run_id: str, settling: asyncio.Task[None]) -> None:
        if self._settling is not None:
            self._settling.pop(run_id, None)
        self.look()

    def _await_next_orphan(self, orphans: Orphans) -> None:
        if self._orphan_timer is not None:
            self._orphan_timer.cancel()
        seconds = orphans.next_in_s()
        if seconds is None or not self._is_open:
            self._orphan_timer = None
        else:
            self._orphan_timer = self._clock.call_later(seconds, self.look)

    async def _drop_lost_runs(self) -> None:
        """Stop the adapters of runs that somebody else has ended or requeued."""
        executing = dict(self.in_flight)
        if not executing:
            return
        running = {
            run.id: run.attempt
            for run in await self._store.list_runs(self._session_id, status=RunStatus.RUNNING)
        }
        for run_id, execution in executing.items():
            if running.get(run_id) != execution.claimed.attempt:
                execution.lost()

    async def _recount_now_and_then(self) -> None:
        """Take the queue as the store has it: other servers submit, claim and cancel too.

        Reading it all after every change would make a long queue quadratic: it is read so seldom
        that it costs a few percent of the time, and once more when things have calmed down. What is
        queued again on a page that was read already is seen by the next one.
        """
        began = self._clock.monotonic()
        if began < self._recount_at:
            if self._recount_timer is None:
                self._recount_timer = self._clock.call_later(self._recount_at - began, self._recount_due)
            return
        self.queue.count()
        last: str | None = None
        try:
            while True:
                runs = await self._store.list_runs(
                    self._session_id, status=RunStatus.PENDING, limit=RECOUNT_PAGE, after=last
                )
                self.queue.saw(run.id for run in runs)
                if len(runs) < RECOUNT_PAGE:
                    break
                last = runs[-1].id
            # A run that is pending no more may be that of a claim of ours, whose answer is on its way.
            if not await all_done(self._clock, STORE_GRACE_S, *(self._claims or ())):
                raise StoreError("a claim is not answered")
        except BaseException:
            self.queue.stop_counting()
            raise
        finally:
            ended = self._clock.monotonic()
            self._recount_at = ended + max(RECOUNT_INTERVAL_S, RECOUNT_SHARE * (ended - began))
        before = len(self.queue)
        gone = self.queue.counted(() if self._orphans is None else self._orphans.run_ids())
        observer().queue_depth_changed(self._session_id, len(self.queue) - before)
        self._abandon(iter(gone))
        self._answer_drains()

    def _recount_due(self) -> None:
        self._recount_timer = None
        self.look()

    # -- the queue's view

    def submitted(self, submission: Submission, run: Run, agent_id: str) -> None:
        """The store has accepted a run that was submitted here, and it is pending. Plain."""
        if not self._is_open:  # it is for the next server
            return
        before = len(self.queue)
        if self.queue.accepted(submission):
            observer().queue_depth_changed(self._session_id, len(self.queue) - before)
            submission.trace = observer().run(run, agent_id)
            submission.trace.queued(len(self.queue) - 1)
        self.look()

    def answered(self, submission: Submission) -> None:
        """The store was asked; unless the run is pending since then, nothing waits for it here. Plain."""
        self.queue.refused(submission)
        self._answer_drains()

    def ended_elsewhere(self, run: Run) -> None:
        """A queued run was ended by this server without being executed. Plain."""
        submission = self._left(run)
        if submission is not None and submission.trace is not None:
            submission.trace.ended(run)
        self._answer_drains()

    def _left(self, run: Run) -> Submission | None:
        waited, submission = self.queue.left(run)
        if waited:
            observer().queue_depth_changed(self._session_id, -1)
        return submission

    def _abandon(self, submissions: Iterator[Submission]) -> None:
        """Tell their traces that nobody here follows them any more, some in each turn of the loop."""
        some = list(islice(submissions, ABANDONED_A_TURN))
        for submission in some:
            if submission.trace is not None:
                submission.trace.abandoned()
        self._is_forgetting = len(some) == ABANDONED_A_TURN
        if self._is_forgetting:
            asyncio.get_running_loop().call_soon(self._abandon, submissions)
