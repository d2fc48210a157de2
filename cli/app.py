"""The command line: its commands, and one door through which every failure leaves as one line.

Exit codes: 0 done, 2 the caller's mistake (one line), 1 ours (a traceback, please report it), 130 interrupted.
"""

import sys
import traceback
from typing import Annotated

import typer

from bytelm.cli import console
from bytelm.cli.compare import ablate, compare
from bytelm.cli.doctor import doctor
from bytelm.cli.evaluate import evaluate
from bytelm.cli.export import export
from bytelm.cli.generate import generate
from bytelm.cli.grouped_help import GroupedCommand
from bytelm.cli.ingest import ingest
from bytelm.cli.inspect import inspect
from bytelm.cli.probe import probe
from bytelm.cli.quickstart import quickstart
from bytelm.cli.report import report
from bytelm.cli.train import train
from bytelm.cli.tune import tune
from bytelm.errors import BytelmError

app = typer.Typer(
    name="bytelm",
    help="Train and run language models that read raw bytes and predict the next K at once.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from bytelm import __version__

        console.result(f"bytelm {__version__}")
        raise typer.Exit


@app.callback()
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


app.command()(quickstart)
app.command(cls=GroupedCommand)(ingest)
app.command()(inspect)
app.command()(train)
app.command()(generate)
app.command()(tune)
app.command("eval", cls=GroupedCommand)(evaluate)
app.command()(compare)
app.command()(ablate)
app.command()(probe)
app.command()(report)
app.command()(export)
app.command()(doctor)


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; every failure prints one line on stderr.

    Args:
        arguments: Words after the program's name; those of this process when None.
    """
    words = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in words
    try:
        command = typer.main.get_command(app)  # not app(…), which would end on Ctrl-C without a word
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
