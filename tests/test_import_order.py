"""The house: imports point one way, and each heavy package is imported from one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import neuron_spec

PACKAGE = Path(neuron_spec.__file__).parent

# Lowest first: a module may import from its own floor and from those below.
FLOORS = (
    ("errors",),
    ("languages", "forms"),
    ("directions",),
    ("artifacts",),
    ("statistics", "arguments", "shared"),
    ("neurons",),
    ("modules",),
    ("export",),
    ("pages",),
    ("scoring",),
    ("corpora", "backends", "criterions", "models", "tasks"),
    ("studies",),
    ("report",),
    ("cli",),
    ("__main__",),
)
# Which of a package's modules may be imported by which, where it matters.
SUBMODULES = {
    "neurons": ("activations", "counting", "masks", "selection", "overlap", "stability"),
    "corpora": ("build", "toy"),
}
# A study knows no other, but for these.
STUDIES_OF_STUDIES = {("meta", "dynamic"), ("adaptation", "meta")}
# What fairseq imports from --user-dir, one line for each study that brings a model or a task.
REGISTERED = {
    "models.neuron_spec_adapters": "studies.adapters.model",
    "models.neuron_spec_lass": "studies.lass.model",
    "tasks.neuron_spec_dynamic": "studies.dynamic.task",
    "tasks.neuron_spec_meta": "studies.meta.task",
}
WITHOUT_FAIRSEQ = (
    "errors",
    "forms",
    "languages",
    "directions",
    "artifacts",
    "statistics",
    "neurons",
    "modules",
    "export",
    "pages",
    "scoring",
)
BACKENDS_WITHOUT_FAIRSEQ = ("backends.huggingface",)
# A subclass of fairseq's attention, which is what a model is built of.
FAIRSEQ_IN_MODULES = "modules.specialized_attention"

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


def room(module: str) -> str:
    return module.partition(".")[0]


def floor(module: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room(module) in rooms)


def study(module: str) -> str | None:
    """The folder below ``studies``; None outside, and for the list of studies itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "studies" and len(parts) > 1 and parts[1] != "__main__" else None


def our_modules(names: set[str]) -> set[str]:
    """Which of our modules are named, without the package's name."""
    ours = set()
    for name in names:
        if name.startswith("neuron_spec."):
            tail = name.removeprefix("neuron_spec.")
            ours.add(tail if tail in MODULES else tail.rpartition(".")[0] or tail)
    return ours & MODULES.keys()


IMPORTS = {module: imports_of(path) for module, path in MODULES.items()}


def test_every_module_has_a_floor():
    rooms = {name for rooms in FLOORS for name in rooms}
    assert {room(module) for module in MODULES} <= rooms, "say where the new module stands"


def test_the_guard_sees_imports():
    assert "errors" in our_modules(IMPORTS["directions"])
    assert "neurons.masks" in our_modules(IMPORTS["neurons.selection"])
    assert any(name.startswith("fairseq.") for name in IMPORTS["backends.fairseq.batches"])
    assert study("studies.ablation.measure") == "ablation"
    assert study("scoring.evaluation") is None


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_imported_upwards(module):
    allowed = {REGISTERED[module]} if module in REGISTERED else set()
    for imported in our_modules(IMPORTS[module]) - allowed:
        assert floor(imported) <= floor(module), f"{module} imports {imported}"


@pytest.mark.parametrize("module", REGISTERED)
def test_a_study_is_registered_by_one_line(module):
    code = ast.parse(MODULES[module].read_text(encoding="utf-8")).body
    assert [type(node) for node in code] == [ast.Expr, ast.Import], "a docstring and an import"


@pytest.mark.parametrize("module", [module for module in MODULES if study(module)])
def test_a_study_knows_no_other(module):
    others = {study(imported) for imported in our_modules(IMPORTS[module])} - {None, study(module)}
    assert {(study(module), other) for other in others} <= STUDIES_OF_STUDIES


@pytest.mark.parametrize("package", SUBMODULES)
def test_imports_inside_a_package_point_one_way(package):
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
            lambda module: (
                (room(module) not in WITHOUT_FAIRSEQ or module == FAIRSEQ_IN_MODULES)
                and not module.startswith(BACKENDS_WITHOUT_FAIRSEQ)
            ),
        ),
        ("fairseq_cli", lambda module: module.startswith("backends.fairseq.")),
        (
            "matplotlib",
            lambda module: (
                room(module) == "pages"
                or module == "scoring.figures"
                or (study(module) and module.endswith(".page"))
            ),
        ),
        ("ctranslate2", lambda module: module.startswith("backends.ctranslate2.")),
        ("transformers", lambda module: module.startswith("backends.huggingface.")),
        ("scipy", lambda module: room(module) in ("statistics", "neurons")),
        ("sacrebleu", lambda module: room(module) == "scoring"),
    ],
)
def test_who_imports_a_heavy_package(package, allowed):
    importers = {m for m, names in IMPORTS.items() if any(name.split(".")[0] == package for name in names)}
    assert importers
    assert not {module for module in importers if not allowed(module)}


@pytest.mark.slow
def test_the_core_runs_where_fairseq_cannot_be_imported():
    core = sorted(
        m
        for m in MODULES
        if (room(m) in WITHOUT_FAIRSEQ and m != FAIRSEQ_IN_MODULES) or m.startswith(BACKENDS_WITHOUT_FAIRSEQ)
    )
    code = (
        "import importlib, sys\n"
        "sys.modules.update(dict.fromkeys(('fairseq', 'fairseq_cli', 'omegaconf', 'hydra')))\n"  # None: cannot be imported
        f"for name in {core}: importlib.import_module(f'neuron_spec.{{name}}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_method_is_light():
    code = (
        "import sys, neuron_spec.neurons.selection, neuron_spec.neurons.overlap, neuron_spec.modules.specialized_ffn;"
        "heavy = {'fairseq', 'matplotlib', 'sacrebleu', 'omegaconf'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
