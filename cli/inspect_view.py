"""What a corpus or a checkpoint looks like in a terminal, of whatever width, or in a file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bytelm.cli import console
from bytelm.cli.quantities import counted, size

_MOST_KINDS: Final = 20
_SAMPLE_LINES: Final = 8
_LEAST_NAME: Final = 12
_LEAST_BAR: Final = 8
_MOST_BAR: Final = 48
_BAR_STYLE: Final = "blue"


@dataclass(frozen=True, slots=True)
class _Column:
    """A column; of those that do not fit, the ones with the largest ``drop`` go first, those with 0 never."""

    title: str
    cells: Sequence[str]
    drop: int = 0
    left: bool = False


def corpus_view(facts: Mapping[str, Any], terminal: Console) -> RenderableType:
    """What people see of a corpus.

    Args:
        facts: ``index_facts`` of ``bytelm.data.describe`` and, if the corpus was read, ``content_facts``.
        terminal: Where it will be printed: its width and its encoding count.
    """
    parts = [_heading(facts), _splits(facts["splits"], terminal)]
    if facts["kinds"]:
        parts.append(_kinds(facts, terminal))
    if facts["skipped"]:
        parts.append(_left_out(facts["skipped"], terminal))
    if len(facts["sources"]) > 1:
        parts.append(_sources(facts["sources"], terminal))
    if "lengths" in facts:
        parts.append(_lengths(facts["lengths"], terminal))
        parts.append(_bytes(facts["bytes"], terminal))
    parts += [_sample(sample, terminal) for sample in facts.get("samples", ())]
    return Group(*_with_gaps(parts))


def run_view(facts: Mapping[str, Any]) -> RenderableType:
    """What people see of a checkpoint; ``facts`` is what ``--json`` prints of it."""
    parameters = ", ".join(f"{count:,} {part}" for part, count in facts["parameters"].items() if part != "total")
    lines = [
        Text(f"checkpoint {console.one_line(facts['checkpoint'])}", "bold"),
        Text(f"step {facts['step']:,}" + (f", {size(facts['bytes_seen'])} seen" if facts["bytes_seen"] else "")),
        Text(f"{facts['parameters']['total']:,} parameters: {parameters}"),
        *(
            Text(f"corpus {console.one_line(place)}, fingerprint {fingerprint}")
            for place, fingerprint in zip(_listed(facts["corpus"]), _listed(facts["corpus_fingerprint"]), strict=True)
        ),
        Text("files, each as its checksum says:", "bold"),
        *(Text(f"  {name}  {size(length)}") for name, length in facts["files"].items()),
        Text("settings:", "bold"),
    ]
    for part, settings in facts["config"].items():
        lines += [Text(f"  {part}.{name} = {console.shown(str(value))}") for name, value in settings.items()]
    return Group(*lines)


def _listed(found: str | list[str]) -> list[str]:
    return [found] if isinstance(found, str) else found


def _heading(facts: Mapping[str, Any]) -> RenderableType:
    made_by = dict.fromkeys(ingestion["made_by"] for ingestion in facts["ingestions"])
    lines = [
        Text(f"corpus {console.one_line(facts['corpus'])}", "bold"),
        Text(f"{counted(facts['documents'], 'document')}, {size(facts['raw_bytes'])}, packed {facts['ratio']:.2f} : 1"),
        Text(f"fingerprint {facts['fingerprint']}"),
    ]
    if made_by:
        count = len(facts["ingestions"])
        lines.append(Text(f"made by {', '.join(made_by)}" + (f" in {count} ingestions" if count > 1 else "")))
    return Group(*lines)


def _splits(splits: Mapping[str, Mapping[str, Any]], terminal: Console) -> RenderableType:
    rows = list(splits.values())
    return _table(
        [
            _Column("split", list(splits), left=True),
            _Column("documents", [f"{row['documents']:,}" for row in rows]),
            _Column("bytes", [size(row["raw_bytes"]) for row in rows]),
            _Column("packed", [size(row["packed_bytes"]) for row in rows], drop=2),
            _Column("ratio", [f"{row['ratio']:.2f}" for row in rows], drop=1),
            _Column("shards", [f"{row['shards']:,}" for row in rows], drop=3),
        ],
        terminal,
    )


def _kinds(facts: Mapping[str, Any], terminal: Console) -> RenderableType:
    rows = [(name, kind["documents"], kind["raw_bytes"]) for name, kind in facts["kinds"].items()]
    if len(rows) > _MOST_KINDS:
        rest = rows[_MOST_KINDS - 1 :]
        others = (f"{len(rest)} others", sum(row[1] for row in rest), sum(row[2] for row in rest))
        rows = [*rows[: _MOST_KINDS - 1], others]
    return _bars("kind", rows, terminal)


def _left_out(skipped: Mapping[str, Mapping[str, int]], terminal: Console) -> RenderableType:
    rows = [(reason.replace("_", " "), row["documents"], row["raw_bytes"]) for reason, row in skipped.items()]
    return _table(
        [
            _Column("left out", [row[0] for row in rows], left=True),
            _Column("documents", [f"{row[1]:,}" for row in rows]),
            _Column("bytes", [size(row[2]) for row in rows]),
        ],
        terminal,
    )


def _sources(sources: Sequence[Mapping[str, Any]], terminal: Console) -> RenderableType:
    rows = [(console.one_line(row["name"]), row["documents"], row["raw_bytes"]) for row in sources]
    return _bars("source", rows, terminal)


def _bars(title: str, rows: Sequence[tuple[str, int, int]], terminal: Console) -> RenderableType:
    total = max(1, sum(raw_bytes for *_, raw_bytes in rows))
    return _table(
        [
            _Column(title, [name for name, *_ in rows], left=True),
            _Column("documents", [f"{documents:,}" for _, documents, _ in rows]),
            _Column("bytes", [size(raw_bytes) for *_, raw_bytes in rows]),
            _Column("share", [f"{raw_bytes / total:.1%}" for *_, raw_bytes in rows], drop=1),
        ],
        terminal,
        shares=[raw_bytes / total for *_, raw_bytes in rows],
    )


def _lengths(lengths: Mapping[str, Any], terminal: Console) -> RenderableType:
    read = f"{lengths['shards_read']:,} of {lengths['shards']:,} shards"
    lines = [
        Text.assemble(("lengths", "bold"), f" of {counted(lengths['pieces'], 'document')} in {read}"),
        Text(
            f"from {size(lengths['least'])} to {size(lengths['most'])}, mean {size(lengths['mean'])}; at most "
            + ", ".join(f"{size(length)} in {float(share):.0%}" for share, length in lengths["quantiles"].items())
        ),
    ]
    if lengths["parts"]:
        lines.append(Text(f"{lengths['parts']:,} of them are parts of documents that were cut"))
    rows = lengths["histogram"]
    most = max(row["pieces"] for row in rows)
    table = _table(
        [
            _Column("from", [_power(row["from"]) for row in rows]),
            _Column("documents", [f"{row['pieces']:,}" for row in rows]),
        ],
        terminal,
        shares=[row["pieces"] / most for row in rows],
    )
    return Group(*lines, table)


def _bytes(found: Mapping[str, Any], terminal: Console) -> RenderableType:
    read = f"{found['frames_read']:,} of {found['frames']:,} frames ({size(found['raw_bytes'])})"
    total = max(1, found["raw_bytes"])
    shares = [sum(found["counts"][row * 16 : row * 16 + 16]) / total for row in range(16)]
    lines = [
        Text.assemble(("bytes", "bold"), f" of {read}"),
        Text(
            f"{found['entropy_bits_per_byte']:.3f} bits per byte of order 0, {found['utf8_share']:.1%} in valid UTF-8"
        ),
    ]
    table = _table(
        [
            _Column("byte", [f"{row:x}0-{row:x}f" for row in range(16)], left=True),
            _Column("share", [f"{share:.2%}" for share in shares]),
        ],
        terminal,
        shares=[share / max(*shares, 1e-9) for share in shares],
    )
    return Group(*lines, table)


def _sample(sample: Mapping[str, Any], terminal: Console) -> RenderableType:
    about = f"{sample['split']}, {sample['kind']}, {sample['raw_bytes']:,} bytes, {sample['file'] or sample['source']}"
    if not sample["whole"]:
        about += ", a part of a document"
    lines = sample["beginning"].expandtabs(4).split("\n")
    more = len(lines) > _SAMPLE_LINES or sample["raw_bytes"] > sample["shown_bytes"]
    shown = [Text(console.shown(line)) for line in lines[:_SAMPLE_LINES]]
    for line in shown:
        line.truncate(terminal.width, overflow="ellipsis")
    heading = Text(console.one_line(f"sample: {about}"), "bold")
    return Group(heading, *shown, *([Text("…", "dim")] if more else []))


def _table(columns: Sequence[_Column], terminal: Console, shares: Sequence[float] | None = None) -> Table:
    """Columns that fit, the first one shortened if it must be, and bars where there is room for them."""
    widths = [max(map(cell_len, (column.title, *column.cells))) for column in columns]
    fitting = list(range(len(columns)))

    def room(first: int) -> int:
        """What is left beside the columns, the first one that wide."""
        return terminal.width - first - sum(widths[number] + 2 for number in fitting[1:])

    while room(min(widths[0], _LEAST_NAME)) < 0 and any(columns[number].drop for number in fitting):
        fitting.remove(max(fitting, key=lambda number: columns[number].drop))
    widths[0] = min(widths[0], max(1, room(0)))
    bar = min(_MOST_BAR, room(widths[0]) - 2) if shares is not None else 0
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number in fitting:
        column = columns[number]
        justify = "left" if column.left else "right"
        table.add_column(column.title, justify=justify, no_wrap=True, overflow="ellipsis", width=widths[number])
    if bar >= _LEAST_BAR:
        table.add_column("", no_wrap=True)
    for number, cells in enumerate(zip(*(columns[place].cells for place in fitting), strict=True)):
        bars = [_bar(shares[number], bar, terminal)] if shares is not None and bar >= _LEAST_BAR else []
        table.add_row(*map(Text, cells), *(Text(drawn, _BAR_STYLE) for drawn in bars))
    return table


def _bar(share: float, room: int, terminal: Console) -> str:
    if not terminal.encoding.lower().startswith("utf"):
        return "#" * round(share * room)
    eighths = max(round(share * room * 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _power(length: int) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if length < 1024:
            return f"{length} {unit}"
        length //= 1024
    return f"{length} TiB"


def _with_gaps(parts: Sequence[RenderableType]) -> Iterator[RenderableType]:
    for number, part in enumerate(parts):
        if number:
            yield Text("")
        yield part
