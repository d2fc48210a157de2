"""The command line: its commands, and one door through which every failure leaves as one line.

Exit codes: 0 done, 2 the caller's mistake (one line), 1 ours (a traceback, please report it) or an output that cannot
be written (one line), 130 interrupted.
"""

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Iterable
from typing import Annotated, Any, Final

import typer

from bytelm.cli import console, usage
from bytelm.cli.command import Command
from bytelm.cli.grouped_help import GroupedCommand
from bytelm.cli.quick_command import QuickGroup
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
    "completion": "completion",
}
"""Where each command is: a module of ``bytelm.cli``, and its function where that has another name."""

_COMPLETE: Final = "_BYTELM_COMPLETE"
"""What a shell sets when it asks how a line could go on."""
_REFUSED: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF, errno.EIO}
"""Errors of an output that takes nothing more."""

_CLASSES: Final[dict[str, type[Command]]] = {"ingest": GroupedCommand, "eval": GroupedCommand}


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
        app.command(name, cls=_CLASSES.get(name, Command))(command)
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
        console.result(context.get_help(), whole=True)


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; every failure prints one line on stderr.

    Args:
        arguments: Words after the program's name; those of this process when None.
    """
    words, debug = usage.ordered(sys.argv[1:] if arguments is None else arguments, COMMANDS)
    try:
        return _run(words)
    except typer.Exit as leave:
        return leave.exit_code
    except typer.TyperException as error:
        console.fail(usage.line_of(error, words, COMMANDS))
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
        console.give_up_output()  # its reader has gone, as head does when it has enough
        return console.EXIT_OK
    except OSError as error:
        if error.filename is not None or error.errno not in _REFUSED:
            raise
        console.give_up_output()
        console.fail(f"cannot write standard output: {error.strerror}; send it to another place")
        return console.EXIT_OURS


def _run(words: list[str]) -> int:
    if sys.stdout is None:  # what is written would be lost without a word
        console.fail("standard output is closed; send it to a file, or to /dev/null")
        return console.EXIT_OURS
    if _COMPLETE in os.environ:
        return _complete(os.environ[_COMPLETE])
    asked = words[0] if words else "--help"
    if asked not in COMMANDS and not asked.startswith("-"):
        console.fail(usage.no_command(words, COMMANDS))
        return console.EXIT_CALLER
    # A command that is known needs none of the others: their modules take longer than a short generation.
    alone = [asked] if asked in COMMANDS else COMMANDS if asked in ("-h", "--help") else []
    command = typer.main.get_command(make_app(alone))
    # Not app(…), which would end on Ctrl-C without a word.
    with command.make_context("bytelm", list(words)) as context:
        outcome = command.invoke(context)
    sys.stdout.flush()
    return outcome if isinstance(outcome, int) else console.EXIT_OK


def _complete(instruction: str) -> int:
    """Print how the line that a shell holds could go on."""
    from typer._completion_classes import completion_init
    from typer.completion import shell_complete

    completion_init()
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    asked = next((word for word in line.split()[1:] if word in COMMANDS), None)
    command: Any = typer.main.get_command(make_app(COMMANDS if asked is None else [asked]))
    return shell_complete(command, {}, "bytelm", _COMPLETE, instruction)
