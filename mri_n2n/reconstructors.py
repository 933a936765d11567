"""What makes the images of a scan, a network or a classical baseline, and what its sidecar says of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mri_n2n.acquisition import Acquisition, Scan
from mri_n2n.baselines import not_done, reconstruct_baseline
from mri_n2n.device import choose_device
from mri_n2n.errors import InputError
from mri_n2n.fourier import ifft2c
from mri_n2n.inference import PIXELS_AT_ONCE, LoadedNetwork, cautions, reconstruct_acquisition
from mri_n2n.operators import density_weights
from mri_n2n.regularisation import at_an_end, chosen_regularisation
from mri_n2n.trust.familiarity import Known, known_of, looked_at, mean_of, statistics_of, unlike
from mri_n2n.trust.self_check import ImagesOf, Read

Finish = Callable[[Tensor, float], tuple[dict, list[str], dict[str, np.ndarray]]]


@dataclass(frozen=True)
class Reconstructor:
    """device: where its acquisitions are to be. knows_coils: several coils need sensitivity maps; else each is an image.

    begin: (scan, read) -> (images_of, finish). read(start, stop) gives slices as `images_of` takes them, on the device,
    whitened, with maps. images_of(acquisition) gives complex images (slices, 1 or coils, y, x) on the CPU, on the scan's
    scale; they are asked for in order. After the last of them finish(mask, measured share) gives what the sidecar says (`redo`: the
    options that make the same images again), what
    speaks against the method for this scan, see `inference.cautions`, and further volumes to write.
    """

    device: torch.device
    knows_coils: bool
    begin: Callable[[Scan, Read], tuple[ImagesOf, Finish]]


def network_reconstructor(loaded: LoadedNetwork, *, flips: bool) -> Reconstructor:
    """A network; flips: the mean over the four mirror images of each slice. InputError where the weights' header is damaged."""
    known = known_of(loaded.header)

    def begin(scan: Scan, read: Read) -> tuple[ImagesOf, Finish]:
        scale = intensity_scale(scan, loaded)

        def images_of(acquisition: Acquisition) -> Tensor:
            return scale * reconstruct_acquisition(loaded.network, acquisition, loaded.device, scale, flips=flips)

        facts = {
            "weights": weights_facts(loaded),
            "options": {"device": loaded.device.type, "precision": "float32", "flips": flips},
            "redo": {"baseline": None, "regularisation": None, "flips": flips},
        }

        def finish(mask: Tensor, share: float) -> tuple[dict, list[str], dict[str, np.ndarray]]:
            of_training, against = compared_with_training(scan, read, loaded, known)
            return facts | of_training, cautions(loaded, mask, share) + against, {}

        return images_of, finish

    return Reconstructor(loaded.device, loaded.header["network"] != "unet", begin)  # the 2018 U-Net knows no coils


def compared_with_training(
    scan: Scan, read: Read, loaded: LoadedNetwork, known: dict[str, Known] | None
) -> tuple[dict, list[str]]:
    """(what the sidecar says, what is against the weights) of whether a scan is like those they were trained on, see
    `trust.familiarity`; nothing where the weights do not say."""
    if known is None:
        return {}, []
    image_of = partial(reconstruct_acquisition, loaded.network, device=loaded.device)
    slices = [one for i in looked_at(scan.shape[0]) if (one := read(i, i + 1)).kspace.any()]
    if not slices:
        return {}, []
    statistics = mean_of([statistics_of(one, image_of) for one in slices])
    found = {kind: unlike(known[kind], getattr(statistics, kind)) for kind in known}
    facts = {
        kind: {
            "distance": round(one.distance, 4),
            "share_as_far": round(one.share, 4),
            "subjects": known[kind].subjects,
            "alarm": one.alarm,
        }
        for kind, one in found.items()
    }
    words = {
        "image": "its grey values and their detail",
        "acquisition": "its sampling, or how well samples are predicted",
    }
    against = [
        f"unlike what the weights were trained on by {words[kind]} (distance {one.distance:.1f}; this one "
        f"counted, {one.share:.1%} of the training scans are as far from those of other subjects"
        f"{f', of which there were {known[kind].subjects}' if known[kind].subjects else ''})"
        for kind, one in found.items()
        if one.alarm
    ]
    return {"familiarity": facts}, against


def weights_facts(loaded: LoadedNetwork) -> dict:
    return {
        "name": loaded.path.name,
        "sha256": loaded.sha256,
        "bundled": loaded.bundled,
        "network": loaded.header["network"],
        "method": loaded.header["training"]["protocol"].get("method"),
        "network_options": loaded.header["network_options"],
    }


def baseline_reconstructor(baseline: str, regularisation: float | None, device: str) -> Reconstructor:
    """A classical baseline; regularisation None: chosen for each scan where the baseline has one."""
    chosen = choose_device(device)

    def begin(scan: Scan, read: Read) -> tuple[ImagesOf, Finish]:
        strength, facts = chosen_regularisation(baseline, regularisation, read, scan.shape[0], str(scan.path))
        taken: list[Tensor] = []

        def images_of(acquisition: Acquisition) -> Tensor:
            images, steps = reconstruct_baseline(acquisition, baseline, strength)
            taken.append(steps)
            return images

        def finish(_: Tensor, __: float) -> tuple[dict, list[str], dict[str, np.ndarray]]:
            steps = torch.cat(taken)
            said = {"name": baseline, **facts, "most_iterations": int(steps.max())}
            options = {"device": chosen.type, "precision": "float32"}
            against = at_an_end(facts) + not_done(baseline, steps)
            redo = {"baseline": baseline, "regularisation": regularisation, "flips": None}
            return {"weights": None, "baseline": said, "options": options, "redo": redo}, against, {}

        return images_of, finish

    return Reconstructor(chosen, True, begin)


def intensity_scale(scan: Scan, loaded: LoadedNetwork) -> float:
    """What an intensity is divided by for the network: 1, or for the 2018 U-Net, which was trained on volumes with
    maximum 1, the largest magnitude of the scan's zero-filled images with samples divided by their probability.

    Errors: InputError when that network is to see a scan without stored probability.
    """
    if loaded.header["network"] != "unet":
        return 1.0
    slices, coils, y, x = scan.shape
    largest, at_once = 0.0, max(1, PIXELS_AT_ONCE // (coils * y * x))
    for start in range(0, slices, at_once):
        acquisition = scan.read(start, min(start + at_once, slices))
        if acquisition.probability is None:
            raise InputError(
                f"{scan.path} stores no sampling probability, which weights of the 2018 recipe need; give others with --weights"
            )
        weights = density_weights(acquisition.mask, acquisition.probability)
        largest = max(largest, ifft2c(weights * acquisition.kspace).abs().max().item())
    return largest
