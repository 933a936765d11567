"""Do two acquisitions show the same object: one gain, one phase, no shift and no turn between them?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mri_n2n.fourier import fft2c, ifft2c

# Samples within this many of the centre, with at least this share of the largest magnitude, are compared.
CENTRE, STRONG = 16, 0.03
FEWEST = 12
FAINT = 0.03  # a slice whose largest sample is below this share of the scan's largest holds too little to compare
# A difference is one where it is larger than this many standard errors, and than these limits: gain, phase (radians), shift (pixels), turn
# (degrees; reconstructions that are wrong about the centre seem turned by up to 0.9).
ERRORS, GAIN, PHASE, SHIFT, TURN = 4.0, 0.02, 0.05, 0.1, 1.0


@dataclass(frozen=True)
class Agreement:
    """second = gain exp(i phase) * first, turned about the middle (degrees, from y towards x, of square pixels; small ones) and shifted
    by (y, x) pixels, and the standard errors of gain, phase, shift and turn. None of it where they have too few strong samples in
    common (`told` is False)."""

    gain: float = 1.0
    phase: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    turn: float = 0.0
    errors: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)
    told: bool = False

    @property
    def is_turned(self) -> bool:
        return abs(self.turn) > max(TURN, ERRORS * self.errors[-1])

    @property
    def differences(self) -> list[str]:
        """What is beyond the limits and beyond chance, in words."""
        of_gain, of_phase, of_y, of_x, _ = (ERRORS * error for error in self.errors)
        found = []
        if abs(self.gain - 1) > max(GAIN, of_gain):
            found.append(f"a gain of {self.gain:.4g}")
        if abs(self.phase) > max(PHASE, of_phase):
            found.append(f"a phase of {self.phase:.2f} radians")
        if abs(self.shift[0]) > max(SHIFT, of_y) or abs(self.shift[1]) > max(SHIFT, of_x):
            found.append(f"a shift of {self.shift[0]:.2f} pixels along y, {self.shift[1]:.2f} along x")
        if self.is_turned:
            found.append(f"a turn by about {abs(self.turn):.1f} degrees")
        return found


def faint(first: Tensor, second: Tensor, largest: float) -> bool:
    """Whether both k-spaces (coils, y, x) hold next to nothing beside the largest sample of their scan, as an empty slice does: their noise
    agrees in nothing, and says nothing of what lies elsewhere."""
    return max(first.abs().max().item(), second.abs().max().item()) < FAINT * largest


def agreement(first: Tensor, second: Tensor, mask: Tensor) -> Agreement:
    """Of k-space (coils, y, x) where both were sampled, mask (y, x).

    The phase of second conj(first) is phase - 2 pi (ky dy / Ny + kx dx / Nx) for a shift by (dy, dx): weighted least squares,
    weights |first|^2 of the strong samples about the centre, after the nearest whole pixel by cross-correlation. The turn is that
    to first order, (x d/dy - y d/dx) of the image of the samples about the centre, fitted to what is left. Standard errors from what
    is left, as white; that of the turn says nothing of what makes it too small: maps of several coils that do not turn with the object
    (about 0.8 of it is found), few samples about the centre (0.6 of it under 10x lines) and much noise.
    """
    y, x = mask.shape
    axes = [torch.arange(n, dtype=torch.float64) - n // 2 for n in (y, x)]
    ky, kx = torch.meshgrid(*axes, indexing="ij")
    first, second = first.to(torch.complex128), second.to(torch.complex128)
    energy = first.abs().square().sum(dim=0)
    product = (second * first.conj()).sum(dim=0)
    common = (mask > 0) & (ky.abs() <= CENTRE) & (kx.abs() <= CENTRE)
    common &= energy >= STRONG**2 * (energy * common).max()
    if common.sum() < FEWEST or not energy[common].sum() > 0:
        return Agreement()
    whole = ifft2c(product * common).abs()
    at = int(whole.argmax())
    shift = torch.tensor([at // x - y // 2, at % x - x // 2], dtype=torch.float64)
    waves = torch.stack([ky[common] / y, kx[common] / x], dim=1) * (-2 * math.pi)
    weight = energy[common]
    turned = product[common] * torch.polar(torch.ones_like(weight), -(waves @ shift))
    phase = turned.sum().angle()
    for _ in range(3):
        turned = product[common] * torch.polar(torch.ones_like(weight), -(waves @ shift) - phase)
        design = torch.cat([torch.ones(len(weight), 1, dtype=torch.float64), waves], dim=1)
        normal = design.mT @ (weight[:, None] * design)
        # Phases by their sine, weighted by |first|^2: imaginary part over gain.
        gain = turned.real.sum() / weight.sum()
        step = torch.linalg.lstsq(normal, design.mT @ (turned.imag / gain.clamp_min(1e-12))).solution
        phase, shift = phase + step[0], shift + step[1:]
    model = gain * first[:, common] * torch.polar(torch.ones_like(weight), waves @ shift + phase)
    left = second[:, common] - model
    variance = left.abs().square().mean() / 2  # of the real and of the imaginary part
    spread = (variance / gain.square() * torch.linalg.pinv(normal).diagonal()).sqrt().tolist()
    of_gain = (variance / weight.sum()).sqrt().item()
    near = (mask > 0) & (ky.abs() <= CENTRE) & (kx.abs() <= CENTRE)
    turning = _turning(near * first, ky, kx)[:, common] * torch.polar(gain.expand_as(weight), waves @ shift + phase)
    turn, of_turn = _fitted_turn(left, model, turning, waves)
    turns = math.remainder(phase.item(), 2 * math.pi)
    return Agreement(gain.item(), turns, tuple(shift.tolist()), turn, (of_gain, *spread, of_turn), told=True)


def _turning(kspace: Tensor, ky: Tensor, kx: Tensor) -> Tensor:
    """By how much k-space (coils, y, x) changes where its image is turned about the middle, from y towards x, per radian."""
    y, x = kspace.shape[-2:]
    of_y, of_x = (ifft2c(2j * math.pi * k / n * kspace) for k, n in ((ky, y), (kx, x)))
    return fft2c(kx * of_y - ky * of_x)  # the grid of pixels is that of the frequencies


def _fitted_turn(left: Tensor, model: Tensor, turning: Tensor, waves: Tensor) -> tuple[float, float]:
    """(turn, its standard error) in degrees: least squares of `left` (coils, n), jointly with small changes of gain, phase and shift."""
    columns = [model, 1j * model, 1j * waves[:, 0] * model, 1j * waves[:, 1] * model, turning]
    design = torch.stack([torch.view_as_real(one).flatten() for one in columns], dim=1)
    design, size = design / (norms := torch.linalg.vector_norm(design, dim=0).clamp_min(1e-30)), norms[-1]
    wanted = torch.view_as_real(left).flatten()
    inverse = torch.linalg.pinv(design.mT @ design)
    solution = inverse @ (design.mT @ wanted)
    variance = (wanted - design @ solution).square().sum() / max(len(wanted) - len(columns), 1)
    to_degrees = 180 / math.pi / size
    return (solution[-1] * to_degrees).item(), ((variance * inverse[-1, -1]).sqrt() * to_degrees).item()
