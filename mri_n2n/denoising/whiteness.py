"""Is the noise of an image independent from pixel to pixel? Measured before anything is trained on that assumption.

Two views have to agree before noise is called correlated. Background shows how far its correlation reaches, but dark tissue that
is taken for background looks correlated too. What a high-pass leaves of the image is free of smooth tissue, but also of the
long part of a correlation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import ndimage

from mri_n2n.denoising.rician import noise_of_moments

AXES = ("z", "y", "x")
# The largest lag, in pixels, that is looked at along each axis; noise is taken to have forgotten itself from FAR on.
LAGS, FAR = 8, 5
# A correlation is one where it is larger than this, and than four standard errors.
LEAST = 0.1
# Of the energy of noise alone, correlated too, a block's mean has at most this share (of magnitudes pi / 4 and a little more).
MOST_CONSTANT, MOST_CONSTANT_OF_MAGNITUDES = 0.4, 0.87
# Blocks of this side are ranked by what is in them.
BLOCK = 8
# Noise is what has at most this many times the energy of the quietest blocks (the twentieth part), in the image and in what a
# high-pass leaves of it and where noise is correlated, whose few independent pixels scatter more.
PLATEAU, HIGH_PASSED_PLATEAU, CORRELATED_PLATEAU = 1.5, 5.0, 2.5
# Background is at least this share of all blocks, of which the mean has this many times the energy; what has a level this many times
# that of the high-pass is tissue.
BACKGROUND, BRIGHTER, TISSUE = 0.1, 1.5, 1.1
FEWEST_BLOCKS, GROUPS = 16, 8
# Pixels below this share of the largest are zeros that went through a Fourier transform: a mask or padding, no noise.
ZERO = 1e-6
MASKED = 0.1  # share of such pixels from which an image is taken for masked

Verdict = Literal["white", "line", "other", "unknown"]


@dataclass(frozen=True)
class Whiteness:
    """correlation: of noise at lags 1, 2 ... along z, y and x, where there is more than one pixel; where it was measured in the
    high-pass residual, what is more than white noise has there. reach: for each axis (z, y, x) the largest lag at which noise is
    correlated. deviation: the standard deviation of the complex noise, root of E|n|^2, also that which
    magnitudes were taken of; of real images with negative values that of the real noise; in the image's units; None where it
    cannot be told."""

    correlation: dict[str, tuple[float, ...]]
    where: Literal["background", "high-pass residual", "nothing"]
    reach: tuple[int, int, int]
    deviation: float | None

    def verdict(self, dimensions: int = 2) -> Verdict:
        """For a network that sees slices (2) or volumes (3): "line", correlated along one of their axes; "other", along several;
        "unknown", where there is no noise to look at."""
        if self.where == "nothing":
            return "unknown"
        along = len(self.along(dimensions))
        return "white" if not along else "line" if along == 1 else "other"

    def along(self, dimensions: int = 2) -> list[str]:
        """The axes along which noise is correlated, of those that a network sees."""
        return [axis for axis, lag in zip(AXES[-dimensions:], self.reach[-dimensions:]) if lag]


NOTHING = Whiteness({}, "nothing", (0, 0, 0), None)


def measure_whiteness(images: np.ndarray) -> Whiteness:
    """Of the noise in images (slices, y, x), real or complex; where none is negative, magnitudes.

    In the background, the blocks that have nearly as little energy as the quietest, if they are a tenth of all, by the
    variogram, which does not see what is constant over a few pixels; and in the blocks that have as little of what the second
    differences [1, -2, 1] along both axes leave of the image (Immerkaer, CVIU 64, 1996), against the correlation that white noise
    has there. Noise is correlated where both say so.
    """
    images = images.astype(np.complex128 if np.iscomplexobj(images) else np.float64)
    magnitude = np.isrealobj(images) and images.min(initial=0) >= 0
    known = np.abs(images) > ZERO * np.abs(images).max(initial=0)
    residual = _in_residual(images, known, magnitude)
    energies, whole = _block_energies(np.abs(images) ** 2, known)
    background = _in_background(images, energies, whole, magnitude)
    if background is None or residual is None:
        return residual or NOTHING
    reach = tuple(lag if also else 0 for lag, also in zip(background.reach, residual.reach))
    if known.mean() <= 1 - MASKED:  # zeros leave little background: dark tissue beside them looks like correlated noise
        # What slices have in common is detail in the residual, of which the level is too large then.
        return replace(residual, reach=reach, deviation=None if any(reach) else residual.deviation)
    if any(reach):
        return replace(background, reach=reach)
    deviation = _level_of_white(images, energies, whole, magnitude)
    if residual.deviation is not None and deviation > TISSUE * residual.deviation:
        deviation = residual.deviation
    return replace(background, reach=reach, deviation=deviation)


def described(whiteness: Whiteness, dimensions: int = 3) -> str:
    """In a few words, for a network that sees slices (2) or volumes (3)."""
    if whiteness.where == "nothing":
        return "no noise found to look at"
    deviation = whiteness.deviation
    level = "level unknown" if deviation is None else f"standard deviation {deviation:.4g}"
    along = whiteness.along(dimensions)
    said = f"correlated along {' and '.join(along)}" if along else "white"
    return f"{level}, measured in the {whiteness.where}, {said}"


def caution_of(whiteness: Whiteness, dimensions: int = 2) -> str | None:
    """What speaks against a blind spot for this noise, structN2V where it is correlated along one axis; None: nothing."""
    verdict = whiteness.verdict(dimensions)
    if verdict == "unknown":
        return "no noise was found to look at: whether it is independent from pixel to pixel is not known"
    along = " and ".join(whiteness.along(dimensions))
    if verdict != "white" and whiteness.where != "background":
        return (
            f"no background was found to look at; in the image itself what looks like noise is correlated along {along}, which the "
            "image's own fine detail can be too: compare with what n2v2, for white noise, makes of it"
        )
    if verdict == "other":
        return (
            f"the noise is correlated along {along}, as interpolation or coil combination leave it: a blind spot cannot tell it "
            "from the image. Better: a second repetition with train --method noise2noise, or the raw k-space"
        )
    if verdict == "line" and max(whiteness.reach[-dimensions:]) == LAGS:
        return f"the noise is correlated along {along}, perhaps farther than could be seen; then structn2v leaves some of it"
    return None


def _in_background(images: np.ndarray, energies: np.ndarray, whole: np.ndarray, magnitude: bool) -> Whiteness | None:
    """By the variogram of noise alone, D(k) = E|n(x + k) - n(x)|^2 / 2 = v (1 - Re rho(k)); None without background."""
    if whole.sum() < FEWEST_BLOCKS:
        return None
    quiet = _quiet(energies, whole, PLATEAU)
    enough = quiet.sum() > max(FEWEST_BLOCKS, BACKGROUND * whole.sum())
    if not enough or np.percentile(energies[whole], 5) * BRIGHTER > energies[whole].mean():
        return None
    pixels = _pixels(quiet, images.shape)
    variogram, imaginary, counts = {}, {}, {}
    for axis, name in enumerate(AXES):
        for _, first, second in _pairs(images, pixels, axis):
            variogram.setdefault(name, []).append(np.mean(np.abs(first - second) ** 2) / 2)
            imaginary.setdefault(name, []).append(abs(np.mean(first * second.conj()).imag))
            counts.setdefault(name, []).append(len(first))
    forgotten = [np.mean(variogram[name][FAR - 1 :]) for name in "yx" if len(variogram.get(name, ())) >= FAR]
    if not forgotten or not min(forgotten) > 0:
        return None
    constant = np.abs(_grid(images)[quiet].mean(axis=(1, 2))) ** 2 / energies[quiet]
    if constant.mean() > (MOST_CONSTANT_OF_MAGNITUDES if magnitude else MOST_CONSTANT):
        return None  # tissue
    correlation, reach = {}, []
    for name in AXES:
        real = 1 - np.array(variogram.get(name, ())) / max(forgotten)
        # What differs more than noise is signal, not a negative correlation.
        found = np.hypot(np.maximum(real, 0), np.array(imaginary.get(name, ())) / max(forgotten))
        error = (1.25 if np.iscomplexobj(images) else 1.75) / np.sqrt(counts.get(name, ()))
        # Magnitudes of noise alone have the square of its correlation.
        reach.append(_reach(found, np.maximum(LEAST**2 if magnitude else LEAST, 4 * error)))
        if len(found):
            correlation[name] = _rounded(np.sqrt(found) if magnitude else found)
    energy = energies[_quiet(energies, whole, CORRELATED_PLATEAU)].mean()
    return Whiteness(correlation, "background", tuple(reach), float(energy**0.5))


def _level_of_white(images: np.ndarray, energies: np.ndarray, whole: np.ndarray, magnitude: bool) -> float:
    """Standard deviation of white noise from its variance within quiet blocks, for that of magnitudes by their mean too."""
    blocks = _quiet(energies, whole, PLATEAU)
    inside = _grid(images)[blocks].reshape(blocks.sum(), -1)
    variance = float(inside.var(axis=1, ddof=1).mean())
    return (noise_of_moments(float(inside.mean()), variance) if magnitude else variance) ** 0.5


def _in_residual(images: np.ndarray, known: np.ndarray, magnitude: bool) -> Whiteness | None:
    """By what a high-pass leaves of the image; None without blocks to look at."""
    residual = _high_passed(images)
    energies, whole = _block_energies(np.abs(residual) ** 2, ndimage.binary_erosion(known, np.ones((1, 3, 3), bool)))
    if whole.sum() < FEWEST_BLOCKS:
        return None
    quiet = _quiet(energies, whole, HIGH_PASSED_PLATEAU)
    pixels = _pixels(quiet, images.shape)
    variance = float(np.mean(np.abs(residual[pixels]) ** 2))
    if not variance > 0:
        return None
    level, alone = variance, False
    if magnitude:
        # Blocks of like mean together: all have the noise, each its own signal. Magnitudes of noise alone have the square of
        # its correlation; those of signal and noise have it itself.
        means = _grid(images)[quiet].mean(axis=(1, 2))
        groups = np.array_split(np.argsort(means), min(GROUPS, len(means)))
        levels = [
            noise_of_moments(float(means[group].mean()), float(energies[quiet][group].mean())) for group in groups
        ]
        level = float(np.median(levels))
        alone = bool(np.median(means) ** 2 < 2 * level)
    correlation, reach = {}, []
    for axis, name in enumerate(AXES):
        pairs = list(_pairs(residual, pixels, axis))
        expected = WHITE_HIGH_PASSED if axis else np.zeros(LAGS)
        found = np.array([abs(np.mean(a * b.conj()) / variance - expected[lag - 1]) for lag, a, b in pairs])
        # Filtered noise counts for less than its pixels.
        error = 3 * np.array([(1 if np.isrealobj(a) else 0.5**0.5) / len(a) ** 0.5 for _, a, _ in pairs])
        reach.append(_reach(found, np.maximum(LEAST**2 if alone else LEAST, 4 * error)))
        if len(found):
            correlation[name] = _rounded(found)
    deviation = None if any(reach[1:]) else level**0.5  # of correlated noise the high-pass takes an unknown part
    return Whiteness(correlation, "high-pass residual", tuple(reach), deviation)


def _reach(correlation: np.ndarray, least: np.ndarray) -> int:
    """The largest lag with a correlation above `least`, 0 without one."""
    return int(np.flatnonzero(correlation > least).max(initial=-1)) + 1


def _rounded(correlation: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in correlation)


def _pairs(images: np.ndarray, pixels: np.ndarray, axis: int):
    """(lag, values, values `lag` farther along the axis) where both are of `pixels`, for all lags with a hundred."""
    images, pixels = np.moveaxis(images, axis, 0), np.moveaxis(pixels, axis, 0)
    for lag in range(1, min(LAGS, len(images) - 1) + 1):
        both = pixels[:-lag] & pixels[lag:]
        if both.sum() < 100:
            return
        yield lag, images[:-lag][both], images[lag:][both]


def _block_energies(energy: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean energy of each block (slices, rows, columns), infinite where a pixel is not known; where all are)."""
    whole = _grid(known).all(axis=(3, 4))
    return np.where(whole, _grid(energy).mean(axis=(3, 4)), np.inf), whole


def _grid(array: np.ndarray) -> np.ndarray:
    """The blocks (slices, rows, columns, BLOCK, BLOCK) that fit into (slices, y, x)."""
    slices, y, x = array.shape
    rows, columns = y // BLOCK, x // BLOCK
    inside = array[:, : rows * BLOCK, : columns * BLOCK].reshape(slices, rows, BLOCK, columns, BLOCK)
    return inside.swapaxes(2, 3)


def _quiet(energies: np.ndarray, whole: np.ndarray, plateau: float) -> np.ndarray:
    """Which blocks have nearly as little energy as the quietest: at most `plateau` times the mean of those that have at most that
    many times the energy of the twentieth part."""
    first = energies <= plateau * np.percentile(energies[whole], 5)
    return whole & (energies <= plateau * energies[whole & first].mean())


def _pixels(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The pixels of blocks."""
    pixels = np.zeros(shape, bool)
    _, rows, columns = blocks.shape
    pixels[:, : rows * BLOCK, : columns * BLOCK] = np.repeat(np.repeat(blocks, BLOCK, 1), BLOCK, 2)
    return pixels


def _high_passed(images: np.ndarray) -> np.ndarray:
    kernel = np.array([1.0, -2.0, 1.0]) / 6**0.5  # keeps the variance of white noise
    for axis in (1, 2):
        if np.iscomplexobj(images):
            images = ndimage.convolve1d(images.real, kernel, axis) + 1j * ndimage.convolve1d(images.imag, kernel, axis)
        else:
            images = ndimage.convolve1d(images, kernel, axis)
    return images


# Correlation of white noise at lags 1 ... after the second difference along that axis.
WHITE_HIGH_PASSED = np.array([-4 / 6, 1 / 6] + [0.0] * (LAGS - 2))
