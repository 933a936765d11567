"""NMSE, PSNR and SSIM of magnitude images, as fastMRI defines them.

The numbers come from `fastmri.evaluate`'s own functions, so they compare with published ones; this module adds input
checks and the scores of every slice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mri_n2n.errors import InputError

DEFINITION = {
    "nmse": "sum |reconstruction - reference|^2 / sum |reference|^2",
    "psnr": "10 log10(peak^2 / mean squared error) in dB",
    "ssim": "structural similarity, uniform 7x7 window, K1 = 0.01, K2 = 0.03, range = peak; volume: mean over slices",
    "peak": "largest value of the reference volume (after cropping, if any), for its slices too",
    "directory": "mean and sample standard deviation over volumes",
    "source": "fastmri.evaluate",
}

METRICS = ("nmse", "psnr", "ssim")
SSIM_WINDOW = 7


@dataclass(frozen=True)
class Score:
    """nmse: a ratio, NaN where the reference is zero everywhere; psnr: dB, infinite when equal; ssim: at most 1."""

    nmse: float
    psnr: float
    ssim: float


@dataclass(frozen=True)
class VolumeScore:
    """The scores of one reconstruction.

    name, reference: file names without directories. shape: (slices, y, x) that was compared.
    peak: largest value of the reference. cropped: True when both were centre-cropped as fastMRI does.
    simulated: True when the file says its k-space was made from an image, None when it does not say.
    group: acquisition and acceleration, by which fastMRI's leaderboard is sorted, as the reference's file states them.
    """

    name: str
    reference: str
    shape: tuple[int, int, int]
    peak: float
    volume: Score
    slices: tuple[Score, ...]
    cropped: bool = False
    simulated: bool | None = None
    group: str | None = None


def nmse(reference, reconstruction) -> float:
    """Normalised mean squared error of real arrays (slice, y, x) or (y, x); `fastmri.evaluate.nmse`.

    InputError: shapes differ, complex or non-finite values, a reference without any positive value.
    """
    reference, reconstruction, _ = _checked(reference, reconstruction)
    return _nmse(reference, reconstruction)


def psnr(reference, reconstruction, peak: float | None = None) -> float:
    """Peak signal-to-noise ratio in dB of real arrays (slice, y, x) or (y, x); `fastmri.evaluate.psnr`.

    peak: same unit as the images; the largest value of `reference` when None. Infinite when both are equal.
    InputError: as `nmse`.
    """
    reference, reconstruction, peak = _checked(reference, reconstruction, peak)
    return _psnr(reference, reconstruction, peak)


def ssim(reference, reconstruction, peak: float | None = None) -> float:
    """Structural similarity of real arrays (slice, y, x) or (y, x), mean over slices; `fastmri.evaluate.ssim`.

    peak: same unit as the images; the largest value of `reference` when None.
    InputError: as `nmse`; and slices smaller than the 7x7 window.
    """
    reference, reconstruction, peak = _checked(reference, reconstruction, peak)
    _check_window(reference)
    return _ssim(reference, reconstruction, peak)


def psnr_per_slice(reference: np.ndarray, images: np.ndarray) -> np.ndarray:
    """In dB, (slices,), of magnitudes (slices, y, x) clamped to [0, 1], peak 1, as Lehtinen et al. 2018."""
    error = np.square(np.clip(images, 0, 1) - np.clip(reference, 0, 1)).mean(axis=(1, 2))
    return -10 * np.log10(np.maximum(error, 1e-12))


def evaluate_arrays(
    reference, reconstruction, name: str = "reconstruction", reference_name: str = "reference"
) -> VolumeScore:
    """Every score of one volume (slice, y, x), or of one slice (y, x), with the volume's peak for all its slices.

    A slice whose reference is zero everywhere has NMSE NaN; its PSNR and SSIM are defined by the volume's peak.
    InputError: as `ssim`.
    """
    reference, reconstruction, peak = _checked(reference, reconstruction)
    _check_window(reference)
    slices = tuple(
        Score(_nmse(r[None], x[None]), _psnr(r[None], x[None], peak), _ssim(r[None], x[None], peak))
        for r, x in zip(reference, reconstruction, strict=True)
    )
    # fastMRI's SSIM of a volume is this mean; NMSE and PSNR are of the volume as a whole.
    mean_ssim = float(np.mean([s.ssim for s in slices]))
    volume = Score(_nmse(reference, reconstruction), _psnr(reference, reconstruction, peak), mean_ssim)
    return VolumeScore(name, reference_name, reference.shape, peak, volume, slices)


def crop_as_fastmri(reference: np.ndarray, reconstruction: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Both arrays (slice, y, x) at one size, and whether they were cropped.

    Equal shapes are compared whole. A smaller reference is handled as fastMRI's evaluation does: both are
    centre-cropped to a square of the reference's last dimension (its references lack the readout oversampling that the
    k-space has).
    InputError: anything else that does not fit.
    """
    if reference.shape == reconstruction.shape:
        return reference, reconstruction, False
    y, x = reference.shape[-2:]
    smaller = y <= reconstruction.shape[-2] and x <= reconstruction.shape[-1]
    if reference.shape[:-2] != reconstruction.shape[:-2] or not smaller or y < x:
        raise InputError(
            f"sizes (slices, y, x) do not fit: reconstruction {reconstruction.shape}, reference {reference.shape};"
            " expected equal ones, or a smaller reference with y >= x that both are centre-cropped to;"
            " is this the right reference, and the right slice axis?"
        )
    return centre_crop(reference, x), centre_crop(reconstruction, x), True


def centre_crop(array: np.ndarray, size: int) -> np.ndarray:
    """The central size x size of the last two axes, rounded as `fastmri.data.transforms.center_crop` does."""
    top, left = ((n - size) // 2 for n in array.shape[-2:])
    return array[..., top : top + size, left : left + size]


def _checked(reference, reconstruction, peak: float | None = None) -> tuple[np.ndarray, np.ndarray, float]:
    """Both arrays as (slice, y, x) of one float type, and the peak; InputError when a metric has no meaning."""
    arrays = []
    for name, value in (("reference", reference), ("reconstruction", reconstruction)):
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise InputError(f"{name} must be a real (magnitude) image; got {array.dtype}")
        if array.ndim not in (2, 3) or array.size == 0:
            raise InputError(f"{name} must have axes (slice, y, x) or (y, x), none empty; got shape {array.shape}")
        if not np.isfinite(array).all():
            raise InputError(f"{name} holds NaN or infinite values; metrics need finite images")
        arrays.append(array)
    reference, reconstruction = arrays
    if reference.shape != reconstruction.shape:
        raise InputError(f"reference {reference.shape} and reconstruction {reconstruction.shape} must have one shape")
    if peak is None:
        peak = float(reference.max())
    if not (peak > 0 and math.isfinite(peak)):
        raise InputError(
            f"the peak (the largest value of the reference) must be positive; got {peak:g}: is the reference empty?"
        )
    # float32 stays float32, which gives fastMRI's numbers to the last bit. But SSIM multiplies four intensities (and
    # 1e-7): outside this range of intensities float32 under- or overflows. Integers would wrap around when subtracted.
    both_float32 = reference.dtype == reconstruction.dtype == np.float32
    largest = max(peak, float(np.abs(reference).max()), float(np.abs(reconstruction).max()))
    dtype = np.float32 if both_float32 and peak > 1e-6 and largest < 1e6 else np.float64
    shape = (-1, *reference.shape[-2:])
    reference, reconstruction = (a.astype(dtype, copy=False).reshape(shape) for a in (reference, reconstruction))
    return reference, reconstruction, peak


def _check_window(reference: np.ndarray) -> None:
    if min(reference.shape[-2:]) < SSIM_WINDOW:
        size = f"{SSIM_WINDOW}x{SSIM_WINDOW}"
        raise InputError(f"SSIM needs slices of at least {size}; got {reference.shape[-2:]} (y, x)")


# fastmri is imported where it is used: it takes seconds.


def _nmse(reference: np.ndarray, reconstruction: np.ndarray) -> float:
    from fastmri.evaluate import nmse as fastmri_nmse

    return float(fastmri_nmse(reference, reconstruction)) if reference.any() else math.nan


def _psnr(reference: np.ndarray, reconstruction: np.ndarray, peak: float) -> float:
    from fastmri.evaluate import psnr as fastmri_psnr

    with np.errstate(divide="ignore"):  # equal images: infinite, and no warning
        return float(fastmri_psnr(reference, reconstruction, maxval=peak))


def _ssim(reference: np.ndarray, reconstruction: np.ndarray, peak: float) -> float:
    from fastmri.evaluate import ssim as fastmri_ssim

    return float(fastmri_ssim(reference, reconstruction, maxval=peak)[0])
