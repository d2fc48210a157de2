"""What kinds of drafts pay at the costs of larger models: trees, chains, heads alone.

The trained model decodes while its planner is given another shape's table of costs: it then drafts as it would in a
model of that size whose heads are right as often as its own. The seconds of each step are those of the table, by the
rows of its pass and the heads that were asked; so are those of a step without drafts. The tables are measured here,
with random weights of the shape and as many bytes before as in the middle of the replay.

``adaptive`` is what decodes: trees of the heads' best and second-best bytes, and prompt lookup. ``chains only`` leaves
out the second-best; ``without lookup`` believes nothing of prompt lookup, which only still says where it agrees with a
head; ``all heads`` and ``lookup alone`` ask the planner nothing.
"""

import math
import statistics
from typing import Any, Final

import numpy as np
from decode_costs import ADAPTIVE, ALL_HEADS, LOOKUP, measured_cost, pair_tables, settings_of
from decode_drafts import KINDS
from decode_rates import say, table
from decode_subjects import LARGE, SHAPES, Subjects

from bytelm.decoding.engine_decode import calibration_table, cost_table
from bytelm.drafting import Calibration, StepCost
from bytelm.engine import CalibrationTable, Decoder
from bytelm.vocab import EOD

POLICIES: Final = {
    "adaptive": (ADAPTIVE, True, True),
    "chains only": (ADAPTIVE, False, True),
    "without lookup": (ADAPTIVE, True, False),
    "all heads": (ALL_HEADS, True, True),
    "lookup alone": (LOOKUP, True, True),
}
"""Policy of decode.h, whether trees are drafted, whether prompt lookup is believed."""
_SAMPLED: Final = ("adaptive", "chains only", "without lookup")
"""Policies that are replayed at every temperature; the others at the first one alone."""
_TEXTS: Final = ("python", "docs", "prose", "unseen", "random")
_PROMPT_BYTES: Final = 192
_PAST: Final = 256
"""Bytes before the steps whose costs are measured: 192 to 320 are before those of the replay."""
_MATCHES: Final = (4, 6, 8, 12, 16, 24, 32, 64)
_DISBELIEVED: Final = 1e300
"""Proposals of prompt lookup that were wrong: so many that none of the few that come makes a difference."""


class Replay:
    """The trained model, with a slot for each prompt, so that each is read once.

    Args:
        subjects: What is measured.
    """

    def __init__(self, subjects: Subjects) -> None:
        self._quick, engine = subjects.quick, subjects.engine(None, "bfloat16")
        self._calibration = subjects.plan(engine).calibration
        nothing = {
            f"{rule}{kind} {length}": (0.0, _DISBELIEVED)
            for rule in ("", "drawn ")
            for kind in ("past", "against")
            for length in _MATCHES
        }
        self._without_lookup = Calibration({**self._calibration.counts, **nothing})
        self._prompts = {text: subjects.prompts_of(text, _PROMPT_BYTES) for text in _TEXTS if text in subjects.texts}
        self._decoders = {
            trees: Decoder(
                engine,
                slots=sum(map(len, self._prompts.values())),
                capacity=2 * _PROMPT_BYTES,
                costs=cost_table(((0, StepCost((1, 2), (1.0, 1.0), 0.0)),)),
                calibration=CalibrationTable(),
                pairs=pair_tables(subjects.pairs),
                trees=trees,
            )
            for trees in (False, True)
        }

    def run(self, cost: StepCost, policy: str, temperature: float) -> dict[str, float]:
        """Speed over no drafts by text."""
        number, trees, lookup = POLICIES[policy]
        known = self._calibration if lookup else self._without_lookup
        decoder, found, slot = self._decoders[trees], {}, 0
        for text, prompts in self._prompts.items():
            plain = drafted = 0.0
            for prompt in prompts:
                settings = settings_of(
                    number, max_ids=32 if self._quick else 128, temperature=temperature, sequence=slot
                )
                decoder.set_costs(
                    cost_table(((_PAST, cost),))
                )  # each prompt begins without a rate and with this calibration
                decoder.set_calibration(calibration_table(known))
                for rows, asked, accepted in _steps(decoder, slot, prompt, settings):
                    drafted += cost.of(rows) + asked * cost.head
                    plain += (1 + accepted) * cost.of(1)
                slot += 1
            found[text] = round(plain / drafted, 3)
        return found

    def close(self) -> None:
        """Give the memory back."""
        for decoder in self._decoders.values():
            decoder.close()


def policies(subjects: Subjects) -> dict[str, Any]:
    """Expected speed with drafts over that without, by shape, kind of weights, temperature, policy and text."""
    replay = Replay(subjects)
    gains: dict[str, Any] = {}
    costs: dict[str, Any] = {}
    for shape in SHAPES:
        for kind in KINDS:
            say(f"policies, {shape}, {kind}")
            engine = subjects.engine(shape, kind)
            known = measured_cost(engine, subjects.pairs, past=_PAST, repeats=2 if subjects.quick else 3)
            costs.setdefault(shape, {})[kind] = _as_json(known)
            for temperature in subjects.temperatures:
                names = POLICIES if temperature == subjects.temperatures[0] else _SAMPLED
                found = {policy: replay.run(known, policy, temperature) for policy in names}
                for by in found.values():
                    by["geometric mean"] = _mean(by)
                gains.setdefault(shape, {}).setdefault(kind, {})[f"temperature {temperature:g}"] = found
                title = f"Replay at the costs of {shape}, {kind}, temperature {temperature:g}: speed over no drafts"
                table(title, list(found["adaptive"]), {policy: tuple(by.values()) for policy, by in found.items()})
        if shape != LARGE:
            subjects.forget(shape)
    replay.close()
    return {
        "replay_over_plain": gains,
        "replay_costs": costs,
        "replay_25m_int8_over_plain": gains[LARGE]["int8"][f"temperature {subjects.temperatures[0]:g}"]["adaptive"],
    }


def _steps(decoder: Decoder, slot: int, prompt: bytes, settings: Any) -> list[tuple[int, int, int]]:
    """Rows, heads that were asked and accepted drafts of each step of a prompt."""
    ids = np.empty(1 + len(prompt), np.int32)
    ids[0], ids[1:] = EOD, np.frombuffer(prompt, np.uint8)
    left = decoder.begin(slot, ids, settings)
    while left:
        left = decoder.prefill(slot, 4096)
    found, finished = [], False
    while not finished:
        block = decoder.run(steps=16, microseconds=0, logprobs=False)
        for _, _, _, _, _, accepted, rows, asked, finish, _ in block.records:
            found.append((rows, asked, accepted))
            finished = finish != 0
    decoder.end(slot)
    return found


def _mean(by: dict[str, float]) -> float:
    return round(math.exp(statistics.fmean(math.log(value) for value in by.values())), 3)


def _as_json(cost: StepCost) -> dict[str, Any]:
    return {
        "ms": {str(rows): round(1e3 * one, 4) for rows, one in zip(cost.rows, cost.seconds, strict=True)},
        "head_ms": round(1e3 * cost.head, 5),
    }
