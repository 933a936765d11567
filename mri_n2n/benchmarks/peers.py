"""What noise is taken away with elsewhere, where it is installed: BM3D, also of correlated noise and of counts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

OfRealImage = Callable[[np.ndarray], np.ndarray]  # (y, x) -> (y, x)


def installed(package: str) -> ModuleType | None:
    """The module, or None and a warning."""
    try:
        return import_module(package)
    except ImportError:
        warnings.warn(f"{package} is not installed, and what it does is left out", stacklevel=2)
        return None


def part_by_part(noisy: Tensor, method: OfRealImage) -> Tensor:
    """A method for real images, on real and imaginary part of each complex image (slices, y, x)."""
    found = [[method(one.numpy()) for one in (image.real, image.imag)] for image in noisy]
    return torch.stack([torch.complex(*(torch.from_numpy(np.float32(part)) for part in parts)) for parts in found])


def blurred_spectrum(shape: tuple[int, int], widths: tuple[float, float]) -> np.ndarray:
    """Power spectrum (y, x) of white noise blurred by a Gaussian of `widths` (y, x) pixels, cyclically: frequency zero first, of
    mean 1, which leaves the variance of the noise as it was."""
    y, x = (np.exp(-((2 * math.pi * width * np.fft.fftfreq(n)) ** 2)) for n, width in zip(shape, widths, strict=True))
    spectrum = y[:, None] * x[None, :]
    return spectrum / spectrum.mean()


def bm3d_of(deviation: float, spectrum: np.ndarray | None = None) -> OfRealImage | None:
    """BM3D (Dabov et al. 2007; for correlated noise Makinen, Azzari, Foi 2020) for noise of a standard deviation: white, or
    of a power spectrum (y, x) of mean 1, frequency zero first. None where it is not installed."""
    bm3d = installed("bm3d")
    if bm3d is None:
        return None
    if not hasattr(np, "trapz"):  # NumPy 2.4 no longer has this name, which bm4d 4.2, on which bm3d stands, asks for
        np.trapz = np.trapezoid
    # It takes E|FFT of the noise|^2, whose mean over frequencies is the number of pixels times the variance.
    noise = deviation if spectrum is None else spectrum.size * deviation**2 * spectrum
    return lambda one: bm3d.bm3d(one, noise)


def bm3d_of_counts(peak: float) -> OfRealImage | None:
    """BM3D for counts divided by `peak`, which the Anscombe transform gives noise of standard deviation 1."""
    of_stable = bm3d_of(1.0)
    return of_stable and (lambda one: from_anscombe(of_stable(anscombe(peak * one))) / peak)


def anscombe(counts: np.ndarray) -> np.ndarray:
    """2 (n + 3/8)^(1/2): of counts n the standard deviation is nearly 1, whatever their mean (Anscombe 1948)."""
    return 2 * np.sqrt(np.asarray(counts, np.float64) + 3 / 8)


def from_anscombe(stable: np.ndarray) -> np.ndarray:
    """The mean of counts whose Anscombe transform has this mean, not the count whose transform it is: the exact unbiased inverse in
    its closed form (Makitalo and Foi, IEEE TIP 20, 2697-2698, 2011)."""
    d = np.maximum(stable, 2 * math.sqrt(3 / 8))  # that of no counts at all
    root = math.sqrt(3 / 2)
    return np.maximum(d**2 / 4 + root / (4 * d) - 11 / (8 * d**2) + 5 * root / (8 * d**3) - 1 / 8, 0)
