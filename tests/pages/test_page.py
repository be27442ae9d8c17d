"""One description, two forms: what they escape, and what the HTML page may load."""

from __future__ import annotations

import base64
import re
from html import escape
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from matplotlib.figure import Figure

from neuron_spec.pages.html import _LARGEST_SVG, as_html, inline
from neuron_spec.pages.page import (
    DPI,
    Bullets,
    Code,
    Page,
    Paragraph,
    Picture,
    Section,
    Table,
    as_markdown,
    pictures,
    plain,
)
from neuron_spec.pages.style import rendered

EVIL = '<script>alert("x")</script> & <img src=x onerror=y> "\' `</pre>` **b** _i_ [l](javascript:z) a|b \\'
PNG = rendered(Figure(figsize=(1, 1)), "png")
SVG = rendered(Figure(figsize=(1, 1)), "svg")


def page(text: str) -> Page:
    return Page(
        text,
        [Paragraph(plain(text)), Bullets([plain(text)])],
        [
            Section(
                text,
                [
                    Table((text, "n"), [[text, 1.25], ["b", None]]),
                    Table(("", text), [[text, text]], is_text=True),
                    Code(text),
                    Picture("scores", plain(text), PNG, SVG),
                ],
                [Section(text, [Paragraph("*em* **strong** `code`")], is_folded=True)],
            )
        ],
    )


class Reader(HTMLParser):
    """Elements, attributes that load something, and the text outside script and style."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.handlers: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "action", "srcset")]
        self.handlers += [name for name, _ in attributes if name.startswith("on") or name == "style"]

    def handle_data(self, data):
        if self.tags[-1:] not in (["script"], ["style"]):
            self.text.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    return reader


def test_nothing_from_outside_becomes_an_element_or_loses_a_character():
    reader, harmless = read(as_html(page(EVIL))), read(as_html(page("x")))
    assert reader.tags == harmless.tags
    assert not reader.handlers
    shown = [text for text in reader.text if "alert" in text]
    # Title, link, 3 headings, paragraph, item, 2 headers, 3 cells, code, caption.
    assert len(shown) == 14
    assert all("".join(text.split()) == "".join(EVIL.split()) for text in shown)


def test_the_page_loads_nothing():
    text = as_html(page("x"))
    assert all(source.startswith(("data:image/", "#")) for source in read(text).sources)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy


def test_the_policy_admits_our_script_and_style_and_no_other():
    import hashlib

    text = as_html(page("x"))
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in text


def test_marks_of_ours_are_elements_and_escaped_ones_are_text():
    assert inline("a *b* **c** `d<e`") == "a <em>b</em> <strong>c</strong> <code>d&lt;e</code>"
    assert inline(plain("a *b* **c** `d`")) == "a *b* **c** `d`"
    assert inline("2 < 3 & neuron_spec") == "2 &lt; 3 &amp; neuron_spec"
    assert inline(f"*{plain('a*b')}*") == "<em>a*b</em>"


@pytest.mark.parametrize("text", [EVIL, "neuron_spec", "_a_", "a\\*b", "5 < 6 > 4", "~~x~~ $y$"])
def test_plain_text_comes_through(text):
    assert inline(plain(text)) == escape(text)


def test_markdown_keeps_marks_only_where_they_are_ours():
    text = as_markdown(page("**x** <b> | `y`"))
    assert "\\*\\*x\\*\\* \\<b> | \\`y\\`" in text.split("\n")[0]
    assert "| \\*\\*x\\*\\* \\<b> \\| \\`y\\` |" in text
    assert "*em* **strong** `code`" in text
    assert "![\\*\\*x\\*\\*" in text


def test_code_cannot_end_its_own_fence():
    text = as_markdown(Page("t", [Code("a\n```\nb")], []))
    assert "````bash\na\n```\nb\n````" in text


def test_both_forms_say_the_same():
    made = page("words")
    text, markup = as_markdown(made), as_html(made)
    assert re.findall(r"^(#+) ", text, re.MULTILINE) == ["#", "##", "###"]
    assert re.findall(r"<(h\d)>", markup) == ["h1", "h2", "h3"]
    for value in ("1.2", "-", "words"):
        assert f'<td class="number">{value}</td>' in markup or f">{value}</td>" in markup
        assert value in text
    assert [p.name for p in pictures(made)] == ["scores"]


def test_only_tables_of_values_can_be_sorted_and_numbers_stand_right():
    markup = as_html(page("x"))
    assert markup.count('<table class="sortable">') == markup.count('<table class="text">') == 1
    assert "<th class=\"number\" scope='col'><button" in markup
    assert '<td dir="auto">x</td>' in markup


def test_a_large_svg_gives_way_to_the_png():
    def embedded(svg):
        return re.search(r"data:image/([a-z+]+);", as_html(Page("t", [Picture("a", "b", PNG, svg)], [])))[1]

    assert embedded(SVG) == "svg+xml"
    assert embedded(SVG + b" " * _LARGEST_SVG) == "png"
    assert embedded(None) == "png"


def test_the_same_page_gives_the_same_text():
    assert as_html(page("x")) == as_html(page("x"))


def test_on_a_small_screen_tables_and_figures_scroll_and_the_page_does_not():
    """A figure is as large there as it was drawn, so that its labels can be read: 96 CSS pixels an inch, SVG or PNG."""
    drawing = Figure(figsize=(9, 1))
    png, svg = (rendered(drawing, kind) for kind in ("png", "svg"))
    shown = [Picture("one", "", png), Picture("other", "", png, svg)]
    table = Table(("over", *(f"system-{number}" for number in range(9))), [["all", *range(9)]])
    markup = as_html(Page("a", [table, *shown], []))
    inches = int.from_bytes(png[16:20], "big") / DPI
    widths = re.findall(r'<div class="wide"><button[^>]*><img alt="\w+"(?: width="(\d+)")?', markup)
    assert widths == [str(int(inches * 96)), ""]
    assert float(re.search(rb'width="([\d.]+)pt"', svg)[1]) == pytest.approx(72 * inches, rel=0.02)
    css = files("neuron_spec.pages").joinpath("page.css").read_text(encoding="utf-8")
    small = css[css.index("@media (max-width: 40rem)") : css.index("@media print")]
    everywhere = css[: css.index("@media (max-width")]
    assert re.search(r"\.zoom, \.zoom img \{[^}]*max-width: none", small)
    for box in (r"\.wide", r"\.scroll"):
        assert re.search(box + r" \{[^}]*overflow-x: auto[^}]*max-width: 100%", everywhere)
    assert re.search(r"\.sortable :is\(th, td\):first-child \{[^}]*sticky", everywhere)
    assert '<div class="scroll" tabindex="0"><table class="sortable">' in markup
