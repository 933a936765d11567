"""Is the noise of an image independent from pixel to pixel? Measured before anything is trained on that assumption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

AXES = ("z", "y", "x")
# The largest lag, in pixels, that is looked at along each axis.
LAGS = 8
# A correlation is one where it is larger than this, and than four standard errors.
LEAST = 0.1
# Blocks of this side are ranked by what is in them.
BLOCK = 8
# Noise is what has at most this many times the energy of the quietest blocks (the twentieth part), in the image and in what a
# high-pass leaves of it, whose few independent pixels scatter more. Background is at least this share of all blocks.
PLATEAU, HIGH_PASSED_PLATEAU, BACKGROUND = 2.5, 5.0, 0.1
FEWEST_BLOCKS = 16
FAR_CORRELATION = 0.2
OTHER_NOISE = (
    "the noise is correlated along several axes, as interpolation or coil combination leave it: a blind spot cannot tell it "
    "from the image. Better: a second repetition with train --method noise2noise, or the raw k-space"
)


@dataclass(frozen=True)
class Whiteness:
    """correlation: of noise at lags 1, 2 ... along z, y and x, where there is more than one pixel. where: what it was
    measured in. reach: for each axis (z, y, x) the largest lag at which noise is correlated. deviation: the standard
    deviation of the complex noise, root of E|n|^2, also that which magnitudes were taken of; of real images with negative values
    that of the real noise; in the image's units, and of a high-passed image if the noise is white. verdict: "white"; "line", correlated
    along one axis of the slices; "other"; "unknown", where there is no noise to look at."""

    correlation: dict[str, tuple[float, ...]]
    where: Literal["background", "high-pass residual", "nothing"]
    reach: tuple[int, int, int]
    deviation: float
    verdict: Literal["white", "line", "other", "unknown"]


def measure_whiteness(images: np.ndarray) -> Whiteness:
    """Of the noise in images (slices, y, x), real or complex; where none is negative, magnitudes.

    In the background, the blocks that have nearly as little energy as the quietest, if they are a tenth of all, as noise
    alone has it; else in the blocks that have as little of what the second differences [1, -2, 1] along both axes leave of
    the image (Immerkaer, CVIU 64, 1996), whose own correlation white noise is given too. Pixels that are exactly zero are no
    noise: a mask or padding.
    """
    images = images.astype(np.complex128 if np.iscomplexobj(images) else np.float64)
    magnitude = np.isrealobj(images) and images.min(initial=0) >= 0
    energies, whole = _block_energies(np.abs(images) ** 2, images != 0)
    background = _background(energies, whole)
    if background is not None:
        pixels = _pixels(background, images.shape)
        noise = images - images[pixels].mean() if magnitude else images
        # Magnitudes of noise alone: E m^2 = v.
        deviation = float(np.mean(np.abs(images[pixels]) ** 2) ** 0.5)
        found = _judged(noise, pixels, "background", None, deviation)
        if all(np.mean(found.correlation.get(axis, (0,))[-3:]) < FAR_CORRELATION for axis in "yx"):
            return found  # noise forgets in a few pixels; dark tissue does not
    residual = _high_passed(images)
    known = ndimage.binary_erosion(images != 0, np.ones((1, 3, 3), bool))
    energies, whole = _block_energies(np.abs(residual) ** 2, known)
    if whole.sum() < FEWEST_BLOCKS:
        return Whiteness({}, "nothing", (0, 0, 0), 0.0, "unknown")
    pixels = _pixels(_quiet(energies, whole, HIGH_PASSED_PLATEAU), images.shape)
    # Where there is signal the noise of magnitudes is that of one of two parts.
    deviation = float(np.mean(np.abs(residual[pixels]) ** 2) ** 0.5) * (2**0.5 if magnitude else 1)
    return _judged(residual, pixels, "high-pass residual", _white_high_passed(), deviation)


def described(whiteness: Whiteness) -> str:
    """In a few words."""
    if whiteness.verdict == "unknown":
        return "no noise found to look at"
    level = f"standard deviation {whiteness.deviation:.4g}, measured in the {whiteness.where}"
    along = [axis for axis, reach in zip("zyx", whiteness.reach) if reach]
    return f"{level}, " + (f"correlated along {' and '.join(along)}" if along else "white")


def _block_energies(energy: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean energy of each block (slices, rows, columns), infinite where a pixel is not known; where all are)."""
    slices, y, x = energy.shape
    rows, columns = y // BLOCK, x // BLOCK
    grid = lambda a: a[:, : rows * BLOCK, : columns * BLOCK].reshape(slices, rows, BLOCK, columns, BLOCK)  # noqa: E731
    whole = grid(known).all(axis=(2, 4))
    return np.where(whole, grid(energy).mean(axis=(2, 4)), np.inf), whole


def _background(energies: np.ndarray, whole: np.ndarray) -> np.ndarray | None:
    """Which blocks are noise alone, or None."""
    if whole.sum() < FEWEST_BLOCKS:
        return None
    quiet, found = _quiet(energies, whole, PLATEAU), energies[whole]
    enough = quiet.sum() > max(FEWEST_BLOCKS, BACKGROUND * whole.sum())
    return quiet if enough and np.percentile(found, 5) < found.mean() / 4 else None


def _quiet(energies: np.ndarray, whole: np.ndarray, plateau: float) -> np.ndarray:
    """Which blocks have nearly as little energy as the quietest."""
    return whole & (energies <= plateau * np.percentile(energies[whole], 5))


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


def _white_high_passed() -> np.ndarray:
    """Correlation of white noise at lags 1 ... after the second difference along that axis."""
    return np.array([-4 / 6, 1 / 6] + [0.0] * (LAGS - 2))


def _judged(
    noise: np.ndarray, pixels: np.ndarray, where: str, expected: np.ndarray | None, deviation: float
) -> Whiteness:
    variance = np.mean(np.abs(noise[pixels]) ** 2)
    if not variance > 0:
        return Whiteness({}, "nothing", (0, 0, 0), 0.0, "unknown")
    correlation, reach = {}, []
    for axis, name in enumerate(AXES):
        found, far, lags = [], 0, min(LAGS, noise.shape[axis] - 1)
        for lag in range(1, lags + 1):
            both = _shifted(pixels, axis, lag)
            count = both.sum()
            if count < 100:
                break
            first, second = (np.moveaxis(noise, axis, 0)[part] for part in (slice(None, -lag), slice(lag, None)))
            product = (first * second.conj()).real[both].mean() / variance
            product -= expected[lag - 1] if expected is not None and axis else 0.0
            found.append(float(product))
            # Real noise has one number in a pixel, complex two; filtered noise counts for less than its pixels.
            error = (1 if np.isrealobj(noise) else 0.5**0.5) * (3 if expected is not None else 1) / count**0.5
            if abs(product) > max(LEAST, 4 * error):
                far = lag
        if found:
            correlation[name] = tuple(round(value, 4) for value in found)
        reach.append(far)
    z, y, x = reach
    verdict = "white" if not any(reach) else "line" if not z and bool(y) != bool(x) else "other"
    return Whiteness(correlation, where, (z, y, x), deviation, verdict)


def _shifted(pixels: np.ndarray, axis: int, lag: int) -> np.ndarray:
    """Where both a pixel and the one `lag` farther along the axis are of these; the axis first."""
    pixels = np.moveaxis(pixels, axis, 0)
    return pixels[:-lag] & pixels[lag:]
