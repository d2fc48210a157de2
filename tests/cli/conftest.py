"""What several tests of commands share."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bytelm.checkpoint import Snapshot, save_checkpoint
from bytelm.config import RunConfig
from bytelm.model import ByteLM
from bytelm.vocab import EOD, VOCABULARY_SIZE

CONFIG = RunConfig.build(
    "tiny",
    [
        "data.window_bytes=64",
        "model.local_window_bytes=16",
        "model.d_model=32",
        "model.layers=2",
        "model.d_ff=64",
        'model.attention_pattern=["local", "global"]',
        "heads.count=4",
    ],
)


@pytest.fixture(scope="package")
def random_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with random weights that hardly ever ends a document."""
    torch.manual_seed(2)
    model = ByteLM(CONFIG.model, CONFIG.heads)
    unembedding: Any = model.heads.unembedding
    with torch.no_grad():
        unembedding.weight.mul_(8.0).view(-1, VOCABULARY_SIZE, CONFIG.model.d_model)[:, EOD] = 0.0
    folder = tmp_path_factory.mktemp("run")
    snapshot = Snapshot(
        step=1,
        config=CONFIG,
        corpus="corpus",
        fingerprint="0" * 64,
        model=model.state_dict(),
        optimizer={},
        random={"cpu": torch.get_rng_state()},
        progress={},
    )
    save_checkpoint(folder, snapshot, keep=1)
    return folder
