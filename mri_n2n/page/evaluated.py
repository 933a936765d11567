"""An evaluated reconstruction as a page: against a reference, or judged by further acquisitions."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mri_n2n.coils import combine
from mri_n2n.errors import OptionError, OutputError
from mri_n2n.evaluation import Evaluation, read_pair
from mri_n2n.files import atomic_output, check_free, one_line, sha256_of, stem
from mri_n2n.formats import detect, open_scan, read_result
from mri_n2n.formats.result import FORMAT as RESULT
from mri_n2n.fourier import ifft2c
from mri_n2n.masks import is_along
from mri_n2n.metrics import DEFINITION, METRICS, Score, centre_crop
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.page.build import page_html
from mri_n2n.page.citations import cited
from mri_n2n.page.contents import Page, Section, Table
from mri_n2n.page.reconstructed import NO_ERROR_MAP, Given, layers_of, sections_of
from mri_n2n.resample import crop_or_pad
from mri_n2n.trust.error_estimate import CONFIDENCE, Estimate
from mri_n2n.trust.second_acquisition import Judged, Quality, open_result

NO_SIDECAR = (
    "no sidecar of this result lies beside it: warnings, methods and provenance of the reconstruction are not known"
)
NO_SCAN = "The scan that the image was made of does not lie beside the files given, so its zero-filled image and its sampling are not shown."
SEVERAL = "The scan holds several repetitions, so its zero-filled image and its sampling are not shown."
# What a page takes from a sidecar; one of another version may lack some.
NEEDED = ("software", "input", "output_sha256", "matrix", "image_matrix", "measured_share", "acquired", "warnings", "virtual_coils", "combination")  # fmt: skip


def check_page(path: Path, inputs: Sequence[Path], force: bool) -> None:
    """OptionError for a page of directories, or of another suffix than .html; OutputError when it exists and not `force`, or is
    an input or the sidecar of one."""
    if folders := [one.name for one in inputs if one.is_dir()]:
        raise OptionError(f"--report is of one reconstruction file, and {folders[0]} is a directory")
    if path.suffix.lower() not in (".html", ".htm"):
        raise OptionError(f"--report writes HTML; {one_line(path)} should end in .html")
    for one in (*inputs, *map(_sidecar_path, inputs)):
        if path.exists() and one.exists() and path.samefile(one):
            raise OutputError(f"{one_line(path)} is an input itself; give --report another name")
    check_free(path, force)


def write_page(path: Path, page: Page, force: bool) -> None:
    """Complete or not at all. Errors: OutputError."""
    with atomic_output(path, force) as temporary:
        temporary.write_text(page_html(page), encoding="utf-8")


def page_of_scores(reconstruction: Path, reference: Path, axis: int, evaluation: Evaluation) -> Page:
    """Of what `evaluate_files` found of two files."""
    [score] = evaluation.volumes
    pair = read_pair(reconstruction, reference, axis)
    sidecar, given, missing = _found(reconstruction, [reference])
    if given is not None and pair.cropped:
        given = replace(given, zero_filled=centre_crop(given.zero_filled, pair.reference.shape[-1]))
    about = [f"{name.upper()}: {DEFINITION[name]}." for name in METRICS] + [
        f"Peak: {DEFINITION['peak']}; here {score.peak:.4g}."
    ]
    if pair.cropped:
        about.append("Both were centre-cropped to the reference's last dimension, as fastMRI does.")
    head = ("NMSE", "PSNR (dB)", "SSIM")
    tables = (
        Table(("", *head), (("volume", *_cells(score.volume)),)),
        Table(("slice", *head), tuple((str(i), *_cells(one)) for i, one in enumerate(score.slices)), of_slices=3),
    )
    sentence = (
        "The magnitude was compared with that of the fully sampled reference by normalised mean squared error, peak signal-to-noise "
        f"ratio and structural similarity as fastMRI defines them {cited('fastmri')}."
    )
    return _page(
        reconstruction,
        pair.simulated,
        pair.geometry,
        layers_of(pair.reconstruction, given, pair.reference),
        given,
        Section("Error against the reference", tuple(about), tables),
        sections_of(sidecar, pair.geometry, [("reference sha256", sha256_of(reference))], sentence),
        sidecar,
        missing,
    )


def page_of_judgement(reconstruction: Path, second: Path, third: Path | None, judged: Judged) -> Page:
    """Of what `judge` found."""
    images, _, geometry = read_result(reconstruction)
    others = [second] if third is None else [second, third]
    sidecar, given, missing = _found(reconstruction, others)
    sure = f"{CONFIDENCE:.0%}"
    volume = judged.volume.psnr
    about = [
        f"Estimated from {'a second acquisition' if third is None else 'a second and a third acquisition'} of the same object that had "
        "no part in the image; no reference was used. It is the error of the complex image; that of the magnitude is at most as large.",
        f"Read: if the object were known exactly, the image would be found to have a PSNR of about {_number(volume.value, 1)} dB; "
        f"{sure} of such intervals contain the truth. The interval is the chance of sampling mask and noise of this scan.",
        f"PSNR is by the image's own largest magnitude, {judged.peak:.4g}; NMSE over the image's own energy; the root of the MSE is in "
        f"the file's units. Noise: standard deviation {judged.level:.4g} of a sample, {judged.noise}.",
    ]
    if judged.coverage < 0.9995:  # or it reads 100.0%
        about.append(f"It speaks of {judged.coverage:.1%} of k-space, where samples could be drawn.")
    head = ("PSNR (dB)", f"{sure} interval", "NMSE", f"{sure} interval", "root of MSE")
    tables = (
        Table(("", *head), (("volume", *_estimates(judged.volume)),)),
        Table(("slice", *head), tuple((str(i), *_estimates(one)) for i, one in enumerate(judged.slices)), of_slices=2),
    )
    sentence = (
        f"The error of the complex image was estimated from {len(others)} further acquisition{'s' * (len(others) > 1)} without a "
        f"reference{_estimator(second)}, with {sure} intervals for the chance of sampling and noise."
    )
    names = ("second acquisition sha256", "third acquisition sha256")
    more = [(name, sha256_of(path)) for name, path in zip(names, others)]
    return _page(
        reconstruction,
        judged.simulated,
        geometry,
        layers_of(images, given, None),
        given,
        Section("Error, estimated without a reference", tuple(about), tables),
        sections_of(sidecar, geometry, more, sentence),
        sidecar,
        (NO_ERROR_MAP, *missing),
    )


def _page(reconstruction, simulated, geometry, layers, given, error, sections, sidecar, missing) -> Page:
    known = NO_SIDECAR if sidecar is None else None
    simulated = simulated or (sidecar is not None and sidecar["input"]["simulated"])
    cautions = (known,) if known else tuple(sidecar["warnings"])
    masks = None if given is None else given.masks
    return Page(stem(reconstruction), simulated, geometry, layers, masks, (error, *sections), cautions, missing)


def _estimator(second: Path) -> str:
    """What it is cited by, which the sampling of the second acquisition says."""
    scan = open_scan(second)
    mask = scan.read(scan.shape[0] // 2, scan.shape[0] // 2 + 1).mask
    if mask.all():
        return ""
    lines = is_along(mask, -2) or is_along(mask, -1)
    return f" {cited('horvitz-thompson', *(['hajek'] if lines else []))}"


# ------------------------------------------------------------------------------------ what lies beside the files given


def _found(reconstruction: Path, others: Sequence[Path]) -> tuple[dict | None, Given | None, tuple[str, ...]]:
    """(sidecar, the scan it speaks of, what is to be said where that is not there). Both are known by their hashes: a sidecar of
    another file, or another scan of the same name, is left alone."""
    sidecar = _sidecar_of(reconstruction)
    if sidecar is None or detect(reconstruction) != RESULT:
        return sidecar, None, (NO_SCAN,)
    name = Path(sidecar["input"]["name"]).name
    folders = dict.fromkeys(path.absolute().parent for path in (*others, reconstruction))
    candidates = [*others, *(folder / name for folder in folders)]
    wanted = sidecar["input"]["sha256"]
    path = next((one for one in candidates if one.is_file() and one.name == name and sha256_of(one) == wanted), None)
    if path is None or sidecar["input"]["format"] == "nifti":
        return sidecar, None, (NO_SCAN,)
    scan = open_scan(path, sidecar["input"]["format"])
    if scan.repetitions > 1:
        return sidecar, None, (SEVERAL,)
    with open_result(reconstruction) as result:
        mixing, matrix = result.mixing, result.shape[1:]
    images, masks = [], []
    for index in range(scan.shape[0]):
        one = scan.read(index, index + 1)
        kspace = one.kspace if mixing is None else combine(mixing, one.kspace)
        images.append(root_sum_of_squares(crop_or_pad(ifft2c(kspace), *matrix)).numpy())
        masks.append((one.mask[:, 0] > 0).numpy())
    kind = "noisy" if "denoise" in sidecar else "zero-filled"
    return sidecar, Given(np.concatenate(images), np.concatenate(masks), kind), ()


def _sidecar_path(path: Path) -> Path:
    return path.with_name(f"{stem(path)}.json")


def _sidecar_of(reconstruction: Path) -> dict | None:
    """The sidecar beside a result, if it is of this very file."""
    path = _sidecar_path(reconstruction)
    try:
        sidecar = json.loads(path.read_bytes())
        of = sidecar["output_sha256"].get(reconstruction.name)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return sidecar if of == sha256_of(reconstruction) and all(name in sidecar for name in NEEDED) else None


# ---------------------------------------------------------------------------------------------------------- numbers


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "not defined" if math.isnan(value) else "unlimited"


def _cells(score: Score) -> tuple[str, ...]:
    return _number(score.nmse, 5), _number(score.psnr, 2), _number(score.ssim, 4)


def _estimates(quality: Quality) -> tuple[str, ...]:
    psnr, nmse, mse = quality.psnr, quality.nmse, quality.mse.value
    root = f"{math.sqrt(mse):.4g}" if mse > 0 else "too small to tell"
    return _number(psnr.value, 2), _psnr_between(psnr), _number(nmse.value, 5), _nmse_between(nmse), root


def _psnr_between(one: Estimate) -> str:
    return (
        f"{_number(one.low, 2)} to {_number(one.high, 2)}"
        if math.isfinite(one.high)
        else f"{_number(one.low, 2)} or more"
    )


def _nmse_between(one: Estimate) -> str:
    """A squared error below zero is none that can be told from zero."""
    return f"{_number(one.low, 5)} to {_number(one.high, 5)}" if one.low > 0 else f"at most {_number(one.high, 5)}"
