"""Figures of a run as inline SVG: bits per byte of every head, acceptance of every head.

Drawn without pyplot, which would choose a backend and keep every figure in a global list.
"""

import io
from collections.abc import Sequence
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

from bytelm.palette import head_colour

_STYLE: Final[dict[RcKeyType, Any]] = {
    "svg.fonttype": "none",  # letters stay letters: small, searchable, in the page's own font
    "svg.hashsalt": "bytelm",  # the same figure is the same text
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "axes.edgecolor": "#9aa0a8",
    "axes.axisbelow": True,
}


def bits_per_byte_curves(validations: Sequence[dict[str, Any]]) -> str:
    """Held-out bits per byte of every head over the bytes read, as SVG text.

    Args:
        validations: Records of the log with ``bytes_seen`` and ``bits_per_byte_by_head``, oldest first.
    """
    heads = len(validations[-1]["bits_per_byte_by_head"])
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(7.2, 3.8)
        megabytes = [record["bytes_seen"] / 1e6 for record in validations]
        for head in reversed(range(heads)):
            values = [record["bits_per_byte_by_head"][head] for record in validations]
            width = 2.4 if head == 0 else 1.3
            colour = "#16191d" if head == 0 else head_colour(head, heads)
            axes.plot(megabytes, values, color=colour, linewidth=width, marker="o", markersize=width, label=f"{head}")
        axes.set_xlabel("bytes read in training, MB")
        axes.set_ylabel("bits per byte, held out")
        entries, labels = axes.get_legend_handles_labels()
        axes.legend(
            entries[::-1],
            labels[::-1],
            title="head",
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
            ncols=-(-heads // 16),
            frameon=False,
        )
        return _svg(figure)


def acceptance_bars(acceptance_by_head: Sequence[float | None]) -> str:
    """Share of each drafting head's proposals that the trunk accepted, as SVG text.

    Args:
        acceptance_by_head: One share in [0, 1] a head, None for a head that never proposed; head 0, which proposes
            nothing, is left out.
    """
    heads = len(acceptance_by_head)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(7.2, 2.8)
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


def _figure(width_inches: float, height_inches: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]  # without the XML head, which has no place inside a page
