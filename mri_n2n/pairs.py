"""How a training example is made: the difference between methods.

A pair maker takes what was measured of a slice and returns a `Pair`: input, target, weight. A new method is one function
here, one line in `PAIR_MAKERS` and, at most, a new loss. Acquisitions are drawn in `simulation.py` or come from files.

P: probability that a location is sampled; s = M (F S x + n): samples; v = E|n|^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor

from mri_n2n.acquisition import Acquisition, concatenate
from mri_n2n.channels import as_channels, as_complex
from mri_n2n.coils import calibration_region
from mri_n2n.denoising.blind_spot import BlindSpot, hide
from mri_n2n.errors import OptionError
from mri_n2n.fourier import fft2c, ifft2c, mirror_axes
from mri_n2n.masks import is_along, mirror
from mri_n2n.operators import adjoint, density_weights

# A scan with this share of its samples is fully sampled.
FULL = 0.99


@dataclass(frozen=True)
class Measured:
    """What there is of one slice: an acquisition (1, coils, y, x); where it was measured twice the second, independent
    one; where it is simulated the full k-space; the mask (1, 1, y, x) of another scan of the same design."""

    first: Acquisition
    second: Acquisition | None = None
    full: Tensor | None = None
    other_mask: Tensor | None = None


CORRECTIONS = ("noisier", "measured", "none")


@dataclass(frozen=True)
class PairOptions:
    """weight_cap: the most that a sample counts for, min(1 / p, cap); any positive weight has the same minimiser, and a
    smaller one less variance under noise. exchange: Noise2Noise's two acquisitions exchange samples at random.
    center_gaps: share of Noise2Noise's inputs, of points without a full centre, that lack samples beside the k-space centre, see `with_center_gaps`.
    input_share: of the splitting methods, the share of the rarely sampled locations that stays in the input.
    extra_noise: a of robust SSDU: the input is given further noise of variance a^2 v. correction: how its images are
    corrected in use, see `correction.Corrected`. blind_spot: of Noise2Void.
    """

    weight_cap: float | None = None
    exchange: bool = False
    center_gaps: float = 0.0
    input_share: float = 0.5
    extra_noise: float = 1.0
    correction: str = "noisier"
    blind_spot: BlindSpot = BlindSpot()


@dataclass(frozen=True)
class Remeasurement:
    """How equivariant imaging measures a prediction again: turned by `angle` (batch,) radians, sampled by `mask`
    (batch, 1, y, x), with `noise` (batch, coils, y, x). probe: complex white noise, E|b|^2 = 1, for the divergence in
    SURE, or None without it."""

    angle: Tensor
    mask: Tensor
    noise: Tensor
    probe: Tensor | None


@dataclass(frozen=True)
class Pair:
    """input: what the network sees; target: k-space (batch, coils, y, x) or image (batch, 1, y, x), complex;
    weight: real, broadcastable to the target, 0 where the target says nothing. again: of equivariant imaging. loss: of
    `losses.LOSSES`."""

    input: Acquisition
    target: Tensor
    weight: Tensor
    domain: Literal["kspace", "image"] = "kspace"
    again: Remeasurement | None = None
    loss: str = "l2"

    def to(self, device: torch.device | str) -> Pair:
        again = self.again and Remeasurement(*(v if v is None else v.to(device) for v in vars(self.again).values()))
        return replace(
            self,
            input=self.input.to(device),
            target=self.target.to(device),
            weight=self.weight.to(device),
            again=again,
        )


# ---- two acquisitions ----


def noise2noise(measured: Measured, options: PairOptions, draw: Generator) -> Pair:
    """Weighted Noise2Noise: the samples of a second, independent acquisition, each weighted by 1 / probability."""
    first, second = measured.first, _second(measured)
    if options.exchange:
        first, second = exchange(first, second, draw)
    if options.center_gaps and torch.rand((), generator=draw) < options.center_gaps:
        first = with_center_gaps(first, draw)
    return target_pair(first, second, options.weight_cap)


def target_pair(first: Acquisition, second: Acquisition, weight_cap: float | None = None) -> Pair:
    """The samples of `second` as target, each weighted by min(1 / probability, weight_cap)."""
    return Pair(first, second.kspace, _weights(second, weight_cap))


def noise2noise_2018(measured: Measured, options: PairOptions, draw: Generator) -> Pair:
    """Lehtinen et al. 2018, section 3.4: the target is the second zero-filled image, its samples divided by p."""
    second = _second(measured)
    return Pair(measured.first, ifft2c(_weights(second) * second.kspace), _one(measured.first), "image")


def supervised(measured: Measured, options: PairOptions, draw: Generator) -> Pair:
    """The fully sampled k-space as target: what training without references is compared with."""
    return Pair(measured.first, _full(measured), _one(measured.first))


def supervised_2018(measured: Measured, options: PairOptions, draw: Generator) -> Pair:
    """The same for the 2018 recipe: the clean image as target."""
    return Pair(measured.first, ifft2c(_full(measured)), _one(measured.first), "image")


def exchange(first: Acquisition, second: Acquisition, draw: Generator) -> tuple[Acquisition, Acquisition]:
    """Two acquisitions of one design after a fair coin for each location (line, of line masks) said whether they
    exchange what they have there, sampled or not; except where every scan samples, which maps are found from.

    Both samples of a location have the same distribution, so masks of independent points give another pair of that design:
    fresh masks at every step from two fixed acquisitions. Lines keep their probabilities but not their number, and
    equispaced ones not their spacing: there the masks depend on one another. OptionError when probabilities or noise differ.
    """
    known = first.probability is not None and second.probability is not None
    if not known or not torch.equal(first.probability, second.probability):
        raise OptionError("only acquisitions of one design, of equal sampling probability, exchange samples")
    if not _equal(first.noise_variance, second.noise_variance):
        raise OptionError("only acquisitions of one design, of equal noise, exchange samples")
    units = first.mask + 2 * second.mask  # of lines, and symmetric, where both masks are
    swapped = _coin(torch.full_like(first.probability, 0.5), units, draw) * (first.probability < 1)
    taken = lambda a, b: torch.where(swapped > 0, b, a)  # noqa: E731
    return (
        replace(first, kspace=taken(first.kspace, second.kspace), mask=taken(first.mask, second.mask)),
        replace(second, kspace=taken(second.kspace, first.kspace), mask=taken(second.mask, first.mask)),
    )


def with_center_gaps(scan: Acquisition, draw: Generator) -> Acquisition:
    """Without half of its samples, drawn, of the 3 x 3 about the k-space centre that not every scan has: as masks of independent
    points are by chance, too seldom for a network to learn what to do. The target's samples are independent of this, too.
    Maps of the samples that are left out would know too much, and are left out with them. Masks of lines are left as they are."""
    if scan.probability is None or is_along(scan.mask, -2) or is_along(scan.mask, -1):
        return scan
    y, x = (n // 2 for n in scan.mask.shape[-2:])
    beside = torch.zeros_like(scan.mask)
    beside[..., max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = 1
    left_out = beside * (scan.probability < 1) * _coin(torch.full_like(scan.mask, 0.5), scan.mask, draw)
    if not (left_out * scan.mask).any():
        return scan
    kept = scan.mask * (1 - left_out)
    return replace(scan, kspace=scan.kspace * kept, mask=kept, sensitivity_maps=None)


# ---- one acquisition ----


def ssdu(measured: Measured, options: PairOptions, draw: Generator) -> Pair:
    """Self-supervision by data undersampling (Yaman et al., MRM 84, 2020): a part of the samples as input, the others,
    each alike, as target; and those that are in every input, which the papers leave to data consistency alone."""
    kept, held_out = split(measured.first, options.input_share, draw)
    return Pair(kept, measured.first.kspace, held_out.mask + always(kept))


def k_weighted_ssdu(measured: Measured, options: PairOptions, draw: Generator) -> Pair:
    """SSDU weighted by 1 / (1 - K) (Millard and Chiew, IEEE TCI 9, 2023): 1 - K = P (1 - Pt) / (1 - P Pt) is the
    probability that a location not in the input is in the target. Samples that are in every input count once, as in `ssdu`."""
    kept, held_out = split(measured.first, options.input_share, draw)
    return Pair(kept, measured.first.kspace, _weights(held_out, options.weight_cap) + always(kept))


def robust_ssdu(measured: Measured, options: PairOptions, draw: Generator) -> Pair:
    """Robust SSDU (Millard and Chiew, Bioengineering 11, 2024), for noise: the input is given further noise of variance a^2 v, and
    its own samples, as measured, are targets too, with weight ((1 + a^2) / a^2)^2.

    In use the output is corrected on the input's samples, see `correction.Corrected`. ValueError without a noise variance.
    """
    kept, held_out = split(measured.first, options.input_share, draw)
    variance, a2 = kept.noise_variance, options.extra_noise**2
    if variance is None:
        raise ValueError("robust SSDU needs the variance of the noise")
    noise = torch.randn(kept.kspace.shape, dtype=kept.kspace.dtype, generator=draw)
    noisier = kept.kspace + kept.mask * (a2 * variance) ** 0.5 * noise
    return Pair(
        replace(kept, kspace=noisier, noise_variance=(1 + a2) * variance),
        measured.first.kspace,
        _weights(held_out, options.weight_cap) + ((1 + a2) / a2) ** 2 * kept.mask,
    )


def equivariant(measured: Measured, options: PairOptions, draw: Generator) -> Pair:
    """Equivariant imaging (Chen, Tachella, Davies, ICCV 2021): |A f(s) - s|^2 + |T x - f(A T x)|^2, x = f(s), T a
    rotation: a turned anatomy is as likely as the one that was measured, and the mask sees other frequencies of it."""
    return _measured_again(measured.first, measured.first.mask, draw)


def robust_equivariant(measured: Measured, options: PairOptions, draw: Generator) -> Pair:
    """Equivariant imaging for noise (Chen, Tachella, Davies, CVPR 2022): SURE in place of |A f(s) - s|^2."""
    return _with_probe(equivariant(measured, options, draw), draw)


def multi_operator(measured: Measured, options: PairOptions, draw: Generator) -> Pair:
    """Multi-operator imaging (Tachella, Chen, Davies, NeurIPS 2022): another scan's mask in place of the rotation."""
    if measured.other_mask is None:
        raise OptionError("multi-operator imaging needs scans with different masks; use equivariant for one mask")
    pair = _measured_again(measured.first, measured.other_mask, draw)
    return replace(pair, again=replace(pair.again, angle=torch.zeros(1)))


def robust_multi_operator(measured: Measured, options: PairOptions, draw: Generator) -> Pair:
    """The same for noise, with SURE."""
    return _with_probe(multi_operator(measured, options, draw), draw)


def noise2void(measured: Measured, options: PairOptions, draw: Generator) -> Pair:
    """Noise2Void (Krull, Buchholz, Jug, CVPR 2019): the noisy image of a fully sampled scan with a few pixels hidden as input,
    these pixels as target, see `denoising.blind_spot`. OptionError for a scan that is undersampled."""
    scan = measured.first
    if scan.mask.mean() < FULL:
        raise OptionError("Noise2Void learns from fully sampled noisy scans; these are undersampled")
    image = adjoint(scan.kspace, scan.mask, scan.sensitivity_maps)
    hidden, predicted = hide(as_channels(image), options.blind_spot, draw)
    kspace = fft2c(as_complex(hidden))
    given = Acquisition(kspace, torch.ones_like(scan.mask), None, None, scan.noise_variance)
    return Pair(given, image, predicted / predicted.mean().clamp_min(1e-12), "image")


def union(first: Acquisition, second: Acquisition) -> Acquisition:
    """Two acquisitions as one scan of both scan times, for methods that know single scans. Where both have a sample it is
    the first's: averages would have another noise than the scans that are reconstructed."""
    mask = torch.maximum(first.mask, second.mask)
    probability = 1 - (1 - first.probability) * (1 - second.probability)
    kspace = torch.where(first.mask > 0, first.kspace, second.kspace)
    return replace(first, kspace=kspace, mask=mask, probability=probability)


def split(scan: Acquisition, input_share: float, draw: Generator) -> tuple[Acquisition, Acquisition]:
    """(kept, held out): the samples of a scan divided at random, whole lines of line masks. probability of what is held
    out: 1 - K, of a location that is not in the input.

    With P = p (2 - p), as of two acquisitions of probability p, a location is held out with probability
    2 (1 - input_share) (1 - p) / (2 - p): never where every scan samples; for a share of 0.5 the input is a scan of
    probability p. Where all scans have one mask, P is 0 or 1: then every location outside the fully sampled centre is
    held out with probability 1 - input_share. ValueError without P.
    """
    keep = keep_probability(scan, input_share)
    kept = _coin(keep, scan.mask, draw)
    parts = (scan.mask * kept, scan.mask * (1 - kept))
    inside, outside = (replace(scan, kspace=scan.kspace * part, mask=part) for part in parts)
    reached = scan.probability * keep
    left = scan.probability * (1 - keep) / (1 - reached).clamp_min(1e-12)
    return replace(inside, probability=reached), replace(outside, probability=left)


def always(scan: Acquisition) -> Tensor:
    """1 for the samples that every scan of this design has, else 0. Without them in the loss, a network that does not put its samples
    back, or not wholly, would learn nothing of the centre of k-space."""
    return scan.mask * (scan.probability >= 1)


def keep_probability(scan: Acquisition, input_share: float) -> Tensor:
    """With which probability (1, 1, y, x) a sample stays in the input, see `split`; 1 where all always do."""
    if scan.probability is None:
        raise ValueError("splitting a scan needs its sampling probability")
    if ((scan.probability == 0) | (scan.probability == 1)).all():
        high, wide = calibration_region(scan.mask[0, 0])
        y, x = scan.mask.shape[-2:]
        keep = torch.full_like(scan.probability, input_share)
        keep[..., y // 2 - high // 2 :, x // 2 - wide // 2 :][..., :high, :wide] = 1
        return keep
    p = 1 - (1 - scan.probability).clamp_min(0).sqrt()
    return 1 - (2 * (1 - input_share) * (1 - p) / (2 - p)).clamp(0, 1)


def _measured_again(scan: Acquisition, mask: Tensor, draw: Generator) -> Pair:
    angle = 2 * math.pi * torch.rand(1, generator=draw)
    noise = torch.zeros_like(scan.kspace)
    if scan.noise_variance:
        noise = scan.noise_variance**0.5 * torch.randn(noise.shape, dtype=noise.dtype, generator=draw)
    return Pair(scan, scan.kspace, scan.mask, again=Remeasurement(angle, mask, noise, None))


def _with_probe(pair: Pair, draw: Generator) -> Pair:
    """With the probe of SURE's divergence. ValueError without a noise variance."""
    scan = pair.input
    if scan.noise_variance is None:
        raise ValueError("SURE needs the variance of the noise")
    probe = scan.mask * torch.randn(scan.kspace.shape, dtype=scan.kspace.dtype, generator=draw)
    return replace(pair, again=replace(pair.again, probe=probe))


def _coin(probability: Tensor, mask: Tensor, draw: Generator) -> Tensor:
    """1 with `probability` (1, 1, y, x), else 0: one coin for each unit in which `mask` was drawn: a line, or k and -k."""
    units = mask[..., :1, :] if is_along(mask, -2) else mask
    coin = torch.rand(units.shape, generator=draw)
    if torch.equal(mirror_axes(mask, (-2, -1)), mask):
        coin = mirror(coin[0, 0])[None, None]
    return (coin < probability).to(mask.dtype)


def _equal(a: Tensor | float | None, b: Tensor | float | None) -> bool:
    """Of noise variances, which are estimates: within a fifth of the larger."""
    if a is None or b is None:
        return a is b
    a, b = (torch.as_tensor(one).double() for one in (a, b))
    return bool(((a - b).abs() <= 0.2 * torch.maximum(a, b)).all())


def _second(measured: Measured) -> Acquisition:
    if measured.second is None:
        raise ValueError("Noise2Noise needs a second acquisition")
    return measured.second


def _full(measured: Measured) -> Tensor:
    if measured.full is None:
        raise ValueError("supervised training needs the full k-space")
    return measured.full


def _one(acquisition: Acquisition) -> Tensor:
    return acquisition.mask.new_ones((1, 1, 1, 1))


def _weights(acquisition: Acquisition, cap: float | None = None) -> Tensor:
    if acquisition.probability is None:
        raise ValueError("the weights of a Noise2Noise target need the sampling probability of its acquisition")
    weights = density_weights(acquisition.mask, acquisition.probability)
    return weights if cap is None else weights.clamp_max(cap)


def joined(pairs: Sequence[Pair]) -> Pair:
    """One batch of pairs of single slices, of one method and one shape."""
    again = [pair.again for pair in pairs]
    together = None
    if again[0] is not None:
        columns = zip(*(vars(one).values() for one in again), strict=True)
        together = Remeasurement(*(None if column[0] is None else torch.cat(column) for column in columns))
    return Pair(
        concatenate([pair.input for pair in pairs]),
        torch.cat([pair.target for pair in pairs]),
        torch.cat([pair.weight for pair in pairs]),
        pairs[0].domain,
        together,
        pairs[0].loss,
    )


PAIR_MAKERS: dict[str, Callable[[Measured, PairOptions, Generator], Pair]] = {
    "noise2noise": noise2noise,
    "noise2noise-2018": noise2noise_2018,
    "supervised": supervised,
    "supervised-2018": supervised_2018,
    "ssdu": ssdu,
    "k-weighted-ssdu": k_weighted_ssdu,
    "robust-ssdu": robust_ssdu,
    "equivariant": equivariant,
    "multi-operator": multi_operator,
    "robust-equivariant": robust_equivariant,
    "robust-multi-operator": robust_multi_operator,
    "noise2void": noise2void,
}

# Those that know one acquisition of a slice; of these, those that divide its samples, those that need another's mask,
# those that need the variance of the noise, and those that measure their prediction again. Those that weigh samples by 1 / p.
SPLITTING_METHODS = ("ssdu", "k-weighted-ssdu", "robust-ssdu")
OTHER_MASK_METHODS = ("multi-operator", "robust-multi-operator")
NOISE_METHODS = ("robust-ssdu", "robust-equivariant", "robust-multi-operator")
REMEASURING_METHODS = (*OTHER_MASK_METHODS, "equivariant", "robust-equivariant")
SINGLE_SCAN_METHODS = (*SPLITTING_METHODS, *REMEASURING_METHODS, "noise2void")
# Whose targets are samples of k-space, with the noise of the scan and no more, and nothing beside them.
LOG_METHODS = ("noise2noise", "ssdu", "k-weighted-ssdu", "supervised")
WEIGHTED_METHODS = ("noise2noise", "k-weighted-ssdu", "robust-ssdu")
