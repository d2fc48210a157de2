"""``bytelm generate`` for many prompts: a file of JSON Lines, or a person who types them."""

import base64
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bytelm.cli import console
from bytelm.cli.generate_view import SafeText, Terminal
from bytelm.cli.generation_json import as_json
from bytelm.errors import GenerationError

if TYPE_CHECKING:
    from bytelm.api import LanguageModel
    from bytelm.decode import Request
    from bytelm.generation import GenerateSettings, Step

_PER_LINE: Final = ("max_bytes", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "utf8")
"""Settings that a line may have of its own, and ``stop``, a string or a list of them."""


def from_file(model: "LanguageModel", path: Path, settings: "GenerateSettings", *, slots: int) -> int:
    """Continue the prompts of a file, a few side by side; results on stdout, in the order of the file.

    Args:
        model: Loaded.
        path: JSON Lines; - is stdin. An object has ``prompt`` (text) or ``prompt_base64`` (any bytes), and may have an
            ``id`` and settings of its own. Prompt n is sequence n of its seed.
        settings: Where a line says nothing else.
        slots: Prompts at a time.

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
    for index in range(written, len(asked)):  # what asked for nothing, at the end
        write(index)
    elapsed_s = time.perf_counter() - begin
    console.say(
        f"{len(asked)} prompts, {generated} bytes, {generated / max(passes, 1):.2f} bytes per step of a prompt; "
        f"{elapsed_s:.2f} s, {generated / max(elapsed_s, 1e-9):.0f} bytes/s; exact {exactness(model.decoder)}"
    )
    return console.EXIT_OK


def _requests(path: Path, settings: "GenerateSettings") -> "list[tuple[Any, Request]]":
    """All prompts with their ids, so that a line that is none is found before anything is generated."""
    from bytelm.decode import Request

    found: list[tuple[Any, Request]] = []
    try:
        lines = sys.stdin.buffer.readlines() if str(path) == "-" else path.read_bytes().splitlines()
    except OSError as error:
        raise GenerationError(f"cannot read the prompts {path}: {error.strerror}; give another file") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if not isinstance(value, dict) or ("prompt" in value) == ("prompt_base64" in value):
                raise ValueError("it is no object with either prompt or prompt_base64")
            if unknown := set(value) - {"prompt", "prompt_base64", "id", "stop", *_PER_LINE}:
                raise ValueError(f"it has {', '.join(sorted(unknown))}; known: {', '.join(_PER_LINE)}, stop")
            name = "prompt" if "prompt" in value else "prompt_base64"
            if not isinstance(text := value[name], str):
                raise ValueError(f"its {name} is {text!r}, which is no string")
            prompt = text.encode() if name == "prompt" else base64.b64decode(text, validate=True)
            changes = {key: value[key] for key in _PER_LINE if key in value}
            if "stop" in value:
                changes["stop"] = _stop(value["stop"])
            own = dataclasses.replace(settings, sequence=len(found), **changes)
        except (ValueError, GenerationError) as error:
            raise GenerationError(f"line {number} of {path} is no prompt: {error}") from error
        found.append((value.get("id"), Request(prompt, own)))
    return found


def _stop(value: Any) -> tuple[bytes, ...]:
    """Stop strings of a line: one, or a list."""
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
        raise ValueError(f"its stop is {value!r}, which is no string and no list of them")
    return tuple(string.encode() for string in strings)


def interactively(model: "LanguageModel", settings: "GenerateSettings") -> int:
    """Ask for prompts and continue each, with history where the terminal has it; an empty line ends."""
    import readline  # noqa: F401  typing gets its history and editing from it

    from bytelm.decode import decode_steps

    terminal = console.terminal()
    sequence = 0
    while True:
        try:
            prompt = os.fsencode(input("" if terminal is None else "› "))
        except EOFError:
            return console.EXIT_OK
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
