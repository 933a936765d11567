"""The vocabulary of the package: what a scanner measured, and where it lies in space.

Everything flows one way: scan file -> `Scan` -> `Acquisition` -> network -> image -> file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Acquisition:
    """A batch of measured slices: kspace = mask * (F S image + noise).

    kspace: (batch, coils, y, x) complex64, centred, zero where not sampled; in the scan's own intensity unit.
    mask: (batch or 1, 1, y, x) float32, 1 where sampled, 0 elsewhere.
    probability: E[mask], same shape, in [0, 1]; None when unknown. Training losses use it; reconstruction does not.
    sensitivity_maps: (batch, coils, y, x) complex64, or None.
    noise_variance: v = E|n|^2 of one complex sample, in squared intensity units, of all slices or (batch, 1, 1, 1); 0
        when noise-free, None when unknown.
    """

    kspace: Tensor
    mask: Tensor
    probability: Tensor | None = None
    sensitivity_maps: Tensor | None = None
    noise_variance: Tensor | float | None = None

    def __post_init__(self) -> None:
        if self.kspace.ndim != 4 or not self.kspace.is_complex():
            raise ValueError(
                f"kspace must be complex with axes (batch, coils, y, x); got {self.kspace.dtype} {tuple(self.kspace.shape)}"
            )
        batch, _, *matrix = self.kspace.shape
        for name in ("mask", "probability"):
            value = getattr(self, name)
            if value is not None and (value.shape[0] not in (1, batch) or list(value.shape[1:]) != [1, *matrix]):
                raise ValueError(
                    f"{name} must have axes ({batch} or 1, 1, {matrix[0]}, {matrix[1]}); got {tuple(value.shape)}"
                )

    def slices(self, index: Tensor) -> Acquisition:
        """Some of its slices, by their indices."""
        held = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        some = {name: value if len(value) == 1 < len(self.kspace) else value[index] for name, value in held.items()}
        return replace(self, **some)

    def to(self, device: torch.device | str) -> Acquisition:
        """The same acquisition with every tensor on `device`."""
        moved = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: value.to(device) for name, value in moved.items()})


def concatenate(acquisitions: Sequence[Acquisition]) -> Acquisition:
    """One batch of single-slice acquisitions of one shape. What one of them lacks, the batch lacks."""
    columns = {f.name: [getattr(a, f.name) for a in acquisitions] for f in fields(Acquisition)}
    columns["noise_variance"] = [
        v if v is None else torch.as_tensor(v, dtype=torch.float32).reshape(-1, 1, 1, 1)
        for v in columns["noise_variance"]
    ]
    return Acquisition(
        **{name: None if any(v is None for v in column) else torch.cat(column) for name, column in columns.items()}
    )


MILLIMETRES = {"meter": 1e3, "mm": 1.0, "micron": 1e-3}  # of a spatial unit; "unknown" has none


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a volume lie: the NIfTI terms, for the volume array as it was read (i, j, k).

    affine: 4x4 nested tuples, voxel index (i, j, k) -> millimetres (or `spatial_unit`) in RAS+.
    slice_axis: the axis of the volume array along which slices were taken; slice arrays are (slice, y, x) with
        x the lower and y the higher of the two remaining axes.
    """

    affine: tuple[tuple[float, ...], ...]
    slice_axis: int = 2
    qform_code: int = 1
    sform_code: int = 1
    spatial_unit: str = "mm"


@dataclass(frozen=True)
class Scan:
    """A scan file that was checked but not loaded: its description, and `read` to fetch slices when they are needed.

    shape: (slices, coils, y, x) of its k-space.
    read: read(start, stop) -> Acquisition of slices start..stop-1.
    mask_source: "stored", or "zeros" when the mask was found from the samples that are exactly zero in every slice and coil.
    simulated: True when the k-space was made from an image; None when the file does not say.
    noise_covariance: E[n n^H] (coils, coils) of one complex sample, from noise readouts; None without.
    repetitions: how many the file holds; `read` gives one of them, or their mean, as it was opened.
    geometry: of the image of all of k-space; `image_geometry` is that of the image that is made of it.
    image_matrix: (y, x) of the image where it is smaller than that of k-space: without the oversampling. None: the same.
    acquired_columns: the columns (x) of k-space that could hold samples by the file's header, half-open; None: not told.
    acquisition: the name of the sequence or contrast, if the file has one. acceleration: as the file states it.
    more: further files that it is read from: BART's header, the other part of a complex volume.
    signed: its images are real and have negative values, with which they are written; else magnitudes are.
    """

    path: Path
    format: str
    shape: tuple[int, int, int, int]
    read: Callable[[int, int], Acquisition]
    geometry: Geometry | None
    mask_source: str
    simulated: bool | None
    has_reference: bool
    noise_covariance: Tensor | None = None
    repetitions: int = 1
    image_matrix: tuple[int, int] | None = None
    acquired_columns: tuple[int, int] | None = None
    acquisition: str | None = None
    acceleration: float | None = None
    signed: bool = False
    more: tuple[Path, ...] = ()

    @property
    def image_geometry(self) -> Geometry | None:
        """Where the voxels of the image lie, which is cropped to `image_matrix` about its centre pixel, index n // 2."""
        if self.geometry is None or self.image_matrix is None:
            return self.geometry
        low, high = (axis for axis in range(3) if axis != self.geometry.slice_axis)
        first = [0, 0, 0]
        for axis, old, new in zip((high, low), self.shape[-2:], self.image_matrix):
            first[axis] = old // 2 - new // 2
        moved = tuple((*row[:3], sum(r * i for r, i in zip(row, (*first, 1)))) for row in self.geometry.affine[:3])
        return replace(self.geometry, affine=(*moved, self.geometry.affine[3]))
