"""The engine's choice of a byte against its specification, ``NextByte`` and ``Sampler``; mathematics; equal bits."""

import ctypes
import decimal
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from ctypes import POINTER, byref, c_double, c_float, c_int32, c_int64, c_uint8
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest

from bytelm import utf8_automaton
from bytelm.engine import SequenceSettings
from bytelm.engine.library import Library, load_library, unavailable_reason
from bytelm.law import DecodeContext, NextByte
from bytelm.sampling import CHOICES, Sampler
from bytelm.vocab import EOD

pytestmark = pytest.mark.skipif(load_library() is None, reason=f"no engine: {unavailable_reason()}")

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

_COLUMNS: Final = 320
_OF_DMATH: Final = {"exp": 0, "log": 1, "sin": 2, "cos": 3, "log_many": 4, "power": 5}


@pytest.fixture
def library() -> Library:
    found = load_library()
    assert found is not None
    return found


@pytest.fixture
def variants(library: Library) -> list[Library]:
    return [library.variant(isa) for isa in library.runnable]


# Calls ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """Settings of a choice, for both sides."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    utf8: bool = False
    seed: int = 0
    sequence: int = 0
    max_bytes: int = 1000

    def settings(self) -> SequenceSettings:
        """For the engine."""
        return SequenceSettings(
            temperature=self.temperature,
            top_p=-1.0 if self.top_p is None else self.top_p,
            min_p=-1.0 if self.min_p is None else self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            sequence=self.sequence,
            max_ids=self.max_bytes,
            top_k=0 if self.top_k is None else self.top_k,
            utf8=self.utf8,
        )

    def next_byte(self, choices: int = CHOICES) -> NextByte:
        """The specification."""
        sampler = Sampler(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=self.seed,
            sequence=self.sequence,
            choices=choices,
        )
        return NextByte(sampler, utf8=self.utf8, repetition_penalty=self.repetition_penalty, max_bytes=self.max_bytes)


def _bytes(data: bytes) -> ctypes.Array[c_uint8]:
    return (c_uint8 * max(1, len(data)))(*data)


def _floats(values: Floats) -> Any:
    return values.ctypes.data_as(POINTER(c_float))


def _doubles(values: Doubles) -> Any:
    return values.ctypes.data_as(POINTER(c_double))


def _choose(
    library: Library,
    asked: _Asked,
    logits_V: Floats,
    *,
    prompt: bytes = b"",
    output: bytes = b"",
    choices: int = CHOICES,
) -> tuple[int, float]:
    """The id and its log-probability."""
    log_prob = c_double()
    logits_V = np.ascontiguousarray(logits_V, np.float32)
    found = library.call("choose_rows")(
        byref(asked.settings()),
        c_int32(choices),
        _bytes(prompt),
        c_int64(len(prompt)),
        _bytes(output),
        c_int64(len(output)),
        _floats(logits_V),
        c_int32(len(logits_V)),
        byref(log_prob),
    )
    assert found >= 0
    return found, log_prob.value


def _draft_view(
    library: Library,
    asked: _Asked,
    logits_V: Floats,
    columns: int,
    *,
    prompt: bytes = b"",
    output: bytes = b"",
) -> tuple[Doubles, Doubles]:
    """Log-probabilities and scores."""
    log_probs_V, scores_V = np.full(columns, 7.0), np.full(columns, 7.0)
    logits_V = np.ascontiguousarray(logits_V[:columns], np.float32)
    status = library.call("draft_view_row")(
        byref(asked.settings()),
        c_int32(CHOICES),
        _bytes(prompt),
        c_int64(len(prompt)),
        _bytes(output),
        c_int64(len(output)),
        _floats(logits_V),
        c_int32(columns),
        _doubles(log_probs_V),
        _doubles(scores_V),
    )
    assert status == 0
    return log_probs_V, scores_V


def _noise(library: Library, position: int, *, seed: int, sequence: int = 0, choices: int = CHOICES) -> Doubles:
    noise = np.full(choices, 7.0)
    asked = _Asked(temperature=1.0, seed=seed, sequence=sequence)
    assert library.call("noise_row")(byref(asked.settings()), c_int32(choices), c_int64(position), _doubles(noise)) == 0
    return noise


def _dmath(library: Library, name: str, x: Doubles) -> Doubles:
    """Values of a function of numbers (N,), of pairs (N, 2) for power."""
    x = np.ascontiguousarray(x)
    out = np.full(len(x), 7.0)
    status = library.call("dmath")(c_int32(_OF_DMATH[name]), _doubles(x), c_int32(len(x)), _doubles(out))
    assert status == 0
    return out


# Cases ---------------------------------------------------------------------------------------------------------------


def _random_asked(random: np.random.Generator) -> _Asked:
    found = _Asked(
        seed=int(random.integers(1 << 63)),
        sequence=int(random.integers(4)),
        utf8=bool(random.integers(2)),
        repetition_penalty=float(random.choice([1.0, 1.0, 1.3, 0.7])),
    )
    if random.integers(4) == 0:
        return found
    return replace(
        found,
        temperature=float(random.choice([1.0, 0.3, 0.8, 2.5, 1e-4])),
        top_k=int(random.choice([1, 2, 5, 40, 256, 257, 1000])) if random.integers(2) else None,
        top_p=float(random.choice([0.001, 0.3, 0.9, 0.99, 1.0])) if random.integers(2) else None,
        min_p=float(random.choice([0.0, 0.001, 0.1, 1.0])) if random.integers(2) else None,
    )


def _random_logits(random: np.random.Generator, columns: int = _COLUMNS) -> Floats:
    """Of several widths; half of them with many exact ties, of the highest, too."""
    logits_V = random.normal(size=columns) * random.choice([0.01, 1.0, 5.0, 30.0])
    if random.integers(2):
        logits_V = np.round(logits_V * random.choice([0.05, 0.5, 1.0]))  # some become -0, which ties with 0
    return logits_V.astype(np.float32)


# Bytes that begin a character, go on with it or do neither, each as often.
_BROKEN: Final = b"a \xc3\xdf\xe0\xe2\xed\xef\xf0\xf2\xf4\xf5\xff\xc0\xc1\x80\x8f\x90\x9f\xa0\xbf"


def _random_prompt(random: np.random.Generator) -> bytes:
    count = int(random.choice([0, 1, 2, 3, 5, 63, 64, 65, 200]))
    return bytes(_BROKEN[i] for i in random.integers(len(_BROKEN), size=count))


def _random_output(random: np.random.Generator, next_byte: NextByte, prompt: bytes) -> tuple[bytes, DecodeContext]:
    """Bytes that the settings permit, and where they lead."""
    context, output = next_byte.first_context(prompt), b""
    for _ in range(int(random.choice([0, 1, 2, 3, 70]))):
        byte = int(random.integers(EOD))
        while not next_byte.permits(byte, context):
            byte = int(random.integers(EOD))
        output += bytes((byte,))
        context = context.after(byte)
    return output, context


# Mathematics ---------------------------------------------------------------------------------------------------------


def _pi() -> Decimal:
    def inverse_tangent(n: int) -> Decimal:
        total, power, k = Decimal(0), Decimal(1) / n, 0
        while power > Decimal(10) ** -75:
            total += (power if k % 2 == 0 else -power) / (2 * k + 1)
            power, k = power / (n * n), k + 1
        return total

    return 4 * (4 * inverse_tangent(5) - inverse_tangent(239))  # Machin


def _sine(x: Decimal) -> Decimal:
    x %= 2 * _PI
    term, total, k = x, x, 1
    while abs(term) > Decimal(10) ** -60:
        term *= -x * x / ((2 * k) * (2 * k + 1))
        total, k = total + term, k + 1
    return total


with decimal.localcontext(prec=80):
    _PI: Final = _pi()


def _angles() -> Iterator[float]:
    random = np.random.default_rng(5)
    yield from random.uniform(-4, 4, 100)
    yield from random.uniform(-1e7, 1e7, 100)
    yield from [1e7, -1e7, 1e-300, 1e-9, 0.5, 2.0**-30]
    # Next to the zeros almost all digits are lost in the reduction.
    quarters = [1, 2, 3, 4, 5, 1000, 52174, 6366197, *random.integers(1, 6366197, 60)]
    yield from (float(int(k) * _PI / 2) for k in quarters)
    yield from (float(int(k) * _PI / 4) for k in quarters if k < 6e6)


def _exponents() -> Iterator[float]:
    random = np.random.default_rng(6)
    yield from random.uniform(-745, 709, 200)
    yield from random.uniform(-1, 1, 100)
    yield from [0.0, 1.0, -1.0, 709.0, -708.5, -745.0, 1e-20, 0.34657, -0.34658]


def _positives() -> Iterator[float]:
    random = np.random.default_rng(7)
    yield from np.exp(random.uniform(-744, 709, 100))
    yield from 1.0 + random.uniform(-0.4, 0.5, 100)
    yield from 1.0 + random.uniform(-1e-6, 1e-6, 50)
    yield from 2.0 ** random.integers(-1074, 1023, 20)
    yield from [5e-324, 2.2250738585072014e-308, 2.225073858507201e-308, 1.7976931348623157e308]
    yield from [math.nextafter(1.0, 0.0), math.nextafter(1.0, 2.0), math.sqrt(0.5), math.sqrt(2.0)]


def _powers() -> Iterator[tuple[float, float]]:
    random = np.random.default_rng(8)
    for base in (10000.0, 500000.0, 2.0, 0.5, 1.0, 3.0, 1.0000001):
        yield from ((base, float(exponent)) for exponent in random.uniform(-20, 20, 25))
        yield from ((base, -2 * i / 64) for i in range(32))
    yield from ((float(base), 300.0) for base in random.uniform(0.1, 10, 25))


def _worst_error(got: Doubles, exact: list[Decimal]) -> float:
    """In units of the last place of the exact value."""
    return max(
        abs(float((Decimal(float(one)) - true) / Decimal(math.ulp(float(true)))))
        for one, true in zip(got, exact, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "points", "exact"),
    [
        ("exp", _exponents, lambda x: Decimal(x).exp()),
        ("log", _positives, lambda x: Decimal(x).ln()),
        ("sin", _angles, lambda x: _sine(Decimal(x))),
        ("cos", _angles, lambda x: _sine(Decimal(x) + _PI / 2)),
        ("power", _powers, lambda pair: (Decimal(pair[1]) * Decimal(pair[0]).ln()).exp()),
    ],
)
def test_functions_are_within_two_units_in_the_last_place(
    library: Library, name: str, points: Callable[[], Iterator[Any]], exact: Callable[[Any], Decimal]
) -> None:
    with decimal.localcontext(prec=70):
        x = [tuple(map(float, one)) if isinstance(one, tuple) else float(one) for one in points()]
        assert _worst_error(_dmath(library, name, np.array(x)), [exact(one) for one in x]) < 2.0


def test_exponential_takes_what_no_probability_is_left_of(library: Library) -> None:
    x = np.array([-np.inf, -1e300, -1000.0, -746.0, -np.inf, np.nan, 710.0, 0.0])
    np.testing.assert_array_equal(_dmath(library, "exp", x), [0.0, 0.0, 0.0, 0.0, 0.0, np.nan, np.inf, 1.0])


def test_functions_have_the_same_bits_in_all_variants_and_as_loops(variants: list[Library]) -> None:
    random = np.random.default_rng(9)
    positive = np.concatenate([random.random(30_001), np.exp(random.uniform(-744, 709, 10_000)), [5e-324, 1e308]])
    inputs = {
        "log": positive,
        "log_many": positive,
        "exp": random.uniform(-760, 709, 40_000),
        "sin": random.uniform(-1e7, 1e7, 40_000),
        "cos": random.uniform(-1e7, 1e7, 40_000),
        "power": np.stack([positive[:20_000], random.uniform(-5, 5, 20_000)], -1),
    }
    first = {name: _dmath(variants[0], name, x).tobytes() for name, x in inputs.items()}
    assert first["log"] == first["log_many"]
    for other in variants[1:]:
        assert {name: _dmath(other, name, x).tobytes() for name, x in inputs.items()} == first, other.isa


# Noise ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choices", [1, 2, 3, 4, 5, 256, 257, 1003])
def test_noise_is_that_of_the_specification(library: Library, choices: int) -> None:
    for seed, sequence in itertools.product((0, 1, 1234567, (1 << 63) - 1), (0, 3, (1 << 63) - 1)):
        sampler = Sampler(temperature=1.0, seed=seed, sequence=sequence, choices=choices)
        for position in (0, 1, 63, 64, 100_000, 1 << 40):
            want = sampler.noise(position)
            got = _noise(library, position, seed=seed, sequence=sequence, choices=choices)
            # Near 0, where the inner logarithm is near 1, its last bit weighs 2**-53 in the result.
            assert (np.abs(got - want) <= 4 * np.maximum(np.spacing(np.abs(want)), 2.0**-53)).all()


# UTF-8 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", range(8))
@pytest.mark.parametrize("room", [1, 2, 3, 4, 5, 1 << 40])
def test_forbidden_ids_are_those_of_the_automaton(library: Library, state: int, room: int) -> None:
    out = (c_uint8 * CHOICES)()
    library.call("utf8_forbidden")(c_int32(state), c_int64(room), out)
    # What is excluded from the choice (1) and what may be drafted (2) are told in two ways.
    assert list(out) == (3 * utf8_automaton.forbidden(state, room)).tolist()


# Choice --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_choice_is_that_of_the_specification(library: Library, seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(500):
        asked, prompt = _random_asked(random), _random_prompt(random)
        output, context = _random_output(random, asked.next_byte(), prompt)
        asked = replace(asked, max_bytes=len(output) + int(random.choice([0, 1, 2, 3, 4, 1000])))
        logits_V = _random_logits(random)
        got, log_prob = _choose(library, asked, logits_V, prompt=prompt, output=output)
        assert got == asked.next_byte().choose(logits_V, context), asked
        wide_V = logits_V.astype(np.float64) - logits_V.max()  # over all columns, whatever the settings
        assert log_prob == pytest.approx(wide_V[got] - np.log(np.exp(wide_V).sum()), rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("value", [0.0, -0.0, 3.5, -3.5])
def test_choice_from_equal_logits_is_that_of_the_specification(library: Library, value: float) -> None:
    logits_V = np.full(_COLUMNS, value, np.float32)
    logits_V[::2] += 0.0  # zeros of both signs are equal, too
    assert _choose(library, _Asked(), logits_V)[0] == 0
    for seed in range(20):
        sampled = _Asked(temperature=0.7, seed=seed)
        for asked in (
            replace(sampled, top_k=9),
            replace(sampled, top_p=0.5),
            replace(sampled, top_k=9, top_p=0.3),
            replace(sampled, min_p=1.0, top_k=200),
        ):
            want = asked.next_byte().choose(logits_V, DecodeContext(0, 0, b""))
            assert _choose(library, asked, logits_V)[0] == want, asked


@pytest.mark.parametrize("choices", [258, 5000, 1 << 17])
def test_choice_from_a_large_vocabulary_is_that_of_the_specification(library: Library, choices: int) -> None:
    random = np.random.default_rng(choices)
    greedy = _Asked(repetition_penalty=1.2)
    for asked in (
        greedy,
        replace(greedy, temperature=1.0),
        replace(greedy, temperature=0.9, top_k=50, top_p=0.95, min_p=0.01),
    ):
        next_byte, logits_V = asked.next_byte(choices), _random_logits(random, choices)
        got, _ = _choose(library, asked, logits_V, prompt=b"some bytes", choices=choices)
        assert got == next_byte.choose(logits_V, next_byte.first_context(b"some bytes"))


def test_only_ids_of_the_vocabulary_are_chosen(library: Library) -> None:
    logits_V = np.zeros(_COLUMNS, np.float32)
    logits_V[CHOICES:] = 100.0
    logits_V[EOD] = 1.0
    for asked in (_Asked(), _Asked(temperature=0.01), _Asked(temperature=0.01, top_k=3)):
        got, log_prob = _choose(library, asked, logits_V)
        assert got == EOD
        assert log_prob < -99.0  # the padding counts


@pytest.mark.parametrize("broken", [np.nan, -np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_give_some_id(library: Library, broken: float) -> None:
    random = np.random.default_rng(12)
    for share in (0.01, 0.5, 1.0):
        for _ in range(60):
            asked, prompt = _random_asked(random), _random_prompt(random)
            logits_V = np.where(random.random(_COLUMNS) < share, broken, _random_logits(random)).astype(np.float32)
            assert 0 <= _choose(library, asked, logits_V, prompt=prompt)[0] < CHOICES
            _draft_view(library, asked, logits_V, 256, prompt=prompt)


# Drafts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [256, CHOICES, 64])
def test_views_for_drafts_are_those_of_the_specification(library: Library, columns: int) -> None:
    random = np.random.default_rng(columns)
    for _ in range(300):
        asked, prompt = _random_asked(random), _random_prompt(random)
        if columns == 64:
            asked = replace(asked, utf8=False)  # inside a character nothing would be left
        next_byte = asked.next_byte()
        output, context = _random_output(random, next_byte, prompt)
        logits_V = _random_logits(random)
        got_V, scores_V = _draft_view(library, asked, logits_V, columns, prompt=prompt, output=output)
        logits_V[columns:CHOICES] = -np.inf  # what is missing takes no part
        logits_1V = next_byte.logits(logits_V, context)[None]
        want_V = next_byte.sampler.log_probs(logits_1V)[0, :columns]
        # With top_p 1 the specification drops what is lost beside the sum of all.
        left = want_V > (-36.0 if asked.top_p == 1.0 else -np.inf)
        assert (got_V[~left] < -36.0).all()
        assert asked.top_p == 1.0 or (got_V[~left] == -np.inf).all()
        np.testing.assert_allclose(got_V[left], want_V[left], rtol=0, atol=2e-5)
        want_V = next_byte.sampler.scores(logits_1V, context.position)[0, :columns]
        np.testing.assert_allclose(scores_V[left], want_V[left], rtol=1e-13, atol=1e-13)
        if columns == CHOICES:
            assert _choose(library, asked, logits_V, prompt=prompt, output=output)[0] == scores_V.argmax()


# Equal bits ----------------------------------------------------------------------------------------------------------


def _numbers(key: int, count: int) -> Doubles:
    """Numbers of -8 … 8 that are the same on every machine."""
    raw = np.random.Philox(key=key).random_raw(count)
    return (raw >> np.uint64(40)).astype(np.float64) / (1 << 20) - 8.0


# A new value means that seeds give other bytes than before: say so in the changelog.
_WRITTEN_DOWN: Final = "38e0054636d2692b973058b8650f9f925bcbdbc59a74a4259d61ea72e47ada82"


def _fingerprint(library: Library) -> str:
    digest = hashlib.sha256()
    values = _numbers(1, 4000)
    digest.update(_dmath(library, "exp", values * 80.0).tobytes())
    digest.update(_dmath(library, "log", values * values + 1e-9).tobytes())
    digest.update(_dmath(library, "sin", values * 1e6).tobytes())
    digest.update(_dmath(library, "cos", values * 1e6).tobytes())
    digest.update(_dmath(library, "power", np.stack([np.abs(values) + 0.1, values[::-1]], -1)).tobytes())
    for position in range(20):
        digest.update(_noise(library, position, seed=42, sequence=position % 3).tobytes())
    prompt = "ein Zeichen über drei Bytes: € ".encode() * 3
    for seed, asked in enumerate(
        [
            _Asked(),
            _Asked(utf8=True),
            _Asked(repetition_penalty=1.3),
            _Asked(temperature=0.8),
            _Asked(temperature=0.8, top_k=20),
            _Asked(temperature=1.3, top_p=0.7),
            _Asked(temperature=1.0, min_p=0.05, utf8=True),
            _Asked(temperature=0.6, top_k=30, top_p=0.9, min_p=0.02, repetition_penalty=1.1, utf8=True),
        ]
    ):
        logits_RV = _numbers(seed, 20 * _COLUMNS).astype(np.float32).reshape(20, _COLUMNS)
        for row, logits_V in enumerate(logits_RV):
            own = replace(asked, seed=seed, sequence=row, max_bytes=40)
            got, log_prob = _choose(library, own, logits_V, prompt=prompt[:-row], output=b"abcdefg"[: row % 7])
            digest.update(np.array([got, log_prob]).tobytes())
            for columns in (256, CHOICES):
                for view in _draft_view(library, own, logits_V, columns, prompt=prompt[:-row]):
                    digest.update(view.tobytes())
    return digest.hexdigest()


def test_all_variants_give_the_bits_that_were_written_down(variants: list[Library]) -> None:
    found = {one.isa: _fingerprint(one) for one in variants}
    assert set(found.values()) == {_WRITTEN_DOWN}, found
