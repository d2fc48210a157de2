"""What the last two bytes say of the next one: a correction of the draft heads, which know nothing of each other.

Head k predicts the byte k places on without knowing the bytes between. Where two continuations compete, a chain of the
heads' best bytes mixes them up. The drafter knows the bytes that it has drafted so far, and the last two of them say
much of the next: the logits of head k become

    a_k · logits + b_k · (last[x] + before[y]) · out        x, y: the last byte and the one before it

a map of low rank, fitted with the model's weights left alone so that each head says what head 0 is going to say at
its place. It changes drafts, never a byte: what is drafted is only ever compared with what the trunk chooses.

Shapes: T bytes of a window, K prediction heads, N = K - 1 draft heads, V ids that can be chosen, R rank.

Source: independent heads rescored by an n-gram model, Kim et al. 2024, arXiv 2404.09221; here the rescoring is learnt.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from bytelm.files import write_file
from bytelm.model import ByteLM
from bytelm.sampling import CHOICES
from bytelm.vocab import EOD

PATH_OF_PAIRS: Final = "pairs.safetensors"
RANK: Final = 64
LEAST_BYTES: Final = 1 << 15
"""Bytes of text below which nothing is fitted: they say too little of pairs."""

_LEARNING_RATE: Final = 0.03
_NAMES: Final = ("last_VR", "before_VR", "out_RV", "of_head_N", "of_pair_N")


@dataclass(frozen=True, slots=True, eq=False)
class PairCorrection:
    """A fitted correction.

    Attributes:
        last_VR: By the last id; ``EOD`` stands for none.
        before_VR: By the id before it.
        out_RV: To logits.
        of_head_N: a_k of each draft head.
        of_pair_N: b_k.
    """

    last_VR: npt.NDArray[np.float32]
    before_VR: npt.NDArray[np.float32]
    out_RV: npt.NDArray[np.float32]
    of_head_N: npt.NDArray[np.float32]
    of_pair_N: npt.NDArray[np.float32]

    def corrected(self, draft_head: int, logits_V: npt.NDArray[np.float32], recent: bytes) -> npt.NDArray[np.float32]:
        """Logits of a draft head where the bytes before its byte are known.

        Args:
            draft_head: From 0, which is head 1.
            logits_V: At least V of them.
            recent: The bytes before; the last two are looked at.

        Returns:
            (V,).
        """
        last = recent[-1] if recent else EOD
        before = recent[-2] if len(recent) > 1 else EOD
        pair_V = (self.last_VR[last] + self.before_VR[before]) @ self.out_RV
        return self.of_head_N[draft_head] * logits_V[:CHOICES] + self.of_pair_N[draft_head] * pair_V


def fit_pairs(
    model: ByteLM, texts: Mapping[str, bytes], *, context_bytes: int, windows: int = 64, seed: int = 0
) -> PairCorrection | None:
    """Fit a correction to a model, whose weights stay.

    Args:
        model: Of bytes, in evaluation mode, with draft heads; on any device.
        texts: By kind; each kind gets the same number of windows.
        context_bytes: Window of the model.
        windows: Steps of the fit, each on one window.
        seed: Of the first values and of the places of windows.

    Returns:
        None where there is nothing to fit: no draft heads, or less than ``LEAST_BYTES`` of text.
    """
    if model.heads.count < 2 or sum(len(text) for text in texts.values()) < LEAST_BYTES:
        return None
    device = model.embedding.device
    draw = torch.Generator().manual_seed(seed)
    drafts = model.heads.count - 1
    tables = [torch.randn(CHOICES, RANK, generator=draw).mul_(0.3).to(device) for _ in range(2)]
    out_RV = torch.zeros(RANK, CHOICES, device=device)
    scales = [torch.ones(drafts, 1, device=device) for _ in range(2)]
    groups = [{"params": [*tables, out_RV], "lr": _LEARNING_RATE}, {"params": scales, "lr": _LEARNING_RATE / 3}]
    with torch.inference_mode(mode=False), torch.enable_grad():
        for tensor in (*tables, out_RV, *scales):
            tensor.requires_grad_()
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=windows)
        kinds = [text for text in texts.values() if text]
        for step in range(windows):
            text = kinds[step % len(kinds)]
            place = int(torch.randint(0, max(1, len(text) - context_bytes), (), generator=draw))
            logits, last, before, wanted = _views(model, text[place : place + context_bytes - 1])
            pair_TNV = (tables[0][last] + tables[1][before]) @ out_RV
            log_law_TNV = (scales[0] * logits + scales[1] * pair_TNV).log_softmax(-1)
            loss = -(wanted * log_law_TNV).sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    found = [tensor.detach().cpu().half().float().numpy() for tensor in (*tables, out_RV)]
    return PairCorrection(*found, *(scale.detach().cpu().flatten().numpy() for scale in scales))


@torch.no_grad()
def bytes_of_chain(model: ByteLM, texts: Sequence[bytes], pairs: PairCorrection | None, *, context_bytes: int) -> float:
    """Bytes of a step if all heads are drafted: one, and as many drafts as agree with head 0 at their places.

    Args:
        model: As in ``fit_pairs``.
        texts: Read up to ``context_bytes`` each; each longer than the model has heads.
        pairs: Correction; None for the heads alone.
        context_bytes: Window of the model.
    """
    total, places = 0.0, 0
    for text in texts:
        logits, last, before, wanted = _views(model, text[: context_bytes - 1])
        if pairs is not None:
            tables = [torch.from_numpy(table).to(logits) for table in (pairs.last_VR, pairs.before_VR, pairs.out_RV)]
            scales = [torch.from_numpy(scale).to(logits).unsqueeze(1) for scale in (pairs.of_head_N, pairs.of_pair_N)]
            logits = scales[0] * logits + scales[1] * ((tables[0][last] + tables[1][before]) @ tables[2])
        agree_TN = logits.argmax(-1) == wanted.argmax(-1)
        total += agree_TN.long().cumprod(-1).sum().item()
        places += len(agree_TN)
    return 1.0 + total / max(1, places)


@torch.no_grad()
def _views(model: ByteLM, text: bytes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each place of a text: logits of the draft heads, ids before their bytes, and head 0's law at those bytes.

    Returns:
        (T, N, V), (T, N), (T, N), (T, N, V).
    """
    ids_T = torch.tensor([EOD, *text], device=model.embedding.device)
    heads = model.heads.count
    logits_TKV = model(ids_T.unsqueeze(0))[0].float()[..., :CHOICES]
    count = len(ids_T) - heads + 1
    # Head k at row t predicts id t + 1 + k; the ids before it are t + k and t + k - 1, head 0 predicts it at row t + k.
    last_TN = torch.arange(count, device=ids_T.device).unsqueeze(1) + torch.arange(1, heads, device=ids_T.device)
    return logits_TKV[:count, 1:], ids_T[last_TN], ids_T[last_TN - 1], logits_TKV[:, 0].softmax(-1)[last_TN]


# On disk


def write_pairs(folder: Path, pairs: PairCorrection, weights: str) -> None:
    """Write ``pairs.safetensors`` beside a run; ``weights`` is the digest of those that it was fitted to."""
    arrays = {name: getattr(pairs, name).astype(np.float16) for name in _NAMES}
    write_file(folder / PATH_OF_PAIRS, save(arrays, {"weights": weights}))


def read_pairs(folder: Path, weights: str, draft_heads: int) -> tuple[PairCorrection | None, str]:
    """The correction of a run, if it is there and was fitted to these weights.

    Returns:
        It and "", or None and why one that is there is not used.
    """
    path = folder / PATH_OF_PAIRS
    if not path.is_file():
        return None, ""
    again = "and is not used; run bytelm tune again"
    try:
        with safe_open(path, "numpy") as file:
            if (file.metadata() or {}).get("weights") != weights:
                return None, f"{path} was fitted to other weights {again}"
            found = [file.get_tensor(name).astype(np.float32) for name in _NAMES]
    except (SafetensorError, OSError) as error:
        return None, f"{path} cannot be read ({error}) {again}"
    rank = found[0].shape[-1]
    shapes = [(CHOICES, rank), (CHOICES, rank), (rank, CHOICES), (draft_heads,), (draft_heads,)]
    if [one.shape for one in found] != shapes or not all(math.isfinite(float(one.sum())) for one in found):
        return None, f"{path} holds other tables than this model needs {again}"
    return PairCorrection(*found), ""
