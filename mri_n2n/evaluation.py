"""How close reconstruction files are to fully sampled references: matching, scoring, a table and JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mri_n2n.acquisition import Geometry
from mri_n2n.errors import InputError, NotFoundError
from mri_n2n.files import VOLUMES, stem, suffix_of
from mri_n2n.formats import SCAN_FORMATS, detect, open_scan, read_reference, volume_geometry
from mri_n2n.formats.fastmri_hdf5 import FORMAT as FASTMRI
from mri_n2n.formats.result import FORMAT as RESULT
from mri_n2n.formats.result import read_header
from mri_n2n.metrics import DEFINITION, METRICS, Score, VolumeScore, crop_as_fastmri, evaluate_arrays

# The same image is often written twice, as HDF5 and as NIfTI: the first of these that exists is read.
SUFFIXES = (".h5", ".hdf5", *VOLUMES)


@dataclass(frozen=True)
class Evaluation:
    """The scores of one or several reconstructions.

    mean, standard_deviation: over volumes; the deviation (n - 1) is None for a single volume. groups: the means over
    volumes of one acquisition and acceleration, where the references state them, and their numbers.
    without_reference, without_reconstruction: names of files in the two directories that have no partner.
    """

    volumes: tuple[VolumeScore, ...]
    mean: Score
    standard_deviation: Score | None
    without_reference: tuple[str, ...] = ()
    without_reconstruction: tuple[str, ...] = ()
    groups: tuple[tuple[str, Score, int], ...] = ()


def evaluate_files(reconstruction: Path | str, reference: Path | str, axis: int = 2) -> Evaluation:
    """Score a reconstruction file, or a directory of them, against a scan, a volume, or a directory of these.

    reconstruction: result HDF5 (`reconstruction`) or NIfTI. reference: scan HDF5 (`reconstruction_esc` or `_rss`),
    NIfTI volume, or another result. Two files are compared whatever their names. Directories (not searched recursively)
    match by name: scan.h5 with scan.h5, or with a file of the same stem (scan.nii.gz). Where one directory holds an
    image twice (scan.h5 and scan.nii.gz) HDF5 is read.
    axis: slice axis of NIfTI volumes; the slice axis that an HDF5 partner has on record comes first.
    NotFoundError: a path does not exist. InputError: nothing matches, or what `evaluate_arrays` and the readers refuse.
    """
    pairs, without_reference, without_reconstruction = match_files(Path(reconstruction), Path(reference))
    volumes = tuple(_evaluate_pair(*pair, axis) for pair in pairs)
    return summarise(volumes, without_reference, without_reconstruction)


def summarise(volumes: tuple[VolumeScore, ...], without_reference=(), without_reconstruction=()) -> Evaluation:
    """The mean and the standard deviation over volumes, as the fastMRI challenge reports them."""
    if not volumes:
        raise InputError("nothing to evaluate: no volume was given")
    values = np.array([[getattr(v.volume, metric) for metric in METRICS] for v in volumes])
    names = sorted({v.group for v in volumes if v.group})
    with np.errstate(invalid="ignore"):  # infinite PSNR: the mean is infinite, the deviation undefined
        mean = Score(*values.mean(axis=0).tolist())
        deviation = Score(*values.std(axis=0, ddof=1).tolist()) if len(volumes) > 1 else None
        members = {name: values[[v.group == name for v in volumes]] for name in names}
        groups = tuple((name, Score(*rows.mean(axis=0).tolist()), len(rows)) for name, rows in members.items())
    return Evaluation(tuple(volumes), mean, deviation, tuple(without_reference), tuple(without_reconstruction), groups)


def match_files(reconstruction: Path, reference: Path) -> tuple[list[tuple[Path, Path]], list[str], list[str]]:
    """Pairs (reconstruction, reference), and the names on each side that have no partner."""
    for path in (reconstruction, reference):
        if not path.exists():
            raise NotFoundError(f"{path}: no such file or directory")
    if reconstruction.is_file() and reference.is_file():
        return [(reconstruction, reference)], [], []

    results = _images(reconstruction)
    references = _images(reference)
    pairs, without_reference = [], []
    for name, paths in results.items():
        partners = references.get(name)
        if not partners:
            without_reference.append(paths[0].name)
            continue
        same_name = [p for p in partners if p.name == paths[0].name]
        pairs.append((paths[0], (same_name or partners)[0]))
    without_reconstruction = [paths[0].name for name, paths in references.items() if name not in results]
    if not pairs and len(results) == 1 and reference.is_file():
        # One image and one reference leave no choice: names need not agree.
        return [(next(iter(results.values()))[0], reference)], [], []
    if not pairs:
        raise InputError(
            f"no file of {reconstruction.name} has a partner of the same name in {reference.name}: expected scan.h5"
            f" with scan.h5 or scan.nii.gz; got {_few(without_reference)} and {_few(without_reconstruction)}"
        )
    return pairs, without_reference, without_reconstruction


def _images(path: Path) -> dict[str, list[Path]]:
    """Image files by stem (name without suffix), sorted; of one stem in the order of SUFFIXES."""
    if path.is_file():
        return {stem(path): [path]}
    found: dict[str, list[Path]] = {}
    try:
        files = sorted(path.iterdir())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    for file in files:
        if file.is_file() and not file.name.startswith(".") and suffix_of(file) in SUFFIXES:
            found.setdefault(stem(file), []).append(file)
    if not found:
        raise NotFoundError(f"{path}: holds no image to evaluate (expected files ending in {', '.join(SUFFIXES)})")
    return {name: sorted(files, key=lambda f: SUFFIXES.index(suffix_of(f))) for name, files in found.items()}


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "nothing"


@dataclass(frozen=True)
class FilePair:
    """The images (slice, y, x) of two files, of one size. geometry: of the reconstruction, else of the reference, before they
    were cropped. simulated: what the files say."""

    reference: np.ndarray
    reconstruction: np.ndarray
    cropped: bool
    simulated: bool | None
    geometry: Geometry | None


def read_pair(reconstruction: Path, reference: Path, axis: int) -> FilePair:
    """Errors: InputError for files that do not fit each other, and those of the readers."""
    axis, simulated = _on_record(reconstruction, reference, axis)
    _check_place(reconstruction, reference, axis)
    images = read_reference(reference, slice_axis=axis), read_reference(reconstruction, slice_axis=axis)
    try:
        *images, cropped = crop_as_fastmri(*images)
    except InputError as error:
        raise InputError(f"{reconstruction.name} against {reference.name}: {error}") from None
    geometry = _geometry(reconstruction, axis) or _geometry(reference, axis)
    return FilePair(*images, cropped, simulated, geometry)


def _evaluate_pair(reconstruction: Path, reference: Path, axis: int) -> VolumeScore:
    pair = read_pair(reconstruction, reference, axis)
    try:
        score = evaluate_arrays(
            pair.reference, pair.reconstruction, name=reconstruction.name, reference_name=reference.name
        )
    except InputError as error:
        raise InputError(f"{reconstruction.name} against {reference.name}: {error}") from None
    return replace(score, cropped=pair.cropped, simulated=pair.simulated, group=_group(reference))


def _group(reference: Path) -> str | None:
    """Acquisition and acceleration that a reference's scan file states: "CORPD_FBK 4x"."""
    if detect(reference) != FASTMRI:
        return None
    scan = open_scan(reference)
    return " ".join(filter(None, (scan.acquisition, f"{scan.acceleration:g}x" if scan.acceleration else None))) or None


def _on_record(reconstruction: Path, reference: Path, axis: int) -> tuple[int, bool | None]:
    """The slice axis, and whether the k-space was simulated, by what the two files say; `axis` where they do not."""
    if detect(reconstruction) in SCAN_FORMATS:
        raise InputError(f"{reconstruction.name} is a scan (k-space), no reconstruction; give the scan as --reference")
    if (kind := detect(reference)) in SCAN_FORMATS and kind != FASTMRI:
        raise InputError(f"{reference.name} is a raw scan ({kind}), which holds no reference")
    geometry, simulated = None, None
    for path in (reference, reconstruction):  # the reconstruction's word comes last, and counts
        kind = detect(path)
        if kind == FASTMRI:
            scan = open_scan(path)
            geometry, simulated = scan.geometry, scan.simulated
        elif kind == RESULT:
            attributes, recorded = read_header(path)
            geometry, simulated = recorded or geometry, attributes.get("simulated", simulated)
    return (axis if geometry is None else geometry.slice_axis), (None if simulated is None else bool(simulated))


def _check_place(reconstruction: Path, reference: Path, axis: int) -> None:
    """InputError when both files say where their voxels lie, and say different places: no voxel by voxel comparison."""
    if places_differ(*(_geometry(path, axis) for path in (reconstruction, reference))):
        raise InputError(
            f"{reconstruction.name} and {reference.name} lie in different places or orientations (their affines or slice "
            "axes differ); resample one to the other"
        )


def places_differ(first: Geometry | None, second: Geometry | None) -> bool:
    """Whether both say where their voxels lie, and say different places or slice axes: to a hundredth of a voxel."""
    if (
        first is None
        or second is None
        or 0 in (first.qform_code + first.sform_code, second.qform_code + second.sform_code)
    ):
        return False
    affines = [np.asarray(geometry.affine) for geometry in (first, second)]
    voxel = np.linalg.norm(affines[1][:3, :3], axis=0).min()
    return first.slice_axis != second.slice_axis or not np.allclose(*affines, rtol=0, atol=1e-2 * voxel)


def _geometry(path: Path, axis: int) -> Geometry | None:
    kind = detect(path)
    if kind == FASTMRI:
        return open_scan(path).image_geometry
    return read_header(path)[1] if kind == RESULT else volume_geometry(path, axis)


# --------------------------------------------------------------------------------------------------------- results


def format_table(result: Evaluation) -> str:
    """The result as plain text: a row per volume (one volume: a row per slice too), their mean, what the peak is."""
    names = [v.name for v in result.volumes] + [f"mean of {name}" for name, _, _ in result.groups]
    width = max(map(len, [*names, "standard deviation"]))
    lines = [f"{'':{width}}  {'NMSE':>10}  {'PSNR (dB)':>10}  {'SSIM':>8}  {'slices':>6}  {'peak':>10}"]

    def row(name: str, score: Score, tail: str = "") -> str:
        return f"{name:{width}}  {score.nmse:10.5f}  {score.psnr:10.2f}  {score.ssim:8.4f}{tail}"

    for v in result.volumes:
        lines.append(row(v.name, v.volume, f"  {len(v.slices):6d}  {v.peak:10.4g}"))
        if len(v.slices) > 1 and len(result.volumes) == 1:
            for index, score in enumerate(v.slices):
                lines.append(row(f"  slice {index}", score))
    if len(result.volumes) > 1:
        if len(result.groups) > 1:
            lines += [row(f"mean of {name}", score, f"  {count:6d} volumes") for name, score, count in result.groups]
        lines.append(row("mean of volumes", result.mean))
        lines.append(row("standard deviation", result.standard_deviation))
    lines.append("")
    lines.append(f"Metrics of {DEFINITION['source']}; peak: {DEFINITION['peak']}.")
    if cropped := [v.name for v in result.volumes if v.cropped]:
        lines.append(f"Centre-cropped to the reference's last dimension, as fastMRI does: {_few(cropped)}")
    if any(v.simulated for v in result.volumes):
        lines.append("Simulated k-space: made from images, not measured.")
    if result.without_reference:
        lines.append(f"Not evaluated, no reference: {_few(list(result.without_reference))}")
    if result.without_reconstruction:
        lines.append(f"Not evaluated, no reconstruction: {_few(list(result.without_reconstruction))}")
    return "\n".join(lines)


def to_json(result: Evaluation) -> dict:
    """The result as plain lists, dicts and numbers. What JSON has no number for (NaN, infinite PSNR) is None.

    {"definition", "volumes": [{"name", "reference", "shape", "peak", "cropped", "simulated", "group", "volume", "per_slice"}],
    "directory": {"volumes", "mean", "standard_deviation", "groups", "without_reference", "without_reconstruction"}}; a score is
    {"nmse", "psnr", "ssim"}.
    """
    return {
        "definition": dict(DEFINITION),
        "volumes": [
            {
                "name": v.name,
                "reference": v.reference,
                "shape": list(v.shape),
                "peak": v.peak,
                "cropped": v.cropped,
                "simulated": v.simulated,
                "group": v.group,
                "volume": _score_to_json(v.volume),
                "per_slice": [{"slice": index, **_score_to_json(score)} for index, score in enumerate(v.slices)],
            }
            for v in result.volumes
        ],
        "directory": {
            "volumes": len(result.volumes),
            "mean": _score_to_json(result.mean),
            "standard_deviation": _score_to_json(result.standard_deviation) if result.standard_deviation else None,
            "groups": {name: {"volumes": n, **_score_to_json(score)} for name, score, n in result.groups},
            "without_reference": list(result.without_reference),
            "without_reconstruction": list(result.without_reconstruction),
        },
    }


def _score_to_json(score: Score) -> dict:
    values = {metric: getattr(score, metric) for metric in METRICS}
    return {metric: value if math.isfinite(value) else None for metric, value in values.items()}
