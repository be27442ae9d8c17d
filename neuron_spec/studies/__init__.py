"""The studies, one folder per question, and the one list of them: command line, report and docs read it.

A study's folder holds what its question needs: numbers (``measure.py``), one section (``page.py``), flags
(``command.py``), a model or a task for fairseq. A command's module has ``add_arguments(parser)`` and ``run(args)``;
a page's has ``section(folders)``, from name to folder of each place in a run that holds what the study leaves.
Nothing of a study is imported before it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A subcommand of ``neuron-spec``.

    Attributes:
        help: one line.
        module: below ``neuron_spec``; of a study's command, below the study's folder.
        passes_on: whether what follows ``--`` goes to fairseq.
    """

    name: str
    help: str
    module: str = "command"
    passes_on: bool = False


@dataclass(frozen=True)
class Study:
    """One line of the list.

    Attributes:
        name: of its folder.
        question: what it answers.
        training: flags of ``fairseq-train`` that it brings.
        leaves: the file that its command leaves in a run's folder, as a pattern; the report shows a study that has one.
        page: the module with the report's section, below the study's folder.
    """

    name: str
    question: str
    commands: tuple[Command, ...] = ()
    training: str = ""
    leaves: str = ""
    page: str = "page"

    def module(self, name: str) -> str:
        """The full name of a module in its folder."""
        return f"{__name__}.{self.name}.{name}"


# In the order of the report's sections.
STUDIES = (
    Study(
        "analysis",
        "How far do the sets overlap, and does overlap follow the kinship of languages?",
        (
            Command(
                "analyze",
                "how far the sets overlap, by layer and language family; sparsity, dendrograms, stability",
            ),
        ),
    ),
    Study(
        "dynamic",
        "What do masks do that move with the model in training?",
        training="--task neuron_spec_dynamic --dynamic-masks learned|reselect",
        leaves="*/train.log",
    ),
    Study(
        "ablation",
        "What does every direction lose when the neurons of one are switched off?",
        (
            Command(
                "ablate",
                "switch off each direction's specialized neurons: what does every direction lose?",
            ),
        ),
        leaves="ablation*/ablation.json",
    ),
    Study(
        "conflict",
        "Do the gradients of directions point apart, and in which layers?",
        (
            Command(
                "conflict", "do directions' gradients point apart? cosines by layer and group of parameters"
            ),
        ),
        leaves="conflict*/conflict.json",
    ),
    Study(
        "transfer",
        "What does a training step on one direction do to the loss of every other?",
        (Command("transfer", "what a training step on one direction does to every direction's loss"),),
        leaves="transfer*/transfer.json",
    ),
    Study(
        "adaptation",
        "How many sentences does a new direction need?",
        (
            Command(
                "adapt",
                "adapt a model to directions with few training sentences: scores against shots",
                passes_on=True,
            ),
        ),
        leaves="adaptation*/adaptation.json",
    ),
    Study(
        "pruning",
        "How small can static subnetworks of heads and neurons be while translation stays good?",
        (
            Command(
                "importance",
                "how much each attention head and neuron matters to each direction, by gradient",
                "importance_command",
            ),
            Command(
                "prune",
                "static subnetworks: remove each set's least important heads and neurons while it stays good",
                passes_on=True,
            ),
        ),
    ),
    Study(
        "meta",
        "Does training by episodes make a model that a few sentences adapt?",
        training="--task neuron_spec_meta --meta fomaml|reptile",
    ),
    Study(
        "adapters",
        "What do small layers of their own do for directions, beside masks?",
        training="--arch neuron_spec_adapters... --adapters pair|family|...",
    ),
    Study(
        "lass",
        "What does a mask per weight do, from fine-tuning per direction?",
        (
            Command(
                "lass",
                "the LaSS baseline's weight masks: fine-tune per direction, drop the smallest weights",
                passes_on=True,
            ),
        ),
        training="--arch neuron_spec_lass... --weight-masks FILE",
    ),
    Study(
        "bilingual",
        "What does a model per direction score that trains as long?",
        (
            Command(
                "bilingual",
                "the bilingual baseline: how long each direction's model trains, all their scores as one",
            ),
        ),
    ),
    Study(
        "sweep",
        "How do scores follow k, or the model's depth?",
        (Command("sweep", "table and figure of a sweep over k or depth"),),
    ),
    Study(
        "systems",
        "What do systems score, and what do they cost?",
        (Command("systems", "one table of what systems score and cost"),),
    ),
    Study(
        "subnetworks",
        "What do subnetworks and meta-learning do for known and for new languages?",
        (
            Command(
                "subnetworks",
                "one page of what subnetworks and meta-learning do for known and new languages",
            ),
        ),
    ),
)


def as_markdown() -> str:
    """The list as a Markdown table, for the docs."""
    rows = ["| question | how | folder |", "|---|---|---|"]
    for study in STUDIES:
        how = [f"`neuron-spec {command.name}`" for command in study.commands]
        how += [f"`fairseq-train {study.training}`"] if study.training else []
        # The bar that parts choices would end the cell.
        text = ", ".join(how).replace("|", "\\|")
        rows.append(f"| {study.question} | {text} | `studies/{study.name}/` |")
    return "\n".join(rows) + "\n"
