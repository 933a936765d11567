"""What readers of raw scans share: masks of scans that store none, and k-space that was never acquired."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np

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
