"""This program's end of the fork server, from which every command is started (see `shim`)."""

from __future__ import annotations

import asyncio
import atexit
import errno
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from asm_runtime.adapters.shim import BEGIN
from asm_runtime.errors import DependencyMissing, ProviderUnavailable

__all__ = ["connect", "release"]

_PROGRAM = Path(__file__).with_name("shim.py")
_INHERITED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""What an interpreter may need to find its own library. Nothing else: commands of this user can read
the environment of a parent."""

_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
_BUSY = (errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS)
"""The server has not come round to those who asked before: a few hundred wait in its socket."""

_PATIENCE_S = 5.0
"""How long it may take to come round to one. It starts about a thousand a second."""

_IDLE = 16
"""How many shims are kept for the next command. One has 1.1 MB of its own; to fork a new one takes as
long as a short command."""

_lock = threading.RLock()
_connections: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_idle: list[socket.socket] = []
_server: _Server | None = None
_user: tuple[int, int, list[int]] | None = None
"""Whose commands these run: a program that has dropped its privileges needs others."""


async def connect(files: Sequence[int]) -> socket.socket:
    """A connection to a shim, which has these files and awaits a request. Closing it ends the
    command.

    The first call starts the fork server, which takes about 2 ms.

    Args:
        files: The command's standard input, output and error. The caller closes its own.

    Raises:
        OSError: There are no more processes or file descriptors.
        ProviderUnavailable: The server does not start.
        DependencyMissing: There is no interpreter to start it with.
    """
    patience = time.monotonic() + _PATIENCE_S
    while True:
        try:
            with _lock:
                connection = _idle_shim() or _new_shim()
                try:
                    socket.send_fds(connection, [bytes([BEGIN])], files, _NO_SIGNAL)
                    return connection
                except BaseException:
                    connection.close()
                    raise
        except (BrokenPipeError, ConnectionResetError):
            pass  # somebody has killed it: take the next
        except OSError as error:
            if error.errno not in _BUSY or time.monotonic() > patience:
                raise
            await asyncio.sleep(0.005)


def release(connection: socket.socket) -> None:
    """Give a shim back that is free again."""
    with _lock:
        if len(_idle) < _IDLE:
            _idle.append(connection)
        else:
            connection.close()


def _idle_shim() -> socket.socket | None:
    global _user
    user = os.geteuid(), os.getegid(), os.getgroups()
    if user != _user:
        _close_everything()
        _user = user
    return _idle.pop() if _idle else None


def _new_shim() -> socket.socket:
    global _server
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        _connections.add(ours)
        try:
            if _server is not None:
                try:
                    _server.fork(theirs)
                    return ours
                except (BrokenPipeError, ConnectionResetError):  # somebody has killed it
                    _server.close()
                    _server = None
            _server = _Server()
            _server.fork(theirs)
            return ours
        except BaseException:
            ours.close()
            raise


class _Server:
    """A running fork server; one that has lost its connection ends by itself."""

    def __init__(self) -> None:
        if not sys.executable or getattr(sys, "frozen", False):
            raise DependencyMissing(
                "commands need a helper process, and sys.executable names no Python interpreter to run it",
                details={"sys.executable": sys.executable},
            )
        _take_statuses()
        self._connection, theirs = socket.socketpair()
        self._connection.setblocking(False)
        with theirs:
            try:
                self._pid = os.posix_spawn(
                    sys.executable,
                    [sys.executable, "-I", "-S", os.fspath(_PROGRAM)],
                    {name: os.environ[name] for name in _INHERITED if name in os.environ},
                    file_actions=[
                        (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_RDWR, 0),
                        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_RDWR, 0),
                    ],
                )
            except OSError as error:
                self._connection.close()
                raise ProviderUnavailable(
                    f"commands need a helper process, and {sys.executable} does not start: {error.strerror}"
                ) from error

    def fork(self, connection: socket.socket) -> None:
        """Have it fork a shim that listens to this."""
        socket.send_fds(self._connection, [b"+"], [connection.fileno()], _NO_SIGNAL)

    def close(self) -> None:
        """Let it end."""
        self._connection.close()
        _ended.append(self._pid)
        _take_statuses()

    def forget(self) -> None:
        """In a forked child: it is the parent's."""
        self._connection.close()


_ended: list[int] = []
"""Servers whose exit status has not been taken yet."""


def _take_statuses() -> None:
    for pid in tuple(_ended):
        try:
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                continue
        except ChildProcessError:
            pass  # somebody else has taken it
        _ended.remove(pid)


def _close_everything() -> None:
    global _server
    for connection in _idle:
        connection.close()
    _idle.clear()
    if _server is not None:
        _server.close()
        _server = None


def _forget_everything() -> None:
    """In a forked child: its copy of a connection would keep a command alive after the parent's death."""
    global _server
    for connection in tuple(_connections):
        connection.close()
    if _server is not None:
        _server.forget()
        _server = None
    _idle.clear()
    _ended.clear()
    _lock.release()


atexit.register(_close_everything)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_forget_everything
    )
