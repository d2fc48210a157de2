"""A trained model alone, to be given away: its weights and settings, without what a training needs to go on.

    folder/
      model.safetensors   the weights that are evaluated
      config.toml         the settings
      manifest.json       written last: size and SHA-256 of each of these files, and of itself

Of the corpus it keeps the name and the fingerprint, not the place on the machine that it was trained on.

Everything that takes the folder of a run for generating, evaluating or ``--init-from`` takes this one too.
"""

import shutil
from pathlib import Path
from typing import Final, Literal

import torch

from bytelm.checkpoint import find_checkpoint, load_vocabulary, load_weights, read_training, write_model
from bytelm.errors import StorageError
from bytelm.files import refusals_named

Dtype = Literal["float32", "bfloat16"]
_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def export_model(source: Path, out: Path, *, dtype: Dtype = "bfloat16") -> Path:
    """Write a model alone.

    Args:
        source: Folder of a run, whose newest checkpoint is taken, or of one checkpoint.
        out: Folder to make; it must not exist.
        dtype: Of the weights in the file. They are float32 again when they are loaded, so bfloat16 halves the file
            and rounds each weight to 8 significant bits.

    Returns:
        ``out``.

    Raises:
        CheckpointError: As ``load_model``.
        StorageError: ``out`` exists, or the disk refuses; then nothing of it stays.
    """
    if out.exists():
        raise StorageError(f"cannot write {out}: it exists; choose another --out")
    checkpoint = find_checkpoint(source)
    config, weights = load_weights(checkpoint)
    step, corpus, fingerprint = read_training(checkpoint)
    beside = out.with_name(f".{out.name}.part")
    with refusals_named(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)  # of an export that was killed
        beside.mkdir()
        try:
            rounded = {name: weight.to(_DTYPES[dtype]) for name, weight in weights.items()}
            write_model(
                beside,
                rounded,
                config,
                step=step,
                corpus=Path(corpus).name if isinstance(corpus, str) else [Path(one).name for one in corpus],
                fingerprint=fingerprint,
                vocabulary=load_vocabulary(checkpoint, config),
            )
            beside.rename(out)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    return out
