"""What of a mask was drawn by chance, and which of its samples were drawn together: the ground of every interval."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mri_n2n.fourier import mirror_axes
from mri_n2n.masks import is_along

EQUIDISTANT = "the lines lie at equal distances: all of them are one draw, from which no interval can be told"


@dataclass(frozen=True)
class Design:
    """How a mask (y, x) was drawn.

    unit: (y, x) int64, the draw that each location belongs to: a point, a pair of points that mirror each other, or a line.
    probability: (units,) float64 of each draw. drawn: (units,) boolean. group: (units,) int64 of draws that were made together, to
    a number; None where each was made by itself. equidistant: its lines lie at equal distances, so that they are one draw and no variance
    can be told from them.
    """

    unit: Tensor
    probability: Tensor
    drawn: Tensor
    group: Tensor | None
    equidistant: bool = False

    def totals(self, values: Tensor) -> Tensor:
        """Sums (units,) float64 of values (y, x)."""
        total = torch.zeros(len(self.probability), dtype=torch.float64)
        return total.index_add(0, self.unit.flatten(), values.double().flatten())


def design_of(mask: Tensor, probability: Tensor) -> Design:
    """The design of a mask (y, x) that was drawn with a probability (y, x).

    A mask that does not vary along an axis is one of lines. Lines of which each side of the centre has the number that was to be
    expected, to one, are taken for drawn to that number, others for drawn one by one.
    """
    mask, probability = mask > 0, probability.double()
    if not is_along(mask, -2) and is_along(mask, -1):
        turned = design_of(mask.mT, probability.mT)
        return replace(turned, unit=turned.unit.mT.contiguous())
    lines = is_along(mask, -2) and is_along(probability, -2)
    index = torch.arange(mask.shape[-1]).expand(mask.shape) if lines else torch.arange(mask.numel()).view(mask.shape)
    mirrored = mirror_axes(index, (-1,) if lines else (-2, -1))
    if torch.equal(mask, mirror_axes(mask, (-2, -1))) and not mask.all():
        index, mirrored = torch.minimum(index, mirrored), torch.minimum(index, mirrored)
    _, unit = index.unique(return_inverse=True)
    chance = torch.zeros(int(unit.max()) + 1, dtype=torch.float64)
    chance[unit.flatten()] = probability.flatten()
    drawn = torch.zeros_like(chance, dtype=torch.bool)
    drawn[unit[mask]] = True
    if not lines:
        return Design(unit, chance, drawn, None)
    group = torch.zeros_like(unit[0])
    group[index[0] > mirrored[0]] = 1
    of_unit = torch.zeros_like(chance, dtype=torch.int64)
    of_unit[unit[0]] = group
    surprise = [
        abs(int(drawn[side].sum()) - chance[side].sum().item()) for side in (of_unit == 0, of_unit == 1) if side.any()
    ]
    return Design(
        unit, chance, drawn, of_unit if max(surprise) <= 1 else None, _equidistant(drawn, len(chance) < mask.shape[-1])
    )


def _equidistant(drawn: Tensor, mirrored: bool) -> bool:
    """Whether the lines (units,) that were drawn lie at one distance (to one, which rounding makes) on either side of the longest row of
    neighbours, the full centre: five distances or more, of lines that mirror each other three."""
    places = drawn.nonzero().flatten()
    if len(places) < 3:
        return False
    rows = torch.tensor_split(places, (places.diff() > 1).nonzero().flatten() + 1)
    centre = max(rows, key=len) if max(map(len, rows)) > 2 else places[:0]
    first, last = (centre[0], centre[-1]) if len(centre) else (len(drawn), len(drawn))
    steps = torch.cat([places[places < first].diff(), places[places > last].diff()])
    return len(steps) >= (3 if mirrored else 5) and int(steps.max() - steps.min()) <= 1 and int(steps.max()) > 1
