"""Fitting the correction of the draft heads by the two bytes before (``bytelm.pair_correction``).

The model's weights are left alone: the correction is fitted so that each draft head says what head 0 is going to say
at its place.

Shapes: T bytes of a window, K prediction heads, N = K - 1 draft heads, V ids that can be chosen, R rank.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from bytelm.model import ByteLM
from bytelm.pair_correction import PairCorrection
from bytelm.sampling import CHOICES
from bytelm.vocab import EOD

RANK: Final = 64
LEAST_BYTES: Final = 1 << 15
"""Bytes of text below which nothing is fitted: they say too little of pairs."""

_LEARNING_RATE: Final = 0.03


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
            log_probs_TNV = (scales[0] * logits + scales[1] * pair_TNV).log_softmax(-1)
            loss = -(wanted * log_probs_TNV).sum(-1).mean()
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
    """For each place of a text: logits of the draft heads, ids before their bytes, and what head 0 says of those bytes.

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
