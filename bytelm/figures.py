"""Figures as inline SVG: of a run its heads' bits per byte and acceptance, of a corpus its kinds, lengths and bytes.

Drawn without pyplot, which would choose a backend and keep every figure in a global list.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import RcKeyType

from bytelm.data.kinds import GROUPS
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
_BARS: Final[dict[str, Any]] = {"color": head_colour(1, 2), "edgecolor": "#ffffff", "linewidth": 0.4}


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


def kind_bars(kinds: Sequence[tuple[str, str, int]]) -> str:
    """Bytes of each kind of document, coloured by group, as SVG text.

    Args:
        kinds: Name, group and bytes of each, from top to bottom.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(7.2, 0.5 + 0.24 * len(kinds))
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
        figure, axes = _figure(7.2, 3.0)
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
        figure, axes = _figure(7.2, 3.0)
        used = [byte for byte, count in enumerate(counts) if count]
        axes.bar(used, [counts[byte] / total for byte in used], width=1.0, **_BARS)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.9f}".rstrip("0").rstrip(".") + "%")
        axes.set_xlim(-1, 256)
        axes.set_xticks([*range(0, 256, 32), 255], [f"{byte:02x}" for byte in [*range(0, 256, 32), 255]])
        axes.set_xlabel("byte, hexadecimal")
        axes.set_ylabel("share")
        axes.grid(visible=False, axis="x")
        return _svg(figure)


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
    return text[text.index("<svg") :]  # without the XML head, which has no place inside a page
