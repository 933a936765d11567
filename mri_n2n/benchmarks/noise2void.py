"""One noisy scan and nothing else: Noise2Void against its peers

The T1W volume of subject 04 at 128x128, complex, with noise added to all of its k-space: white, of standard deviation 5, 10 and 25
of 255 (E|n|^2 of the complex number, volume maximum 255), and of 25 correlated along x (a Gaussian of one pixel). Everyone has this volume alone,
but for Noise2Noise, which has a second repetition of it, and supervised, which has the truth: upper bounds. N2V and N2V2 here,
structN2V where `denoise` chooses it; N2V and N2V2 of CAREamics (`pip install careamics`), defaults but for patches of 64x64 in
batches of 16 (as many pixels as a step here), real and imaginary part as two channels, its structN2V where ours is chosen; BM3D
(`pip install bm3d`), non-local means and wavelets (`pip install scikit-image`) on real and imaginary part, given the
standard deviation. Equal training time, processor seconds over threads, for all that train; ours is applied to four
mirror images, theirs once. PSNR per slice, magnitudes clamped to [0, 1], peak 1 = the volume's maximum. One training each, one seed.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from mri_n2n.benchmarks.common import SEED, Setting, made_now, made_of, steps_in, table, verdict, write_json
from mri_n2n.benchmarks.subjects import TEST_CONTRAST, data_folder, test_sources
from mri_n2n.denoising.denoise import Plan, settled
from mri_n2n.denoising.self_training import DenoiseOptions, clean, fit
from mri_n2n.denoising.whiteness import measure_whiteness
from mri_n2n.device import choose_device
from mri_n2n.errors import NotFoundError
from mri_n2n.files import atomic_output
from mri_n2n.fourier import ifft2c
from mri_n2n.metrics import psnr_per_slice
from mri_n2n.report import montage
from mri_n2n.simulation import seeded

MATRIX = 128
PARTS = ("white-5", "white-10", "white-25", "correlated-25")
CPU = torch.device("cpu")


def noise_of(part: str, shape: tuple[int, ...], repetition: int) -> Tensor:
    kind, level = part.split("-")
    noise = torch.randn(shape, dtype=torch.complex64, generator=seeded(SEED, part, repetition))
    if kind == "correlated":
        parts = [ndimage.gaussian_filter1d(one.numpy(), 1.0, axis=-1) for one in (noise.real, noise.imag)]
        noise = torch.complex(*map(torch.from_numpy, parts))
        noise = noise / noise.abs().square().mean().sqrt()
    return int(level) / 255 * noise


def as_channels(images: Tensor) -> Tensor:
    return torch.stack([images.real, images.imag], dim=1)


def as_complex(channels: Tensor) -> Tensor:
    return torch.complex(channels[:, 0], channels[:, 1])


def step_seconds(images: Tensor, options: DenoiseOptions, targets: Tensor | None) -> float:
    """Processor seconds over threads of a step, the first ones left out."""
    fit(images, replace(options, steps=1), CPU, targets)
    started = time.process_time()
    fit(images, replace(options, steps=4), CPU, targets)
    return (time.process_time() - started) / 4 / torch.get_num_threads()


def by_itself(noisy: Tensor, options: DenoiseOptions, targets: Tensor | None, minutes: float, quick: bool):
    """(cleaned, steps): trained on the volume for a time."""
    scale = as_channels(noisy).std()
    images = as_channels(noisy) / scale
    targets = None if targets is None else as_channels(targets) / scale
    steps = steps_in(minutes, step_seconds(images, options, targets), quick)
    device = choose_device("cpu")
    fitted = fit(images, replace(options, steps=steps, minutes=None), device, targets)
    return as_complex(scale * clean(fitted.network, images, options.dimensions, device)), steps


def part_by_part(noisy: Tensor, method: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """A method for real images (y, x), on real and imaginary part of each slice."""
    found = [[method(one.numpy()) for one in (image.real, image.imag)] for image in noisy]
    return torch.stack([torch.complex(*(torch.from_numpy(np.float32(part)) for part in parts)) for parts in found])


def careamics_images(noisy: Tensor, folder: Path, minutes: float, quick: bool, **options) -> tuple[Tensor, int]:
    """(cleaned, steps) by CAREamics' Noise2Void; options: of its configuration."""
    from careamics import CAREamist
    from careamics.config.factories.n2v_factory import create_advanced_n2v_config

    array = as_channels(noisy).numpy()
    per_epoch = max(1, len(array) * (array.shape[-1] // 64) * (array.shape[-2] // 64) // 16)
    trainer = {"enable_progress_bar": False, "accelerator": "cpu"}

    def trained_for(epochs: int) -> CAREamist:
        config = create_advanced_n2v_config(
            "peer",
            "array",
            "SCYX",
            [64, 64],
            16,
            epochs,
            per_epoch,
            2,
            num_workers=0,
            seed=1,
            trainer_params=trainer,
            **options,
        )
        peer = CAREamist(config, work_dir=folder / "careamics", enable_progress_bar=False)
        peer.train(train_data=array)
        return peer

    trained_for(1)
    started = time.process_time()
    trained_for(1)
    epoch = (time.process_time() - started) / torch.get_num_threads()
    epochs = 1 if quick else max(1, round(60 * minutes / epoch))
    cleaned = trained_for(epochs).predict(pred_data=array)[0][0]
    return as_complex(torch.from_numpy(np.asarray(cleaned, np.float32))), epochs * per_epoch


def classical(deviation: float) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Methods for real images (y, x), of those that are installed; deviation: of real and imaginary part."""
    found: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    if (bm3d := installed("bm3d")) is not None:
        found["BM3D"] = lambda one: bm3d.bm3d(one, deviation)
    if (skimage := installed("skimage.restoration")) is not None:
        of_patches = {"h": 0.8 * deviation, "sigma": deviation, "patch_size": 5, "patch_distance": 6, "fast_mode": True}
        found["non-local means"] = lambda one: skimage.denoise_nl_means(one, **of_patches)
        found["wavelets"] = lambda one: skimage.denoise_wavelet(one, sigma=deviation, rescale_sigma=True)
    return found


def installed(package: str) -> ModuleType | None:
    try:
        return import_module(package)
    except ImportError:
        warnings.warn(f"{package} is not installed, and what it does is left out", stacklevel=2)
        return None


def run(setting: Setting, part: str) -> str:
    data, quick = data_folder(setting.data), setting.quick
    folder = setting.output / f"noise2void-{part}{'-quick' if quick else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    source = next((s for s in test_sources(data, MATRIX) if TEST_CONTRAST in s.name), None)
    if source is None:
        raise NotFoundError(f"the test subject in {data} has no {TEST_CONTRAST} volume")
    truth = ifft2c(source.load()[:: 12 if quick else 1])[:, 0]
    noisy, second = (truth + noise_of(part, truth.shape, repetition) for repetition in (1, 2))
    deviation = int(part.split("-")[1]) / 255 / 2**0.5
    plans = {"N2V2": "n2v2", "N2V": "n2v"}
    training = DenoiseOptions(steps=1)
    whiteness = measure_whiteness(noisy.numpy())
    if whiteness.verdict == "line":
        plans["structN2V"] = "structn2v"
    trainable = {
        label: (settled(Plan(method=method, training=training), whiteness)[0], None) for label, method in plans.items()
    }
    plain = replace(training, artefact_free=False)
    trainable |= {"Noise2Noise, two repetitions": (plain, second), "supervised": (plain, truth)}
    found = {"noisy": (noisy, "", {})}
    for label, (options, targets) in trainable.items():
        found[label] = kept(folder, label, lambda o=options, t=targets: by_itself(noisy, o, t, setting.minutes, quick))
    if installed("careamics") is not None:
        theirs = {"CAREamics N2V": {}, "CAREamics N2V2": {"use_n2v2": True}}
        if whiteness.verdict == "line":
            axis = "horizontal" if whiteness.reach[2] else "vertical"
            theirs["CAREamics structN2V"] = {"struct_n2v_axes": axis, "augmentations": []}
        for label, chosen in theirs.items():
            found[label] = kept(
                folder, label, lambda c=chosen: careamics_images(noisy, folder, setting.minutes, quick, **c)
            )
    for label, method in classical(deviation).items():
        found[label] = kept(folder, label, lambda m=method: (part_by_part(noisy, m), ""))
    return section(part, truth, found, setting, f"verdict on the noise: {whiteness.verdict}")


def kept(folder: Path, label: str, make: Callable[[], tuple[Tensor, object]]) -> tuple[Tensor, object, dict]:
    """(images, steps, made), from the folder where it has them."""
    stem = "".join(c if c.isalnum() else "-" for c in label)
    images, about = folder / f"{stem}.npy", folder / f"{stem}.json"
    if not about.exists():
        cleaned, steps = make()
        with atomic_output(images, force=True) as temporary, open(temporary, "wb") as file:
            np.save(file, cleaned.numpy())
        write_json(about, {"steps": steps, "made": made_now()})
    facts = json.loads(about.read_text())
    return torch.from_numpy(np.load(images)), facts["steps"], facts["made"]


def section(part: str, truth: Tensor, found: dict, setting: Setting, said: str) -> str:
    scores = {label: psnr_per_slice(truth.abs().numpy(), images.abs().numpy()) for label, (images, *_) in found.items()}
    rows = [[label, steps, float(scores[label].mean())] for label, (_, steps, _) in found.items()]
    text = f"{setting.minutes:g} minutes of training each; {said}. Made on: {made_of([made for *_, made in found.values()])}.\n\n"
    text += table(["", "steps", "PSNR per slice (dB)"], rows)
    best = "structN2V" if "structN2V" in found else "N2V2"
    wanted = [(best, "noisy", 3.0), ("Noise2Noise, two repetitions", best, 0.0)]
    wanted += [(best, label, 0.0) for label in found if label.startswith("CAREamics")]
    for first, other, least in wanted:
        difference = float((scores[first] - scores[other]).mean())
        text += f"\n- {first} is {difference:+.2f} dB from {other}; wanted: at least {least:+.2f}, {verdict(difference >= least)}."
    if setting.docs is not None:
        middle = len(truth) // 2
        panels = [("truth", truth[middle].abs().numpy(), (0.0, 0.8))]
        panels += [(label, images[middle].abs().numpy(), (0.0, 0.8)) for label, (images, *_) in found.items()]
        with atomic_output(setting.docs / "images" / f"noise2void-{part}.png", force=True) as temporary:
            montage(panels, temporary, columns=5, note="simulated noise")
        text += f"\n\n![{part}](images/noise2void-{part}.png)\n"
    return text
