"""Images as text for a page: rounded to equal steps, predicted, deflated, in base64; as fine as the size of the page allows.

Why not PNG: 8 bits are too coarse for windows, and 16 bits in the channels of a PNG pass a browser's colour management and
the multiplication by alpha, which may change them. Numbers that a script inflates (DecompressionStream, in browsers since 2023)
arrive as they were sent. Each pixel is predicted from its left and upper neighbours (the median predictor of LOCO-I, Weinberger,
Seroussi, Sapiro, IEEE TIP 9, 2000), and what remains is folded to 0, 1, 2 ... for 0, -1, 1 ..., and split into high and low bytes.
Of a T1-weighted brain that takes 4.1 bits a pixel at 4096 levels, 2.2 at 256 (zero-filled at 10x: 8.1 and 4.0), deflated PNG-like
(left neighbour) 4.4 and 2.4 (9.2 and 4.8). Slices are separate, so that a page inflates those that are looked at.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

# Each is coarser by the root of two: 12 bits, those of most scanners, to 7. Coarser is worse than fewer slices.
LEVELS = (4096, 2896, 2048, 1448, 1024, 724, 512, 362, 256, 181, 128)
SAMPLED = 12  # slices by which the size of all is told beforehand


@dataclass(frozen=True)
class Steps:
    """Value = low + step * q, q in 0..levels - 1: how a layer was rounded, to half a step."""

    low: float
    step: float


@dataclass(frozen=True)
class Encoded:
    """slices: the numbers of those that are there. steps, texts: of each layer; a text of each of its slices that is there."""

    levels: int
    slices: tuple[int, ...]
    steps: tuple[Steps, ...]
    texts: tuple[tuple[str, ...], ...]


def encode(volumes: Sequence[np.ndarray], limit: int) -> Encoded:
    """Volumes (slice, y, x) of one shape in at most `limit` characters: at the finest of `LEVELS`, where the coarsest is too large
    of every second, third ... slice, the middle one among them; at least that one.
    """
    count = len(volumes[0])
    for every in range(1, count + 1):
        slices = tuple(range(count // 2 % every, count, every))
        some = slices[:: max(1, len(slices) // SAMPLED)]
        for levels in LEVELS:
            steps = [steps_of(volume, levels) for volume in volumes]
            # a little is added, as other slices may hold more than those that were tried
            expected = sum(len(t) for t in _texts(volumes, steps, some)) * 1.02 * len(slices) / len(some)
            if expected > limit and (len(slices) > 1 or levels > LEVELS[-1]):
                continue
            texts = list(_texts(volumes, steps, slices))
            if sum(map(len, texts)) <= limit or (len(slices) == 1 and levels == LEVELS[-1]):
                of_layers = tuple(tuple(texts[i :: len(volumes)]) for i in range(len(volumes)))
                return Encoded(levels, slices, tuple(steps), of_layers)
    raise AssertionError("one slice is always taken")


def _texts(volumes: Sequence[np.ndarray], steps: Sequence[Steps], slices: Iterable[int]) -> Iterable[str]:
    """Slice by slice, of each the layers."""
    for index in slices:
        for volume, one in zip(volumes, steps, strict=True):
            yield encode_slice(volume[index], one)


def steps_of(volume: np.ndarray, levels: int) -> Steps:
    """From its least value, or zero where that is above, to its largest."""
    low, high = min(0.0, float(volume.min())), float(volume.max())
    return Steps(low, (high - low) / (levels - 1))


def encode_slice(image: np.ndarray, steps: Steps) -> str:
    """(y, x) as base64 of the deflated high bytes, then low bytes, of what the prediction leaves."""
    levels = (image.astype(np.float64) - steps.low) / (steps.step or 1.0)
    q = np.rint(levels).astype(np.int32)
    padded = np.pad(q, ((1, 0), (1, 0)))
    left, above, corner = padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
    # max and min of the neighbours at an edge, else the plane through the three
    plane = np.clip(left + above - corner, np.minimum(left, above), np.maximum(left, above))
    rest = q - plane
    folded = np.where(rest < 0, -2 * rest - 1, 2 * rest).astype(np.uint16)
    return deflated((folded >> 8).astype(np.uint8).tobytes() + (folded & 255).astype(np.uint8).tobytes())


def encode_mask(mask: np.ndarray) -> str:
    """(y, x) bool, eight to a byte, the first in the highest bit."""
    return deflated(np.packbits(mask).tobytes())


def deflated(data: bytes) -> str:
    """As zlib's format, in base64."""
    squeezed = zlib.compressobj(6, zlib.DEFLATED, 15, 9, zlib.Z_FILTERED)
    return base64.b64encode(squeezed.compress(data) + squeezed.flush()).decode("ascii")
