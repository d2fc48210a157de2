"""Decoding without drafts, threads and reading of prompts, beside llama.cpp: the trained model and 25 M parameters."""

import statistics
from typing import Any, Final

import numpy as np
from decode_rates import Rates, clock, decode, say, spread, table
from decode_subjects import CONTEXTS, LARGE, MATRIX_KINDS, Subjects, bytes_of_plain_step
from other_decoders import GGUF_PRECISIONS
from read_bandwidth import Reader

from bytelm.engine import Cache, Engine, Session
from bytelm.engine.build import BuildError

MODELS: Final[tuple[str | None, ...]] = (None, LARGE)
"""The trained model, and the large one."""
_BYTES: Final = {None: 96, LARGE: 32}
_THREADS: Final = {1: "one thread", 2: "two threads"}
_MEMORY_BYTES: Final = 256 << 20
_PROMPT_BYTES: Final = 2048
_PIECE: Final = 256
"""Rows at a time in which a decoder reads a prompt."""


def name_of(model: str | None) -> str:
    """Of a model in tables and in the result."""
    return model or "trained"


def plain(subjects: Subjects) -> dict[str, Any]:
    """Bytes a second of every kind of weights beside every precision of llama.cpp, one thread."""
    result: dict[str, Any] = {
        "plain_bytes_per_second": {},
        "plain_over_llama_cpp": {},
        "int8_over_llama_cpp_q8_0": {},
    }
    bandwidth: dict[str, list[float]] = {}
    for model in MODELS:
        for context in CONTEXTS:
            say(f"plain, {name_of(model)}, {context} bytes before")
            rates = _rates(subjects, model, context, 1, bandwidth)
            _add_plain(result, rates, name_of(model), context)
    return result | _bandwidth(subjects, result, bandwidth)


def threads(subjects: Subjects) -> dict[str, Any]:
    """The same on two threads and on one, both by the time on the wall."""
    result: dict[str, Any] = {}
    for model in MODELS:
        for context in CONTEXTS:
            say(f"two threads, {name_of(model)}, {context} bytes before")
            rates = _rates(subjects, model, context, 2, {})
            gain = {kind: rates.over(f"bytelm {kind}", f"bytelm {kind}, one thread") for kind in MATRIX_KINDS}
            for key, value in (
                ("two_threads_bytes_per_second", rates.summary()),
                ("two_threads_over_one", gain),
                ("two_threads_over_llama_cpp", _ratios(rates)),
            ):
                result.setdefault(key, {}).setdefault(name_of(model), {})[str(context)] = value
            table(
                f"Two threads, {name_of(model)}, {context} bytes before, by the time on the wall",
                ("bytes/s", "over one thread"),
                {one: (rates.summary()[one], gain.get(one.removeprefix("bytelm "))) for one in rates.names},
            )
    return result


def prefill(subjects: Subjects) -> dict[str, Any]:
    """Milliseconds of reading 2,048 bytes; two threads by the time on the wall.

    llama.cpp with flash attention alone: without it a prompt takes many times as long.
    """
    ids = np.frombuffer(_long_prompt(subjects), np.uint8).astype(np.int32)
    milliseconds: dict[str, list[float]] = {}
    for _ in range(subjects.repeats):
        for count in _THREADS:
            now = clock(count)
            for kind in MATRIX_KINDS:
                seconds = _prefill_seconds(subjects.engine(None, kind), ids, count)
                milliseconds.setdefault(f"bytelm {kind}, {_THREADS[count]}", []).append(1e3 * seconds)
            for one, model in subjects.llamas(None).items():
                if not model.flash:
                    continue
                seconds = model.prefill_seconds(_long_prompt(subjects), count, now)
                milliseconds.setdefault(f"{one}, {_THREADS[count]}", []).append(1e3 * seconds)
    found = {one: spread(values) for one, values in milliseconds.items()}
    table(f"Reading {_PROMPT_BYTES} bytes, trained model", ("ms",), {one: (value,) for one, value in found.items()})
    return {"prefill_2048_ms": found}


def _long_prompt(subjects: Subjects) -> bytes:
    return subjects.prompts_of("python", _PROMPT_BYTES, 1)[0]


def _prefill_seconds(engine: Engine, ids: Any, count: int) -> float:
    now = clock(count)
    session = Session(engine, rows=_PIECE, capacity=len(ids), threads=count)
    cache = Cache(engine, len(ids))
    session.prefill(cache, ids[:_PIECE])  # touches memory and wakes the threads
    cache.truncate(0)
    begin = now()
    session.prefill(cache, ids)
    seconds = now() - begin
    cache.close()
    session.close()
    return seconds


def _rates(subjects: Subjects, model: str | None, context: int, count: int, bandwidth: dict[str, list[float]]) -> Rates:
    """Ours and llama.cpp's in turn; with two threads ours on one as well, by the same clock."""
    now, rates = clock(count), Rates()
    prompts = subjects.prompts_of("python", context, 4 if model is None else 2)
    max_bytes = _BYTES[model] // (4 if subjects.quick else 1)
    reader = _reader() if model is not None and count == 1 else None
    for _ in range(subjects.repeats):
        for kind in MATRIX_KINDS:
            for number in sorted({1, count}):
                engine = subjects.engine(model, kind, number)
                decode(engine, prompts[:1], None, now=now, context_bytes=2048, draft="none", max_bytes=4)
                ran = decode(engine, prompts, None, now=now, context_bytes=2048, draft="none", max_bytes=max_bytes)
                rates.add(f"bytelm {kind}" + ("" if number == count else ", one thread"), ran.rate)
            if reader is not None:
                _measure_bandwidth(reader, bytes_of_plain_step(subjects.engine(model, kind)), kind, bandwidth)
        for one, llama in subjects.llamas(model).items():
            llama.rate(prompts[:1], 4, count, now)
            rates.add(one, llama.rate(prompts, max_bytes, count, now))
    return rates


def _add_plain(result: dict[str, Any], rates: Rates, model: str, context: int) -> None:
    ratios = _ratios(rates)
    for key, value in (
        ("plain_bytes_per_second", rates.summary()),
        ("plain_over_llama_cpp", ratios),
        ("int8_over_llama_cpp_q8_0", ratios["int8"]["q8_0"]),
    ):
        result[key].setdefault(model, {})[str(context)] = value
    rows: dict[str, tuple[object, ...]] = {
        f"bytelm {kind}": (rates.summary()[f"bytelm {kind}"], *ratios[kind].values()) for kind in MATRIX_KINDS
    }
    rows |= {one: (rates.summary()[one], None, None, None) for one in rates.names if one not in rows}
    columns = ("bytes/s", *(f"over llama.cpp {precision}" for precision in GGUF_PRECISIONS))
    table(f"Plain, {model}, {context} bytes before, one thread", columns, rows)


def _ratios(rates: Rates) -> dict[str, dict[str, float | None]]:
    """Of each kind over each precision of llama.cpp, the better attention counting."""
    return {
        kind: {
            precision: rates.over(f"bytelm {kind}", rates.best(f"llama.cpp {precision}"))
            for precision in GGUF_PRECISIONS
        }
        for kind in MATRIX_KINDS
    }


def _reader() -> Reader | None:
    try:
        return Reader(_MEMORY_BYTES)
    except BuildError as error:
        say(f"the bandwidth of memory is not measured: {error}")
        return None


def _measure_bandwidth(reader: Reader, size_bytes: int, kind: str, bandwidth: dict[str, list[float]]) -> None:
    now = clock(1)
    bandwidth.setdefault("memory", []).append(reader.bytes_per_s(_MEMORY_BYTES, now, 1))
    bandwidth.setdefault(kind, []).append(reader.bytes_per_s(min(size_bytes, _MEMORY_BYTES), now))


def _bandwidth(subjects: Subjects, result: dict[str, Any], bandwidth: dict[str, list[float]]) -> dict[str, Any]:
    """Bytes of weights that plain steps of the large model read in a second, over what the reader reads.

    ``of_memory`` is beside a buffer larger than the caches. Small kinds of weights may stay in a cache in part: so
    ``of_equal_buffer`` is beside a buffer of the weights' own size, read again and again as they are.
    """
    if not bandwidth:
        return {"bandwidth_share": None, "read_gb_per_second": None}
    read = {name: statistics.median(values) for name, values in bandwidth.items()}
    share, rows = {}, {}
    for kind in MATRIX_KINDS:
        rate = result["plain_bytes_per_second"][LARGE][str(CONTEXTS[0])][f"bytelm {kind}"]["median"]
        size = bytes_of_plain_step(subjects.engine(LARGE, kind))
        share[kind] = {
            "of_memory": round(size * rate / read["memory"], 3),
            "of_equal_buffer": round(size * rate / read[kind], 3),
        }
        rows[kind] = (f"{size / 1e6:.1f}", size * rate / 1e9, read[kind] / 1e9, *share[kind].values())
    columns = (
        "MB a step",
        "GB/s of weights",
        "GB/s, buffer of that size",
        "share of memory's",
        "share of the buffer's",
    )
    table(f"Reading weights, {LARGE}, one thread; memory {read['memory'] / 1e9:.1f} GB/s", columns, rows)
    return {
        "bandwidth_share": share,
        "read_gb_per_second": {name: spread([one / 1e9 for one in values], 2) for name, values in bandwidth.items()},
    }
