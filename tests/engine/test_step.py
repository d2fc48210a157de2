"""The engine's passes: equal bits for any rows, trees, batches, threads, instruction sets; torch's numbers to 1e-4."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bytelm.config import RunConfig
from bytelm.engine import Cache, CacheKind, Engine, MatrixKind, Session
from bytelm.engine.library import Library, load_library
from bytelm.engine.weights import engine_from_torch, weights_of
from bytelm.errors import ConfigError, GenerationError
from bytelm.model import ByteLM
from bytelm.vocab import BYTES, EOD

FAMILIES = ("linear", "mlp", "transformer", "causal", "anticausal", "shared")
KINDS: tuple[MatrixKind, ...] = ("float32", "bfloat16", "int8")
SHAPES = {
    "usual": (),
    "n-grams": ("model.ngram_sizes=[2,3,5]", "model.ngram_rows=64", "model.ngram_width=24"),
    "odd widths": ("model.d_model=40", "model.attention_heads=4", "model.kv_heads=1", "model.d_ff=50"),
    "many queries": ("model.d_model=96", "model.attention_heads=12", "model.kv_heads=1"),
    "wide heads": ("model.d_model=144", "model.attention_heads=3", "model.kv_heads=3"),
}
CAPACITY = 128


def library() -> Library:
    found = load_library()
    assert found is not None, "the tests of the engine need its library"
    return found


def settings(family: str = "linear", count: int = 4, *changes: str) -> RunConfig:
    base = ("model.layers=4", "data.window_bytes=128", "model.local_window_bytes=12")
    return RunConfig.build("tiny", [*base, f"heads.family={family}", f"heads.count={count}", *changes])


def engine_of(
    config: RunConfig, kind: MatrixKind = "float32", *, library: Library | None = None, threads: int = 1, seed: int = 7
) -> Engine:
    """A model whose weights are drawn by numpy, the same on every machine."""
    engine = Engine(config.model, config.heads, BYTES, kind, threads=threads, library=library)
    random = np.random.Generator(np.random.PCG64(seed))
    for weight in weights_of(config.model, config.heads):
        # Whole numbers over a power of two: no library's rounding has a part in them.
        numbers = random.integers(-(1 << 20), 1 << 20, weight.shape).astype(np.float32) * np.float32(2.0**-20)
        if weight.name.endswith("gain"):
            numbers = np.float32(1) + numbers * np.float32(0.125)
        elif weight.is_matrix:
            numbers *= np.float32(2.0 ** -round(np.log2(weight.shape[-1] ** 0.5) - 0.75))
        engine.set_weight(weight.part, weight.index, numbers)
    assert engine.complete
    return engine


def torch_model(config: RunConfig) -> ByteLM:
    torch.manual_seed(3)
    model = ByteLM(config.model, config.heads).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gain"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif name.endswith(("tables", "depth_embedding")):
                parameter.normal_(std=0.5)
    return model


def ids_of(count: int, seed: int = 0) -> npt.NDArray[np.int32]:
    ids = np.random.default_rng(seed).integers(0, 256, count).astype(np.int32)
    ids[0] = EOD
    return ids


def one_by_one(session: Session, ids: npt.NDArray[np.int32], kind: CacheKind = "float32") -> npt.NDArray[np.float32]:
    """The specification of a pass: one row at a time."""
    cache = Cache(session.engine, CAPACITY, kind)
    rows = []
    for place in range(len(ids)):
        rows.append(session.run([cache], [1], ids[place : place + 1])[0])
        session.accept(cache, 1, rows=1)
    return np.stack(rows)


def random_tree(random: np.random.Generator, rows: int) -> npt.NDArray[np.int32]:
    return np.array([-1, *(int(random.integers(max(0, row - 6), row)) for row in range(1, rows))], np.int32)


def path_to(parents: npt.NDArray[np.int32], row: int) -> npt.NDArray[np.int32]:
    path: list[int] = []
    while row >= 0:
        path.append(row)
        row = int(parents[row])
    return np.array(path[::-1], np.int32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_all_heads_are_those_of_torch(family: str, shape: str) -> None:
    config = settings(family, 4, *SHAPES[shape])
    model = torch_model(config)
    engine = engine_from_torch(model, precision="float32")
    ids = ids_of(100)
    with torch.no_grad():
        expected_TKV = model(torch.from_numpy(ids).long().unsqueeze(0))[0].numpy()
    session, cache = Session(engine, rows=32, capacity=CAPACITY), Cache(engine, CAPACITY)
    session.prefill(cache, ids[:50])
    random = np.random.default_rng(1)
    place, asked = 50, 0
    while place < len(ids):
        rows = min(int(random.integers(1, 9)), len(ids) - place)
        kept = int(random.integers(1, rows + 1))
        logits_MV = session.run([cache], [rows], ids[place : place + rows])
        session.accept(cache, kept, rows=rows)
        np.testing.assert_allclose(logits_MV[:kept], expected_TKV[place : place + kept, 0], atol=1e-4)
        place += kept
        for head in range(
            1, 1 + int(random.integers(0, 4))
        ):  # not all heads every time: they must read what they missed
            np.testing.assert_allclose(session.draft_head(cache, head), expected_TKV[place - 1, head], atol=1e-4)
            asked += 1
    assert asked > 10


@pytest.mark.parametrize("count", [1, 2, 32])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_number_of_heads_is_that_of_torch(family: str, count: int) -> None:
    config = settings(family, count, "model.layers=2")
    model = torch_model(config)
    engine = engine_from_torch(model, precision="float32")
    ids = ids_of(20)
    with torch.no_grad():
        expected_TKV = model(torch.from_numpy(ids).long().unsqueeze(0))[0].numpy()
    session, cache = Session(engine, rows=32, capacity=CAPACITY), Cache(engine, CAPACITY)
    logits_MV = session.run([cache], [20], ids)
    session.accept(cache, 20, rows=20)
    np.testing.assert_allclose(logits_MV, expected_TKV[:, 0], atol=1e-4)
    for head in range(1, count):
        np.testing.assert_allclose(session.draft_head(cache, head), expected_TKV[-1, head], atol=1e-4)


@pytest.mark.parametrize("cache_kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_has_the_same_bits_in_a_tree_in_a_batch_and_alone(
    family: str, kind: MatrixKind, cache_kind: CacheKind
) -> None:
    for shape in ("odd widths", "n-grams"):
        engine = engine_of(settings(family, 3, *SHAPES[shape]), kind)
        session = Session(engine, rows=CAPACITY, capacity=CAPACITY)
        prompt, drafted = ids_of(38), ids_of(24, seed=1) % 256
        parents = random_tree(np.random.default_rng(5), len(drafted))
        cache = Cache(engine, CAPACITY, cache_kind)
        session.prefill(cache, prompt)
        of_tree = session.run([cache], [len(drafted)], drafted, parents)
        path = path_to(parents, len(drafted) - 1)
        session.accept(cache, len(path), rows=len(drafted), path=path)
        more = np.array([5, 6, 7], np.int32)
        behind = session.run([cache], [3], more)
        session.accept(cache, 2, rows=3)
        other = Cache(engine, CAPACITY, cache_kind)
        session.prefill(other, prompt[:20])
        last = np.array([9, 8, *prompt[20:29]], np.int32)
        together = session.run([cache, other], [2, 9], last)

        whole = np.concatenate([prompt, drafted[path], more[:2], last[:2]])
        alone = one_by_one(session, whole, cache_kind)
        np.testing.assert_array_equal(of_tree[path], alone[len(prompt) : len(prompt) + len(path)])
        np.testing.assert_array_equal(np.concatenate([behind[:2], together[:2]]), alone[-4:])
        np.testing.assert_array_equal(together[2:], one_by_one(session, prompt[:29], cache_kind)[20:])
        fresh = Cache(engine, CAPACITY, cache_kind)
        np.testing.assert_array_equal(session.run([fresh], [len(whole)], whole), alone)
        for row in range(len(drafted)):  # also those of branches that were left
            other.truncate(0)
            session.prefill(other, prompt)
            own = path_to(parents, row)
            np.testing.assert_array_equal(session.run([other], [len(own)], drafted[own])[-1], of_tree[row])


def some_numbers(engine: Engine, threads: int) -> npt.NDArray[np.float32]:
    """Logits of a prompt, of all row counts, of a tree, and of draft heads."""
    session = Session(engine, rows=96, capacity=CAPACITY, threads=threads)
    cache = Cache(engine, CAPACITY)
    ids = ids_of(CAPACITY)
    session.prefill(cache, ids[:40])
    parts: list[npt.NDArray[np.float32]] = []
    for rows in (*range(1, 18), 30, 64):
        parts.append(session.run([cache], [rows], ids[40 : 40 + rows]))
    parents = random_tree(np.random.default_rng(2), 20)
    parts.append(session.run([cache], [20], ids[60:80], parents))
    path = path_to(parents, 19)
    session.accept(cache, len(path), rows=20, path=path)
    parts += [session.draft_head(cache, head) for head in range(1, engine.heads.count)]
    return np.concatenate([part.ravel() for part in parts])


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        pytest.param(
            family, kind, marks=() if kind == "float32" or family in ("linear", "shared") else pytest.mark.slow
        )
        for family in FAMILIES
        for kind in KINDS
    ],
)
def test_every_instruction_set_and_number_of_threads_gives_the_same_bits(family: str, kind: MatrixKind) -> None:
    config = settings(family, 3, *SHAPES["n-grams"], "model.d_ff=200")
    expected = some_numbers(engine_of(config, kind), 1)
    assert np.isfinite(expected).all()
    for isa in library().runnable:
        engine = engine_of(config, kind, library=library().variant(isa))
        np.testing.assert_array_equal(some_numbers(engine, 1), expected, err_msg=isa)
    for threads in (2, 3):
        np.testing.assert_array_equal(some_numbers(engine_of(config, kind), threads), expected)


GOLDEN = {
    "float32": "a34b87d6883c3b05432de71d1ac9c59ba5595b80584389ee5135f8c7f38c3358",
    "bfloat16": "d4a130fd6ce577ffe83ca78bd85c704b69d7f718221641b90f041a74489a4d65",
    "int8": "5f25e6d81df26b05d45befdb8bf808cb940b6e148da60246f3831ba20561924f",
}
"""SHA-256 of ``some_numbers``: a machine, compiler or instruction set that gives other bits is at fault."""


@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_those_of_every_other_machine(kind: MatrixKind) -> None:
    engine = engine_of(settings("linear", 8, *SHAPES["n-grams"]), kind)
    assert hashlib.sha256(some_numbers(engine, 1).tobytes()).hexdigest() == GOLDEN[kind]


def test_bfloat16_weights_give_the_bits_of_float32_where_nothing_was_rounded() -> None:
    config = settings("linear", 4)
    model = torch_model(config).bfloat16().float()
    numbers = [some_numbers(engine_from_torch(model, precision=kind), 1) for kind in ("float32", "bfloat16")]
    np.testing.assert_array_equal(numbers[0], numbers[1])


def test_int8_is_near_float32() -> None:
    config = settings("linear", 4)
    exact, near = (some_numbers(engine_of(config, kind), 1) for kind in ("float32", "int8"))
    assert 0 < np.abs(exact - near).mean() < 0.05 * np.abs(exact).mean()


@pytest.mark.parametrize("largest", [False, True])
def test_int8_products_are_sums_of_whole_numbers(largest: bool) -> None:
    """One layer of one head against numpy: the unembedding of a model whose trunk adds nothing.

    With the largest numbers, 127 and -127 alone, two outputs are the largest and the least sum that there can be.
    """
    config = settings("linear", 1, "model.layers=1")
    random = np.random.default_rng(0)
    weights: dict[str, npt.NDArray[np.float32]] = {}
    for weight in weights_of(config.model, config.heads):
        numbers = random.standard_normal(weight.shape).astype(np.float32)
        if largest:
            numbers = np.sign(numbers)
        if weight.name.endswith("output.weight"):
            numbers[:] = 0.0  # attention and feed-forward layer add nothing
        weights[weight.name] = numbers
    if largest:
        signs = weights["embedding"][65] * weights["heads.norm.gain"]
        weights["heads.unembedding.weight"][0], weights["heads.unembedding.weight"][1] = signs, -signs
    wide = weights["embedding"][65].astype(np.float64)
    normed = (wide / np.sqrt((wide**2).mean() + config.model.norm_epsilon) * weights["heads.norm.gain"]).astype(
        np.float32
    )
    unit = np.abs(normed).max() / np.float32(127)
    whole = np.rint(normed / unit).astype(np.int64)
    matrix = weights["heads.unembedding.weight"]
    top = np.abs(matrix).max(1, keepdims=True)
    rounded = np.rint(matrix * (np.float32(127) / top)).astype(np.int64)
    expected_V = (rounded @ whole) * (top[:, 0] / np.float32(127)) * unit
    for isa in library().runnable:
        engine = Engine(config.model, config.heads, BYTES, "int8", library=library().variant(isa))
        for weight in weights_of(config.model, config.heads):
            engine.set_weight(weight.part, weight.index, weights[weight.name])
        assert engine.complete
        session, cache = Session(engine, rows=4, capacity=CAPACITY), Cache(engine, CAPACITY)
        off = np.abs(session.run([cache], [1], np.array([65], np.int32))[0] - expected_V)
        # A number that lies between two whole ones may be rounded either way: one step of one product.
        assert off.max() <= float(unit) * float(top.max()), isa
        assert np.median(off) < 1e-5, isa


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_that_is_read_in_pieces_or_again_changes_no_bit(family: str) -> None:
    engine = engine_of(settings(family, 3))
    session = Session(engine, rows=48, capacity=CAPACITY)
    ids = ids_of(90)
    whole, pieces = Cache(engine, CAPACITY), Cache(engine, CAPACITY)
    session.prefill(whole, ids)
    for start, end in ((0, 1), (1, 30), (30, 77)):
        session.prefill(pieces, ids[start:end])
    pieces.truncate(33)
    session.prefill(pieces, ids[33:])
    row = np.array([1], np.int32)
    np.testing.assert_array_equal(session.run([whole], [1], row), session.run([pieces], [1], row))
    for cache in (whole, pieces):
        session.run([cache], [1], row)
        session.accept(cache, 1, rows=1)
    for head in (1, 2):
        np.testing.assert_array_equal(session.draft_head(whole, head), session.draft_head(pieces, head))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_leaves_what_its_ids_leave_one_by_one(family: str, kind: MatrixKind) -> None:
    """The last layer skips what no one asks of a prompt's rows; of a piece that is long enough rows pass in blocks."""
    for shape in ("usual", "odd widths", "wide heads"):
        engine = engine_of(settings(family, 3, *SHAPES[shape]), kind)
        session, ids, more = Session(engine, rows=CAPACITY, capacity=CAPACITY), ids_of(110), ids_of(9, seed=1)
        alone = Cache(engine, CAPACITY)
        for place in range(len(ids)):
            session.run([alone], [1], ids[place : place + 1])
            session.accept(alone, 1, rows=1)
        # Heads in a chain begin with head 0, which reading alone does not run.
        drafts = () if family in ("causal", "anticausal", "shared") else (1, 2)
        expected = [session.draft_head(alone, head) for head in drafts]
        expected.append(session.run([alone], [len(more)], more))
        for ends in ((110,), (1, 2, 10, 110), (29, 77, 109, 110)):
            cache, start = Cache(engine, CAPACITY), 0
            for end in ends:
                session.prefill(cache, ids[start:end])
                start = end
            found = [session.draft_head(cache, head) for head in drafts]
            found.append(session.run([cache], [len(more)], more))
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)


def test_scores_of_a_window_are_those_of_torch() -> None:
    for family, heads in (("linear", 4), ("mlp", 4), ("transformer", 1)):
        config = settings(family, 4, *SHAPES["n-grams"])
        model = torch_model(config)
        engine = engine_from_torch(model, precision="float32")
        ids = ids_of(100)
        session, cache = Session(engine, rows=32, capacity=CAPACITY), Cache(engine, CAPACITY)
        nats, best = session.score_window(cache, ids, reads=90, heads=heads)
        with torch.no_grad():
            logits_TKV = model(torch.from_numpy(ids[:90]).long().unsqueeze(0))[0]
        for head in range(heads):
            known = min(90, len(ids) - 1 - head)
            targets = torch.from_numpy(ids[1 + head : 1 + head + known]).long()
            expected = -logits_TKV[:known, head].double().log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)
            np.testing.assert_allclose(nats[:known, head], expected.numpy(), atol=2e-6, rtol=2e-6)
            assert (nats[known:, head] == 0).all()
            np.testing.assert_array_equal(best[:, head], logits_TKV[:, head, : EOD + 1].argmax(-1).numpy())


def malformed() -> Iterator[tuple[str, Any]]:
    """Calls that must be refused before a pointer is made."""
    row = np.array([1], np.int32)
    yield "wrong dtype", lambda s, c: s.run([c], [1], row.astype(np.int64))
    yield "too few ids", lambda s, c: s.run([c], [2], row)
    yield "no rows", lambda s, c: s.run([c], [0], row)
    yield "more rows than there is room", lambda s, c: s.run([c], [33], np.zeros(33, np.int32))
    yield "not contiguous", lambda s, c: s.run([c], [2], np.zeros(4, np.int32)[::2])
    yield "an id that there is not", lambda s, c: s.run([c], [1], np.array([320], np.int32))
    yield "a negative id", lambda s, c: s.prefill(c, np.array([-1], np.int32))
    yield "one cache twice", lambda s, c: s.run([c, c], [1, 1], np.zeros(2, np.int32))
    yield "a parent behind its row", lambda s, c: s.run([c], [2], np.zeros(2, np.int32), np.array([1, 0], np.int32))
    yield "too many ids", lambda s, c: s.prefill(c, np.zeros(CAPACITY + 1, np.int32))
    yield "a head that there is not", lambda s, c: s.draft_head(c, 4)
    yield "more rows accepted than ran", lambda s, c: s.accept(c, 3, rows=2)
    yield "a path that goes back", lambda s, c: s.accept(c, 2, rows=2, path=np.array([1, 0], np.int32))


@pytest.mark.parametrize(("what", "call"), list(malformed()))
def test_malformed_calls_are_refused(what: str, call: Any) -> None:
    engine = engine_of(settings("linear", 4, "model.layers=1"))
    session, cache = Session(engine, rows=32, capacity=CAPACITY), Cache(engine, CAPACITY)
    with pytest.raises((AssertionError, GenerationError, ConfigError)):
        call(session, cache)
    session.prefill(cache, ids_of(3))  # and the session goes on
    assert cache.length == 3, what


def test_weights_that_are_not_finite_or_of_another_size_are_refused() -> None:
    config = settings("linear", 2, "model.layers=1")
    engine = Engine(config.model, config.heads, BYTES, "float32")
    weight = weights_of(config.model, config.heads)[0]
    for value in (np.nan, np.inf, -np.inf):
        numbers = np.ones(weight.shape, np.float32)
        numbers[-1, -1] = value
        with pytest.raises(Exception, match="2"):
            engine.set_weight(weight.part, weight.index, numbers)
    with pytest.raises((AssertionError, GenerationError)):
        engine.set_weight(weight.part, weight.index, np.ones((2, 2), np.float32))
    with pytest.raises((AssertionError, ConfigError)):
        Session(engine, rows=4, capacity=16)  # a model without its weights computes nothing


def test_logits_that_overflow_are_an_error_and_no_figure() -> None:
    config = settings("linear", 2, "model.layers=1")
    engine = Engine(config.model, config.heads, BYTES, "float32")
    for weight in weights_of(config.model, config.heads):
        numbers = np.full(weight.shape, 1.0 if weight.name == "embedding" else 3e38, np.float32)
        engine.set_weight(weight.part, weight.index, numbers)
    assert engine.complete
    session, cache = Session(engine, rows=4, capacity=16), Cache(engine, 16)
    with pytest.raises(GenerationError, match="not finite"):
        session.run([cache], [1], np.array([EOD], np.int32))
