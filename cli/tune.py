"""``bytelm tune``: measure what drafts cost and are worth on this machine, keep the decoding plan beside the run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer
from rich.table import Table

from bytelm.cli import console

if TYPE_CHECKING:
    from bytelm.tune import FittedPairs, Tuning

_PROMPT_BYTES: Final = 192
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
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads; default: as bytelm generate takes.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="torch device; auto takes CUDA where there is one.")] = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "int8"],
        typer.Option(
            "--precision",
            help="Of the weights; auto is float32 on the CPU, bfloat16 on CUDA; int8 is for large models on a CPU.",
        ),
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Measure the cost of a decoding step and the worth of drafts, and write decode.json into the run.

    bytelm generate then drafts as much as pays with this model on this machine. The plan belongs to these weights,
    this precision, device, number of threads and versions; with others it is refused, and said so. Bytes are the same
    with every plan.
    """
    import torch

    from bytelm.api import load
    from bytelm.device import choose_decoding_threads
    from bytelm.tune import best_pairs, run_folder, write_plan
    from bytelm.tune import tune as measure
    from bytelm.vocab import BYTES

    model = load(run, device=device, precision=precision)
    torch.set_num_threads(threads or choose_decoding_threads(model.model.parameter_counts()["total"]))
    length = max(1, min(_PROMPT_BYTES, model.context_bytes // 2))
    say = _nothing if as_json else console.say
    texts = _texts(file)
    kinds = {kind: _pieces(data, prompts, length) for kind, data in texts.items()}
    fitted = None
    if model.model.vocabulary is BYTES:
        say("fitting the correction of the draft heads")
        known = model.plan()
        texts = {kind: data for kind, data in texts.items() if kind != _NOISE}
        fitted = best_pairs(
            model.model, texts, context_bytes=model.context_bytes, known=None if known is None else known.pairs
        )
    tuning = measure(
        model.model,
        kinds,
        context_bytes=model.context_bytes,
        max_bytes=max_bytes,
        pairs=None if fitted is None else fitted.pairs,
        say=say,
    )
    path = write_plan(run_folder(run), tuning.plan, model.model)
    if as_json:
        console.print_json(_as_json(tuning, fitted, path))
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


def _texts(files: list[Path] | None) -> dict[str, bytes]:
    """Held-out bytes by kind."""
    import random
    import tempfile

    import bytelm
    from bytelm.errors import SourceError
    from bytelm.quickstart import unpack_sample

    if files:
        texts = {}
        for file in files:
            try:
                texts[file.name] = file.read_bytes()
            except OSError as error:
                raise SourceError(f"cannot read {file}: {error.strerror}; give a file that exists") from error
        return texts
    with tempfile.TemporaryDirectory() as folder:
        unpack_sample(Path(folder))
        samples = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        prose = max(samples, key=lambda path: path.stat().st_size).read_bytes()
    sources = sorted(Path(bytelm.__file__).parent.glob("*.py"))
    code = b"\n".join(path.read_bytes() for path in sources)
    return {"prose": prose, "code": code, _NOISE: random.Random(0).randbytes(1 << 14)}


def _pieces(data: bytes, count: int, length: int) -> list[bytes]:
    from bytelm.evaluate import excerpts

    return [piece for piece in excerpts([data], len(data), count=count, length=length) if piece]


def _costs(tuning: "Tuning") -> Table:
    table = Table(title="milliseconds of a step", box=None, padding=(0, 1))
    table.add_column("bytes before it", justify="right")
    for rows in tuning.plan.costs[0][1].rows:
        table.add_column(f"{rows} rows", justify="right")
    for title in ("draft heads", "a sequence more"):
        table.add_column(title, justify="right")
    for past, cost in tuning.plan.costs:
        table.add_row(str(past), *(f"{1e3 * one:.2f}" for one in (*cost.cost, cost.heads, cost.sequence)))
    return table


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


def _as_json(tuning: "Tuning", fitted: "FittedPairs | None", path: Path) -> dict[str, Any]:
    return {
        "plan": str(path),
        "bytes_per_step_of_all_heads": None
        if fitted is None
        else {"alone": round(fitted.without, 4), "corrected": round(fitted.within, 4)},
        "elapsed_s": round(tuning.elapsed_s, 3),
        "costs": [
            {"past": past, "rows": cost.rows, "seconds": cost.cost, "heads": cost.heads, "sequence": cost.sequence}
            for past, cost in tuning.plan.costs
        ],
        "checks": [
            {
                "kind": check.kind,
                "plain_bytes_per_second": check.plain,
                "predicted_bytes_per_second": check.predicted,
                "achieved_bytes_per_second": check.achieved,
                "bytes_per_step": check.bytes_per_step,
                "verified_and_right": {name: list(counts) for name, counts in check.acceptance.items()},
            }
            for check in tuning.checks
        ],
    }
