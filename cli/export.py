"""``bytelm export``: a trained model alone, to be given away."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bytelm.cli import console


class Dtype(StrEnum):
    """What weights are stored in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or of one checkpoint.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make.")],
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="Of the weights in the file; bfloat16 halves it and rounds them.")
    ] = Dtype.BFLOAT16,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Write a model's weights and settings alone, without what a training needs to go on.

    Whatever takes the folder of a run to generate, evaluate or begin another run takes this one too.
    """
    from bytelm.export import export_model

    folder = export_model(run, out, dtype=dtype.value)
    size = sum(path.stat().st_size for path in folder.iterdir())
    if as_json:
        console.print_json({"model": str(folder), "bytes": size, "dtype": dtype.value})
    else:
        console.result(f"{console.one_line(folder)}, {size / 1e6:.2f} MB in {dtype.value}")
