"""``bytelm generate`` for many prompts: a file of JSON Lines, or a person who types them."""

import base64
import codecs
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bytelm.bounded_reading import lines_of
from bytelm.cli import console
from bytelm.cli.generate_view import SafeText, Terminal
from bytelm.cli.generation_json import as_json
from bytelm.errors import BytelmError, GenerationError, SourceError
from bytelm.own_files import ANYTHING, TEXT, Either, Fields, FormError, ListOf, Nullable, parse_json

if TYPE_CHECKING:
    from bytelm.api import LanguageModel
    from bytelm.decode import Request
    from bytelm.generation import GenerateSettings, Step

_PER_LINE: Final = ("max_bytes", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "utf8")
"""Settings that a line may have of its own, and ``stop``, a string or a list of them."""
_LINE_BYTES: Final = 64 << 20
_FILE_BYTES: Final = 1 << 30
_TYPED_CHARACTERS: Final = 1 << 20
_MOST_PROMPTS: Final = 1_000_000
"""All prompts are held, for all are checked before the first is continued."""


def from_file(model: "LanguageModel", path: Path, settings: "GenerateSettings", *, slots: int) -> int:
    """Continue the prompts of a file, a few side by side; results on stdout, in the order of the file.

    Args:
        model: Loaded.
        path: JSON Lines; - is stdin. An object has ``prompt`` (text) or ``prompt_base64`` (any bytes), and may have an
            ``id`` and settings of its own. Prompt n is sequence n of its seed.
        settings: Where a line says nothing else.
        slots: Prompts at a time.

    What is finished is written even where Ctrl-C or an error ends the others.

    Raises:
        GenerationError: A line is not such an object.
    """
    from bytelm.decode import decode_batch, exactness
    from bytelm.generation import Generation

    asked = _requests(path, settings)
    steps: dict[int, list[Step]] = {}
    begin, written = time.perf_counter(), 0
    generated = passes = 0

    def write(index: int) -> None:
        name, request = asked[index]
        generation = Generation.of(
            steps.pop(index, []),
            prediction_heads=model.head_count,
            elapsed_s=time.perf_counter() - begin,
        )
        facts = as_json(model, generation, request.settings, len(request.prompt))
        console.print_json({"index": index} | ({} if name is None else {"id": name}) | facts)

    done: set[int] = set()
    interrupted = False
    try:
        for index, step in decode_batch(
            model.decoder,
            [request for _, request in asked],
            context_bytes=model.context_bytes,
            slots=slots,
            tuned=model.plan(),
        ):
            steps.setdefault(index, []).append(step)
            generated, passes = generated + len(step.data), passes + 1
            if step.finish_reason is not None:
                done.add(index)
            while written < len(asked) and (written in done or asked[written][1].settings.max_bytes == 0):
                write(written)
                written += 1
    except KeyboardInterrupt:
        interrupted = True
    except BytelmError:
        _write_rest(done, written, write)
        raise
    if interrupted:
        count = written + _write_rest(done, written, write)
        console.say(f"interrupted: {count} of {len(asked)} prompts are finished, and written")
        return console.EXIT_INTERRUPTED
    for index in range(written, len(asked)):  # what asked for nothing, at the end
        write(index)
    elapsed_s = time.perf_counter() - begin
    console.say(
        f"{len(asked)} prompts, {generated} bytes, {generated / max(passes, 1):.2f} bytes per step of a prompt; "
        f"{elapsed_s:.2f} s, {generated / max(elapsed_s, 1e-9):.0f} bytes/s; exact {exactness(model.decoder)}"
    )
    return console.EXIT_OK


def _write_rest(done: set[int], written: int, write: Callable[[int], None]) -> int:
    """Write what is finished and waits for a prompt before it that will not be; how many that were."""
    waiting = sorted(index for index in done if index >= written)
    for index in waiting:
        write(index)
    return len(waiting)


def _requests(path: Path, settings: "GenerateSettings") -> "list[tuple[Any, Request]]":
    """All prompts with their ids, so that a line that is none is found before anything is generated."""
    from bytelm.decode import Request

    def too_large(what: str) -> GenerationError:
        return GenerationError(f"the prompts {path}: {what}; split the file")

    found: list[tuple[Any, Request]] = []
    try:
        for number, line in enumerate(lines_of(path, _LINE_BYTES, _FILE_BYTES, too_large), start=1):
            if not line.strip():
                continue
            if len(found) == _MOST_PROMPTS:
                raise too_large(f"it has more than {_MOST_PROMPTS:,}")
            try:
                name, prompt, changes = _line(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
                own = dataclasses.replace(settings, sequence=len(found), **changes)
            except (FormError, GenerationError) as error:
                raise GenerationError(f"line {number} of {path} is no prompt: {error}") from error
            found.append((name, Request(prompt, own)))
    except SourceError as error:
        raise GenerationError(str(error)) from error
    return found


def _line(line: bytes) -> tuple[Any, bytes, dict[str, Any]]:
    """The id of a line, its prompt, and the settings of its own; what they may be, ``GenerateSettings`` says."""
    value = parse_json(line)
    if not isinstance(value, dict) or ("prompt" in value) == ("prompt_base64" in value):
        raise FormError("it is no object with either prompt or prompt_base64")
    if unknown := sorted(set(value) - {"prompt", "prompt_base64", "id", "stop", *_PER_LINE}):
        raise FormError(f"it has {', '.join(map(repr, unknown))}; known: {', '.join(_PER_LINE)}, stop, id")
    name = "prompt" if "prompt" in value else "prompt_base64"
    Fields({name: TEXT}, {"stop": Nullable(Either(TEXT, ListOf(TEXT)))}, others=ANYTHING).check(value)
    try:
        prompt = value[name].encode() if name == "prompt" else base64.b64decode(value[name], validate=True)
    except ValueError as error:
        raise FormError("it is no base64", name) from error
    try:
        json.dumps(value.get("id"), ensure_ascii=False).encode()  # as it will be written
    except UnicodeEncodeError as error:
        raise FormError("it holds a lone surrogate, which UTF-8 cannot encode", "id") from error
    changes = {key: value[key] for key in _PER_LINE if key in value}
    if (stop := value.get("stop")) is not None:
        changes["stop"] = tuple(one.encode() for one in ([stop] if isinstance(stop, str) else stop))
    return value.get("id"), prompt, changes


def interactively(model: "LanguageModel", settings: "GenerateSettings") -> int:
    """Ask for prompts and continue each, with history where the terminal has it; an empty line ends."""
    import readline  # noqa: F401  typing gets its history and editing from it

    from bytelm.decode import decode_steps

    terminal = console.terminal()
    sequence = 0
    while True:
        prompt = _typed("" if terminal is None else "› ")
        if not prompt:
            return console.EXIT_OK
        view = SafeText(marks=False) if terminal is None else Terminal(terminal, b"", model.head_count)
        begin, count, steps = time.perf_counter(), 0, 0
        own = dataclasses.replace(settings, sequence=sequence)
        try:
            for step in decode_steps(model.decoder, prompt, own, context_bytes=model.context_bytes, tuned=model.plan()):
                view.show(step.data, step.sources)
                count, steps = count + len(step.data), steps + 1
        except KeyboardInterrupt:  # ends this completion, not the conversation
            pass
        view.finish()
        elapsed_s = time.perf_counter() - begin
        console.say(f"[{count} bytes, {count / max(steps, 1):.2f} a step, {count / max(elapsed_s, 1e-9):.0f} bytes/s]")
        sequence += 1


def _typed(before: str) -> bytes:
    """The next line that is typed, or that a pipe holds; nothing at the end."""
    if sys.stdin is not None and sys.stdin.isatty():
        try:
            return os.fsencode(input(before))
        except EOFError:
            return b""
    line = b"" if sys.stdin is None else os.fsencode(sys.stdin.readline(_TYPED_CHARACTERS + 1))
    if len(line) > _TYPED_CHARACTERS:
        raise GenerationError(f"a line of stdin is longer than {_TYPED_CHARACTERS:,} bytes; give it as --prompt-file")
    return line.rstrip(b"\r\n")
