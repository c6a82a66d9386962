"""Commands of the operating system as runs: one command a run, its output as events, by lines."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from asm_runtime import options
from asm_runtime.adapters.command import (
    PER_RUN_OPTIONS,
    Command,
    environment,
    refuse_unknown,
    text,
    texts,
)
from asm_runtime.adapters.command_policy import CommandPolicy, Launch
from asm_runtime.adapters.output import Head, Lines, Tail
from asm_runtime.adapters.process import ProcessGroup, Stream, on_a_thread
from asm_runtime.clock import SYSTEM_CLOCK, Clock
from asm_runtime.errors import (
    AsmError,
    DependencyMissing,
    PolicyViolation,
    ProviderError,
    ProviderTimeout,
    RunCancelled,
)
from asm_runtime.ids import new_id
from asm_runtime.payload import JsonObject
from asm_runtime.ports import Capability, Emit, ProviderResult, RunContext
from asm_runtime.records import EventType, Run, Session

__all__ = ["INHERITED_ENV", "ShellAdapter"]

INHERITED_ENV = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_*", "TZ", "TERM", "TMPDIR")
"""What commands see of this process's environment, unless told otherwise: no tokens, no keys."""

_EVENTS_A_TURN = 256
"""Events reported before others get a turn of the loop: an `emit` that has room does not suspend."""


class ShellAdapter:
    """Runs commands.

    A run's input is `{"command": "pytest -q | tail"}`, a text for the shell; or
    `{"command": ["pytest", "-q"]}` or `{"command": "pytest", "args": ["-q"]}`, a program and its
    arguments, which no shell sees. A plain string, `{"prompt": text}` and `{"messages": […]}` (the texts
    of the role `user`, one below the other) are texts for the shell too. Beside the command the input
    may have `cwd`, `env` (added to the adapter's), `timeout_ms` (None: no limit) and `stdin` (a text);
    the first three may also stand in `adapter_opts`, over which the input wins.

    Events: `run_started` (command, cwd, pid), `tool_call_started`, the lines of stdout and stderr as
    `message_streamed` (`stream` says which), `tool_call_completed` or `tool_call_failed`. A run
    completes if the exit code is among `success_exit_codes`; else it fails with `ProviderError`, whose
    details have `exit_code`, `signal` and the end of stderr.

    The command leads a session of its own (see `ProcessGroup`), and when `execute` ends, however it
    ends, nobody of that session is left. If this process is killed, its commands are killed, too.

    Args:
        cwd: Where commands run; None: where this process is. A run's own `cwd` may be relative to it.
        env: Added to what commands inherit.
        inherit_env: The names, or patterns such as `LC_*`, of the variables that they inherit.
        shell: Runs texts, as `shell -c text`.
        timeout_ms: How long a command may take, in milliseconds, ≥ 1; None: no limit. Then it is
            stopped, and the run fails with `ProviderTimeout`.
        max_output_bytes: How much of stdout, and of stderr, is streamed and kept, ≥ 1. A command that
            writes more goes on; the rest is dropped and `truncated` is true.
        max_line_bytes: Maximum size of one event's text, ≥ 4. A longer line comes in pieces.
        delta_flush_ms: Lines that come within this time of the last event of their stream are reported
            together, when it is over, ≥ 0.
        stderr_tail_bytes: How much of the end of stderr is in the result or the error, ≥ 1.
        stderr_tail_lines: Likewise, in lines, ≥ 1.
        allowed_commands: Names or paths of the only programs that may run; None: all.
        denied_commands: Names or paths of programs that may not run; None: none.
        success_exit_codes: Exit codes that complete a run.
        interrupt_grace_ms: From SIGINT to SIGTERM, when a command is stopped, ≥ 0.
        terminate_grace_ms: From SIGTERM to SIGKILL, ≥ 0.
        drain_grace_ms: How long to go on reading output that other processes hold open after the
            command has exited, ≥ 0.
        name: The adapter's name.
        clock: The source of time.

    Raises:
        ValidationError: An option is not what is allowed.
        DependencyMissing: The system has no sessions of processes (Windows).
    """

    def __init__(
        self,
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        inherit_env: Iterable[str] = INHERITED_ENV,
        shell: str = "/bin/sh",
        timeout_ms: int | None = None,
        max_output_bytes: int = 1_048_576,
        max_line_bytes: int = 65_536,
        delta_flush_ms: int = 50,
        stderr_tail_bytes: int = 16_384,
        stderr_tail_lines: int = 200,
        allowed_commands: Iterable[str] | None = None,
        denied_commands: Iterable[str] | None = None,
        success_exit_codes: Iterable[int] = (0,),
        interrupt_grace_ms: int = 2_000,
        terminate_grace_ms: int = 2_000,
        drain_grace_ms: int = 500,
        name: str = "shell",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if os.name != "posix":
            raise DependencyMissing("ShellAdapter needs sessions of processes, which only POSIX systems have")
        self.name = options.identifier("name", name)
        where = os.fspath(cwd) if isinstance(cwd, os.PathLike) else cwd
        self._cwd = text("cwd", "." if where is None else where)
        self._env = environment("env", dict(env) if isinstance(env, Mapping) else env)
        self._inherit_env = texts("inherit_env", inherit_env)
        self._shell = text("shell", shell)
        self._timeout_ms: int | None = options.integer("timeout_ms", timeout_ms, minimum=1, optional=True)
        self._bounds: dict[str, int] = {
            "flush_ms": options.integer("delta_flush_ms", delta_flush_ms, minimum=0),
            "max_bytes": options.integer("max_output_bytes", max_output_bytes, minimum=1),
            "max_event_bytes": options.integer("max_line_bytes", max_line_bytes, minimum=4),
            "tail_bytes": options.integer("stderr_tail_bytes", stderr_tail_bytes, minimum=1),
            "tail_lines": options.integer("stderr_tail_lines", stderr_tail_lines, minimum=1),
        }
        self._lists: JsonObject = {}
        if allowed_commands is not None:
            self._lists["allowed_commands"] = texts("allowed_commands", allowed_commands)
        if denied_commands is not None:
            self._lists["denied_commands"] = texts("denied_commands", denied_commands)
        self._policy = CommandPolicy(
            self._lists.get("allowed_commands"), self._lists.get("denied_commands"), shell=self._shell
        )
        self._success_exit_codes = frozenset(
            options.integer("success_exit_codes", code, minimum=0) for code in success_exit_codes
        )
        self._graces: dict[str, int] = {
            "interrupt_grace_ms": options.integer("interrupt_grace_ms", interrupt_grace_ms, minimum=0),
            "terminate_grace_ms": options.integer("terminate_grace_ms", terminate_grace_ms, minimum=0),
            "drain_grace_ms": options.integer("drain_grace_ms", drain_grace_ms, minimum=0),
        }
        self._clock = clock
        self._executions: dict[_Execution, str] = {}

    async def capabilities(self) -> list[Capability]:
        """Running commands, and with them whatever this user may do on this machine."""
        return [
            Capability(name="shell", type="tool", description="Runs a command.", config=dict(self._lists)),
            Capability(name="code_execution", type="code_execution"),
            Capability(name="file_access", type="file_access"),
            Capability(name="network_access", type="network_access"),
        ]

    def validate_config(self, config: JsonObject) -> None:
        """`adapter_opts` may have `cwd`, `env` and `timeout_ms`."""
        refuse_unknown("adapter_opts", config, PER_RUN_OPTIONS)
        self._check_env(Command.of("true", config, timeout_ms=None))

    async def execute(self, run: Run, session: Session, context: RunContext) -> ProviderResult:
        """Run the command.

        Raises:
            ValidationError: The input means nothing, or the directory does not exist.
            PolicyViolation: A list forbids the command; nothing was executed.
            ProviderTimeout: It took longer than `timeout_ms`.
            RunCancelled: `cancel` was called.
            ProviderError: It could not be started, exited with another code, or died of a signal.
        """
        command = Command.of(run.input, context.adapter_opts, timeout_ms=self._timeout_ms)
        self._check_env(command)
        execution = _Execution(command)
        self._executions[execution] = run.id
        try:
            return await self._execute(execution, run, context)
        finally:
            del self._executions[execution]

    async def cancel(self, run_id: str) -> None:
        """Stop that run's processes, SIGINT first; `execute` raises `RunCancelled`. Idempotent.

        Run ids are unique within a session only. Of several runs with that id none is stopped here:
        the one that is meant is stopped by the cancellation of its task.
        """
        meant = [execution for execution, running in self._executions.items() if running == run_id]
        if len(meant) == 1:
            meant[0].cancel()

    async def _execute(self, execution: _Execution, run: Run, context: RunContext) -> ProviderResult:
        command, emit = execution.command, context.emit
        env = self._inherited() | self._env | command.env
        launch, cwd, boot = await on_a_thread(self._prepared, command, env["PATH"])
        call: JsonObject = {"tool_call_id": new_id("call_"), "tool_name": "shell"}
        output = _Output(emit, self._clock, **self._bounds)
        began = self._clock.monotonic()
        async with ProcessGroup(
            launch.argv,
            executable=launch.executable,
            identity=launch.identity,
            cwd=cwd,
            env=env,
            stdin=command.stdin.encode(),
            # An earlier attempt may have died a moment ago, and its processes be about to.
            name=json.dumps([run.session_id, run.id]),
            waits=context.attempt > 1,
            clock=self._clock,
            **self._graces,
        ) as process:
            with execution.of(process, self._clock):
                await emit(EventType.RUN_STARTED, {**command.shown, "cwd": cwd, "pid": process.pid})
                await emit(
                    EventType.TOOL_CALL_STARTED,
                    {**call, "tool_input": {**command.shown, "cwd": cwd}},
                    metadata={"process": {"pid": process.pid, "started": process.started, "boot": boot}},
                )
                await output.report(process)
        facts: JsonObject = {
            **_exit_facts(process.returncode),
            "duration_ms": round((self._clock.monotonic() - began) * 1000),
            "truncated": output.truncated,
        }
        failure = self._failure(execution, process.returncode, facts | {"stderr": output.stderr_tail()})
        if failure is not None:
            why = {"error_code": failure.code, "error_message": failure.message}
            await emit(EventType.TOOL_CALL_FAILED, {**call, "tool_output": facts, **why})
            raise failure
        await emit(EventType.TOOL_CALL_COMPLETED, {**call, "tool_output": facts})
        return ProviderResult(
            output={"content": output.content(), "stderr": output.stderr_tail(), **facts},
            stop_reason=f"exit_code_{process.returncode}",
        )

    def _check_env(self, command: Command) -> None:
        if command.env and self._policy.restricts:
            # PATH, LD_PRELOAD, BASH_ENV, GIT_SSH_COMMAND …: variables make a program run another.
            raise PolicyViolation(
                "where commands are allowed or denied by name, a run cannot set variables",
                details={"env": sorted(command.env)},
            )

    def _inherited(self) -> dict[str, str]:
        return {"PATH": os.defpath} | {
            name: value
            for name, value in os.environ.items()
            if any(fnmatchcase(name, pattern) for pattern in self._inherit_env)
        }

    def _prepared(self, command: Command, path: str) -> tuple[Launch, str, str | None]:
        """On a thread, for it looks at files: what to execute, where, and in which life of the machine."""
        launch, cwd = self._launch(command, path)
        return launch, cwd, _boot()

    def _launch(self, command: Command, path: str) -> tuple[Launch, str]:
        cwd = os.path.abspath(self._cwd)
        if command.cwd is not None:
            cwd = os.path.join(cwd, command.cwd)
        if command.script is None:
            argv = command.argv
            if self._policy.restricts:
                return self._policy.of_argv(argv, path=path, cwd=cwd), cwd
        else:
            # A shell would take a text that begins with a dash for an option.
            argv = [self._shell, "-c", f" {command.script}" if command.script[0] in "-+" else command.script]
            if self._policy.restricts:
                return self._policy.of_script(command.script, path=path, cwd=cwd), cwd
        return Launch(argv[0], argv), cwd

    def _failure(self, execution: _Execution, returncode: int | None, details: JsonObject) -> AsmError | None:
        details = execution.command.shown | details
        if execution.cancelled:
            return RunCancelled(
                "the command was cancelled", details={"reason": "provider_cancelled", **details}
            )
        if execution.timed_out:
            limit = execution.command.timeout_ms
            return ProviderTimeout(
                f"the command took longer than {limit} ms", details={"timeout_ms": limit, **details}
            )
        if returncode in self._success_exit_codes:
            return None
        if returncode is None:
            return ProviderError("the command ended, but its exit code is not known", details=details)
        if returncode < 0:
            return ProviderError(f"the command was killed by {details['signal']}", details=details)
        return ProviderError(f"the command exited with code {returncode}", details=details)


class _Execution:
    """One command in flight, and why it is being stopped, if it is."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.cancelled = False
        self.timed_out = False
        self._process: ProcessGroup | None = None

    @contextmanager
    def of(self, process: ProcessGroup, clock: Clock) -> Generator[None]:
        """Inside, it can be stopped, and its time runs."""
        self._process = process
        if self.cancelled:
            process.stop()
        limit = self.command.timeout_ms
        timer = None if limit is None else clock.call_later(limit / 1000, self._time_out)
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()

    def cancel(self) -> None:
        """Stop it, now or as soon as it is started."""
        if not self.timed_out and (self._process is None or self._process.stop()):
            self.cancelled = True

    def _time_out(self) -> None:
        assert self._process is not None
        if not self.cancelled and self._process.stop():
            self.timed_out = True


class _Output:
    """What a command wrote: reported while it runs, kept for the result."""

    def __init__(
        self,
        emit: Emit,
        clock: Clock,
        *,
        flush_ms: int,
        max_bytes: int,
        max_event_bytes: int,
        tail_bytes: int,
        tail_lines: int,
    ) -> None:
        self._emit = emit
        self._clock = clock
        self._flush_s = flush_ms / 1000
        self._heads = {stream: Head(max_bytes) for stream in Stream}
        self._lines = {stream: Lines(max_event_bytes) for stream in Stream}
        self._due = dict.fromkeys(Stream, clock.monotonic())  # from then on, lines are reported at once
        self._tail = Tail(tail_bytes, tail_lines)
        self._reported = 0

    async def report(self, process: ProcessGroup) -> None:
        """Report all until the output is at its end, or at the limit; what follows is dropped."""
        while True:
            waiting = [self._due[stream] for stream in Stream if self._lines[stream].has_lines]
            left_ms = max(min(waiting) - self._clock.monotonic(), 0) * 1000 if waiting else None
            try:
                piece = await process.read(timeout_ms=left_ms)
            except TimeoutError:
                pass
            else:
                if piece is None:
                    break
                await self._take(*piece)
            for stream in Stream:
                if self._lines[stream].has_lines and self._clock.monotonic() >= self._due[stream]:
                    await self._report(stream, self._lines[stream].take())
        for stream in Stream:
            rest = self._lines[stream].end(cut_short=self._heads[stream].truncated)
            if rest:
                await self._report(stream, rest)

    async def _take(self, stream: Stream, data: bytes) -> None:
        if stream is Stream.STDERR:
            self._tail.feed(data)
        kept = self._heads[stream].feed(data)
        for piece in self._lines[stream].feed(kept) if kept else ():
            await self._report(stream, piece)

    async def _report(self, stream: Stream, text: str) -> None:
        # The deltas, joined, are the output, to the byte.
        content = text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text
        data = {"content": content, "delta": text, "stream": stream.value}
        await self._emit(EventType.MESSAGE_STREAMED, data)
        self._due[stream] = self._clock.monotonic() + self._flush_s
        self._reported += 1
        if self._reported % _EVENTS_A_TURN == 0:
            await asyncio.sleep(0)

    @property
    def truncated(self) -> bool:
        """Whether a stream was longer than what is kept of it."""
        return any(head.truncated for head in self._heads.values())

    def content(self) -> str:
        """What is kept of stdout."""
        return self._heads[Stream.STDOUT].text()

    def stderr_tail(self) -> str:
        """The end of stderr."""
        return self._tail.text()


@functools.cache
def _boot() -> str | None:
    """This life of the machine; None where it has no name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _exit_facts(returncode: int | None) -> JsonObject:
    if returncode is None or returncode >= 0:
        return {"exit_code": returncode}
    try:
        name = signal.Signals(-returncode).name
    except ValueError:  # one of the nameless real-time signals
        name = f"signal {-returncode}"
    return {"exit_code": None, "signal": name}
