"""What a file holds, in a few lines."""

from __future__ import annotations

from pathlib import Path

from mri_n2n.acquisition import Scan
from mri_n2n.checkpoint import load_tensors
from mri_n2n.errors import NotFoundError
from mri_n2n.formats import SCAN_FORMATS, detect, open_scan, read_result, read_volume
from mri_n2n.formats.sampling import Box, acquired_box


def describe(path: Path | str, format: str | None = None, repetition: int | None = None) -> dict[str, object]:
    """Facts about a scan, volume, result or weights file (or a run directory), JSON-able, in reading order.

    Errors: NotFoundError, InputError.
    """
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"no file {path}")
    if path.is_dir():
        if not (path / "weights.safetensors").exists():
            raise NotFoundError(f"{path} is a directory without weights.safetensors; give a file or a run directory")
        return _describe_weights(path / "weights.safetensors")
    if path.suffix == ".safetensors":
        return _describe_weights(path)
    kind = format or detect(path)
    if kind in SCAN_FORMATS:
        return _describe_scan(open_scan(path, format, repetition))
    if kind == "nifti":
        images, geometry = read_volume(path)
        return {
            "file": path.name,
            "kind": "NIfTI magnitude volume",
            "slices": images.shape[0],
            "matrix": f"{images.shape[1]} x {images.shape[2]} (y x x, slices along axis 2)",
            "intensity": f"{images.min():g} to {images.max():g}",
            "commands": "simulate, train --dataset nifti, evaluate --reference",
        }
    reconstruction, attributes, geometry = read_result(path)
    return {
        "file": path.name,
        "kind": "reconstruction",
        "slices": reconstruction.shape[0],
        "matrix": f"{reconstruction.shape[1]} x {reconstruction.shape[2]} (y x x)",
        "intensity": f"{reconstruction.min():g} to {reconstruction.max():g}",
        "geometry": "unknown" if geometry is None else "stored",
        **{key: str(value) for key, value in attributes.items()},
        "commands": "evaluate",
    }


def _describe_scan(scan: Scan) -> dict[str, object]:
    slices, coils, y, x = scan.shape
    middle = scan.read(slices // 2, slices // 2 + 1)
    mask = middle.mask[0, 0]
    share = mask.mean().item()
    lines = bool((mask == mask[:1]).all())
    full = share == 1
    simulated = {True: "yes: k-space was made from an image", False: "no", None: "the file does not say"}[
        scan.simulated
    ]
    return {
        "file": scan.path.name,
        "kind": f"raw scan ({scan.format})",
        "slices": slices,
        "coils": coils,
        "repetitions": scan.repetitions,
        "matrix": f"{y} x {x} (y x x)",
        "sampling": "full"
        if full
        else f"{share:.1%} of the samples ({1 / share:.1f}x), {'lines along y' if lines else 'points'} (middle slice)",
        "acquired": describe_box(acquired_box(scan), y, x),
        "mask": "stored" if scan.mask_source == "stored" else "not stored; found from the zeros",
        "probability": "stored" if middle.probability is not None else "not stored",
        "noise variance": "unknown" if middle.noise_variance is None else f"{middle.noise_variance:g}",
        "reference": "stored" if scan.has_reference else "none",
        "geometry": "unknown" if scan.geometry is None else "stored",
        "simulated": simulated,
        "commands": "reconstruct" + (", evaluate --reference" if scan.has_reference else ""),
    }


def describe_box(acquired: Box, y: int, x: int) -> str:
    (y0, y1), (x0, x1) = acquired
    if acquired == ((0, y), (0, x)):
        return "all of k-space, undersampling apart"
    return f"rows {y0} to {y1 - 1} of {y}, columns {x0} to {x1 - 1} of {x}; the rest is zero padding or partial Fourier"


def _describe_weights(path: Path) -> dict[str, object]:
    tensors, header = load_tensors(path)
    checkpoint = any(name.startswith("optimizer.") for name in tensors)
    training = header["training"]
    protocol = training["protocol"]
    if training.get("dataset") == "pairs":
        acquired = {
            "acquisitions": f"pairs of repetitions, from files{', simulated' if header.get('simulated') else ''}"
        }
    else:
        acquired = {
            "acquisitions": "simulated",
            "pairs": protocol.get("pairs"),
            "masks": ", ".join(protocol.get("masks", [])),
            "acceleration": protocol.get("acceleration"),
            "noise": protocol.get("noise"),
            "phase": protocol.get("phase"),
        }
    return {
        "file": path.name,
        "kind": "checkpoint of a run" if checkpoint else "weights",
        "network": header.get("network"),
        "options": header.get("network_options", {}),
        "parameters": header.get("parameters"),
        "trained on": f"{training.get('dataset')}, {header.get('train_volumes')} volumes, {header.get('train_slices')} slices",
        "recipe": protocol.get("recipe"),
        "targets": protocol.get("targets"),
        **acquired,
        "steps": header.get("step"),
        "minutes": round(header.get("seconds", 0) / 60, 1),
        "precision": header.get("precision"),
        "note": header.get("note"),
        "commands": "train --resume" if checkpoint else "reconstruct --weights",
    }
