"""What every command says and where: results to stdout, everything for people's eyes to stderr.

With ``--json`` a command prints one JSON object on stdout and nothing else there. Text that comes from data or from
a model is made safe first: a terminal obeys escape sequences, so they are shown instead.
"""

import contextlib
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from bytelm.utf8 import shown

if TYPE_CHECKING:  # a tenth of a second, which a command that prints a line does not have
    from rich.console import Console
    from rich.text import Text

EXIT_OK = 0
EXIT_OURS = 1
EXIT_CALLER = 2
EXIT_INTERRUPTED = 130


def people() -> "Console":
    """A console on stderr, for progress, tables and dashboards. Markup and highlighting are off: text is text."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, soft_wrap=False)


def say(line: str, *, whole: bool = False) -> None:
    """One line for people, on stderr; on a terminal it is broken between words, unless it is to stay whole."""
    with contextlib.suppress(OSError):  # who closes the place for such lines does not want them
        _print(_readable(line, sys.stderr, whole=whole), sys.stderr)


def busy(line: str) -> None:
    """What is being done and takes some seconds; for somebody who waits before a terminal."""
    if sys.stderr.isatty():
        say(f"{line} …")


@contextlib.contextmanager
def alive(line: str) -> Iterator[None]:
    """Inside, a terminal shows what is being done, with a sign that moves; other places get nothing.

    Torch takes seconds to import, and figures to draw: somebody who waits should see that the program does not hang.
    """
    waiting = people() if sys.stderr.isatty() else None
    if waiting is None or not waiting.is_terminal or waiting.is_dumb_terminal:
        busy(line)
        yield
        return
    with waiting.status(f"{shown(line)} …"):
        yield


def result(line: str, *, whole: bool = False) -> None:
    """One line of a command's result, on stdout; broken as ``say`` does it. Paths and commands stay whole."""
    _print(_readable(line, sys.stdout, whole=whole), sys.stdout)


def print_json(value: Mapping[str, Any]) -> None:
    """The one JSON object of ``--json``, on stdout."""
    _print(json.dumps(value, ensure_ascii=False, allow_nan=False), sys.stdout)


def _print(text: str, stream: TextIO) -> None:
    print(text, file=stream, flush=True)


def _readable(text: str, stream: TextIO, *, whole: bool) -> str:
    """Text that a terminal does not obey, its lines broken between words where the terminal would break words."""
    text = shown(text)
    if whole or not stream.isatty():
        return text
    columns = shutil.get_terminal_size().columns
    return "\n".join(_broken(line, columns) for line in text.split("\n"))


def _broken(line: str, columns: int) -> str:
    if len(line) <= columns:
        return line
    indent = " " * (len(line) - len(line.lstrip(" ")))
    parts = textwrap.wrap(
        line, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, expand_tabs=False
    )
    return "\n".join(parts)


def fail(message: str) -> None:
    """The one line of a failed command, on stderr."""
    say(f"error: {' '.join(message.split())}")


def program() -> str:
    """What a person types to run this program again: its name, or its path where no shell finds it by name."""
    started = Path(sys.argv[0])
    if started.name != "bytelm" or shutil.which("bytelm") == str(started):
        return "bytelm"
    try:
        return str(started.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(started)


def is_ascii_alone() -> bool:
    """Whether marks outside of ASCII would not be shown: the streams cannot carry them, or the locale is C."""
    if not all("utf" in (stream.encoding or "utf").lower() for stream in (sys.stdout, sys.stderr)):
        return True
    said = [os.environ.get(name) or "" for name in ("LC_ALL", "LC_CTYPE", "LANG")]
    if said[1] in ("C.UTF-8", "C.utf8", "UTF-8"):
        said[1] = ""  # this is what Python itself makes of the locale C
    return next(filter(None, said), "") in ("C", "POSIX")


def give_up_output() -> None:
    """Let what standard output did not take, and what may still come, go nowhere: Python would try again at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)


def one_line(name: str | os.PathLike[str]) -> str:
    """A file name for a listing: nothing in it ends the line, moves along it or is obeyed by a terminal."""
    return shown(os.fspath(name)).replace("\n", "\\n").replace("\t", "\\t")


def terminal() -> "Console | None":
    """A console on stdout where that is a terminal, or is to be treated like one; else None."""
    if not (sys.stdout.isatty() or {"FORCE_COLOR", "TTY_COMPATIBLE"} & set(os.environ)):
        return None
    from rich.console import Console

    found = Console(markup=False, highlight=False)
    return found if found.is_terminal else None


def styled(text: str, style: str) -> "Text":
    """Safe text in one style, never read as markup."""
    from rich.text import Text

    return Text(shown(text), style=style)
