"""The report of a comparison: one page that is one file, its figures as PNG beside it, and everything as JSON."""

import html
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from bytelm.arms import Budget
from bytelm.compare import PATH_OF_RESULTS, Comparison
from bytelm.comparison_facts import (
    UNKNOWN,
    ArmFacts,
    against,
    arms_at,
    arms_of,
    as_json,
    figure,
    sentences,
    slopes,
)
from bytelm.comparison_figures import as_png, as_svg, figures_of
from bytelm.comparison_tuning import SEARCH, Tuned
from bytelm.files import refusals_named, write_file
from bytelm.page import page, section, table, tiles
from bytelm.run_curves import size

PATH_OF_PAGE: Final = "report.html"
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
    figures = figures_of(arms, slopes(comparison)) if arms else {}
    facts = as_json(comparison) | {
        "report": PATH_OF_PAGE,
        "figures": [f"{name}.png" for name in figures],
    }
    with refusals_named(out):
        for name, (drawing, _) in figures.items():
            write_file(out / f"{name}.png", as_png(drawing))
        body = _body(comparison, arms, {name: (as_svg(drawing), note) for name, (drawing, note) in figures.items()})
        write_file(out / PATH_OF_PAGE, page("Comparison", body, made_by=made_by).encode())
        write_file(out / PATH_OF_RESULTS, json.dumps(facts, indent=1, ensure_ascii=False).encode() + b"\n")
    return facts


def _body(comparison: Comparison, arms: Sequence[ArmFacts], figures: dict[str, tuple[str, str]]) -> list[str]:
    plan = comparison.plan
    said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences(comparison))
    trained = sum(arm.run is None for arm in plan.arms)
    runs = trained * len(plan.seeds) * len(plan.budgets) + len(plan.arms) - trained
    unfinished = runs - len(comparison.measured)
    tile = [
        (
            ", ".join(map(str, plan.budgets)),
            "each equal for all arms" if len(plan.budgets) > 1 else "equal for all arms",
        ),
        (str(len({arm.name for arm in arms})), "arms"),
        (", ".join(map(str, plan.seeds)), "seeds"),
        (f"{plan.base.data.window_bytes} bytes", "of context"),
    ]
    parts = [tiles(tile), section("What the data support", said)]
    if unfinished > 0:
        parts.append(f"<p><b>{unfinished} runs are not there (yet).</b></p>")
    if comparison.failed:
        rows = [
            [
                html.escape(one.name if one.budget is None else f"{one.name}, seed {one.seed}, budget {one.budget:g}"),
                html.escape(one.reason),
            ]
            for one in comparison.failed
        ]
        parts.append(section("Runs that failed", table(("run", "why"), rows)))
    for budget in plan.budgets:
        at, where = arms_at(comparison, budget), f" at {budget}" if len(plan.budgets) > 1 else ""
        if at:
            parts.append(section(f"All axes{where}", _table(budget, at), _table_note(comparison)))
        if len(at) > 1:
            parts.append(section(f"Against {html.escape(at[0].name)}{where}", _against_table(at), _AGAINST_NOTE))
    if comparison.tuned:
        note = f"{html.escape(SEARCH[:1].upper() + SEARCH[1:])}. In bold: what was chosen."
        parts.append(section("How learning rate and batch were chosen", _tuning_table(comparison.tuned), note))
    titles = {
        "budgets": "Bits per byte over the budget",
        "quality": "Bits per byte over bytes, operations and seconds",
        "speed": "Decoding speed over quality",
        "heads": "Each head",
    }
    for name, (svg, note) in figures.items():
        parts.append(section(titles[name], svg, note))
    return parts


def _table(budget: Budget, arms: Sequence[ArmFacts]) -> str:
    columns: list[tuple[str, str, Callable[[float], str]]] = [
        ("bits per byte", "bits_per_byte", lambda value: f"{value:.4f}"),
        ("parameters", "parameters", lambda value: f"{value:,.0f}"),
        ("of these embedding and unembedding", "parameters_embedding", lambda value: f"{value:,.0f}"),
        ("of these n-gram tables", "parameters_ngram_tables", lambda value: f"{value:,.0f}"),
        ("parameters without tables and embeddings", "parameters_inner", lambda value: f"{value:,.0f}"),
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
    marked = equal.get(budget.kind, "training_seconds")
    titles = ["", *(html.escape(arm.name) + ("" if arm.met else " <b>(budget missed)</b>") for arm in arms)]
    rows = []
    for title, name, shown in columns:
        cells = [title, *(figure(arm, name, shown) for arm in arms)]
        rows.append([f"<b>= {cells[0]}</b>", *(f"<b>{cell}</b>" for cell in cells[1:])] if name == marked else cells)
    rows.append(["decoded by", *(html.escape(", ".join(sorted({run.decoder for run in arm.runs}))) for arm in arms)])
    return table(titles, rows)


def _tuning_table(tuned: Sequence[Tuned]) -> str:
    rows = []
    for arm in tuned:
        if not arm.trials:
            rows.append([html.escape(arm.name), f"{arm.learning_rate:g}", str(arm.batch_windows), "set by the arm"])
        for trial in arm.trials:
            chosen = (trial.learning_rate, trial.batch_windows) == (arm.learning_rate, arm.batch_windows)
            score = html.escape(trial.reason) if trial.bits_per_byte is None else f"{trial.bits_per_byte:.4f}"
            cells = [html.escape(arm.name), f"{trial.learning_rate:g}", str(trial.batch_windows), score]
            rows.append([f"<b>{cell}</b>" for cell in cells] if chosen else cells)
    return table(("", "learning rate", "windows of a micro-batch", "bits per byte, selection part"), rows)


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
        f"Bits per byte are those of {first.scored_bytes:,} bytes of the final part ({comparison.parts.final_bytes:,} "
        "bytes), the same for all. "
        f"{html.escape(comparison.rule[:1].upper() + comparison.rule[1:])}."
    )
