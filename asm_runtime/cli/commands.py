"""The commands and their options; what they do stands in the modules beside this one."""

from __future__ import annotations

import sys
from collections.abc import Coroutine, Sequence
from importlib.metadata import version
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

from asm_runtime.cli.exits import ExitCode, complain, exit_code_of, output_failed, run_to_exit

__all__ = ["run"]

HELP = """\
Run AI-agent sessions and read their logs.

Every command works on one store: that of --store, else of $ASM_STORE, else a SQLite file of your
own (`~/.local/state/asm-runtime/asm.db`).

Exit codes: 0 done; 1 the run failed, or the store refused the operation; 2 wrong call; 3 the store cannot
be used; 4 no such session or run; 124 the run timed out; 130 cancelled; 141 the output was closed.
"""

app = App(
    name="asm-runtime",
    help=HELP,
    help_format="plaintext",
    version=lambda: version("asm-runtime"),
    result_action="return_value",
    help_formatter="default" if sys.stdout.isatty() else "plain",
)

Store = Annotated[
    str | None,
    Parameter(name=("--store", "-s"), help="URL of the store, or the path of its SQLite file."),
]
Json = Annotated[bool, Parameter(negative="", help="Print JSON, one record a line.")]
Quiet = Annotated[bool, Parameter(name=("--quiet", "-q"), negative="", help="Print the output only.")]
Type = Annotated[
    tuple[str, ...], Parameter(name="--type", negative="", help="Only events of this type; repeatable.")
]
Status = Annotated[
    tuple[str, ...], Parameter(name="--status", negative="", help="Only of this status; repeatable.")
]
Limit = Annotated[int | None, Parameter(validator=Number(gte=1), help="At most so many.")]
Count = Annotated[int, Parameter(validator=Number(gte=0))]


def run(arguments: Sequence[str]) -> int:
    """Run the command with these arguments; returns its exit code."""

    def parsed_and_run() -> ExitCode:
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


@app.command(name="run")
def run_(
    *words: str,
    adapter: Literal["shell", "scripted"] = "shell",
    file: Annotated[str | None, Parameter(name=("--file", "-f"), allow_leading_hyphen=True)] = None,
    input_json: Annotated[bool, Parameter(negative="")] = False,
    session: str | None = None,
    timeout_ms: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    store: Store = None,
    json: Json = False,
    quiet: Quiet = False,
) -> ExitCode:
    """Execute one run and show what it says while it runs.

    With the shell adapter several words are a command and its arguments, one word is a line for the
    shell. Write -- before a command that has options of its own:

        asm-runtime run -- ls -l

        asm-runtime run 'ls | wc -l'

    Ctrl-C cancels the run; its end is stored before the command returns.

    Args:
        words: The input; without it and without --file, standard input is read.
        adapter: What executes it; scripted echoes its prompt.
        file: Read the input from this file; - is standard input.
        input_json: The input is JSON and given to the adapter as it stands.
        session: Go on in this session; else a new one is made.
        timeout_ms: End the run as timed out after so many milliseconds.
    """

    def command() -> Coroutine[Any, Any, ExitCode]:
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


@app.command
def sessions(
    *,
    status: Status = (),
    agent: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    limit: Limit = None,
    store: Store = None,
    json: Json = False,
) -> ExitCode:
    """List sessions, oldest first.

    Args:
        agent: Only of this agent; repeatable.
    """
    from asm_runtime.cli import operations

    return run_to_exit(
        lambda: operations.list_sessions(store, status=status, agent=agent, limit=limit, json=json)
    )


@app.command
def runs(
    session: str, /, *, status: Status = (), limit: Limit = None, store: Store = None, json: Json = False
) -> ExitCode:
    """List a session's runs in the order of their acceptance.

    Args:
        session: Its id.
    """
    from asm_runtime.cli import operations

    return run_to_exit(lambda: operations.list_runs(store, session, status=status, limit=limit, json=json))


@app.command
def events(
    session: str,
    /,
    *,
    after: Count = 0,
    limit: Limit = None,
    type: Type = (),
    run: str | None = None,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), negative="")] = False,
    store: Store = None,
    json: Json = False,
) -> ExitCode:
    """Print a session's log, to its end or, following it, until interrupted.

    Args:
        session: Its id.
        after: Begin behind this sequence number: the last one already seen.
        run: Only of this run.
        follow: Go on with what is appended, by any process.
    """
    from asm_runtime.cli import operations

    return run_to_exit(
        lambda: operations.show_events(
            store,
            session,
            after=after,
            limit=limit,
            type=type,
            run=run,
            follow=follow,
            json=json,
        )
    )


@app.command
def tail(
    session: str,
    /,
    *,
    lines: Annotated[Count, Parameter(name=("--lines", "-n"))] = 10,
    type: Type = (),
    run: str | None = None,
    store: Store = None,
    json: Json = False,
) -> ExitCode:
    """Print a log's last events and then what is appended, by any process, until interrupted.

    Args:
        session: Its id.
        lines: How many of the last events.
        run: Only of this run, and until it has ended.
    """
    from asm_runtime.cli import operations

    return run_to_exit(lambda: operations.tail(store, session, lines=lines, type=type, run=run, json=json))


@app.command
def export(session: str, /, *, store: Store = None) -> ExitCode:
    """Print all of a session as JSON, one record a line: {"session": …}, {"run": …}, {"event": …}.

    Args:
        session: Its id.
    """
    from asm_runtime.cli import operations

    return run_to_exit(lambda: operations.export(store, session))


@app.command
def migrate(
    url: str | None = None, /, *, to: str = "head", down: Annotated[bool, Parameter(negative="")] = False
) -> ExitCode:
    """Bring a database's tables to this release's schema.

    Args:
        url: The database; without it the store that the other commands use.
        to: The revision.
        down: Go back to it.
    """
    from asm_runtime.cli import migration

    return run_to_exit(lambda: migration.migrate(url, to, down=down))


@app.command
def demo(*, file: str | None = None) -> ExitCode:
    """Watch sessions run real commands, lose their process to kill -9, and carry on: ten seconds.

    Args:
        file: Make the store in this new SQLite file; else in a temporary folder, which is left there.
    """

    def command() -> Coroutine[Any, Any, ExitCode]:
        from asm_runtime.cli.demo import director

        return director.demo(file)

    return run_to_exit(command)
