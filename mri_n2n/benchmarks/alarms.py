"""Which scans are warned of: unlike the training's, spikes, motion between repetitions; and how often for nothing

One training at 128x128 on T1W and T2W of subjects 01, 03 and 09 (one coil, roulette masks of 4x to 12x, no noise, 400 steps of 2), whose weights keep
statistics of its scans. Then scans of subject 04 (in each row six acquisitions of each volume, masks of their own): like the training's, and each unlike them in one way.
An alarm is what `reconstruct` warns of: an acceleration, or lines or points, that the weights were not trained for, the image or the acquisition unlike the
training's (5 % false alarms wanted in all), samples that are spikes, repetitions that differ in gain, phase, place or angle (two acquisitions under 6x Gaussian points, the second of them of the object moved). Gross changes are wanted to
be found in 95 %. Which statistics go into which distance, and their units, were chosen after a look at both subject 04 and subject 12, so false alarms may be more with others. Simulated k-space.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from mri_n2n.benchmarks.common import SEED, Setting, comparison_options, made_of, table, trained, verdict
from mri_n2n.benchmarks.robustness import UNKNOWN_CONTRAST, without
from mri_n2n.benchmarks.subjects import data_folder, test_sources
from mri_n2n.coils import with_sensitivity_maps
from mri_n2n.corruptions import corrupted_kspace
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.inference import LoadedNetwork, cautions, load_for_use, reconstruct_acquisition
from mri_n2n.masks import draw_mask
from mri_n2n.protocol import Protocol, simulated_repetitions
from mri_n2n.simulation import measure, seeded
from mri_n2n.trust.agreement import agreement
from mri_n2n.trust.doubts import spikes
from mri_n2n.trust.familiarity import KINDS, Known, known_of, looked_at, mean_of, statistics_of, unlike

MATRIX, STEPS, TIMES = 128, 400, 6
WANTED, FALSE = 0.95, 0.05
SAID = "said"  # beside `KINDS`
ROULETTE = Protocol(seed=SEED, method="noise2noise", masks=("roulette",), acceleration=(4.0, 12.0))


@dataclass(frozen=True)
class Unlikeness:
    """contrasts: of the volumes. gross: whether it is to be found in `WANTED`; None where it is like the training."""

    title: str
    contrasts: tuple[str, ...] = ("T1W", "T2W")
    protocol: Protocol = ROULETTE
    gross: bool | None = True


SCANS = (
    Unlikeness("like the training's", gross=None),
    Unlikeness(f"{UNKNOWN_CONTRAST}, which training did not have", (UNKNOWN_CONTRAST,)),
    Unlikeness("16x", protocol=replace(ROULETTE, acceleration=(16.0, 16.0))),
    Unlikeness("Gaussian lines 6x", protocol=replace(ROULETTE, masks=("gaussian-lines",), acceleration=(6.0, 6.0))),
    Unlikeness("noise of 5 % of the maximum", protocol=replace(ROULETTE, noise=(0.05, 0.05)), gross=False),
    Unlikeness("8 coils", protocol=replace(ROULETTE, coils=(8,)), gross=False),
)
SHARES = (0.0, 0.0005, 0.005)  # of the samples, spikes
# label -> (shift in pixels, degrees, gain), and whether that is gross
MOVED = {
    "not moved": ((0, 0), 0.0, 1.0, None),
    "by a quarter of a pixel": ((0.25, 0), 0.0, 1.0, False),
    "by a pixel": ((1, 0), 0.0, 1.0, True),
    "by 3 pixels": ((2, -2), 0.0, 1.0, True),
    "turned by 1 degree": ((0, 0), 1.0, 1.0, False),
    "turned by 3 degrees": ((0, 0), 3.0, 1.0, True),
    "gain 5 % higher": ((0, 0), 0.0, 1.05, True),
}


def alarms(
    loaded: LoadedNetwork, known: dict[str, Known], volume: Tensor, name: str, protocol: Protocol
) -> dict[str, bool]:
    """Of one scan of a volume's full k-space (slices, 1, y, x): what the weights say they are not for, and by kind."""
    image_of, found, said = partial(reconstruct_acquisition, loaded.network), [], False
    for index in looked_at(len(volume)):
        one = simulated_repetitions(volume[index : index + 1], 0, name, protocol).first
        said |= bool(cautions(loaded, one.mask, one.mask.mean().item()))
        one = with_sensitivity_maps(one)[0] if one.kspace.shape[1] > 1 else one
        found.append(statistics_of(one, image_of))
    statistics = mean_of(found)
    return {SAID: said} | {kind: unlike(known[kind], getattr(statistics, kind)).alarm for kind in KINDS}


def run(setting: Setting) -> str:
    data, quick = data_folder(setting.data), setting.quick
    folder = without(volumes_in(data), UNKNOWN_CONTRAST, setting.output / "alarms-data")
    protocol = {"masks": ROULETTE.masks, "acceleration": ROULETTE.acceleration, "method": "noise2noise"}
    options = comparison_options(
        folder, steps=4 if quick else STEPS, batch_size=2, matrix_size=MATRIX, protocol=protocol
    )
    run = setting.output / f"alarms{'-quick' if quick else ''}"
    made = trained(options, run)
    loaded = load_for_use(run / "weights.safetensors", "cpu")
    known = known_of(loaded.header)
    sources, times = test_sources(data, MATRIX), 1 if quick else TIMES
    volumes = {source.name: source.load() for source in sources}
    text = f"Trained on: {made_of([made['made']])}; statistics of {len(known['image'].distances)} scans of {known['image'].subjects} training subjects.\n\n"
    rows = [of_scans(one, volumes, times, loaded, known) for one in SCANS]
    text += table(["scans", "", "not trained for", "image unlike", "acquisition unlike", "any", "wanted"], rows)
    rows = [of_spikes(share, volumes, times) for share in SHARES]
    text += "\n" + table(["share of spikes", "scans", "found", "wanted"], rows)
    rows = [of_motion(label, volumes, times) for label in MOVED]
    return text + "\n" + table(["the second repetition", "slices", "found", "wanted"], rows)


def volumes_in(data: Path) -> Path:
    """The folder below `data` that holds the volumes."""
    return next(path for path in sorted(data.rglob("*.nii*"))).parent


def of_scans(
    one: Unlikeness, volumes: dict[str, Tensor], times: int, loaded: LoadedNetwork, known: dict[str, Known]
) -> list[object]:
    some = {name: volume for name, volume in volumes.items() if any(part in name for part in one.contrasts)}
    found = [
        alarms(loaded, known, volume, f"{one.title} {time} {name}", one.protocol)
        for name, volume in some.items()
        for time in range(times)
    ]
    of = lambda kinds: float(np.mean([any(each[kind] for kind in kinds) for each in found]))  # noqa: E731
    shares = [f"{of(kinds):.0%}" for kinds in ([SAID], ["image"], ["acquisition"], [SAID, *KINDS])]
    return [one.title, f"{len(found)}", *shares, judged(of([SAID, *KINDS]), one.gross)]


def judged(rate: float, gross: bool | None) -> str:
    """Against what is wanted of a rate; nothing of small changes."""
    if gross is None:
        return f"about {FALSE:.0%}"
    return f"{WANTED:.0%}: {verdict(rate >= WANTED)}" if gross else ""


def of_spikes(share: float, volumes: dict[str, Tensor], times: int) -> list[object]:
    """A scan is warned of where any of three slices has a spike."""
    found = []
    for name, volume in volumes.items():
        for time in range(times):
            draw, any_spike = seeded(SEED, "alarms", share, name, time), False
            for index in looked_at(len(volume)):
                kspace = corrupted_kspace(volume[index : index + 1], "spikes", (share, share), draw)
                mask = draw_mask("roulette", (MATRIX, MATRIX), 6.0, draw).mask
                any_spike |= spikes((kspace * mask)[0], mask) > 0
            found.append(any_spike)
    rate = float(np.mean(found))
    return [f"{share:.2%}", len(found), f"{rate:.0%}", judged(rate, None if not share else share == max(SHARES))]


def of_motion(label: str, volumes: dict[str, Tensor], times: int) -> list[object]:
    (dy, dx), degrees, gain, gross = MOVED[label]
    found = []
    for name, volume in volumes.items():
        full = volume[len(volume) // 2][None]
        for time in range(times):
            draw = seeded(SEED, "alarms", label, name, time)
            first, second = (
                measure(one, draw_mask("gaussian-points", (MATRIX, MATRIX), 6.0, draw), draw, noise_variance=1e-6)
                for one in (full, gain * moved(full, (dy, dx), degrees))
            )
            both = (first.mask * second.mask)[0, 0]
            found.append(bool(agreement(first.kspace[0], second.kspace[0], both).differences))
    rate = float(np.mean(found))
    return [label, len(found), f"{rate:.0%}", judged(rate, gross)]


def moved(full: Tensor, shift: tuple[float, float], degrees: float) -> Tensor:
    """Full k-space (1, 1, y, x) of the object turned about the middle and shifted by (y, x) pixels."""
    image = ifft2c(full)[0, 0].real.numpy()
    turned = ndimage.rotate(image, degrees, reshape=False, order=3) if degrees else image
    kspace = fft2c(torch.from_numpy(np.ascontiguousarray(turned))[None, None].to(torch.complex64))
    ky, kx = ((torch.arange(n) - n // 2) / n for n in image.shape)
    angle = -2 * torch.pi * (ky[:, None] * shift[0] + kx[None, :] * shift[1])
    return kspace * torch.polar(torch.ones_like(angle), angle)
