"""Noisy images -> cleaner ones: what kind of images, what noise, which blind spot, and the floor of magnitudes."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

from mri_n2n.channels import as_channels, as_complex
from mri_n2n.corruptions import CORRUPTIONS
from mri_n2n.denoising.blind_spot import reaching
from mri_n2n.denoising.own_pixels import with_own_pixels
from mri_n2n.denoising.rician import signal_of_mean, variance_of_mean
from mri_n2n.denoising.self_training import DenoiseOptions, Fitted, clean, fit
from mri_n2n.denoising.whiteness import Whiteness, caution_of, described, measure_whiteness
from mri_n2n.errors import InputError, OptionError
from mri_n2n.formats.nifti import UNDERSHOOT

METHODS = ("auto", "n2v", "n2v2", "structn2v")
# A level that is given and the one that is measured differ by more than this factor: one of them is wrong.
DOUBTFUL = 1.5
# The fewest pixels along an axis of a slice.
SMALLEST = 8
# Signal is above this many standard deviations of the noise; more than this share of noisy pixels in it is said.
SIGNAL, MOSTLY_OWN = 2.0, 0.5
# Pixels over which the noise map averages.
NOISE_MAP_WIDTH = 4.0


@dataclass(frozen=True)
class Plan:
    """How images are to be denoised. method: of `METHODS`. noise: standard deviation of the complex noise, also that which magnitudes
    were taken of, of real images with negative values that of the real noise, in the images' units, if known. training: see `DenoiseOptions`; its blind spot and network follow from the method."""

    method: str = "auto"
    noise: float | None = None
    training: DenoiseOptions = DenoiseOptions(minutes=3.0)
    noise_map: bool = False
    residual: bool = False


@dataclass(frozen=True)
class Cleaned:
    """images: complex (slices, y, x), with zero imaginary part where the noisy ones had none. kind: "complex", "magnitude", or
    "real", with negative values. own: the part that pixels themselves have in it, None: none. fitted and method: of a training on
    the images themselves, as it was chosen. weights: of another training, in its place."""

    images: Tensor
    kind: str
    whiteness: Whiteness
    own: Own | None
    method: str | None = None
    training: DenoiseOptions | None = None
    fitted: Fitted | None = None
    weights: Weights | None = None


@dataclass(frozen=True)
class Own:
    """level: standard deviation of the noise. share: mean weight of the noisy values where there is signal above it."""

    level: float
    share: float


@dataclass(frozen=True)
class Weights:
    """What weights were trained for, by a method, against a corruption or None (noise). network: complex images (slices, y, x) -> images.
    span: of their blind spot, () for none."""

    network: Callable[[Tensor], Tensor]
    method: str
    corruption: str | None
    span: tuple[int, ...]

    @property
    def blind(self) -> bool:
        return self.method == "noise2void"


def check_plan(plan: Plan) -> None:
    """OptionError for a number that makes no sense."""
    training = plan.training
    budgets = [value for value in (training.minutes, training.steps) if value is not None]
    window = training.spot.window
    if plan.method not in METHODS:
        raise OptionError(f"unknown method {plan.method!r}; choose from {', '.join(METHODS)}")
    if len(budgets) != 1 or not 0 < budgets[0] < math.inf:
        raise OptionError("give one of --minutes and --steps, above zero")
    if plan.noise is not None and not 0 < plan.noise < math.inf:
        raise OptionError(f"--noise must be above zero; got {plan.noise}")
    if not 0 < training.spot.share <= 0.25:
        raise OptionError(f"--share must be above 0 and at most 0.25; got {training.spot.share}")
    if window is not None and (not 3 <= window <= 101 or window % 2 == 0):
        raise OptionError(f"--window must be an odd number from 3 to 101; got {window}")
    if not 0 <= training.seed < 2**63:
        raise OptionError(f"--seed must be between 0 and 2^63 - 1; got {training.seed}")


def clean_by_itself(noisy: Tensor, plan: Plan, device: torch.device, name: str, quiet: bool) -> Cleaned:
    """Complex images (slices, y, x), cleaned by a network that is trained on them. Errors: InputError, with `name`, for one
    value everywhere; OptionError for a level of the noise that they cannot have."""
    if min(noisy.shape[-2:]) < SMALLEST:
        raise InputError(f"{name} has slices of {noisy.shape[-2]} x {noisy.shape[-1]} pixels, too few to learn from")
    if plan.training.dimensions == 3 and len(noisy) == 1:
        raise OptionError(f"{name} is one slice, and no volume to learn from; leave out --dimensions 3")
    kind = kind_of(noisy)
    check_noise(plan, noisy.abs().square().mean().sqrt().item(), name)
    whiteness = measure_whiteness(as_seen(noisy, kind))
    training, method = training_for(plan, whiteness)
    if not quiet:
        tqdm.write(f"noise: {described(whiteness, training.dimensions)}; method: {method}", file=sys.stderr)
    channels = channels_of(noisy, kind)
    scale = channels.std(correction=0).item()
    if not scale > 0:
        raise InputError(f"{name} has the same value everywhere; there is nothing to denoise")
    fitted = fit(channels / scale, training, device, quiet=quiet)
    cleaned = scale * clean(fitted.network, channels / scale, training.dimensions, device)
    images, own = finished(channels, cleaned, kind, plan.noise, level_of(plan, kind, whiteness))
    return Cleaned(images, kind, whiteness, own, method, training, fitted)


def clean_by_weights(noisy: Tensor, plan: Plan, weights: Weights, name: str, quiet: bool) -> Cleaned:
    """Complex images (slices, y, x), cleaned by a network that was trained on others. Errors: OptionError, as above, and
    for a level of the noise where it would be used for nothing."""
    kind = kind_of(noisy)
    if plan.noise is not None and weights.corruption == "rician-corrected":
        raise OptionError(
            "the weights take the floor of magnitudes away themselves (rician-corrected); leave out --noise"
        )
    if plan.noise is not None and not weights.blind and kind != "magnitude":
        raise OptionError(f"--noise says nothing to weights of {weights.method} where images are {kind}; leave it out")
    check_noise(plan, noisy.abs().square().mean().sqrt().item(), name)
    whiteness = measure_whiteness(as_seen(noisy, kind))
    if not quiet:
        tqdm.write(f"noise: {described(whiteness)}", file=sys.stderr)
    level = level_of(plan, kind, whiteness) if weights.blind else None  # others see the pixel itself
    seen, predicted = channels_of(noisy, kind), channels_of(weights.network(noisy), kind)
    images, own = finished(seen, predicted, kind, plan.noise, level)
    return Cleaned(images, kind, whiteness, own, weights=weights)


def kind_of(images: Tensor) -> str:
    """Complex, or of no imaginary part but the rounding of a Fourier transform; magnitudes where nothing is negative."""
    if images.imag.abs().max() > 1e-5 * images.real.abs().max():
        return "complex"
    return "magnitude" if images.real.min() >= -UNDERSHOOT * images.real.max() else "real"


def channels_of(images: Tensor, kind: str) -> Tensor:
    """What a network sees (slices, channels, y, x) of complex images (slices, y, x)."""
    return as_channels(images[:, None]) if kind == "complex" else images.real[:, None]


def as_seen(images: Tensor, kind: str) -> np.ndarray:
    """What the noise is measured in."""
    return {"complex": images, "real": images.real, "magnitude": images.real.clamp_min(0)}[kind].numpy()


def check_noise(plan: Plan, usual: float, name: str) -> None:
    """OptionError for a level of the noise that these images cannot have."""
    if plan.noise is not None and plan.noise >= usual:
        raise OptionError(
            f"--noise {plan.noise:g} is more than there is of image and noise in {name}, {usual:g} (root mean square)"
        )


def level_of(plan: Plan, kind: str, whiteness: Whiteness) -> float | None:
    """The standard deviation of the noise, as given or measured; None where it cannot be told. Of magnitudes of correlated noise it
    cannot: a background that was masked looks like such."""
    if plan.noise is not None:
        return plan.noise
    return whiteness.deviation if kind != "magnitude" or whiteness.verdict(3) == "white" else None


def finished(
    noisy: Tensor, predicted: Tensor, kind: str, given: float | None, level: float | None
) -> tuple[Tensor, Own | None]:
    """(complex images (slices, y, x), the part that pixels have in them) of noisy and predicted channels: with what pixels themselves
    say, where the level of the noise is known; of magnitudes, where it was given, the signal whose magnitudes have this
    mean, and never negative."""
    own = None
    if level is not None:
        signal = predicted.square().sum(dim=1, keepdim=True) > (SIGNAL * level) ** 2
        predicted, weight = with_own_pixels(noisy, predicted, variance_of(predicted, kind, level))
        own = Own(level, weight[signal].mean().item() if signal.any() else 0.0)
    if kind == "complex":
        return as_complex(predicted)[:, 0], own
    images = predicted[:, 0]
    if kind == "magnitude":
        signal = signal_of_mean(images.numpy(), given**2) if given else images.numpy()
        images = torch.from_numpy(np.maximum(signal, 0))
    return torch.complex(images, torch.zeros_like(images)), own


def variance_of(predicted: Tensor, kind: str, level: float) -> float | Tensor:
    """Of the noise of each channel."""
    if kind == "magnitude":
        return torch.from_numpy(variance_of_mean(predicted.numpy(), level**2))
    return level**2 / 2 if kind == "complex" else level**2


def training_for(plan: Plan, whiteness: Whiteness) -> tuple[DenoiseOptions, str]:
    """(training, method) for the noise there is: N2V2; structN2V where it is correlated along one axis of what the network sees."""
    method, training = plan.method, plan.training
    if method == "auto":
        method = "structn2v" if whiteness.verdict(training.dimensions) == "line" else "n2v2"
    spot = replace(training.spot, rule="uniform" if method == "n2v" else "median")
    if method == "structn2v":
        reach = whiteness.reach[-training.dimensions :]
        if not any(reach):
            raise OptionError(
                "structn2v hides pixels along correlated noise, and this noise is not correlated; use n2v2"
            )
        spot = reaching(spot, reach)
    return replace(training, spot=spot, artefact_free=method != "n2v"), method


def cautions(plan: Plan, cleaned: Cleaned) -> list[str]:
    """What speaks against what was done to these images."""
    whiteness, weights = cleaned.whiteness, cleaned.weights
    trained_on = None if weights is None else weights.corruption
    blind = weights is None or weights.blind
    caution = caution_of(whiteness, plan.training.dimensions) if blind else None
    found = [caution] if caution else []
    if weights is not None and blind and whiteness.verdict() == "line":
        hidden = weights.span or (0, 0)
        if any(lag > span for lag, span in zip(whiteness.reach[-2:], hidden)):
            found.append(
                f"the noise is correlated along {' and '.join(whiteness.along())}, farther than the weights hide pixels: they keep it; "
                "leave out --weights, or train on scans with such noise"
            )
    if trained_on is not None:
        found.append(f"the weights were trained to take away {trained_on} (--corrupt), and know nothing else")
        if CORRUPTIONS[trained_on].real and cleaned.kind != "magnitude":
            found.append(f"{trained_on} is of magnitudes, and these images are {cleaned.kind}")
    white = whiteness.verdict(3) == "white" and whiteness.deviation is not None
    if plan.noise and white and not 1 / DOUBTFUL < plan.noise / whiteness.deviation < DOUBTFUL:
        found.append(
            f"--noise {plan.noise:g} is not what was measured, {whiteness.deviation:.3g}; one of them is wrong"
        )
    if cleaned.own is not None and cleaned.own.share > MOSTLY_OWN:
        doubt = (
            f"weaker in the {whiteness.where}, where it was measured as {cleaned.own.level:.3g}, than there; --noise S tells its level"
            if plan.noise is None
            else f"more than --noise {plan.noise:g}"
        )
        found.append(
            f"where there is signal, {cleaned.own.share:.0%} of the image is the noisy pixels themselves: the noise is weak, or {doubt}"
        )
    if cleaned.own is None and blind:
        found.append(
            "the level of the noise is not known, so that pixels themselves have no part in the result, which loses detail, most after a short training: --noise S "
            "tells it, S the standard deviation of the complex noise (of real images with negative values, of theirs)"
        )
    if whiteness.verdict(plan.training.dimensions) == "line" and cleaned.method in ("n2v", "n2v2"):
        found.append(f"the noise is correlated along one axis, which {cleaned.method} keeps; structn2v is for that")
    if cleaned.kind == "magnitude" and plan.noise is None and trained_on != "rician-corrected":
        measured = f", here measured as {whiteness.deviation:.3g}" if white else ""
        found.append(
            "magnitudes: where signal is low, noise lifts them (Rician floor), which stays; --noise S lowers it, S the "
            f"standard deviation of the complex noise{measured}"
        )
    return found


def noise_map(removed: np.ndarray) -> np.ndarray:
    """Local standard deviation (slices, y, x) of what was taken away, about its local mean; of complex images root of
    the mean |.|^2."""
    mean = lambda values: ndimage.gaussian_filter(values, (0, NOISE_MAP_WIDTH, NOISE_MAP_WIDTH))  # noqa: E731
    removed = removed.astype(np.complex128 if np.iscomplexobj(removed) else np.float64)
    power = mean(np.abs(removed) ** 2) - np.abs(mean(removed)) ** 2
    return np.sqrt(np.maximum(power, 0)).astype(np.float32)
