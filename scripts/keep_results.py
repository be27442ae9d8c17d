"""Copy what results/ keeps, small: numbers of CSV and JSON with four digits, tables without padding, figures with a
palette of their own. A page's figures go first: those that are not beside its copy are left out of it. So does the CSV
of its name: where that is beside its copy, the page's tables of every direction are left out.

python scripts/keep_results.py FILE ... FOLDER      or FILE COPY, with a suffix
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image

_WIDEST = 2000  # pixels


def rounded(value: float) -> float:
    """Four significant digits, but no coarser than ones."""
    return float(round(value)) if abs(value) >= 1000 else float(f"{value:.4g}")


def small_csv(source: Path, folder: Path) -> bytes:
    text = io.StringIO()
    rows = csv.reader(source.read_text(encoding="utf-8").splitlines())
    csv.writer(text, lineterminator="\n").writerows([_cell(cell) for cell in row] for row in rows)
    return text.getvalue().encode()


def _cell(text: str) -> str:
    return str(rounded(float(text))) if re.fullmatch(r"-?\d+(\.\d*)?e-?\d+|-?\d+\.\d*", text) else text


def small_json(source: Path, folder: Path) -> bytes:
    plain = json.loads(source.read_text(encoding="utf-8"), parse_float=lambda text: rounded(float(text)))
    return (json.dumps(plain, indent=1, ensure_ascii=False) + "\n").encode()


def small_md(source: Path, folder: Path) -> bytes:
    lines: list[str] = []
    has_csv = (folder / f"{source.stem}.csv").exists()
    is_in_csv = False
    for line in source.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            is_in_csv = has_csv and line.endswith(", every direction")
        if is_in_csv:
            continue
        figure = re.fullmatch(r"!\[.*\]\((?!https?:|data:)(.+)\)", line)
        if figure and not (folder / figure[1]).exists():
            if lines and not lines[-1]:
                lines.pop()
        elif line.startswith("|"):
            lines.append(re.sub("-{4,}", "---", re.sub(r" *(?<!\\)\| *", " | ", line).strip()))
        else:
            lines.append(line)
    return ("\n".join(lines) + "\n").encode()


def small_png(source: Path, folder: Path) -> bytes:
    with Image.open(source) as opened:
        drawn = opened.convert("RGBA")
    page = Image.new("RGBA", drawn.size, "white")
    page.alpha_composite(drawn)
    figure = page.convert("RGB")
    if figure.width > _WIDEST:
        figure = figure.resize(
            (_WIDEST, round(figure.height * _WIDEST / figure.width)), Image.Resampling.LANCZOS
        )
    small = io.BytesIO()
    # Covers rare colours too: by their number alone, half of a colour bar would turn grey.
    palette = figure.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    palette.save(small, "PNG", optimize=True)
    return small.getvalue()


SMALL: dict[str, Callable[[Path, Path], bytes]] = {
    ".csv": small_csv,
    ".json": small_json,
    ".md": small_md,
    ".png": small_png,
}


def main(arguments: list[str]) -> None:
    if len(arguments) < 2:
        sys.exit(__doc__)
    *sources, target = map(Path, arguments)
    if target.suffix in SMALL and [source.suffix for source in sources] != [target.suffix]:
        sys.exit(f"{target}: a copy is of one file of its kind; expected FILE COPY, or FILE ... FOLDER")
    for source in sources:
        if source.suffix not in SMALL:
            sys.exit(f"{source}: results/ keeps {', '.join(SMALL)}, no texts and no checkpoints")
        copy = target if target.suffix in SMALL else target / source.name
        if copy.resolve() == source.resolve():
            sys.exit(f"{source}: the copy would replace it; name another folder")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(SMALL[source.suffix](source, copy.parent))


if __name__ == "__main__":
    main(sys.argv[1:])
