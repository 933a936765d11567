"""What a page shows: layers of images that lie on each other, and sections of words and numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mri_n2n.acquisition import Geometry


@dataclass(frozen=True)
class Layer:
    """Images (slice, y, x) of real numbers, finite, in the scan's orientation; about: what they are, in a sentence.

    own_scale: shown in colours from zero to its largest value, as a map of something else than intensity; else in greys,
    with the window that all images have.
    """

    name: str
    images: np.ndarray
    about: str
    own_scale: bool = False


@dataclass(frozen=True)
class Difference:
    """The layer called `first` minus that called `second`, which the page takes from these: blue below zero, orange above."""

    name: str
    first: str
    second: str
    about: str


@dataclass(frozen=True)
class Table:
    """head: of the columns. rows: as many cells each. of_slices: row i is of slice i, beside which the page shows that many columns
    after the first."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    of_slices: int = 0


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order. points: a list, such as references."""

    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    points: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """name: of the scan, a file's stem. Layers have one shape; at first the first lies left of the divider, the second right.

    masks: (slices or 1, y, x) bool, where k-space was sampled; None: not known. cautions: what a reader must see before
    the images. missing: what could be expected beside the images and is not there, in sentences.
    """

    name: str
    simulated: bool | None
    geometry: Geometry | None
    layers: tuple[Layer | Difference, ...]
    masks: np.ndarray | None
    sections: tuple[Section, ...]
    cautions: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
