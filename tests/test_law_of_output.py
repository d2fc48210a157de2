"""Sampled output has exactly the law that the settings name, drafted or not: all strings of three bytes, enumerated.

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

from bytelm import drafting
from bytelm.config import ModelConfig
from bytelm.decode import Request, decode_batch
from bytelm.generation import GenerateSettings
from bytelm.rejection import draw, probabilities, verify_block
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

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self.ids: list[int] = []

    def truncate(self, length: int) -> None:
        self.length = length

    def advance(self, count: int) -> None:
        self.length += count


class Pass:
    def __init__(self, cache: Cache, rows: int, parents: Sequence[int] | None) -> None:
        self.cache = cache
        self.parents = [*range(-1, rows - 1)] if parents is None else list(parents)


class Table:
    """What the decoder asks of a model and of its heads; a row's hidden state is the last two ids on its path."""

    def __init__(self) -> None:
        self.embedding = torch.zeros(1)
        self.heads = self
        self.vocabulary = BYTES
        self.config = ModelConfig()
        self.count = PREDICTION_HEADS
        self.cache_layers = 0
        self.rows_of_a_sequence = 1
        self.known: dict[tuple[int, ...], np.ndarray] = {}

    def parameter_counts(self) -> dict[str, int]:
        return {"trunk": 1000, "heads": 40}

    def new_cache(self, batch: int, capacity: int) -> Cache:
        assert batch == 1
        return Cache(capacity)

    def prefill(self, inputs_1T: Tensor, cache: Cache) -> None:
        cache.ids = inputs_1T[0].tolist()
        cache.length = len(cache.ids)

    def cached_pass(self, cache: Cache, rows: int, parents: Sequence[int] | None = None) -> Pass:
        return Pass(cache, rows, parents)

    def decode(self, inputs_1M: Tensor, shared: Pass) -> Tensor:
        ids, before = inputs_1M[0].tolist(), shared.cache.ids[: shared.cache.length]
        paths: list[list[int]] = []
        for row, parent in enumerate(shared.parents):
            paths.append([*(paths[parent] if parent >= 0 else before[-1:]), ids[row]][-2:])
        shared.cache.ids = before + ids
        return torch.tensor([[[*[EOD, EOD], *path][-2:] for path in paths]])

    def decode_logits(self, hidden: Tensor, shared: Pass, which: range, *, rows: Any = slice(None)) -> Tensor:
        del shared
        return torch.from_numpy(
            np.stack([[self.logits(tuple(path), head) for head in which] for path in hidden[0, rows].tolist()])[None]
        )

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


def exact_law(table: Table, **changes: Any) -> dict[bytes, float]:
    """The joint law by multiplying what each node says."""
    law = settings_of(**changes).law()
    found: dict[bytes, float] = {}

    def walk(said: bytes, node: Any, chance: float) -> None:
        if len(said) == LENGTH:
            found[said] = chance
            return
        path = (EOD, *PROMPT, *said)[-2:]
        law_V = probabilities(law, table.logits(path, 0), node)
        for byte in np.flatnonzero(law_V > 1e-12).tolist():
            walk(said + bytes((byte,)), node.after(byte), chance * law_V[byte])

    walk(b"", law.first_node(PROMPT), 1.0)
    assert math.isclose(sum(found.values()), 1.0, abs_tol=1e-9)
    return found


def samples(table: Table, draws: int, **changes: Any) -> Counter[bytes]:
    asked = (Request(PROMPT, settings_of(sequence, **changes)) for sequence in range(draws))
    model: Any = table
    parts: dict[int, bytes] = {}
    for index, step in decode_batch(model, asked, context_bytes=64, slots=1):
        parts[index] = parts.get(index, b"") + step.data
    assert len(parts) == draws
    return Counter(parts.values())


def far_from(law: dict[bytes, float], counts: Counter[bytes]) -> bool:
    """Whether chi-square is beyond what happens once in some ten thousand draws."""
    draws = sum(counts.values())
    if set(counts) - set(law):
        return True
    rare = [said for said in law if law[said] * draws < 5]
    groups = [[said] for said in law if said not in set(rare)] + ([rare] if rare else [])
    square = 0.0
    for group in groups:
        expected = sum(law[said] for said in group) * draws
        square += (sum(counts[said] for said in group) - expected) ** 2 / max(expected, 1e-9)
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
    {"draft": "tree"},
    {"draft": "heads", "accept": "rejection"},
    {"draft": "adaptive", "accept": "rejection"},
]


@pytest.mark.parametrize("index", range(2 * len(SETTINGS)))
def test_drafted_samples_follow_the_enumerated_law(index: int) -> None:
    table, changes, way = Table(), SETTINGS[index // 2], WAYS[1 + (index + index // 4) % 4]
    assert not far_from(exact_law(table, **changes), samples(table, 400, **changes, **way))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("changes", SETTINGS, ids=str)
def test_200_000_samples_follow_the_enumerated_law(changes: dict[str, Any], way: dict[str, Any]) -> None:
    table = Table()
    assert not far_from(exact_law(table, **changes), samples(table, 200_000, **changes, **way))


def test_rejection_accepts_drafts_and_coupled_bytes_are_those_of_plain_decoding() -> None:
    table, steps = Table(), {}
    model: Any = table
    said: dict[str, list[bytes]] = {}
    for name, way in (("plain", WAYS[0]), ("coupled", WAYS[1]), ("tree", WAYS[2]), ("rejection", WAYS[3])):
        parts: dict[int, bytes] = {}
        asked = [Request(PROMPT, settings_of(sequence, max_bytes=24, **way)) for sequence in range(20)]
        count = 0
        for index, step in decode_batch(model, asked, context_bytes=64, slots=1):
            parts[index] = parts.get(index, b"") + step.data
            count += 1
        steps[name], said[name] = count, [parts[index] for index in range(20)]
    assert said["plain"] == said["coupled"] == said["tree"]
    assert max(steps["coupled"], steps["tree"], steps["rejection"]) < steps["plain"]


def _dropped_by_value(self: Any, logits_KV: Any, node: Any, limit: int, random: Any) -> list[Any]:
    found = _DRAWN(self, logits_KV, node, limit, random)
    unlikely = next((place for place, one in enumerate(found) if one.drawn_from[one.identifier] < 0.4), len(found))
    return found[:unlikely]


def _other_law(self: Any, logits_KV: Any, node: Any, limit: int, random: Any) -> list[Any]:
    found = _DRAWN(self, logits_KV, node, limit, random)
    for one in found:  # the ratio with a law of another temperature than that of the draw
        law_V = one.drawn_from**2
        one.drawn_from = law_V / law_V.sum()
    return found


def _likeliest(self: Any, logits_KV: Any, node: Any, limit: int, random: Any) -> list[Any]:
    found = _DRAWN(self, logits_KV, node, limit, random)
    for one in found[:1]:
        one.identifier = int(one.drawn_from.argmax())
    return found[:1]


def _one_sample_for_a_path(self: Any, position: int, count: int) -> Any:
    del position
    return _ROWS(self, 0, 1).repeat(count, axis=0)


_DRAWN: Any = drafting.Drafter.drawn
_ROWS: Any = __import__("bytelm.sampling", fromlist=["x"])._PositionNoise.rows


@pytest.mark.parametrize(
    ("place", "name", "mistake"),
    [
        (drafting.Drafter, "drawn", _dropped_by_value),
        (drafting.Drafter, "drawn", _other_law),
        (drafting.Drafter, "drawn", _likeliest),
    ],
)
def test_planted_mistakes_of_rejection_are_seen(
    monkeypatch: pytest.MonkeyPatch, place: Any, name: str, mistake: Any
) -> None:
    table = Table()
    monkeypatch.setattr(place, name, mistake)
    assert far_from(exact_law(table), samples(table, 1000, draft="heads", accept="rejection"))


def test_one_sample_for_a_whole_path_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from bytelm import sampling

    table = Table()
    monkeypatch.setattr(sampling._PositionNoise, "rows", _one_sample_for_a_path)
    assert far_from(exact_law(table), samples(table, 600, draft="none"))


def test_every_planted_mistake_is_absent_otherwise() -> None:
    table = Table()
    for way in ({"draft": "none"}, {"draft": "heads", "accept": "rejection"}):
        assert not far_from(exact_law(table), samples(table, 1000, **way))


def blocks(draws: int, *, forget_the_rest: bool) -> Counter[tuple[int, ...]]:
    """Two drafts and what is behind them, judged as a block; what a block leaves open is drawn from the trunk's law."""
    random = np.random.default_rng(5)
    q_PV, found = [np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.6, 0.3])], Counter[tuple[int, ...]]()
    for _ in range(draws):
        drafted = [draw(random, q_V) for q_V in q_PV]
        laws = [_TRUNK[()], _TRUNK[tuple(drafted[:1])], _TRUNK[tuple(drafted)]]
        said = verify_block(random, drafted, q_PV, laws)
        if forget_the_rest and len(said) < 3:
            said[-1] = draw(random, laws[len(said) - 1])
        while len(said) < 3:
            said.append(draw(random, _TRUNK[tuple(said)]))
        found[tuple(said)] += 1
    return found


_TRUNK = {
    path: np.random.default_rng([*path, 11]).dirichlet([1.0, 1.0, 1.0])
    for length in range(3)
    for path in itertools.product(range(3), repeat=length)
}


def test_a_block_is_a_draw_of_the_trunk_and_a_forgotten_residual_is_seen() -> None:
    law: dict[Any, float] = {
        said: float(_TRUNK[()][said[0]] * _TRUNK[said[:1]][said[1]] * _TRUNK[said[:2]][said[2]])
        for said in itertools.product(range(3), repeat=3)
    }
    good: Any = blocks(6000, forget_the_rest=False)
    wrong: Any = blocks(6000, forget_the_rest=True)
    assert not far_from(law, good)
    assert far_from(law, wrong)


def _strings() -> Iterator[bytes]:
    yield from (bytes(one) for one in itertools.product(ALPHABET, repeat=LENGTH))


def test_the_law_without_settings_gives_every_string_a_chance() -> None:
    assert set(exact_law(Table())) == set(_strings())
