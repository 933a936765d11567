"""The evidence: one file per question. `mri-n2n benchmark NAME` runs it and writes its table.

To add one: a module here with a docstring that states the question and `run(setting) -> str` that returns a Markdown table
with its remarks, and one line in `BENCHMARKS`. One that takes hours has `PARTS`, each run and written by itself, and
`run(setting, part)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from mri_n2n.errors import UserError

if TYPE_CHECKING:
    from mri_n2n.benchmarks.common import Setting

BENCHMARKS = (
    "weights",
    "methods",
    "ablation",
    "deepinv",
    "robustness",
    "noise2void",
    "corruptions",
    "budget",
    "targets",
    "raw",
    "trust",
    "selfcheck",
    "alarms",
    "population",
    "coils",
    "speed",
    "precision",
)


TIMED = (
    "methods",
    "ablation",
    "deepinv",
    "noise2void",
    "corruptions",
    "budget",
)  # those that compare trainings at equal time


def listing() -> str:
    """One line per benchmark: its name, its question and its parts."""
    lines = []
    for name in BENCHMARKS:
        module = import_module(f"mri_n2n.benchmarks.{name}")
        parts = f" ({', '.join(module.PARTS)})" if hasattr(module, "PARTS") else ""
        lines.append(f"{name:<10} {(module.__doc__ or '').splitlines()[0]}{parts}")
    return "\n".join(lines)


def check(name: str, setting: Setting, parts: Sequence[str] = ()) -> None:
    """UserError for a benchmark, a part or a time that there is not."""
    from mri_n2n.benchmarks.common import Setting

    if name not in BENCHMARKS:
        raise UserError(f"unknown benchmark {name!r}; choose one of {', '.join(BENCHMARKS)}")
    if not 0 < setting.minutes < math.inf:
        raise UserError(f"--minutes must be above zero; got {setting.minutes:g}")
    if setting.minutes != Setting.minutes and name not in TIMED:
        raise UserError(f"--minutes is of {', '.join(TIMED)}, not of {name}")
    there = getattr(import_module(f"mri_n2n.benchmarks.{name}"), "PARTS", ())
    if unknown := [part for part in parts if part not in there]:
        known = f"its parts are {', '.join(there)}" if there else "it has no parts"
        raise UserError(f"benchmark {name} has no part {unknown[0]!r}; {known}")


def run(name: str, setting: Setting, parts: Sequence[str] = ()) -> str:
    """Run one benchmark, or some of its parts; finished trainings found in the output folder are used again. Returns, and
    with `setting.docs` writes, its sections: each part as soon as it is done, beside what the document has of the others.
    Errors: those of `check`."""
    from mri_n2n.benchmarks.common import heading, how_run, write_section

    check(name, setting, parts)
    module = import_module(f"mri_n2n.benchmarks.{name}")
    there = getattr(module, "PARTS", ())
    if setting.docs is not None:
        (setting.docs / "images").mkdir(parents=True, exist_ok=True)
    title = heading(module.__doc__ or "")
    text = title
    for part in parts or there or (None,):
        found = module.run(setting) if part is None else module.run(setting, part)
        section = how_run(name, part, setting) + found
        if setting.docs is not None:
            write_section(setting.docs / "benchmarks.md", name, title, section, part, there)
        text += section
    return text
