"""``bytelm report``: one page about a run."""

import os
from pathlib import Path
from typing import Annotated

import typer

from bytelm.cli import console


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt", help="Text to continue for the samples; again for more. Default: a document's beginning."
        ),
    ] = None,
    max_bytes: Annotated[int, typer.Option("--max-bytes", min=0, help="Bytes a sample; 0 leaves decoding out.")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Write RUN/report.html: curves of every head, acceptance, decoding speed, samples coloured by head."""
    import torch

    from bytelm.checkpoint import load_model
    from bytelm.device import choose_decoding_threads
    from bytelm.report import acceptance_over, side_by_side, write_report

    comparisons = []
    if max_bytes:
        model, config = load_model(run)
        torch.set_num_threads(choose_decoding_threads(model.parameter_counts()["total"]))
        for prompt in prompts or [""]:
            comparisons.append(
                side_by_side(model, os.fsencode(prompt), max_bytes=max_bytes, context_bytes=config.data.window_bytes)
            )
    page = write_report(run, comparisons)
    if as_json:
        console.print_json(
            {
                "report": str(page),
                "equal": all(comparison.equal for comparison in comparisons) if comparisons else None,
                "acceptance_by_head": acceptance_over(comparisons) if comparisons else None,
                "bytes_per_step": [comparison.speculative.bytes_per_step for comparison in comparisons],
                "speculative_over_plain": [comparison.speedup for comparison in comparisons],
            }
        )
    else:
        console.result(str(page))
