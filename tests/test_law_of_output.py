"""Sampled output has exactly the distribution that the settings name, drafted or not: all strings of three bytes.

The model is a table: four bytes, logits by the last two ids; its heads know something of what comes, not all. The
decoder around it is the real one.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bytelm import sampling
from bytelm.config import ModelConfig
from bytelm.decode import Request, decode_batch
from bytelm.decoding import torch_decode
from bytelm.generation import GenerateSettings
from bytelm.layers import pick_rows
from bytelm.vocab import BYTES, EOD, VOCABULARY_SIZE

ALPHABET = (0x61, 0xC3, 0xA9, 0x62)  # a, the two bytes of é, b
LENGTH = 3
PROMPT = b"a"
PREDICTION_HEADS = 4


def row_of(key: Sequence[int], sharpness: float) -> np.ndarray:
    source = np.random.default_rng([*key, 7])
    row = np.full(VOCABULARY_SIZE, -1e4, np.float32)
    row[list(ALPHABET)] = sharpness * source.normal(size=len(ALPHABET))
    return row


class Cache:
    """The ids instead of their keys."""

    def __init__(self, batch: int, capacity: int) -> None:
        self.capacity, self.lengths = capacity, [0] * batch
        self.ids: list[list[int]] = [[] for _ in range(batch)]

    def advance(self, counts: Sequence[int]) -> None:
        self.lengths = [length + count for length, count in zip(self.lengths, [*counts, *[0] * 9], strict=False)]

    def move(self, source: int, target: int) -> None:
        self.ids[target], self.lengths[target] = list(self.ids[source]), self.lengths[source]


class Table:
    """What the decoder asks of a model and of its heads; a row's hidden state is the last two ids before it."""

    def __init__(self) -> None:
        self.embedding = torch.zeros(1)
        self.heads = self
        self.vocabulary = BYTES
        self.config = ModelConfig()
        self.count = PREDICTION_HEADS
        self.cache_layers = 0
        self.known: dict[tuple[int, ...], np.ndarray] = {}

    def parameter_counts(self) -> dict[str, int]:
        return {"trunk": 1000, "heads": 40}

    def new_cache(self, batch: int, capacity: int) -> Cache:
        return Cache(batch, capacity)

    def prefill(self, inputs_1T: Tensor, cache: Cache, sequence: int) -> None:
        cache.ids[sequence] = inputs_1T[0].tolist()
        cache.lengths[sequence] = len(cache.ids[sequence])

    def cached_pass(self, cache: Cache, batch: int, rows: int) -> Cache:
        del batch, rows
        return cache

    def decode(self, inputs_BM: Tensor, shared: Cache) -> Tensor:
        found = []
        for place, ids in enumerate(inputs_BM.tolist()):
            before = shared.ids[place][: shared.lengths[place]]
            shared.ids[place] = before + ids
            found.append([[EOD, EOD, *before, *ids[: row + 1]][-2:] for row in range(len(ids))])
        return torch.tensor(found)

    def decode_logits(self, hidden_BM2: Tensor, shared: Cache, which: range, *, row_B: Tensor | None = None) -> Tensor:
        del shared
        paths_BM2 = pick_rows(hidden_BM2, row_B).tolist()
        found = [[[self.logits(tuple(path), head) for head in which] for path in paths] for paths in paths_BM2]
        return torch.from_numpy(np.array(found))

    def logits(self, path: tuple[int, ...], head: int) -> np.ndarray:
        """Of head 0 by the path; of head k what follows the trunk's likeliest bytes, blurred."""
        key = (*path, head)
        if key not in self.known:
            if head == 0:
                row = row_of(path, 1.5)
            else:
                one, two = path
                for _ in range(head):
                    one, two = two, int(self.logits((one, two), 0).argmax())
                row = self.logits((one, two), 0) * np.float32(0.7) + 0.3 * row_of((*path, head), 1.0)
            self.known[key] = row
        return self.known[key]


def settings_of(sequence: int = 0, **changes: Any) -> GenerateSettings:
    return GenerateSettings(**({"max_bytes": LENGTH, "temperature": 1.0, "seed": 3, "sequence": sequence} | changes))


def exact_distribution(table: Table, **changes: Any) -> dict[bytes, float]:
    """The joint distribution by multiplying what each byte has."""
    next_byte = settings_of(**changes).next_byte()
    found: dict[bytes, float] = {}

    def walk(said: bytes, context: Any, path_probability: float) -> None:
        if len(said) == LENGTH:
            found[said] = path_probability
            return
        logits_V = next_byte.logits(table.logits((EOD, *PROMPT, *said)[-2:], 0), context)
        probability_V = np.exp(next_byte.sampler.log_probs(logits_V[None])[0])
        for byte in np.flatnonzero(probability_V > 1e-12).tolist():
            walk(said + bytes((byte,)), context.after(byte), path_probability * probability_V[byte])

    walk(b"", next_byte.first_context(PROMPT), 1.0)
    assert math.isclose(sum(found.values()), 1.0, abs_tol=1e-9)
    return found


def samples(table: Table, draws: int, slots: int = 1, **changes: Any) -> Counter[bytes]:
    asked = (Request(PROMPT, settings_of(sequence, **changes)) for sequence in range(draws))
    model: Any = table
    parts: dict[int, bytes] = {}
    for index, step in decode_batch(model, asked, context_bytes=64, slots=slots):
        parts[index] = parts.get(index, b"") + step.data
    assert len(parts) == draws
    return Counter(parts.values())


def far_from(expected: dict[bytes, float], counts: Counter[bytes]) -> bool:
    """Whether chi-square is beyond what happens once in some ten thousand draws."""
    draws = sum(counts.values())
    if set(counts) - set(expected):
        return True
    rare = [said for said in expected if expected[said] * draws < 5]
    groups = [[said] for said in expected if said not in set(rare)] + ([rare] if rare else [])
    square = 0.0
    for group in groups:
        mean = sum(expected[said] for said in group) * draws
        square += (sum(counts[said] for said in group) - mean) ** 2 / max(mean, 1e-9)
    freedom = len(groups) - 1
    return square > freedom + 4.0 * math.sqrt(2.0 * freedom) + 9.0


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.3, "top_k": 2},
    {"top_p": 0.8},
    {"min_p": 0.2},
    {"repetition_penalty": 1.5},
    {"utf8": True},
    {"utf8": True, "temperature": 1.2, "top_p": 0.9, "repetition_penalty": 1.2},
]
WAYS: list[dict[str, Any]] = [
    {"draft": "none"},
    {"draft": "adaptive"},
    {"draft": "heads"},
    {"draft": "ngram"},
    {"draft": "adaptive", "slots": 5},
    {"draft": "heads", "slots": 5},
]


@pytest.mark.parametrize("index", range(2 * len(SETTINGS)))
def test_drafted_samples_follow_the_enumerated_distribution(index: int) -> None:
    table, changes, way = Table(), SETTINGS[index // 2], WAYS[1 + (index + index // 5) % 5]
    assert not far_from(exact_distribution(table, **changes), samples(table, 400, **changes, **way))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("changes", SETTINGS, ids=str)
def test_200_000_samples_follow_the_enumerated_distribution(changes: dict[str, Any], way: dict[str, Any]) -> None:
    table = Table()
    assert not far_from(exact_distribution(table, **changes), samples(table, 200_000, **changes, **way))


def test_bytes_of_a_seed_are_those_of_plain_decoding_in_fewer_steps() -> None:
    table: Any = Table()
    steps, said = [], []
    for way in ("none", "heads", "adaptive"):
        asked = [Request(PROMPT, settings_of(sequence, max_bytes=24, draft=way)) for sequence in range(20)]
        found, count = [b""] * 20, 0
        for index, step in decode_batch(table, asked, context_bytes=64, slots=3):
            found[index] += step.data
            count += 1
        steps.append(count)
        said.append(found)
    assert said[0] == said[1] == said[2]
    assert max(steps[1:]) < 0.8 * steps[0]


@pytest.mark.parametrize("draft", ["none", "heads"])
def test_one_noise_for_all_positions_is_seen(monkeypatch: pytest.MonkeyPatch, draft: str) -> None:
    rows = sampling._PositionNoise.rows

    def first_position(self: Any, position: int, count: int) -> Any:
        del position
        return rows(self, 0, 1).repeat(count, axis=0)

    table = Table()
    assert not far_from(exact_distribution(table), samples(table, 400, draft=draft))
    monkeypatch.setattr(sampling._PositionNoise, "rows", first_position)
    assert far_from(exact_distribution(table), samples(table, 400, draft=draft))


def test_a_draft_that_is_accepted_unseen_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def credulous(sequence: Any, drafted: Any, logits_MV: Any) -> list[int]:
        chosen, context = [], sequence.context
        for candidate in drafted[:1]:
            chosen.append(candidate.identifier)
            context = context.after(candidate.identifier)
        return [*chosen, sequence.next_byte.choose(logits_MV[len(chosen)], context)]

    table = Table()
    monkeypatch.setattr(torch_decode, "verify", credulous)
    assert far_from(exact_distribution(table), samples(table, 600, draft="heads"))


def _strings() -> Iterator[bytes]:
    yield from (bytes(one) for one in itertools.product(ALPHABET, repeat=LENGTH))


def test_without_settings_every_string_has_a_probability() -> None:
    assert set(exact_distribution(Table())) == set(_strings())
