"""What a comparison says: each arm over its seeds, and the sentences that the data support.

A sentence says that one arm is better than another only where every seed of the one is better than every seed of the
other, and there are at least two of each. The data of few seeds support no finer statement.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from bytelm.compare import Comparison, Measured, known

_AXES: Final = {
    "parameters": "parameters in all",
    "flops": "operations of the training",
    "bytes": "bytes read in training",
    "seconds": "seconds of training on this machine",
}
_LEAST_SEEDS: Final = 2
_OWN_LOAD: Final = 0.5
"""Beyond its cores, from which on a machine is called busy: the comparison itself, just before, made a load too."""
_LARGE: Final = 1e10
UNKNOWN: Final = "–"


@dataclass(frozen=True, kw_only=True)
class ArmFacts:
    """An arm over its seeds.

    Attributes:
        name: Of the arm.
        runs: One for each seed, at least one.
    """

    name: str
    runs: tuple[Measured, ...]

    def values(self, of: str) -> list[float]:
        """A figure of each run, by the name of its field."""
        return [getattr(run, of) for run in self.runs]

    def mean(self, of: str) -> float:
        """Its mean."""
        return statistics.fmean(self.values(of))

    def spread(self, of: str) -> float | None:
        """Its standard deviation over the seeds; None where there is one seed."""
        return statistics.stdev(self.values(of)) if len(self.runs) > 1 else None

    @property
    def met(self) -> bool:
        """Whether no run missed the budget."""
        return all(run.met is not False for run in self.runs)


def arms_of(comparison: Comparison) -> list[ArmFacts]:
    """The arms that were measured, in the order of the plan."""
    found = []
    for arm in comparison.plan.arms:
        runs = tuple(run for run in comparison.measured if run.name == arm.name)
        if runs:
            found.append(ArmFacts(name=arm.name, runs=runs))
    return found


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything, as JSON values: ``arms`` with the means over the seeds, and each run under its arm."""
    plan = comparison.plan
    return {
        "budget": {"kind": plan.budget.kind, "amount": plan.budget.amount},
        "equal": _AXES[plan.budget.kind],
        "corpus": comparison.place,
        "fingerprint": comparison.fingerprint,
        "context_bytes": plan.base.data.window_bytes,
        "stride_bytes": plan.stride_bytes,
        "rule": comparison.rule,
        "seeds": list(plan.seeds),
        "machine": comparison.machine,
        "order": "one run at a time, in one process, the seeds outermost",
        "settings": plan.base.model_dump(mode="json"),
        "sentences": sentences(comparison),
        "finished": not comparison.stopped and not comparison.failed,
        "failed": [asdict(one) for one in comparison.failed],
        "arms": [_arm_json(arm) for arm in arms_of(comparison)],
    }


def _arm_json(arm: ArmFacts) -> dict[str, Any]:
    means = (
        "bits_per_byte",
        "parameters",
        "parameters_inner",
        "training_flops",
        "training_seconds",
        "training_bytes",
        "training_bytes_per_second",
        "training_memory_bytes",
        "flops_per_byte_training",
        "flops_per_byte_decoding",
        "bytes_per_second_plain",
        "bytes_per_second_speculative",
        "bytes_per_step",
        "bytes_per_id",
    )
    return {
        "name": arm.name,
        **{name: _whole(arm.mean(name)) for name in means},
        "bits_per_byte_spread": arm.spread("bits_per_byte"),
        "met_budget": arm.met,
        "runs": [known(run) for run in arm.runs],
    }


def sentences(comparison: Comparison) -> list[str]:
    """What the data support, and not more."""
    arms = arms_of(comparison)
    kind = comparison.plan.budget.kind
    if not arms:
        return ["Nothing was measured, so nothing can be said."]
    found = []
    equal = [arm for arm in arms if arm.met and all(run.trained for run in arm.runs)]
    amount = f"{_counted(comparison.plan.budget.amount)} {_AXES[kind]}"
    if len(equal) > 1:
        found.append(_best_sentence(equal, amount))
        found.append(_speed_sentence(equal))
    else:
        found.append(f"Fewer than two arms were trained within {amount}: there is nothing to compare at equal cost.")
    loads = [run.load_before for run in comparison.measured if run.load_before is not None]
    if loads and max(loads) > comparison.cores + _OWN_LOAD:
        found.append(
            f"The machine had other work at times (its load before a run was up to {max(loads):.1f}), so that seconds "
            "and bytes per second say little."
        )
    missed = [arm.name for arm in arms if not arm.met]
    if missed:
        found.append(f"Left out of these sentences, having missed the budget: {', '.join(missed)}.")
    joined = [arm.name for arm in arms if not all(run.trained for run in arm.runs)]
    if joined:
        found.append(
            f"Measured as found, at no equal cost and so in none of these sentences: {', '.join(joined)}. "
            "What they learnt from may hold the held-out bytes."
        )
    shape = comparison.plan.base.model
    found.append(
        f"This holds for this corpus, a trunk {shape.d_model} wide with {shape.layers} layers, contexts of "
        f"{comparison.plan.base.data.window_bytes} bytes, one learning rate and the same bytes a step for all arms "
        f"that do not name their own, and this machine ({comparison.machine}). It says nothing about larger models or "
        "longer trainings."
    )
    return found


def _best_sentence(arms: Sequence[ArmFacts], amount: str) -> str:
    ranked = sorted(arms, key=lambda arm: arm.mean("bits_per_byte"))
    best, *others = ranked
    text = (
        f"At an equal {amount}, {best.name} has the lowest mean, {_figure(best, 'bits_per_byte', '.3f')} bits per byte"
    )
    if min(len(arm.runs) for arm in ranked) < _LEAST_SEEDS:
        return f"{text}; with one seed it cannot be told whether any difference is more than chance."
    apart = [arm for arm in others if _all_below(best, arm, "bits_per_byte")]
    close = [arm for arm in others if arm not in apart]
    parts = [text]
    if apart:
        parts.append("every seed of it is below every seed of " + ", ".join(_named(arm) for arm in apart))
    if close:
        parts.append("the seeds do not tell it apart from " + ", ".join(_named(arm) for arm in close))
    return "; ".join(parts) + "."


def _speed_sentence(arms: Sequence[ArmFacts]) -> str:
    parts = []
    for of, what in (("bytes_per_second_plain", "without drafts"), ("bytes_per_second_speculative", "with drafts")):
        best, *others = sorted(arms, key=lambda arm: -arm.mean(of))
        clear = all(_all_below(arm, best, of) for arm in others)
        seeds = min(len(arm.runs) for arm in arms)
        sure = (
            "faster in every run than any other arm"
            if clear and seeds >= _LEAST_SEEDS
            else "the highest mean, not clear of all others"
        )
        parts.append(f"{what} {best.name} generates {_figure(best, of, ',.0f')} bytes/s ({sure})")
    return f"Here, {'; '.join(parts)}."


def _all_below(one: ArmFacts, other: ArmFacts, of: str) -> bool:
    return max(one.values(of)) < min(other.values(of))


def _named(arm: ArmFacts) -> str:
    return f"{arm.name} ({_figure(arm, 'bits_per_byte', '.3f')})"


def _figure(arm: ArmFacts, of: str, form: str) -> str:
    spread = arm.spread(of)
    return f"{arm.mean(of):{form}}" + ("" if spread is None else f" ± {spread:{form}}")


def against(arm: ArmFacts, other: ArmFacts, of: str, rule: Callable[[float, float], float]) -> list[float]:
    """A figure of an arm set against that of another, seed by seed; where they share no seed, mean against mean.

    Args:
        arm: Whose figure comes first.
        other: Whose figure comes second.
        of: Name of the field.
        rule: What is made of the two.
    """
    by_seed = {run.seed: getattr(run, of) for run in other.runs}
    pairs = [(getattr(run, of), by_seed[run.seed]) for run in arm.runs if run.seed in by_seed]
    return [rule(one, two) for one, two in pairs or [(arm.mean(of), other.mean(of))]]


def figure(arm: ArmFacts, of: str, shown: Callable[[float], str]) -> str:
    """Mean and standard deviation of a field, as text; a dash where it is not known."""
    if math.isnan(arm.mean(of)):
        return UNKNOWN
    spread = arm.spread(of)
    same = spread is None or spread == 0
    return shown(arm.mean(of)) + ("" if same or spread is None else f" ± {shown(spread)}")


def _counted(amount: float) -> str:
    return f"{amount:,.0f}" if amount < _LARGE else f"{amount:.3g}"


def _whole(value: float) -> float | None:
    if math.isnan(value):
        return None
    return int(value) if value == int(value) else value
