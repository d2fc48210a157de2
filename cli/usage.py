"""How the program is used: words in the order that it reads them, and one line about those that it cannot."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from bytelm.cli.early import is_model
from bytelm.names import hint, nearest

_JSON: Final = "--json"
_DEBUG: Final = "--debug"


def ordered(words: Sequence[str], commands: Iterable[str]) -> tuple[list[str], bool]:
    """Words as the program reads them, and whether tracebacks are asked for.

    ``--debug`` and ``--json`` may stand anywhere before ``--``; ``help`` is ``--help``.

    Example:
        >>> ordered(["--json", "eval", "nano", "--debug"], ["eval"]), ordered(["help", "eval"], ["eval"])
        ((['eval', 'nano', '--json'], True), (['eval', '--help'], False))
    """
    end = words.index("--") if "--" in words else len(words)
    before = [word for word in words[:end] if word != _DEBUG]
    debug = len(before) < end
    first = next((number for number, word in enumerate(before) if word in commands), len(before))
    if _JSON in before[:first]:  # without a command there is nothing to print as JSON
        rest = [_JSON] if first < len(before) else []
        before = [*(word for word in before[:first] if word != _JSON), *before[first:], *rest]
    if before[:1] == ["help"]:
        before = [*before[1:2], "--help"]
    return [*before, *words[end:]], debug


def no_command(words: Sequence[str], commands: Iterable[str]) -> str:
    """The line about a first word that is no command."""
    names = list(commands)
    if is_model(words[0]):
        command = next((name for name in words[1:2] if name in names), "generate")
        rest = [word for word in words[1:2] if word not in names]
        line = " ".join(["bytelm", command, words[0], *map(repr, rest)])
        return f"{words[0]!r} is a model, and the command comes first: {line} (bytelm --help lists the commands)"
    near = nearest(words[0], names)
    return f"there is no command {words[0]!r}; {f'did you mean {near}? ' if near else ''}(bytelm --help lists them)"


def line_of(error: Any, words: Sequence[str], commands: Iterable[str]) -> str:
    """The line about a mistake in the words of a command, with where its help is."""
    context = getattr(error, "ctx", None)
    path = " ".join(["bytelm", *words[:1]]) if words and words[0] in commands else "bytelm"
    return f"{_fault(error, context)} ({path} --help tells how it is used)"


def _fault(error: Any, context: Any) -> str:
    parameters = [] if context is None else context.command.get_params(context)
    options = [name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)]
    unknown = str(getattr(error, "option_name", ""))
    if type(error).__name__ == "NoSuchOption":
        near = nearest(unknown, [name for name in options if name.startswith("-")])
        return f"there is no option {unknown}" + (f"; did you mean {near}?" if near else "")
    message = getattr(error, "format_message", error.__str__)().strip()
    if (extra := re.fullmatch(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", message, re.DOTALL)) is not None:
        return f"too many words: {extra[1]!r}; a text with spaces stands in quotes"
    parameter = getattr(error, "param", None)
    if parameter is None:
        return message[:1].lower() + message[1:].rstrip(".")
    name = parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar or parameter.name.upper()
    if type(error).__name__ == "MissingParameter":
        return f"{name.strip('[]')} is missing"
    faults = getattr(error.__cause__, "errors", list)()  # of pydantic, which checks the values
    said = str(error.message).strip().rstrip(".").removeprefix("Value error, ")
    choice = re.fullmatch(r"'(.*)' is not one of (.+)", said, re.DOTALL)
    if choice is not None:
        known = re.findall(r"'([^']*)'", choice[2])
        return f"{name} {choice[1]!r} is unknown; {hint(choice[1], known)}"
    if faults and (reason := _value_fault(faults[0])):
        return f"{name} {str(faults[0]['input'])!r} is {reason}"
    return f"{name}: {said}"


def _value_fault(fault: dict[str, Any]) -> str:
    kind, limits = fault["type"], fault.get("ctx", {})
    match kind:
        case "int_parsing" | "int_from_float" | "int_type":
            return "no whole number"
        case "float_parsing" | "float_type":
            return "no number"
        case "greater_than_equal":
            return f"too small; at least {limits['ge']}"
        case "less_than_equal":
            return f"too large; at most {limits['le']}"
    return ""
