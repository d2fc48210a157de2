"""A page that is one file: its frame, tiles, sections and tables. Styles are inline, nothing is fetched."""

import html
from collections.abc import Iterable, Sequence


def page(name: str, body: Iterable[str], *, made_by: str) -> str:
    """A whole page.

    Args:
        name: Title, as plain text.
        body: Its parts, as HTML.
        made_by: The command that made it, as plain text.
    """
    return _TEMPLATE.format(name=html.escape(name), style=_STYLE, body="\n".join(body), made_by=html.escape(made_by))


def tiles(facts: Sequence[tuple[str, str]]) -> str:
    """Figures at a glance: value and what it is, as plain text."""
    cells = "".join(
        f"<div><strong>{html.escape(value)}</strong><span>{html.escape(what)}</span></div>" for value, what in facts
    )
    return f'<div class="tiles">{cells}</div>'


def section(title: str, content: str, note: str = "") -> str:
    """A part with a title; all three are HTML."""
    note = f"<p class='note'>{note}</p>" if note else ""
    return f"<section><h2>{title}</h2>{content}{note}</section>"


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


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #16191d; background: #fff; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.4rem, 1fr)); gap: .75rem; }
.tiles div { border: 1px solid #d9dce1; border-radius: .5rem; padding: .6rem .9rem; }
.tiles strong { display: block; font-size: 1.45rem; } .tiles span, .note { color: #5b626c; font-size: .87rem; }
svg { max-width: 100%; height: auto; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; } th, td { padding: .3rem .6rem; text-align: right; }
td { white-space: nowrap; }
th { border-bottom: 1px solid #9aa0a8; font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
pre { white-space: break-spaces; overflow-wrap: anywhere; font: .87rem/1.5 ui-monospace, monospace; background: #f6f7f9;
      border-radius: .5rem; padding: .8rem; }
.legend span { padding: .1rem .5rem; margin-right: .4rem; border-radius: .25rem; font-size: .82rem; }
.step { color: #5b626c; }
.tabs > input { position: absolute; opacity: 0; } .tabs > div { display: none; }
.tabs > label { display: inline-block; padding: .15rem .7rem; margin: 0 .3rem .4rem 0; border: 1px solid #d9dce1;
                border-radius: 1rem; font-size: .87rem; cursor: pointer; }
.tabs > input:checked + label { background: #16191d; color: #fff; }
.tabs > input:focus-visible + label { outline: 2px solid #3b82f6; }
.tabs > input:nth-of-type(1):checked ~ div:nth-of-type(1), .tabs > input:nth-of-type(2):checked ~ div:nth-of-type(2),
.tabs > input:nth-of-type(3):checked ~ div:nth-of-type(3), .tabs > input:nth-of-type(4):checked ~ div:nth-of-type(4)
{ display: block; }
@media print { .tabs > div { display: block; } }
footer { margin: 2rem 0; color: #5b626c; font-size: .82rem; }
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
