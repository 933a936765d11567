"""What training has not seen: another contrast, another mask, moved anatomy, a lesion, gaps beside the k-space centre

Three short trainings at 128x128 (8 simulated coils, 6x; subjects 01, 03, 09) that differ in what they saw: every contrast and
three families of masks; no FLAIR; no lines. Each is tested on the volumes of subject 04, on what it knows and on what it does not.
Then the bundled weights, at 256x256 on the T1W volume of subject 04 (roulette 8x, one coil), on the anatomy as it lies, turned and
shifted, and with lesions drawn into it: round, of known radius, 30 % brighter or darker than the volume's mean tissue. Kept is
the share of their brightness that the reconstruction shows: the difference of the two reconstructions, with and without the
lesions and from the same samples, averaged inside a lesion, over the lesion's own. Last, masks (roulette 10x) that by chance have no
sample at either neighbour of the k-space centre along an axis, each on a slice of its own, and the same without the neighbours along
the other axis too: what that costs beside the same mask with the 3 x 3 samples about the centre added. Simulated k-space throughout.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from mri_n2n.acquisition import Acquisition
from mri_n2n.baselines import reconstruct_baseline
from mri_n2n.benchmarks.common import (
    SEED,
    Setting,
    comparison_options,
    reconstruct_with,
    score,
    table,
    trained,
    zero_filled,
)
from mri_n2n.benchmarks.subjects import TestVolume, data_folder, test_sources, test_volume
from mri_n2n.checkpoint import BUNDLED, load_network
from mri_n2n.coils import with_sensitivity_maps
from mri_n2n.errors import NotFoundError
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.inference import reconstruct_acquisition
from mri_n2n.masks import draw_mask
from mri_n2n.metrics import psnr_per_slice
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.protocol import Protocol, simulated_repetitions
from mri_n2n.report import montage
from mri_n2n.simulation import acquire, seeded
from mri_n2n.trust.doubts import hollow

PARTS = ("unseen", "moved", "lesions", "gaps")
STEPS = 400  # of 2 slices
FAMILIES = ("roulette", "gaussian-points", "gaussian-lines")
UNKNOWN_CONTRAST, UNKNOWN_MASK = "FLAIR", "gaussian-lines"
RADII = (1.5, 3.0, 6.0)  # of lesions, in pixels
LESIONS = 60  # drawn for each radius and sign
BRIGHTER = 0.3  # of the mean tissue
GAPS, TV = 12, 0.0005  # masks with gaps; the weight of total variation that is best at 10x in `weights`, or near it


def without(data: Path, contrast: str, folder: Path) -> Path:
    """A folder of links to all volumes but those of a contrast."""
    folder.mkdir(parents=True, exist_ok=True)
    for link in folder.iterdir():
        link.unlink()
    for path in sorted(data.iterdir()):
        if contrast not in path.name and path.name.endswith((".nii", ".nii.gz")):
            (folder / path.name).symlink_to(path.resolve())
    return folder


def protocol_of(masks: tuple[str, ...]) -> dict:
    return {"masks": masks, "acceleration": (6.0, 6.0), "coils": (8,)}


def psnr_on(network: torch.nn.Module, data: Path, contrast: str, mask: str, every: int) -> float:
    """Mean PSNR over every n-th slice of the test subject's volumes of a contrast, under a mask, in dB."""
    protocol = Protocol(seed=SEED, **protocol_of((mask,)))
    found, sources = [], [source for source in test_sources(data, 128) if contrast in source.name]
    if not sources:
        raise NotFoundError(f"the test subject in {data} has no {contrast} volume")
    for source in sources:
        for full in source.load()[::every]:
            measured = simulated_repetitions(full[None], 0, f"test {source.name}", protocol)
            reference = root_sum_of_squares(ifft2c(measured.full)).numpy()
            acquisition = with_sensitivity_maps(measured.first)[0]
            image = root_sum_of_squares(reconstruct_acquisition(network, acquisition, flips=True)).numpy()
            found += psnr_per_slice(reference, image).tolist()
    return sum(found) / len(found)


def unseen(data: Path, output: Path, quick: bool) -> str:
    """The table of trainings that did not see a contrast or a family of masks."""
    suffix = "-quick" if quick else ""
    points = tuple(mask for mask in FAMILIES if mask != UNKNOWN_MASK)
    trainings = {
        "everything": (data, FAMILIES),
        f"no {UNKNOWN_CONTRAST}": (without(data, UNKNOWN_CONTRAST, output / f"no-{UNKNOWN_CONTRAST}"), FAMILIES),
        f"no {UNKNOWN_MASK}": (data, points),
    }
    rows = []
    for label, (folder, masks) in trainings.items():
        options = comparison_options(folder, steps=4 if quick else STEPS, batch_size=2, protocol=protocol_of(masks))
        run = output / f"robustness-{label.replace(' ', '-')}{suffix}"
        trained(options, run)
        network, _ = load_network(run / "weights.safetensors")
        cases = [(c, m) for c in ("T1W", "FLAIR") for m in (points[0], UNKNOWN_MASK)]
        rows.append([label, *(psnr_on(network, data, *case, 20 if quick else 4) for case in cases)])
    losses = [rows[0][i] - row[i] for row in rows[1:] for i in range(1, 5)]
    header = ["seen in training", *(f"{c}, {m} (dB)" for c in ("T1W", "FLAIR") for m in (points[0], UNKNOWN_MASK))]
    return table(header, rows) + (
        f"\nWhat was not seen costs {rows[0][3] - rows[1][3]:.2f} dB ({UNKNOWN_CONTRAST}, {points[0]}), {rows[0][4] - rows[1][4]:.2f} dB "
        f"({UNKNOWN_CONTRAST}, {UNKNOWN_MASK}), {rows[0][2] - rows[2][2]:.2f} dB (T1W, {UNKNOWN_MASK}); the largest loss of all is {max(losses):.2f} dB.\n"
    )


def acquired(images: Tensor) -> TestVolume:
    """Real images (slices, y, x) under the test's mask."""
    full = fft2c(images[:, None].to(torch.complex64))
    return TestVolume(full, acquire(full, "roulette", 8.0, seeded(SEED, "test", "roulette"), hermitian=True))


def moved(images: np.ndarray) -> dict[str, np.ndarray]:
    """The anatomy (slices, y, x) as it lies, turned and shifted."""
    turn = lambda angle: ndimage.rotate(images, angle, axes=(1, 2), reshape=False, order=3).clip(0)  # noqa: E731
    return {
        "as it lies": images,
        "turned by 10 degrees": turn(10),
        "turned by 45 degrees": turn(45),
        "turned by 90 degrees": np.ascontiguousarray(np.rot90(images, axes=(1, 2))),
        "shifted by 30 and 20 pixels": np.roll(images, (30, 20), (1, 2)),
    }


def with_lesions(images: np.ndarray, radius: float, sign: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Images (slices, y, x) with lesions, and each lesion: its slice and its profile (y, x), 1 in the middle, 0 outside."""
    draw = np.random.default_rng([SEED, round(10 * radius), sign + 1])
    tissue = images > 0.25 * np.percentile(images, 99)
    inner = ndimage.binary_erosion(tissue, structure=np.ones((1, 2 * int(radius) + 5, 2 * int(radius) + 5)))
    places = np.argwhere(inner)
    y, x = np.mgrid[: images.shape[1], : images.shape[2]]
    changed, lesions, taken = images.copy(), [], []
    for place in draw.permutation(len(places)):
        z, cy, cx = places[place]
        if any(z == other[0] and np.hypot(cy - other[1], cx - other[2]) < 4 * radius + 6 for other in taken):
            continue  # lesions do not overlap
        profile = np.clip(radius + 0.5 - np.hypot(y - cy, x - cx), 0, 1)
        changed[z] += sign * BRIGHTER * images[tissue].mean() * profile
        lesions.append((int(z), profile))
        taken.append((z, cy, cx))
        if len(lesions) == LESIONS:
            break
    return changed.clip(0), lesions


def lesion_section(images: np.ndarray, docs: Path | None, quick: bool) -> str:
    """The table of how much of a lesion is kept, and a picture."""
    before = reconstruct_with(BUNDLED, acquired(torch.from_numpy(images)), flips=True)
    rows, panels = [], []
    for radius in RADII[1:2] if quick else RADII:
        for sign in (1, -1):
            changed, lesions = with_lesions(images, radius, sign)
            test = acquired(torch.from_numpy(changed))
            after = reconstruct_with(BUNDLED, test, flips=True)
            filled = zero_filled(test) - zero_filled(acquired(torch.from_numpy(images)))
            kept, crude = [], []
            for z, profile in lesions:
                true = ((changed - images)[z] * profile).sum()
                kept.append(((after - before)[z] * profile).sum() / true)
                crude.append((filled[z] * profile).sum() / true)
            low, middle, high = np.percentile(kept, (5, 50, 95))
            rows.append(
                [
                    f"{radius:g}",
                    "brighter" if sign > 0 else "darker",
                    len(lesions),
                    f"{np.median(crude):.0%}",
                    f"{middle:.0%}",
                    f"{low:.0%} to {high:.0%}",
                    f"{min(kept):.0%}",
                ]
            )
            if sign > 0:
                z = lesions[0][0]
                panels += [
                    (f"radius {radius:g}: drawn", changed[z], (0.0, 0.8)),
                    ("zero-filled", zero_filled(test)[z], (0.0, 0.8)),
                    ("reconstructed", after[z], (0.0, 0.8)),
                ]
    text = table(["radius (pixels)", "", "lesions", "zero-filled keeps", "kept, median", "5 to 95 %", "least"], rows)
    if docs is not None:
        montage(panels, docs / "images" / "lesions.png", columns=3, note="simulated k-space, drawn lesions")
        text += "\n![drawn lesions](images/lesions.png)\n"
    return text


def run(setting: Setting, part: str) -> str:
    data, docs, quick = data_folder(setting.data), setting.docs, setting.quick
    if part == "unseen":
        return unseen(data, setting.output, quick)
    images = test_volume(data, 256).reference[:: 12 if quick else 2]
    if part == "gaps":
        return gaps_section(images, quick)
    return moved_section(images) if part == "moved" else lesion_section(images, docs, quick)


def hollow_masks(shape: tuple[int, int], count: int) -> tuple[Tensor, int]:
    """(count, 1, y, x): the first roulette masks of real images, 10x, that are hollow, and how many were drawn for them."""
    found, drawn = [], 0
    while len(found) < count:
        mask = draw_mask("roulette", shape, 10.0, seeded(SEED, "gaps", drawn), hermitian=True).mask
        drawn += 1
        found += [mask] if hollow(mask) else []
    return torch.stack(found)[:, None], drawn


def gaps_section(images: np.ndarray, quick: bool) -> str:
    """The table of what gaps beside the centre cost."""
    count = 2 if quick else GAPS
    some = images[np.linspace(0, len(images) - 1, count).round().astype(int)]
    full = fft2c(torch.from_numpy(some)[:, None].to(torch.complex64))
    shape = tuple(full.shape[-2:])
    masks, drawn = hollow_masks(shape, count)
    y, x = (n // 2 for n in shape)
    whole, hollower = masks.clone(), masks.clone()
    whole[..., y - 1 : y + 2, x - 1 : x + 2] = 1
    hollower[..., y, x - 1 : x + 2 : 2] = hollower[..., y - 1 : y + 2 : 2, x] = 0
    tests = [TestVolume(full, Acquisition(full * mask, mask, noise_variance=0.0)) for mask in (whole, masks, hollower)]
    how = {
        "bundled weights": lambda test: reconstruct_with(BUNDLED, test, flips=True),
        f"tv, L = {TV:g}": lambda test: reconstruct_baseline(test.acquisition, "tv", TV)[0][:, 0].abs().numpy(),
    }
    rows = []
    for label, images_of in how.items():
        without, drawn_so, both = (psnr_per_slice(test.reference, images_of(test)) for test in tests)
        costs = [value for cost in (without - drawn_so, without - both) for value in (cost.mean(), cost.max())]
        rows.append([label, *(float(value) for value in (without.mean(), *costs))])
    header = ["", "centre added (dB)", "cost as drawn (dB)", "most", "cost along both axes (dB)", "most"]
    return table(header, rows) + f"\n{count} such masks among the first {drawn}.\n"


def moved_section(images: np.ndarray) -> str:
    """The table of turned and shifted anatomy."""
    rows = []
    for label, turned in moved(images).items():
        test = acquired(torch.from_numpy(turned.astype(np.float32)))
        after = score(reconstruct_with(BUNDLED, test, flips=True), test.reference)
        before = score(zero_filled(test), test.reference)
        rows.append([label, before["slice_psnr"], after["slice_psnr"], after["psnr"], f"{after['ssim']:.3f}"])
    return table(["anatomy", "zero-filled (dB)", "PSNR per slice (dB)", "PSNR volume (dB)", "SSIM"], rows)
