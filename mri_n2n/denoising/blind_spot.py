"""The blind spot of Noise2Void: pixels hidden from the network, which then has to predict them from their surroundings.

Where noise is independent from pixel to pixel and has zero mean, the noisy value of a hidden pixel is an unbiased target
for it (Krull, Buchholz, Jug, CVPR 2019). What a hidden pixel is replaced by must not depend on its own value, nor, since
the network sees the surroundings of all, on that of any other hidden pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor

from mri_n2n.errors import OptionError


@dataclass(frozen=True)
class BlindSpot:
    """How pixels are hidden. share: of the pixels, about, one in each box of n pixels a side, n^axes near 1 / share (stratified).
    window: side of the square or cube around a pixel that its replacement comes from; None: 11 in a plane, 5 in a volume; along
    axes with a span it reaches beyond it. rule: "uniform", one of the visible pixels of the window
    (Noise2Void), or "median", theirs (N2V2; Hoeck, Buchholz, Brachmann, Jug, Freytag, ECCV workshops 2022).
    span: along each axis, last one last, how many pixels on either side of it are hidden with a pixel, but not predicted
    (structN2V; Broaddus, Krull, Weigert, Schmidt, Myers, ISBI 2020): as far as noise is correlated; () for none.
    """

    share: float = 0.06
    window: int | None = None
    rule: Literal["uniform", "median"] = "median"
    span: tuple[int, ...] = ()


# Of the pixels at most this share is hidden with spans: the more, the less is left to predict from.
MOST_HIDDEN = 0.2


def reaching(spot: BlindSpot, reach: tuple[int, ...]) -> BlindSpot:
    """structN2V for noise that is correlated at lags up to `reach` along each axis: one more is hidden, for what is left of the
    correlation, and fewer pixels are predicted."""
    span = tuple(lag and lag + 1 for lag in reach)
    return replace(spot, span=span, share=min(spot.share, MOST_HIDDEN / (1 + 2 * sum(span))))


def box_side(share: float, axes: int) -> int:
    """Of the boxes in which one pixel is hidden each."""
    return max(2, round(share ** (-1 / axes)))


def windows_of(spot: BlindSpot, axes: int) -> tuple[int, ...]:
    """The sides of the window along each axis."""
    window = spot.window or (11 if axes == 2 else 5)
    return tuple(max(window, 2 * span + 3) if span else window for span in spot.span or (0,) * axes)


def hide(images: Tensor, spot: BlindSpot, generator: Generator) -> tuple[Tensor, Tensor]:
    """(images with hidden pixels, which of them are to be predicted) of images (batch, channels, [z,] y, x).

    The second is (batch, 1, [z,] y, x), 1 at the pixels that are to be predicted, else 0. Channels, such as real and
    imaginary part, are hidden together. Errors: OptionError where a window has no visible pixel.
    """
    size = tuple(images.shape[2:])
    spans = spot.span or (0,) * len(size)
    if len(spans) != len(size):
        raise OptionError(f"the span of a blind spot has one number for each of {len(size)} axes; got {spot.span}")
    predicted = torch.stack([_one_in_each_box(size, spot.share, generator) for _ in images])
    hidden = _spread(predicted, spans)
    places = hidden.nonzero()  # (n, 1 + axes): image, position
    result = images.clone()
    if len(places):
        windows = windows_of(spot, len(size))
        values, visible = _surroundings(images, hidden, places, windows)
        if not visible.any(dim=1).all():
            raise OptionError(
                f"a window of {' x '.join(map(str, windows))} pixels around a hidden one shows no other pixel; widen it or hide fewer"
            )
        replaced = _drawn(values, visible, generator) if spot.rule == "uniform" else _median(values, visible)
        result[(places[:, 0], slice(None), *places[:, 1:].T)] = replaced
    return result, predicted[:, None].to(images.dtype)


def _one_in_each_box(size: tuple[int, ...], share: float, generator: Generator) -> Tensor:
    """Boolean, of `size`: a random pixel of each box of a grid, which begins at random; boxes reach over the edge, so that
    every pixel is chosen with the same probability."""
    side = min(box_side(share, len(size)), 2 * max(size))
    corners = torch.stack(
        torch.meshgrid(*(torch.arange(-(-n // side) + 1) * side for n in size), indexing="ij"), dim=-1
    ).reshape(-1, len(size))
    begin = torch.randint(side, (len(size),), generator=generator)
    points = corners - begin + torch.randint(side, corners.shape, generator=generator)
    inside = ((points >= 0) & (points < torch.tensor(size))).all(dim=1)
    chosen = torch.zeros(size, dtype=torch.bool)
    chosen[tuple(points[inside].T)] = True
    return chosen


def _spread(predicted: Tensor, spans: tuple[int, ...]) -> Tensor:
    """With the pixels on either side along each axis: a cross about each of them."""
    hidden = predicted.clone()
    for axis, span in enumerate(spans, start=1):
        n = predicted.shape[axis]
        for step in range(1, min(span, n - 1) + 1):
            hidden.narrow(axis, step, n - step).logical_or_(predicted.narrow(axis, 0, n - step))
            hidden.narrow(axis, 0, n - step).logical_or_(predicted.narrow(axis, step, n - step))
    return hidden


def _surroundings(images: Tensor, hidden: Tensor, places: Tensor, windows: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(values (n, pixels, channels), visible (n, pixels)) in the windows about `places`."""
    size = torch.tensor(hidden.shape[1:])
    offsets = torch.cartesian_prod(*(torch.arange(n) - n // 2 for n in windows)).reshape(-1, len(size))
    around = places[:, None, 1:] + offsets
    inside = ((around >= 0) & (around < size)).all(dim=-1)
    around = torch.minimum(around.clamp_min(0), size - 1)
    index = (places[:, :1].expand(inside.shape), *around.unbind(-1))
    return images.movedim(1, -1)[index], inside & ~hidden[index]


def _drawn(values: Tensor, visible: Tensor, generator: Generator) -> Tensor:
    """One of the visible values (n, channels) of each window, each as likely."""
    lot = torch.rand(visible.shape, generator=generator) * visible + visible
    return values[torch.arange(len(values)), lot.argmax(dim=1)]


def _median(values: Tensor, visible: Tensor) -> Tensor:
    return values.masked_fill(~visible[..., None], math.nan).nanmedian(dim=1).values
