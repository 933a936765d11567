"""The whole job on embedded phantoms: simulate, train, reconstruct, evaluate."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from mri_n2n.errors import OutputError
from mri_n2n.formats import open_scan, read_reference, write_scan
from mri_n2n.fourier import ifft2c
from mri_n2n.metrics import evaluate_arrays
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.options import TrainOptions
from mri_n2n.phantom import phantom_kspace
from mri_n2n.protocol import Protocol
from mri_n2n.reconstruction import reconstruct_files
from mri_n2n.runs import FILES
from mri_n2n.simulation import acquire, seeded
from mri_n2n.training import train

MATRIX, SLICES, MINUTES = 96, 6, 1.4
ACCELERATION = 6.0


def demo(output: Path, *, force: bool = False, quiet: bool = False, minutes: float = MINUTES) -> str:
    """Run the demo into the directory `output`; returns the text to print. Interrupted, it removes what it has made.

    Errors: OutputError when it was run before.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file; the demo needs a directory")
    scan, run, results = output / "scan.h5", output / "run", output / "reconstruction"
    made = [scan, *(run / name for name in FILES)]
    if any(path.exists() for path in made) and not force:
        raise OutputError(f"{output} already holds a demo; give --force to replace it, or another -o")
    for path in made:
        path.unlink(missing_ok=True)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {output}: {error.strerror}") from None
    try:
        return whole_job(scan, run, results, quiet, minutes)
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        for folder in (run, results, output):
            with suppress(OSError):  # what holds something stays, or was never made
                folder.rmdir()
        raise


def whole_job(scan: Path, run: Path, results: Path, quiet: bool, minutes: float) -> str:
    say(quiet, f"1/4 simulate: a phantom of {SLICES} slices, {ACCELERATION:g}x undersampled, closed-form k-space")
    write_phantom_scan(scan)

    say(quiet, f"2/4 train: Noise2Noise on pairs of undersampled phantoms, {minutes:g} minutes, no reference used")
    options = TrainOptions(
        dataset="phantom",
        matrix_size=MATRIX,
        protocol=Protocol(acceleration=(ACCELERATION, ACCELERATION)),
        network_options={"cascades": 3, "channels": 16},
        minutes=minutes,
        quiet=quiet,
    )
    trained = train(options, run)
    if not trained.finished:
        raise KeyboardInterrupt

    say(quiet, "3/4 reconstruct the scan with the new weights")
    reconstruct_files([scan], results, weights=run, force=True, quiet=quiet)

    say(quiet, "4/4 evaluate against the fully sampled reference")
    reference = read_reference(scan)
    rows = [f"{'':<16}{'PSNR (dB)':>10}{'SSIM':>8}{'NMSE':>9}"]
    for name, images in (
        ("zero-filled", zero_filled_images(scan)),
        ("reconstruction", read_reference(results / "scan.h5")),
    ):
        score = evaluate_arrays(reference, images).volume
        rows.append(f"{name:<16}{score.psnr:>10.2f}{score.ssim:>8.3f}{score.nmse:>9.4f}")
    return "\n".join(
        [
            *rows,
            f"({trained.steps} steps in {trained.seconds:.0f} s; simulated k-space of phantoms; fastMRI's metrics, peak = the volume's maximum)",
            f"picture  {results / 'scan.png'}",
            f"images   {results / 'scan.h5'} {results / 'scan.nii.gz'}",
            f"weights  {trained.weights}",
        ]
    )


def write_phantom_scan(path: Path) -> None:
    """A simulated scan file of one random head per slice, with a seed that training never uses."""
    full = [phantom_kspace((MATRIX, MATRIX), generator=seeded(0, "demo", i))[None] for i in range(SLICES)]
    kspace = np.concatenate([k.numpy() for k in full])
    acquisitions = [acquire(k, "roulette", ACCELERATION, seeded(0, "demo mask"), hermitian=True) for k in full]
    write_scan(
        path,
        (a.kspace[0].numpy() for a in acquisitions),
        kspace.shape,
        mask=acquisitions[0].mask[0, 0].numpy(),
        probability=acquisitions[0].probability[0, 0].numpy(),
        reference=np.concatenate([root_sum_of_squares(ifft2c(k)).numpy() for k in full]),
        geometry=None,
        attributes={
            "simulated": True,
            "noise_variance": 0.0,
            "mask_kind": "roulette",
            "acceleration": ACCELERATION,
            "seed": 0,
        },
        force=True,
    )


def zero_filled_images(path: Path) -> np.ndarray:
    """Magnitude of the zero-filled reconstruction of a whole scan file, (slices, y, x)."""
    scan = open_scan(path)
    return root_sum_of_squares(ifft2c(scan.read(0, scan.shape[0]).kspace)).numpy()


def say(quiet: bool, text: str) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)
