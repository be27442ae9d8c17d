"""How large a run's report is, and how long a browser takes to open it: one of many directions, made up.

Corpus card, masks and evaluations of three systems, as `neuron-spec report` finds them in a finished run; their sets
have families, and their systems differ. What is measured:

  report     the seconds and peak memory of the command, comparisons included
  page       bytes of report.html, elements, and the figures inside it
  parse      Python's own HTML parser over it
  open       headless Chromium, where it is installed: from the start of the navigation until the page has loaded and is
             laid out, by the browser's clock, median of the rounds; and a screenshot of it by ours, beside one of an
             empty page, whose ratio says what opening it adds to starting a browser

examples:
  python benchmarks/report.py
  python benchmarks/report.py --directions 300 --chromium /usr/bin/google-chrome
"""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import measuring
from comparison import write_evaluations
from many_directions import measured, write_profile

from neuron_spec.artifacts import CORPUS_CARD, signature, write_json
from neuron_spec.languages import family_of

REPORT_HTML = "report.html"
SYSTEMS = ("dense", "dense-continuation", "specialized")
# Runs once all has loaded; asking for a height lays the page out.
CLOCK = """<script>addEventListener("load", () => { document.body.offsetHeight;
document.documentElement.dataset.opened = performance.now(); })</script>"""
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')  # would keep the clock from running
OPENED = re.compile(r'data-opened="([\d.]+)"')


def write_run(folder: Path, args: Any) -> None:
    """A finished run's folder; the masks are selected from a made-up profile."""
    langs, directions = measuring.languages(args.directions)
    write_evaluations(folder / "made", len(SYSTEMS), args.directions, 1, args.sentences)
    (folder / "evaluation").mkdir()
    for number, name in enumerate(reversed(SYSTEMS)):
        (folder / "made" / f"system-{number}" / "0").rename(folder / "evaluation" / name)
    shutil.rmtree(folder / "made")
    families = {code: family_of(code) for code in langs}
    write_json(
        folder / "corpus" / CORPUS_CARD,
        {
            "name": "made-up",
            "langs": langs,
            "lang_pairs": [str(direction) for direction in directions],
            "families": families,
            "tiers": dict.fromkeys(langs[1:], "high"),
            "sources": [{"name": "made up", "licence": "MIT", "sha256": "0" * 64}],
            "pairs": {split: dict.fromkeys(langs[1:], 1000) for split in ("train", "valid", "test")},
            "leak_report": {},
            "signature": signature("data", inputs={}, parameters={"corpus": "made-up"}),
        },
    )
    profile = folder / "profile.safetensors"
    write_profile(profile, directions, args.layers, args.ffn)
    command = (sys.executable, "-m", "neuron_spec", "select", profile)
    measured(folder, *command, "--output", folder / "masks.safetensors")


class Elements(HTMLParser):
    """Counts what a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.figures: list[int] = []  # bytes of each, as the page holds them

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag] += 1
        if tag == "img":
            self.figures.append(len(dict(attrs)["src"] or ""))


def parsed(page: Path) -> dict[str, Any]:
    text, elements = page.read_text(encoding="utf-8"), Elements()
    with measuring.timed("cpu") as elapsed:
        elements.feed(text)
    return {
        "bytes": page.stat().st_size,
        "elements": elements.found.total(),
        "table_cells": elements.found["td"] + elements.found["th"],
        "figures": len(elements.figures),
        "figure_bytes": sum(elements.figures),
        "largest_figure_bytes": max(elements.figures, default=0),
        "parse_seconds": round(elapsed[0], 3),
    }


def opened(page: Path, chromium: str, repeats: int) -> dict[str, Any]:
    """A copy of the page with a clock in it, in a headless browser."""
    copy, empty = page.with_name("timed.html"), page.with_name("empty.html")
    text = page.read_text(encoding="utf-8")
    copy.write_text(POLICY.sub("", text).replace("</head>", f"{CLOCK}</head>", 1), encoding="utf-8")
    empty.write_text("<!DOCTYPE html><title>empty</title>", encoding="utf-8")

    def run(place: Path, *flags: str) -> str:
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", *flags, place.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        return done.stdout

    def screenshot(place: Path) -> None:
        run(place, f"--screenshot={place.with_suffix('.png')}", "--window-size=1200,2000")

    by_its_clock = []
    for _ in range(repeats):
        found = OPENED.search(run(copy, "--dump-dom"))
        if found is None:
            sys.exit(f"{chromium}: the page did not load")
        by_its_clock.append(float(found[1]) / 1000)
    screenshots = measuring.interleaved(
        {"page": lambda: screenshot(page), "empty": lambda: screenshot(empty)}, repeats=repeats, device="cpu"
    )
    return {
        "browser": subprocess.run([chromium, "--version"], capture_output=True, text=True).stdout.strip(),
        "seconds": round(statistics.median(by_its_clock), 3),
        "least": round(min(by_its_clock), 3),
        "greatest": round(max(by_its_clock), 3),
        "screenshot": measuring.ratio(screenshots, "page", "empty"),
    }


def main() -> None:
    parser = measuring.parser(__doc__, repeats=5)
    parser.add_argument("--directions", type=int, default=60, metavar="N", help="default: %(default)s")
    parser.add_argument("--layers", type=int, default=6, metavar="N", help="per side (default %(default)s)")
    parser.add_argument("--ffn", type=int, default=4096, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--sentences", type=int, default=200, metavar="N", help="of each test set (default %(default)s)"
    )
    parser.add_argument(
        "--chromium",
        default=shutil.which("chromium") or shutil.which("google-chrome"),
        metavar="FILE",
        help="the browser (default: the one that is installed, if any)",
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        folder.mkdir()
        write_run(folder, args)
        used = measured(folder, sys.executable, "-m", "neuron_spec", "report", folder)
        page = parsed(folder / REPORT_HTML)
        in_browser = opened(folder / REPORT_HTML, args.chromium, args.repeats) if args.chromium else None
    ratio = round(page["figure_bytes"] / page["bytes"], 3)
    rows = [
        ["neuron-spec report, seconds", f"{used['seconds']:.1f}"],
        ["of CPU time", f"{used['cpu_seconds']:.1f}"],
        ["its peak, GiB", f"{used['peak_bytes'] / 2**30:.2f}"],
        ["page, MB", f"{page['bytes'] / 1e6:.2f}"],
        [f"figures ({page['figures']}), part of it", f"{ratio:.2f}"],
        ["largest figure, MB", f"{page['largest_figure_bytes'] / 1e6:.2f}"],
        ["elements", page["elements"]],
        ["parsed by Python, seconds", page["parse_seconds"]],
    ]
    if in_browser:
        rows += [
            [f"opened by {in_browser['browser']}, seconds", f"{in_browser['seconds']:.2f}"],
            ["least to greatest", f"{in_browser['least']:.2f} to {in_browser['greatest']:.2f}"],
            ["a screenshot, seconds", f"{in_browser['screenshot']['ms'] / 1000:.2f}"],
            ["a screenshot, x an empty page", f"{in_browser['screenshot']['ratio']:.2f}"],
        ]
    measuring.print_table(
        f"report of {args.directions} directions, {len(SYSTEMS)} systems, {args.layers}+{args.layers} layers",
        ["", ""],
        rows,
    )
    shape = {name: getattr(args, name) for name in ("directions", "layers", "ffn", "sentences")}
    command = {name: round(value, 1) for name, value in used.items()}
    measuring.save(
        args,
        "report",
        {**shape, "report": command, "page": {**page, "figure_ratio": ratio}, "opened": in_browser},
    )


if __name__ == "__main__":
    main()
