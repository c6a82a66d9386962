"""A provider that does what a test tells it: events, tokens, delays, failures, gates.

::

    gate = Gate()
    adapter = ScriptedAdapter([say("hello"), gate, fail(ProviderTimeout("no answer"))])
    ...
    await gate.reached()      # the run has said hello and stands at the gate
    gate.open()

A step is a coroutine function of the `Stage`, the run as its script sees it; so a test can write
its own. A script ends at its last step or at the first step that returns a `ProviderResult` (a
`ProviderResult` in the list is such a step). The output is then what was said and streamed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from asm_runtime import options
from asm_runtime.clock import SYSTEM_CLOCK, Clock, sleep
from asm_runtime.errors import AsmError, ProviderError, RunCancelled, ValidationError
from asm_runtime.payload import JsonObject, encode
from asm_runtime.ports import Capability, ProviderResult, RunContext
from asm_runtime.records import EventType, Run, Session

__all__ = [
    "Gate",
    "Script",
    "ScriptedAdapter",
    "Stage",
    "Step",
    "delay",
    "emit",
    "fail",
    "finish",
    "say",
    "tokens",
]


class Stage:
    """One run as its script sees it.

    Attributes:
        run: The run.
        session: Its session.
        context: What the runtime gave the adapter, `emit` included.
        clock: The adapter's clock.
        said: The texts said so far, and the streamed text that nobody said yet.
    """

    def __init__(self, run: Run, session: Session, context: RunContext, clock: Clock) -> None:
        self.run = run
        self.session = session
        self.context = context
        self.clock = clock
        self.said: list[str] = []


Step: TypeAlias = Callable[[Stage], Awaitable[ProviderResult | None]]
"""What a script is made of; one that returns a result ends the script."""

Script: TypeAlias = Sequence[Step | ProviderResult]


def emit(
    type: EventType | str,
    data: JsonObject | None = None,
    *,
    timestamp: datetime | None = None,
    metadata: JsonObject | None = None,
    id: str | None = None,
) -> Step:
    """A step that reports an event."""

    async def step(stage: Stage) -> None:
        await stage.context.emit(type, data, timestamp=timestamp, metadata=metadata, id=id)

    return step


def say(content: str, *, role: str = "assistant") -> Step:
    """A step that reports a whole message."""

    async def step(stage: Stage) -> None:
        await stage.context.emit(EventType.MESSAGE_RECEIVED, {"role": role, "content": content})
        stage.said.append(content)

    return step


def tokens(what: int | str | Iterable[str], *, gap_ms: float = 0) -> Step:
    """A step that streams tokens: a number of made-up ones, the words of a text, or those given.

    Args:
        what: A number, or a text, or the tokens themselves.
        gap_ms: How long to wait before each, in milliseconds of the adapter's clock; 0: not at all.
    """
    if isinstance(what, int):
        parts = [f"token {number} " for number in range(1, what + 1)]
    else:
        parts = _words(what) if isinstance(what, str) else list(what)

    async def step(stage: Stage) -> None:
        for part in parts:
            if gap_ms:
                await sleep(stage.clock, gap_ms / 1000)
            await stage.context.emit(EventType.MESSAGE_STREAMED, {"content": part, "delta": part})
        stage.said.append("".join(parts))

    return step


def delay(milliseconds: float) -> Step:
    """A step that waits, on the adapter's clock."""

    async def step(stage: Stage) -> None:
        await sleep(stage.clock, milliseconds / 1000)

    return step


def fail(error: BaseException) -> Step:
    """A step that raises this exception."""

    async def step(stage: Stage) -> None:
        raise error

    return step


def finish(output: Any = None, **fields: Any) -> ProviderResult:
    """The end of a script; `fields` are those of `ProviderResult`."""
    return ProviderResult(output=output, **fields)


class Gate:
    """A step at which runs wait until the test opens it.

    Args:
        stubborn: A run that waits here ignores cancellation, like a provider that hangs. The test
            must open the gate at its end, or the event loop cannot close.
    """

    def __init__(self, *, stubborn: bool = False) -> None:
        self.stubborn = stubborn
        self._arrived: list[str] = []
        self._waiting: dict[asyncio.Future[None], str] = {}
        self._changed = asyncio.Event()
        self._open = False
        self._open_for: set[str] = set()

    @property
    def waiting(self) -> list[str]:
        """The runs that stand at the gate, in the order of their arrival."""
        return list(self._waiting.values())

    async def reached(self, count: int = 1, *, run_id: str | None = None) -> list[str]:
        """Wait until `count` runs have arrived, those that have passed included.

        Args:
            count: The number of runs.
            run_id: Count only the arrivals (one for each attempt) of this run.

        Returns:
            The runs that have arrived, in order.
        """
        while True:
            arrived = [run for run in self._arrived if run_id in (None, run)]
            if len(arrived) >= count:
                return arrived
            await self._changed.wait()

    def open(self, run_id: str | None = None) -> None:
        """Let all runs through, or only this one; from now on."""
        if run_id is None:
            self._open = True
        else:
            self._open_for.add(run_id)
        for passage, waiting in self._waiting.items():
            if run_id in (None, waiting) and not passage.done():
                passage.set_result(None)

    def close(self) -> None:
        """Hold the runs that arrive from now on."""
        self._open = False
        self._open_for.clear()

    async def __call__(self, stage: Stage) -> None:
        """The step: arrive, and wait until the gate is open."""
        run_id = stage.run.id
        self._arrived.append(run_id)
        self._changed.set()
        self._changed = asyncio.Event()
        if self._open or run_id in self._open_for:
            return
        passage: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[passage] = run_id
        try:
            while not passage.done():
                try:
                    await asyncio.shield(passage)
                except asyncio.CancelledError:
                    if not self.stubborn:
                        raise
        finally:
            del self._waiting[passage]


class ScriptedAdapter:
    """A provider for tests: every run plays a script.

    Which script, in this order: the one in `run.input["script"]`; the next of `scripts`; `script`. With
    none of them a run echoes its prompt: `message_streamed` word by word, `message_received`, and
    the output `{"content": prompt}`.

    A script in the input is JSON, so that it reaches a run in another process: a list of objects
    `{"say": text}`, `{"emit": type, "data": {…}}`, `{"tokens": number or text, "gap_ms": 10}`,
    `{"delay_ms": 100}`, `{"gate": name}` (the gate `adapter.gate(name)`),
    `{"fail": {"code": …, "message": …}}` and `{"result": {…fields of ProviderResult}}`.

    Args:
        script: What every run does: a list of steps, or a function that gives a run its list (None:
            echo).
        scripts: What the runs do, one script for each execution, in the order of their start. When
            they are used up, `script` holds if it is given, else the run fails.
        name: The adapter's name.
        capabilities: What it says it can do: `Capability`s or just their names.
        adapter_opts: The names that `adapter_opts` may have; None: any.
        clock: Where delays come from.

    Attributes:
        started: The ids of the runs it was given, in order, one for each attempt.
        contexts: Their contexts, in the same order.
        finished: Those whose script came to its end, by a result or a failure.
        cancelled: Those that were cancelled on the way.
        cancel_calls: What `cancel` was called with.
    """

    def __init__(
        self,
        script: Script | Callable[[Run], Script | None] | None = None,
        *,
        scripts: Iterable[Script] | None = None,
        name: str = "scripted",
        capabilities: Iterable[Capability | str] = (),
        adapter_opts: Iterable[str] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.name = options.identifier("name", name)
        self.started: list[str] = []
        self.contexts: list[RunContext] = []
        self.finished: list[str] = []
        self.cancelled: list[str] = []
        self.cancel_calls: list[str] = []
        self._script = script
        self._scripts = None if scripts is None else iter(tuple(scripts))
        self._capabilities = [
            Capability(name=each, type="tool") if isinstance(each, str) else each for each in capabilities
        ]
        self._adapter_opts = None if adapter_opts is None else frozenset(adapter_opts)
        self._clock = clock
        self._gates: dict[str, Gate] = {}
        self._playing: dict[asyncio.Task[Any], str] = {}
        self._told_to_stop: set[asyncio.Task[Any]] = set()

    def gate(self, name: str) -> Gate:
        """The gate that scripts in an input call by this name."""
        return self._gates.setdefault(name, Gate())

    async def capabilities(self) -> list[Capability]:
        """What it was made with."""
        return list(self._capabilities)

    def validate_config(self, config: JsonObject) -> None:
        """Refuse the names that it was not made with."""
        for option in config:
            if self._adapter_opts is not None and option not in self._adapter_opts:
                known = ", ".join(sorted(self._adapter_opts)) or "none"
                raise ValidationError(
                    f"adapter_opts has no {option!r}: {known} allowed",
                    details={"option": f"adapter_opts.{option}"},
                )

    async def execute(self, run: Run, session: Session, context: RunContext) -> ProviderResult:
        """Play the run's script."""
        task = asyncio.current_task()
        assert task is not None  # a coroutine is awaited in a task
        self.started.append(run.id)
        self.contexts.append(context)
        self._playing[task] = run.id
        ended = self.finished
        try:
            return await self._play(Stage(run, session, context, self._clock))
        except asyncio.CancelledError:
            ended = self.cancelled
            if task in self._told_to_stop and task.cancelling() == 1:  # by `cancel` alone
                raise RunCancelled(
                    f"run {run.id} was cancelled at its provider", details={"reason": "provider_cancelled"}
                ) from None
            raise
        finally:
            ended.append(run.id)
            del self._playing[task]
            if task in self._told_to_stop:
                self._told_to_stop.discard(task)
                task.uncancel()

    async def cancel(self, run_id: str) -> None:
        """Stop that run where it is; its `execute` raises `RunCancelled`. Idempotent.

        Run ids are unique within a session only. Of several runs with that id none is stopped here:
        the one that is meant is stopped by the cancellation of its task.
        """
        self.cancel_calls.append(run_id)
        tasks = [task for task, playing in self._playing.items() if playing == run_id]
        if len(tasks) == 1 and tasks[0] not in self._told_to_stop:
            self._told_to_stop.add(tasks[0])
            tasks[0].cancel()

    async def _play(self, stage: Stage) -> ProviderResult:
        for step in self._script_of(stage.run):
            result = step if isinstance(step, ProviderResult) else await step(stage)
            if result is not None:
                return result
        return ProviderResult(output={"content": "".join(stage.said)}, stop_reason="end_turn")

    def _script_of(self, run: Run) -> Script:
        match run.input:
            case {"script": [*steps]}:
                return [self._step_of(step) for step in steps]
            case {"script": other}:
                raise options.refused("script", other, "a list of steps")
            case _:
                pass
        if self._scripts is not None:
            script = next(self._scripts, None)
            if script is not None:
                return script
            if self._script is None:
                raise ProviderError(f"no script is left for run {run.id}")
        own = self._script(run) if callable(self._script) else self._script
        return _echo(run) if own is None else own

    def _step_of(self, described: JsonObject) -> Step | ProviderResult:
        makers = _JSON_STEPS | {"gate": self.gate}
        try:
            (kind,) = makers.keys() & described.keys()
            rest = {name: value for name, value in described.items() if name != kind}
            return makers[kind](described[kind], **rest)
        except (AttributeError, TypeError, ValueError):
            raise options.refused(
                "script", described, "made of steps as ScriptedAdapter describes them"
            ) from None


def _fail_as(error: JsonObject) -> Step:
    return fail(AsmError.from_dict(error))


def _finish_as(fields: JsonObject) -> ProviderResult:
    return ProviderResult(**fields)


_JSON_STEPS: dict[str, Callable[..., Step | ProviderResult]] = {
    "say": say,
    "emit": emit,
    "tokens": tokens,
    "delay_ms": delay,
    "fail": _fail_as,
    "result": _finish_as,
}


def _echo(run: Run) -> Script:
    prompt = _prompt(run.input)
    result = ProviderResult(
        output={"content": prompt},
        token_usage={"input_tokens": len(_words(prompt)), "output_tokens": len(_words(prompt))},
        stop_reason="end_turn",
    )
    return [tokens(prompt), say(prompt), result]


def _prompt(asked: Any) -> str:
    """What the input asks: its prompt, its last message, itself if it is a text; else its JSON."""
    match asked:
        case str(text) | {"prompt": str(text)} | {"messages": [*_, {"content": str(text)}]}:
            return text
        case _:
            return encode(asked).decode()


def _words(text: str) -> list[str]:
    """The words with the space behind each, so that joined they are the text again."""
    words = text.split(" ")
    return [f"{word} " for word in words[:-1]] + words[-1:]
