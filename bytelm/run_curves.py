"""The parts of a page that show how runs went: of one run head by head, of several runs one over the other."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, get_args

from bytelm import figures
from bytelm.figures import Line
from bytelm.history import Axis, History, Points, at
from bytelm.page import as_html, section, table, tabs, words
from bytelm.palette import head_colour

UNKNOWN: Final = "–"
_INK: Final = "#16191d"
_FAINT: Final = "#9aa0a8"
_MOST_SAMPLES: Final = 6
_UNITS: Final[dict[Axis, tuple[tuple[float, str], ...]]] = {
    "bytes": ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes")),
    "seconds": ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds")),
    "operations": tuple((10.0**power, f"10{power_digits}") for power, power_digits in (
        (24, "²⁴"), (21, "²¹"), (18, "¹⁸"), (15, "¹⁵"), (12, "¹²"), (9, "⁹"), (0, "⁰")
    )),
}  # fmt: skip
_ACROSS: Final[dict[Axis, str]] = {
    "bytes": "bytes read in training",
    "seconds": "time in training",
    "operations": "operations of the model",
}


def parts_of_one(history: History) -> Iterator[str]:
    """Sections about one run: every head, estimated acceptance, rates, samples."""
    heads = history.heads

    def bits(axis: Axis) -> list[Line]:
        lines = [
            Line(points=history.held_out(axis, head), label=f"{head}", colour=head_colour(head, heads))
            for head in range(1, heads)
        ]
        trained = Line(points=history.trained(axis), label="0, training", colour=_FAINT, width=0.9, dots=False)
        first = Line(points=history.held_out(axis), label="0", colour=_INK, width=2.4)
        return [trained, first, *lines]

    yield section("Bits per byte of each head", _over_axes("bits", bits, "bits per byte", legend="head"), _CURVES_NOTE)
    if heads > 1 and history.agreement("bytes", 1):

        def shares(axis: Axis) -> list[Line]:
            return [
                Line(points=history.agreement(axis, head), label=f"{head}", colour=head_colour(head, heads))
                for head in range(1, heads)
            ]

        content = _over_axes("acceptance", shares, "accepted, estimated", legend="head", percent=True)
        yield section("Acceptance over training", content, _AGREEMENT_NOTE)
    yield from _health(history)
    yield from _samples(history)


def parts_of_several(histories: Sequence[History]) -> Iterator[str]:
    """Sections that compare runs: a table, head 0 over each axis, each head at the end, acceptance, settings."""
    colours = [head_colour(number + 1, len(histories) + 1) for number in range(len(histories))]

    def bits(axis: Axis) -> list[Line]:
        trained = [
            Line(points=history.trained(axis), colour=colour, width=0.8, opacity=0.35, dots=False)
            for history, colour in zip(histories, colours, strict=True)
        ]
        return trained + _a_line_each(histories, colours, lambda history: history.held_out(axis))

    if (said := different_data(histories)) is not None:
        yield f"<p class='warning'><b>{as_html(said)}</b></p>"
    yield section("Runs", table(_TITLES, (_row(history) for history in histories)), _RUNS_NOTE)
    yield section("Bits per byte", _over_axes("bits", bits, "bits per byte, head 0"), _OVERLAID_NOTE)
    if any(history.heads > 1 and history.validations for history in histories):
        lines = _a_line_each(histories, colours, _each_head)
        yield section("Each head, last validation", figures.curves(lines, across="head", up="bits per byte"))
    if any(history.bytes_per_step("bytes") for history in histories):

        def estimated(axis: Axis) -> list[Line]:
            return _a_line_each(histories, colours, lambda history: history.bytes_per_step(axis))

        content = _over_axes("acceptance", estimated, "bytes a step, estimated")
        yield section("Acceptance over training", content, _AGREEMENT_NOTE)
    yield from _different_settings(histories)


def different_data(histories: Sequence[History]) -> str | None:
    """That runs learnt from different corpora, or that it is not known; None where their corpora are the same."""
    corpora = {history.corpus for history in histories}
    if None in corpora:
        names = ", ".join(history.name for history in histories if history.corpus is None)
        return f"The corpus of {names} is not known, so that these figures may be of different data."
    if len(corpora) > 1:
        parts = "; ".join(f"{history.name}: {history.corpus}" for history in histories if history.corpus is not None)
        return (
            f"These runs were trained on different corpora ({parts}). Their bits per byte are of different held-out "
            "data and cannot be compared."
        )
    return None


def _a_line_each(
    histories: Sequence[History], colours: Sequence[str], points: Callable[[History], Points]
) -> list[Line]:
    return [
        Line(points=points(history), label=history.name, colour=colour, width=1.8)
        for history, colour in zip(histories, colours, strict=True)
    ]


def _each_head(history: History) -> Points:
    last = history.validations[-1]["bits_per_byte_by_head"] if history.validations else ()
    return [(float(head), bits) for head, bits in enumerate(last) if bits is not None]


def _over_axes(
    name: str, lines: Callable[[Axis], list[Line]], up: str, *, legend: str = "", percent: bool = False
) -> str:
    """A figure for each axis that has points, to be leafed through."""
    found = []
    for axis in get_args(Axis):
        drawn = [line for line in lines(axis) if line.points]
        if not drawn:
            continue
        most = max(x for line in drawn for x, _ in line.points)
        divisor, unit = next((size, unit) for size, unit in (*_UNITS[axis], (1.0, "")) if most >= size or size == 1.0)
        figure = figures.curves(
            [line.scaled(divisor) for line in drawn],
            across=f"{_ACROSS[axis]}, {unit}",
            up=up,
            legend=legend,
            percent=percent,
        )
        found.append((f"over {axis}", figure))
    return tabs(name, found)


def _health(history: History) -> Iterator[str]:
    panels = [
        (title, history.points(history.steps, "bytes", lambda record, key=key: record.get(key)))
        for title, key in (
            ("learning rate", "learning_rate"),
            ("gradient norm", "grad_norm"),
            ("bytes a second", "bytes_per_second"),
        )
    ]
    panels = [(title, points) for title, points in panels if len(points) > 1]
    if panels:
        yield section("Rates", figures.panels(panels, across="MB read", divisor=1e6))


def _samples(history: History) -> Iterator[str]:
    written = [record for record in history.validations if record.get("sample")]
    if not written:
        return
    places = sorted({round(place * (len(written) - 1) / (_MOST_SAMPLES - 1)) for place in range(_MOST_SAMPLES)})
    samples = "".join(
        f"<pre class='sample'><span class='step'>step {written[place]['step']:,}</span> "
        f"<b>{as_html(written[place].get('prompt') or '')}</b>{as_html(written[place]['sample'])}</pre>"
        for place in places
    )
    yield section("What it wrote", samples, _SAMPLES_NOTE)


def _row(history: History) -> list[str]:
    last = history.last
    validation = history.validations[-1] if history.validations else {}
    bits = at(validation.get("bits_per_byte_by_head", ()), 0)
    best = min((y for _, y in history.held_out("bytes")), default=None)
    rates = sorted(record["bytes_per_second"] for record in history.steps if record.get("bytes_per_second"))
    busy = sorted(record["mfu"] for record in history.steps if record.get("mfu") is not None)
    heads = "" if history.config is None else f"{history.config.heads.family} × "
    operations = history.place(last, "operations")
    return [
        as_html(history.name),
        _or_dash(history.parameters, _in_millions),
        f"{heads}{history.heads}",
        f"{last['step']:,}",
        _or_dash(last.get("bytes_seen"), size),
        _or_dash(operations, lambda count: f"{count:.2e}"),
        _or_dash(last.get("elapsed_s"), duration),
        _or_dash(bits, lambda value: f"{value:.3f}"),
        _or_dash(best, lambda value: f"{value:.3f}"),
        _or_dash(validation.get("bytes_per_step_estimate"), lambda value: f"{value:.2f}"),
        _or_dash(_middle(rates), lambda rate: f"{size(rate)}/s"),
        _or_dash(_middle(busy), lambda share: f"{share:.0%}"),
    ]


def size(size_bytes: float) -> str:
    """Bytes in the largest unit of which there is at least one.

    Example:
        >>> size(915), size(8192), size(1_234_567)
        ('915 bytes', '8.2 kB', '1.2 MB')
    """
    divisor, unit = next(
        (divisor, unit) for divisor, unit in _UNITS["bytes"] if size_bytes >= divisor or divisor == 1.0
    )
    return f"{size_bytes:,.0f} bytes" if divisor == 1.0 else f"{size_bytes / divisor:,.1f} {unit}"


def _in_millions(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 100_000 else f"{count:,}"


def duration(seconds: float) -> str:
    """Seconds as minutes or hours, and their rest."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _different_settings(histories: Sequence[History]) -> Iterator[str]:
    trees = [{} if one.config is None else one.config.model_dump(mode="json") for one in histories]
    flat = [{f"{section}.{key}": value for section in tree for key, value in tree[section].items()} for tree in trees]
    flat = [{"corpus": one.corpus or UNKNOWN, **settings} for one, settings in zip(histories, flat, strict=True)]
    rows = [
        [f"<code>{as_html(name)}</code>", *(words(str(settings.get(name, "–"))) for settings in flat)]
        for name in dict.fromkeys(name for settings in flat for name in settings)
        if len({str(settings.get(name)) for settings in flat}) > 1
    ]
    if rows:
        titles = ["setting", *(as_html(history.name) for history in histories)]
        yield section("Settings that differ", table(titles, rows))


def _or_dash(value: Any, written: Callable[[Any], str]) -> str:
    return UNKNOWN if value is None else written(value)


def _middle(values: Sequence[float]) -> float | None:
    return values[len(values) // 2] if values else None


_TITLES: Final = (
    "run", "parameters", "heads", "steps", "bytes", "operations", "time", "bits per byte", "best", "bytes a step",
    "speed", "MFU",
)  # fmt: skip
_RUNS_NOTE: Final = (
    "Bits per byte: head 0 on held-out data, in the last and in the best validation. Bytes a step: of greedy "
    "self-speculative decoding, estimated. Operations: what the model needs for these bytes, forward and backward. MFU "
    "(model FLOP utilisation): these over what the device could do in training steps. Speed and MFU are medians."
)
_OVERLAID_NOTE: Final = (
    "Lines with dots: held-out data. Faint lines: training data, means of neighbouring steps. Runs can be compared "
    "where their held-out data are the same."
)
_CURVES_NOTE: Final = (
    "Head k reads byte t and predicts byte t + 1 + k. Head 0 is the language model, the others draft; the farther a "
    "head looks, the less it can know. Every byte of the held-out data is scored; lower is better, 8 is no knowledge. "
    "The faint line is head 0 on the training data."
)
_AGREEMENT_NOTE: Final = (
    "Estimated on held-out text: the share of places at which a head and all heads before it name the very bytes that "
    "head 0 names once it has read that far. Decoding follows its own text and not this one."
)
_SAMPLES_NOTE: Final = (
    "After a validation: the bold beginning of held-out data, and how the model went on, at temperature 0.7."
)
