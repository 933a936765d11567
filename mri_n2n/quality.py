"""What a validation found, for people: in a few words, and as the training curve."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mri_n2n.files import atomic_output
from mri_n2n.report import RESEARCH_USE_ONLY, line_plot

# Key in log and weights -> (what it is, its unit), in the order in which one is chosen to be shown.
SHOWN = {
    "psnr": ("PSNR", " dB"),
    "error_with_noise": ("squared error including noise", ""),
    "validation_loss": ("squared error of samples held out for validation", ""),
}

Quality = dict[str, float | None]


def in_words(quality: Quality) -> str:
    """What it is, its value and its interval, where it has one; empty of a quality without any."""
    for name, (what, unit) in SHOWN.items():
        if name in quality:
            return f"{what} {value_of(quality, name, unit)}"
    return ""


def shown(quality: Quality) -> dict[str, str]:
    """For a progress bar."""
    return {name: value_of(quality, name) for name in SHOWN if name in quality}


def value_of(quality: Quality, name: str, unit: str = "") -> str:
    """A value with its interval. None is infinite: an error that cannot be told from zero."""
    value, low, high = (quality.get(name + end) for end in ("", "_low", "_high"))
    if f"{name}_low" not in quality:
        return f"{value:.4g}{unit}"
    if low is None:
        return "beyond what can be told"
    if value is None:
        return f"at least {low:.4g}{unit}"
    return f"{value:.4g}{unit} ({low:.4g} {'or more' if high is None else f'to {high:.4g}'})"


def draw_curve(log: list[dict], figure: Path, note: str = "") -> None:
    """Write the training curve of a log over steps: its quality, with the interval as a band where there is one. Nothing without."""
    name = next((name for name in SHOWN if any(entry.get(name) is not None for entry in log)), None)
    if name is None:
        return
    entries = [entry for entry in log if name in entry]
    steps = [entry["step"] for entry in entries]
    column = lambda end: np.array([entry.get(name + end) for entry in entries], dtype=float)  # noqa: E731
    what, unit = SHOWN[name]
    estimated = np.isfinite(column("_low")).any()
    bands = {what: (column("_low"), column("_high"))} if estimated else {}
    words = "estimated without a reference, with 95% interval" if estimated else ""
    title = "   |   ".join(one for one in (words, note, RESEARCH_USE_ONLY) if one)
    with atomic_output(figure, force=True) as temporary:
        line_plot({what: (steps, column(""))}, temporary, "steps", f"{what}{',' if unit else ''}{unit}", title, bands)
