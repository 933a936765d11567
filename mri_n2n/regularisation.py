"""How strongly compressed sensing is regularised: L chosen from the scan's own samples, some of which are held out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from mri_n2n.acquisition import Acquisition
from mri_n2n.baselines import compressed_sensing, normalised
from mri_n2n.coils import SIDE, calibration_region, region_of_maps
from mri_n2n.density import estimate_probability
from mri_n2n.errors import InputError
from mri_n2n.fourier import mirror_axes
from mri_n2n.masks import is_along, mirror
from mri_n2n.operators import density_weights, forward
from mri_n2n.penalties import PENALTIES

# The share of samples held out to choose L, how many lines or points at least (slices of few lines are taken several
# times, each time without others), the L that are tried, and the largest at which the search may end.
HELD_OUT, FEWEST, GRID = 0.1, 8, tuple(0.064 / 2**k for k in range(10))
END = GRID[4]
NOTHING_OUTSIDE = (
    "there are no samples outside the centre, and outside what sensitivity maps are found from, to choose the regularisation "
    "by; give --regularisation"
)


def chosen_regularisation(
    baseline: str, regularisation: float | None, read: Callable[[int, int], Acquisition], slices: int, name: str
) -> tuple[float | None, dict]:
    """L for a scan, as it was given or chosen on some of its slices, and what the sidecar says of it.

    read: (start, stop) -> slices, with maps if there are several coils. Chosen on the slices a quarter, a half and three
    quarters through the scan, or where these are empty the first that is not. name: of the scan, for errors.
    """
    if baseline not in PENALTIES:
        return None, {}
    if regularisation is not None:
        return regularisation, {"regularisation": regularisation, "chosen_by": "given"}
    quarters = sorted({slices // 4, slices // 2, 3 * slices // 4})
    found = {index: one for index in quarters if (one := read(index, index + 1)).kspace.any()}
    if not found:
        found = next(({i: one} for i in range(slices) if (one := read(i, i + 1)).kspace.any()), {})
    if not found:
        raise InputError(f"{name} is zero everywhere")
    some = list(found.values())
    maps = None if some[0].sensitivity_maps is None else torch.cat([one.sensitivity_maps for one in some])
    together = Acquisition(torch.cat([one.kspace for one in some]), torch.cat([one.mask for one in some]), None, maps)
    try:
        chosen, tried = choose_regularisation(together, baseline)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return chosen, {
        "regularisation": chosen,
        "chosen_by": f"error of held-out samples, {HELD_OUT:.0%} of those outside the calibration centre",
        "chosen_on_slices": list(found),
        "sweep": [{"regularisation": one, "error": round(error, 6)} for one, error in tried],
    }


@torch.inference_mode()
def choose_regularisation(acquisition: Acquisition, baseline: str) -> tuple[float, list[tuple[float, float]]]:
    """The L that predicts samples which were left out best, from the samples alone; and all of `GRID` tried, (L, error).

    A tenth of the samples outside the calibration centre are held out (whole lines of line masks, k and -k together of
    symmetric ones) and predicted by the reconstruction of the rest. error: sum of |A x - s|^2 / p over them, as a share
    of that of |s|^2 / p, p the density of samples around: so it estimates the error outside the centre. L falls, each
    solution beginning with the one before, from `END` on until the error has twice been above the least.

    Errors: InputError where there are too few samples outside the centre.
    """
    generator, slices = Generator().manual_seed(0), len(acquisition.kspace)
    masks = acquisition.mask.cpu().expand(slices, -1, -1, -1).split(1)
    parts = [hold_out(mask, generator, with_maps=acquisition.sensitivity_maps is not None) for mask in masks]
    counts = sum(count for _, count in parts)
    if not counts:
        raise InputError(NOTHING_OUTSIDE)
    # The first part of every slice; where that is little, the second of every slice that has one, and so on.
    chosen = [(i, held[n]) for n in range(-(-FEWEST // counts)) for i, (held, _) in enumerate(parts) if n < len(held)]
    acquisition = acquisition.slices(torch.tensor([i for i, _ in chosen], device=acquisition.mask.device))
    held = torch.cat([mask for _, mask in chosen]).to(acquisition.mask.device)
    _, scale = normalised(acquisition)
    kspace, mask, maps = acquisition.kspace / scale, acquisition.mask * ~held, acquisition.sensitivity_maps
    samples = held * kspace
    weights = torch.cat([_inverse_density(one) for one in acquisition.mask.cpu().split(1)]).to(samples.device)
    energy = (weights * samples.abs().square()).sum().item()
    if not energy:
        raise InputError(NOTHING_OUTSIDE)
    tried, solution = [], None
    for regularisation in GRID:
        solution = compressed_sensing(baseline, kspace - samples, mask, maps, regularisation, solution)
        wrong = forward(solution.image, held, maps) - samples
        tried.append((regularisation, (weights * wrong.abs().square()).sum().item() / energy))
        errors = [error for _, error in tried]
        if regularisation <= END and min(errors[-2:]) > min(errors):
            break
    return _least(tried), tried


def _least(tried: list[tuple[float, float]]) -> float:
    """The L at the vertex of the parabola through the least error and its neighbours, on logarithmic scales."""
    best = min(range(len(tried)), key=lambda index: tried[index][1])
    (strength, error), errors = tried[best], [error for _, error in tried[max(0, best - 1) : best + 2]]
    if len(errors) < 3 or min(errors) <= 0:
        return strength
    before, after = (math.log(one / error) for one in (errors[0], errors[2]))
    offset = (before - after) / (2 * (before + after)) if before + after > 0 else 0.0  # in -1/2 .. 1/2 of a grid step
    return strength * (GRID[1] / GRID[0]) ** offset


def _inverse_density(mask: Tensor) -> Tensor:
    """1 / p where a mask (1, 1, y, x) has samples, p estimated from it alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is an estimate
        return density_weights(mask, estimate_probability([mask[0, 0]])[None, None])


def at_an_end(facts: dict) -> list[str]:
    """What is to be said of an L that may not be the best. facts: of `chosen_regularisation`."""
    tried = [(one["error"], one["regularisation"]) for one in facts.get("sweep", [])]
    best = min(tried)[1] if tried else None
    if tried and max(tried)[0] - min(tried)[0] <= 1e-6 * max(tried)[0]:
        return [f"the samples outside the centre do not tell one L from another; {facts['regularisation']:g} was taken"]
    if best not in (GRID[0], GRID[-1]):
        return []
    side = "less" if best == GRID[-1] else "more"
    return [f"the best L is the last of those tried, {best:g}; {side} may be better, give it with --regularisation"]


def hold_out(mask: Tensor, generator: Generator, *, with_maps: bool) -> tuple[list[Tensor], int]:
    """Which samples of a mask (1, 1, y, x) may be left out, (1, 1, y, x) bool: those outside its full centre, and outside of
    what maps are found from, divided at random into parts of `HELD_OUT` of them, a list; and how many lines, points, or pairs
    of points each part has. ([], 0) where there are none."""
    y, x = mask.shape[-2:]
    lines_along_y, lines_along_x = lines_of(mask)
    size = (1 if lines_along_y else y, 1 if lines_along_x else x)
    drawn = torch.rand(size, dtype=torch.float64, generator=generator)  # in float32 some would be equal
    if torch.equal(mask, mirror_axes(mask, (-2, -1))):
        drawn = mirror(drawn)
    drawn = drawn.expand(y, x)
    candidates = (mask[0, 0] > 0) & outside_calibration(mask, with_maps=with_maps)
    values = drawn[candidates].unique()  # sorted; one for each line, or point, or pair
    count = max(1, round(HELD_OUT * len(values))) if len(values) else 0
    ends = values[count - 1 :: count].tolist() if count else []
    between = zip([-1.0, *ends], ends, strict=False)
    return [(candidates & (drawn > low) & (drawn <= high))[None, None] for low, high in between], count


def lines_of(mask: Tensor) -> tuple[bool, bool]:
    """Whether a mask (..., y, x) is of lines along y, or along x; all or nothing are points."""
    along_y, along_x = is_along(mask, -2), is_along(mask, -1)
    return along_y and not along_x, along_x and not along_y


def outside_calibration(mask: Tensor, *, with_maps: bool) -> Tensor:
    """Where (y, x) bool a mask (1, 1, y, x) may lose samples: outside its full centre, and of what maps are found from. Of symmetric masks
    as symmetric."""
    y, x = mask.shape[-2:]
    lines_along_y, lines_along_x = lines_of(mask)
    calibration = calibration_region(mask[0, 0])
    high, wide = (min(n, SIDE) for n in calibration)
    if with_maps:
        of_maps = region_of_maps(calibration)
        high, wide = (max(pair) for pair in zip((high, wide), of_maps if all(of_maps) else (SIDE, SIDE), strict=True))
    high, wide = y if lines_along_y else min(high, y), x if lines_along_x else min(wide, x)
    outside = torch.ones((y, x), dtype=torch.bool)
    outside[y // 2 - high // 2 :, x // 2 - wide // 2 :][:high, :wide] = False
    return outside & mirror_axes(outside, (-2, -1)) if torch.equal(mask, mirror_axes(mask, (-2, -1))) else outside
