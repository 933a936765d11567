"""A reconstruction as a page: its images beside the zero-filled ones, and what its sidecar says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mri_n2n.acquisition import MILLIMETRES, Geometry
from mri_n2n.page.citations import references
from mri_n2n.page.contents import Difference, Layer, Page, Section, Table
from mri_n2n.page.methods import UNKNOWN, acceleration_of, methods_of
from mri_n2n.trust.words import self_check_line

NO_ESTIMATE = "No error estimate: give a second acquisition to mri-n2n evaluate."
NO_ERROR_MAP = "There is no error map: it needs a fully sampled reference, and mri-n2n evaluate --reference."
ERROR_BARS = "Where errors are likely to be large: images without some of the samples differ so much, scaled by held-out samples (90 %). Relative."
OF_SELF_CHECK = (
    "Estimated from the scan's own samples, held out in turn: the error of what was not sampled. The interval is that of chance and of the extrapolation. "
    "It says nothing of a single structure."
)
ERROR = "Reconstruction minus reference, of magnitudes."


@dataclass(frozen=True)
class Given:
    """What a scan was before it was reconstructed. zero_filled: (slice, y, x) float32 magnitude, the root-sum-of-squares of
    coils. masks: (slices or 1, y, x) bool. kind: what the first is called."""

    zero_filled: np.ndarray
    masks: np.ndarray
    kind: str = "zero-filled"


def page_of_reconstruction(
    name: str,
    sidecar: dict,
    reconstruction: np.ndarray,
    given: Given,
    geometry: Geometry | None,
    error_bars: np.ndarray | None = None,
) -> Page:
    """Of what `reconstruct` writes; `reconstruction` and `error_bars` are (slice, y, x)."""
    bars = () if error_bars is None else (Layer("error bars", error_bars, ERROR_BARS, own_scale=True),)
    check = sidecar.get("self_check")
    error = (NO_ESTIMATE,) if check is None else (f"S{self_check_line(check)[1:]}.",)
    error += (OF_SELF_CHECK,) if check is not None and "psnr" in check else ()
    return Page(
        name,
        sidecar["input"]["simulated"],
        geometry,
        (*layers_of(reconstruction, given, None), *bars),
        given.masks,
        (Section("Error", error), *sections_of(sidecar, geometry)),
        tuple(sidecar["warnings"]),
        (NO_ERROR_MAP,),
    )


def layers_of(
    reconstruction: np.ndarray, given: Given | None, reference: np.ndarray | None
) -> tuple[Layer | Difference, ...]:
    """All (slice, y, x), of one shape."""
    layers: list[Layer | Difference] = []
    if given is not None:
        about = "Magnitude of the image of the measured samples alone, zero elsewhere; coils by root-sum-of-squares."
        about = "Magnitude of the scan as it was given." if given.kind == "noisy" else about
        layers.append(Layer(given.kind, given.zero_filled, about))
    layers.append(Layer("reconstruction", reconstruction, "Magnitude of the result."))
    if reference is not None:
        layers.append(Layer("reference", reference, "Magnitude of the fully sampled image."))
        layers.append(Difference("error", "reconstruction", "reference", ERROR))
    return tuple(layers)


def sections_of(
    sidecar: dict | None, geometry: Geometry | None, more: Sequence[tuple[str, str]] = (), sentence: str = ""
) -> tuple[Section, ...]:
    """Methods, with `sentence` at their end, references and provenance, with the rows `more`. sidecar None: not known."""
    text = " ".join(filter(None, (UNKNOWN if sidecar is None else methods_of(sidecar), sentence)))
    rows = [*([] if sidecar is None else provenance_of(sidecar)), *_places(geometry), *more]
    sections = [Section("Methods", (text,)), Section("Provenance", tables=(Table(("", ""), tuple(rows)),))]
    if found := references(text):
        sections.insert(1, Section("References", points=found))
    return tuple(sections)


def provenance_of(sidecar: dict) -> list[tuple[str, str]]:
    """Rows of names and values, from what the sidecar says; file names apart."""
    y, x = sidecar["matrix"]
    image_y, image_x = sidecar["image_matrix"]
    simulated = {True: "yes: the k-space was made from images", False: "no", None: "the file does not say"}
    rows = [
        ("software", ", ".join(f"{name} {version}" for name, version in sidecar["software"].items())),
        ("input format", sidecar["input"]["format"]),
        ("input sha256", sidecar["input"]["sha256"]),
        ("simulated k-space", simulated[sidecar["input"]["simulated"]]),
        ("slices, coils", f"{sidecar['slices']}, {sidecar['coils']} ({sidecar['virtual_coils']} used)"),
        ("coils combined by", sidecar["combination"]),
        ("matrix of k-space", f"{y} x {x} (y x x)"),
        ("matrix of the image", f"{image_y} x {image_x} (y x x)"),
        ("sampling mask", {"stored": "stored in the scan", "zeros": "found from the zeros of k-space"}.get(sidecar["mask_source"], sidecar["mask_source"])),
        ("measured share of k-space", f"{sidecar['measured_share']:.2%}"),
        ("measured share of the image's energy", _share(sidecar.get("measured_energy_share"))),
        ("acceleration", f"{acceleration_of(sidecar):.2f}"),
        ("acquired part", "rows {} to {}, columns {} to {}".format(*sidecar["acquired"]["y"], *sidecar["acquired"]["x"])),
    ]  # fmt: skip
    if weights := sidecar.get("weights"):
        rows += [
            ("weights", weights["name"] + (" (distributed with the software)" if weights["bundled"] else "")),
            ("weights sha256", weights["sha256"]),
            ("network", ", ".join([weights["network"], *_pairs(weights["network_options"])])),
            ("trained by", weights["method"] or "not stated"),
        ]
    if baseline := sidecar.get("baseline"):
        kept = {key: value for key, value in baseline.items() if key != "sweep"}
        rows.append(("classical baseline", ", ".join(_pairs(kept))))
    rows.append(("options", ", ".join(_pairs(sidecar["options"]))))
    if results := [(name, sha) for name, sha in sidecar["output_sha256"].items() if name.endswith(".h5")]:
        rows.append(("sha256 of the result (HDF5)", results[0][1]))
    rows += [("intensity", sidecar["intensity"]), ("geometry", sidecar["geometry"])]
    return rows


def _share(value: float | None) -> str:
    return "not stated" if value is None else f"{value:.2%}"


def _pairs(values: dict) -> list[str]:
    return [f"{name.replace('_', ' ')} {value}" for name, value in values.items()]


def _places(geometry: Geometry | None) -> list[tuple[str, str]]:
    """The size of a voxel, where it is known in millimetres."""
    if geometry is None or geometry.spatial_unit not in MILLIMETRES:
        return []
    sizes = np.linalg.norm(np.asarray(geometry.affine)[:3, :3], axis=0) * MILLIMETRES[geometry.spatial_unit]
    x, y = (sizes[axis] for axis in range(3) if axis != geometry.slice_axis)
    return [("voxel", f"{y:.3g} x {x:.3g} mm (y x x), slices {sizes[geometry.slice_axis]:.3g} mm apart")]
