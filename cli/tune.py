"""``bytelm tune``: measure what drafts cost and are worth on this machine, keep the decoding plan beside the run."""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer
from rich.table import Table

from bytelm.cli import console

if TYPE_CHECKING:
    from bytelm.api import LanguageModel
    from bytelm.decode import DecodePlan
    from bytelm.tune import FittedPairs, Tuning

_PROMPT_BYTES: Final = 192
_TEXT_BYTES: Final = 64 << 20
_NOISE: Final = "random"


def tune(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run, one of its checkpoints, or the name of a shipped model.")
    ],
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", help="Held-out text of one kind; may be repeated. Default: shipped prose and code."),
    ] = None,
    prompts: Annotated[int, typer.Option("--prompts", min=2, help="Pieces of each kind that are continued.")] = 24,
    max_bytes: Annotated[int, typer.Option("--max-bytes", min=8, help="Bytes that each is continued by.")] = 128,
    fit: Annotated[
        bool,
        typer.Option("--fit/--no-fit", help="Fit the correction of the draft heads too, which needs torch."),
    ] = True,
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
) -> None:
    """Measure the cost of a decoding step and the worth of drafts, and write decode.json into the run.

    bytelm generate then drafts as much as pays with this model on this machine. The plan belongs to these weights and
    to what decodes them: engine or torch, instruction set, precision, processor, threads, version. With others it is
    refused, and said so. Bytes are the same with every plan.
    """
    from bytelm.api import load
    from bytelm.plans import run_folder, write_plan
    from bytelm.tune import tune as measure

    model = load(run, device=device, precision=precision, threads=threads)
    length = max(1, min(_PROMPT_BYTES, model.context_bytes // 2))
    say = _nothing if as_json else console.say
    say(f"measuring {model.decoded_by}")
    texts = _texts(file)
    kinds = {kind: _pieces(data, prompts, length) for kind, data in texts.items()}
    fitted, known = None, model.plan()
    if fit:
        say("fitting the correction of the draft heads")
        fitted = _fit(model, {kind: data for kind, data in texts.items() if file or kind != _NOISE}, known)
    pairs = fitted.pairs if fitted is not None else None if known is None else known.pairs
    tuning = measure(model.decoder, kinds, context_bytes=model.context_bytes, max_bytes=max_bytes, pairs=pairs, say=say)
    path = write_plan(run_folder(run), tuning.plan, model.decoder)
    if as_json:
        console.print_json(_as_json(model, tuning, fitted, path))
        return
    people = console.people()
    if fitted is not None:
        console.say(
            f"bytes a step of all heads: {fitted.without:.2f}; corrected by the two bytes before: {fitted.within:.2f}"
        )
    people.print(_costs(tuning))
    people.print(_checks(tuning))
    people.print(_acceptance(tuning))
    console.result(f"{path} written in {tuning.elapsed_s:.0f} s")


def _nothing(line: str) -> None:
    """Progress is not for ``--json``."""
    del line


def _fit(model: "LanguageModel", texts: dict[str, bytes], known: "DecodePlan | None") -> "FittedPairs | None":
    """A correction of the draft heads, where there are draft heads of bytes; torch is loaded here alone."""
    from bytelm.tune import best_pairs
    from bytelm.vocab import BYTES

    if model.vocabulary is not BYTES or model.head_count < 2:
        return None
    pairs = None if known is None else known.pairs
    return best_pairs(model.model, texts, context_bytes=model.context_bytes, known=pairs)


def _texts(files: list[Path] | None) -> dict[str, bytes]:
    """Held-out bytes by kind."""
    import random

    import bytelm
    from bytelm.bounded_reading import read_bounded

    if files:
        again = {file.name for file in files if sum(other.name == file.name for other in files) > 1}
        return {
            str(file) if file.name in again else file.name: read_bounded(
                file, _TEXT_BYTES, what="the text", remedy="give a part of it: tuning reads a few hundred pieces"
            )
            for file in files
        }
    code = b"\n".join(path.read_bytes() for path in sorted(Path(bytelm.__file__).parent.glob("*.py")))
    return {"prose": _prose(), "code": code, _NOISE: random.Random(0).randbytes(1 << 14)}


def _prose() -> bytes:
    """The longest text of the sample that ships. No torch is needed, which unpacking it for training would load."""
    import importlib.resources
    import io
    import tarfile

    import zstandard

    packed = importlib.resources.files("bytelm.data").joinpath("sample.tar.zst").read_bytes()
    with (
        zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed)) as tar,
        tarfile.open(fileobj=tar, mode="r|") as archive,
    ):
        texts = [file.read() for member in archive if (file := archive.extractfile(member)) is not None]
    return max(texts, key=len)


def _pieces(data: bytes, count: int, length: int) -> list[bytes]:
    """Pieces from evenly spread places; fewer where the text is short."""
    count = min(count, len(data) // length)
    return [data[place : place + length] for place in (len(data) * one // count for one in range(count))]


def _costs(tuning: "Tuning") -> Table:
    """A line for each number of rows, a column for each number of bytes before them."""
    table = Table(title="milliseconds of a step", box=None, padding=(0, 1))
    table.add_column("rows")
    costs = [cost for _, cost in tuning.plan.costs]
    for past, _ in tuning.plan.costs:
        table.add_column(f"{past:,} bytes before", justify="right")
    for place, rows in enumerate(costs[0].rows):
        table.add_row(str(rows), *(_milliseconds(cost.seconds[place]) for cost in costs))
    table.add_row("a draft head more", *(_milliseconds(cost.head) for cost in costs))
    table.add_row("a sequence more", *(_milliseconds(cost.sequence) for cost in costs))
    return table


def _milliseconds(seconds: float) -> str:
    """Three digits that count."""
    value = 1e3 * seconds
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if 1e-3 <= value < 1e3 else f"{value:.0f}"


def _checks(tuning: "Tuning") -> Table:
    table = Table(title="decoding held-out text with the plan", box=None, padding=(0, 1))
    for title in ("text", "bytes a step", "plain B/s", "predicted B/s", "achieved B/s", "off"):
        table.add_column(title, justify="left" if title == "text" else "right")
    for check in tuning.checks:
        table.add_row(
            console.shown(check.kind),
            f"{check.bytes_per_step:.2f}",
            *(f"{rate:,.0f}" for rate in (check.plain, check.predicted, check.achieved)),
            f"{check.achieved / check.predicted - 1:+.0%}",
        )
    return table


def _acceptance(tuning: "Tuning") -> Table:
    """What became of each source's drafts, a column for each text."""
    table = Table(title="drafts that were right", box=None, padding=(0, 1))
    table.add_column("source")
    for check in tuning.checks:
        table.add_column(console.shown(check.kind), justify="right")
    sources = {source for check in tuning.checks for source in check.acceptance}
    for source in sorted(sources, key=lambda name: (not name.isdigit(), name.zfill(2))):
        cells = []
        for check in tuning.checks:
            total, right = check.acceptance.get(source, (0, 0))
            cells.append(f"{right}/{total} {right / total:4.0%}" if total else "")
        table.add_row(f"head {source}" if source.isdigit() else source, *cells)
    return table


def _as_json(model: "LanguageModel", tuning: "Tuning", fitted: "FittedPairs | None", path: Path) -> dict[str, Any]:
    return {
        "plan": str(path),
        "engine": dataclasses.asdict(model.decoded_by),
        "bytes_per_step_of_all_heads": None
        if fitted is None
        else {"alone": round(fitted.without, 4), "corrected": round(fitted.within, 4)},
        "elapsed_s": round(tuning.elapsed_s, 3),
        "costs": [
            {"past": past, "rows": cost.rows, "seconds": cost.seconds, "head": cost.head, "sequence": cost.sequence}
            for past, cost in tuning.plan.costs
        ],
        "checks": [
            {
                "kind": check.kind,
                "plain_bytes_per_second": check.plain,
                "predicted_bytes_per_second": check.predicted,
                "achieved_bytes_per_second": check.achieved,
                "achieved_over_predicted": check.achieved / check.predicted,
                "bytes_per_step": check.bytes_per_step,
                "verified_and_right": {name: list(counts) for name, counts in check.acceptance.items()},
            }
            for check in tuning.checks
        ],
    }
