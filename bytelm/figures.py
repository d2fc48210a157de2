"""Figures as inline SVG: of runs their curves and acceptance, of a corpus its kinds, lengths and bytes.

Drawn without pyplot, which would choose a backend and keep every figure in a global list.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import RcKeyType

from bytelm.data.kinds import GROUPS
from bytelm.page import themed
from bytelm.palette import head_colour

_STYLE: Final[dict[RcKeyType, Any]] = {
    "svg.fonttype": "none",  # letters stay letters: small, searchable, in the page's own font
    "svg.hashsalt": "bytelm",  # the same figure is the same text
    "font.family": "sans-serif",
    "font.size": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "axes.edgecolor": "#9aa0a8",
    "axes.axisbelow": True,
}
_WIDE: Final = 5.6
"""Inches of a figure: little enough that its letters can be read where it is scaled to a telephone."""
_BARS: Final[dict[str, Any]] = {"color": head_colour(1, 2), "edgecolor": "#ffffff", "linewidth": 0.4}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a figure.

    Attributes:
        points: Across and up, from left to right.
        label: In the legend; empty for none.
        colour: As ``#rrggbb``.
        width: In points.
        opacity: 0 … 1.
        dots: Whether each point is marked.
    """

    points: Sequence[tuple[float, float]]
    label: str = ""
    colour: str
    width: float = 1.3
    opacity: float = 1.0
    dots: bool = True

    def scaled(self, divisor: float) -> "Line":
        """The same line over a unit that is so many times as large."""
        return replace(self, points=[(x / divisor, y) for x, y in self.points])


def curves(lines: Sequence[Line], *, across: str, up: str, legend: str = "", percent: bool = False) -> str:
    """Lines over one axis, as SVG text; how high they begin does not decide how much is seen of where they end.

    Args:
        lines: The first one is drawn on top of the others.
        across: What is drawn from left to right, with its unit.
        up: What is drawn upwards, with its unit.
        legend: Its title.
        percent: Whether the values are shares.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(_WIDE, 3.5)
        for line in reversed(lines):
            axes.plot(
                [x for x, _ in line.points],
                [y for _, y in line.points],
                color=line.colour,
                linewidth=line.width,
                alpha=line.opacity,
                marker="o" if line.dots else "",
                markersize=line.width + 0.6,
                label=line.label or "_",  # matplotlib's own mark for "not in the legend"
            )
        _show_the_end(axes, lines)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        if percent:
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        entries, labels = axes.get_legend_handles_labels()
        if entries:
            place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "frameon": False}
            axes.legend(entries[::-1], labels[::-1], title=legend or None, ncols=-(-len(entries) // 16), **place)
        return _svg(figure)


def panels(parts: Sequence[tuple[str, Sequence[tuple[float, float]]]], *, across: str, divisor: float) -> str:
    """Small figures side by side where there is room, as HTML with an SVG each.

    Args:
        parts: Title and points of each.
        across: What is drawn from left to right, with its unit.
        divisor: Size of that unit.
    """
    return f"<div class='panels'>{''.join(_panel(*part, across, divisor) for part in parts)}</div>"


def _panel(title: str, points: Sequence[tuple[float, float]], across: str, divisor: float) -> str:
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(3.0, 2.3)
        axes.plot([x / divisor for x, _ in points], [y for _, y in points], color=head_colour(1, 2), linewidth=0.9)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel(across, fontsize=10)
        axes.tick_params(labelsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}" if value < 1000 else f"{value / 1000:g}k")
        axes.set_ylim(bottom=0, top=1.15 * _most_after_the_beginning([points]))
        return _svg(figure)


def acceptance_bars(acceptance_by_head: Sequence[float | None]) -> str:
    """Share of each drafting head's proposals that the trunk accepted, as SVG text.

    Args:
        acceptance_by_head: One share in [0, 1] a head, None for a head that never proposed; head 0, which proposes
            nothing, is left out.
    """
    heads = len(acceptance_by_head)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(_WIDE, 2.8)
        for head in range(1, heads):
            share = acceptance_by_head[head] or 0.0
            axes.bar(head, share, color=head_colour(head, heads), width=0.7)
            axes.annotate(f"{share:.0%}", (head, share), ha="center", va="bottom", fontsize=9)
        axes.set_xticks(range(1, heads))
        axes.set_ylim(0, 1.08)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel("drafting head (bytes ahead of the verified one)")
        axes.set_ylabel("accepted")
        axes.grid(visible=False, axis="x")
        return _svg(figure)


def kind_bars(kinds: Sequence[tuple[str, str, int]]) -> str:
    """Bytes of each kind of document, coloured by group, as SVG text.

    Args:
        kinds: Name, group and bytes of each, from top to bottom.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(_WIDE, 0.5 + 0.24 * len(kinds))
        total = sum(size for *_, size in kinds)
        shown: set[str] = set()
        for place, (_, group, size) in enumerate(kinds):
            label = group if group not in shown else None
            shown.add(group)
            axes.barh(place, size / 1e6, color=_group_colour(group), height=0.75, label=label)
            axes.annotate(f" {size / total:.1%}", (size / 1e6, place), va="center", fontsize=8.5)
        axes.set_yticks(range(len(kinds)), [name for name, *_ in kinds])
        axes.set_ylim(len(kinds) - 0.4, -0.6)
        axes.margins(x=0.12)
        axes.set_xlabel("MB")
        axes.grid(visible=False, axis="y")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
        return _svg(figure)


def length_bars(histogram: Sequence[tuple[int, int]], quantiles: Mapping[str, int]) -> str:
    """How many pieces have 1, 2–3, 4–7, 8–15 … bytes, as SVG text.

    Args:
        histogram: Least length of a bin, a power of two, and pieces in it; each bin twice as wide as the one before.
        quantiles: Lengths that are marked, by what is written there.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(_WIDE, 3.0)
        least_lengths = [least for least, _ in histogram]
        axes.bar(least_lengths, [count for _, count in histogram], width=least_lengths, align="edge", **_BARS)
        axes.set_xscale("log", base=2)
        axes.set_xlim(least_lengths[0], 2 * least_lengths[-1])
        axes.xaxis.set_major_formatter(lambda value, _: _binary_size(value))
        axes.margins(y=0.12)
        for name, length in quantiles.items():
            axes.axvline(length, color="#16191d", linewidth=1, linestyle=(0, (2, 2)))
            axes.annotate(name, (length, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=9)
        axes.set_xlabel("bytes")
        axes.set_ylabel("documents")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        return _svg(figure)


def byte_bars(counts: Sequence[int]) -> str:
    """How often each of the 256 bytes occurs, on a logarithmic scale, as SVG text.

    Args:
        counts: 256 of them.
    """
    total = sum(counts)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(_WIDE, 3.0)
        used = [byte for byte, count in enumerate(counts) if count]
        axes.bar(used, [counts[byte] / total for byte in used], width=1.0, color=_BARS["color"])  # too narrow for edges
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.9f}".rstrip("0").rstrip(".") + "%")
        axes.set_xlim(-1, 256)
        axes.set_xticks([*range(0, 256, 32), 255], [f"{byte:02x}" for byte in [*range(0, 256, 32), 255]])
        axes.set_xlabel("byte, hexadecimal")
        axes.set_ylabel("share")
        axes.grid(visible=False, axis="x")
        return _svg(figure)


def _show_the_end(axes: Axes, lines: Sequence[Line]) -> None:
    values = [y for line in lines for _, y in line.points]
    if values:
        least, most = min(values), _most_after_the_beginning([line.points for line in lines])
        room = 0.06 * (most - least) or 0.05
        axes.set_ylim(least - room, most + room)


def _most_after_the_beginning(lines: Sequence[Sequence[tuple[float, float]]]) -> float:
    """The largest value, but those of each line's first twentieth, in which everything is still new."""
    return max((y for points in lines for x, y in points if x >= 0.05 * points[-1][0]), default=1.0) or 1.0


def _group_colour(group: str) -> str:
    return head_colour((GROUPS.index(group) + 1) % len(GROUPS), len(GROUPS))  # binary is grey


def _binary_size(size: float) -> str:
    for unit in ("", "Ki", "Mi", "Gi"):
        if size < 1024:
            return f"{size:.0f} {unit}".rstrip()
        size /= 1024
    return f"{size:.0f} Ti"


def _figure(width_inches: float, height_inches: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return themed(text[text.index("<svg") :])  # without the XML head, which has no place inside a page
