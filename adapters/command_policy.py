"""Which commands may run: allow and deny lists, checked on the file that will be executed.

A list decides about files and not about words: `./git` that is a link to `rm` is not `git`, and a link
to `rm` is `rm`, whatever it is called. What was checked is what is executed, by its absolute path.

A shell can be talked into anything, so under a list no shell sees a text that came from outside. Only
plain commands are understood, words and quoted words joined by `|`, `&&`, `||`, `;` or a line break;
each command's program is checked, and the shell, if one is needed at all, is given the text anew, with
every word quoted and every program as an absolute path. Everything else is refused.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence

import msgspec

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
    a?sh | bash | rbash | dash | m?ksh | zsh | fish | t?csh
    | env | nice | ionice | nohup | timeout | time | stdbuf | chrt | taskset | setpriv | setsid
    | sudo | su | doas | pkexec | runuser | chroot | unshare | nsenter
    | xargs | parallel | find | watch | flock | script | strace | command
    | ssh | systemd-run | start-stop-daemon | busybox | toybox | coreutils | ld\.so | ld-.*\.so.*
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


class CommandPolicy:
    """Lets commands through or not. It looks at files, so it blocks: call it on a thread.

    Args:
        allowed: Names or paths of the only programs that may run; None: all. A name stands for the file
            that it finds in `PATH`, called by this name.
        denied: Names or paths of programs that may not run, under any name; None: none. Shells, and
            programs whose business it is to run another one, are denied with them. Denied wins.
        shell: What runs several commands joined by operators.
    """

    def __init__(
        self, allowed: Sequence[str] | None, denied: Sequence[str] | None, *, shell: str = "/bin/sh"
    ) -> None:
        self._allowed = None if allowed is None else tuple(allowed)
        self._denied = None if denied is None else tuple(denied)
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
        return Launch(self._checked(argv[0], path=path, cwd=cwd), list(argv))

    def of_script(self, script: str, *, path: str, cwd: str) -> Launch:
        """The launch of a shell command; a single plain command needs no shell.

        Raises:
            PolicyViolation: A list forbids one of its programs, or it is more than plain commands.
            ProviderError: There is no such program.
        """
        commands = _parsed(script)
        launches = [(joint, self.of_argv(argv, path=path, cwd=cwd)) for joint, argv in commands]
        if len(launches) == 1:
            return launches[0][1]
        quoted = " ".join(
            f"{joint} {shlex.join([launch.executable, *launch.argv[1:]])}" for joint, launch in launches
        )
        return Launch(self._shell, [self._shell, "-c", quoted.strip()])

    def _checked(self, program: str, *, path: str, cwd: str) -> str:
        name = os.path.basename(program)
        found = resolved(program, path=path, cwd=cwd)
        if self._denied is not None:
            why = self._why_denied(name, found, path)
            if why is not None:
                raise self._violation(program, found, f"{program} is denied: {why}")
        if self._allowed is not None and not any(
            found is not None and name == os.path.basename(entry) and _is_same(found, entry, path)
            for entry in self._allowed
        ):
            raise self._violation(program, found, f"{program} is none of the allowed commands")
        if found is None:
            raise ProviderError(
                f"command not found: {program} (a shell's own commands are no programs)",
                details={"command": program},
            )
        return found

    def _why_denied(self, name: str, found: str | None, path: str) -> str | None:
        assert self._denied is not None
        names = {name}
        file = None if found is None or _is_multi_call(found) else found
        if file is not None:
            names.update(os.path.basename(link) for link in _links(file))
        for entry in self._denied:
            if entry in names or (file is not None and _is_same(file, entry, path)):
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


def _is_same(found: str, entry: str, path: str) -> bool:
    """Whether the file is the one that a list's entry stands for, by whatever link."""
    meant = resolved(entry, path=path, cwd="/")
    try:
        return meant is not None and os.path.samefile(found, meant)
    except OSError:
        return False


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
