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

from neuron_spec.pages.page import DPI, Block, Bullets, Code, Page, Paragraph, Picture, Section, Table
from neuron_spec.pages.tables import columns_of_numbers, shown

_LARGEST_SVG = 150_000  # bytes; a larger one is slower to draw than a PNG is to load
_INLINE = re.compile(
    r"\\(?P<literal>[^\w\s]|_)"
    r"|`(?P<code>[^`]+)`"
    r"|\*\*(?P<strong>(?:\\.|[^\\*])+)\*\*"
    r"|\*(?P<em>(?:\\.|[^\\*])+)\*"
)


def as_html(page: Page) -> str:
    """The whole page."""
    style, script = (
        files("neuron_spec.pages").joinpath(name).read_text(encoding="utf-8")
        for name in ("page.css", "page.js")
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    sections = list(enumerate(page.sections, start=1))
    links = "\n".join(f'<li><a href="#s{n}">{escape(section.title)}</a></li>' for n, section in sections)
    body = "\n".join(f'<section id="s{n}">\n{_section(section, 2)}\n</section>' for n, section in sections)
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


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _section(section: Section, level: int) -> str:
    below = (_section(inner, min(level + 1, 6)) for inner in section.sections)
    content = "\n".join([_blocks(section.blocks), *below])
    title = f"<h{level}>{escape(section.title)}</h{level}>"
    if section.is_folded:
        return f"<details>\n<summary>{title}</summary>\n{content}\n</details>"
    return f"{title}\n{content}"


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
        case Picture(name, caption, png, svg):
            kind, content, size = "png", png, f' width="{_css_width(png)}"'
            if svg is not None and len(svg) <= _LARGEST_SVG:
                kind, content, size = "svg+xml", svg, ""
            return (
                f'<figure><div class="wide"><button type="button" class="zoom" title="Show in full size">'
                f'<img alt="{escape(name)}"{size} src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'
                f"</button></div><figcaption>{inline(caption)}</figcaption></figure>"
            )


def _css_width(png: bytes) -> int:
    """Of a figure as large as it was drawn, in CSS pixels, 96 an inch; an SVG says so itself."""
    return int.from_bytes(png[16:20], "big") * 96 // DPI


def inline(text: str) -> str:
    """A paragraph's text, with its marks as elements and all else escaped."""
    parts, end = [], 0
    for mark in _INLINE.finditer(text):
        parts.append(escape(text[end : mark.start()]))
        name = str(mark.lastgroup)
        content = inline(mark[name]) if name in ("strong", "em") else escape(mark[name])
        parts.append(content if name == "literal" else f"<{name}>{content}</{name}>")
        end = mark.end()
    return "".join([*parts, escape(text[end:])])


def _table(table: Table) -> str:
    classes = [
        ' class="number"' if is_number else "" for is_number in columns_of_numbers(table.header, table.rows)
    ]
    names = [escape(name) for name in table.header]
    # Translations may run from right to left.
    kind, direction = ("text", ' dir="auto"') if table.is_text else ("sortable", "")
    if not table.is_text:
        names = [f'<button type="button">{name}</button>' for name in names]
    header = "".join(f"<th{of} scope='col'>{name}</th>" for of, name in zip(classes, names, strict=True))
    rows = (
        "".join(f"<td{of}{direction}>{escape(shown(c))}</td>" for of, c in zip(classes, row, strict=True))
        for row in table.rows
    )
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table class="{kind}">\n'
        f"<thead><tr>{header}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )
