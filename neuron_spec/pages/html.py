"""A page as one HTML file that needs no other: style, script and figures are inside it.

Everything that is not ours is escaped. Should something slip through, the page's Content-Security-Policy
runs no script but ours and loads nothing from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from neuron_spec.pages.page import Block, Bullets, Code, Page, Paragraph, Picture, Section, Table
from neuron_spec.pages.tables import Cell, columns_of_numbers, shown

_LARGEST_SVG = 150_000  # bytes; a larger one is slower to draw than a PNG is to load
_INLINE = re.compile(
    r"\\(?P<literal>[^\w\s]|_)"
    r"|`(?P<code>[^`]+)`"
    r"|\*\*(?P<strong>(?:\\.|[^\\*])+)\*\*"
    r"|\*(?P<em>(?:\\.|[^\\*])+)\*"
)


def as_html(page: Page) -> str:
    """The whole page."""
    style, script = (_resource(name) for name in ("page.css", "page.js"))
    policy = "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            f"style-src {_hash(style)}",
            f"script-src {_hash(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    ids = [f"s{number}" for number in range(1, len(page.sections) + 1)]
    links = "\n".join(
        f'<li><a href="#{name}">{escape(section.title)}</a></li>'
        for name, section in zip(ids, page.sections, strict=True)
    )
    body = "\n".join(
        f'<section id="{name}">\n{_section(section, level=2)}\n</section>'
        for name, section in zip(ids, page.sections, strict=True)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="neuron-spec report">
<title>{escape(page.title)}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{escape(page.title)}</h1>
{_blocks(page.blocks)}
<nav aria-label="Sections"><ul>
{links}
</ul></nav>
{body}
</main>
<dialog id="zoom" aria-label="Figure in full size"><button type="button">Close</button><div></div></dialog>
<script>{script}</script>
</body>
</html>
"""


def _resource(name: str) -> str:
    return files("neuron_spec.pages").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _section(section: Section, level: int) -> str:
    inner = "\n".join(
        [_blocks(section.blocks), *(_section(below, min(level + 1, 6)) for below in section.sections)]
    )
    title = f"<h{level}>{escape(section.title)}</h{level}>"
    if section.is_folded:
        return f"<details>\n<summary>{title}</summary>\n{inner}\n</details>"
    return f"{title}\n{inner}"


def _blocks(blocks: Sequence[Block]) -> str:
    return "\n".join(map(_block, blocks))


def _block(block: Block) -> str:
    match block:
        case Paragraph(text):
            return f"<p>{inline(text)}</p>"
        case Bullets(items):
            return "<ul>\n" + "\n".join(f"<li>{inline(item)}</li>" for item in items) + "\n</ul>"
        case Code(text):
            # Focusable, as whatever scrolls has to be for those without a mouse.
            return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'
        case Table():
            return _table(block)
        case Picture():
            return _picture(block)


def inline(text: str) -> str:
    """A paragraph's text, with its marks as elements and all else escaped."""
    parts, end = [], 0
    for mark in _INLINE.finditer(text):
        parts.append(escape(text[end : mark.start()]))
        name = str(mark.lastgroup)
        inner = mark[name]
        if name == "literal":
            parts.append(escape(inner))
        else:
            parts.append(f"<{name}>{escape(inner) if name == 'code' else inline(inner)}</{name}>")
        end = mark.end()
    return "".join([*parts, escape(text[end:])])


def _table(table: Table) -> str:
    numbers = columns_of_numbers(table.header, table.rows)
    header = "".join(
        f"<th{_class(is_number)} scope='col'>"
        + (escape(name) if table.is_text else f'<button type="button">{escape(name)}</button>')
        + "</th>"
        for name, is_number in zip(table.header, numbers, strict=True)
    )
    rows = "\n".join(
        "<tr>" + "".join(map(_cell, row, numbers, [table.is_text] * len(row))) + "</tr>" for row in table.rows
    )
    kind = "text" if table.is_text else "sortable"
    return (
        f'<div class="scroll" tabindex="0"><table class="{kind}">\n'
        f"<thead><tr>{header}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _cell(cell: Cell, is_number: bool, is_text: bool) -> str:
    # Translations may run from right to left.
    direction = ' dir="auto"' if is_text else ""
    return f"<td{_class(is_number)}{direction}>{escape(shown(cell))}</td>"


def _class(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _picture(picture: Picture) -> str:
    if picture.svg is not None and len(picture.svg) <= _LARGEST_SVG:
        kind, content = "svg+xml", picture.svg
    else:
        kind, content = "png", picture.png
    text = inline(picture.caption)
    return (
        f'<figure><button type="button" class="zoom" title="Show in full size">'
        f'<img alt="{escape(picture.name)}" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'
        f"</button><figcaption>{text}</figcaption></figure>"
    )
