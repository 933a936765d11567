"""Brain-like ellipse phantoms whose k-space is known in closed form, coils and phase included.

Lengths are in fields of view, frequencies in cycles per field of view. The Fourier transform of an ellipse is a Bessel
function (Van de Walle et al., IEEE TMI 19, 2000; Koay et al., MRM 58, 2007); a coil sensitivity times phase that is a
short Fourier series only shifts and adds it (Guerquin-Kern et al., IEEE TMI 31, 2012).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import j1
from torch import Generator, Tensor

from mri_n2n.fourier import mirror_axes

# The series of coils and phase repeats after this many fields of view, so that opposite edges need not match.
PERIOD = 2.0
_ORDERS = (-1, 0, 1)


@dataclass(frozen=True)
class Ellipse:
    """Uniform ellipse: centre (y, x), semi-axes (y, x), rotation in radians, intensity added inside."""

    center: tuple[float, float]
    axes: tuple[float, float]
    angle: float
    intensity: float


def random_head(generator: Generator) -> list[Ellipse]:
    """A randomised head: scalp, skull, brain, ventricles, grey nuclei, small lesions and vessels; intensities about 0..1."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    tilt, cy, cx = uniform(-0.3, 0.3), uniform(-0.04, 0.04), uniform(-0.04, 0.04)
    ay, ax = uniform(0.36, 0.43), uniform(0.27, 0.34)
    sine, cosine = np.sin(tilt), np.cos(tilt)

    def inside(y: float, x: float, semi_y: float, semi_x: float, angle: float, intensity: float) -> Ellipse:
        # (y, x) in units of the head's own axes, turned with the head.
        dy, dx = y * ay, x * ax
        center = (cy + cosine * dy + sine * dx, cx - sine * dy + cosine * dx)
        return Ellipse(center, (semi_y * ay, semi_x * ax), tilt + angle, intensity)

    scalp, skull, brain = uniform(0.7, 1.0), uniform(0.05, 0.2), uniform(0.45, 0.7)
    head = [
        inside(0, 0, 1.0, 1.0, 0, scalp),
        inside(0, 0, 0.93, 0.92, 0, skull - scalp),
        inside(uniform(-0.02, 0.02), 0, 0.87, 0.84, 0, brain - skull),
    ]
    contrast = uniform(-0.3, 0.3)
    for side in (-1, 1):
        head.append(
            inside(
                uniform(-0.1, 0.1),
                side * uniform(0.15, 0.2),
                uniform(0.2, 0.35),
                uniform(0.06, 0.12),
                side * uniform(0.1, 0.4),
                -uniform(0.2, 0.4),
            )
        )
        head.append(
            inside(
                uniform(-0.1, 0.2),
                side * uniform(0.35, 0.45),
                uniform(0.12, 0.2),
                uniform(0.08, 0.14),
                side * uniform(-0.4, 0.4),
                contrast,
            )
        )
    for _ in range(18):
        r, around = 0.74 * uniform(0.0, 1.0) ** 0.5, uniform(0, 2 * np.pi)
        head.append(
            inside(
                r * np.sin(around),
                r * np.cos(around),
                uniform(0.015, 0.1),
                uniform(0.015, 0.1),
                uniform(0, np.pi),
                uniform(-0.25, 0.25),
            )
        )
    return head


def ellipse_kspace(ellipse: Ellipse, ky: np.ndarray, kx: np.ndarray) -> np.ndarray:
    """Continuous Fourier transform of one ellipse at (ky, kx) cycles per field of view; its value at 0 is area * intensity."""
    ay, ax = ellipse.axes
    sine, cosine = np.sin(ellipse.angle), np.cos(ellipse.angle)
    radius = np.hypot(ay * (cosine * ky - sine * kx), ax * (sine * ky + cosine * kx))
    with np.errstate(invalid="ignore", divide="ignore"):
        jinc = np.where(radius > 1e-9, j1(2 * np.pi * radius) / radius, np.pi)
    shift = np.exp(-2j * np.pi * (ky * ellipse.center[0] + kx * ellipse.center[1]))
    return ellipse.intensity * ay * ax * jinc * shift


def random_series(coils: int, generator: Generator, *, real: bool) -> np.ndarray:
    """Coefficients (coils, 3, 3) of sum c_mn exp(2 pi i (m y + n x) / PERIOD): coil sensitivity times phase.

    real: all ones (one coil, no phase). One coil otherwise: smooth phase, magnitude 1 or a little more. Several: coils around
    the head, each bright on its own side.
    """
    series = np.zeros((coils, 3, 3), dtype=np.complex128)
    series[:, 1, 1] = 1.0
    if real:
        return series

    def complex_normal(*shape: int) -> np.ndarray:
        pair = torch.randn((2, *shape), generator=generator, dtype=torch.float64).numpy()
        return (pair[0] + 1j * pair[1]) / np.sqrt(2)

    if coils == 1:
        # A skew part c_{-m} = -conj(c_m) turns the phase and, to first order, leaves the magnitude alone.
        wobble = 0.25 * complex_normal(3, 3)
        series[0] += (wobble - wobble[::-1, ::-1].conj()) / 2
        return series
    angle = 2 * np.pi * np.arange(coils) / coils + 2 * np.pi * torch.rand((), generator=generator).item()
    order = np.array(_ORDERS)
    for coil, around in enumerate(angle):
        # A raised cosine along each axis, its top moved towards the coil by 0.6 of the half field of view.
        top_y, top_x = 0.3 * np.sin(around), 0.3 * np.cos(around)
        wave_y = np.array([0.5, 1.0, 0.5]) * np.exp(-2j * np.pi * order * top_y / PERIOD)
        wave_x = np.array([0.5, 1.0, 0.5]) * np.exp(-2j * np.pi * order * top_x / PERIOD)
        series[coil] = np.outer(wave_y, wave_x) / 2 * np.exp(1j * around)
    return series + 0.08 * complex_normal(coils, 3, 3)


def evaluate_series(series: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The coil sensitivities (coils, y, x) that `random_series` describes, at pixel centres."""
    y, x = ((np.arange(n) - n // 2) / n for n in shape)
    wave_y, wave_x = (np.exp(2j * np.pi * np.outer(_ORDERS, axis) / PERIOD) for axis in (y, x))
    return np.einsum("cmn,my,nx->cyx", series, wave_y, wave_x)


def phantom_kspace(
    shape: tuple[int, int],
    coils: int = 1,
    generator: Generator | None = None,
    *,
    real: bool = True,
    head: list[Ellipse] | None = None,
) -> Tensor:
    """Fully sampled noise-free k-space (coils, y, x) complex64 of a random head, centred, in the orthonormal convention.

    The reference image is its inverse FFT: it shows the truncation (Gibbs) ringing that any scan of this size shows.
    real: no phase (one coil only); the k-space is then Hermitian, the Nyquist row and column of even sizes included.
    """
    if real and coils > 1:
        raise ValueError("several coils have complex sensitivities; use real=False")
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    head = random_head(generator) if head is None else head
    series = random_series(coils, generator, real=real)
    ky, kx = (np.arange(n) - n // 2 for n in shape)
    total = np.zeros((coils, *shape), dtype=np.complex128)
    for m, order_y in enumerate(_ORDERS):
        for n, order_x in enumerate(_ORDERS):
            if np.any(series[:, m, n]):
                at = np.meshgrid(ky - order_y / PERIOD, kx - order_x / PERIOD, indexing="ij")
                total += series[:, m, n, None, None] * sum(ellipse_kspace(e, *at) for e in head)
    # Orthonormal DFT of samples at spacing 1/n approximates the integral times sqrt(ny nx).
    kspace = torch.from_numpy(total * np.sqrt(shape[0] * shape[1]))
    if real:
        # A sample on the Nyquist edge of an even size stands for +k and -k at once; a real image has their mean there.
        kspace = (kspace + mirror_axes(kspace, (-2, -1)).conj()) / 2
    return kspace.to(torch.complex64)
