"""Installation; `pip install .` on Python 3.11 and 3.12."""

import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "neuron_spec" / "__init__.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)
WHEELS = "python_version >= '3.11' and python_version < '3.13' and sys_platform == 'linux' and platform_machine == 'x86_64'"
ELSEWHERE = "python_version < '3.11' or python_version >= '3.13' or sys_platform != 'linux' or platform_machine != 'x86_64'"


class BuildWithShared(build_py):
    """The package with what neuron_spec/shared.py names, which lies beside it in a checkout."""

    def run(self) -> None:
        super().run()
        folders = runpy.run_path(str(HERE / "neuron_spec" / "shared.py"))["FOLDERS"]
        for folder in () if self.editable_mode else folders:
            target = Path(self.build_lib) / "neuron_spec" / "share" / folder
            shutil.copytree(
                HERE / folder, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
            )


setup(
    name="neuron_spec",
    cmdclass={"build_py": BuildWithShared},
    version=VERSION,
    description="Specialized neurons for multilingual machine translation on fairseq",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["neuron_spec", "neuron_spec.*"]),
    package_data={
        "neuron_spec": [
            "languages.csv",
            "corpora/ec30.csv",
            "corpora/toy.json",
            "pages/page.css",
            "pages/page.js",
            "py.typed",
        ]
    },
    entry_points={"console_scripts": ["neuron-spec = neuron_spec.cli.main:main"]},
    install_requires=[
        # fairseq 0.12.2 itself neither imports nor installs on Python 3.11: these are its code, repaired.
        f"ve-fairseq==0.12.3; {WHEELS}",
        f"fairseq-fixed==0.12.3.1; {ELSEWHERE}",
        "torch>=2.6",
        "numpy>=1.26",
        "scipy>=1.11",
        "sacrebleu>=2.4",
        "sentencepiece>=0.2",
        "safetensors>=0.4",
        "matplotlib>=3.8",
        "pyyaml>=6",
        "tqdm>=4.66",
        "langcodes>=3.5",
    ],
    extras_require={
        "official-scoring": ["sacremoses>=0.1"],
        "export": ["ctranslate2>=4.5"],
        "huggingface": ["transformers[torch]>=5", "datasets>=3"],
        "comparison": ["peft>=0.17"],  # of scripts/huggingface/comparison.py, beside huggingface
        "tracking": [
            "tensorboard>=2.10",
            "wandb>=0.15",
        ],  # for fairseq's --tensorboard-logdir, --wandb-project
        "analysis": [],  # scipy alone, which is installed anyway
        "mutants": ["mutmut>=3.8", "coverage>=7.10"],
        "docs": ["sphinx>=8", "furo>=2024.8", "myst-nb>=1.2", "jupytext>=1.16"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.7",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "mypy>=1.14",
            "ctranslate2>=4.5",
            "sacremoses>=0.1",
            "transformers[torch]>=5",
            "datasets>=3",
            "types-PyYAML",
            "types-tqdm",
        ],
    },
)
