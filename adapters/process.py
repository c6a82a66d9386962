"""An OS process that leads a group of its own, so that it can be ended with everything it started.

Why not `asyncio.create_subprocess_exec`: it reaps the leader by itself, after which the group's id may
name somebody else's group; some Python versions wait for the pipes, which a grandchild may hold for
ever, before they tell of the exit; and a cancelled start kills the leader only. Here the leader stays
a zombie, and the group's id ours, until the group has been killed. What is asked of the event loop is
`add_reader`, so every loop that has it will do.

What is out of reach: a process that leaves the group (`setsid`), as it would escape Ctrl-C in a
terminal; and everything, if this program dies without a word, of SIGKILL for instance.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

from asm_runtime.clock import SYSTEM_CLOCK, Clock, Timer
from asm_runtime.errors import AsmError, ProviderError, ProviderUnavailable, ValidationError

__all__ = ["ProcessGroup", "Stream"]

logger = logging.getLogger(__name__)

_READ_BYTES = 65_536
"""One read: what a pipe holds on Linux."""

_LAST_READ_BYTES = 1_048_576
"""The last read of a pipe that is given up: as much as an unprivileged process can make it hold."""

_DEATH_S = 5.0
"""How long killed processes are waited for. SIGKILL takes well under a millisecond, unless a process
hangs in the kernel, on a dead file server for instance."""


class Stream(StrEnum):
    """Where a process wrote."""

    STDOUT = "stdout"
    STDERR = "stderr"


class ProcessGroup:
    """A process in a session and group of its own, alive inside an `async with` and no longer.

    ::

        async with ProcessGroup(["make"], cwd="/src", env=environment) as process:
            while (piece := await process.read()) is not None:
                stream, data = piece
        process.returncode

    However the block is left, the whole group is gone behind it, reaped, and every file descriptor
    closed. Left early, by an exception or a cancellation, the group is first asked to go: SIGINT, then
    SIGTERM, then SIGKILL. A second cancellation goes straight to SIGKILL.

    A process that the leader left behind in the background is killed with SIGKILL: at once if it does
    not hold the output, else `drain_grace_ms` after the leader's exit.

    Args:
        argv: The program and its arguments; a name without a slash is looked up in `env["PATH"]`.
        cwd: Its working directory.
        env: Its whole environment.
        executable: What is executed, if not `argv[0]`.
        stdin: What it finds on its standard input.
        interrupt_grace_ms: From SIGINT to SIGTERM.
        terminate_grace_ms: From SIGTERM to SIGKILL.
        drain_grace_ms: How long output is read once the leader has exited and others hold the pipes.
        clock: Where the graces come from.

    Attributes:
        pid: The leader's id, which is the group's.
        returncode: Behind the block: the exit code, or minus the signal that ended the leader; None if
            another part of this program took the exit status.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: str,
        env: Mapping[str, str],
        executable: str | None = None,
        stdin: bytes = b"",
        interrupt_grace_ms: int = 2_000,
        terminate_grace_ms: int = 2_000,
        drain_grace_ms: int = 500,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.pid = 0
        self.returncode: int | None = None
        self._argv = list(argv)
        self._cwd = cwd
        self._env = dict(env)
        self._executable = executable
        self._stdin = stdin
        self._interrupt_grace_s = interrupt_grace_ms / 1000
        self._terminate_grace_s = terminate_grace_ms / 1000
        self._drain_grace_s = drain_grace_ms / 1000
        self._clock = clock
        self._popen: subprocess.Popen[bytes] | None = None
        self._pidfd: int | None = None
        self._pipes: dict[int, Stream] = {}
        self._readable: set[int] = set()
        self._pieces: deque[tuple[Stream, bytes]] = deque()
        self._timers: list[Timer] = []
        self._stopping = False
        self._exited = False
        self._drained = False
        self._reaped = False
        self._wake: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        """Start the process.

        Raises:
            ValidationError: `cwd` is no directory that can be entered, or the arguments are too long.
            ProviderUnavailable: The system is out of processes, memory or file descriptors.
            ProviderError: The program is not there or cannot be executed.
        """
        self._loop = asyncio.get_running_loop()
        spawning = self._loop.run_in_executor(None, self._spawn)
        cancelled = await _outlast(spawning)
        error = spawning.exception()
        try:
            if error is None:
                self._adopt(spawning.result())
            if cancelled:
                raise asyncio.CancelledError
            if error is not None:
                raise _translated(error, self._executable or self._argv[0], self._cwd) from error
        except BaseException:
            if self._popen is not None:
                await self._bury()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Leave nothing behind."""
        if kind is GeneratorExit:  # the loop was closed under a task that nobody cancelled
            self._bury_at_once()
            return
        cancelled = False
        try:
            if self.stop():
                while await self.read() is not None:
                    pass  # a process that cannot write does not get as far as to exit
        except asyncio.CancelledError:
            cancelled = True
        except GeneratorExit:
            self._bury_at_once()
            raise
        if await self._bury() or cancelled:
            raise asyncio.CancelledError

    async def read(self) -> tuple[Stream, bytes] | None:
        """What the group wrote next; None once its leader has exited and the output is at its end.

        Nothing is read ahead: a caller that does not read slows the process down. Costs a turn of the
        loop each time, so that no torrent of output keeps others from running.
        """
        while not self._pieces:
            if self._is_over():
                return None
            await self._next_change()
            self._collect()
        return self._pieces.popleft()

    def stop(self) -> bool:
        """Ask the group to go: SIGINT now, SIGTERM and SIGKILL if it stays. Plain, idempotent.

        Returns:
            Whether the leader was still there.
        """
        if self._exited:
            return False
        if not self._stopping:
            self._stopping = True
            self._signal(signal.SIGINT)
            self._later(self._interrupt_grace_s, self._signal, signal.SIGTERM)
            self._later(self._interrupt_grace_s + self._terminate_grace_s, self.kill)
        return True

    def kill(self) -> None:
        """Kill the group with SIGKILL. Plain, idempotent."""
        self._signal(signal.SIGKILL)

    # -- its start

    def _spawn(self) -> subprocess.Popen[bytes]:
        """On a thread: it touches files."""
        with tempfile.TemporaryFile() if self._stdin else open(os.devnull, "rb") as stdin:
            # A file and not a pipe: nobody has to feed it while the process runs.
            if self._stdin:
                stdin.write(self._stdin)
                stdin.seek(0)
            return subprocess.Popen(
                self._argv,
                executable=self._executable,
                cwd=self._cwd,
                env=self._env,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )

    def _adopt(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self.pid = popen.pid
        for pipe, stream in ((popen.stdout, Stream.STDOUT), (popen.stderr, Stream.STDERR)):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
            self._pipes[pipe.fileno()] = stream
        try:
            self._pidfd = os.pidfd_open(popen.pid)
        except (AttributeError, OSError):  # not Linux, or a kernel or sandbox without it
            threading.Thread(target=self._watch, args=(popen,), daemon=True).start()
        else:
            self._loop.add_reader(self._pidfd, self._on_exit)

    def _watch(self, popen: subprocess.Popen[bytes]) -> None:
        """Instead of a pidfd, on a thread: wait for the exit, where possible without reaping."""
        try:
            if hasattr(os, "waitid"):
                os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
            else:
                popen.wait()
        except ChildProcessError:
            pass  # reaped already
        try:
            self._loop.call_soon_threadsafe(self._on_exit)
        except RuntimeError:
            pass  # the loop is closed

    # -- what happens to it

    def _on_exit(self) -> None:
        """The leader has exited; it is not reaped before the group is killed."""
        if self._pidfd is not None:
            self._forget(self._pidfd)
        if not self._exited and not self._reaped:
            self._exited = True
            self._later(self._drain_grace_s, self._on_drained)
            self._woken()

    def _on_drained(self) -> None:
        self._drained = True
        self.kill()
        self._woken()

    def _on_readable(self, pipe: int) -> None:
        self._readable.add(pipe)
        self._woken()

    def _woken(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _next_change(self) -> None:
        """Return when there is output, or its end, or the leader has exited, or the graces are over."""
        if self._drained:
            return
        self._wake = self._loop.create_future()
        # Only while somebody waits: readers that stay would spin while the caller is busy elsewhere.
        for pipe in self._pipes:
            self._loop.add_reader(pipe, self._on_readable, pipe)
        try:
            await self._wake
        finally:
            self._wake = None
            for pipe in self._pipes:
                self._forget(pipe)

    def _collect(self) -> None:
        for pipe in tuple(self._pipes) if self._drained else tuple(self._readable):
            try:
                data = os.read(pipe, _LAST_READ_BYTES if self._drained else _READ_BYTES)
            except BlockingIOError:
                data = None
            if data:
                self._pieces.append((self._pipes[pipe], data))
            if data == b"" or self._drained:  # who still holds it has left the group: not ours
                self._close(pipe)
        self._readable.clear()

    def _is_over(self) -> bool:
        return self._exited and not self._pipes and not self._pieces

    # -- its end

    def _signal(self, number: int) -> None:
        if self.pid and not self._reaped:
            try:
                os.killpg(self.pid, number)
            except (ProcessLookupError, PermissionError):
                pass  # nobody is left, or only such as changed their user

    def _later(self, seconds: float, callback: Callable[..., object], *args: object) -> None:
        self._timers.append(self._clock.call_later(seconds, callback, *args))

    async def _bury(self) -> bool:
        """Kill what is left, reap, close; whether the caller was cancelled meanwhile."""
        self._release()
        if self._is_gone():
            return False
        try:
            dying = self._loop.run_in_executor(None, self._until_gone)
        except RuntimeError:  # the loop is shutting down and its threads have gone
            self._until_gone()
            return False
        return await _outlast(dying)

    def _bury_at_once(self) -> None:
        """Without a loop to wait on."""
        self._release()
        self._until_gone()

    def _release(self) -> None:
        self.kill()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for pipe in tuple(self._pipes):
            self._close(pipe)
        if self._pidfd is not None:
            self._forget(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def _close(self, pipe: int) -> None:
        assert self._popen is not None
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self._forget(pipe)
        stream = self._pipes.pop(pipe)
        (self._popen.stdout if stream is Stream.STDOUT else self._popen.stderr).close()

    def _forget(self, fd: int) -> None:
        try:
            self._loop.remove_reader(fd)
        except RuntimeError:
            pass  # the loop is closed

    def _until_gone(self) -> None:
        """On a thread: return when nobody of the group is alive any more."""
        patience = time.monotonic() + _DEATH_S
        pause = 0.0005
        while not (self._is_gone() or (self._reaped and _only_zombies(self.pid))):
            if time.monotonic() > patience:
                logger.warning("process group %s does not die of SIGKILL and is left behind", self.pid)
                return
            time.sleep(pause)
            pause = min(pause * 2, 0.05)

    def _is_gone(self) -> bool:
        self._reap()
        if not self._reaped:
            return False
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    def _reap(self) -> None:
        """Take the status of the leader, and of orphans of the group if they became our children."""
        popen = self._popen
        assert popen is not None
        while True:
            try:
                pid, status = os.waitpid(-self.pid, os.WNOHANG)
            except ChildProcessError:
                self._reaped = True
                break
            if pid == 0:
                break
            if pid == self.pid:
                self.returncode = popen.returncode = os.waitstatus_to_exitcode(status)
                self._reaped = True
        if not self._reaped:
            return
        if popen.returncode is None:
            popen.returncode = 0  # the status was taken by somebody else; Popen need not look for it
        elif self.returncode is None:
            self.returncode = popen.returncode


_START_ERRORS: dict[int, tuple[type[AsmError], str]] = {
    errno.ENOENT: (ProviderError, "command not found: {program}"),
    errno.ENOTDIR: (ProviderError, "command not found: {program}"),
    errno.EACCES: (ProviderError, "{program} is not executable"),
    errno.EPERM: (ProviderError, "{program} is not executable"),
    errno.ENOEXEC: (ProviderError, "{program} is no program that the system can execute"),
    errno.E2BIG: (ValidationError, "the arguments or the environment are longer than the system allows"),
    errno.EAGAIN: (ProviderUnavailable, "the system starts no more processes: {reason}"),
    errno.ENOMEM: (ProviderUnavailable, "the system starts no more processes: {reason}"),
    errno.EMFILE: (ProviderUnavailable, "the system opens no more files: {reason}"),
    errno.ENFILE: (ProviderUnavailable, "the system opens no more files: {reason}"),
    errno.ENOSPC: (ProviderUnavailable, "there is no room for the input: {reason}"),
}


def _translated(error: BaseException, program: str, cwd: str) -> BaseException:
    """The library's error for what `Popen` raised."""
    if not isinstance(error, OSError) or error.errno is None:
        return error
    reason = os.strerror(error.errno)
    if error.filename == cwd:
        return ValidationError(
            f"cwd must be a directory that can be entered, not {cwd}: {reason}",
            details={"option": "cwd", "value": cwd},
        )
    kind, message = _START_ERRORS.get(
        error.errno, (ProviderError, "{program} could not be started: {reason}")
    )
    return kind(
        message.format(program=program, reason=reason),
        details={"command": program, "errno": errno.errorcode.get(error.errno, str(error.errno))},
    )


def _only_zombies(group: int) -> bool:
    """Whether all that is left of the group waits for a parent that does not reap, as in containers
    whose first process is no init. False where there is no /proc.
    """
    try:
        return not any(_lives_in(group, name) for name in os.listdir("/proc") if name.isdigit())
    except OSError:
        return False


def _lives_in(group: int, pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # "pid (name) state ppid pgrp …"; the name may hold spaces and parentheses.
            state, _, pgrp = stat.read().rpartition(b")")[2].split()[:3]
    except OSError:
        return False
    return int(pgrp) == group and state not in (b"Z", b"X")


async def _outlast(work: asyncio.Future[Any]) -> bool:
    """Wait for work that must not be left alone; whether the caller was cancelled meanwhile."""
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            cancelled = True
    return cancelled
