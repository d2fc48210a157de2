"""The command line: its commands, and one door through which every failure leaves as one line.

Exit codes: 0 done, 2 the caller's mistake (one line), 1 ours (a traceback, please report it), 130 interrupted.
"""

import importlib
import sys
import traceback
from collections.abc import Iterable
from typing import Annotated, Final

import typer
from typer.core import TyperCommand

from bytelm.cli import console
from bytelm.cli.grouped_help import GroupedCommand
from bytelm.cli.quick_command import QuickCommand, QuickGroup
from bytelm.errors import BytelmError

COMMANDS: Final = {
    "quickstart": "quickstart",
    "ingest": "ingest",
    "inspect": "inspect",
    "train": "train",
    "generate": "generate",
    "tune": "tune",
    "eval": "evaluate",
    "compare": "compare",
    "ablate": "compare:ablate",
    "probe": "probe",
    "report": "report",
    "export": "export",
    "doctor": "doctor",
}
"""Where each command is: a module of ``bytelm.cli``, and its function where that has another name."""

_CLASSES: Final[dict[str, type[TyperCommand]]] = {
    "ingest": GroupedCommand,
    "eval": GroupedCommand,
    "generate": QuickCommand,
}


def make_app(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The program with some of its commands; their modules are imported."""
    app = typer.Typer(
        name="bytelm",
        cls=QuickGroup,
        help="Train and run language models that read raw bytes and predict the next K at once.",
        invoke_without_command=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_common)
    for name in names:
        module, _, function = COMMANDS[name].partition(":")
        command = getattr(importlib.import_module(f"bytelm.cli.{module}"), function or module)
        app.command(name, cls=_CLASSES.get(name))(command)
    return app


def _version(asked: bool) -> None:
    if asked:
        from bytelm import __version__

        console.result(f"bytelm {__version__}")
        raise typer.Exit


def _common(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del debug, version  # read by run() and by the callback
    if context.invoked_subcommand is None:
        console.result(context.get_help())


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; every failure prints one line on stderr.

    Args:
        arguments: Words after the program's name; those of this process when None.
    """
    words = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in words
    try:
        # A command that is known needs none of the others: their modules take longer than a short generation.
        asked = next((word for word in words if word != "--debug"), None)
        command = typer.main.get_command(make_app([asked] if asked in COMMANDS else COMMANDS))
        # Not app(…), which would end on Ctrl-C without a word.
        with command.make_context("bytelm", list(words)) as context:
            outcome = command.invoke(context)
    except typer.Exit as leave:
        return leave.exit_code
    except typer.TyperException as error:
        console.fail(f"{getattr(error, 'format_message', error.__str__)()} (bytelm --help tells how it is used)")
        return console.EXIT_CALLER
    except BytelmError as error:
        if debug:
            traceback.print_exc()
        if not error.told:
            console.fail(str(error))
        return console.EXIT_CALLER
    except (KeyboardInterrupt, typer.Abort):
        console.say("interrupted")
        return console.EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; nothing is left to say to it
        return console.EXIT_OK
    return outcome if isinstance(outcome, int) else console.EXIT_OK
