"""Bits per byte agree with a forward pass that shares no code with the model: NumPy in float64, from the file alone."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from bytelm.checkpoint import Snapshot, load_model, save_checkpoint
from bytelm.config import RunConfig
from bytelm.evaluate import bits_per_byte
from bytelm.model import ByteLM

Array = NDArray[np.float64]
SETTINGS = {"d_model": 32, "layers": 3, "attention_heads": 4, "kv_heads": 2, "d_ff": 48, "local_window_bytes": 6}
PATTERN = ["local", "global"]
NGRAMS = [2, 3]
EPSILON, BASE, HEADS = 1e-6, 10_000.0, 3


def normed(states: Array, gain: Array | float) -> Array:
    return states / np.sqrt((states**2).mean(-1, keepdims=True) + EPSILON) * gain


def turned(states_THC: Array) -> Array:
    """Rotary positions, as pairs of channels (c, c + C/2) turned as complex numbers."""
    length, _, channels = states_THC.shape
    angles = np.arange(length)[:, None] * BASE ** (-np.arange(channels // 2) / (channels // 2))
    pairs = (states_THC[..., : channels // 2] + 1j * states_THC[..., channels // 2 :]) * np.exp(1j * angles)[:, None]
    return np.concatenate([pairs.real, pairs.imag], -1)


def ngrams(tables_NRW: Array, ids: list[int], sizes: list[int]) -> Array:
    """What is found in the tables, side by side; n-grams begin at the first id at the earliest."""
    rows = []
    for place in range(len(ids)):
        found = []
        for table_RW, size in zip(tables_NRW, sizes, strict=True):
            value = 0
            for distance in range(size):  # from the id itself back
                before = ids[place - distance] + 1 if place >= distance else 0
                value = (value * 1_103_515_245 + before) % (2**31 - 1)
            found.append(table_RW[value % len(table_RW)])
        rows.append(np.concatenate(found))
    return np.stack(rows)


def forward(weights: dict[str, Array], ids: list[int]) -> Array:
    """Log-probabilities (T, K, V)."""
    heads, groups = SETTINGS["attention_heads"], SETTINGS["kv_heads"]
    channels = SETTINGS["d_model"] // heads
    hidden_TD = weights["embedding"][ids]
    if "ngrams.tables" in weights:
        hidden_TD = hidden_TD + ngrams(weights["ngrams.tables"], ids, NGRAMS) @ weights["ngrams.output.weight"].T
    place = np.arange(len(ids))
    for layer in range(SETTINGS["layers"]):

        def of(name: str, layer: int = layer) -> Array:
            return weights[f"layers.{layer}.{name}"]

        mixed = normed(hidden_TD, of("attention_norm.gain")) @ of("attention.query_key_value.weight").T
        mixed = mixed.reshape(len(ids), -1, channels)
        gain = of("attention.query_key_gain")
        query = turned(normed(mixed[:, :heads], gain[:heads]))
        key = turned(normed(mixed[:, heads : heads + groups], gain[heads:]))
        value = mixed[:, heads + groups :]
        seen = place[None, :] <= place[:, None]
        if PATTERN[layer % 2] == "local":
            seen &= place[None, :] > place[:, None] - SETTINGS["local_window_bytes"]
        attended = np.empty((len(ids), heads, channels))
        for head in range(heads):
            group = head // (heads // groups)
            scores = query[:, head] @ key[:, group].T / math.sqrt(channels)
            scores = np.exp(np.where(seen, scores, -np.inf))
            attended[:, head] = scores / scores.sum(-1, keepdims=True) @ value[:, group]
        hidden_TD = hidden_TD + attended.reshape(len(ids), -1) @ of("attention.output.weight").T
        gate, up = np.split(
            normed(hidden_TD, of("feed_forward_norm.gain")) @ of("feed_forward.gate_up.weight").T, 2, -1
        )
        hidden_TD = hidden_TD + (gate / (1 + np.exp(-gate)) * up) @ of("feed_forward.output.weight").T
    logits = normed(hidden_TD, weights["heads.norm.gain"]) @ weights["heads.unembedding.weight"].T
    logits = logits.reshape(len(ids), HEADS, -1)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.fixture(params=[[], NGRAMS], ids=["bytes alone", "n-grams too"])
def checkpoint(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    pattern = f"model.attention_pattern={json.dumps(PATTERN)}"
    changes = [f"model.{name}={value}" for name, value in SETTINGS.items()]
    changes += [f"model.ngram_sizes={request.param}", "model.ngram_rows=50", "model.ngram_width=8"]
    config = RunConfig.build("tiny", [*changes, pattern, f"heads.count={HEADS}"])
    torch.manual_seed(3)
    model = ByteLM(config.model, config.heads)
    with torch.no_grad():  # sharp, and with gains that matter
        for name, parameter in model.named_parameters():
            parameter.mul_(8.0 if "unembedding" in name else 1.0)
            if name == "ngrams.tables":
                parameter.normal_()
            if name.endswith("gain"):
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    nothing: dict[str, Any] = {"optimizer": {}, "random": {}, "progress": {}}
    snapshot = Snapshot(step=1, config=config, corpus="x", fingerprint="y", model=model.state_dict(), **nothing)
    return save_checkpoint(tmp_path, snapshot, keep=1)


def test_bits_per_byte_agree_with_numpy_to_four_decimals(checkpoint: Path) -> None:
    documents = [b"def f(x):\r\n\treturn x\x00\xff\n", "Grüße, 世界 🎈".encode(), b"", b"z"]
    weights = {name: array.astype(np.float64) for name, array in load_file(checkpoint / "model.safetensors").items()}
    context, stride = 16, 8
    nats, counts = np.zeros(HEADS), np.zeros(HEADS)
    for document in documents:
        ids, seen, start = [256, *document], 0, 0
        while seen < len(document):  # in words: each byte by the first window that reads the id before it
            end = min(start + context, len(document))
            law = forward(weights, ids[start:end])
            for place in range(seen, end):
                for head in range(HEADS):
                    if place + head < len(document):
                        nats[head] -= law[place - start, head, document[place + head]]
                        counts[head] += 1
            seen, start = end, start + stride
    expected = nats / math.log(2) / counts
    model, _ = load_model(checkpoint)
    found = bits_per_byte(model, documents, context_bytes=context, stride=stride)
    assert found.by_head == pytest.approx(expected, abs=5e-5)
    assert expected.min() > 8.5  # not what a model gives that knows nothing
