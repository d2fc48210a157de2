"""One page about a corpus: what is in it, how long its documents are, which bytes they hold, some of them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from bytelm import figures
from bytelm.cli.quantities import size
from bytelm.page import as_html, page, section, table, tiles

_MOST_KINDS: Final = 24
_MARKS: Final = {"0.1": "10%", "0.5": "half", "0.9": "90%", "0.99": "99%"}


def corpus_page(facts: Mapping[str, Any]) -> str:
    """The page, as HTML.

    Args:
        facts: ``index_facts`` of ``bytelm.data.describe`` and, if the corpus was read, ``content_facts``.
    """
    return page(str(facts["corpus"]), _parts(facts), made_by="bytelm inspect")


def _parts(facts: Mapping[str, Any]) -> Iterator[str]:
    yield tiles(_figures_at_a_glance(facts))
    yield section("Splits", _splits(facts), _fingerprint_note(facts))
    if facts["kinds"]:
        yield section("Kinds of documents", figures.kind_bars(_kinds(facts["kinds"])), _KINDS_NOTE)
    if "lengths" in facts:
        lengths = facts["lengths"]
        marks = {name: lengths["quantiles"][share] for share, name in _MARKS.items()}
        histogram = [(row["from"], row["pieces"]) for row in lengths["histogram"]]
        yield section("Lengths", figures.length_bars(histogram, marks), _lengths_note(lengths))
        yield section("Bytes", figures.byte_bars(facts["bytes"]["counts"]), _bytes_note(facts["bytes"]))
    if facts["skipped"]:
        rows = [
            (_words(reason), f"{count['documents']:,}", size(count["raw_bytes"]))
            for reason, count in facts["skipped"].items()
        ]
        yield section("Left out", table(("reason", "documents", "bytes"), rows))
    if facts.get("samples"):
        yield section("Samples", "".join(map(_sample, facts["samples"])), _SAMPLES_NOTE)
    sources = [
        (f"<code>{as_html(source['name'])}</code>", f"{source['documents']:,}", size(source["raw_bytes"]))
        for source in facts["sources"]
    ]
    yield section("Sources", table(("source", "documents", "bytes"), sources))
    settings = as_html(json.dumps(facts["ingestions"], indent=2, ensure_ascii=False))
    yield f"<details><summary>Ingestions</summary><pre>{settings}</pre></details>"


def _figures_at_a_glance(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [
        (f"{facts['documents']:,}", "documents"),
        (size(facts["raw_bytes"]), "of raw bytes"),
        (f"{facts['ratio']:.2f} : 1", f"packed into {size(facts['packed_bytes'])}"),
    ]
    if "bytes" in facts:
        found.append((f"{facts['bytes']['entropy_bits_per_byte']:.2f}", "bits per byte of order 0"))
        found.append((f"{facts['bytes']['utf8_share']:.1%}", "of the bytes read in valid UTF-8"))
    duplicates = sum(
        facts["skipped"].get(reason, {"documents": 0})["documents"] for reason in ("duplicate", "near_duplicate")
    )
    if duplicates:
        found.append((f"{duplicates:,}", "duplicates left out"))
    return found


def _splits(facts: Mapping[str, Any]) -> str:
    rows = [
        (
            as_html(name),
            f"{split['documents']:,}",
            size(split["raw_bytes"]),
            size(split["packed_bytes"]),
            f"{split['ratio']:.2f}",
            f"{split['shards']:,}",
        )
        for name, split in facts["splits"].items()
    ]
    return table(("split", "documents", "bytes", "packed", "ratio", "shards"), rows)


def _kinds(kinds: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    """The largest ones; what is left of each group is put together."""
    found = [(name, kind["group"], kind["raw_bytes"]) for name, kind in kinds.items()]
    rest: dict[str, int] = {}
    for _, group, raw_bytes in found[_MOST_KINDS:]:
        rest[group] = rest.get(group, 0) + raw_bytes
    return found[:_MOST_KINDS] + [(f"other {group}", group, raw_bytes) for group, raw_bytes in rest.items()]


def _sample(sample: Mapping[str, Any]) -> str:
    about = (
        f"{sample['split']} · {sample['kind']} · {sample['raw_bytes']:,} bytes · {sample['file'] or sample['source']}"
    )
    if not sample["whole"]:
        about += " · a part of a document"
    more = "…" if sample["raw_bytes"] > sample["shown_bytes"] else ""
    text = as_html(sample["beginning"])
    return f"<p class='note'>{as_html(about)}</p><pre class='sample'>{text}{more}</pre>"


def _fingerprint_note(facts: Mapping[str, Any]) -> str:
    return f"Fingerprint <code>{facts['fingerprint']}</code>; frames of {facts['frame_bytes']:,} raw bytes."


def _lengths_note(lengths: Mapping[str, Any]) -> str:
    note = (
        f"{lengths['pieces']:,} documents of {lengths['shards_read']:,} of {lengths['shards']:,} shards; from "
        f"{lengths['least']:,} to {lengths['most']:,} bytes, mean {lengths['mean']:,.0f}. Each bar is twice as wide as "
        "the one before. Marks are at the lengths that so many documents do not exceed, to 1/64 above the true ones."
    )
    if lengths["parts"]:
        note += f" {lengths['parts']:,} are parts of documents that were cut."
    return note


def _bytes_note(found: Mapping[str, Any]) -> str:
    return (
        f"{found['frames_read']:,} of {found['frames']:,} frames, {size(found['raw_bytes'])}. Logarithmic. Entropy of "
        f"order 0 is {found['entropy_bits_per_byte']:.3f} bits per byte: what a byte costs if only these shares are "
        "known and nothing of the bytes before it; 8 is no knowledge."
    )


def _words(reason: str) -> str:
    return as_html(reason.replace("_", " "))


_KINDS_NOTE = "By name and first bytes; a kind is a label, nothing was decoded or left out by it unless asked for."
_SAMPLES_NOTE = (
    "Beginnings of documents from places spread evenly, the same for the same seed. Bytes that are not UTF-8 and "
    "control characters are written \\xNN."
)
