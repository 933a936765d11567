"""What readers of raw scans share: masks of scans that store none, and k-space that was never acquired."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from mri_n2n.acquisition import Acquisition, Scan
from mri_n2n.errors import InputError
from mri_n2n.files import one_line
from mri_n2n.masks import mask_from_samples


class ZeroMask:
    """Where a scan without a stored mask was sampled: where not all coils are exactly zero, see `mask_from_samples`.

    sampled: yields, slice by slice, where there are samples, (y, x) bool; asked once, when the mask is first wanted.
    """

    def __init__(self, sampled: Callable[[], Iterator[np.ndarray]]) -> None:
        self._sampled, self._mask = sampled, None

    def of(self, start: int, stop: int) -> np.ndarray:
        """(1 or stop - start, 1, y, x) float32."""
        if self._mask is None:
            self._mask = mask_from_samples(np.stack(list(self._sampled())))
        mask = self._mask if len(self._mask) == 1 else self._mask[start:stop]
        return np.array(mask[:, None], dtype=np.float32)

    def any(self) -> bool:
        """Whether the scan holds a sample that is not zero; reads up to the first one."""
        with closing(self._sampled()) as slices:
            return any(sampled.any() for sampled in slices)


def reader(
    path: Path, shape: tuple[int, int, int, int], read_slice: Callable[[int], np.ndarray]
) -> Callable[[int, int], Acquisition]:
    """`Scan.read` of a file that stores neither mask nor probability. read_slice: number -> (coils, y, x) complex64.

    The reader's errors: ValueError for slices that are not there, InputError for a scan that is zero everywhere.
    """
    zero_mask = ZeroMask(lambda: ((read_slice(i) != 0).any(axis=0) for i in range(shape[0])))

    def read(start: int, stop: int) -> Acquisition:
        if not 0 <= start < stop <= shape[0]:
            raise ValueError(f"slices must be in 0..{shape[0]}; got {start}..{stop}")
        if not zero_mask.any():
            raise InputError(f"{one_line(path)}: k-space is zero everywhere; there is nothing to reconstruct")
        kspace = np.stack([read_slice(i) for i in range(start, stop)])
        mask = zero_mask.of(start, stop)
        return Acquisition(torch.from_numpy(kspace * mask), torch.from_numpy(mask))

    return read


Box = tuple[tuple[int, int], tuple[int, int]]


def acquired_box(scan: Scan) -> Box:
    """The rectangle ((y0, y1), (x0, x1)) of k-space in which a scan could have samples at all, half-open.

    Zero-padded edges and the missing part of partial Fourier were never acquired, which is not undersampling. The file's
    header tells them, unless there are samples where it has padding; else, from the first, middle and last slice, empty
    edges that are wider than regular lines, or independent points, would leave. Simulated scans have none.
    """
    slices, _, y, x = scan.shape
    if scan.simulated:
        return (0, y), (0, x)
    sampled = _where_sampled(scan)
    if scan.acquired_columns is not None:
        first, last = scan.acquired_columns
        if not (sampled[:, :first].any() or sampled[:, last:].any()):
            rows, _ = _box_of(sampled[:, first:last])
            return rows, (first, last)
    return _box_of(sampled)


def doubtful_edges(scan: Scan, acquired: Box) -> bool:
    """Whether irregular lines leave an edge of the rectangle `acquired` so wide that it is perhaps no chance: where their
    density fell outwards, it can be."""
    sampled = _where_sampled(scan)[slice(*acquired[0]), slice(*acquired[1])]
    rows, columns = sampled.any(axis=1), sampled.any(axis=0)
    full = [(0, len(axis)) == acquired_range(axis.astype(float), 1e-2) for axis in (rows, columns)]
    return not scan.simulated and not all(full) and bool((sampled == rows[:, None] & columns).all())


def _where_sampled(scan: Scan) -> np.ndarray:
    """(y, x) bool: where the first, middle or last slice has samples."""
    read = (scan.read(i, i + 1) for i in {0, scan.shape[0] // 2, scan.shape[0] - 1})
    return np.stack([(one.kspace[0] != 0).any(dim=0).numpy() for one in read]).any(axis=0)


def _box_of(sampled: np.ndarray) -> Box:
    """The same of where there are samples, (y, x) bool."""
    rows, columns = sampled.any(axis=1), sampled.any(axis=0)
    if (sampled == rows[:, None] & columns).all():
        return acquired_lines(rows), acquired_lines(columns)
    return acquired_range(1 - np.exp(-sampled.sum(axis=1))), acquired_range(1 - np.exp(-sampled.sum(axis=0)))


def acquired_lines(sampled: np.ndarray) -> tuple[int, int]:
    """The part of an axis, (n,) bool, that lines could be in: all of it but for edges more than twice as wide as the regular
    spacing of the lines outside the full centre. Where these are irregular, an empty edge can be chance."""
    count, at = len(sampled), np.flatnonzero(sampled)
    if not len(at):
        return 0, count
    full = np.split(sampled, np.flatnonzero(np.diff(sampled)) + 1)  # runs of sampled and of empty lines
    ends = np.cumsum([len(run) for run in full])
    block = next((i for i, end in enumerate(ends) if end > count // 2), len(full) - 1)
    low, high = int(ends[block] - len(full[block])), int(ends[block])
    if not full[block][0]:  # DC itself is empty
        low = high = count // 2
    gaps = np.concatenate((np.diff(at[at < low]), np.diff(at[at >= high])))
    outside = (at < low).any() or (at >= high).any()
    if outside and (len(gaps) < 4 or gaps.max() - gaps.min() > 1):
        return 0, count
    spacing = int(gaps.max(initial=1))
    first, last = int(at[0]), int(at[-1]) + 1
    wide = 2 * spacing if len(gaps) else 0
    return first if first > wide else 0, last if count - last > wide else count


def acquired_range(sampled: np.ndarray, chance: float = 1e-6) -> tuple[int, int]:
    """The part of an axis that a scan could have sampled: all of it but for edges that are empty although the chance of that
    is below `chance`, and that are three times as wide as any gap in the outer half.

    sampled: (n,), 0 where there is no sample, else the chance that such an index has any: 1 for a line, 1 - exp(-count) for
    independent points. At an edge it is that of the outer quarter of what is sampled; where it falls outwards, it is taken
    to fall on.
    """
    count, at = len(sampled), np.flatnonzero(sampled)
    if not len(at):
        return 0, count
    first, last = int(at[0]), int(at[-1]) + 1

    def edge(sampled: np.ndarray) -> int:
        """Empty indices at the start that were never acquired."""
        at = np.flatnonzero(sampled)
        gap, quarter = int(at[0]), max(1, (last - first) // 4)
        outer = sampled[gap : gap + quarter].mean()
        inner = sampled[gap + quarter : gap + 2 * quarter].mean() if gap + quarter < count else 0.0
        density = outer * min(1.0, outer / inner) ** 2 if inner > 0 else outer
        widest = int(np.diff(at[at <= gap + 2 * quarter]).max(initial=1)) - 1
        return gap if gap > 3 * widest and (1 - density) ** gap < chance else 0

    return edge(sampled), count - edge(sampled[::-1])
