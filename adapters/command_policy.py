"""Which commands may run: allow and deny lists, checked on the file that will be executed.

A guard rail against mistakes, not a sandbox: an allowed program can do whatever it likes.

A list decides about files and not about words: `./git` that is a link to `rm` is not `git`, and a link
to `rm` is `rm`, whatever it is called. What is executed is not what the command's text leads to by then,
but what was checked: the program of the list, or the file that the links led to, if it is still that
file when it is executed.

A shell can be talked into anything, so under a list no shell sees a text that came from outside. Only
plain commands are understood, words and quoted words joined by `|`, `&&`, `||`, `;` or a line break;
each command's program is checked, and the shell, if one is needed at all, is given a new text, with
every word quoted and every program as an absolute path in a directory of `PATH` or of the list.
Everything else is refused.

What remains: who can write in those directories can replace the programs there, and who can write where
a program lies that is called by its path has the moment between the last look and the execution.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence

import msgspec

from asm_runtime import options
from asm_runtime.errors import PolicyViolation, ProviderError

__all__ = ["CommandPolicy", "Launch", "resolved"]

_TOKEN = re.compile(
    r"""
    [ \t]* (?:
        (?P<operator> && | \|\| | [|;\n] )
      | (?P<word> (?: [\w@%+=:,./^-] | '[^']*' | "[^"$`\\]*" )+ )
    ) [ \t]*
    """,
    re.VERBOSE,
)
_QUOTED = re.compile(r"""'([^']*)'|"([^"]*)\"""")

_LAUNCHER = re.compile(
    r"""
    a?sh | r?bash[\d.]* | dash | m?ksh(93)? | yash | zsh[\d.]* | fish | t?csh | elvish | nu | pwsh
    | env | nice | ionice | nohup | timeout | time | stdbuf | unbuffer | rlwrap | chrt | taskset | numactl
    | setsid | setpriv | capsh | prlimit | choom | uclampset | cpulimit | setarch | linux(32|64) | i[3-6]86
    | x86_64 | aarch64 | uname26
    | sudo | su | doas | pkexec | runuser | run0 | sg | newgrp | runcon | chpst | setuidgid | gosu | su-exec
    | chroot | unshare | nsenter | bwrap | firejail | proot | fakechroot | fakeroot | faketime | eatmydata
    | cgexec | systemd-run | start-stop-daemon | daemonize | dbus-run-session | dbus-launch | xvfb-run
    | at | batch | run-parts | logsave | script | expect | tmux | screen | entr | watch | watchexec
    | xargs | parallel | find | flock | command | strace | ltrace | gdb | perf | valgrind | catchsegv
    | ssh | socat | ncat | torsocks | torify | proxychains\d? | qemu-\w+(-static)?
    | busybox | toybox | coreutils | ld\.so | ld-.*\.so.*
    """,
    re.VERBOSE,
)
"""Shells, and programs whose business it is to run another one."""

_MULTI_CALL = frozenset(("busybox", "toybox", "coreutils"))
"""Files that are many programs: which one is decided by the name of the link that is called."""

_MAX_LINKS = 40
"""As many symbolic links as Linux follows.

Source: path_resolution(7)."""


class Launch(msgspec.Struct, frozen=True):
    """What is to be executed: this file with these arguments, the program's name the first of them."""

    executable: str
    argv: list[str]
    identity: tuple[int, int] | None = None
    """Device and inode of the file that was checked; None: any."""


class CommandPolicy:
    """Lets commands through or not. It looks at files, so it blocks: call it on a thread.

    Args:
        allowed: Names or absolute paths of the only programs that may run; None: all. A name stands for
            the file that it finds in `PATH`, called by this name.
        denied: Names or absolute paths of programs that may not run, under any name; None: none. Shells,
            and programs whose business it is to run another one, are denied with them. Denied wins.
        shell: What runs several commands joined by operators.

    Raises:
        ValidationError: An entry can match nothing: a command with arguments, a pattern, a relative path.
    """

    def __init__(
        self, allowed: Sequence[str] | None, denied: Sequence[str] | None, *, shell: str = "/bin/sh"
    ) -> None:
        self._allowed = (
            None if allowed is None else tuple(_entry("allowed_commands", each) for each in allowed)
        )
        self._denied = None if denied is None else tuple(_entry("denied_commands", each) for each in denied)
        self._shell = shell

    @property
    def restricts(self) -> bool:
        """Whether there is any list."""
        return self._allowed is not None or self._denied is not None

    def of_argv(self, argv: Sequence[str], *, path: str, cwd: str) -> Launch:
        """The launch of a program with arguments.

        Args:
            argv: The program and its arguments.
            path: The `PATH` that the process will have; only its absolute directories count.
            cwd: Its working directory.

        Raises:
            PolicyViolation: A list forbids it.
            ProviderError: There is no such program.
        """
        file, looked_at = self._checked(argv[0], path=path, cwd=cwd)
        return Launch(file, list(argv), (looked_at.st_dev, looked_at.st_ino))

    def of_script(self, script: str, *, path: str, cwd: str) -> Launch:
        """The launch of a shell command; a single plain command needs no shell.

        Raises:
            PolicyViolation: A list forbids one of its programs, or it is more than plain commands.
            ProviderError: There is no such program.
        """
        commands = _parsed(script)
        if len(commands) == 1:
            return self.of_argv(commands[0][1], path=path, cwd=cwd)
        given: list[str] = []
        for joint, argv in commands:
            file, _ = self._checked(argv[0], path=path, cwd=cwd)
            if self._allowed is None and "/" in argv[0] and not _is_on_path(argv[0], path):
                # By the time the shell comes to it, an earlier command may have put another file there;
                # and where a link led to is not always what the link is: `.venv/bin/python` is not.
                raise self._violation(
                    argv[0], file, f"{argv[0]} is on no directory of PATH: run it as a command of its own"
                )
            given.append(f"{joint} {shlex.join([file, *argv[1:]])}")
        return Launch(self._shell, [self._shell, "-c", " ".join(given).strip()])

    def _checked(self, program: str, *, path: str, cwd: str) -> tuple[str, os.stat_result]:
        """The file to execute, by a path that does not depend on links which a command can make; and what
        it was when it was checked. It is looked at once: who swings a link meanwhile wins nothing.
        """
        name = os.path.basename(program)
        found = resolved(program, path=path, cwd=cwd)
        file = None if found is None else _stat(found)
        if self._denied is not None:
            why = self._why_denied(name, found, file, path)
            if why is not None:
                raise self._violation(program, found, f"{program} is denied: {why}")
        if self._allowed is not None:
            for entry in self._allowed:
                meant = resolved(entry, path=path, cwd="/")
                if file and meant and name == os.path.basename(entry) and _is(file, meant):
                    return meant, file
            raise self._violation(program, found, f"{program} is none of the allowed commands")
        if found is None or file is None:
            raise ProviderError(
                f"command not found: {program} (a shell's own commands are no programs)",
                details={"command": program},
            )
        return (found if "/" not in program or _is_on_path(found, path) else os.path.realpath(found)), file

    def _why_denied(self, name: str, found: str | None, file: os.stat_result | None, path: str) -> str | None:
        assert self._denied is not None
        names = {name}
        if found is not None and not _is_multi_call(found):
            names.update(os.path.basename(link) for link in _links(found))
        else:
            file = None
        for entry in self._denied:
            meant = resolved(entry, path=path, cwd="/")
            if entry in names or (file is not None and meant is not None and _is(file, meant)):
                return f"{entry} is in denied_commands"
        if any(_LAUNCHER.fullmatch(each) for each in names):
            return "it can run commands that are"
        return None

    def _violation(self, program: str, found: str | None, why: str) -> PolicyViolation:
        lists = {
            name: list(entries)
            for name, entries in (("allowed_commands", self._allowed), ("denied_commands", self._denied))
            if entries is not None
        }
        return PolicyViolation(why, details={"command": program, "executable": found, **lists})


def resolved(program: str, *, path: str, cwd: str) -> str | None:
    """The absolute path of the file that a program's name stands for; None if there is none."""
    if "/" in program:
        candidates = [os.path.join(cwd, program)]
    else:
        candidates = [os.path.join(folder, program) for folder in path.split(":") if os.path.isabs(folder)]
    for candidate in candidates:
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return None


def _entry(option: str, entry: str) -> str:
    """An entry of a list that can match something."""
    is_path = os.path.isabs(entry) and not entry.endswith("/")
    is_name = "/" not in entry and not re.search(r"[\s*?]|^~|^\.{1,2}$", entry)
    if not (is_path or is_name):
        raise options.refused(
            option, entry, "names of programs, without arguments or patterns, or absolute paths"
        )
    return entry


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _is(file: os.stat_result, path: str) -> bool:
    """Whether the path leads to that file, by whatever links."""
    other = _stat(path)
    return other is not None and os.path.samestat(file, other)


def _is_on_path(file: str, path: str) -> bool:
    """Whether it lies in one of the absolute directories of `PATH`."""
    return os.path.dirname(file) in [
        os.path.normpath(folder) for folder in path.split(":") if os.path.isabs(folder)
    ]


def _is_multi_call(file: str) -> bool:
    return os.path.basename(os.path.realpath(file)) in _MULTI_CALL


def _links(file: str) -> Iterator[str]:
    """The file, and what it leads to link by link."""
    for _ in range(_MAX_LINKS):
        yield file
        try:
            file = os.path.join(os.path.dirname(file), os.readlink(file))
        except OSError:
            return


def _parsed(script: str) -> list[tuple[str, list[str]]]:
    """The plain commands, each with the operator in front of it."""
    commands: list[tuple[str, list[str]]] = [("", [])]
    place = 0
    text = script.strip(" \t\n")
    while place < len(text):
        token = _TOKEN.match(text, place)
        if token is None:
            raise _too_much(script, text[place:])
        place = token.end()
        operator, word = token["operator"], token["word"]
        if word is not None:
            commands[-1][1].append(_unquoted(word, first=not commands[-1][1], script=script))
        elif commands[-1][1]:
            commands.append((";" if operator == "\n" else operator, []))
        elif operator != "\n":  # an empty line is no command
            raise _too_much(script, text[token.start() :])
    if len(commands) > 1 and not commands[-1][1] and commands[-1][0] == ";":
        commands.pop()
    if not commands[-1][1]:
        raise _too_much(script, "")
    return commands


def _unquoted(word: str, *, first: bool, script: str) -> str:
    if first and "=" in word:  # a shell would take it for an assignment
        raise _too_much(script, word)
    return _QUOTED.sub(lambda quoted: quoted[1] or quoted[2] or "", word)


def _too_much(script: str, rest: str) -> PolicyViolation:
    return PolicyViolation(
        "where commands are allowed or denied by name, a command is plain words joined by |, &&, ||, ; "
        f"or a line break; this one is more: {rest[:60]!r}",
        details={"command": script, "at": rest[:60]},
    )
