"""Draw docs/drafts.svg: what the shipped model writes, each byte in the colour of the head that drafted it.

python tests/bench/draw_drafts.py docs/drafts.svg
"""

import argparse
import html
import json
from pathlib import Path

import bytelm
from bytelm.palette import head_colour
from bytelm.report import coloured_text

PROMPT = "import argparse\n\n\ndef main("
LINE, LEFT, COLUMN = 18, 14, 7.85  # pixels: of a line, before the text, of a character


def main() -> None:
    """Generate, draw, and print what was drawn as one line of JSON."""
    parser = argparse.ArgumentParser(description="Draw what the shipped model writes.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--max-bytes", type=int, default=420)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    model = bytelm.load("nano")
    sampled = {"max_bytes": options.max_bytes, "temperature": options.temperature, "seed": options.seed}
    found = model.generate(PROMPT, **sampled)
    plain = model.generate(PROMPT, draft="none", **sampled)
    assert plain.data == found.data
    heads = len(found.proposed_by_head)
    spans = [(PROMPT, "prompt")]
    for text, head in coloured_text(found.data, found.sources):
        spans.append((text, head_colour(head, heads) if head else "trunk"))
    options.out.write_text(drawn(spans, heads), encoding="utf-8")
    by_heads = sum(source > 0 for source in found.sources)
    facts = {"bytes": len(found.data), "steps": found.steps, "by_heads": by_heads, **sampled}
    print(json.dumps({**facts, "by_lookup": sum(source < 0 for source in found.sources)}))


def drawn(spans: list[tuple[str, str]], heads: int) -> str:
    """The text in its colours, line by line, with a legend; letters follow a dark page."""
    lines: list[list[tuple[str, str]]] = [[]]
    for text, look in spans:
        for number, part in enumerate(text.split("\n")):
            if number:
                lines.append([])
            lines[-1].append((part, look))
    legend = [("trunk ", "trunk"), *((f"head {head} ", head_colour(head, heads)) for head in range(1, heads))]
    lines += [[], [*legend, ("prompt lookup", head_colour(-1, heads))]]
    width = round(2 * LEFT + COLUMN * max(sum(len(text) for text, _ in line) for line in lines))
    height = LINE * len(lines) + 2 * LEFT
    rows = "\n".join(
        f'<text x="{LEFT}" y="{LEFT + LINE * (number + 1) - 5}">{"".join(span(*part) for part in line)}</text>'
        for number, line in enumerate(lines)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">\n'
        "<style>text { font: 13px ui-monospace, Menlo, Consolas, monospace; white-space: pre; fill: #16191d }\n"
        ".prompt { font-weight: bold } .ground { fill: #f6f7f9 }\n"
        "@media (prefers-color-scheme: dark) { text { fill: #e4e7eb } .ground { fill: #1e2329 } }</style>\n"
        f'<rect class="ground" width="{width}" height="{height}" rx="8"/>\n{rows}\n</svg>\n'
    )


def span(text: str, look: str) -> str:
    """Text in one look: a class, or a colour."""
    style = f'style="fill:{look}"' if look.startswith("#") else f'class="{look}"'
    return f"<tspan {style}>{html.escape(text)}</tspan>"


if __name__ == "__main__":
    main()
