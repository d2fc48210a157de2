"""``bytelm generate``: continue a prompt, bytes shown as they are accepted."""

import base64
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import typer
from rich.console import Console
from rich.text import Text

from bytelm.cli import console
from bytelm.errors import GenerationError
from bytelm.palette import head_colour
from bytelm.utf8 import TextDecoder, decode_text

if TYPE_CHECKING:
    from bytelm.api import LanguageModel
    from bytelm.generation import GenerateSettings, Generation, Step


def generate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or of one of its checkpoints.")],
    prompt: Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="Beginning of a document.")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", help="Read the prompt from a file, any bytes; - is stdin.")
    ] = None,
    max_bytes: Annotated[int, typer.Option("--max-bytes", help="Bytes at most.")] = 256,
    draft: Annotated[
        Literal["adaptive", "heads", "tree", "ngram", "none"],
        typer.Option("--draft", help="Who drafts: adaptive is what pays; none is plain decoding, a byte a step."),
    ] = "adaptive",
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.")] = 0.0,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Sample among the k most probable ids.")] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Sample among the most probable ids that reach this probability.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option("--min-p", help="Sample among ids at least this probable, the best one being 1.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of sampling: same seed, same bytes, drafts or not.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="End before this string, which is not shown; may be repeated.")
    ] = None,
    exact: Annotated[
        Literal["padded", "off"],
        typer.Option("--exact", help="padded: bytes equal plain decoding's; off: fewer rows, faster, no promise."),
    ] = "padded",
    show_drafts: Annotated[
        bool, typer.Option("--show-drafts", help="Colour bytes by the head that drafted them; ‹ › without colours.")
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Write the exact bytes, control characters too.")] = False,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads; default: one for a small model.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="torch device; auto takes CUDA where there is one.")] = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option("--precision", help="Of the weights; auto is float32 on the CPU, bfloat16 on CUDA."),
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> int:
    r"""Continue a prompt with a trained model.

    Bytes go to stdout as they are accepted, as text: a byte that is no UTF-8 is shown as \xNN, and so is a control
    character, so that a terminal shows it and does not obey it. On a terminal the prompt stands before it, dimmed;
    otherwise stdout holds what was generated and nothing else. Statistics go to stderr. Ctrl-C stops.
    """
    if raw and (as_json or show_drafts):
        raise GenerationError(f"--raw writes bytes alone; leave out --{'json' if as_json else 'show-drafts'}")
    if show_drafts and draft == "none":
        raise GenerationError("--show-drafts has nothing to show with --draft none; leave one of them out")
    prompt_data = _read_prompt(prompt, prompt_file)

    import torch

    from bytelm.api import load
    from bytelm.decode import decode_steps
    from bytelm.device import choose_decoding_threads
    from bytelm.generation import GenerateSettings, Generation

    settings = GenerateSettings(
        max_bytes=max_bytes,
        draft=draft,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop=tuple(os.fsencode(string) for string in stop or ()),
        exact=exact,
    )
    model = load(run, device=device, precision=precision)
    torch.set_num_threads(threads or choose_decoding_threads(model.model.parameter_counts()["total"]))
    heads = model.model.heads.count
    for note in _notes(model, prompt_data, settings):
        console.say(note)

    view = _choose_view(prompt_data, heads=heads, as_json=as_json, raw=raw, show_drafts=show_drafts)
    steps: list[Step] = []
    interrupted = False
    begin = time.perf_counter()
    try:
        for step in decode_steps(model.model, prompt_data, settings, context_bytes=model.context_bytes):
            steps.append(step)
            view.show(step.data, step.sources)
    except KeyboardInterrupt:
        interrupted = True
    elapsed_s = time.perf_counter() - begin
    view.finish()
    generation = Generation.of(steps, prediction_heads=heads, elapsed_s=elapsed_s, interrupted=interrupted)
    if as_json:
        console.print_json(_as_json(generation, settings, len(prompt_data), show_drafts=show_drafts))
    else:
        if show_drafts:
            console.people().print(view.legend)
        console.say(_statistics(generation, settings))
    return console.EXIT_INTERRUPTED if interrupted else console.EXIT_OK


class _View(Protocol):
    """Where generated bytes are shown."""

    legend: Text
    """What colours or marks mean; empty where there are none."""

    def show(self, data: bytes, heads: Sequence[int]) -> None:
        """Show the next bytes, with the head of each."""
        ...

    def finish(self) -> None:
        """Show what is still incomplete."""
        ...


class _Hidden:
    """Nothing is shown before the end."""

    legend = Text()

    def show(self, data: bytes, heads: Sequence[int]) -> None:
        """See ``_View``."""

    def finish(self) -> None:
        """See ``_View``."""


class _RawBytes:
    """The exact bytes on stdout."""

    legend = Text()

    def show(self, data: bytes, heads: Sequence[int]) -> None:
        """See ``_View``."""
        del heads
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def finish(self) -> None:
        """See ``_View``."""


class _SafeText:
    """Text without control characters, for files and pipes in UTF-8; with marks, drafted bytes stand in ‹ ›.

    In a pair of marks the first byte was drafted by head 1, the next by head 2, and so on.
    """

    def __init__(self, *, marks: bool) -> None:
        self._decoder = TextDecoder("escape")
        self._marks = marks
        self._open = self._over = False
        self.legend = Text("‹drafted by heads 1, 2, … in order›, the rest chosen by the trunk" if marks else "")

    def show(self, data: bytes, heads: Sequence[int]) -> None:
        """See ``_View``."""
        if not self._marks:
            self._write(self._decoder.feed(data))
            return
        for place, head in enumerate(heads):
            self._over |= head in (0, 1)  # head 1 begins another draft
            text = self._decoder.feed(data[place : place + 1])
            if text:
                self._write(self._marked(head) + text)

    def finish(self) -> None:
        """See ``_View``."""
        self._write(self._decoder.finish() + ("›" if self._open else ""))

    def _marked(self, head: int) -> str:
        """Marks before a character of a head."""
        marks = ""
        if self._open and self._over:
            self._open, marks = False, "›"
        if not self._open and head != 0:
            self._open, marks = True, marks + "‹"
        self._over = False
        return marks

    def _write(self, text: str) -> None:
        if text:
            sys.stdout.buffer.write(console.shown(text).encode())
            sys.stdout.buffer.flush()


class _Terminal:
    """Text on a terminal, after its dimmed prompt; coloured by head if K is given.

    A character of several bytes has the colour of its last byte, which made it whole.
    """

    def __init__(self, terminal: Console, prompt: bytes, heads: int | None) -> None:
        self._terminal = terminal
        self._decoder = TextDecoder("escape")
        self._heads = heads
        self._last = ""
        self.legend = _legend(heads)
        self._out(decode_text(prompt, "escape"), "dim")

    def show(self, data: bytes, heads: Sequence[int]) -> None:
        """See ``_View``."""
        if self._heads is None:
            self._out(self._decoder.feed(data), None)
            return
        for place, head in enumerate(heads):
            self._out(self._decoder.feed(data[place : place + 1]), head_colour(head, self._heads))

    def finish(self) -> None:
        """See ``_View``."""
        self._out(self._decoder.finish(), None)
        if self._last not in ("", "\n"):
            self._out("\n", None)

    def _out(self, text: str, style: str | None) -> None:
        if text:
            self._terminal.out(console.shown(text), style=style, end="", highlight=False)
            self._terminal.file.flush()
            self._last = text[-1]


def _choose_view(prompt: bytes, *, heads: int, as_json: bool, raw: bool, show_drafts: bool) -> _View:
    if as_json:
        return _Hidden()
    if raw:
        return _RawBytes()
    terminal = Console(markup=False, highlight=False)
    if not terminal.is_terminal:
        return _SafeText(marks=show_drafts)
    if show_drafts and terminal.no_color:
        return _SafeText(marks=True)
    return _Terminal(terminal, prompt, heads if show_drafts else None)


def _read_prompt(prompt: str | None, prompt_file: Path | None) -> bytes:
    if prompt_file is None:
        return os.fsencode(prompt or "")  # the bytes that were typed, whatever the locale
    if prompt is not None:
        raise GenerationError("a prompt and --prompt-file were both given; leave one of them out")
    if str(prompt_file) == "-":
        return sys.stdin.buffer.read()
    try:
        return prompt_file.read_bytes()
    except OSError as error:
        raise GenerationError(f"cannot read the prompt {prompt_file}: {error.strerror}; give another file") from error


def _notes(model: "LanguageModel", prompt: bytes, settings: "GenerateSettings") -> list[str]:
    """What the caller should know before the first byte."""
    notes = []
    context = model.context_bytes
    if 1 + len(prompt) > context:  # the beginning of the document takes a slot as well
        notes.append(
            f"the prompt has {len(prompt)} bytes and the context {context}: its last {context // 2} bytes are read"
        )
    embedding = model.model.embedding
    tested = str(embedding.device) == "cpu" and str(embedding.dtype) == "torch.float32"
    if settings.draft != "none" and settings.exact == "padded" and not tested:
        notes.append(
            f"equal bytes with and without drafts are tested in float32 on the CPU; on {embedding.device} in "
            f"{str(embedding.dtype).removeprefix('torch.')} they rest on the device's kernels"
        )
    return notes


def _statistics(generation: "Generation", settings: "GenerateSettings") -> str:
    words = [
        f"{len(generation.data)} bytes in {generation.steps} steps ({generation.bytes_per_step:.2f} bytes a step)",
        f"{generation.elapsed_s:.2f} s, {generation.bytes_per_second:.0f} bytes/s",
        f"ended by {generation.finish_reason}",
        f"exact {settings.exact}",
    ]
    drafted = [f"{share:.2f}" for share in generation.acceptance_by_head[1:] if share is not None]
    if drafted:
        words.append(f"acceptance by head {' '.join(drafted)}")
    return "; ".join(words)


def _legend(heads: int | None) -> Text:
    """Every source in its colour."""
    legend = Text()
    if heads is not None:
        legend.append("chosen by the trunk, or drafted by head", style=head_colour(0, heads))
        for head in range(1, heads):
            legend.append(f" {head}", style=head_colour(head, heads))
        legend.append(", by the text's own past", style=head_colour(-1, heads))
    return legend


def _as_json(
    generation: "Generation", settings: "GenerateSettings", prompt_bytes: int, *, show_drafts: bool
) -> dict[str, Any]:
    facts = {
        "text": generation.text,
        "bytes_base64": base64.b64encode(generation.data).decode("ascii"),
        "generated_bytes": len(generation.data),
        "prompt_bytes": prompt_bytes,
        "finish_reason": generation.finish_reason,
        "steps": generation.steps,
        "bytes_per_step": generation.bytes_per_step,
        "bytes_per_second": generation.bytes_per_second,
        "elapsed_s": generation.elapsed_s,
        "acceptance_by_head": list(generation.acceptance_by_head),
        "draft": settings.draft,
        "exact": settings.exact,
        "temperature": settings.temperature,
        "seed": settings.seed,
    }
    return facts | {"sources": list(generation.sources)} if show_drafts else facts
