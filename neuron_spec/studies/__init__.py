"""The studies, a folder per question, and the one list of them: command line, report and docs read it.

A study's folder holds what its question needs: numbers (``measure.py``), one section (``page.py``), flags
(``command.py``), a model or a task for fairseq. A command's module has ``add_arguments(parser)`` and ``run(args)``;
a page's has ``section(folders)``, from name to folder of each place in a run that holds what the study leaves.
Nothing of a study is imported before it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Study:
    """A question; a line of the list.

    Attributes:
        folder: below this one.
        question: what it answers, also the help of its command.
        command: the subcommand of ``neuron-spec``; none where ``training`` is all.
        training: flags of ``fairseq-train`` that it brings.
        leaves: a file that it leaves in a run's folder, as a pattern; the report shows the study where there is one.
        command_module, page_module: in its folder.
        passes_on: whether what follows ``--`` on the command line goes to fairseq.
    """

    folder: str
    question: str
    command: str = ""
    training: str = ""
    leaves: str = ""
    command_module: str = "command"
    page_module: str = "page"
    passes_on: bool = False

    def module(self, name: str) -> str:
        """The full name of a module in its folder."""
        return f"{__name__}.{self.folder}.{name}"


# In the order of the report's sections.
STUDIES = (
    Study(
        "analysis",
        "how far do the sets overlap, by layer and language family; would other data give them?",
        "analyze",
    ),
    Study(
        "dynamic",
        "what do masks do that move with the model in training?",
        training="--task neuron_spec_dynamic --dynamic-masks learned|reselect",
        leaves="*/train.log",
    ),
    Study(
        "ablation",
        "what does every direction lose when the neurons of one are switched off?",
        "ablate",
        leaves="ablation*/ablation.json",
    ),
    Study(
        "conflict",
        "do directions' gradients point apart, and in which layers and groups of parameters?",
        "conflict",
        leaves="conflict*/conflict.json",
    ),
    Study(
        "transfer",
        "what does a training step on one direction do to every direction's loss?",
        "transfer",
        leaves="transfer*/transfer.json",
    ),
    Study(
        "adaptation",
        "how many sentences does a new direction need: scores against shots",
        "adapt",
        leaves="adaptation*/adaptation.json",
        passes_on=True,
    ),
    Study(
        "pruning",
        "how much does each attention head and neuron matter to each direction, by gradient?",
        "importance",
        command_module="importance_command",
    ),
    Study(
        "pruning",
        "how small can static subnetworks of heads and neurons be while translation stays good?",
        "prune",
        passes_on=True,
    ),
    Study(
        "meta",
        "does training by episodes make a model that a few sentences adapt?",
        training="--task neuron_spec_meta --meta fomaml|reptile",
    ),
    Study(
        "adapters",
        "what do small layers of their own do for directions?",
        training="--arch neuron_spec_adapters... --adapters pair|family|...",
    ),
    Study(
        "lass",
        "what does a mask per weight do, from fine-tuning per direction (LaSS)?",
        "lass",
        training="--arch neuron_spec_lass... --weight-masks FILE",
        passes_on=True,
    ),
    Study(
        "unsharing",
        "what is gained if directions share no FFN at all: the ceiling?",
        "unshare",
    ),
    Study("bilingual", "what does a model per direction score that trains as long?", "bilingual"),
    Study("sweep", "how do scores follow k, or the depth of the model?", "sweep"),
    Study(
        "verdict",
        "is there interference, something to gain, and does specialization gain it, by rules fixed before?",
        "verdict",
    ),
    Study("systems", "what do systems score, and what do they cost?", "systems"),
    Study(
        "subnetworks",
        "what do subnetworks and meta-learning do for known and for new languages?",
        "subnetworks",
    ),
)


def as_markdown() -> str:
    """The list as a Markdown table, for the docs."""
    rows = ["| question | how | folder |", "|---|---|---|"]
    for study in STUDIES:
        how = [f"`neuron-spec {study.command}`"] if study.command else []
        how += [f"`fairseq-train {study.training}`"] if study.training else []
        # The bar that parts choices would end the cell.
        text = ", ".join(how).replace("|", "\\|")
        rows.append(f"| {study.question} | {text} | `studies/{study.folder}/` |")
    return "\n".join(rows) + "\n"
