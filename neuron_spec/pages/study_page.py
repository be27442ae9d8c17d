"""What a study leaves in a folder, and how it is shown: once, for the folder's own page and for a run's report.

A folder holds its numbers as ``NAME.json``, written last, a table of everything as CSV, figures as PNG and SVG, and
``NAME.md``. The report reads the JSON and the figures again and says the same as ``NAME.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuron_spec.artifacts import read_json, recorded_command, write_json, write_text
from neuron_spec.pages.page import (
    Block,
    Page,
    Picture,
    Section,
    again,
    as_markdown,
    how_it_was_made,
    left_in,
    write_pictures,
)

Show = Callable[[Mapping[str, Any], Mapping[str, Picture]], Section]
"""What stands in a JSON file, and the figures there are by name -> blocks and further sections; its title is open."""


@dataclass(frozen=True)
class StudyPage:
    """How the results of a study are shown.

    Attributes:
        name: of the files.
        title: of the page, and of the section in a report.
        csv: the name of the table of everything.
        csv_holds: of what it has a line each.
        show: the numbers of one folder, headline first, details in folded sections.
        about: what is asked, and what the words in the tables mean.
        captions: name of a figure -> what it shows.
        figures: the folder of the figures, below the page's.
        picture_name: of a figure in a report, where several folders stand on one page.
    """

    name: str
    title: str
    csv: str
    csv_holds: str
    show: Show
    about: Sequence[Block] = ()
    captions: Mapping[str, str] = field(default_factory=dict)
    figures: str = ""
    picture_name: str = "{folder}-{figure}"

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
        return as_markdown(Page(self.title, [*self.about, *shown.blocks], sections), self.figures)

    def write(
        self,
        folder: Path,
        numbers: Mapping[str, Any],
        made: Mapping[str, Any],
        pictures: Sequence[Picture],
        csv_text: str,
    ) -> Path:
        """Write figures, CSV, page and, last, ``NAME.json``, the mark of completeness, whose path is returned."""
        write_pictures(folder / self.figures, pictures)
        write_text(folder / self.csv, csv_text)
        by_name = {picture.name: picture for picture in pictures}
        write_text(folder / f"{self.name}.md", self.as_markdown(numbers, made, by_name))
        path = folder / f"{self.name}.json"
        write_json(path, {"signature": dict(made), **numbers})
        return path

    def section(self, folders: Mapping[str, Path]) -> Section:
        """All folders of a run that hold results, by name.

        Raises:
            ArtifactError: if one's JSON is damaged.
        """
        return Section(self.title, self.about, [self._of(*each) for each in folders.items()])

    def _of(self, name: str, folder: Path) -> Section:
        content = read_json(folder / f"{self.name}.json", self.name)
        pictures = {}
        for figure, caption in self.captions.items():
            on_page = self.picture_name.format(folder=name.replace("/", "-"), figure=figure)
            for picture in left_in(folder / self.figures, figure, on_page, caption):
                pictures[figure] = picture
        shown = self.show(content, pictures)
        more = again(recorded_command(content.get("signature"), folder), f"{name}/{self.name}.md")
        return Section(name, [*shown.blocks, *more], shown.sections)
