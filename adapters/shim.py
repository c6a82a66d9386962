"""What stands between this program and a command, so that the command cannot outlive its purpose.

A file that runs in processes of its own, and so imports nothing but a little of the standard library:

* One *fork server* for each program that runs commands. It is small and has one thread, so forking it
  is cheap and safe, which forking the program would not be.
* One *shim* for each command that runs at a time, forked from it and kept for the next. It starts the
  command, in a session of its own and with every signal as after a login, adopts the processes that it
  leaves behind, and ends them all when it is told to, or when the program at the other end of its
  connection is gone, of SIGKILL for instance.

On Linux a shim is the reaper of its descendants (PR_SET_CHILD_SUBREAPER): no process that the command
started gets away, in whatever group or session. Elsewhere it finds the members of the command's
session. Processes that have changed their user, or hang in the kernel, it cannot end.

Source: prctl(2), PR_SET_CHILD_SUBREAPER; containerd's and conmon's shims, for the shape.
"""

from __future__ import annotations

import errno
import gc
import marshal
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = [
    "BEGIN",
    "DEATH_S",
    "END",
    "EXITED",
    "FAILED",
    "GONE",
    "KILL",
    "MESSAGE",
    "STARTED",
    "UNKNOWN",
    "request",
]

BEGIN = 255
"""What a shim is told, a byte: begin a command. With it come the command's standard input, output and
error, after it a `request`."""
END = 0
"""End who is left of the command's session. A byte in between is a signal for everybody."""
KILL = 9
"""End everybody. So does the end of the connection."""

MESSAGE = struct.Struct("!Bqq")
"""What a shim says: one of the four below, and two numbers."""
STARTED = 1
"""The command is executed: its pid, and when it was started in clock ticks since boot (0: unknown)."""
FAILED = 2
"""It is not: an errno, and 1 if its directory is to blame. The shim is free again."""
EXITED = 3
"""The command has exited, others may be left: its exit code, or minus its signal."""
GONE = 4
"""Nobody is left to be ended: likewise, and 0: the shim is free again. Else it ends, because of -1:
some have gone into sessions of their own and live on, or 1: some could not be killed."""
UNKNOWN = 256
"""In the place of an exit code: the command could not be killed."""

DEATH_S = 5.0
"""How long killed processes are waited for. SIGKILL takes well under a millisecond, unless a process
hangs in the kernel, on a dead file server for instance."""

_LENGTH = struct.Struct("!Q")
_SIGNALS = signal.valid_signals() - {KILL, getattr(signal, "SIGSTOP", 0)}  # Windows imports this too
_LAST_PID = 99_999 if sys.platform == "darwin" else 4_194_304
"""Source: xnu, PID_MAX; Linux, PID_MAX_LIMIT."""
_libc: Any = None
_PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 15, 36


def request(
    argv: Sequence[bytes],
    *,
    executable: bytes | None = None,
    identity: tuple[int, int] | None = None,
    cwd: bytes = b"/",
    env: Mapping[bytes, bytes] = {},
    name: bytes = b"",
    waits: bool = False,
    ends: int = 0,
) -> bytes:
    """What a shim is to do.

    Args:
        argv: The program and its arguments.
        executable: What is executed, if not `argv[0]`.
        identity: Device and inode that it must have.
        cwd: The command's directory.
        env: Its whole environment.
        name: What the command is called among the shims of this machine, while anybody of it lives.
        waits: Until nobody of another command of that name lives, for `DEATH_S` at most.
        ends: Start nothing, but end the session of this number, whose shim was killed.
    """
    body = marshal.dumps((ends, list(argv), executable, identity, cwd, dict(env), name, waits), 2)
    return _LENGTH.pack(len(body)) + body


def serve(server: socket.socket) -> None:
    """The fork server: a shim for each message, which carries its connection."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # shims leave no zombies
    while True:
        message, files, _, _ = socket.recv_fds(server, 1, 1)
        if not message:
            return
        for file in files:
            os.set_inheritable(file, False)
            try:
                is_shim = os.fork() == 0
            except OSError as error:
                os.write(file, MESSAGE.pack(FAILED, error.errno or errno.EAGAIN, 0))
            else:
                if is_shim:
                    # Who holds this end keeps it open: the program would not see that the server died.
                    os.dup2(1, server.detach())
                    _Shim(socket.socket(fileno=file)).run()
                    os._exit(0)
            os.close(file)


class _Process:
    """A line of the process table."""

    __slots__ = ("parent", "pid", "session", "started", "state")

    def __init__(self, pid: int, state: bytes, parent: int, session: int, started: int) -> None:
        self.pid, self.state, self.parent, self.session, self.started = pid, state, parent, session, started

    @property
    def is_alive(self) -> bool:
        return self.state not in (b"Z", b"X")


class _Shim:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._me = os.getpid()
        self._adopts = _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._leader = 0
        self._status: int | None = None
        self._name: socket.socket | None = None
        # A child's end must wake the poll below: by a byte in a pipe, as in the loop of asyncio.
        self._bell, ringing = os.pipe()
        for end in (self._bell, ringing):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(ringing, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll.register(self._bell, select.POLLIN)

    def run(self) -> None:
        """One command after the other."""
        while (asked := self._asked()) is not None:
            files, (ends, argv, executable, identity, cwd, env, name, waits) = asked
            self._leader, self._status = ends, None
            if not ends and not self._take_name(name, waits=waits):
                failure: tuple[int, int] | None = (errno.EBUSY, 0)
            else:
                failure = None if ends else self._start(files, argv, executable, identity, cwd, env)
            for file in files:
                os.close(file)
            if failure is not None:
                self._drop_name()
                self._tell(FAILED, *failure)
                continue
            if ends:
                self._adopts = False  # they are nobody's, or somebody else's
                everyone = False
            else:
                self._tell(STARTED, self._leader, _started(self._leader))
                everyone = self._hold()
            left = self._end(everyone=everyone)
            self._drop_name()
            self._tell(GONE, self._exit_status(), left)
            if left:
                return

    def _exit_status(self) -> int:
        return UNKNOWN if self._status is None else self._status

    # -- the connection

    def _asked(self) -> tuple[list[int], Any] | None:
        """The next request; None at the end of the connection."""
        while True:
            told, files, _, _ = socket.recv_fds(self._connection, 1, 3)
            if not told:
                return None
            if told[0] == BEGIN:  # else an order that came too late
                break
        for file in files:
            os.set_inheritable(file, False)
        head = self._received(_LENGTH.size)
        body = head and self._received(*_LENGTH.unpack(head))
        return (files, marshal.loads(body)) if body else None

    def _received(self, size: int) -> bytes | None:
        received = bytearray()
        while len(received) < size:
            piece = self._connection.recv(min(size - len(received), 1_048_576))
            if not piece:
                return None
            received += piece
        return bytes(received)

    def _tell(self, kind: int, first: int, second: int) -> None:
        try:
            self._connection.sendall(MESSAGE.pack(kind, first, second))
        except OSError:
            pass  # nobody listens any more

    # -- the name

    def _take_name(self, name: bytes, *, waits: bool) -> bool:
        """Have the name, if need be when its owner has gone; the kernel takes it from one that is killed.
        Whether the command may begin: only Linux has such names, and who does not wait needs none.
        """
        if not name or sys.platform != "linux":
            return True
        patience = time.monotonic() + DEATH_S
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        while True:
            try:
                holder.bind(b"\0asm-shim-" + name)
                self._name = holder
                return True
            except OSError as error:
                over = error.errno != errno.EADDRINUSE or not waits
                if over or time.monotonic() > patience:
                    holder.close()
                    return over
            if select.select([self._connection], [], [], 0.005)[0]:
                holder.close()  # nobody wants the command any more
                return False

    def _drop_name(self) -> None:
        if self._name is not None:
            self._name.close()
            self._name = None

    # -- the command

    def _start(
        self,
        files: list[int],
        argv: list[bytes],
        executable: bytes | None,
        identity: tuple[int, int] | None,
        cwd: bytes,
        env: dict[bytes, bytes],
    ) -> tuple[int, int] | None:
        """Have the command executed; else an errno, and whether the directory is to blame."""
        if len(files) < 3:
            return errno.EMFILE, 0
        try:
            os.chdir(cwd)
        except OSError as error:
            return error.errno or errno.ENOENT, 1
        refused = errno.ENOENT
        for program in _candidates(executable or argv[0], env):
            try:
                if identity is not None:
                    found = os.stat(program)
                    if (found.st_dev, found.st_ino) != tuple(identity):
                        return errno.ESTALE, 0
                self._leader = os.posix_spawn(
                    program,
                    argv,
                    env,
                    file_actions=[(os.POSIX_SPAWN_DUP2, file, place) for place, file in enumerate(files)],
                    setsid=True,
                    setsigmask=(),
                    setsigdef=_SIGNALS,
                )
                break
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    refused = error.errno or refused
        os.chdir("/")
        return None if self._leader else (refused, 0)

    def _hold(self) -> bool:
        """Return when the command is to be ended; whether everybody is."""
        told = False
        while True:
            if self._is_childless():
                return True
            if self._status is not None and not told:
                self._tell(EXITED, self._status, 0)
                told = True
            ready = [file for file, _ in self._poll.poll()]
            self._hear_the_bell()
            if self._connection.fileno() not in ready:
                continue
            try:
                orders = self._connection.recv(64)
            except OSError:
                orders = b""
            if not orders or KILL in orders:
                return True
            if END in orders:
                return False
            for number in orders:
                for process in self._everybody():
                    _send(process, number)

    def _hear_the_bell(self) -> None:
        try:
            while os.read(self._bell, 4096):
                pass
        except BlockingIOError:
            pass

    def _is_childless(self) -> bool:
        """Reap the command and its orphans; whether that was all. Only who adopts can tell."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return self._adopts
            if pid == 0:
                return False
            if pid == self._leader:
                self._status = os.waitstatus_to_exitcode(status)

    # -- its end

    def _end(self, *, everyone: bool) -> int:
        """Kill until nobody is left who is to be; the second number of `GONE`."""
        patience = time.monotonic() + DEATH_S
        pause = 0.0005
        while True:
            childless = self._is_childless()
            doomed = [] if childless else self._doomed(everyone)
            if childless or (not doomed and not (everyone and self._adopts)):
                return 0 if childless or not self._adopts else -1
            if time.monotonic() > patience:
                return 1
            for process in doomed:
                _send(process, KILL)
            select.select([self._bell], [], [], pause)
            self._hear_the_bell()
            pause = min(pause * 2, 0.05)

    def _doomed(self, everyone: bool) -> list[_Process]:
        for look in (self._children, self._everybody):
            found = [process for process in look() if everyone or process.session == self._leader]
            if found:
                return found
        return []

    def _everybody(self) -> list[_Process]:
        """Who is alive of the command: my descendants, and the members of its session."""
        table = list(_table(self._leader))
        below: dict[int, list[_Process]] = {}
        for process in table:
            below.setdefault(process.parent, []).append(process)
        found = {process.pid: process for process in table if process.session == self._leader}
        parents = [self._me]
        while parents:
            for process in below.get(parents.pop(), ()):
                found[process.pid] = process
                parents.append(process.pid)
        return [process for process in found.values() if process.is_alive]

    def _children(self) -> list[_Process]:
        """Who is alive of my children, and so of those whom I have adopted. Quick, where the kernel keeps
        a list: not even a chain of processes that fork and exit gets away.
        """
        try:
            with open(f"/proc/self/task/{self._me}/children") as listed:
                looks = [_look(int(pid)) for pid in listed.read().split()]
        except OSError:
            return []
        return [process for process in looks if process is not None and process.is_alive]


# -- the system


def _candidates(program: bytes, env: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """The files that a program's name may stand for."""
    if b"/" in program:
        yield program
        return
    for folder in env.get(b"PATH", os.defpath.encode()).split(b":"):
        candidate = os.path.join(folder, program)
        if os.path.exists(candidate):
            yield candidate


def _table(session: int) -> Iterator[_Process]:
    """The process table; where there is no /proc, that part of it which is a session."""
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        pids = []
    if pids:
        yield from filter(None, map(_look, pids))
        return
    for pid in range(2, _LAST_PID + 1):
        try:
            if os.getsid(pid) == session:
                yield _Process(pid, b"", 0, session, 0)
        except OSError:
            pass


def _look(pid: int) -> _Process | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # "pid (name) state ppid pgrp session …"; the name may hold spaces and parentheses.
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return _Process(pid, fields[0], int(fields[1]), int(fields[3]), int(fields[19]))


def _started(pid: int) -> int:
    process = _look(pid)
    return 0 if process is None else process.started


def _send(process: _Process, number: int) -> None:
    """Signal that very process, and not one that has got its number since."""
    try:
        handle = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        handle = -1
    try:
        if process.started in (0, _started(process.pid)):
            if handle < 0:
                os.kill(process.pid, number)
            else:
                signal.pidfd_send_signal(handle, number)
    except OSError:
        pass  # it is gone, or has changed its user
    finally:
        if handle >= 0:
            os.close(handle)


def _prctl(option: int, value: int | bytes) -> bool:
    """Whether the kernel has done it: only Linux can, and only a Python with ctypes can ask."""
    return _libc is not None and _libc.prctl(option, value, 0, 0, 0) == 0


def _main() -> None:
    global _libc
    for name in os.listdir("/dev/fd"):
        if int(name) > 2:
            try:
                os.close(int(name))
            except OSError:
                pass  # that of the listing itself
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)  # it ends when its program does, and not before
    os.setsid()
    os.chdir("/")
    if sys.platform == "linux":
        try:
            import ctypes
        except ImportError:
            pass
        else:
            _libc = ctypes.CDLL(None)
    _prctl(_PR_SET_NAME, b"asm-shim")
    gc.freeze()  # what is not touched stays shared with the shims
    with socket.socket(fileno=0) as server:
        serve(server)


if __name__ == "__main__":
    _main()
