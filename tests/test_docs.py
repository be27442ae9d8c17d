"""The documentation: links that hold on GitHub, and a site that builds without a warning, its notebook executed."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import neuron_spec

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path for pattern in ("*.md", "docs/*.md", "data/*.md", "results/**/*.md") for path in ROOT.glob(pattern)
)
_LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors(page: Path) -> set[str]:
    """Of headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / link).resolve() if link else page
        assert target.is_file() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


def test_the_readme_is_short_and_plain_fairseq_lines_name_the_user_dir() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    lines = re.findall(r"^(fairseq-(?:train|generate|validate|interactive) .*)$", text, re.MULTILINE)
    assert len(lines) >= 2 and all("--user-dir" in line for line in lines)


@pytest.mark.parametrize("page", ["faults", "reliability", "safety"])
def test_the_tests_that_a_page_names_exist(page: str) -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    tests = [name for source in sources for name in re.findall(r"^def (test_\w+)", source, re.MULTILINE)]
    rows = re.findall(
        r"^\|.*\| (.*) \|$", (ROOT / f"docs/{page}.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    named = [name for row in rows for name in re.findall(r"`(\w+)(?:\.\.\.)?`", row)]
    assert len(named) > 5
    assert [name for name in named if not any(name in test for test in tests)] == []


def test_the_reference_has_every_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\.\. auto\w+:: neuron_spec\.(\w+)", page, re.MULTILINE)) - {"neurons"}
    assert named == {*neuron_spec.__all__}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("myst_nb") is None, reason="pip install -e '.[docs]'")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    words = ("-q", "-W", "--keep-going", "-c", "docs", ".", str(tmp_path / "site"))
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    notebook = (site / "examples" / "explore_neurons.html").read_text(encoding="utf-8")
    assert notebook.count("<img ") >= 5 and "within families" in notebook, "executed"
    reference = (site / "docs" / "api.html").read_text(encoding="utf-8")
    assert all(f'id="neuron_spec.{name}"' in reference for name in neuron_spec.__all__)
    # The first page leads to the pages, whose links lead to pages too; results are there with their figures.
    assert "docs/index.html" in (site / "index.html").read_text(encoding="utf-8")
    assert 'href="docs/own-text.html"' in (site / "README.html").read_text(encoding="utf-8")
    assert 'href="../results/bible/README.html"' in (site / "docs" / "findings.html").read_text(
        encoding="utf-8"
    )
    assert list((site / "_images").glob("verdict*.png"))
