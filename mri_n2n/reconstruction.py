"""Scan file -> image -> files and sidecar; and the verb `reconstruct`, which takes arrays too."""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mri_n2n.acquisition import Acquisition, Scan
from mri_n2n.baselines import check_baseline
from mri_n2n.bids import check_dataset
from mri_n2n.coils import coil_mixing, combine, with_sensitivity_maps
from mri_n2n.device import machine
from mri_n2n.distributed import told
from mri_n2n.errors import InputError, NotFoundError, OptionError, OutputError, PartialError, UserError
from mri_n2n.files import RAW, atomic_outputs, check_readable, one_line, sha256_of_all, suffix_of
from mri_n2n.formats import detect, open_scan, write_result
from mri_n2n.formats.derived_dicom import lay_out
from mri_n2n.formats.dicom import Series, read_series
from mri_n2n.formats.sampling import Box, acquired_box, doubtful_edges
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.inference import PIXELS_AT_ONCE, check_reconstructs, load_for_use, reconstruct_array
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.outputs import BARS, Target, check_target, result_attributes, target_of, write_beside
from mri_n2n.page.reconstructed import Given
from mri_n2n.process import progress_shown
from mri_n2n.reconstructors import Reconstructor, baseline_reconstructor, network_reconstructor
from mri_n2n.resample import crop_or_pad
from mri_n2n.trust.agreement import agreement
from mri_n2n.trust.doubts import Doubts, clipped, doubts_of
from mri_n2n.trust.self_check import check_itself
from mri_n2n.trust.words import checked_facts

CLIPPED_WORDS = "samples stop at one largest value: the receiver, or a conversion, has clipped them"


def reconstruct_files(
    scans: list[Path],
    output: Path,
    *,
    weights: Path | None = None,
    baseline: str | None = None,
    regularisation: float | None = None,
    force: bool = False,
    device: str = "auto",
    flips: bool | None = None,
    format: str | None = None,
    repetition: int | None = None,
    skip_existing: bool = False,
    dicom: Path | None = None,
    bids: bool = False,
    self_check: bool = False,
    uncertainty: bool = False,
    report: bool = False,
    quiet: bool = False,
) -> list[dict]:
    """Reconstruct scan files into the directory `output`: NAME.h5, NAME.nii.gz, NAME.png, NAME.json each.

    The four files of a scan appear together when all are complete; a failure leaves none of them. Of several scans, those
    that fail do not stop the rest. A directory stands for the raw scans in it. Under torchrun each process takes its share.
    Returns the sidecars. skip_existing: leave out scans whose sidecar is there, whatever options it was made with, and
    replace results without one.
    flips: average over mirror images, four passes of the network; None: if the weights were trained on mirror images.
    baseline: a classical reconstruction in place of the network, see `mri_n2n.baselines`; then no weights are loaded.
    regularisation: of the baselines tv and wavelet; None: chosen for each scan by samples that are left out.
    dicom: the folder of the source series of a single scan, also writes the folder NAME.dicom, see `formats.derived_dicom`.
    report: also writes NAME.html, one page with everything in it for a browser, see `mri_n2n.page`.
    bids: names and folders of a BIDS data set of derivatives, see `mri_n2n.bids`.
    self_check: the error of what was not sampled, from samples that are held out, in the sidecar; uncertainty: NAME.uncertainty.nii.gz;
    see `trust.self_check`, `trust.error_bars`: they take 10 to 15 times as long.
    format: of the scans, None: found from their content. repetition: one of several, None: their mean.
    Errors: OptionError, InputError, NotFoundError, OutputError; of several scans PartialError, which has the sidecars of the others.
    """
    check_baseline(baseline, regularisation, weights, flips)
    if skip_existing and force:
        raise OptionError("--skip-existing keeps the results that are there, --force replaces them; give one of them")
    if uncertainty and baseline == "zero-filled":
        raise OptionError("--uncertainty is of methods that predict what was not sampled; zero-filled does not")
    scans = [scan for path in scans for scan in (scans_in(path) if path.is_dir() else [path])]
    if dicom is not None and len(scans) != 1:
        raise OptionError(f"--dicom is the series of one scan; got {len(scans)} scans, reconstruct them one by one")
    more = (BARS,) if uncertainty else ()
    targets = [replace(target_of(path, output, bids=bids), more=more, report=report) for path in scans]
    twice = [target.label for target, count in Counter(targets).items() if count > 1]
    if twice:
        raise OutputError(f"several inputs would write {twice[0]}.h5; reconstruct them into different directories")
    if len(scans) == 1:
        check_readable(scans[0])
    # Each process takes its share before it looks at what is there already: the others are at work.
    processes = told()
    share = list(zip(scans, targets, strict=True))[processes.rank :: processes.count]
    work = [(scan, target) for scan, target in share if not (skip_existing and target.sidecar.exists())]
    if len(work) < len(share) and not quiet:
        tqdm.write(
            f"{len(share) - len(work)} of {len(share)} left out: their results are there, as they were made",
            file=sys.stderr,
        )
    if bids:
        check_dataset(output)
    series = read_series(dicom) if dicom is not None and work else None
    replaced = [force or (skip_existing and _incomplete(target)) for _, target in work]
    for (_, target), replace_it in zip(work, replaced, strict=True):
        check_target(target, [*scans, *(series.files if series else ())], replace_it, dicom=series is not None)
    if baseline is None:
        loaded = load_for_use(weights, device)
        check_reconstructs(loaded)
        reconstructor = network_reconstructor(loaded, flips=loaded.trained_on_flips if flips is None else flips)
    else:
        reconstructor = baseline_reconstructor(baseline, regularisation, device)
    asked = {"bids": bids, "dicom": None if series is None else sha256_of_all(series.files)}
    sidecars, failures = [], []
    checks = {"self_check": self_check, "uncertainty": uncertainty}
    todo = [(path, target, replace_it) for (path, target), replace_it in zip(work, replaced, strict=True)]
    for path, target, replace_it in tqdm(todo, unit="scan", disable=len(todo) == 1 or not progress_shown(quiet)):
        try:
            scan = open_scan(path, format, repetition)
            said = repetitions_differ(path, format, scan) if repetition is None and scan.repetitions > 1 else []
            redo = {"command": "reconstruct", "options": asked | {"format": format, "repetition": repetition} | checks}
            options = {"warned": said, **checks, "force": replace_it, "series": series, "quiet": quiet}
            sidecars.append(reconstruct_file(scan, target, reconstructor, redo, **options))
        except UserError as error:
            if len(scans) == 1:
                raise
            failures.append(f"{path.name} ({one_line(error)})")
    if failures:
        raise PartialError(
            f"{len(failures)} of {len(failures) + len(sidecars)} scans{' of this process' if processes.count > 1 else ''} failed: {'; '.join(failures)}",
            sidecars,
        )
    return sidecars


def _incomplete(target: Target) -> bool:
    """Whether there is a result that a killed process left without its sidecar, and no other file of that name."""
    try:
        return not target.sidecar.exists() and target.h5.exists() and detect(target.h5) == "result-hdf5"
    except UserError:
        return False


def scans_in(folder: Path) -> list[Path]:
    """The files of a directory that may be raw scans, by their suffix; results and volumes are left out by their content.

    Errors: NotFoundError when there is none.
    """
    files = sorted(
        path for path in folder.iterdir() if suffix_of(path) in RAW and path.is_file() and path.name[0] != "."
    )

    def may_be_scan(path: Path) -> bool:
        try:
            return detect(path) != "result-hdf5"
        except UserError:
            return True  # a damaged file is named later, not passed over

    found = [path for path in files if may_be_scan(path)]
    if not found:
        raise NotFoundError(f"{folder} holds no raw scan ({', '.join(RAW)})")
    return found


def reconstruct_file(
    scan: Scan,
    target: Target,
    reconstructor: Reconstructor,
    redo: dict,
    *,
    warned: Sequence[str] = (),
    self_check: bool = False,
    uncertainty: bool = False,
    force: bool = False,
    series: Series | None = None,
    quiet: bool = False,
) -> dict:
    """Reconstruct one scan, slices streaming through the reconstructor; returns the sidecar.

    redo: {"command", "options"} by which the sidecar says how to make the result again, beside those of the reconstructor.
    warned: what is to be said of it already."""
    started = time.monotonic()
    layout = None if series is None else lay_out(scan, series)
    slices, coils, y, x = scan.shape
    at_once = max(1, PIXELS_AT_ONCE // (coils * y * x))
    acquired = acquired_box(scan)
    complete = acquired == ((0, y), (0, x))
    mixing, said_of_coils = coil_mixing(scan) if coils > 1 else (None, [])
    virtual = coils if mixing is None else len(mixing)
    combined = coils > 1 and reconstructor.knows_coils
    matrix = scan.image_matrix or (y, x)  # without the oversampling
    shapes = {"image": (slices, *matrix) if coils == 1 or combined else (slices, virtual, *matrix)}
    shapes |= {"sensitivity_maps": (slices, virtual, *matrix)} if combined else {}
    found: set[str] = {*said_of_coils, *warned}
    measured = held = 0.0
    doubts, peak, energies = Doubts(), 0.0, []  # over the field of view that was acquired
    zero_filled: dict[int, np.ndarray] = {}  # of the slices that are shown: the middle one, or with a page all
    masks: list[np.ndarray] = []

    def read(start: int, stop: int) -> Acquisition:
        acquisition = scan.read(start, stop)
        found.update([CLIPPED_WORDS] if clipped(acquisition.kspace) else [])
        acquisition = acquisition.to(reconstructor.device)
        if mixing is not None:
            acquisition = replace(acquisition, kspace=combine(mixing.to(reconstructor.device), acquisition.kspace))
        if combined:
            acquisition, caution = with_sensitivity_maps(acquisition)
            found.update([caution] if caution else [])
        return acquisition

    shown = (lambda images: images[:, 0].real) if scan.signed else root_sum_of_squares
    images_of, finish = reconstructor.begin(scan, read)

    def images() -> Iterator[tuple[np.ndarray, ...]]:
        nonlocal measured, held, doubts, peak, energies
        for start in tqdm(range(0, slices, at_once), desc=target.name, unit="batch", disable=not progress_shown(quiet)):
            acquisition = read(start, min(start + at_once, slices))
            complex_images = images_of(acquisition)
            if not complete:  # beyond what was acquired nothing is known, and nothing is claimed
                complex_images = within(complex_images, acquired)
            if not torch.isfinite(torch.view_as_real(complex_images)).all():
                raise InputError(
                    f"{scan.path}: the image is not finite: its k-space is too large or too small for float32, or the network cannot be used on it"
                )
            doubts += doubts_of(acquisition.to("cpu"), complex_images)
            size = torch.linalg.vector_norm(complex_images, dim=1, dtype=torch.complex128)
            peak, energies = max(peak, size.max().item()), [*energies, *size.square().mean(dim=(1, 2)).tolist()]
            complex_images = crop_or_pad(complex_images, *matrix)
            count = complex_images.shape[0]
            shares = acquisition.mask.mean(dim=(1, 2, 3)).expand(count)
            measured, held = measured + shares.sum().item(), held + (shares > 0).sum().item()
            for index in (
                range(start, start + count) if target.report else {slices // 2} & set(range(start, start + count))
            ):
                coil_images = ifft2c(acquisition.kspace[index - start : index - start + 1].cpu())
                zero_filled[index] = shown(crop_or_pad(coil_images, *matrix))[0].numpy()
            if target.report:
                masks.append((acquisition.mask[:, 0].cpu() > 0).expand(count, -1, -1).numpy())
            arrays = [shown(complex_images), complex_images[:, 0] if len(shapes["image"]) == 3 else complex_images]
            arrays += [crop_or_pad(acquisition.sensitivity_maps.cpu(), *matrix)] if combined else []
            yield from zip(*(array.numpy() for array in arrays), strict=True)
            del acquisition, arrays  # or they are held while the next slices are read

    with atomic_outputs(target.directory, target.name, force) as folder:
        h5 = replace(target, directory=folder).h5
        mixed = None if mixing is None else mixing.numpy()
        about = result_attributes(scan), scan.image_geometry
        write_result(h5, images(), shapes, *about, coil_mixing=mixed)
        if not complete:
            found.add(
                f"k-space was acquired in rows {acquired[0][0]} to {acquired[0][1] - 1} of {y} and columns {acquired[1][0]} to "
                f"{acquired[1][1] - 1} of {x} only (zero padding or partial Fourier); beyond, the image has none"
            )
        elif doubtful_edges(scan, acquired):
            found.add(
                "k-space has wide empty edges: zero padding, partial Fourier or chance; there the image is the method's"
            )
        (y0, y1), (x0, x1) = acquired
        mask = scan.read(slices // 2, slices // 2 + 1).mask[..., y0:y1, x0:x1]
        measured /= max(held, 1)  # slices without samples say nothing of the acceleration
        share = min(1.0, measured * y * x / ((y1 - y0) * (x1 - x0)))
        facts, against, volumes = finish(mask, share)
        if self_check or uncertainty:
            as_written = images_of if complete else lambda some: within(images_of(some), acquired)
            asked = {"estimates": self_check, "bars": uncertainty}
            checked = check_itself(read, as_written, slices, at_once, acquired=acquired, **asked)
            of_check, said_of_check = checked_facts(checked, peak, energies, **asked)
            facts, against = facts | of_check, against + said_of_check
            volumes |= {} if checked.bars is None else {BARS: checked.bars.radius.numpy()}
        volumes = {name: crop_or_pad(torch.from_numpy(one), *matrix).numpy() for name, one in volumes.items()}
        said = sorted(found) + doubts.words + against
        made = redo | {"options": redo["options"] | facts.pop("redo"), "machine": machine(reconstructor.device)}
        combination = "none" if coils == 1 else "coils reconstructed one by one, then root-sum-of-squares"
        combination = "sensitivity maps from the scan's own centre" if combined else combination
        facts |= {
            "virtual_coils": virtual,
            "combination": combination,
            "measured_share": round(measured, 6),
            "measured_energy_share": round(doubts.measured_share, 6),
            "acquired": {"y": list(acquired[0]), "x": list(acquired[1])},
            "warnings": said,
        }
        given = (
            Given(np.stack([zero_filled[i] for i in range(slices)]), np.concatenate(masks)) if target.report else None
        )
        before = zero_filled[slices // 2]
        sidecar = write_beside(folder, target, scan, before, given, layout, facts, made, volumes, started)
    for caution in said:
        warnings.warn(f"{scan.path.name}: {caution}", stacklevel=2)
    return sidecar


def repetitions_differ(path: Path, format: str | None, scan: Scan) -> list[str]:
    """What the middle slice says of the repetitions that a scan is the mean of: whether the object moved, or the scanner drifted."""
    middle = scan.shape[0] // 2
    first, *others = (open_scan(path, format, n).read(middle, middle + 1) for n in range(scan.repetitions))
    for number, other in enumerate(others, 1):
        both = (first.mask * other.mask)[0, 0]
        if differences := agreement(first.kspace[0], other.kspace[0], both).differences:
            return [
                f"repetition {number} differs from repetition 0 by {' and '.join(differences)}: their mean is blurred; take one with --repetition"
            ]
    return []


def within(images: Tensor, acquired: Box) -> Tensor:
    """Images (..., y, x) without the spatial frequencies outside the rectangle `acquired` of k-space."""
    (y0, y1), (x0, x1) = acquired
    kspace, kept = fft2c(images), torch.zeros(images.shape[-2:])
    kept[y0:y1, x0:x1] = 1
    return ifft2c(kspace * kept)


def reconstruct(source, output: Path | str | None = None, **options):
    """`reconstruct(kspace, mask=...)` on arrays, `reconstruct(path, output)` on a scan file or a list of them.

    Arrays: complex (y, x), (slices, y, x) or (slices, coils, y, x); returns complex (y, x) or (slices, y, x). Options:
    mask, weights, baseline, regularisation, device, flips; see `mri_n2n.inference.reconstruct_array`.
    Files: writes NAME.h5, NAME.nii.gz, NAME.png, NAME.json into the directory `output`; returns the sidecars. Options:
    weights, baseline, regularisation, force, device, flips, dicom, bids, self_check, uncertainty, report, quiet; see `reconstruct_files`.
    """
    paths = list(source) if isinstance(source, (list, tuple)) else [source]
    if paths and all(isinstance(path, (str, Path)) for path in paths):
        if output is None:
            raise OutputError("reconstructing a file needs the directory to write into: reconstruct(path, output)")
        if "mask" in options:
            raise OptionError("a scan file brings its own mask; mask= goes with arrays")
        for name in ("weights", "dicom"):
            if options.get(name) is not None:
                options[name] = Path(options[name])
        return reconstruct_files([Path(p) for p in paths], Path(output), quiet=options.pop("quiet", True), **options)
    if output is not None:
        raise OptionError("an array is reconstructed to an array; reconstruct(path, output) writes files")
    return reconstruct_array(source, **options)
