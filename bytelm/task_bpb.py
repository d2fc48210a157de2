"""The task ``bpb``: bits per byte of every head and type, beside what zstd and xz make of the same bytes."""

import lzma
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any, Final

import zstandard

from bytelm import arithmetic_coding
from bytelm.breakdown import Breakdown, Part, break_down
from bytelm.errors import ConfigError
from bytelm.evaluate import bits_per_byte
from bytelm.scoring import default_stride
from bytelm.task import Request, Result, share
from bytelm.vocab import BYTE_VOCABULARY

_ZSTD_LEVEL: Final = 19
_XZ_LEVEL: Final = 9
_BYTES_SHOWN: Final = 12  # types that people are shown


class Compressors:
    """What zstd -19 and xz -9 make of all documents joined, as they pass by."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compressobj()
        self._xz = lzma.LZMACompressor(preset=_XZ_LEVEL)
        self._zstd_bytes = self._xz_bytes = self._raw_bytes = 0

    def passing(self, documents: Iterable[tuple[bytes, str]]) -> Iterator[tuple[bytes, str]]:
        """The documents, unchanged."""
        for data, kind in documents:
            self._raw_bytes += len(data)
            self._zstd_bytes += len(self._zstd.compress(data))
            self._xz_bytes += len(self._xz.compress(data))
            yield data, kind

    def bits_per_byte(self) -> dict[str, float]:
        """Bits of each compressor over the bytes that passed; asked once, at the end."""
        self._zstd_bytes += len(self._zstd.flush())
        self._xz_bytes += len(self._xz.flush())
        sizes = {f"zstd -{_ZSTD_LEVEL}": self._zstd_bytes, f"xz -{_XZ_LEVEL}": self._xz_bytes}
        return {name: 8 * size / self._raw_bytes for name, size in sizes.items()}


def bpb(request: Request) -> Result:
    """Score held-out bytes; see ``Request`` for what can be chosen.

    Raises:
        ConfigError: The stride is impossible.
        CorpusError: There is nothing to score.
    """
    held_out = request.held_out()
    window_bytes = request.model.context_bytes
    context = request.context_bytes or window_bytes
    stride = default_stride(context) if request.stride is None else request.stride
    total = held_out.raw_bytes if request.limit_bytes is None else min(request.limit_bytes, held_out.raw_bytes)
    done = 0

    def after_batch(scored_bytes: int) -> None:
        nonlocal done
        done += scored_bytes
        request.progress(done, total)

    compressors = Compressors()
    documents = compressors.passing(held_out.some(request.limit_bytes, window_bytes))
    found = _measure(request, documents, context, stride, after_batch)
    facts: dict[str, Any] = {
        "source": held_out.name,
        "bits_per_byte": found.bits.by_head[0],
        "bits_per_byte_by_head": list(found.bits.by_head),
        "scored_bytes": found.bits.scored_bytes,
        "limit_bytes": request.limit_bytes,
        "documents": found.bits.documents,
        "context_bytes": context,
        "stride": stride,
        "rule": found.bits.rule,
        "by_type": {name: _part_facts(part) for name, part in found.by_type.items()},
        "by_script": {name: _part_facts(part) for name, part in found.by_script.items()},
        "compressors": compressors.bits_per_byte(),
    }
    lines = [*_lines(found, facts["compressors"]), *held_out.lacking(request.limit_bytes)]
    if request.compress:
        facts["arithmetic_coding"] = coded = _round_trip(request, context, stride, found)
        lines.append(
            f"arithmetic coding: {coded['payload_bytes']:,} bytes, {coded['deviation']:+.4%} from the figure; "
            "decoded back, every byte the same"
        )
    return Result(facts=facts, lines=tuple(lines))


def _measure(
    request: Request,
    documents: Iterable[tuple[bytes, str]],
    context: int,
    stride: int,
    after_batch: Callable[[int], None],
) -> Breakdown:
    model = request.model.model
    if request.model.config.model.vocabulary == BYTE_VOCABULARY:
        return break_down(model, documents, context_bytes=context, stride=stride, after_batch=after_batch)
    if request.compress:
        raise ConfigError("--compress codes bytes one by one, and the ids of this run are not bytes; leave it out")
    data = (document for document, _ in documents)  # ids that stand for several bytes belong to no part
    bits = bits_per_byte(model, data, context_bytes=context, stride=stride)
    return Breakdown(bits=bits, by_type={}, by_word_place={}, by_script={})


def _round_trip(request: Request, context: int, stride: int, found: Breakdown) -> dict[str, Any]:
    held_out, total = request.held_out(), 2 * found.bits.scored_bytes
    documents = [data for data, _ in held_out.some(request.limit_bytes, request.model.context_bytes)]
    done = 0

    def after_document(coded_bytes: int) -> None:
        nonlocal done
        done += coded_bytes
        request.progress(done, total)

    settings = {"context_bytes": context, "stride": stride, "after_document": after_document}
    coded = arithmetic_coding.encode(request.model.decoder, documents, **settings)
    same = arithmetic_coding.decode(request.model.decoder, coded, **settings) == documents
    assert same, "the decoder did not find the bytes that were encoded"
    assert found.bits.by_head[0] is not None
    promised_bytes = found.bits.by_head[0] * found.bits.scored_bytes / 8
    return {
        "payload_bytes": len(coded.payload),
        "promised_bytes": promised_bytes,
        "deviation": len(coded.payload) / promised_bytes - 1,
        "decoded_back": same,
    }


def _part_facts(part: Part) -> dict[str, Any]:
    return {"bytes": part.bytes, "bits_per_byte": part.bits_per_byte}


def _lines(found: Breakdown, compressors: dict[str, float]) -> Iterator[str]:
    bits = found.bits
    yield f"bits per byte {bits.by_head[0]:.4f}, over {bits.scored_bytes:,} bytes"
    yield f"by head: {' '.join(map(share, bits.by_head))}"
    beside = ", ".join(f"{name} {figure:.3f}" for name, figure in compressors.items())
    yield f"the same bytes, all documents joined: {beside}"
    if len(found.by_type) > 1:
        parts = list(found.by_type.items())[:_BYTES_SHOWN]
        yield "by type: " + "; ".join(f"{name} {part.bits_per_byte:.3f} ({part.bytes:,})" for name, part in parts)
    yield f"rule: {bits.rule}"


def part_as_json(part: Part) -> dict[str, Any]:
    """A part with the survival of its drafts."""
    return {**asdict(part), "bytes_per_step": part.bytes_per_step}
