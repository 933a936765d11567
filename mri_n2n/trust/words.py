"""What was judged, as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mri_n2n.trust import error_bars
from mri_n2n.trust.error_estimate import CONFIDENCE, Estimate, Quality, quality_of
from mri_n2n.trust.population import Population
from mri_n2n.trust.second_acquisition import Judged
from mri_n2n.trust.self_check import FEW_SCORES, FULL, Checked, SelfCheck


def to_json(judged: Judged | Population) -> dict:
    """As plain numbers; what JSON has no number for is None."""
    if isinstance(judged, Judged):
        return {
            "name": judged.name,
            "second_acquisition": judged.second,
            "third_acquisition": judged.third,
            "image": "complex",
            "interval": "scan",
            "confidence": CONFIDENCE,
            "peak": judged.peak,
            "coverage": round(judged.coverage, 6),
            "noise": judged.noise,
            "noise_deviation": judged.level,
            "simulated": judged.simulated,
            **_plain(judged.volume),
            "per_slice": [{"slice": index, **_plain(one)} for index, one in enumerate(judged.slices)],
            "note": "research use only",
        }
    return {
        "interval": "population",
        "confidence": CONFIDENCE,
        "image": "complex",
        **({} if judged.quality is None else _plain(judged.quality)),
        "scans": [to_json(one) for one in judged.scans],
        "without_second_acquisition": list(judged.alone),
        "note": "research use only",
    }


def checked_facts(
    checked: Checked, peak: float, energies: Sequence[float], *, estimates: bool, bars: bool
) -> tuple[dict, list[str]]:
    """(what the sidecar says, warnings) of a scan's check of itself. peak: the image's largest magnitude; energies: mean square of each
    slice of it. estimates, bars: what was asked for."""
    facts: dict = {}
    if checked.error is not None:
        facts["self_check"] = _error_facts(checked.error, peak, energies)
    if checked.bars is not None:
        found = checked.bars
        facts["uncertainty"] = {
            "confidence": error_bars.CONFIDENCE,
            "coverage": found.coverage,
            "tested_samples": found.tested,
            "factors": [_number(one) for one in found.factors],
            "edges": list(found.edges),
        }
    said, why = [], "; ".join(checked.silence)
    if checked.silence and estimates:
        facts["self_check"] = facts.get("self_check", {}) | {"says_nothing": list(checked.silence)}
        said += [f"the scan cannot check its own reconstruction: {one}" for one in checked.silence if one != FULL]
    if bars and checked.bars is None:
        said.append(f"no error bars are written: {why or FEW_SCORES}")
    elif bars and checked.silence:
        said.append(f"the error bars are calibrated on samples that say little of those that were not taken: {why}")
    if checked.error is not None and checked.error.noise:
        said.append("the noise level is not known, so the self-check's error has the noise of the samples in it")
    if checked.error is not None and checked.error.assumed:
        said.append(
            "the sampling probability is not stored; the self-check estimated it from the masks, which its interval does not know of"
        )
    if checked.error is not None and (few := [index for index, one in enumerate(checked.error.slices) if one is None]):
        said.append(
            f"the self-check says nothing of {len(few)} slices, which are empty or have too few samples to hold out"
        )
    return facts, said


def _error_facts(error: SelfCheck, peak: float, energies: Sequence[float]) -> dict:
    whole = quality_of(error.mse, peak, sum(energies) / len(energies))
    each = [
        None if one is None else quality_of(one, peak, energy)
        for one, energy in zip(error.slices, energies, strict=True)
    ]
    return {
        "of": "k-space locations that were not sampled, where samples could have been drawn",
        "confidence": CONFIDENCE,
        **_plain(whole),
        "measured": round(error.measured, 6),
        "spoken_for": round(error.spoken_for, 6),
        "silent": round(error.silent, 6),
        "noise": "included" if error.noise else "removed",
        "probability": "estimated from the masks" if error.assumed else "stored",
        "extrapolated": round(error.extrapolated, 6),
        "per_slice": [{"slice": index, **({} if one is None else _plain(one))} for index, one in enumerate(each)],
    }


def self_check_line(facts: dict) -> str:
    """Of a sidecar's `self_check`, in a line."""
    if "psnr" not in facts:
        return f"self-check: says nothing ({'; '.join(facts['says_nothing'])})"
    value, low, high = (
        "unlimited" if facts["psnr"][end] is None else f"{facts['psnr'][end]:.2f}" for end in ("value", "low", "high")
    )
    said = f"self-check: what was not sampled, {facts['spoken_for']:.1%} of k-space, leaves a PSNR of {value} dB ({low} to {high}), were the rest exact"
    said += f"; nothing is known of {facts['silent']:.1%}" if facts["silent"] >= 0.0005 else ""
    return said + ("; with the noise of the samples" if facts["noise"] == "included" else "")


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(quality: Quality) -> dict:
    return {
        name: {end: _number(getattr(getattr(quality, name), end)) for end in ("value", "low", "high")}
        for name in ("mse", "psnr", "nmse")
    }


def format_table(judged: Judged | Population) -> str:
    """As plain text."""
    if isinstance(judged, Judged):
        slices = [(f"slice {index}", one) for index, one in enumerate(judged.slices)] if len(judged.slices) > 1 else []
        rows, scans = [("volume", judged.volume), *slices], (judged,)
        about = [
            f"Estimated from {' and '.join(filter(None, (judged.second, judged.third)))}, without a reference: error of the complex image (that of the magnitude is at most as "
            f"large), peak {judged.peak:.4g}, its own largest magnitude. The interval is the chance of mask and noise; "
            f"noise: standard deviation {judged.level:.4g} of a sample, {judged.noise}."
        ]
    else:
        rows, scans = [(one.name, one.volume) for one in judged.scans], judged.scans
        rows += [] if judged.quality is None else [("mean", judged.quality)]
        about = [
            "Estimated from second acquisitions, without a reference: error of the complex images, peak their own largest magnitude. Intervals of "
            "scans are the chance of their acquisition's mask and noise, that of the mean is over scans like these (bootstrap; of few scans too narrow)."
        ]
        about += [f"Without a second acquisition: {', '.join(judged.alone)}."] if judged.alone else []
    width = max(10, *(len(name) for name, _ in rows))
    lines = [f"{'':{width}}  {'PSNR (dB)':>10}  {f'{CONFIDENCE:.0%} interval':>20}  {'NMSE':>10}"]
    lines += [
        f"{name:{width}}  {one.psnr.value:10.2f}  {_between(one.psnr):>20}  {one.nmse.value:10.5f}"
        for name, one in rows
    ]
    coverage = min(scan.coverage for scan in scans)
    if coverage < 0.9995:  # or it reads 100.0%
        about.append(f"It speaks of {coverage:.1%} of k-space, where samples could be drawn.")
    if any(scan.simulated for scan in scans):
        about.append("Simulated k-space: made from images, not measured.")
    return "\n".join([*lines, "", *about])


def _between(one: Estimate) -> str:
    return f"{one.low:.2f} to {one.high:.2f}"
