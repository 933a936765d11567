"""How an image was made, in the words of a paper, from its sidecar."""

from __future__ import annotations

from mri_n2n.coils import VIRTUAL_COILS
from mri_n2n.page.citations import cited

UNKNOWN = "The result has no sidecar beside it, so how it was made is not known."

TRAINING = {
    "noise2noise": (
        "from pairs of independently undersampled acquisitions of the same objects, one predicting the other "
        f"{cited('noise2noise')}, its samples weighted by the inverse of their sampling probability"
    ),
    "noise2noise-2018": f"from pairs of independently undersampled acquisitions by the published recipe {cited('noise2noise')}",
    "supervised": "from fully sampled acquisitions",
    "supervised-2018": f"from fully sampled acquisitions by the published recipe {cited('noise2noise')}",
    "ssdu": f"by splitting the samples of each single scan into input and target {cited('ssdu')}",
    "k-weighted-ssdu": (
        f"by splitting the samples of each single scan into input and target {cited('ssdu')}, with weights in k-space "
        f"{cited('k-weighted-ssdu')}"
    ),
    "robust-ssdu": (
        "by splitting the samples of each single scan into input, to which noise was added, and target "
        f"{cited('ssdu', 'k-weighted-ssdu', 'robust-ssdu')}"
    ),
    "equivariant": f"from single scans by the invariance of images to rotations {cited('equivariant')}",
    "robust-equivariant": (
        "from single scans by the invariance of images to rotations, with Stein's unbiased risk estimate against noise "
        f"{cited('robust-equivariant', 'sure')}"
    ),
    "multi-operator": f"from single scans with different sampling masks {cited('multi-operator')}",
    "robust-multi-operator": (
        "from single scans with different sampling masks, with Stein's unbiased risk estimate against noise "
        f"{cited('multi-operator', 'sure')}"
    ),
}
WITH_REFERENCES = ("supervised", "supervised-2018")


def methods_of(sidecar: dict) -> str:
    """A paragraph. Of a sidecar of an earlier version it says what that tells."""
    parts = [_acquisition(sidecar), _coils(sidecar)]
    if "denoise" in sidecar:
        parts.append(_denoising(sidecar))
    elif sidecar.get("baseline"):
        parts.append(_baseline(sidecar["baseline"], _combined(sidecar)))
    elif sidecar.get("weights"):
        parts.append(_network(sidecar["weights"], sidecar.get("options", {}), _combined(sidecar)))
    parts.append(_cropping(sidecar))
    return " ".join(filter(None, parts))


def _combined(sidecar: dict) -> bool:
    return sidecar["coils"] > 1 and sidecar["combination"].startswith("sensitivity maps")


def _acquisition(sidecar: dict) -> str:
    slices, coils, (y, x) = sidecar["slices"], sidecar["coils"], sidecar["matrix"]
    software = sidecar["software"]
    name = f"mri-n2n {software['mri-n2n']} (PyTorch {software['torch']})"
    channels = "single-coil" if coils == 1 else f"{coils}-coil"
    of = f"{slices} slice{'s' * (slices != 1)}, matrix {y} x {x}"
    share, acceleration = sidecar["measured_share"], acceleration_of(sidecar)
    fully = share > 0 and acceleration < 1.005
    verb = "denoised" if "denoise" in sidecar else "reconstructed"
    sampling = "fully sampled" if fully else "undersampled"
    told = "" if fully else f"; {share:.1%} of k-space was sampled, an acceleration factor of {acceleration:.1f}"
    found = (
        "The sampled locations were identified as those of non-zero signal."
        if sidecar["mask_source"] == "zeros"
        else ""
    )
    text = f"Images were {verb} with {name} from {sampling} {channels} Cartesian k-space ({of}{told})."
    if sidecar["input"]["simulated"]:
        text += " The k-space was simulated from images, not measured."
    return f"{text} {found}".strip()


def acceleration_of(sidecar: dict) -> float:
    """Samples of the part of k-space that was acquired at all, over those that were measured."""
    (y, x), (y0, y1), (x0, x1) = sidecar["matrix"], sidecar["acquired"]["y"], sidecar["acquired"]["x"]
    measured = sidecar["measured_share"] * y * x
    return (y1 - y0) * (x1 - x0) / measured if measured else float("inf")


def _coils(sidecar: dict) -> str:
    coils, virtual = sidecar["coils"], sidecar["virtual_coils"]
    if coils == 1:
        return ""
    parts = []
    if sidecar["noise_whitened"]:
        parts.append("Noise was decorrelated between coils by the covariance of noise readouts.")
    if VIRTUAL_COILS == virtual < coils:
        parts.append(f"Coils were compressed to {virtual} virtual coils {cited('compression')}.")
    elif virtual < coils:
        parts.append(f"Coils without a signal of their own were left out, which left {virtual}.")
    if not _combined(sidecar):
        return " ".join(
            [*parts, "Each coil was reconstructed by itself, and the magnitudes combined by root-sum-of-squares."]
        )
    if any("too small for ESPIRiT" in one for one in sidecar["warnings"]):
        parts.append(
            "Coil sensitivities were estimated from low-resolution images of the centre of k-space where this was too small for "
            f"ESPIRiT, and else by ESPIRiT {cited('espirit')}, for each slice from its own samples."
        )
    else:
        parts.append(
            "Coil sensitivities were estimated for each slice from its own fully sampled centre of k-space by ESPIRiT "
            f"{cited('espirit')}."
        )
    return " ".join(parts)


def _network(weights: dict, options: dict, combined: bool) -> str:
    kind, of, method = weights["network"], weights.get("network_options", {}), weights.get("method")
    soft = of.get("consistency", "soft") == "soft"
    after = (
        "weights measured samples by the level of the noise (without noise they are kept as measured)"
        if soft
        else "puts the samples back as measured"
    )
    described = {
        "unrolled": (
            f"an unrolled network of {of.get('cascades', 5)} cascades, each a residual U-Net followed by a data-consistency step "
            f"{cited('cascade')} that {after}"
            + (", solved with the sensitivities of all coils by conjugate gradients" * combined)
        ),
        "unet": f"a U-Net {cited('noise2noise')} whose output had its measured frequencies put back",
        "fastmri-varnet": f"an end-to-end variational network {cited('varnet')}",
        "fastmri-unet": f"a U-Net {cited('fastmri')} without data consistency",
    }
    text = f"They were made by {described.get(kind, f'a network ({kind})')}."
    if method in TRAINING:
        without = "" if method in WITH_REFERENCES else "without fully sampled references, "
        text += f" It had been trained {without}{TRAINING[method]}."
    if weights["bundled"]:
        text += (
            " Its weights were those distributed with the software, trained on simulated acquisitions of brain volumes."
        )
    if options.get("flips"):
        text += " Each image is the mean of the reconstructions of the four mirror images of its slice."
    return text


def _baseline(baseline: dict, combined: bool) -> str:
    name = baseline["name"]
    if name == "zero-filled":
        with_maps = ", coils combined by their sensitivities" * combined
        return f"Images are the inverse Fourier transform of the zero-filled k-space{with_maps}, without further reconstruction."
    if name == "sense":
        return (
            f"They were made by {'SENSE' if combined else 'regularised least squares'} by conjugate gradients "
            f"{cited('sense')} with Tikhonov regularisation."
        )
    penalty = {
        "tv": f"isotropic total variation {cited('tv', 'sparse')}",
        "wavelet": f"the l1 norm of Daubechies wavelet coefficients {cited('sparse', 'daubechies')}, averaged over shifts {cited('cycle-spinning')}",
    }[name]
    strength = f"{baseline['regularisation']:.3g}"
    chosen = (
        f"The regularisation parameter was set to {strength}"
        if baseline["chosen_by"] == "given"
        else f"The regularisation parameter ({strength}) was chosen by the error of samples of the scan that were held out"
    )
    return (
        f"They were made by compressed sensing: squared error of the samples plus {penalty}, minimised by the alternating "
        f"direction method of multipliers {cited('admm')}. {chosen}, relative to the largest magnitude of each slice's zero-filled image."
    )


def _denoising(sidecar: dict) -> str:
    said = sidecar["denoise"]
    if method := said.get("method"):
        return (
            f"The network, which predicts pixels hidden from it ({method}, after Noise2Void {cited('noise2void')}), was trained on "
            f"the scan itself for {said['steps']} steps."
        )
    return "The denoising network had been trained on other images."


def _cropping(sidecar: dict) -> str:
    parts = []
    if sidecar["acquired"] != {"y": [0, sidecar["matrix"][0]], "x": [0, sidecar["matrix"][1]]}:
        parts.append(
            "K-space was acquired in part (zero padding or partial Fourier); no frequencies were predicted beyond that part."
        )
    if sidecar["image_matrix"] != sidecar["matrix"]:
        y, x = sidecar["image_matrix"]
        parts.append(f"Images were cropped to {y} x {x} pixels, as the scan asks for.")
    return " ".join(parts)
