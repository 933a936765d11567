"""Against deepinv, trained with its own k-weighted splitting loss

deepinv (`pip install deepinv`) is the best known library with self-supervised losses for MRI. Cell `lines` of `benchmark
methods` (8 simulated coils, Gaussian lines 6x, 128x128, fixed acquisitions): its MultiCoilMRI physics with our sensitivity
maps, its unrolled MoDL with its U-Net, of about as many parameters as the default here, its WeightedSplittingLoss with the
densities of these masks, split as the default's splitting methods do, but that in the
centre too a tenth of the lines is held out, given the union of the two acquisitions (equal scan time), Adam with the default's schedule and the better
of two learning rates on subject 12, the moving average of its weights, its own arithmetic (float32), no limit of gradients,
batches of the same size and as many processor seconds of training as the default, which runs on the processor too. Its initial weights are not seeded. Tested on the same samples, network alone, without the mean over mirror images; zero-filled
is the root-sum-of-squares of the coil images.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mri_n2n.acquisition import Acquisition
from mri_n2n.batches import training_batches
from mri_n2n.benchmarks.common import (
    Setting,
    comparison_options,
    made_of,
    steps_in,
    table,
    trained,
    verdict,
    write_json,
)
from mri_n2n.benchmarks.methods import CELLS, EVERY, MATRIX, options_of, step_seconds, training_clock
from mri_n2n.benchmarks.subjects import data_folder, test_sources
from mri_n2n.checkpoint import load_network, load_tensors, save_tensors
from mri_n2n.coils import with_sensitivity_maps
from mri_n2n.errors import NotFoundError
from mri_n2n.fourier import ifft2c
from mri_n2n.inference import reconstruct_acquisition
from mri_n2n.metrics import psnr_per_slice
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.options import TrainOptions
from mri_n2n.pairs import keep_probability
from mri_n2n.protocol import simulated_repetitions
from mri_n2n.schedule import set_schedule
from mri_n2n.training import moving_average, sources_of
from mri_n2n.validation import validation_set

CELL = CELLS["lines"]
RATES = (3e-4, 1e-3)  # of learning
ITERATIONS = 3  # of MoDL, its default
KEPT = 0.9  # at most, of the centre too: where nothing is held out its loss says nothing, and MoDL keeps no samples as measured
CHANNELS = (32, 64, 128, 256)  # of its U-Net: 2.1 million parameters; the default here has 2.4


def physics_of(acquisition: Acquisition):
    """deepinv's operator of one acquisition (batch, coils, y, x)."""
    from deepinv.physics import MultiCoilMRI

    mask = acquisition.mask.expand(len(acquisition.kspace), 1, *acquisition.kspace.shape[-2:])
    return MultiCoilMRI(mask=mask, coil_maps=acquisition.sensitivity_maps, img_size=tuple(mask.shape[-2:]))


def as_deepinv(kspace: Tensor) -> Tensor:
    """(batch, coils, y, x) complex -> (batch, 2, coils, y, x) real."""
    return torch.stack((kspace.real, kspace.imag), dim=1)


def splitting_loss(acquisition: Acquisition):
    """deepinv's k-weighted loss for scans of the density of `acquisition`, split as `pairs.split` does."""
    from deepinv.loss.mri import WeightedSplittingLoss
    from deepinv.physics.generator import BaseMaskGenerator, MultiplicativeSplittingMaskGenerator

    keep = keep_probability(acquisition.slices(torch.tensor([0])), 0.5)[0].clamp_max(KEPT)

    class Known(BaseMaskGenerator):
        """Lines drawn with a known probability (1, y, x)."""

        def __init__(self, probability: Tensor) -> None:
            super().__init__(img_size=tuple(probability.shape), acceleration=1 / probability.mean().item())
            self.probability = probability

        def get_pdf(self) -> Tensor:
            return self.probability[0, 0]

        def sample_mask(self, mask: Tensor) -> Tensor:
            return (
                (torch.rand(self.probability.shape[-1], generator=self.rng) < self.get_pdf()).expand_as(mask).to(mask)
            )

        def step(self, batch_size: int = 1, seed: int | None = None, img_size=None, **_) -> dict:
            self.rng_manual_seed(seed)
            lines = torch.rand((batch_size, 1, 1, self.probability.shape[-1]), generator=self.rng)
            return {"mask": (lines < self.probability[None]).to(self.probability)}

        def average(self, *_, **__) -> dict:
            return {"mask": self.probability}

    class Splitting(MultiplicativeSplittingMaskGenerator):
        def average(self, *_, **__) -> dict:
            return {"mask": keep}

    shape = tuple(keep.shape)
    each = nn.MSELoss(reduction="none")
    return WeightedSplittingLoss(Splitting(shape, Known(keep)), Known(acquisition.probability[0]), metric=each)


def unrolled() -> nn.Module:
    from deepinv.models import MoDL, UNet

    class Denoiser(nn.Module):
        """deepinv's U-Net; the noise level that its algorithms hand on is not used by it."""

        def __init__(self) -> None:
            super().__init__()
            self.unet = UNet(2, 2, scales=len(CHANNELS), channels_per_scale=CHANNELS, batch_norm=False)

        def forward(self, image: Tensor, *_: object) -> Tensor:
            return self.unet(image)

    return MoDL(denoiser=Denoiser(), num_iter=ITERATIONS)


def scaled(acquisition: Acquisition) -> tuple[Acquisition, Tensor]:
    """With the largest magnitude of each zero-filled image 1, as networks like it, and that magnitude."""
    zero_filled = (acquisition.sensitivity_maps.conj() * ifft2c(acquisition.kspace)).sum(dim=1, keepdim=True)
    largest = zero_filled.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
    return replace(acquisition, kspace=acquisition.kspace / largest), largest


def step(network: nn.Module, loss, optimizer: torch.optim.Optimizer, scan: Acquisition) -> None:
    """One step of deepinv's training on a batch of single scans."""
    scan, largest = scaled(scan)
    physics, measured = physics_of(scan), as_deepinv(scan.kspace)
    image = network(measured, physics, update_parameters=True)
    # An error for each sample of k-space (batch, 2, coils, y, x), back on the scale of the volume as the default's.
    value = (loss(image, measured, physics, network) * largest[..., None].square()).mean()
    optimizer.zero_grad()
    value.backward()
    optimizer.step()


def trained_peer(options: TrainOptions, steps: int, rate: float, kept: Path) -> nn.Module:
    """deepinv's network after `steps`, the moving average of its weights; from `kept` when it is there."""
    batches = training_batches(sources_of(options).train, options.protocol, options.batch_size)
    [[first]] = islice(training_batches(sources_of(options).train[:1], options.protocol, options.batch_size), 1)
    loss = splitting_loss(first.input)
    network = loss.adapt_model(unrolled()).train()
    average = AveragedModel(network, avg_fn=partial(moving_average, options.average))
    if kept.exists():
        average.module.load_state_dict(load_tensors(kept)[0])
        return average.module.eval()
    optimizer = torch.optim.Adam(network.parameters(), lr=rate, betas=(0.9, 0.99))
    for number in range(steps):
        set_schedule(optimizer, replace(options, learning_rate=rate), number / steps)
        step(network, loss, optimizer, next(batches)[0].input)
        average.update_parameters(network)
    own = {name: value.clone() for name, value in average.module.state_dict().items()}  # some share memory
    save_tensors(kept, own, {"steps": steps, "learning_rate": rate})
    return average.module.eval()


def better_peer(options: TrainOptions, steps: int, folder: Path) -> tuple[nn.Module, float]:
    """Of the trainings with `RATES` the one that is better on subject 12, and its learning rate."""
    items = validation_set(sources_of(options).validation, options.protocol)
    best: tuple[float, nn.Module, float] | None = None
    for rate in RATES:
        peer = trained_peer(options, steps, rate, folder / f"peer-{steps}-{rate:g}.safetensors")
        psnr = [
            psnr_per_slice(item.reference[:, 0].numpy(), peer_images(peer, item.first)[:, 0].numpy()) for item in items
        ]
        if best is None or np.mean(psnr) > best[0]:
            best = float(np.mean(psnr)), peer, rate
    return best[1], best[2]


def peer_step_seconds(options: TrainOptions, rounds: int) -> float:
    """Median seconds of a step of deepinv's training, on the processor, by `methods.training_clock`."""
    clock = training_clock(torch.device("cpu"))
    source = sources_of(options).train[0]
    batches = training_batches([source], options.protocol, options.batch_size)
    for _ in range(6 * -(-source.slices // options.batch_size)):  # as in `step_seconds`
        [pair] = next(batches)
    loss = splitting_loss(pair.input)
    network = loss.adapt_model(unrolled()).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)
    seconds = []
    for _ in range(rounds + 1):
        started = clock()
        step(network, loss, optimizer, next(batches)[0].input)
        seconds.append(clock() - started)
    return statistics.median(seconds[1:])


@torch.no_grad()
def peer_images(network: nn.Module, acquisition: Acquisition) -> Tensor:
    """Magnitudes (slices, 1, y, x), slice by slice."""
    images = []
    for index in range(len(acquisition.kspace)):
        one, largest = scaled(acquisition.slices(torch.tensor([index])))
        image = network(as_deepinv(one.kspace), physics_of(one))
        images.append(largest * image.norm(dim=1, keepdim=True))
    return torch.cat(images)


def run(setting: Setting) -> str:
    try:
        import deepinv
    except ImportError:
        raise NotFoundError("this benchmark compares with deepinv; install it: pip install deepinv") from None
    data, output, quick = data_folder(setting.data), setting.output, setting.quick
    folder = output / f"deepinv{'-quick' if quick else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    # Of single scans this method's input is the whole scan, which deepinv splits itself.
    single = options_of(data, CELL, {"method": "equivariant"}, 1)
    ours = replace(options_of(data, CELL, {"method": "noise2noise"}, 1), device="cpu")
    kept, rounds = folder / "step-seconds.json", 1 if quick else 5
    if not kept.exists():
        write_json(kept, step_seconds({"default": ours}, rounds) | {"deepinv": peer_step_seconds(single, rounds)})
    seconds = json.loads(kept.read_text())
    steps = {label: steps_in(setting.minutes, seconds[label], quick) for label in seconds}
    run = folder / f"default-{steps['default']}"
    made = trained(replace(ours, steps=steps["default"]), run)["made"]
    network, _ = load_network(run / "weights.safetensors")
    peer, rate = better_peer(single, steps["deepinv"], folder)
    protocol = comparison_options(data, steps=1, protocol=CELL.protocol).protocol
    found: dict[str, list[float]] = {"zero-filled": [], "deepinv": [], "default": []}
    for source in test_sources(data, MATRIX)[: 1 if quick else None]:
        for full in source.load()[:: 12 if quick else EVERY]:
            measured = simulated_repetitions(full[None], 0, f"test {source.name}", protocol)
            acquisition = with_sensitivity_maps(measured.first)[0]
            reference = root_sum_of_squares(ifft2c(measured.full)).numpy()
            images = {
                "zero-filled": root_sum_of_squares(ifft2c(acquisition.kspace)),
                "deepinv": peer_images(peer, acquisition)[:, 0],
                "default": reconstruct_acquisition(network, acquisition)[:, 0].abs(),
            }
            for label, image in images.items():
                found[label] += psnr_per_slice(reference, image.numpy()).tolist()
    parameters = {
        "zero-filled": "",
        "deepinv": sum(p.numel() for p in peer.parameters()),
        "default": sum(p.numel() for p in network.parameters()),
    }
    rows = [
        [label, parameters[label], steps.get(label, ""), seconds.get(label, ""), float(np.mean(values))]
        for label, values in found.items()
    ]
    ahead = np.array(found["default"]) - np.array(found["deepinv"])
    short = np.mean(found["deepinv"]) < np.mean(found["zero-filled"])
    caution = "In this time deepinv's network did not come above zero-filling: no comparison yet. " if short else ""
    return table(["", "parameters", "steps", "seconds per step", "PSNR per slice (dB)"], rows) + (
        f"\n{caution}{setting.minutes:g} minutes of training each (ours on: {made_of([made])}), deepinv {deepinv.__version__}, learning rate {rate:g}. The default is {ahead.mean():+.2f} dB ahead "
        f"(one subject, one training; ± {2 * ahead.std(ddof=1) / len(ahead) ** 0.5:.2f}, two standard errors over {len(ahead)} slices); wanted: ahead, "
        f"{verdict(ahead.mean() > 0)}.\n"
    )
