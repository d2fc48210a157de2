"""What callers of the Python interface give, taken as the decoder takes it where its meaning is clear.

Whatever a value is, what becomes of it is said in one line that names the argument; nothing is guessed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Final

import numpy as np

from bytelm.errors import GenerationError, KeywordError
from bytelm.generation import GenerateSettings, shown
from bytelm.names import hint

Text = str | bytes | bytearray | memoryview
"""Text, which is encoded in UTF-8, or bytes; an array of numpy of dtype uint8 is taken too."""

KEYWORDS: Final = tuple(field.name for field in fields(GenerateSettings))
"""Of the calls that generate."""


def bytes_of(name: str, value: Any) -> bytes:
    """Text or bytes of any kind as bytes.

    Raises:
        GenerationError: It is something else, or text that UTF-8 cannot encode.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, memoryview) and value.format in ("B", "b", "c"):
        return value.tobytes()
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 1:
        return value.tobytes()
    if not isinstance(value, str):
        is_list = name == "prompt" and isinstance(value, list | tuple)
        several = "; for several prompts there is generate_batch" if is_list else ""
        raise GenerationError(
            f"{name} = {shown(value)} is {kind_of(value)}, and neither text nor bytes; give one of them{several}"
        )
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise GenerationError(
            f"{name}: the text holds a lone surrogate at character {error.start}, which UTF-8 cannot encode; give "
            "bytes instead"
        ) from error


def several_of(name: str, values: Any) -> list[bytes]:
    """Several texts, each as bytes.

    Raises:
        GenerationError: They are no row of texts, or one of them is none.
    """
    if isinstance(values, str | bytes | bytearray | memoryview):
        raise GenerationError(f"{name} = {shown(values)} is one text; give a list of them, [{name[:-1]}]")
    if (
        isinstance(values, Mapping)
        or not isinstance(values, Iterable)
        or (isinstance(values, set | frozenset) and name == "prompts")
    ):
        raise GenerationError(f"{name} = {shown(values)} is {kind_of(values)}; give a list of texts")
    if isinstance(values, np.ndarray) and values.ndim == 0:
        raise GenerationError(f"{name} is one value, without a dimension; give a list of texts")
    return [bytes_of(f"{name}[{place}]", value) for place, value in enumerate(values)]


def kind_of(value: Any) -> str:
    """The type of a value in a message."""
    return "None" if value is None else f"of type {type(value).__name__}"


def settings_from(call: str, options: Mapping[str, Any]) -> GenerateSettings:
    """Settings from the keywords of a call; ``stop`` may be one text or several, or None.

    Args:
        call: Its name, for the message.
        options: By keyword.

    Raises:
        KeywordError: There is no such keyword.
        GenerationError: A value is impossible or cannot have an effect.
    """
    for name in options:
        if name not in KEYWORDS:
            raise KeywordError(f"{call} has no keyword {name!r}; {hint(name, KEYWORDS)}")
    stop: Any = options.get("stop")
    stops = [] if stop is None else [bytes_of("stop", stop)] if _is_one(stop) else several_of("stop", stop)
    return GenerateSettings(**{**options, "stop": tuple(stops)})


def _is_one(value: Any) -> bool:
    """Whether a value is one text and not several."""
    array_of_one = isinstance(value, np.ndarray) and (value.ndim == 0 or value.dtype == np.uint8)
    return array_of_one or isinstance(value, str | bytes | bytearray | memoryview)
