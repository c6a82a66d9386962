"""The commands and their options. What they do is in the modules beside this one."""

from __future__ import annotations

import sys
from collections.abc import Coroutine, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.validators import Number

from asm_runtime.cli.exits import ExitCode, complain, exit_code_of, output_failed, run_to_exit
from asm_runtime.cli.moments import moment

__all__ = ["run"]

HELP = """\
Run AI-agent sessions and read their logs.

Every command works on one store: the one named with --store, or by $ASM_STORE, or a SQLite file of your \
own (`~/.local/state/asm-runtime/asm.db`).

An id of a session or a run may be cut short: its first or last few characters are enough.

Exit codes: 0 done; 1 the run failed, there is no such session or run, or the store refused the operation; \
2 wrong call; 3 the store cannot be used; 124 the run timed out; 130 cancelled; 141 the output was closed. \
`run` exits with the code of the command that it runs.
"""

app = App(
    name="asm-runtime",
    help=HELP,
    help_format="plaintext",
    version=lambda: version("asm-runtime"),
    result_action="return_value",
    help_formatter="default" if sys.stdout.isatty() else "plain",
)

RUNS = Group("Runs", sort_key=1)
SESSIONS = Group("Sessions", sort_key=2)
STORES = Group("Stores", sort_key=3)

Store = Annotated[
    str | None,
    Parameter(name=("--store", "-s"), help="URL of the store, or the path of its SQLite file."),
]
Json = Annotated[bool, Parameter(negative="", show_default=False, help="Print JSON, one record a line.")]
Quiet = Annotated[
    bool, Parameter(name=("--quiet", "-q"), negative="", show_default=False, help="Print the output only.")
]
Type = Annotated[
    tuple[str, ...],
    Parameter(name="--type", negative="", show_default=False, help="Only events of this type; repeatable."),
]
Status = Annotated[
    tuple[str, ...],
    Parameter(name="--status", negative="", show_default=False, help="Only with this status; repeatable."),
]
Limit = Annotated[int | None, Parameter(validator=Number(gte=1), help="Maximum number.")]
Last = Annotated[int | None, Parameter(validator=Number(gte=1), help="Only the last ones, newest first.")]
LastEvents = Annotated[int | None, Parameter(validator=Number(gte=1), help="Only the last ones.")]
Since = Annotated[
    datetime | None,
    Parameter(
        converter=moment,
        accepts_keys=False,
        n_tokens=1,
        help="Only what is newer than: 30s, 10m, 2h, 7d, or a time such as 2026-01-31T12:00.",
    ),
]
OfSession = Annotated[str | None, Parameter(help="The run's session, if several have a run of that id.")]
Flag = Parameter(negative="", show_default=False)
Yes = Annotated[bool, Parameter(negative="", show_default=False, help="Confirm that data is removed.")]
Count = Annotated[int, Parameter(validator=Number(gte=0))]


def run(arguments: Sequence[str]) -> int:
    """Run the command with these arguments; returns its exit code."""

    def parsed_and_run() -> int:
        try:
            outcome = app(arguments, exit_on_error=False, print_error=False)
            sys.stdout.flush()  # the help
        except CycloptsError as error:
            complain(f"{error} (asm-runtime --help)")
            return ExitCode.USAGE
        except OSError as error:
            raise output_failed(sys.stdout, error) from error
        return ExitCode.DONE if outcome is None else outcome

    return exit_code_of(parsed_and_run)


@app.command(name="run", group=RUNS)
def run_(
    *words: str,
    adapter: Literal["shell", "scripted"] = "shell",
    file: Annotated[str | None, Parameter(name=("--file", "-f"), allow_leading_hyphen=True)] = None,
    input_json: Annotated[bool, Flag] = False,
    session: str | None = None,
    timeout_ms: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    store: Store = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Execute one run and show its output as it comes.

    With the shell adapter several words are a command and its arguments; one word is a line for the
    shell. Write -- before a command that has options of its own. What is piped goes to the command:

        asm-runtime run -- ls -l

        ls | asm-runtime run 'wc -l'

    Ctrl-C cancels the run; its end is stored before the command returns.

    Args:
        words: The input; without it and without --file, standard input is read.
        adapter: What executes the run; scripted echoes its prompt.
        file: Read the input from this file; - is standard input.
        input_json: The input is JSON; the adapter gets it unchanged.
        session: Continue this session; without it a new one is made.
        timeout_ms: End the run as timed out after this many milliseconds.
    """

    def command() -> Coroutine[Any, Any, int]:
        from asm_runtime.cli.oneshot import OneShot, run_input

        return OneShot(
            store=store,
            adapter=adapter,
            input=run_input(adapter, words, file=file, is_json=input_json),
            session_id=session,
            timeout_ms=timeout_ms,
            json=json,
            quiet=quiet,
        ).execute()

    return run_to_exit(command)


@app.command(group=SESSIONS)
def sessions(
    *,
    status: Status = (),
    agent: Annotated[tuple[str, ...], Flag] = (),
    limit: Limit = None,
    last: Last = None,
    since: Since = None,
    store: Store = None,
    json: Json = False,
) -> int:
    """List sessions, oldest first.

    Args:
        agent: Only of this agent; repeatable.
    """
    from asm_runtime.cli import operations

    return run_to_exit(
        lambda: operations.list_sessions(
            store, status=status, agent=agent, limit=limit, last=last, since=since, json=json
        )
    )


@app.command(group=SESSIONS)
def runs(
    session: str,
    /,
    *,
    status: Status = (),
    limit: Limit = None,
    last: Last = None,
    since: Since = None,
    store: Store = None,
    json: Json = False,
) -> int:
    """List a session's runs in the order in which they were accepted.

    Args:
        session: Its id.
    """
    from asm_runtime.cli import operations

    return run_to_exit(
        lambda: operations.list_runs(
            store, session, status=status, limit=limit, last=last, since=since, json=json
        )
    )


@app.command(group=RUNS)
def show(run: str, /, *, session: OfSession = None, store: Store = None, json: Json = False) -> int:
    """Show a run: its status, its attempts, its input, and its output or error.

    Args:
        run: Its id.
    """
    from asm_runtime.cli import details

    return run_to_exit(lambda: details.show(store, run, session=session, json=json))


@app.command(group=RUNS)
def cancel(run: str, /, *, session: OfSession = None, store: Store = None, json: Json = False) -> int:
    """Cancel a run, in whichever process it is executed.

    Args:
        run: Its id.
    """
    from asm_runtime.cli import changes

    return run_to_exit(lambda: changes.cancel(store, run, session=session, json=json))


@app.command(group=RUNS)
def settle(
    session: str | None = None,
    /,
    *,
    requeue: Annotated[bool, Flag] = False,
    store: Store = None,
    json: Json = False,
) -> int:
    """Mark the runs of dead processes as failed, or queue them again.

    Args:
        session: Only those of this session.
        requeue: Queue them again, in their old places, instead.
    """
    from asm_runtime.cli import changes

    return run_to_exit(lambda: changes.settle(store, session, requeue=requeue, json=json))


@app.command(group=SESSIONS)
def pause(session: str, /, *, store: Store = None, json: Json = False) -> int:
    """Pause a session: running runs go on, none starts.

    Args:
        session: Its id.
    """
    return _change("pause", session, store, json)


@app.command(group=SESSIONS)
def resume(session: str, /, *, store: Store = None, json: Json = False) -> int:
    """Resume a paused session: its queue goes on.

    Args:
        session: Its id.
    """
    return _change("resume", session, store, json)


@app.command(group=SESSIONS)
def complete(session: str, /, *, store: Store = None, json: Json = False) -> int:
    """End a session that has no open runs.

    Args:
        session: Its id.
    """
    return _change("complete", session, store, json)


def _change(change: str, session: str, store: str | None, json: bool) -> int:
    from asm_runtime.cli import changes

    return run_to_exit(lambda: changes.change_session(store, change, session, json=json))


@app.command(group=SESSIONS)
def delete(session: str, /, *, yes: Yes = False, store: Store = None) -> int:
    """Delete a session with its runs and its log.

    Args:
        session: Its id.
    """
    from asm_runtime.cli import changes

    return run_to_exit(lambda: changes.delete(store, session, yes=yes))


@app.command(group=SESSIONS)
def events(
    session: str,
    /,
    *,
    after: Count = 0,
    limit: Limit = None,
    last: LastEvents = None,
    since: Since = None,
    type: Type = (),
    run: str | None = None,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), negative="", show_default=False)] = False,
    store: Store = None,
    json: Json = False,
) -> int:
    """Print a session's log, to its end or, with --follow, until interrupted.

    Args:
        session: Its id.
        after: Start after this number: the last one already seen.
        run: Only of this run.
        follow: Go on with what any process appends, until interrupted.
    """
    from asm_runtime.cli import operations

    return run_to_exit(
        lambda: operations.show_events(
            store,
            session,
            after=after,
            limit=limit,
            last=last,
            since=since,
            type=type,
            run=run,
            follow=follow,
            json=json,
        )
    )


@app.command(group=SESSIONS)
def tail(
    session: str,
    /,
    *,
    lines: Annotated[Count, Parameter(name=("--lines", "-n"))] = 10,
    type: Type = (),
    run: str | None = None,
    store: Store = None,
    json: Json = False,
) -> int:
    """Print the last events of a log and then what any process appends, until interrupted.

    Args:
        session: Its id.
        lines: How many of the last events to print first.
        run: Only of this run; stop when it has ended.
    """
    from asm_runtime.cli import operations

    return run_to_exit(lambda: operations.tail(store, session, lines=lines, type=type, run=run, json=json))


@app.command(group=SESSIONS)
def export(session: str, /, *, store: Store = None) -> int:
    """Print all of a session as JSON, one record a line: {"session": …}, {"run": …}, {"event": …}.

    Args:
        session: Its id.
    """
    from asm_runtime.cli import operations

    return run_to_exit(lambda: operations.export(store, session))


@app.command(group=STORES)
def migrate(
    url: str | None = None,
    /,
    *,
    to: str = "head",
    down: Annotated[bool, Flag] = False,
    yes: Yes = False,
    store: Store = None,
) -> int:
    """Bring a database's tables to this release's schema.

    Args:
        url: The database, like --store.
        to: The revision to go to.
        down: Go back to that revision, which removes data.
    """
    from asm_runtime.cli import migration

    return run_to_exit(lambda: migration.migrate(url, store, to, down=down, yes=yes))


@app.command(group=STORES)
def demo(*, file: str | None = None) -> int:
    """Watch sessions run real commands, lose their process to kill -9, and carry on: ten seconds.

    Args:
        file: Make the store in this new SQLite file; without it in a temporary folder, which is kept.
    """

    def command() -> Coroutine[Any, Any, int]:
        from asm_runtime.cli.demo import director

        return director.demo(file)

    return run_to_exit(command)


@app.command
def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a shell script that completes the commands and their options.

        asm-runtime completion bash > ~/.local/share/bash-completion/completions/asm-runtime

    Args:
        shell: The shell that the script is for.
    """
    print(app.generate_completion(shell=shell))
