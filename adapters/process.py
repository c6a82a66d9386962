"""An OS process with everything it starts, ended as one.

It is not started from here but from a helper, by way of a process of its own that stands between this
program and it (see `shim`): whatever becomes of this program, even SIGKILL, that one ends the command.
Neither does this program have to be forked, nor to look after children. What is asked of the event
loop is `add_reader` and `sock_sendall`, so every loop that has them will do.

What is out of reach: processes that have changed their user (`sudo`), and the moment in which somebody
kills this program and the helpers together.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import signal
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from asm_runtime import options
from asm_runtime.adapters import shim
from asm_runtime.adapters.fork_server import connect, release
from asm_runtime.clock import SYSTEM_CLOCK, Clock, Timer
from asm_runtime.errors import (
    AsmError,
    PolicyViolation,
    ProviderError,
    ProviderUnavailable,
    ValidationError,
)

__all__ = ["ProcessGroup", "Stream", "on_a_thread"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_READ_BYTES = 65_536
"""One read: what a pipe holds on Linux."""

_LAST_READ_BYTES = 1_048_576
"""The last read of a pipe that is given up: as much as an unprivileged process can make it hold."""

_PATIENCE_S = 2 * shim.DEATH_S
"""How long a shim may take to end its command. It gives up by itself before that, unless somebody has
stopped it."""


class Stream(StrEnum):
    """Where a process wrote."""

    STDOUT = "stdout"
    STDERR = "stderr"


class ProcessGroup:
    """A process with all that it starts, alive inside an `async with` and no longer.

    ::

        async with ProcessGroup(["make"], cwd="/src", env=environment) as process:
            while (piece := await process.read()) is not None:
                stream, data = piece
        process.returncode

    The process leads a session of its own, with no signal ignored or blocked. However the block is left,
    no process of that session is left, in whatever process group, and no file descriptor. When it is
    left early, by an exception or a cancellation, the processes are asked to end first: SIGINT, then
    SIGTERM, then SIGKILL. A second cancellation goes straight to SIGKILL. If this program
    dies, they are killed.

    Processes that are left in the background when it exits are killed with SIGKILL: at once if they do
    not hold the output open, else `drain_grace_ms` later. A process in a session of its own (`setsid`,
    daemons) lives on after one that exited by itself. After one that is stopped it does not, on Linux.

    Args:
        argv: The program and its arguments; a name without a slash is looked up in `env["PATH"]`.
        cwd: Its working directory, an absolute path.
        env: Its whole environment.
        executable: The file to execute, if not `argv[0]`.
        identity: The device and inode that this file must have when it is executed.
        stdin: The content of its standard input.
        interrupt_grace_ms: From SIGINT to SIGTERM.
        terminate_grace_ms: From SIGTERM to SIGKILL.
        drain_grace_ms: How long output is read once the process has exited and others hold the pipes.
        name: A name of its own on this machine, while any process of it lives.
        waits: Wait until every process of another one with that name is gone, a few seconds at most.
            Only on Linux.
        clock: The source of time.

    Attributes:
        pid: Its id, which is that of its group and session.
        started: When it was started, in clock ticks since the boot; 0 where that is not known. With the
            pid and the boot it is unique.
        returncode: After the block: the exit code, or minus the signal that ended it; None if it is not
            known, because the helper was killed.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: str,
        env: Mapping[str, str],
        executable: str | None = None,
        identity: tuple[int, int] | None = None,
        stdin: bytes = b"",
        interrupt_grace_ms: int = 2_000,
        terminate_grace_ms: int = 2_000,
        drain_grace_ms: int = 500,
        name: str = "",
        waits: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not os.path.isabs(cwd):
            raise options.refused("cwd", cwd, "an absolute path")
        self.pid = 0
        self.returncode: int | None = None
        self._argv = list(argv)
        self._cwd = cwd
        self._env = dict(env)
        self._executable = executable
        self._identity = identity
        self._name = name
        self._waits = waits
        self.started = 0
        self._stdin = stdin
        self._interrupt_grace_s = interrupt_grace_ms / 1000
        self._terminate_grace_s = terminate_grace_ms / 1000
        self._drain_grace_s = drain_grace_ms / 1000
        self._clock = clock
        self._shim: socket.socket | None = None
        self._said = b""
        self._lost = False
        self._hung_up = False
        self._failure: OSError | None = None
        self._pipes: dict[int, Stream] = {}
        self._readable: set[int] = set()
        self._pieces: deque[tuple[Stream, bytes]] = deque()
        self._timers: list[Timer] = []
        self._stopping = False
        self._exited = False
        self._drained = False
        self._timed_out = False
        self._wake: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        """Start the process.

        Raises:
            ValidationError: `cwd` is no directory that can be entered, or the arguments are too long.
            ProviderUnavailable: The system is out of processes, memory or file descriptors.
            ProviderError: The program is not there or cannot be executed.
            PolicyViolation: It is not the file of that `identity`.
            DependencyMissing: There is no Python interpreter to run the helper.
        """
        self._loop = asyncio.get_running_loop()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        try:
            await self._start()
            while not (self.pid or self._gone.done()):
                await self._next_message()
            if self._failure is not None:
                raise self._failure
            if not self.pid:
                raise ProviderUnavailable("the helper process was killed before it had started the command")
        except BaseException as error:
            self._stopping = True
            if await self._bury():
                raise asyncio.CancelledError from error
            if isinstance(error, OSError):
                raise _translated(error, self._executable or self._argv[0], self._cwd) from error
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
        if kind is not None or cancelled:
            self._stopping = True
        if await self._bury() or cancelled:
            raise asyncio.CancelledError

    async def read(self, *, timeout_ms: float | None = None) -> tuple[Stream, bytes] | None:
        """What was written next; None once the process has exited and the output is at its end.

        Nothing is read ahead: a caller that does not read slows the process down. Costs a turn of the
        loop each time, so that no torrent of output keeps others from running.

        Raises:
            TimeoutError: There was nothing for `timeout_ms`. Nothing is lost.
        """
        timer = None if timeout_ms is None else self._clock.call_later(timeout_ms / 1000, self._on_timeout)
        self._timed_out = False
        try:
            while not self._pieces:
                if self._is_over():
                    return None
                if self._timed_out:
                    raise TimeoutError
                await self._next_change()
                self._collect()
            return self._pieces.popleft()
        finally:
            if timer is not None:
                timer.cancel()

    def stop(self) -> bool:
        """Ask all its processes to end: SIGINT now, later SIGTERM, then SIGKILL. Plain, idempotent.

        Returns:
            Whether the process was still there.
        """
        if self._exited:
            return False
        if not self._stopping:
            self._stopping = True
            self._order(signal.SIGINT)
            self._later(self._interrupt_grace_s, self._order, signal.SIGTERM)
            self._later(self._interrupt_grace_s + self._terminate_grace_s, self.kill)
        return True

    def kill(self) -> None:
        """Kill all its processes with SIGKILL. Plain, idempotent."""
        self._stopping = True
        self._order(shim.KILL)

    # -- its start

    async def _start(self) -> None:
        files: list[int] = []
        try:
            if self._stdin:
                files.append(await on_a_thread(_file_of, self._stdin, unwanted=os.close))
            else:
                files.append(os.open(os.devnull, os.O_RDONLY))
            for stream in Stream:
                ours, theirs = os.pipe()
                os.set_blocking(ours, False)
                self._pipes[ours] = stream
                files.append(theirs)
            self._shim = await connect(files)
        finally:
            for file in files:
                os.close(file)
        self._loop.add_reader(self._shim.fileno(), self._on_message)
        asked = shim.request(
            [os.fsencode(word) for word in self._argv],
            executable=None if self._executable is None else os.fsencode(self._executable),
            identity=self._identity,
            cwd=os.fsencode(self._cwd),
            env={os.fsencode(name): os.fsencode(value) for name, value in self._env.items()},
            name=hashlib.blake2b(self._name.encode(), digest_size=16).hexdigest().encode()
            if self._name
            else b"",
            waits=self._waits,
        )
        try:
            await self._loop.sock_sendall(self._shim, asked)
        except (BrokenPipeError, ConnectionResetError):
            pass  # its last message says why

    # -- what happens to it

    def _on_message(self) -> None:
        assert self._shim is not None
        try:
            piece = self._shim.recv(4096)
        except BlockingIOError:
            return
        except ConnectionResetError:
            piece = b""
        self._said += piece
        while len(self._said) >= shim.MESSAGE.size and not self._gone.done():
            kind, first, second = shim.MESSAGE.unpack_from(self._said)
            self._said = self._said[shim.MESSAGE.size :]
            if kind == shim.STARTED:
                self.pid, self.started = first, second
            elif kind == shim.FAILED:
                self._failure = OSError(first, os.strerror(first), self._cwd if second else None)
                self._on_gone(free=True)
            else:
                if not self._exited and first != shim.UNKNOWN:
                    self.returncode = first
                self._on_exit()
                if kind == shim.GONE:
                    if second > 0:
                        logger.warning("processes of %s survived SIGKILL and are left running", self.pid)
                    self._on_gone(free=not second)
        if not piece and not self._gone.done():
            self._lost = True
            self._on_exit()
            self._on_gone(free=False)
        self._woken()

    def _on_gone(self, *, free: bool) -> None:
        """Nobody is left."""
        assert self._shim is not None
        self._forget(self._shim.fileno())
        if free and not self._hung_up:
            release(self._shim)
        else:
            self._shim.close()
        self._gone.set_result(None)

    def _on_exit(self) -> None:
        """The process has exited."""
        if not self._exited:
            self._exited = True
            if self._pipes:
                self._later(self._drain_grace_s, self._on_drained)

    def _on_drained(self) -> None:
        self._drained = True
        self._order(shim.KILL if self._stopping else shim.END)
        self._woken()

    def _on_timeout(self) -> None:
        self._timed_out = True
        self._woken()

    def _on_readable(self, pipe: int) -> None:
        self._readable.add(pipe)
        self._woken()

    def _woken(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _next_message(self) -> None:
        self._wake = self._loop.create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    async def _next_change(self) -> None:
        """Return when there is output, or its end, or the process has exited, or the graces are over."""
        if self._drained:
            return
        # Only while somebody waits: readers that stay would spin while the caller is busy elsewhere.
        for pipe in self._pipes:
            self._loop.add_reader(pipe, self._on_readable, pipe)
        try:
            await self._next_message()
        finally:
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
            if data == b"" or self._drained:  # who still holds it has left the session: not ours
                self._close(pipe)
        self._readable.clear()

    def _is_over(self) -> bool:
        return self._exited and not self._pipes and not self._pieces

    # -- its end

    def _order(self, number: int) -> None:
        if self._shim is not None and not self._gone.done():
            try:
                self._shim.send(bytes([number]))
            except OSError:
                pass  # it has gone

    def _hang_up(self) -> None:
        """End everybody, and the shim."""
        self._hung_up = True
        if self._shim is not None and not self._gone.done():
            try:
                self._shim.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has gone

    def _later(self, seconds: float, callback: Callable[..., object], *args: object) -> None:
        self._timers.append(self._clock.call_later(seconds, callback, *args))

    async def _bury(self) -> bool:
        """End who is left, and close everything; whether the caller was cancelled meanwhile."""
        self._release()
        if self._shim is None:
            return False
        if not self.pid:
            self._hang_up()  # it may not have been asked yet
        else:
            self._order(shim.KILL if self._stopping or not self._exited else shim.END)
        patience = self._loop.call_later(_PATIENCE_S, self._give_up)
        cancelled = await _outlast(self._gone)
        patience.cancel()
        if self._lost and self.pid:
            return await _outlast(self._loop.create_task(_end_session(self.pid))) or cancelled
        return cancelled

    def _give_up(self) -> None:
        if not self._gone.done():
            logger.warning("the helper of process %s does not answer and is left running", self.pid)
            self._on_gone(free=False)

    def _bury_at_once(self) -> None:
        """Without a loop to wait on."""
        self._release()
        if self._shim is None or self._gone.done():
            return
        self._forget(self._shim.fileno())
        self._hang_up()
        try:
            self._shim.settimeout(_PATIENCE_S)
            while self._shim.recv(4096):
                pass
        except OSError:
            pass
        self._shim.close()

    def _release(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for pipe in tuple(self._pipes):
            self._close(pipe)

    def _close(self, pipe: int) -> None:
        self._forget(pipe)
        del self._pipes[pipe]
        os.close(pipe)

    def _forget(self, file: int) -> None:
        try:
            self._loop.remove_reader(file)
        except RuntimeError:
            pass  # the loop is closed


async def _end_session(session: int) -> None:
    """In the place of a shim that somebody killed: end what it left."""
    loop = asyncio.get_running_loop()
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        connection = await connect([nothing] * 3)
        with connection:
            await loop.sock_sendall(connection, shim.request([], ends=session))
            await asyncio.wait_for(loop.sock_recv(connection, 1), _PATIENCE_S)
    except (OSError, AsmError) as error:
        logger.warning("what is left of process %s could not be ended: %s", session, error)
    finally:
        os.close(nothing)


def _file_of(content: bytes) -> int:
    """A file and not a pipe: nobody has to feed it while the process runs."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        return os.dup(file.fileno())


_START_ERRORS: dict[int, tuple[type[AsmError], str]] = {
    errno.ENOENT: (ProviderError, "command not found: {program}"),
    errno.ENOTDIR: (ProviderError, "command not found: {program}"),
    errno.EACCES: (ProviderError, "{program} is not executable"),
    errno.EPERM: (ProviderError, "{program} is not executable"),
    errno.ENOEXEC: (ProviderError, "{program} is not a program that the system can execute"),
    errno.ESTALE: (PolicyViolation, "{program} is another file than the one that was checked"),
    errno.E2BIG: (ValidationError, "the arguments or the environment are longer than the system allows"),
    errno.EAGAIN: (ProviderUnavailable, "the system starts no more processes: {reason}"),
    errno.ENOMEM: (ProviderUnavailable, "the system starts no more processes: {reason}"),
    errno.EBUSY: (ProviderUnavailable, "processes of an earlier attempt are still alive"),
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


async def on_a_thread(
    function: Callable[..., _T], *args: object, unwanted: Callable[[_T], object] | None = None
) -> _T:
    """Call what touches files, on a thread of its own: the loop's threads are the application's, which
    may keep them all busy.

    Args:
        function: It is not interrupted: a cancelled caller waits for its end.
        args: Its arguments.
        unwanted: Given the result if the caller was cancelled.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def work() -> None:
        report: Callable[[], None]
        try:
            report = partial(done.set_result, function(*args))
        except BaseException as error:
            report = partial(done.set_exception, error)
        try:
            loop.call_soon_threadsafe(report)
        except RuntimeError:
            pass  # the loop is closed

    try:
        threading.Thread(target=work, daemon=True).start()
    except RuntimeError as error:
        raise ProviderUnavailable(f"the system starts no more threads: {error}") from error
    if await _outlast(done):
        if done.exception() is None and unwanted is not None:
            unwanted(done.result())
        raise asyncio.CancelledError
    return done.result()


async def _outlast(work: asyncio.Future[_T]) -> bool:
    """Wait for work that must not be left alone; whether the caller was cancelled meanwhile."""
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            cancelled = True
    return cancelled
