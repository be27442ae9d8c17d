"""The documentation as a site, of the files that GitHub shows, at their own paths: scripts/docs.sh builds it."""

from __future__ import annotations

from pathlib import Path

from sphinx.application import Sphinx

project = "neuron_spec"
copyright = author = "the authors of neuron_spec"
root_doc = "docs/index"
html_theme = "furo"
html_title = "neuron_spec"
html_copy_source = html_show_sourcelink = False

# The source is the repository, so that a link from file to file is right here and on GitHub.
include_patterns = ["*.md", "docs/*.md", "data/*.md", "results/*.md", "results/*/*.md", "examples/*.py"]
exclude_patterns = [".*", "*.egg-info", "build", "downloads", "neuron_spec", "runs", "scripts", "tests"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "myst-nb", ".py": "myst-nb"}
myst_heading_anchors = 3
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300

default_role = "py:obj"  # `NAME` in a docstring: a link, where the name is on the page
napoleon_numpy_docstring = False
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True


def setup(app: Sphinx) -> None:
    app.connect("build-finished", first_page)


def first_page(app: Sphinx, error: Exception | None) -> None:
    page = f'<meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
    Path(app.outdir, "index.html").write_text(page, encoding="utf-8")
