"""A page that is one file: its frame, tiles, sections and tables. Styles are inline, nothing is fetched.

It is light or dark as its reader's system is, and fits a telephone: figures scale, wide tables scroll, tiles fill rows.
"""

import html
import re
from collections.abc import Iterable, Sequence
from typing import Final

from bytelm.utf8 import shown

_BY_THEME: Final = {"#000000": "currentColor", "#16191d": "currentColor", "#e6e8eb": "var(--line, #e6e8eb)"}
"""Colours of a figure that a dark page needs otherwise: letters, ink, grid."""


def page(name: str, body: Iterable[str], *, made_by: str) -> str:
    """A whole page.

    Args:
        name: Title, as plain text.
        body: Its parts, as HTML.
        made_by: The command that made it, as plain text.
    """
    return _TEMPLATE.format(name=as_html(name), style=_STYLE, body="\n".join(body), made_by=html.escape(made_by))


def tiles(facts: Sequence[tuple[str, str]]) -> str:
    """Figures at a glance: value and what it is, as plain text."""
    cells = "".join(
        f"<div><strong>{as_html(value)}</strong><span>{as_html(what)}</span></div>" for value, what in facts
    )
    return f'<div class="tiles">{cells}</div>'


def section(title: str, content: str, note: str = "") -> str:
    """A part with a title; all three are HTML."""
    note = f"<p class='note'>{note}</p>" if note else ""
    return f"<section><h2>{title}</h2>{content}{note}</section>"


def themed(svg: str) -> str:
    """A figure whose letters, ink and grid follow the theme of the page around it.

    Args:
        svg: A figure that matplotlib has written, with its colours in ``style`` attributes.
    """
    for colour, instead in _BY_THEME.items():
        svg = re.sub(rf"((?:fill|stroke): ){colour}\b", rf"\g<1>{instead}", svg)
    return svg


def tabs(name: str, parts: Sequence[tuple[str, str]]) -> str:
    """Parts of which one is seen at a time, up to four; without a script.

    Args:
        name: Of the group, another one for each group of a page.
        parts: Title, as plain text, and content, as HTML.
    """
    choices = "".join(
        f"<input type='radio' name='{name}' id='{name}-{number}'{' checked' if number == 0 else ''}>"
        f"<label for='{name}-{number}'>{html.escape(title)}</label>"
        for number, (title, _) in enumerate(parts)
    )
    return f"<div class='tabs'>{choices}{''.join(f'<div>{content}</div>' for _, content in parts)}</div>"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; titles and cells are HTML. The first column is text, the others are numbers."""
    heading = "".join(f"<th>{title}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class='wide'><table><thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table></div>"


def as_html(text: str) -> str:
    """Plain text as HTML, its control characters escaped as on a terminal."""
    return html.escape(shown(text))


def words(text: str) -> str:
    """Plain text that may be long, such as a path, for a cell that breaks where it is too wide; HTML."""
    return f"<span class='words'>{as_html(text)}</span>"


_STYLE = """
:root { color-scheme: light dark; --ink: #16191d; --ground: #fff; --faint: #5b626c; --line: #d9dce1; --soft: #f6f7f9; }
@media (prefers-color-scheme: dark) {
:root { --ink: #e4e7eb; --ground: #14171b; --faint: #9aa3ae; --line: #363c45; --soft: #1e2329; }
svg { filter: brightness(1.35); } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; }
.tiles div { flex: 1 1 8.4rem; border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .9rem; }
.tiles strong { display: block; font-size: 1.45rem; } .tiles span, .note { color: var(--faint); font-size: .87rem; }
svg { width: 100%; max-width: 44rem; height: auto; } svg text { fill: currentColor; } .wide { overflow-x: auto; }
.panels { display: flex; flex-wrap: wrap; gap: .5rem; } .panels svg { flex: 1 1 15rem; width: 15rem; max-width: 22rem; }
table { border-collapse: collapse; font-size: .87rem; } th, td { padding: .3rem .6rem; text-align: right; }
td { white-space: nowrap; }
.words { display: inline-block; max-width: 14rem; white-space: normal; overflow-wrap: anywhere; }
th { border-bottom: 1px solid var(--faint); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
pre { white-space: break-spaces; overflow-wrap: anywhere; font: .87rem/1.5 ui-monospace, monospace;
      background: var(--soft); border-radius: .5rem; padding: .8rem; }
.legend span { padding: .1rem .5rem; margin-right: .4rem; border-radius: .25rem; font-size: .82rem; }
.step { color: var(--faint); }
.tabs > input { position: absolute; opacity: 0; } .tabs > div { display: none; }
.tabs > label { display: inline-block; padding: .15rem .7rem; margin: 0 .3rem .4rem 0; border: 1px solid var(--line);
                border-radius: 1rem; font-size: .87rem; cursor: pointer; }
.tabs > input:checked + label { background: var(--ink); color: var(--ground); }
.tabs > input:focus-visible + label { outline: 2px solid #3b82f6; }
.tabs > input:nth-of-type(1):checked ~ div:nth-of-type(1), .tabs > input:nth-of-type(2):checked ~ div:nth-of-type(2),
.tabs > input:nth-of-type(3):checked ~ div:nth-of-type(3), .tabs > input:nth-of-type(4):checked ~ div:nth-of-type(4)
{ display: block; }
@media print { .tabs > div { display: block; } }
footer { margin: 2rem 0; color: var(--faint); font-size: .82rem; }
"""

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name} · bytelm</title>
<style>{style}</style>
</head>
<body>
<h1>{name}</h1>
{body}
<footer>Made by <code>{made_by}</code>.</footer>
</body>
</html>
"""
