"""``bytelm generate``: continue a prompt, bytes shown as they are accepted."""

import os
import select
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from bytelm.bounded_reading import STDIN, read_bounded
from bytelm.cli import console
from bytelm.cli.generate_many import from_file, interactively
from bytelm.cli.generate_view import choose_view
from bytelm.cli.generation_json import as_json as generation_json
from bytelm.errors import GenerationError, SourceError
from bytelm.palette import source_name

if TYPE_CHECKING:
    from typing import TextIO

    from rich.table import Table

    from bytelm.api import LanguageModel
    from bytelm.generation import Generation, Step

_PROMPT_BYTES: Final = 64 << 20


def generate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run, one of its checkpoints, or the name of a shipped model.")
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", help="Beginning of a document; what is piped in where none is given, or -."),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", help="Read the prompt from a file, any bytes; - is stdin.")
    ] = None,
    prompt_hex: Annotated[
        str | None, typer.Option("--prompt-hex", help="The prompt in hexadecimal digits; spaces do not count.")
    ] = None,
    batch_file: Annotated[
        Path | None,
        typer.Option("--batch-file", help="JSON Lines, an object with prompt or prompt_base64 each; JSON Lines out."),
    ] = None,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Prompts of --batch-file side by side.")] = 8,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Ask for prompts, one a line, until an empty one.")
    ] = False,
    max_bytes: Annotated[int, typer.Option("--max-bytes", help="Bytes at most.")] = 256,
    draft: Annotated[
        Literal["adaptive", "heads", "ngram", "none"],
        typer.Option("--draft", help="Who drafts: adaptive is what pays; none is plain decoding, a byte per step."),
    ] = "adaptive",
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.")] = 0.0,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Sample among the k most probable ids.")] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Sample among the most probable ids that reach this probability.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option("--min-p", help="Sample among ids at least this probable, the best one being 1.")
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", help="Makes the last 64 bytes less likely, from 1, which is none.")
    ] = 1.0,
    utf8: Annotated[
        bool, typer.Option("--utf8", help="Well-formed UTF-8 alone, whole characters; without it any byte.")
    ] = False,
    logprobs: Annotated[
        bool, typer.Option("--logprobs", help="With --json: the logarithm of each byte's probability, in nats.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of sampling: same seed, same bytes, drafts or not.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="End before this string, which is not shown; may be repeated.")
    ] = None,
    exact: Annotated[
        Literal["auto", "bits"],
        typer.Option("--exact", help="bits: equal bytes whatever is drafted, or an error; auto: what there is."),
    ] = "auto",
    show_drafts: Annotated[
        bool, typer.Option("--show-drafts", help="Colour bytes by the head that drafted them; ‹ › without colours.")
    ] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Say what became of each source's drafts, and what was planned with.")
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Write the exact bytes, control characters too.")] = False,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="CPU threads; by default one for a small model, else all cores."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="torch device; auto takes CUDA where there is one.")] = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "int8"],
        typer.Option(
            "--precision",
            help="Of the matrices; auto has the bits of float32 on a CPU; int8 is faster, a little another model.",
        ),
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
    if logprobs and not (as_json or batch_file):
        raise GenerationError("--logprobs are told in JSON alone; add --json, or leave --logprobs out")
    if (batch_file or interactive) and (as_json or raw or show_drafts or stats or (batch_file and interactive)):
        name = "--batch-file" if batch_file else "--interactive"
        others = "--json, --raw, --show-drafts, --stats and the like"
        raise GenerationError(f"{name} has an output of its own; leave out {others}")
    prompt_data = _read_prompt(prompt, prompt_file, prompt_hex, others=bool(batch_file or interactive))

    from bytelm.api import load
    from bytelm.decode import decode_steps, exactness
    from bytelm.generation import GenerateSettings, Generation

    settings = GenerateSettings(
        max_bytes=max_bytes,
        draft=draft,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        utf8=utf8,
        logprobs=logprobs,
        seed=seed,
        stop=tuple(os.fsencode(string) for string in stop or ()),
        exact=exact,
    )
    model = load(run, device=device, precision=precision, threads=threads)
    if model.engine is None and threads is None:
        import torch

        from bytelm.device import choose_decoding_threads

        torch.set_num_threads(choose_decoding_threads(model.model.parameter_counts()["total"]))
    heads = model.head_count
    plan = model.plan()
    for note in _notes(model, prompt_data):
        console.say(note)
    if batch_file is not None:
        return from_file(model, batch_file, settings, slots=slots)
    if interactive:
        return interactively(model, settings)

    view = choose_view(prompt_data, heads=heads, as_json=as_json, raw=raw, show_drafts=show_drafts)
    steps: list[Step] = []
    interrupted = False
    begin = time.perf_counter()
    try:
        for step in decode_steps(model.decoder, prompt_data, settings, context_bytes=model.context_bytes, tuned=plan):
            steps.append(step)
            view.show(step.data, step.sources)
    except KeyboardInterrupt:
        interrupted = True
    elapsed_s = time.perf_counter() - begin
    view.finish()
    generation = Generation.of(steps, prediction_heads=heads, elapsed_s=elapsed_s, interrupted=interrupted)
    if as_json:
        facts = generation_json(model, generation, settings, len(prompt_data))
        console.print_json(facts | ({"sources": list(generation.sources)} if show_drafts else {}))
    else:
        if show_drafts:
            console.people().print(view.legend)
        if len(prompt_data) < model.context_bytes < len(prompt_data) + len(generation.data):
            console.say(
                f"the context of {model.context_bytes} bytes filled up: its last half was read afresh, "
                "and what came before was forgotten"
            )
        console.say(_statistics(generation, exactness(model.decoder)))
        if stats:
            console.people().print(_table(generation))
            console.say(f"decoded by {model.decoded_by}")
            console.say(f"plan: {_origin(model)}; bytelm tune {console.one_line(run)} measures this machine")
    return console.EXIT_INTERRUPTED if interrupted else console.EXIT_OK


def _read_prompt(prompt: str | None, file: Path | None, digits: str | None, *, others: bool) -> bytes:
    """The one prompt, from where it was given; none where prompts come from elsewhere."""
    sources = (("a prompt", prompt), ("--prompt-file", file), ("--prompt-hex", digits))
    given = [name for name, value in sources if value is not None]
    if len(given) > 1 or (given and others):
        raise GenerationError(f"{' and '.join(given)} cannot be given together with other prompts; leave one out")
    if digits is not None:
        try:
            return bytes.fromhex(digits)
        except ValueError as error:
            raise GenerationError(f"--prompt-hex is not hexadecimal ({error}); give two digits a byte") from error
    if file is None and prompt in (None, "-") and not others and _is_piped(sys.stdin):
        if not select.select([sys.stdin], [], [], 0)[0]:
            console.say("reading the prompt from stdin, for none was given; '' is the empty one")
        file = STDIN
    if file is None:
        return os.fsencode(prompt or "")  # the bytes that were typed, whatever the locale
    try:
        return read_bounded(file, _PROMPT_BYTES, what="the prompt", remedy="give its end, which is what is read")
    except SourceError as error:
        raise GenerationError(str(error)) from error


def _is_piped(stream: "TextIO | None") -> bool:
    """Whether somebody has put something there: a pipe, a file or a socket; not a terminal, and not /dev/null."""
    try:
        mode = os.fstat(stream.fileno()).st_mode if stream is not None else 0
    except (OSError, ValueError):  # closed, or no file of the system
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _notes(model: "LanguageModel", prompt: bytes) -> list[str]:
    """What the caller should know before the first byte."""
    notes = []
    context = model.context_bytes
    if 1 + len(prompt) > context:  # the beginning of the document takes a slot as well
        notes.append(
            f"the prompt has {len(prompt)} bytes and the context {context}: its last {context // 2} bytes are read"
        )
    if model.refused:
        notes.append(model.refused)
    return notes


def _origin(model: "LanguageModel") -> str:
    """What is behind the planner's decisions."""
    from bytelm.plans import guessed_plan

    plan = model.plan()
    if plan is None:
        return "guesses"
    if plan.costs == guessed_plan(model.decoder).costs:
        return "the worth of drafts as measured before, what steps cost guessed"
    return "as measured on such a machine"


def _statistics(generation: "Generation", exact: str) -> str:
    words = [
        f"{len(generation.data)} bytes in {generation.steps} steps ({generation.bytes_per_step:.2f} bytes per step)",
        f"{generation.elapsed_s:.2f} s, {generation.bytes_per_second:.0f} bytes/s",
        f"ended by {generation.finish_reason}",
        f"exact {exact}",
    ]
    drafted = [f"{share:.2f}" for share in generation.acceptance_by_head[1:] if share is not None]
    if drafted:
        words.append(f"acceptance by head {' '.join(drafted)}")
    return "; ".join(words)


def _table(generation: "Generation") -> "Table":
    """What became of the drafts of each source."""
    from rich.table import Table

    from bytelm.drafting import LOOKUP

    table = Table(box=None, padding=(0, 1))
    for title in ("source", "verified", "right", "share"):
        table.add_column(title, justify="left" if title == "source" else "right")
    pairs = list(zip(generation.proposed_by_head, generation.accepted_by_head, strict=True))
    counts = [(source_name(head), *pair) for head, pair in enumerate(pairs) if head]
    counts.append((source_name(LOOKUP), generation.proposed_by_lookup, generation.accepted_by_lookup))
    for name, proposed, accepted in counts:
        table.add_row(name, str(proposed), str(accepted), f"{accepted / proposed:.2f}" if proposed else "")
    table.add_row("rows of all passes", str(generation.rows), str(len(generation.data)), "")
    return table
