"""The evidence: one file per question. `mri-n2n benchmark NAME` runs it and writes its table.

To add one: a module here with a docstring that states the question and `run(data, output, docs, quick) -> str` that
returns a Markdown table with its remarks, and one line in `BENCHMARKS`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from mri_n2n.errors import UserError

BENCHMARKS = (
    "weights",
    "methods",
    "ablation",
    "deepinv",
    "robustness",
    "targets",
    "raw",
    "coils",
    "step",
)


def listing() -> str:
    """One line per benchmark: its name and its question."""
    return "\n".join(
        f"{name:<10} {(import_module(f'mri_n2n.benchmarks.{name}').__doc__ or '').splitlines()[0]}"
        for name in BENCHMARKS
    )


def run(name: str, *, data: Path | None, output: Path, docs: Path | None, quick: bool) -> str:
    """Run one benchmark; finished parts found in `output` are used again. Returns, and with `docs` writes, its section."""
    from mri_n2n.benchmarks.common import heading, write_section

    if name not in BENCHMARKS:
        raise UserError(f"unknown benchmark {name!r}; choose one of {', '.join(BENCHMARKS)}")
    module = import_module(f"mri_n2n.benchmarks.{name}")
    section = heading(name, module.__doc__ or "", quick, data is not None) + module.run(data, output, docs, quick)
    if docs is not None:
        write_section(docs / "benchmarks.md", name, section)
    return section
