from __future__ import annotations

from typing import Any

import pytest

from asm_runtime.adapters.command import Command
from asm_runtime.errors import ValidationError


def of(asked: Any, **adapter_opts: Any) -> Command:
    return Command.of(asked, adapter_opts, timeout_ms=1_000)


@pytest.mark.parametrize(
    "asked",
    [
        "ls -l | cat",
        {"command": "ls -l | cat"},
        {"prompt": "ls -l | cat"},
        {"messages": [{"role": "system", "content": "no"}, {"role": "user", "content": "ls -l | cat"}]},
    ],
)
def test_a_text_is_for_the_shell(asked: Any) -> None:
    command = of(asked)
    assert (command.script, command.argv) == ("ls -l | cat", [])
    assert command.shown == {"command": "ls -l | cat"}


def test_the_texts_of_the_user_are_one_script() -> None:
    messages = [{"role": "user", "content": "cd /"}, {"role": "user", "content": "ls"}]
    assert of({"messages": messages}).script == "cd /\nls"


@pytest.mark.parametrize("asked", [{"command": ["ls", ""]}, {"command": "ls", "args": [""]}])
def test_a_program_and_its_arguments_are_not(asked: Any) -> None:
    command = of(asked)
    assert (command.script, command.argv) == (None, ["ls", ""])
    assert command.shown == {"command": "ls", "args": [""]}


def test_a_program_without_arguments_is_no_text() -> None:
    assert of({"command": "a b", "args": []}).argv == ["a b"]


def test_the_input_wins_over_the_adapter_options_and_they_over_the_adapter() -> None:
    assert of("x").timeout_ms == 1_000
    assert of("x", timeout_ms=2).timeout_ms == 2
    assert of("x", timeout_ms=None).timeout_ms is None
    assert of({"command": "x", "timeout_ms": 3}, timeout_ms=2).timeout_ms == 3
    assert of({"command": "x", "timeout_ms": None}, timeout_ms=2).timeout_ms is None
    assert of({"command": "x", "cwd": "/a"}, cwd="/b").cwd == "/a"
    assert of({"command": "x", "cwd": None}, cwd="/b").cwd == "/b"
    assert of("x", cwd="/b").cwd == "/b"
    assert of({"command": "x", "env": {"A": "1"}}, env={"A": "2", "B": "2"}).env == {"A": "1", "B": "2"}


def test_the_standard_input_may_hold_anything() -> None:
    assert of({"command": "x", "stdin": "a\0é"}).stdin == "a\0é"
    assert of({"command": "x", "stdin": None}).stdin == of("x").stdin == ""


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (None, "input"),
        (7, "input"),
        ([], "input"),
        ({}, "none of them"),
        ({"cmd": "ls"}, "input has no 'cmd'"),
        ({"command": "ls", "timeout": 5}, "input has no 'timeout'"),
        ({"command": "ls", "prompt": "ls"}, "command and prompt"),
        ({"command": None}, "none of them"),
        ("", "command"),
        (" \n", "command"),
        ("a\0b", "command"),
        ({"command": 5}, "command"),
        ({"command": []}, "command"),
        ({"command": [""]}, "command"),
        ({"command": ["ls", 5]}, r"command\[1\]"),
        ({"command": ["ls", "\0"]}, r"command\[1\]"),
        ({"command": ["ls"], "args": []}, "command"),
        ({"command": "ls", "args": "-l"}, "args"),
        ({"command": "ls", "args": [None]}, r"args\[0\]"),
        ({"prompt": "ls", "args": []}, "args"),
        ({"prompt": ["ls"]}, "prompt"),
        ({"messages": "ls"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["ls"]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "user", "content": ["ls"]}]}, "messages"),
        ({"messages": [{"role": "system", "content": "ls"}]}, "messages"),
        ({"command": "ls", "cwd": ""}, "cwd"),
        ({"command": "ls", "cwd": 5}, "cwd"),
        ({"command": "ls", "cwd": "a\0"}, "cwd"),
        ({"command": "ls", "timeout_ms": 0}, "timeout_ms"),
        ({"command": "ls", "timeout_ms": "5"}, "timeout_ms"),
        ({"command": "ls", "timeout_ms": 1.5}, "timeout_ms"),
        ({"command": "ls", "timeout_ms": True}, "timeout_ms"),
        ({"command": "ls", "stdin": 5}, "stdin"),
        ({"command": "ls", "env": "A=1"}, "env"),
        ({"command": "ls", "env": {"": "1"}}, "env"),
        ({"command": "ls", "env": {"A=": "1"}}, "env"),
        ({"command": "ls", "env": {"A\0": "1"}}, "env"),
        ({"command": "ls", "env": {"A": 1}}, "env.A"),
        ({"command": "ls", "env": {"A": "\0"}}, "env.A"),
        ({"command": "ls", "env": {"A": None}}, "env.A"),
    ],
)
def test_an_input_that_means_nothing_is_refused_by_name(asked: Any, named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        of(asked)


def test_an_error_does_not_show_what_a_variable_holds() -> None:
    with pytest.raises(ValidationError) as caught:
        of({"command": "ls", "env": {"TOKEN": "secret\0"}})
    assert "secret" not in str(caught.value.to_dict())
