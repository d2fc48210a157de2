"""Speculative rejection sampling with block verification: another way to keep the law with drafts.

Drafts are drawn from a law q of their own, and accepted by a rule that makes the output a draw of the trunk's law p. A
block is judged as a whole, which accepts more than byte by byte. Unlike coupled sampling the bytes of a seed depend on
what was drafted, and only their law does not. At high temperatures it accepts a few per cent more.

How many bytes are drafted must not depend on which were drawn: a draft that is dropped for its value would leave that
value out of the law. So a draft's chance is a share by depth alone.

Shapes: V = 257 ids that can be chosen.

Source: Leviathan et al. 2023, arXiv 2211.17192; block verification: Sun et al. 2025, arXiv 2403.10444, algorithm 2.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bytelm.law import Law, Node
from bytelm.vocab import EOD

Probabilities = npt.NDArray[np.float64]


def probabilities(law: Law, logits_V: npt.NDArray[np.float32], node: Node) -> Probabilities:
    """The law at a node, all of the settings applied, (257,)."""
    log_law_V = law.sampler.log_law(law.logits(logits_V, node)[None])[0]
    weights_V = np.exp(log_law_V - log_law_V.max())
    return weights_V / weights_V.sum()


def draw(random: np.random.Generator, law_V: Probabilities) -> int:
    """One id."""
    sums_V = np.cumsum(law_V)
    return int(np.searchsorted(sums_V, random.random() * sums_V[-1], side="right"))


def draft_law(law: Law, logits_V: npt.NDArray[np.float32], node: Node) -> Probabilities | None:
    """What a head proposes at a node: its law under the same settings, without the end of a document.

    None where nothing but the end is left, or the head's logits are no numbers.
    """
    if not np.isfinite(logits_V).all():
        return None
    law_V = probabilities(law, logits_V, node)
    law_V[EOD] = 0.0
    total = law_V.sum()
    return law_V / total if total > 0.0 else None


def verify_block(
    random: np.random.Generator,
    drafted: Sequence[int],
    of_draft: Sequence[Probabilities],
    of_trunk: Sequence[Probabilities],
) -> list[int]:
    """Accept the beginning of a block and draw the id after it.

    Args:
        random: Fresh numbers: not those that the drafts were drawn with.
        drafted: n ids, each drawn from its law.
        of_draft: That law of each, n.
        of_trunk: The trunk's law at each, and behind the last, n + 1.

    Returns:
        The accepted ids and one more.
    """
    count = len(drafted)
    ratios, accepted = [1.0], 0
    for place, identifier in enumerate(drafted):
        ratio = min(1.0, ratios[-1] * of_trunk[place][identifier] / of_draft[place][identifier])
        ratios.append(ratio)
        if place + 1 == count or ratio == 1.0:
            chance = ratio
        else:
            rest = np.maximum(ratio * of_trunk[place + 1] - of_draft[place + 1], 0.0).sum()
            chance = rest / (rest + 1.0 - ratio)
        if random.random() < chance:
            accepted = place + 1
    law_V = of_trunk[accepted]
    if accepted < count:
        rest_V = np.maximum(ratios[accepted] * law_V - of_draft[accepted], 0.0)
        if rest_V.sum() > 0.0:
            law_V = rest_V
    return [*drafted[:accepted], draw(random, law_V)]
