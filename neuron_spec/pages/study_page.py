"""What a study leaves in a folder, and how it is shown: once, for the folder's own page and for a run's report.

A folder holds its numbers as ``NAME.json``, written last, a table of everything as CSV, figures as PNG and SVG, and
``NAME.md``. The report reads the JSON and the figures again and says the same as ``NAME.md``. Tests of whether what is
alike follows families, or the overlap of sets, look alike on all pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from neuron_spec.artifacts import completed, read_json, recorded_command, write_json, write_text
from neuron_spec.forms import require_form, well_formed
from neuron_spec.pages.page import (
    Block,
    Page,
    Paragraph,
    Picture,
    Section,
    Table,
    again,
    as_markdown,
    how_it_was_made,
    left_in,
    not_computed,
    write_pictures,
)
from neuron_spec.pages.style import drawn
from neuron_spec.pages.tables import Cell, shown_p, signed

FAMILY_HEADER = ("same family", "other families", "p")  # of `family_cells`
FAMILY_P = "p: the share of all ways to deal families out, or of random ones, that separate at least as well; one-sided."

KNOWN = (float, None)  # the form of a number that is not always known
_TEXT = (str, None)
FAMILY_FORM = {
    "same": KNOWN,
    "other": KNOWN,
    "p": KNOWN,
    "reason": _TEXT,
}  # of what `family_cells` shows
OVERLAP_FORM = {"correlation": KNOWN, "p": KNOWN, "reason": _TEXT}  # of `overlap_tests`


def form(numbers: Mapping[str, Any], **parameters: Any) -> dict[str, Any]:
    """What ``NAME.json`` has to look like, by its numbers and the parameters of its signature that are shown."""
    made = {"inputs": {str: str}, "parameters": {**parameters, "loss?": str}, "command?": _TEXT}
    return {"signature": made, **numbers}


_MEND = "give the same command again into another folder, or take this one away"


@dataclass(frozen=True)
class StudyPage:
    """How the results of a study are shown.

    Attributes:
        name: of the files.
        title: of the page, and of the section in a report.
        csv: the name of the table of everything.
        csv_holds: of what it has a line each.
        show: what stands in a JSON file, and the figures there are by name -> blocks, headline first, and folded
            sections of details; its title is open.
        about: what is asked, and what the words in the tables mean, a paragraph each.
        captions: name of a figure -> what it shows.
        figures: the folder of the figures, below the page's.
        form: what a JSON file has to look like, as `forms.require_form` takes it.
        picture_name: of a figure in a report, where several folders stand on one page.
    """

    name: str
    title: str
    csv: str
    csv_holds: str
    show: Callable[[Mapping[str, Any], Mapping[str, Picture]], Section]
    about: Sequence[str] = ()
    captions: Mapping[str, str] = field(default_factory=dict)
    figures: str = ""
    form: Mapping[str, Any] = field(default_factory=lambda: form({}))
    picture_name: str = "{folder}-{figure}"

    def make(self, folder: Path, made: Mapping[str, Any], write: Callable[[], Any]) -> None:
        """Have ``write`` write what is not complete already, and say where the page is.

        Args:
            made: the signature.

        Raises:
            ArtifactError: if what is there was made from something else.
        """
        if not completed(folder / f"{self.name}.json", made, what=self.name, where=folder):
            write()
        print(folder / f"{self.name}.md")

    def as_markdown(
        self, numbers: Mapping[str, Any], made: Mapping[str, Any], pictures: Mapping[str, Picture]
    ) -> str:
        """``NAME.md``.

        Args:
            numbers: what stands in ``NAME.json``.
            made: the signature.
            pictures: by name.
        """
        shown = self.show({"signature": made, **numbers}, pictures)
        files = f"Every {self.csv_holds}: `{self.csv}`; numbers in full: `{self.name}.json`."
        sections = [*shown.sections, how_it_was_made(made, files)]
        blocks = [*map(Paragraph, self.about), *shown.blocks]
        return as_markdown(Page(self.title, blocks, sections), self.figures)

    def write(
        self,
        folder: Path,
        numbers: Mapping[str, Any],
        made: Mapping[str, Any],
        figures: Mapping[str, Figure],
        csv_text: str,
    ) -> Path:
        """Write figures, CSV, page and, last, ``NAME.json``, the mark of completeness, whose path is returned."""
        pictures = {name: drawn(name, self.captions[name], figure) for name, figure in figures.items()}
        write_pictures(folder / self.figures, pictures.values())
        write_text(folder / self.csv, csv_text)
        write_text(folder / f"{self.name}.md", self.as_markdown(numbers, made, pictures))
        path = folder / f"{self.name}.json"
        write_json(path, {"signature": dict(made), **numbers})
        return path

    def section(self, folders: Mapping[str, Path]) -> Section:
        """All folders of a run that hold results, by name.

        Raises:
            ArtifactError: if one's JSON is damaged.
        """
        sections = []
        for name, folder in folders.items():
            file, pictures = folder / f"{self.name}.json", {}
            content = read_json(file, self.name)
            require_form(content, self.form, self.name, file, mend=_MEND)
            for figure, caption in self.captions.items():
                on_page = self.picture_name.format(folder=name.replace("/", "-"), figure=figure)
                for picture in left_in(folder / self.figures, figure, on_page, caption):
                    pictures[figure] = picture
            with well_formed(self.name, file, mend=_MEND):
                shown = self.show(content, pictures)
            more = again(recorded_command(content.get("signature"), folder), f"{name}/{self.name}.md")
            sections.append(Section(name, [*shown.blocks, *more], shown.sections))
        return Section(self.title, [*map(Paragraph, self.about)], sections)


def loss_said(made: Mapping[str, Any]) -> Paragraph:
    """Which target tokens the losses are of, by a signature; earlier versions knew one way, and did not write it."""
    of = {
        "text": "The loss is of the text: the language token that targets begin with, and generation is given, is left out.",
        "text; text and tag": "The loss is of the text; *with the tag*, of the language token too, as fairseq's is.",
    }
    tag = (
        "The loss is of the language token that targets begin with too. Out of English nothing but the direction tells it, "
        "so that it differs between directions, and between models with and without parts of their own per direction."
    )
    return Paragraph(of.get(made["parameters"].get("loss", ""), tag))


def family_cells(test: Mapping[str, Any] | None, decimals: int) -> list[Cell]:
    """Same family, other families and p, of a test that may be missing."""
    if test is None:
        return [None, None, None]
    return [signed(test["same"], decimals), signed(test["other"], decimals), p_of(test)]


def p_of(test: Mapping[str, Any]) -> Cell:
    """None where nothing could be computed."""
    return None if test["p"] is None else shown_p(test["p"])


def reasons_of(tests: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    """Why there are none, of those that are missing."""
    return not_computed((name, test["reason"]) for name, test in tests.items())


def overlap_tests(tests: Mapping[str, Mapping[str, Any]], what: str) -> list[Section]:
    """Whether ``what`` rises with the overlap of the sets, of each kind of directions; nothing without sets."""
    if not tests:
        return []
    rows = [
        [kind, signed(test["correlation"]), p_of(test)] for kind, test in tests.items() if not test["reason"]
    ]
    text = f"Mantel's test of the sets' IoU, mean over layers, with the {what}; one-sided."
    blocks = [Table(("directions", "rank correlation", "p"), rows), Paragraph(text), *reasons_of(tests)]
    return [Section(f"Overlap of the sets and {what}", blocks if rows else blocks[2:], is_folded=True)]
