"""``bytelm report``: one page about a run, or about several."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from bytelm.cli import console

if TYPE_CHECKING:
    from bytelm.report import SideBySide

_PATH_FOR_SEVERAL: Final = Path("report.html")


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folder of a run; several are overlaid.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="PAGE", help="Where to write it, instead of RUN/report.html or ./report.html."),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt", help="Text to continue for the samples; again for more. Default: a document's beginning."
        ),
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option("--max-bytes", min=0, help="Bytes a sample of one run, 256 by default; 0 leaves decoding out."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Write one page: curves of every head over bytes, time and operations, acceptance, speed, samples.

    Several runs are drawn one over the other, with their settings that differ; nothing is decoded then.
    """
    from bytelm.errors import ConfigError

    if len(runs) > 1:
        if prompts or max_bytes:
            raise ConfigError("--prompt and --max-bytes are for the report of one run; leave them out")
        warnings: list[str] = []
        with console.alive("reading and drawing the runs"):
            from bytelm.report import write_comparison

            page = write_comparison(runs, out or _PATH_FOR_SEVERAL, tell=warnings.append)
        if as_json:
            console.print_json({"report": str(page), "runs": [str(run) for run in runs], "warnings": warnings})
        else:
            for warning in warnings:
                console.say(warning)
            console.result(console.one_line(page), whole=True)
        return
    length = 256 if max_bytes is None else max_bytes
    with console.alive("decoding samples and drawing the run" if length else "drawing the run"):
        from bytelm.report import acceptance_over, write_report

        comparisons = _decoded(runs[0], prompts or [""], length) if length else []
        page = write_report(runs[0], comparisons, out)
    if as_json:
        console.print_json(
            {
                "report": str(page),
                "runs": [str(runs[0])],
                "equal": all(comparison.equal for comparison in comparisons) if comparisons else None,
                "acceptance_by_head": acceptance_over(comparisons) if comparisons else None,
                "bytes_per_step": [comparison.speculative.bytes_per_step for comparison in comparisons],
                "speculative_over_plain": [comparison.speedup for comparison in comparisons],
            }
        )
    else:
        console.result(console.one_line(page), whole=True)


def _decoded(run: Path, prompts: list[str], max_bytes: int) -> "list[SideBySide]":
    from bytelm.api import load
    from bytelm.report import side_by_side

    model = load(run, device="cpu")
    return [
        side_by_side(
            model.decoder,
            os.fsencode(prompt),
            max_bytes=max_bytes,
            context_bytes=model.context_bytes,
            tuned=model.plan(),
        )
        for prompt in prompts
    ]
