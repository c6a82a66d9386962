from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from asm_runtime.adapters.command_policy import CommandPolicy, Launch, resolved
from asm_runtime.errors import PolicyViolation, ProviderError, ValidationError


class Programs:
    """A directory of programs, all that is on `PATH`, and an empty one beside it to work in."""

    def __init__(self, root: Path) -> None:
        self.path = root / "bin"
        self.cwd = root / "cwd"
        for folder in (self.path, self.cwd):
            folder.mkdir()
        for name in ("echo", "cat", "rm", "sh", "env", "busybox"):
            self.add(self.path / name)
        self.add(self.path / "ls", link="busybox")

    def add(self, file: Path, *, link: str | Path | None = None) -> None:
        if link is not None:
            file.symlink_to(link)
        else:
            file.write_text(file.name)
            file.chmod(0o755)

    def file(self, name: str) -> str:
        return str(self.path / name)

    def launch(self, name: str, *arguments: str) -> Launch:
        file = os.stat(self.file(name))
        return Launch(self.file(name), [name, *arguments], (file.st_dev, file.st_ino))

    def argv(self, policy: CommandPolicy, *argv: str) -> Launch:
        return policy.of_argv(argv, path=str(self.path), cwd=str(self.cwd))

    def script(self, policy: CommandPolicy, script: str) -> Launch:
        return policy.of_script(script, path=str(self.path), cwd=str(self.cwd))


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


ONLY_ECHO_AND_CAT = CommandPolicy(["echo", "cat"], None)
NOT_RM = CommandPolicy(None, ["rm"])


# -- allowed


def test_an_allowed_program_is_launched_by_its_absolute_path(programs: Programs) -> None:
    assert programs.argv(ONLY_ECHO_AND_CAT, "echo", "$(rm)") == programs.launch("echo", "$(rm)")


def test_any_other_program_is_refused(programs: Programs) -> None:
    with pytest.raises(PolicyViolation) as caught:
        programs.argv(ONLY_ECHO_AND_CAT, "rm", "-r", "/")
    assert caught.value.details == {
        "command": "rm",
        "executable": programs.file("rm"),
        "allowed_commands": ["echo", "cat"],
    }


def test_a_program_that_is_not_there_is_refused(programs: Programs) -> None:
    with pytest.raises(PolicyViolation):
        programs.argv(ONLY_ECHO_AND_CAT, "nothing")


def test_a_link_that_bears_an_allowed_name_is_refused(programs: Programs) -> None:
    programs.add(programs.cwd / "echo", link=programs.file("rm"))
    with pytest.raises(PolicyViolation):
        programs.argv(ONLY_ECHO_AND_CAT, "./echo")


def test_a_file_that_bears_an_allowed_name_is_refused(programs: Programs) -> None:
    programs.add(programs.cwd / "echo")
    with pytest.raises(PolicyViolation):
        programs.argv(ONLY_ECHO_AND_CAT, "./echo")


def test_an_allowed_program_by_its_path_is_that_program(programs: Programs) -> None:
    assert programs.argv(ONLY_ECHO_AND_CAT, programs.file("echo")).executable == programs.file("echo")


def test_an_allowed_path_allows_that_file_only(programs: Programs) -> None:
    tool = programs.cwd / "tool"
    programs.add(tool)
    policy = CommandPolicy([str(tool)], None)
    assert programs.argv(policy, "./tool").executable == str(tool)
    with pytest.raises(PolicyViolation):
        programs.argv(policy, "tool")


def test_of_a_file_that_is_many_programs_only_the_allowed_one_is(programs: Programs) -> None:
    policy = CommandPolicy(["ls"], None)
    assert programs.argv(policy, "ls").argv == ["ls"]
    programs.add(programs.path / "wget", link="busybox")
    for argv in (["wget"], ["busybox", "wget"]):
        with pytest.raises(PolicyViolation):
            programs.argv(policy, *argv)


def test_relative_directories_on_the_path_do_not_count(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.add(programs.cwd / "tool")
    monkeypatch.chdir(programs.cwd)
    for path in (".", "", f":{programs.path}"):
        with pytest.raises(ProviderError, match="not found"):
            NOT_RM.of_argv(["tool"], path=path, cwd=str(programs.cwd))


def test_an_empty_list_allows_nothing(programs: Programs) -> None:
    with pytest.raises(PolicyViolation):
        programs.argv(CommandPolicy([], None), "echo")


# -- what was checked is what runs


@pytest.mark.parametrize("policy", [ONLY_ECHO_AND_CAT, NOT_RM])
@pytest.mark.parametrize("script", ["./echo a", "./echo a; cat"])
def test_a_link_that_is_swung_after_the_check_is_not_followed(
    programs: Programs, policy: CommandPolicy, script: str
) -> None:
    link = programs.cwd / "echo"
    programs.add(link, link=programs.file("echo"))
    if policy is NOT_RM and ";" in script:
        with pytest.raises(PolicyViolation, match="a command of its own"):
            programs.script(policy, script)
        return  # it cannot be made sure
    launch = programs.script(policy, script)
    link.unlink()
    link.symlink_to(programs.file("rm"))
    assert programs.file("echo") in (launch.executable, *launch.argv[-1].split())
    assert str(link) not in (launch.executable, *launch.argv[-1].split())


def test_a_file_that_is_put_in_the_place_of_another_is_known(programs: Programs) -> None:
    tool = programs.cwd / "tool"
    programs.add(tool)
    launch = programs.argv(NOT_RM, "./tool")
    os.replace(programs.file("rm"), tool)
    now = tool.stat()
    assert launch.executable == str(tool)
    assert launch.identity not in (None, (now.st_dev, now.st_ino))


@pytest.mark.parametrize("of", ["allowed", "denied"])
@pytest.mark.parametrize(
    "entry",
    [
        "./tool",
        "bin/tool",
        "../tool",
        "rm -rf",
        "git push",
        " id",
        "id ",
        "id\n",
        "~/bin/x",
        "~x",
        "id*",
        "r?",
        ".",
        "..",
        "/bin/",
    ],
)
def test_an_entry_that_can_match_nothing_is_refused(of: str, entry: str) -> None:
    with pytest.raises(ValidationError, match=f"{of}_commands"):
        CommandPolicy(["echo", entry], None) if of == "allowed" else CommandPolicy(None, [entry])


@pytest.mark.parametrize("entry", ["id", "python3.11", "g++", "[", "a_b", "/opt/My App/bin/tool", "/bin/id"])
def test_names_and_absolute_paths_are_entries(entry: str) -> None:
    assert CommandPolicy([entry], [entry]).restricts


# -- denied


def test_what_is_not_denied_may_run(programs: Programs) -> None:
    assert programs.argv(NOT_RM, "echo", "rm").argv == ["echo", "rm"]


@pytest.mark.parametrize("program", ["rm", "{bin}/rm", "{bin}/../bin/rm"])
def test_a_denied_program_is_refused_however_it_is_called(programs: Programs, program: str) -> None:
    with pytest.raises(PolicyViolation, match="rm is in denied_commands"):
        programs.argv(NOT_RM, program.format(bin=programs.path))


def test_a_denied_program_is_refused_behind_links(programs: Programs) -> None:
    programs.add(programs.cwd / "one", link=programs.file("rm"))
    programs.add(programs.cwd / "two", link="one")
    with pytest.raises(PolicyViolation):
        programs.argv(NOT_RM, "./two")


def test_a_denied_program_is_refused_behind_a_hard_link(programs: Programs) -> None:
    os.link(programs.file("rm"), programs.cwd / "tidy")
    with pytest.raises(PolicyViolation):
        programs.argv(NOT_RM, "./tidy")


def test_a_denied_path_denies_that_file(programs: Programs) -> None:
    policy = CommandPolicy(None, [programs.file("rm")])
    with pytest.raises(PolicyViolation):
        programs.argv(policy, "rm")


def test_links_that_go_in_circles_are_refused_as_not_there(programs: Programs) -> None:
    programs.add(programs.cwd / "a", link="b")
    programs.add(programs.cwd / "b", link="a")
    with pytest.raises(ProviderError, match="not found"):
        programs.argv(NOT_RM, "./a")


@pytest.mark.parametrize(
    "launcher",
    [
        "bash5",
        "rbash",
        "ksh93",
        "nu",
        "setarch",
        "linux64",
        "x86_64",
        "prlimit",
        "choom",
        "run-parts",
        "logsave",
        "sg",
        "newgrp",
        "runcon",
        "uclampset",
        "timeout",
        "dbus-run-session",
        "numactl",
        "ltrace",
        "perf",
        "gdb",
        "tmux",
        "screen",
        "expect",
        "socat",
        "fakeroot",
        "faketime",
        "eatmydata",
        "unbuffer",
        "xvfb-run",
        "capsh",
        "bwrap",
        "firejail",
        "proot",
        "at",
        "batch",
        "valgrind",
        "qemu-x86_64-static",
        "ld-linux-x86-64.so.2",
        "nice",
        "nohup",
        "xargs",
        "sudo",
    ],
)
def test_launchers_are_denied_by_their_names(programs: Programs, launcher: str) -> None:
    programs.add(programs.path / launcher)
    with pytest.raises(PolicyViolation, match="it can run commands that are"):
        programs.argv(NOT_RM, launcher, "rm")


@pytest.mark.parametrize("launcher", ["sh", "env", "busybox"])
def test_what_runs_other_programs_is_denied_with_them(programs: Programs, launcher: str) -> None:
    with pytest.raises(PolicyViolation, match="it can run commands that are"):
        programs.argv(NOT_RM, launcher, "rm")
    programs.add(programs.cwd / "innocent", link=programs.file("env"))
    with pytest.raises(PolicyViolation):
        programs.argv(NOT_RM, "./innocent", "rm")


def test_one_program_of_a_file_that_is_many_may_run_if_it_is_not_the_denied_one(programs: Programs) -> None:
    (programs.path / "rm").unlink()
    programs.add(programs.path / "rm", link="busybox")
    assert programs.argv(NOT_RM, "ls").executable == programs.file("ls")
    with pytest.raises(PolicyViolation):
        programs.argv(NOT_RM, "rm")


def test_denied_wins_over_allowed(programs: Programs) -> None:
    with pytest.raises(PolicyViolation, match="denied"):
        programs.argv(CommandPolicy(["rm"], ["rm"]), "rm")


def test_a_program_that_is_not_there_is_just_not_found_where_nothing_else_is_forbidden(
    programs: Programs,
) -> None:
    with pytest.raises(ProviderError, match="command not found: cd"):
        programs.argv(NOT_RM, "cd", "/")


# -- texts for the shell


def test_a_plain_command_needs_no_shell(programs: Programs) -> None:
    launch = programs.script(ONLY_ECHO_AND_CAT, """ echo one 'two  $three' "four five"six '' """)
    assert launch == programs.launch("echo", "one", "two  $three", "four fivesix", "")


@pytest.mark.parametrize(
    ("script", "given"),
    [
        ("echo a | cat", "{bin}/echo a | {bin}/cat"),
        ("echo a&&cat||echo b", "{bin}/echo a && {bin}/cat || {bin}/echo b"),
        ("echo 'a;b'; cat", "{bin}/echo 'a;b' ; {bin}/cat"),
        ("\necho a\n\n cat |\n cat\n", "{bin}/echo a ; {bin}/cat | {bin}/cat"),
        ("echo a;\ncat", "{bin}/echo a ; {bin}/cat"),
        ("echo if x=y; cat", "{bin}/echo if x=y ; {bin}/cat"),
        ("ec'h'o a; cat", "{bin}/echo a ; {bin}/cat"),
    ],
)
def test_commands_joined_by_operators_are_given_to_the_shell_anew(
    programs: Programs, script: str, given: str
) -> None:
    expected = given.format(bin=programs.path)
    assert programs.script(ONLY_ECHO_AND_CAT, script) == Launch("/bin/sh", ["/bin/sh", "-c", expected])


def test_a_text_of_one_command_and_its_end_needs_no_shell(programs: Programs) -> None:
    assert programs.script(ONLY_ECHO_AND_CAT, "echo a;\n").argv == ["echo", "a"]


@pytest.mark.parametrize(
    "script",
    [
        "echo hi; rm -r /",
        "echo hi && rm",
        "echo hi || rm",
        "echo hi | rm",
        "echo hi\nrm",
        "'rm'",
        '"rm"',
        "r'm'",
    ],
)
@pytest.mark.parametrize("policy", [ONLY_ECHO_AND_CAT, NOT_RM])
def test_every_program_of_a_text_is_checked(programs: Programs, policy: CommandPolicy, script: str) -> None:
    with pytest.raises(PolicyViolation):
        programs.script(policy, script)


@pytest.mark.parametrize(
    "script",
    [
        "echo $(rm)",
        "echo `rm`",
        'echo "$(rm)"',
        'echo "`rm`"',
        "echo $HOME",
        "$X",
        "${X}",
        "echo a & rm",
        "echo a &",
        "echo a > /etc/passwd",
        "echo a >| x",
        "cat < x",
        "cat <<EOF\nEOF",
        "cat <(rm)",
        "(rm)",
        "{ rm; }",
        "echo(){ rm; }; echo",
        "! echo",
        "X=1 echo",
        "X=1",
        "PATH=. echo",
        "echo *",
        "echo ?",
        "echo [a]",
        "echo ~",
        "echo {a,b}",
        "echo a # b",
        "echo a \\; rm",
        "r\\m",
        'echo "a\\"; rm"',
        "echo 'a",
        'echo "a',
        "echo a;; cat",
        "echo a |",
        "| echo a",
        "&& echo",
        "echo a || | cat",
        "echo a\r\nrm",
        "echo a\x0brm",
        "",
        " \n ",
        ";",
    ],
)
@pytest.mark.parametrize("policy", [ONLY_ECHO_AND_CAT, NOT_RM])
def test_more_than_plain_commands_is_refused(programs: Programs, policy: CommandPolicy, script: str) -> None:
    with pytest.raises(PolicyViolation):
        programs.script(policy, script)


@pytest.mark.parametrize(
    "word", ["eval", "exec", ".", "source", "command", "if", "time", "alias", "builtin", "''"]
)
def test_the_shells_own_commands_are_no_programs(programs: Programs, word: str) -> None:
    with pytest.raises(PolicyViolation):
        programs.script(ONLY_ECHO_AND_CAT, f"{word} echo a; echo b")


def test_a_word_does_not_become_more_than_one_on_its_way_through_the_shell(tmp_path: Path) -> None:
    hostile = [
        "$(touch x)",
        "`touch x`",
        "a b",
        "*",
        "~",
        "'",
        '"',
        "-n",
        "a=b",
        "#",
        "!",
        "\\",
        "é",
        "{a,b}",
    ]
    words = [f"'{word}'" if "'" not in word else f'"{word}"' for word in hostile]
    policy = CommandPolicy(["printf", "cat"], None)
    path = os.environ["PATH"]
    launch = policy.of_script(f"printf '%s\\n' {' '.join(words)} | cat", path=path, cwd=str(tmp_path))
    assert launch.executable == "/bin/sh"
    printed = subprocess.run(launch.argv, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == hostile
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_executed_is_passed_over(tmp_path: Path) -> None:
    for folder, mode in (("first", 0o644), ("second", 0o755)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tool").touch(mode)
    path = f"{tmp_path}/first:{tmp_path}/second"
    assert resolved("tool", path=path, cwd="/") == f"{tmp_path}/second/tool"


def test_a_directory_of_path_may_end_with_a_slash(programs: Programs) -> None:
    policy = CommandPolicy(None, ["rm"])
    launch = policy.of_script(
        f"{programs.path}/cat a; cat b", path=f"{programs.path}/", cwd=str(programs.cwd)
    )
    assert launch.argv[-1].count(f"{programs.path}/cat") == 2
