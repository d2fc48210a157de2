"""What a comparison says: each arm over its seeds at each budget, slopes, and the sentences that the data support.

A sentence says that one arm is better than another only where every seed of the one is better than every seed of the
other, and there are at least two of each. The data of few seeds support no finer statement.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from bytelm.arms import Budget
from bytelm.compare import FORMAT, ONE_DOCUMENT, Comparison
from bytelm.comparison_measure import Measured, known
from bytelm.comparison_tuning import SEARCH, tuning_budget

_AXES: Final = {
    "parameters": "parameters in all",
    "flops": "operations of the training",
    "bytes": "bytes read in training",
    "seconds": "seconds of training on this machine",
}
_LEAST_SEEDS: Final = 2
_LEAST_BUDGETS: Final = 2
_LEAST_ARMS: Final = 2
_OWN_LOAD: Final = 0.5
"""Beyond its cores, from which on a machine is called busy: the comparison itself, just before, made a load too."""
_LARGE: Final = 1e10
UNKNOWN: Final = "–"


@dataclass(frozen=True, kw_only=True)
class ArmFacts:
    """An arm over its seeds, at one budget.

    Attributes:
        name: Name of the arm.
        budget: At which it was trained; None where it was measured as found.
        runs: One for each seed, at least one.
    """

    name: str
    budget: Budget | None
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


@dataclass(frozen=True, kw_only=True)
class Slope:
    """How an arm gains from more budget.

    Attributes:
        name: Name of the arm.
        by_seed: For each seed that was trained at every budget, bits per byte that a doubling of the budget adds:
            negative where more budget helps. A straight line by least squares over log2 of the budget.
    """

    name: str
    by_seed: dict[int, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.by_seed.values())

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None where there is one seed."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    def __str__(self) -> str:
        return f"{self.mean:+.3f}" + ("" if self.spread is None else f" ± {self.spread:.3f}")


def arms_of(comparison: Comparison) -> list[ArmFacts]:
    """The arms that were measured, in the order of the plan: each at each budget, the smallest first."""
    found = []
    for arm in comparison.plan.arms:
        for budget in comparison.plan.budgets if arm.run is None else (None,):
            amount = None if budget is None else budget.amount
            runs = tuple(run for run in comparison.measured if (run.name, run.budget) == (arm.name, amount))
            if runs:
                found.append(ArmFacts(name=arm.name, budget=budget, runs=runs))
    return found


def arms_at(comparison: Comparison, budget: Budget) -> list[ArmFacts]:
    """The arms that were measured at a budget, and those that were measured as found."""
    return [arm for arm in arms_of(comparison) if arm.budget in (budget, None)]


def slopes(comparison: Comparison) -> list[Slope]:
    """The slope of each arm that met all budgets, where there are several of them.

    Example:
        4.0 bits per byte at ``seconds:60`` and 3.0 at ``seconds:240`` are two doublings apart: -0.5 a doubling.
    """
    found = []
    budgets = comparison.plan.budgets
    for arm in comparison.plan.arms:
        at = [one for one in arms_of(comparison) if one.name == arm.name and one.budget is not None and one.met]
        if len(budgets) < _LEAST_BUDGETS or len(at) < len(budgets):
            continue
        bits = [{run.seed: run.bits_per_byte for run in one.runs} for one in at]
        doublings = [math.log2(budget.amount) for budget in budgets]
        by_seed = {
            seed: statistics.linear_regression(doublings, [of_seed[seed] for of_seed in bits]).slope
            for seed in comparison.plan.seeds
            if all(seed in of_seed for of_seed in bits)
        }
        if by_seed:
            found.append(Slope(name=arm.name, by_seed=by_seed))
    return found


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything, as JSON values: ``arms`` at each budget with the means over the seeds, each run under its arm."""
    plan = comparison.plan
    kind = plan.budgets[0].kind
    return {
        "format": FORMAT,
        "budget": {"kind": kind, "amounts": [budget.amount for budget in plan.budgets]},
        "equal": _AXES[kind],
        "corpus": comparison.place,
        "fingerprint": comparison.fingerprint,
        "context_bytes": plan.base.data.window_bytes,
        "stride_bytes": plan.stride_bytes,
        "text": {
            "selection_bytes": comparison.parts.selection_bytes,
            "final_bytes": comparison.parts.final_bytes,
            "apart": comparison.parts.apart,
        },
        "rule": comparison.rule,
        "seeds": list(plan.seeds),
        "machine": comparison.machine,
        "order": "one run at a time, in one process; seeds outermost, then budgets, then arms",
        "settings": plan.base.model_dump(mode="json"),
        "sentences": sentences(comparison),
        "finished": not comparison.stopped and not comparison.failed,
        "failed": [asdict(one) for one in comparison.failed],
        "arms": [_arm_json(arm) for arm in arms_of(comparison)],
        "tuning": [
            {**asdict(one), "at_edge": list(one.at_edge)}
            | {"search": SEARCH, "budget": str(tuning_budget(plan.budgets))}
            for one in comparison.tuned
        ],
        "slopes": [
            {
                "name": slope.name,
                "bits_per_byte_per_doubling": slope.mean,
                "spread": slope.spread,
                "by_seed": [{"seed": seed, "bits_per_byte_per_doubling": of} for seed, of in slope.by_seed.items()],
            }
            for slope in slopes(comparison)
        ],
    }


def _arm_json(arm: ArmFacts) -> dict[str, Any]:
    means = (
        "bits_per_byte",
        "parameters",
        "parameters_embedding",
        "parameters_ngram_tables",
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
        "budget": None if arm.budget is None else arm.budget.amount,
        **{name: _whole(arm.mean(name)) for name in means},
        "decoder": arm.runs[0].decoder,
        "bits_per_byte_spread": arm.spread("bits_per_byte"),
        "met_budget": arm.met,
        "runs": [known(run) for run in arm.runs],
    }


def sentences(comparison: Comparison) -> list[str]:
    """What the data support, and not more."""
    arms = arms_of(comparison)
    if not arms:
        return ["Nothing was measured, so nothing can be said."]
    found = []
    ranked: dict[Budget, list[ArmFacts]] = {}
    for budget in comparison.plan.budgets:
        equal = [arm for arm in arms if arm.budget == budget and arm.met]
        amount = f"{_counted(budget.amount)} {_AXES[budget.kind]}"
        if len(equal) > 1:
            ranked[budget] = sorted(equal, key=lambda arm: arm.mean("bits_per_byte"))
            found.append(_best_sentence(ranked[budget], amount))
            found.append(_speed_sentence(equal, amount))
            found += _better_and_faster_sentence(equal, amount)
        else:
            found.append(
                f"Fewer than two arms were trained within {amount}: there is nothing to compare at equal cost."
            )
    if len(comparison.plan.budgets) >= _LEAST_BUDGETS:
        found += _order_sentences(ranked)
        found += _slope_sentence(slopes(comparison))
    loads = [run.load_before for run in comparison.measured if run.load_before is not None]
    if loads and max(loads) > comparison.cores + _OWN_LOAD:
        found.append(
            f"The machine had other work at times (its load before a run was up to {max(loads):.1f}), so that seconds "
            "and bytes per second say little."
        )
    decoders = {arm.name: arm.runs[0].decoder for arm in arms}
    if len(set(decoders.values())) > 1:
        named = "; ".join(f"{name} by {decoder}" for name, decoder in decoders.items())
        found.append(f"Not all arms were decoded by the same program, so speeds are on unequal terms: {named}.")
    several = len(comparison.plan.budgets) > 1
    missed = [f"{arm.name} at {arm.budget}" if several else arm.name for arm in arms if not arm.met]
    if missed:
        found.append(f"Left out of these sentences, having missed the budget: {', '.join(missed)}.")
    joined = [arm.name for arm in arms if arm.budget is None]
    if joined:
        found.append(
            f"Measured as found, at no equal cost and so in none of these sentences: {', '.join(joined)}. "
            "What they learnt from may hold the held-out bytes."
        )
    parts = comparison.parts
    found.append(
        f"Validations during training read {parts.selection_bytes:,} held-out bytes, and the scores come from the "
        f"{parts.final_bytes:,} others; whole documents were divided by a hash of their content."
        if parts.apart
        else ONE_DOCUMENT
    )
    if comparison.tuned:
        found.append(
            f"Learning rate and batch were chosen for each arm on the selection part alone, with "
            f"{tuning_budget(comparison.plan.budgets)} for each training of the search."
        )
    edges = [f"{name} of {one.name}" for one in comparison.tuned for name in one.at_edge]
    if edges:
        found.append(f"The best value stands at the edge of what was tried, and may lie beyond it: {', '.join(edges)}.")
    alike = "one learning rate and the same bytes a step for all arms that do not name their own"
    if comparison.plan.tune_arms:
        alike = "a learning rate and a batch that a small search chose for each arm"
    shape = comparison.plan.base.model
    found.append(
        f"This holds for this corpus, a trunk {shape.d_model} wide with {shape.layers} layers, contexts of "
        f"{comparison.plan.base.data.window_bytes} bytes, {alike}, "
        f"and this machine ({comparison.machine}). It says nothing about larger models or "
        "longer trainings."
    )
    return found


def _best_sentence(ranked: Sequence[ArmFacts], amount: str) -> str:
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


def _speed_sentence(arms: Sequence[ArmFacts], amount: str) -> str:
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
    return f"Here, after {amount}, {'; '.join(parts)}."


def _better_and_faster_sentence(arms: Sequence[ArmFacts], amount: str) -> list[str]:
    """Pairs of arms whose speed can be compared without a price in quality, each speed the better one of a run."""
    if min(len(arm.runs) for arm in arms) < _LEAST_SEEDS:
        return []
    speeds = {
        arm.name: [max(run.bytes_per_second_plain, run.bytes_per_second_speculative) for run in arm.runs]
        for arm in arms
    }
    pairs = [
        f"{one.name} than {other.name} ({statistics.fmean(speeds[one.name]):,.0f} against "
        f"{statistics.fmean(speeds[other.name]):,.0f} bytes/s)"
        for one, other in itertools.permutations(arms, 2)
        if max(one.values("bits_per_byte")) <= min(other.values("bits_per_byte"))
        and min(speeds[one.name]) > max(speeds[other.name])
    ]
    if not pairs:
        return [
            f"After {amount}, no arm is both at least as good in bits per byte and faster than another in all runs."
        ]
    return [
        f"After {amount}, at least as good in bits per byte and faster in all runs, with drafts where they help: "
        f"{', '.join(pairs)}."
    ]


def _order_sentences(ranked: dict[Budget, list[ArmFacts]]) -> list[str]:
    """Whether the order of the arms that met several budgets is the same at all of them."""
    names = [{arm.name for arm in arms} for arms in ranked.values()]
    shared = set.intersection(*names) if len(names) >= _LEAST_BUDGETS else set[str]()
    if len(shared) < _LEAST_ARMS:
        return ["Fewer than two arms met several budgets: nothing can be said of their order between budgets."]
    orders = {budget: [arm for arm in arms if arm.name in shared] for budget, arms in ranked.items()}
    first, *others = orders.values()
    names_in_order = [arm.name for arm in first]
    if all([arm.name for arm in other] == names_in_order for other in others):
        return [f"The order of the mean bits per byte is the same at all budgets: {', '.join(names_in_order)}."]
    found = []
    for one, two in itertools.combinations(names_in_order, 2):
        pairs = [
            (budget, next(arm for arm in arms if arm.name == one), next(arm for arm in arms if arm.name == two))
            for budget, arms in orders.items()
        ]
        ahead = [left.mean("bits_per_byte") <= right.mean("bits_per_byte") for _, left, right in pairs]
        if all(ahead):
            continue
        sure = all(
            min(len(left.runs), len(right.runs)) >= _LEAST_SEEDS
            and (_all_below(left, right, "bits_per_byte") or _all_below(right, left, "bits_per_byte"))
            for _, left, right in pairs
        )
        lower = [
            f"{one if is_ahead else two} at {budget}" for (budget, _, _), is_ahead in zip(pairs, ahead, strict=True)
        ]
        certainty = "all seeds agree at each budget" if sure else "the seeds do not separate the two at every budget"
        found.append(f"The order of {one} and {two} changes; lower mean: {', '.join(lower)}; {certainty}.")
    return found


def _slope_sentence(found: Sequence[Slope]) -> list[str]:
    if not found:
        return []
    parts = [f"{slope.name} {slope}" for slope in sorted(found, key=lambda slope: slope.mean)]
    return [
        "A doubling of the budget changes bits per byte by (mean over the seeds, the steepest fall first): "
        f"{', '.join(parts)}. This is no forecast beyond the largest budget."
    ]


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
