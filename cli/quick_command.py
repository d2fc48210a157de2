"""Options whose values are taken at once where they are plainly right.

Typer has every value checked by pydantic, which takes as long to load as a short generation takes in all. A value that
is not plainly right still goes there, so that the errors are the same.
"""

import enum
import re
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from typer.core import TyperGroup

_UNSURE: Final = object()
_WHOLE: Final = re.compile(r"-?\d{1,18}")
_NUMBER: Final = re.compile(r"-?\d+(\.\d+)?")


class QuickGroup(TyperGroup):
    """Commands, with options of their own that do not hold them up."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options, ``--help`` included."""
        parameters = super().get_params(ctx)
        for parameter in parameters:
            quicken(parameter)
        return parameters


def quicken(parameter: Any) -> None:
    """Let a parameter take what is plainly right without pydantic."""
    descriptor, checked = getattr(parameter, "type_descriptor", None), parameter.process_value
    if descriptor is None or "process_value" in vars(parameter):
        return

    def process_value(context: Any, value: Any) -> Any:
        info = descriptor.parameter_info
        found = _plainly(value, descriptor.annotation, info.min, info.max)
        if found is _UNSURE or (found is None and parameter.required) or _looks_closer(info):
            return checked(context, value)
        return found if parameter.callback is None else parameter.callback(context, parameter, found)

    parameter.process_value = process_value


def _plainly(value: Any, wanted: Any, least: float | None, most: float | None) -> Any:
    """The value as the command takes it; ``_UNSURE`` where that needs a closer look."""
    if wanted == list[str]:
        words = () if value is None else value
        plain = isinstance(words, list | tuple) and all(isinstance(word, str) for word in words)
        return (list(words) if words else ()) if plain else _UNSURE
    if value is None:
        return None
    if wanted is str and isinstance(value, str):
        return value
    if wanted is Path and isinstance(value, str | Path):
        return Path(value)
    if get_origin(wanted) is Literal and value in get_args(wanted):
        return value
    if isinstance(wanted, type) and issubclass(wanted, enum.StrEnum) and value in [*wanted]:
        return wanted(value)
    if wanted in (int, float):
        written = str(value) if type(value) in (int, float, str) else ""
        if (_WHOLE if wanted is int else _NUMBER).fullmatch(written):
            number = wanted(written)
            return number if (least is None or number >= least) and (most is None or number <= most) else _UNSURE
    return _UNSURE if wanted is not bool or not isinstance(value, bool) else value


def _looks_closer(info: Any) -> bool:
    """Whether a parameter asks for more than its type says."""
    return any(getattr(info, name, None) for name in ("exists", "resolve_path", "path_type", "parser", "clamp"))
