"""What every command says and where: results to stdout, everything for people's eyes to stderr.

With ``--json`` a command prints one JSON object on stdout and nothing else there. Text that comes from data or from
a model is made safe first: a terminal obeys escape sequences, so they are shown instead.
"""

import json
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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


def say(line: str) -> None:
    """One line for people, on stderr."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201  the one place that prints lines


def result(line: str) -> None:
    """One line of a command's result, on stdout."""
    print(line, flush=True)  # noqa: T201  the one place that prints results


def print_json(value: Mapping[str, Any]) -> None:
    """The one JSON object of ``--json``, on stdout."""
    result(json.dumps(value, ensure_ascii=False, allow_nan=False))


def fail(message: str) -> None:
    """The one line of a failed command, on stderr."""
    say(f"error: {shown(' '.join(message.split()))}")


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
