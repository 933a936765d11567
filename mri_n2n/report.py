"""PNG pictures of images and of training curves, drawn with Pillow and numpy alone.

Every function writes PNG whatever the name's suffix, and overwrites: callers that must not wrap the path in
`files.atomic_output`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from mri_n2n.acquisition import Geometry

Window = tuple[float, float]
Panel = tuple[str, np.ndarray, Window]

RESEARCH_USE_ONLY = "research use only"
ERROR_GAIN = 5
PANEL_HEIGHT = 320  # smaller images are enlarged to about this, so that titles have room
MARGIN = 12
# Okabe and Ito's colours: told apart by colour-blind readers too.
COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0), (0, 0, 0))
BACKGROUND = (36, 36, 40)  # not black, so that the edges of an image can be seen
NOT_FINITE = (255, 0, 255)  # NaN and infinite pixels are shown, not hidden


def _font(size: int) -> ImageFont.ImageFont:
    return ImageFont.load_default(size)


# ------------------------------------------------------------------------------------------------------ orientation


def _directions(geometry: Geometry | None) -> tuple[str, str] | None:
    """The directions ("L", "R", "A", "P", "S" or "I") that the (y, x) axes of a slice point to; None if unknown."""
    if geometry is None or not (geometry.qform_code or geometry.sform_code):
        return None
    import nibabel

    codes = nibabel.aff2axcodes(np.asarray(geometry.affine))
    x, y = (codes[axis] for axis in range(3) if axis != geometry.slice_axis)
    return None if x is None or y is None else (y, x)


def orient_for_display(slice2d: np.ndarray, geometry: Geometry | None) -> np.ndarray:
    """A slice (y, x) as radiologists view it: anterior or superior at the top, the patient's right on the left.

    The rule: rows are y, columns x; an axis that points to R, A or S is flipped (so it runs to L, P or I); and the two
    are swapped where that is needed to bring the S-I axis, or the A-P axis of axial slices, upright. Oblique slices go
    by the nearest direction. Without a geometry, or when its q- and sform codes are both 0, it is returned as is.
    """
    slice2d = np.asarray(slice2d)
    directions = _directions(geometry)
    if directions is None:
        return slice2d
    for axis, direction in enumerate(directions):
        if direction in "RAS":
            slice2d = np.flip(slice2d, axis)
    return slice2d.T if _swaps(directions) else slice2d


def _swaps(directions: tuple[str, str]) -> bool:
    upright = {"L": 0, "R": 0, "A": 1, "P": 1, "S": 2, "I": 2}
    y, x = directions
    return upright[x] > upright[y]


STARTS = {"R": "patient's right", "A": "anterior", "S": "superior"}
OPPOSITE = {"R": "L", "A": "P", "S": "I", "L": "R", "P": "A", "I": "S"}


def edges_of_view(geometry: Geometry | None) -> tuple[str, str] | None:
    """The letters ("R", "A" or "S") at the top and at the left of what `orient_for_display` returns; None if unknown."""
    directions = _directions(geometry)
    if directions is None:
        return None
    y, x = reversed(directions) if _swaps(directions) else directions
    return tuple(one if one in STARTS else OPPOSITE[one] for one in (y, x))


def describe_view(geometry: Geometry | None) -> str:
    """What `orient_for_display` puts where, for a caption; empty when the geometry is unknown."""
    edges = edges_of_view(geometry)
    return "" if edges is None else f"{STARTS[edges[0]]} at the top, {STARTS[edges[1]]} at the left"


def direction_of_slices(geometry: Geometry | None) -> str | None:
    """The direction ("L", "R", "A", "P", "S" or "I") in which the number of the slice grows; None if unknown."""
    if _directions(geometry) is None:
        return None
    import nibabel

    return nibabel.aff2axcodes(np.asarray(geometry.affine))[geometry.slice_axis]


def pixel_aspect(geometry: Geometry | None) -> float:
    """Height over width of a displayed pixel (of the array that `orient_for_display` returns)."""
    directions = _directions(geometry)
    if directions is None:
        return 1.0
    sizes = np.linalg.norm(np.asarray(geometry.affine, dtype=float)[:3, :3], axis=0)
    x, y = (sizes[axis] for axis in range(3) if axis != geometry.slice_axis)
    return float(x / y if _swaps(directions) else y / x)


# ----------------------------------------------------------------------------------------------------------- images


def montage(
    panels: list[Panel], path: Path | str, *, columns: int | None = None, note: str = "", aspect: float = 1.0
) -> None:
    """Write panels side by side, each with its title above and its grey-scale window below.

    panels: (title, image (rows, columns), (low, high)): low is shown black, high white, in the image's own unit;
        complex images are shown by magnitude; NaN and infinite pixels in magenta.
    columns: panels per row; all in one row up to four when None. note: text at the bottom, beside 'research use only'.
    aspect: height over width of a pixel.
    ValueError: no panel, an image that is not 2-D.
    """
    if not panels:
        raise ValueError("montage needs at least one panel")
    pictures = [_picture(image, window, aspect) for _, image, window in panels]
    titles = [title for title, _, _ in panels]
    windows = [f"window {_short(low)} to {_short(high)}" for _, _, (low, high) in panels]
    columns = min(len(panels), columns or 4)
    rows = math.ceil(len(panels) / columns)

    title_font, small = _font(18), _font(14)
    texts = [title_font.getlength(t) for t in titles] + [small.getlength(w) for w in windows]
    cell_width = math.ceil(max(*texts, *(p.width for p in pictures)))
    image_height = max(p.height for p in pictures)
    cell_height = 28 + image_height + 24
    # Notes may be longer than one narrow panel.
    footer = "   |   ".join(t for t in (note, RESEARCH_USE_ONLY) if t)
    width = max(MARGIN + columns * (cell_width + MARGIN), math.ceil(small.getlength(footer)) + 2 * MARGIN)
    canvas = Image.new("RGB", (width, MARGIN + rows * (cell_height + MARGIN) + 24), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for index, (picture, title, window) in enumerate(zip(pictures, titles, windows, strict=True)):
        row, column = divmod(index, columns)
        centre = MARGIN + column * (cell_width + MARGIN) + cell_width // 2
        top = MARGIN + row * (cell_height + MARGIN)
        draw.text((centre, top + 10), title, fill="white", font=title_font, anchor="mm")
        canvas.paste(picture, (centre - picture.width // 2, top + 28 + (image_height - picture.height) // 2))
        draw.text((centre, top + 28 + image_height + 12), window, fill=(190, 190, 190), font=small, anchor="mm")
    draw.text((MARGIN, canvas.height - 20), footer, fill=(255, 210, 90), font=small, anchor="lm")
    canvas.save(path, format="PNG")


def comparison_figure(
    reference: np.ndarray | None,
    zero_filled: np.ndarray,
    reconstruction: np.ndarray,
    path: Path | str,
    geometry: Geometry | None = None,
    note: str = "",
    given: str = "zero-filled",
) -> None:
    """Write reference, zero-filled (or what `given` calls it), reconstruction and the error times 5 of one slice, all on one
    window.

    reference, zero_filled, reconstruction: (y, x), one shape and one intensity unit; without a reference, two panels.
    The window runs from 0 to the 99.8th percentile of the reference (else of the reconstruction), so that one bright
    vessel does not darken the rest; the error is |reconstruction - reference| in a fifth of that window.
    geometry: see `orient_for_display`; pixels that are not square are shown at their true proportions.
    ValueError: shapes differ.
    """
    images = [np.abs(np.asarray(i)) for i in (reference, zero_filled, reconstruction) if i is not None]
    if len({i.shape for i in images}) != 1:
        raise ValueError(f"the images of a comparison must have one shape; got {[i.shape for i in images]}")
    high = bright(images[0] if reference is not None else images[-1])
    names = ["reference", given, "reconstruction"][-len(images) :]
    panels = [(name, image, (0.0, high)) for name, image in zip(names, images, strict=True)]
    if reference is not None:
        panels.append((f"error x{ERROR_GAIN}", np.abs(images[2] - images[0]), (0.0, high / ERROR_GAIN)))
    panels = [(title, orient_for_display(image, geometry), window) for title, image, window in panels]
    note = "   |   ".join(t for t in (note, describe_view(geometry)) if t)
    montage(panels, path, note=note, aspect=pixel_aspect(geometry))


def bright(image: np.ndarray) -> float:
    """The intensity shown white: the 99.8th percentile, so that one bright vessel does not darken the rest."""
    finite = image[np.isfinite(image)]
    high = float(np.percentile(finite, 99.8)) if finite.size else 0.0
    # a nearly empty slice: its brightest pixel, or any window when there is none
    return high if high > 0 else float(finite.max(initial=0)) or 1.0


def _picture(image: np.ndarray, window: Window, aspect: float) -> Image.Image:
    """A 2-D array as an RGB picture of about PANEL_HEIGHT rows or more, pixels `aspect` times as high as wide."""
    image = np.asarray(image)
    if image.ndim != 2 or image.size == 0:
        raise ValueError(f"a panel's image must have axes (y, x) and not be empty; got shape {image.shape}")
    if np.iscomplexobj(image):
        image = np.abs(image)
    low, high = window
    finite = np.isfinite(image)
    grey = np.where(finite, image, low).astype(np.float64)
    grey = np.clip((grey - low) / (high - low if high > low else 1.0), 0, 1)
    rgb = np.repeat(np.rint(255 * grey).astype(np.uint8)[..., None], 3, axis=2)
    rgb[~finite] = NOT_FINITE
    picture = Image.fromarray(rgb)
    # Whole-number enlargement keeps pixels as they are; pixels that are not square are stretched, never shrunk.
    scale = max(1, round(PANEL_HEIGHT / max(image.shape)))
    size = (round(picture.width * scale * max(1.0, 1 / aspect)), round(picture.height * scale * max(1.0, aspect)))
    return picture.resize(size, Image.Resampling.NEAREST if abs(aspect - 1) < 1e-3 else Image.Resampling.BICUBIC)


def _short(value: float) -> str:
    return f"{value:.4g}"


# ------------------------------------------------------------------------------------------------------------ curves


def line_plot(
    series: dict[str, tuple],
    path: Path | str,
    xlabel: str,
    ylabel: str,
    title: str = "",
    bands: dict[str, tuple] | None = None,
) -> None:
    """Write a plot of named curves, with ticks, grid and a legend.

    series: name -> (x, y), 1-D of one length each; a y that is NaN or infinite leaves a gap; single points are dots.
    bands: name of a series -> (low, high), 1-D, shown behind its curve, from point to point, and as bars at few points; ends that are not
    finite reach to the edge.
    ValueError: no finite point at all, or x and y of different lengths.
    """
    curves, bands = {}, {name: np.array(ends, dtype=float) for name, ends in (bands or {}).items()}
    for name, (x, y) in series.items():
        x, y = np.atleast_1d(np.asarray(x, dtype=float)), np.atleast_1d(np.asarray(y, dtype=float))
        if x.shape != y.shape or x.ndim != 1:
            raise ValueError(f"{name}: x and y must be 1-D and of one length; got {x.shape} and {y.shape}")
        curves[name] = np.stack([x, y], axis=1)
    finite = np.concatenate([c[np.isfinite(c).all(axis=1)] for c in curves.values()] or [np.empty((0, 2))])
    if not len(finite):
        raise ValueError("nothing to plot: no series has a finite point")
    ends = [np.stack([curves[name][:, 0], end], axis=1) for name, band in bands.items() for end in band]
    finite = np.concatenate([finite, *(end[np.isfinite(end).all(axis=1)] for end in ends)])

    scale = 2  # Pillow's lines are jagged: draw at twice the size, then halve
    font, small = _font(16 * scale), _font(14 * scale)
    left, right, top, bottom = 84 * scale, 760 * scale, 44 * scale, 434 * scale
    # The legend stands beside the plot, where it hides no curve.
    width = right + math.ceil(max(small.getlength(name) for name in curves)) + 74 * scale
    height = max(bottom + 66 * scale, top + (24 * len(curves) + 24) * scale)
    (x_low, y_low), (x_high, y_high) = _widened(finite.min(axis=0), finite.max(axis=0))
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return left + across * (right - left), bottom - up * (bottom - top)

    for name, band in bands.items():
        colour = tuple(round(255 - (255 - one) / 4) for one in COLOURS[list(curves).index(name) % len(COLOURS)])
        low, high = (np.where(np.isfinite(end), end, edge) for end, edge in zip(band, (y_low, y_high)))
        xs = curves[name][:, 0]
        edge = [place(x, y) for x, y in [*zip(xs, high), *reversed(list(zip(xs, low)))]]
        if len(xs) > 1:
            draw.polygon(edge, fill=colour)
        if len(xs) <= 40:
            for x, bottom_end, top_end in zip(xs, low, high):
                draw.line([place(x, bottom_end), place(x, top_end)], fill=colour, width=6 * scale)

    for value, label in _ticks(x_low, x_high):
        px = place(value, y_low)[0]
        draw.line([(px, top), (px, bottom)], fill=(228, 228, 228), width=scale)
        draw.line([(px, bottom), (px, bottom + 6 * scale)], fill="black", width=scale)
        draw.text((px, bottom + 10 * scale), label, fill="black", font=small, anchor="mt")
    for value, label in _ticks(y_low, y_high):
        py = place(x_low, value)[1]
        draw.line([(left, py), (right, py)], fill=(228, 228, 228), width=scale)
        draw.line([(left - 6 * scale, py), (left, py)], fill="black", width=scale)
        draw.text((left - 10 * scale, py), label, fill="black", font=small, anchor="rm")
    draw.rectangle([left, top, right, bottom], outline="black", width=scale)
    draw.text(((left + right) / 2, bottom + 44 * scale), xlabel, fill="black", font=font, anchor="mm")
    draw.text(((left + right) / 2, top / 2), title, fill="black", font=font, anchor="mm")
    sideways = Image.new("L", (bottom - top, 28 * scale), 0)
    ImageDraw.Draw(sideways).text((sideways.width / 2, sideways.height / 2), ylabel, fill=255, font=font, anchor="mm")
    sideways = sideways.rotate(90, expand=True)
    canvas.paste((0, 0, 0), (2 * scale, top), sideways)

    for index, (name, points) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        for run in _finite_runs(points):
            pixels = [place(x, y) for x, y in run]
            if len(pixels) > 1:
                draw.line(pixels, fill=colour, width=2 * scale, joint="curve")
            if len(pixels) == 1 or len(points) <= 40:
                for px, py in pixels:
                    r = 3 * scale
                    draw.ellipse([px - r, py - r, px + r, py + r], fill=colour)
        middle = top + (12 + 24 * index) * scale
        draw.line([(right + 18 * scale, middle), (right + 48 * scale, middle)], fill=colour, width=3 * scale)
        draw.text((right + 56 * scale, middle), name, fill="black", font=small, anchor="lm")
    canvas.resize((width // scale, height // scale), Image.Resampling.LANCZOS).save(path, format="PNG")


def _widened(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Limits a little wider than the data, and never of zero width."""
    span = np.where(high > low, high - low, np.maximum(np.abs(high), 1.0))
    return low - 0.03 * span, high + 0.05 * span


def _ticks(low: float, high: float, count: int = 7) -> list[tuple[float, str]]:
    """Round numbers (1, 2 or 5 times a power of ten) from low to high, with labels that tell them apart."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    values = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    largest = max(map(abs, values), default=0.0)
    if largest >= 1e6 or 0 < largest < 1e-3:
        return [(v, f"{v:.3g}") for v in values]
    return [(v, f"{v:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}") for v in values]


def _finite_runs(points: np.ndarray) -> list[np.ndarray]:
    """Pieces of a curve (n, 2) between the points that are not finite."""
    finite = np.isfinite(points).all(axis=1)
    edges = np.flatnonzero(np.diff(finite.astype(int))) + 1
    return [piece for piece in np.split(points, edges) if len(piece) and np.isfinite(piece[0]).all()]
