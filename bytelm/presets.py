"""Named starting points of a run: changes to the defaults of ``bytelm.config``, by section. Data alone."""

from typing import Any, Final

_DRAFTING: Final[dict[str, Any]] = {"weight_ratio": 0.3, "row_share": 0.5}
"""Heads of small models: far heads pull the trunk away from the next byte, so they weigh less and learn from half the
rows (docs/experiments.md, 2026-12-01). The paper's heads weigh the same and help its model of 7 B, so larger presets
keep its setting."""

PRESETS: Final[dict[str, dict[str, dict[str, Any]]]] = {
    # About 1 M parameters: tests and the demo. In minutes on a CPU many small steps of short windows learn most.
    "tiny": {
        "heads": _DRAFTING,
        "data": {"window_bytes": 256},
        "train": {
            "optimizer": "muon",
            "learning_rate": 5e-3,
            "warmup_fraction": 0.05,
            "batch_windows": 4,
            "steps": 3000,
            "validate_every_steps": 500,
        },
    },
    # About 8 M.
    "nano": {
        "model": {
            "d_model": 320,
            "layers": 6,
            "attention_heads": 10,
            "kv_heads": 5,
            "d_ff": 864,
            "attention_pattern": ["local", "local", "global"],
            "local_window_bytes": 512,
        },
        "heads": _DRAFTING,
        "data": {"window_bytes": 2048},
        "train": {"optimizer": "muon", "learning_rate": 4e-3, "batch_windows": 16, "steps": 20_000},
    },
    # About 45 M.
    "small": {
        "model": {
            "d_model": 576,
            "layers": 12,
            "attention_heads": 9,
            "kv_heads": 3,
            "d_ff": 1536,
            "local_window_bytes": 1024,
        },
        "heads": _DRAFTING,
        "data": {"window_bytes": 8192},
        "train": {"learning_rate": 1e-3, "batch_windows": 32, "steps": 30_000},
    },
    # About 350 M.
    "base": {
        "model": {
            "d_model": 1280,
            "layers": 20,
            "attention_heads": 20,
            "kv_heads": 5,
            "d_ff": 3456,
            "local_window_bytes": 1024,
            "rope_base": 100_000.0,
        },
        "data": {"window_bytes": 8192, "loader_threads": 2},
        "train": {"learning_rate": 6e-4, "batch_windows": 16, "accumulation": 8, "steps": 30_000},
    },
    # About 1.3 B.
    "large": {
        "model": {
            "d_model": 2048,
            "layers": 28,
            "attention_heads": 16,
            "kv_heads": 8,
            "d_ff": 5504,
            "local_window_bytes": 1024,
            "rope_base": 100_000.0,
        },
        "data": {"window_bytes": 8192, "loader_threads": 2},
        "train": {"learning_rate": 4e-4, "batch_windows": 8, "accumulation": 32, "steps": 50_000},
    },
    # About 1.4 M, the smallest of the paper's sizes for its two probes (table S14: width 128, 5 layers): stories of
    # ``bytelm.stories``, and expressions of ``bytelm.polynomials``. Documents are short: windows hold whole ones.
    "induction": {
        "model": {"layers": 5, "kv_heads": 4, "attention_pattern": ["global"]},
        "data": {"window_bytes": 1024, "packing": "document"},
        "train": {"learning_rate": 3e-3, "warmup_fraction": 0.05, "batch_windows": 8, "steps": 2000},
    },
    "arithmetic": {
        "model": {"layers": 5, "kv_heads": 4, "attention_pattern": ["global"]},
        "data": {"window_bytes": 256, "packing": "document"},
        "train": {"learning_rate": 3e-3, "warmup_fraction": 0.05, "batch_windows": 32, "steps": 5000},
    },
    # The byte model of Gloeckle et al. 2024, tables S13 and S14: 12 x 2^20 bytes a step, 25 000 steps.
    "paper-7b": {
        "model": {
            "d_model": 4096,
            "layers": 32,
            "attention_heads": 32,
            "kv_heads": 32,
            "d_ff": 11_008,
            "attention_pattern": ["global"],
        },
        "data": {"window_bytes": 8192, "loader_threads": 4},
        "train": {
            "learning_rate": 3e-4,
            "warmup_fraction": 0.08,
            "batch_windows": 1,
            "accumulation": 1536,
            "steps": 25_000,
        },
    },
}
"""Changes to the defaults by name of the preset, section and setting."""
