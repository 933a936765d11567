"""One noisy scan and nothing else: Noise2Void against its peers

The T1W volume of subject 04 at 128x128, each slice with a smooth random phase of its own, and noise in all of it: white, of standard
deviation 5, 10 and 25 of 255 (E|n|^2 of the complex number, volume maximum 255), and of 25 correlated along x (a Gaussian of one
pixel). Everyone has this volume alone, but for Noise2Noise, which has a second repetition of it, and supervised, which has the
truth: for comparison, with the network of N2V. Ours is as `denoise` does it: N2V2 and N2V, and structN2V, hiding one pixel farther
than the correlation that was measured, where `denoise` chooses it: the mean over four mirror images, put together with what pixels
themselves say at the level of the noise that was measured (where it is told); beside it what the network says alone, and that in one pass.
CAREamics (`pip install careamics`) trains on patches of 64x64, as many pixels a step as ours, real and imaginary part as two channels of
one network, in use one pass; where ours is structN2V, its structN2V with the same span, with the network of N2V and with that of
N2V2, and mirrored patches without rotations; all else, also the learning rate and the share of hidden pixels, is its default. BM3D
(`pip install bm3d`), non-local means and wavelets (`pip install scikit-image`, Haar, its default) clean real and imaginary part, told
the standard deviation; BM3D is told the power spectrum of correlated noise too, which the other two cannot be. Equal training time for all that train,
processor seconds over threads: the steps that fit, by the time of a step, set-up left out. PSNR of magnitudes clamped to [0, 1], peak
1 = the volume's maximum, mean over slices: everywhere (more than half is background, set to zero in this data) and inside the
object, where the truth is above 0.05, which verdicts go by. One training each, one seed, one volume.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from mri_n2n.benchmarks.common import SEED, Setting, made_now, made_of, steps_in, table, verdict, write_json
from mri_n2n.benchmarks.peers import OfRealImage, blurred_spectrum, bm3d_of, installed, part_by_part
from mri_n2n.benchmarks.subjects import TEST_CONTRAST, data_folder, test_sources
from mri_n2n.channels import as_channels, as_complex
from mri_n2n.denoising.cleaning import Plan, finished, training_for
from mri_n2n.denoising.self_training import DenoiseOptions, clean, fit
from mri_n2n.denoising.whiteness import described, measure_whiteness
from mri_n2n.errors import NotFoundError
from mri_n2n.files import atomic_output
from mri_n2n.fourier import ifft2c
from mri_n2n.metrics import psnr_per_slice
from mri_n2n.report import montage
from mri_n2n.simulation import seeded, smooth_phase
from mri_n2n.sources import Source

MATRIX, PATCH = 128, 64
PARTS = ("white-5", "white-10", "white-25", "correlated-25")
OBJECT = 0.05  # of the volume's maximum: what is darker is not counted as inside
CPU = torch.device("cpu")
ALONE, ONE_PASS = ", network alone", ", one pass"
NOISE2NOISE = "Noise2Noise, two repetitions"


def deviation_of(part: str) -> float:
    return int(part.split("-")[1]) / 255


def spectrum_of(part: str, shape: tuple[int, int]) -> np.ndarray | None:
    """Power spectrum (y, x) of the noise, see `peers.blurred_spectrum`; None where it is white."""
    return blurred_spectrum(shape, (0.0, 1.0)) if part.startswith("correlated") else None


def noise_of(part: str, shape: tuple[int, int, int], repetition: int) -> Tensor:
    """Complex noise (slices, y, x)."""
    noise = torch.randn(shape, dtype=torch.complex64, generator=seeded(SEED, part, repetition))
    spectrum = spectrum_of(part, shape[1:])
    if spectrum is not None:
        noise = torch.fft.ifft2(torch.from_numpy(np.sqrt(spectrum)).float() * torch.fft.fft2(noise))
    return deviation_of(part) * noise


def truth_of(source: Source, every: int) -> Tensor:
    """Complex images (slices, y, x): every n-th slice of a volume, each with a phase of its own."""
    magnitudes = ifft2c(source.load()[::every])[:, 0]
    phases = [
        smooth_phase(tuple(magnitudes.shape[1:]), seeded(SEED, "phase", source.name, i)) for i in range(len(magnitudes))
    ]
    return magnitudes * torch.stack(phases)


def step_seconds(images: Tensor, options: DenoiseOptions, targets: Tensor | None) -> float:
    """Processor seconds over threads of a step: of forty more of them, so that what is done once is not in it."""
    seconds = []
    for steps in (1, 5, 45):  # the first warms up
        started = time.process_time()
        fit(images, replace(options, steps=steps), CPU, targets)
        seconds.append((time.process_time() - started) / torch.get_num_threads())
    return (seconds[2] - seconds[1]) / 40


def by_itself(
    noisy: Tensor, options: DenoiseOptions, targets: Tensor | None, minutes: float, quick: bool
) -> tuple[Tensor, int]:
    """((mean over mirror images, one pass), steps) of what a network says that is trained on the volume for a time."""
    scale = as_channels(noisy[:, None]).std()
    images = as_channels(noisy[:, None]) / scale
    targets = None if targets is None else as_channels(targets[:, None]) / scale
    options = replace(options, minutes=None)
    steps = steps_in(minutes, step_seconds(images, options, targets), quick)
    network = fit(images, replace(options, steps=steps), CPU, targets).network
    with torch.inference_mode():
        once = torch.cat([network(one) for one in images.split(1)])
    mean = clean(network, images, options.dimensions, CPU)
    return torch.stack([as_complex(scale * mean)[:, 0], as_complex(scale * once)[:, 0]]), steps


def careamics_images(noisy: Tensor, pixels: int, minutes: float, quick: bool, **options) -> tuple[Tensor, int]:
    """(cleaned, steps) by CAREamics' Noise2Void. pixels: of a step. options: of its configuration."""
    from careamics import CAREamist
    from careamics.config.factories.n2v_factory import create_advanced_n2v_config

    array = as_channels(noisy[:, None]).numpy()
    batch_size = max(1, pixels // PATCH**2)

    def trained_for(epochs: int, folder: Path) -> CAREamist:
        config = create_advanced_n2v_config(
            experiment_name="peer",
            data_type="array",
            axes="SCYX",
            patch_size=[PATCH, PATCH],
            batch_size=batch_size,
            num_epochs=epochs,
            n_channels=2,
            independent_channels=False,
            num_workers=0,
            seed=1,
            trainer_params={"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"},
            **options,
        )
        peer = CAREamist(config, work_dir=folder / str(epochs), enable_progress_bar=False)
        peer.train(train_data=array)
        return peer

    with TemporaryDirectory() as name:
        folder, seconds = Path(name), []
        for epochs in (1, 2, 4):  # the first warms up; of the others the difference, without what is done once
            started = time.process_time()
            trained_for(epochs, folder)
            seconds.append((time.process_time() - started) / torch.get_num_threads())
        epochs = 1 if quick else max(1, round(60 * minutes / ((seconds[2] - seconds[1]) / 2)))
        peer = trained_for(epochs, folder)
        steps = peer.trainer.global_step
        cleaned = peer.predict(pred_data=array)[0][0]
    return as_complex(torch.from_numpy(np.asarray(cleaned, np.float32)))[:, 0], steps


def careamics_options(ours: DenoiseOptions | None) -> dict[str, dict]:
    """label -> options of its configuration. ours: of structN2V, where it is chosen."""
    found = {"CAREamics N2V": {}, "CAREamics N2V2": {"use_n2v2": True}}
    if ours is not None:
        y, x = ours.spot.span
        # Its span is that of the whole mask. Mirrored noise has the same correlation, turned noise has not.
        mask = {
            "struct_n2v_axes": "horizontal" if x else "vertical",
            "struct_n2v_span": 2 * max(y, x) + 1,
            "augmentations": ["x_flip", "y_flip"],
        }
        found |= {"CAREamics structN2V": mask, "CAREamics structN2V, of N2V2": mask | {"use_n2v2": True}}
    return found


def classical(deviation: float, spectrum: np.ndarray | None) -> dict[str, OfRealImage]:
    """Methods for real images (y, x), of those that are installed. deviation: of real and imaginary part."""
    found = {}
    if (bm3d := bm3d_of(deviation, spectrum)) is not None:
        found["BM3D"] = bm3d
    if (skimage := installed("skimage.restoration")) is not None:
        of_patches = {"h": 0.8 * deviation, "sigma": deviation, "patch_size": 5, "patch_distance": 6, "fast_mode": True}
        found["non-local means"] = lambda one: skimage.denoise_nl_means(one, **of_patches)
        found["wavelets"] = lambda one: skimage.denoise_wavelet(one, sigma=deviation, rescale_sigma=True)
    return found


def run(setting: Setting, part: str) -> str:
    data, quick, minutes = data_folder(setting.data), setting.quick, setting.minutes
    folder = setting.output / f"noise2void-{part}-{minutes:g}{'-quick' if quick else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    source = next((s for s in test_sources(data, MATRIX) if TEST_CONTRAST in s.name), None)
    if source is None:
        raise NotFoundError(f"the test subject in {data} has no {TEST_CONTRAST} volume")
    truth = truth_of(source, 12 if quick else 1)
    shape = tuple(truth.shape)
    noisy, second = (truth + noise_of(part, shape, repetition) for repetition in (1, 2))
    whiteness = measure_whiteness(noisy.numpy())
    ours = {name: training_for(Plan(method=name), whiteness)[0] for name in ("n2v2", "n2v")}
    chosen, method = training_for(Plan(), whiteness)
    structured = chosen if method == "structn2v" else None
    trainings = {"N2V2": (ours["n2v2"], None), "N2V": (ours["n2v"], None)}
    trainings |= {"structN2V": (structured, None)} if structured else {}
    trainings |= {NOISE2NOISE: (ours["n2v"], second), "supervised": (ours["n2v"], truth)}
    found = {"noisy": (noisy, "", {})}
    for label, (options, targets) in trainings.items():
        make = lambda o=options, t=targets: by_itself(noisy, o, t, minutes, quick)
        both, steps, made = kept(folder, label, asdict(options), make)
        alone = label if targets is not None else label + ALONE
        if targets is None:
            found[label] = with_own(noisy, both[0], whiteness.deviation), steps, made
        found[alone], found[alone + ONE_PASS] = (both[0], steps, made), (both[1], steps, made)
    if installed("careamics") is not None:
        pixels = ours["n2v"].batch_size * shape[1] * shape[2]
        for label, options in careamics_options(structured).items():
            make = lambda o=options: careamics_images(noisy, pixels, minutes, quick, **o)
            found[label] = kept(folder, label, options | {"pixels": pixels}, make)
    deviation = deviation_of(part) / 2**0.5
    for label, of_image in classical(deviation, spectrum_of(part, shape[1:])).items():
        found[label] = kept(folder, label, {}, lambda m=of_image: (part_by_part(noisy, m), ""))
    best = "structN2V" if structured else "N2V2"
    return section(part, truth, found, best, f"the noise: {described(whiteness)}", setting)


def with_own(noisy: Tensor, predicted: Tensor, level: float) -> Tensor:
    """As `denoise` has it, of complex images."""
    return finished(as_channels(noisy[:, None]), as_channels(predicted[:, None]), "complex", None, level)[0]


def kept(folder: Path, label: str, of: dict, make: Callable[[], tuple[Tensor, object]]) -> tuple[Tensor, object, dict]:
    """(images, steps, made), from the folder where it has them and they were made with the same options, `of`."""
    stem = "".join(c if c.isalnum() else "-" for c in label)
    images, about = folder / f"{stem}.npy", folder / f"{stem}.json"
    of = json.loads(json.dumps(of))
    if not about.exists() or json.loads(about.read_text())["of"] != of:
        cleaned, steps = make()
        with atomic_output(images, force=True) as temporary, open(temporary, "wb") as file:
            np.save(file, cleaned.numpy())
        write_json(about, {"of": of, "steps": steps, "made": made_now()})
    facts = json.loads(about.read_text())
    return torch.from_numpy(np.load(images)), facts["steps"], facts["made"]


def psnr_inside(truth: np.ndarray, images: np.ndarray) -> np.ndarray:
    """As `psnr_per_slice`, over the pixels of the object; of the slices that show it."""
    inside = truth > OBJECT
    shown = inside.any(axis=(1, 2))
    error = (np.square(np.clip(images, 0, 1) - np.clip(truth, 0, 1)) * inside)[shown].sum(axis=(1, 2))
    return -10 * np.log10(np.maximum(error / inside[shown].sum(axis=(1, 2)), 1e-12))


def section(part: str, truth: Tensor, found: dict, best: str, said: str, setting: Setting) -> str:
    """Table, verdicts and picture."""
    magnitude = truth.abs().numpy()
    inside = {label: psnr_inside(magnitude, images.abs().numpy()) for label, (images, *_) in found.items()}
    everywhere = {label: psnr_per_slice(magnitude, images.abs().numpy()) for label, (images, *_) in found.items()}
    rows = [
        [label, steps, float(inside[label].mean()), float(everywhere[label].mean())]
        for label, (_, steps, _) in found.items()
    ]
    made = made_of([made for *_, made in found.values()])
    text = f"{setting.minutes:g} minutes of training each; {said}; the object is {np.mean(magnitude > OBJECT):.0%} of the pixels. "
    text += f"Made on: {made}.\n\n" + table(["", "steps", "PSNR inside (dB)", "PSNR everywhere (dB)"], rows)
    wanted = [(best, "noisy", 3.0), (NOISE2NOISE, best, 0.0)]
    peers = [label for label in found if label.startswith("CAREamics")]
    wanted += [(first, label, 0.0) for first in (best, best + ALONE + ONE_PASS) for label in peers]
    for first, other, least in wanted:
        ahead = float((inside[first] - inside[other]).mean())
        also = float((everywhere[first] - everywhere[other]).mean())
        text += (
            f"\n- {first} is {ahead:+.2f} dB from {other} inside ({also:+.2f} everywhere); wanted: at least {least:+.2f} inside, "
            f"{verdict(ahead >= least)}."
        )
    if setting.docs is not None:
        middle = len(truth) // 2
        panels = [("truth", magnitude[middle], (0.0, 0.8))]
        panels += [
            (label, images[middle].abs().numpy(), (0.0, 0.8))
            for label, (images, *_) in found.items()
            if not label.endswith((ALONE, ONE_PASS))
        ]
        with atomic_output(setting.docs / "images" / f"noise2void-{part}.png", force=True) as temporary:
            montage(panels, temporary, columns=5, note="simulated noise")
        text += f"\n\n![{part}](images/noise2void-{part}.png)\n"
    return text
