"""Imports point one way, and each heavy package is imported from one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import neuron_spec

PACKAGE = Path(neuron_spec.__file__).parent

# Lowest first: a module may import from its own group and from those above it in this list.
GROUPS = (
    "errors",
    "directions",
    "artifacts",
    "language_id",
    "neurons",
    "modules",
    "meta",
    "compat",
    "checkpoints",
    "data",
    "models",
    "profiling",
    "tasks",
    "fairseq_commands",
    "config",
    "corpora",
    "shipping",
    "generation",
    "fine_tuning",
    "lass",
    "teacher_forcing",
    "importance",
    "pruning",
    "ablation",
    "interference",
    "reporting.tables",
    "evaluation",
    "joining",
    "comparison",
    "bilingual",
    "adaptation",
    "reporting",
    "cli",
    "__main__",
)
# The order inside a group, where it matters.
SUBMODULES = {
    "neurons": (
        "activations",
        "importance",
        "masks",
        "pruning",
        "weight_masks",
        "selection",
        "overlap",
        "stability",
        "dynamic",
    ),
    "corpora": ("build", "toy"),
}

FAIRSEQ_SIDE = (
    "adaptation",
    "compat",
    "checkpoints",
    "fairseq_commands",
    "fine_tuning",
    "generation",
    "profiling",
    "teacher_forcing",
    "corpora.binarize",
    "modules.specialized_attention",
)
FAIRSEQ_SIDE_PACKAGES = ("data", "models", "tasks")

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}


def imports_of(path: Path) -> set[str]:
    """Dotted names that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def group(module: str) -> str:
    return module if module in GROUPS else module.partition(".")[0]


def our_modules(names: set[str]) -> set[str]:
    """Which of our modules are named, without the package's name."""
    ours = set()
    for name in names:
        if name.startswith("neuron_spec."):
            tail = name.removeprefix("neuron_spec.")
            ours.add(tail if tail in MODULES else tail.rpartition(".")[0] or tail)
    return ours & MODULES.keys()


IMPORTS = {module: imports_of(path) for module, path in MODULES.items()}


def test_the_list_of_groups_is_complete():
    assert {group(module) for module in MODULES} <= set(GROUPS), "say where the new module stands"


def test_the_guard_sees_imports():
    assert "errors" in our_modules(IMPORTS["directions"])
    assert "neurons.masks" in our_modules(IMPORTS["neurons.selection"])
    assert any(name.startswith("fairseq.") for name in IMPORTS["data.manager"])


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    for imported in our_modules(IMPORTS[module]):
        assert GROUPS.index(group(imported)) <= GROUPS.index(group(module)), f"{module} imports {imported}"


@pytest.mark.parametrize("package", SUBMODULES)
def test_imports_inside_a_group_point_one_way(package):
    order = [f"{package}.{name}" for name in SUBMODULES[package]]
    for place, module in enumerate(order):
        later = set(order[place + 1 :])
        assert not our_modules(IMPORTS[module]) & later


def test_no_cycles():
    remaining = {module: our_modules(IMPORTS[module]) - {module} for module in MODULES}
    # A package's __init__ and the modules it registers name each other.
    remaining = {m: {i for i in found if i != m.rpartition(".")[0]} for m, found in remaining.items()}
    while free := [module for module, found in remaining.items() if not found]:
        for module in free:
            del remaining[module]
        for found in remaining.values():
            found.difference_update(free)
    assert not remaining


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        (
            "fairseq",
            lambda module: module in FAIRSEQ_SIDE or group(module) in FAIRSEQ_SIDE_PACKAGES,
        ),
        ("fairseq_cli", lambda module: module in ("fairseq_commands", "generation")),
        ("matplotlib", lambda module: module.startswith("reporting.")),
        ("scipy", lambda module: module == "neurons.overlap"),
        ("sacrebleu", lambda module: module == "evaluation"),
    ],
)
def test_who_imports_a_heavy_package(package, allowed):
    importers = {m for m, names in IMPORTS.items() if any(name.split(".")[0] == package for name in names)}
    assert not {module for module in importers if not allowed(module)}


def test_the_method_runs_without_fairseq():
    code = (
        "import sys, neuron_spec.neurons.selection, neuron_spec.neurons.overlap, neuron_spec.modules.specialized_ffn;"
        "heavy = {'fairseq', 'matplotlib', 'sacrebleu', 'omegaconf'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
