"""Where bits and drafts are lost: bits per byte and the survival of drafts by what a byte is part of.

One pass over held-out documents, scored as ``bytelm.scoring`` says. On real text a draft of head k counts as right
where heads 1 … k all name the ids that head 0 names once it has read that far: the share of places at which it does is
its *survival*, and their sum over all heads is the bytes that a step would give, were the text like this one.

Shapes: K prediction heads, P places of a window, C classes of a label.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bytelm.engine import NOT_FINITE
from bytelm.errors import CorpusError, GenerationError
from bytelm.evaluate import BitsPerByte
from bytelm.labels import WORD_PLACES, scripts, word_places
from bytelm.model import ByteLM
from bytelm.scoring import Scores, agreement, batches, check_stride, default_stride, score, windows

Counts = npt.NDArray[np.int64]

_NEIGHBOURS: Final = len(WORD_PLACES)
"""Bytes on either side that say what a byte is part of: how far it is in its word, and all of its character."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the bytes.

    Attributes:
        bytes: Of it; each is predicted by head 0 at one place.
        bits_per_byte: Of head 0.
        survival_by_head: Share of its places at which all heads up to k were right; 1 for head 0; None where there is
            no place at which all heads can be judged. Length K.
    """

    bytes: int
    bits_per_byte: float
    survival_by_head: tuple[float | None, ...]

    @property
    def bytes_per_step(self) -> float | None:
        """Bytes of a pass, were all steps to begin at places like these."""
        first, *others = self.survival_by_head
        return None if first is None else first + sum(share or 0.0 for share in others)


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Held-out bytes as a whole and in parts.

    Attributes:
        bits: Of all bytes, as ``bits_per_byte`` gives them.
        by_type: Parts by the type of their document.
        by_word_place: Parts by the place of the byte that head 0 predicts: ``WORD_PLACES``.
        by_script: Parts by the script of that byte's character.
    """

    bits: BitsPerByte
    by_type: dict[str, Part]
    by_word_place: dict[str, Part]
    by_script: dict[str, Part]


def break_down(
    model: ByteLM,
    documents: Iterable[tuple[bytes, str]],
    *,
    context_bytes: int,
    stride: int | None = None,
    after_batch: Callable[[int], None] = lambda _: None,
) -> Breakdown:
    """Score documents and tell the parts apart.

    Args:
        model: Of bytes, on any device.
        documents: Raw bytes with the type of each; taken one by one.
        context_bytes: Ids of a window, at least 1.
        stride: Ids that a window advances; half the window where None.
        after_batch: Called with the bytes that were scored last.

    Raises:
        ConfigError: The stride is impossible.
        CorpusError: There is not one byte.
        GenerationError: A score is not finite.
    """
    stride = check_stride(default_stride(context_bytes) if stride is None else stride, context_bytes)
    heads = model.heads.count
    labelled = _Labelled(documents)
    sums = {label: _Sums(heads) for label in ("type", "word", "script")}
    for batch in batches(windows(labelled, context=context_bytes, stride=stride, heads=heads)):
        scores = score(model, batch, heads)
        for window, nats_KP, scored_KP, agreed_KP, askable in _rows(scores):
            if not np.isfinite(nats_KP[scored_KP]).all():
                raise GenerationError(f"document {window.document + 1} of those that are scored: {NOT_FINITE}")
            place = slice(window.start + window.first, window.start + window.first + nats_KP.shape[1])
            for label, names in labelled.names(window.document, place).items():
                sums[label].add(*names, nats_KP, scored_KP, agreed_KP, askable)
        after_batch(int(scores.used_BL.sum()))
    if labelled.raw_bytes == 0:
        raise CorpusError(f"there is no byte to score in {labelled.documents} documents; choose another split or file")
    whole = sums["type"]
    assert sum(int(counts[0]) for counts in whole.count.values()) == labelled.raw_bytes, "not every byte once"
    nats_K, count_K = sum(whole.nats.values()), sum(whole.count.values())
    bits = BitsPerByte(
        by_head=tuple(
            float(nats) / math.log(2) / int(count) if count else None
            for nats, count in zip(np.atleast_1d(nats_K), np.atleast_1d(count_K), strict=True)
        ),
        scored_bytes=labelled.raw_bytes,
        scored_ids=labelled.raw_bytes,
        documents=labelled.documents,
        context_bytes=context_bytes,
        stride=stride,
        agreement_by_head=_shares(np.atleast_1d(sum(whole.agreed.values())), sum(whole.askable.values())),
    )
    return Breakdown(
        bits=bits,
        by_type=whole.parts(),
        by_word_place=sums["word"].parts(WORD_PLACES),
        by_script=sums["script"].parts(),
    )


class _Labelled:
    """Documents as they pass by, with what labels their bytes, kept until their last byte is scored."""

    def __init__(self, documents: Iterable[tuple[bytes, str]]) -> None:
        self._source = documents
        self._kept: dict[int, tuple[bytes, str]] = {}
        self._left: dict[int, int] = {}
        self.documents = 0
        self.raw_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        for data, kind in self._source:
            if data:
                self._kept[self.documents] = data, kind
                self._left[self.documents] = len(data)
            self.documents += 1
            self.raw_bytes += len(data)
            yield data

    def names(self, document: int, place: slice) -> dict[str, tuple[Counts, tuple[str, ...]]]:
        """For each label the codes of some places, and the names of the codes; each place is asked for once."""
        data, kind = self._kept[document]
        size = place.stop - place.start
        # A label of a byte depends on its neighbours alone.
        begin = max(0, place.start - _NEIGHBOURS)
        around, inside = data[begin : place.stop + _NEIGHBOURS], slice(place.start - begin, place.stop - begin)
        codes, names = scripts(around)
        self._left[document] -= size
        if not self._left[document]:
            del self._kept[document], self._left[document]
        return {
            "type": (np.zeros(size, np.int64), (kind,)),
            "word": (word_places(around)[inside], WORD_PLACES),
            "script": (codes[inside], names),
        }


class _Sums:
    """Sums of one label, by name."""

    def __init__(self, heads: int) -> None:
        self._heads = heads
        self.nats: dict[str, npt.NDArray[np.float64]] = {}
        self.count: dict[str, Counts] = {}
        self.agreed: dict[str, Counts] = {}
        self.askable: dict[str, int] = {}

    def add(
        self,
        codes_P: Counts,
        names: tuple[str, ...],
        nats_KP: npt.NDArray[np.float64],
        scored_KP: npt.NDArray[np.bool_],
        agreed_KP: npt.NDArray[np.bool_],
        askable: int,
    ) -> None:
        """Add the places of a window; the first ``askable`` ones can be judged for all heads."""
        for code in np.unique(codes_P).tolist():
            name, here = names[code], codes_P == code
            if name not in self.nats:
                self.nats[name] = np.zeros(self._heads)
                self.count[name] = np.zeros(self._heads, np.int64)
                self.agreed[name] = np.zeros(self._heads, np.int64)
                self.askable[name] = 0
            self.nats[name] += np.where(scored_KP & here, nats_KP, 0.0).sum(1)
            self.count[name] += (scored_KP & here).sum(1)
            self.agreed[name] += (agreed_KP & here).sum(1)
            self.askable[name] += int(here[:askable].sum())

    def parts(self, order: tuple[str, ...] = ()) -> dict[str, Part]:
        """All parts, in a given order or the largest first."""
        found = sorted(self.nats, key=lambda name: (order.index(name) if order else 0, -self.count[name][0], name))
        return {
            name: Part(
                bytes=int(self.count[name][0]),
                bits_per_byte=float(self.nats[name][0]) / math.log(2) / int(self.count[name][0]),
                survival_by_head=_shares(self.agreed[name], self.askable[name]),
            )
            for name in found
        }


def _rows(scores: Scores) -> Iterator[tuple]:
    """Each window with its used places: nats, whether scored, whether all heads agreed, and how many can be judged."""
    heads = len(scores.nats_kBL)
    nats = scores.nats_kBL.double().cpu().numpy()
    scored = scores.scored_kBL.cpu().numpy()
    agreed = agreement(scores).cpu().numpy()
    for row, window in enumerate(scores.windows):
        used = slice(window.first, window.reads)
        askable = max(0, window.reads - heads + 1 - window.first)
        yield window, nats[:, row, used], scored[:, row, used], agreed[:, row, used], askable


def _shares(agreed_K: Counts, askable: int) -> tuple[float | None, ...]:
    return tuple(int(count) / askable if askable else None for count in agreed_K)
