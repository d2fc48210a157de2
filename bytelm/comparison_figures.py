"""The figures of a comparison: quality over budgets and costs, speed over quality, heads."""

import io
from collections.abc import Sequence
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

from bytelm.comparison_facts import ArmFacts, Slope
from bytelm.page import themed
from bytelm.palette import head_colour

_STYLE: Final[dict[RcKeyType, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bytelm",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "axes.axisbelow": True,
}
_DASHES: Final = ("solid", "dashed")
_ACROSS: Final = (
    ("bytes", 0, 1e6, "bytes read in training, MB", "training_bytes"),
    ("flops", 1, 1e12, "operations of training, 10¹²", "training_flops"),
    ("seconds", 2, 1.0, "seconds of training", "training_seconds"),
)


def figures_of(arms: Sequence[ArmFacts], slopes: Sequence[Slope]) -> dict[str, tuple[Figure, str]]:
    """The figures of a report by name, each with a note for people.

    Args:
        arms: Each at each budget, at least one in all.
        slopes: Slopes of the arms that met all budgets; empty if there is one budget.
    """
    with matplotlib.rc_context(_STYLE):
        found: dict[str, tuple[Figure, str]] = {}
        if len({arm.budget for arm in arms if arm.budget is not None}) > 1:
            found["budgets"] = (_budgets(arms, slopes), "Marks are means over the seeds, bars standard deviations. "
            "The legend has the slope of each arm that met all budgets: bits per byte for a doubling of the budget, by "
            "least squares, mean over the seeds ± standard deviation.")  # fmt: skip
        found |= {
            "quality": (
                _quality(arms),
                "A thin line for each seed; the mark with bars is the mean of all scored bytes at the end, with its "
                "standard deviation. The lines are validations on the selection part, which is other text.",
            ),
            "speed": (
                _speed(arms),
                "Hollow: plain. Filled: speculative. A line joins the budgets of an arm. Bars are standard deviations "
                "over seeds. Up and to the left is better.",
            ),
        }
        last = _at_the_last_budget(arms)
        if any(len(arm.runs[0].bits_per_byte_by_head) > 1 for arm in last):
            found["heads"] = (
                _heads(last),
                "At the largest budget. Head k predicts the id k places behind the next one; heads of BPE arms predict "
                "ids of several bytes.",
            )
    return found


def _budgets(arms: Sequence[ArmFacts], slopes: Sequence[Slope]) -> Figure:
    drawing = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = drawing.add_subplot()
    by_name = {slope.name: f"{slope.name} ({slope})" for slope in slopes}
    for last in _at_the_last_budget(arms):
        at = [(arm, arm.budget) for arm in arms if arm.name == last.name and arm.budget is not None]
        if not at:
            continue
        colour, dashes = _look(last, arms)
        axes.errorbar(
            [budget.amount for _, budget in at],
            [arm.mean("bits_per_byte") for arm, _ in at],
            yerr=[arm.spread("bits_per_byte") or 0.0 for arm, _ in at],
            fmt="o",
            color=colour,
            linestyle=dashes,
            linewidth=1.1,
            markersize=5,
            capsize=3,
            label=by_name.get(last.name, last.name),
        )
    budgets = sorted({arm.budget.amount for arm in arms if arm.budget is not None})
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets, [f"{amount:,g}" for amount in budgets])
    axes.set_xlabel(next(arm.budget.kind for arm in arms if arm.budget is not None))
    axes.set_ylabel("bits per byte")
    drawing.legend(loc="outside lower center", frameon=False)  # names of arms may be longer than the axes are wide
    return drawing


def _quality(arms: Sequence[ArmFacts]) -> Figure:
    drawing = Figure(figsize=(10.5, 3.6), layout="constrained")
    row = drawing.subplots(1, len(_ACROSS), sharey=True)
    for axes, (_, column, divisor, title, field) in zip(row, _ACROSS, strict=True):
        ends = []
        for arm in arms:
            colour, dashes = _look(arm, arms)
            for run in arm.runs:
                points = [(point[column] / divisor, point[3]) for point in run.curve]
                axes.plot(*zip(*points, strict=True), color=colour, linestyle=dashes, linewidth=0.9) if points else None
            axes.errorbar(
                arm.mean(field) / divisor,
                arm.mean("bits_per_byte"),
                xerr=(arm.spread(field) or 0.0) / divisor,
                yerr=arm.spread("bits_per_byte") or 0.0,
                fmt="o",
                color=colour,
                markersize=5,
                capsize=3,
                label=arm.name if arm in _at_the_last_budget(arms) else "_",
            )
            ends.append(arm.mean("bits_per_byte"))
        axes.set_xlabel(title)
        _show_ends(axes, arms, min(ends))
    row[0].set_ylabel("bits per byte")
    row[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return drawing


def _show_ends(axes: Axes, arms: Sequence[ArmFacts], lowest: float) -> None:
    """Leave the steep beginning out of sight where there is something to see without it."""
    later = [point[3] for arm in arms for run in arm.runs for point in run.curve[1:]]
    highest = max([*later, *(run.bits_per_byte for arm in arms for run in arm.runs)])
    room = max(0.02, highest - lowest)
    axes.set_ylim(lowest - 0.08 * room, highest + 0.08 * room)


def _speed(arms: Sequence[ArmFacts]) -> Figure:
    drawing = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = drawing.add_subplot()
    last = _at_the_last_budget(arms)
    for arm in arms:
        colour, _ = _look(arm, arms)
        x, x_spread = arm.mean("bits_per_byte"), arm.spread("bits_per_byte") or 0.0
        heights = [arm.mean(name) for name in ("bytes_per_second_plain", "bytes_per_second_speculative")]
        axes.plot([x, x], heights, color=colour, linewidth=0.8)
        for name, face in (("bytes_per_second_plain", "#ffffff"), ("bytes_per_second_speculative", colour)):
            axes.errorbar(
                x,
                arm.mean(name),
                xerr=x_spread,
                yerr=arm.spread(name) or 0.0,
                fmt="o",
                color=colour,
                markerfacecolor=face,
                capsize=3,
                label=arm.name if face == colour and arm in last else "_",
            )
    for arm in last:
        for name, dashes in (("bytes_per_second_plain", "dotted"), ("bytes_per_second_speculative", "solid")):
            points = [(one.mean("bits_per_byte"), one.mean(name)) for one in arms if one.name == arm.name]
            axes.plot(*zip(*points, strict=True), color=_look(arm, arms)[0], linestyle=dashes, linewidth=0.8)
    axes.set_xlabel("bits per byte")
    axes.set_ylabel("decoding, bytes a second")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return drawing


def _heads(arms: Sequence[ArmFacts]) -> Figure:
    drawing = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = drawing.add_subplot()
    for arm in arms:
        colour, dashes = _look(arm, arms)
        for index, run in enumerate(arm.runs):
            points = [(head, bits) for head, bits in enumerate(run.bits_per_byte_by_head) if bits is not None]
            label = arm.name if index == 0 else "_"
            axes.plot(*zip(*points, strict=True), "o", color=colour, linestyle=dashes, markersize=3, label=label)
    axes.set_xlabel("head")
    axes.set_ylabel("bits per byte")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return drawing


def _look(arm: ArmFacts, arms: Sequence[ArmFacts]) -> tuple[str, str]:
    """Colour and line of an arm, the same at all budgets: BPE arms are dashed."""
    names = list(dict.fromkeys(one.name for one in arms))
    return head_colour(names.index(arm.name) + 1, len(names) + 1), _DASHES[arm.name.startswith("bpe")]


def _at_the_last_budget(arms: Sequence[ArmFacts]) -> list[ArmFacts]:
    """Each arm once, at the largest budget at which it was measured."""
    return list({arm.name: arm for arm in arms}.values())


def as_png(drawing: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        drawing.savefig(buffer, format="png", dpi=130, facecolor="#ffffff", metadata={"Software": None})
    return buffer.getvalue()


def as_svg(drawing: Figure) -> str:
    """A figure as SVG text, in the colours of a page."""
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        drawing.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return themed(text[text.index("<svg") :])
