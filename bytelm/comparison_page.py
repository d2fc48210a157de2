"""The report of a comparison: one page that is one file, its figures as PNG beside it, and everything as JSON."""

import html
import io
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

from bytelm.compare import PATH_OF_RESULTS, Comparison
from bytelm.comparison_facts import UNKNOWN, ArmFacts, against, arms_of, as_json, figure, sentences
from bytelm.files import refusals_named, write_file
from bytelm.page import page, section, table, themed, tiles
from bytelm.palette import head_colour
from bytelm.run_curves import size

PATH_OF_PAGE: Final = "report.html"
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
_RATIOS: Final = {
    "training_bytes_per_second": "training bytes/s",
    "training_memory_bytes": "training memory",
    "flops_per_byte_training": "operations a byte, training",
    "bytes_per_second_plain": "decoding, plain",
    "bytes_per_second_speculative": "decoding, speculative",
    "bytes_per_step": "bytes a step",
}
_AGAINST_NOTE: Final = (
    "The first arm is the measure: the difference of head 0's bits per byte, seed by seed (less is better), and the "
    "mean ratios of the rest."
)
_DASHES: Final = ("solid", "dashed")
_ACROSS: Final = (
    ("bytes", 0, 1e6, "bytes read in training, MB", "training_bytes"),
    ("flops", 1, 1e12, "operations of training, 10¹²", "training_flops"),
    ("seconds", 2, 1.0, "seconds of training", "training_seconds"),
)


def write_comparison_report(comparison: Comparison, out: Path, *, made_by: str) -> dict[str, Any]:
    """Write ``comparison.json``, ``report.html`` and the figures into the folder of a comparison.

    Args:
        comparison: What is known by now.
        out: Its folder.
        made_by: The command, as plain text.

    Returns:
        What ``comparison.json`` holds.

    Raises:
        StorageError: The disk refuses.
    """
    arms = arms_of(comparison)
    figures = _figures(arms) if arms else {}
    facts = as_json(comparison) | {
        "report": PATH_OF_PAGE,
        "figures": [f"{name}.png" for name in figures],
    }
    with refusals_named(out):
        for name, (drawing, _) in figures.items():
            write_file(out / f"{name}.png", _png(drawing))
        body = _body(comparison, arms, {name: (_svg(drawing), note) for name, (drawing, note) in figures.items()})
        write_file(out / PATH_OF_PAGE, page("Comparison", body, made_by=made_by).encode())
        write_file(out / PATH_OF_RESULTS, json.dumps(facts, indent=1, ensure_ascii=False).encode() + b"\n")
    return facts


def _body(comparison: Comparison, arms: Sequence[ArmFacts], figures: dict[str, tuple[str, str]]) -> list[str]:
    plan = comparison.plan
    said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences(comparison))
    unfinished = len(plan.arms) * len(plan.seeds) - len(comparison.measured)
    tile = [
        (str(plan.budget), "equal for all arms"),
        (str(len(arms)), "arms"),
        (", ".join(map(str, plan.seeds)), "seeds"),
        (f"{plan.base.data.window_bytes} bytes", "of context"),
    ]
    parts = [tiles(tile), section("What the data support", said)]
    if unfinished > 0:
        parts.append(f"<p><b>{unfinished} runs are not there (yet).</b></p>")
    if comparison.failed:
        rows = [[html.escape(f"{one.name}, seed {one.seed}"), html.escape(one.reason)] for one in comparison.failed]
        parts.append(section("Runs that failed", table(("run", "why"), rows)))
    if arms:
        parts.append(section("All axes", _table(comparison, arms), _table_note(comparison)))
    if len(arms) > 1:
        parts.append(section(f"Against {html.escape(arms[0].name)}", _against_table(arms), _AGAINST_NOTE))
    titles = {
        "quality": "Bits per byte over bytes, operations and seconds",
        "speed": "Decoding speed over quality",
        "heads": "Each head",
    }
    for name, (svg, note) in figures.items():
        parts.append(section(titles[name], svg, note))
    return parts


def _table(comparison: Comparison, arms: Sequence[ArmFacts]) -> str:
    kind = comparison.plan.budget.kind
    columns: list[tuple[str, str, Callable[[float], str]]] = [
        ("bits per byte", "bits_per_byte", lambda value: f"{value:.4f}"),
        ("parameters", "parameters", lambda value: f"{value:,.0f}"),
        ("of these not (un)embedding", "parameters_inner", lambda value: f"{value:,.0f}"),
        ("training operations", "training_flops", lambda value: f"{value:.3g}"),
        ("training bytes", "training_bytes", size),
        ("training seconds", "training_seconds", lambda value: f"{value:.1f}"),
        ("training bytes/s", "training_bytes_per_second", lambda value: f"{value:,.0f}"),
        ("training memory", "training_memory_bytes", size),
        ("operations a byte, training", "flops_per_byte_training", lambda value: f"{value:.3g}"),
        ("operations a byte, decoding", "flops_per_byte_decoding", lambda value: f"{value:.3g}"),
        ("decoding bytes/s, plain", "bytes_per_second_plain", lambda value: f"{value:,.0f}"),
        ("decoding bytes/s, speculative", "bytes_per_second_speculative", lambda value: f"{value:,.0f}"),
        ("bytes a step, speculative", "bytes_per_step", lambda value: f"{value:.2f}"),
        ("bytes an id", "bytes_per_id", lambda value: f"{value:.2f}"),
    ]
    equal = {"parameters": "parameters", "flops": "training_flops", "bytes": "training_bytes"}
    marked = equal.get(kind, "training_seconds")
    titles = ["", *(html.escape(arm.name) + ("" if arm.met else " <b>(budget missed)</b>") for arm in arms)]
    rows = []
    for title, name, shown in columns:
        cells = [title, *(figure(arm, name, shown) for arm in arms)]
        rows.append([f"<b>= {cells[0]}</b>", *(f"<b>{cell}</b>" for cell in cells[1:])] if name == marked else cells)
    return table(titles, rows)


def _against_table(arms: Sequence[ArmFacts]) -> str:
    first = arms[0]
    rows = []
    for arm in arms[1:]:
        differences = against(arm, first, "bits_per_byte", lambda one, other: one - other)
        cells = [f"{statistics.fmean(differences):+.4f}", f"{min(differences):+.4f} … {max(differences):+.4f}"]
        for name in _RATIOS:
            ratio = statistics.fmean(against(arm, first, name, lambda one, other: one / other))
            cells.append(UNKNOWN if math.isnan(ratio) else f"{ratio:.2f}×")
        rows.append([html.escape(arm.name), *cells])
    return table(("", "bits per byte", "over the seeds", *_RATIOS.values()), rows)


def _table_note(comparison: Comparison) -> str:
    first = comparison.measured[0]
    loads = [run.load_before for run in comparison.measured if run.load_before is not None]
    load = f" The machine's load before the runs was {min(loads):.1f} to {max(loads):.1f}." if loads else ""
    return (
        "Means over the seeds ± standard deviation; the line in bold, marked =, was made equal, and each run was "
        "checked for it afterwards. Runs followed one another, the seeds outermost; a training's seconds are those of "
        f"its own clock, validations, encoding and saving included.{load} Decoding: one prompt at a time, temperature "
        "0.8, speculative with the model's own heads and the same bytes as without. "
        f"Bits per byte are those of {first.scored_bytes:,} held-out bytes, the same for all. "
        f"{html.escape(comparison.rule[:1].upper() + comparison.rule[1:])}."
    )


def _figures(arms: Sequence[ArmFacts]) -> dict[str, tuple[Figure, str]]:
    with matplotlib.rc_context(_STYLE):
        found = {
            "quality": (_quality(arms), "A thin line for each seed; the mark with bars is the mean of all scored "
            "bytes at the end, with its standard deviation. The lines are validations on fewer bytes."),
            "speed": (_speed(arms), "Hollow: plain. Filled: speculative. Bars are standard deviations over seeds. "
            "Up and to the left is better."),
        }  # fmt: skip
        if any(len(arm.runs[0].bits_per_byte_by_head) > 1 for arm in arms):
            found["heads"] = (_heads(arms), "Head k predicts the id k places behind the next one; heads of BPE arms "
            "predict ids of several bytes.")  # fmt: skip
    return found


def _quality(arms: Sequence[ArmFacts]) -> Figure:
    drawing = Figure(figsize=(10.5, 3.6), layout="constrained")
    row = drawing.subplots(1, len(_ACROSS), sharey=True)
    for axes, (_, column, divisor, title, field) in zip(row, _ACROSS, strict=True):
        ends = []
        for number, arm in enumerate(arms):
            colour, dashes = _look(number, arms)
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
                label=arm.name,
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
    for number, arm in enumerate(arms):
        colour, _ = _look(number, arms)
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
                label=arm.name if face == colour else "_",
            )
    axes.set_xlabel("bits per byte")
    axes.set_ylabel("decoding, bytes a second")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return drawing


def _heads(arms: Sequence[ArmFacts]) -> Figure:
    drawing = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = drawing.add_subplot()
    for number, arm in enumerate(arms):
        colour, dashes = _look(number, arms)
        for index, run in enumerate(arm.runs):
            points = [(head, bits) for head, bits in enumerate(run.bits_per_byte_by_head) if bits is not None]
            label = arm.name if index == 0 else "_"
            axes.plot(*zip(*points, strict=True), "o", color=colour, linestyle=dashes, markersize=3, label=label)
    axes.set_xlabel("head")
    axes.set_ylabel("bits per byte")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return drawing


def _look(number: int, arms: Sequence[ArmFacts]) -> tuple[str, str]:
    """Colour and line of an arm: BPE arms are dashed."""
    return head_colour(number + 1, len(arms) + 1), _DASHES[arms[number].name.startswith("bpe")]


def _png(drawing: Figure) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        drawing.savefig(buffer, format="png", dpi=130, facecolor="#ffffff", metadata={"Software": None})
    return buffer.getvalue()


def _svg(drawing: Figure) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        drawing.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return themed(text[text.index("<svg") :])
