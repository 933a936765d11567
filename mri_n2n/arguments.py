"""The arguments of every command. Nothing here imports torch: `--help` answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

import mri_n2n
from mri_n2n.choices import BASELINES, DENOISERS, MASKS, SCAN_FORMATS
from mri_n2n.train_arguments import add_corruption, add_train_arguments, path

EXIT_CODES = (
    "exit codes: 0 done; 1 internal error; 2 wrong usage; 3 input that cannot be read or does not fit; "
    "4 output that exists or cannot be written; 5 data or weights not found; 6 some of several scans failed; "
    "7 verification failed; 8 warnings under --strict; 130 interrupted. Research use only."
)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, as all errors here."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} ({self.prog} --help)\n")


class WithDefaults(argparse.HelpFormatter):
    """Appends defaults to the help of options, where there is one and the help does not speak of it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        said = action.help or ""
        none = action.default in (None, False, argparse.SUPPRESS) or not action.option_strings or "default" in said
        return said if none else f"{said} (default: %(default)s)".strip()


def add_scan_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--format", choices=SCAN_FORMATS, help="of the scan; default: found from its content")
    command.add_argument(
        "--repetition", type=int, metavar="N", help="one of several in the file, from 0; default: their mean"
    )


def parser() -> argparse.ArgumentParser:
    top = OneLineParser(
        prog="mri-n2n",
        description="MRI reconstruction that learns from scans nobody ever sampled fully.",
        epilog=EXIT_CODES,
    )
    top.add_argument("--version", action="version", version=f"mri-n2n {mri_n2n.__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, epilog=EXIT_CODES, formatter_class=WithDefaults)
        sub.set_defaults(command=name)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.add_argument("--quiet", action="store_true", help="no progress on stderr")
        return sub

    demo = command(
        "demo",
        "Simulate, train, reconstruct and evaluate on embedded phantoms, in under 3 minutes on 2 cores.",
    )
    demo.add_argument(
        "-o", "--output", type=path, default=Path("n2n-demo"), metavar="DIR", help="where everything is written"
    )
    demo.add_argument("--force", action="store_true", help="replace the files of an earlier demo")

    simulate = command("simulate", "Make a simulated undersampled scan from a magnitude or complex volume.")
    simulate.add_argument("volume", type=path, metavar="VOLUME.nii.gz")
    simulate.add_argument("-o", "--output", type=path, required=True, metavar="scan.h5")
    simulate.add_argument(
        "--axis", type=int, choices=(0, 1, 2), default=2, help="array axis along which slices are taken"
    )
    simulate.add_argument("--mask", choices=MASKS, help="default roulette; none with --corrupt")
    simulate.add_argument(
        "--acceleration", type=float, help="one sample in this many is kept; default 10 (1, all, with --corrupt)"
    )
    add_corruption(simulate)
    simulate.add_argument(
        "--coils", type=int, default=1, metavar="N", help="coils with smooth simulated maps, 1 to 128; default 1"
    )
    part = simulate.add_mutually_exclusive_group()
    part.add_argument(
        "--phase-volume",
        type=path,
        metavar="PHASE.nii.gz",
        help="the phase of VOLUME, in radians or a scanner's units (-4096 to 4096, 0 to 4095)",
    )
    part.add_argument(
        "--imaginary-volume", type=path, metavar="IMAG.nii.gz", help="the imaginary part, where VOLUME is the real one"
    )
    simulate.add_argument(
        "--phase",
        action="store_true",
        help="give the image a smooth random phase; without it and with one coil the image is real and the mask Hermitian",
    )
    simulate.add_argument(
        "--noise",
        type=float,
        default=0.0,
        metavar="S",
        help="standard deviation of the complex noise, as a share of the volume's maximum",
    )
    simulate.add_argument(
        "--repetitions",
        type=int,
        default=1,
        metavar="N",
        help="several: writes NAME_rep1.h5, NAME_rep2.h5 ... with independent masks and noise",
    )
    simulate.add_argument("--seed", type=int, default=0)
    simulate.add_argument("--no-reference", action="store_true", help="leave the fully sampled image out of the file")
    simulate.add_argument("--force", action="store_true", help="replace existing files")

    add_train_arguments(command("train", "Train a network from undersampled scans, without references."))

    reconstruct = command(
        "reconstruct",
        "Reconstruct scans; writes NAME.h5, NAME.nii.gz, NAME.png and NAME.json for each.",
    )
    add_scan_options(reconstruct)
    reconstruct.add_argument("scans", type=path, nargs="+", metavar="SCAN|DIR")
    reconstruct.add_argument(
        "-o", "--output", type=path, default=Path("reconstruction"), metavar="DIR", help="made when missing"
    )
    reconstruct.add_argument(
        "--weights", type=path, metavar="RUN|FILE", help="default: the weights that come with the package"
    )
    reconstruct.add_argument(
        "--baseline",
        choices=BASELINES,
        help="a classical reconstruction in place of the network: zero-filled, SENSE, or compressed sensing by total variation or wavelets",
    )
    reconstruct.add_argument(
        "--regularisation",
        type=float,
        metavar="L",
        help="of the baselines tv and wavelet, as in docs/methods.md; default: chosen for each scan by samples that are left out",
    )
    reconstruct.add_argument("--force", action="store_true", help="replace earlier results (never the input)")
    reconstruct.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    reconstruct.add_argument(
        "--no-flips",
        action="store_true",
        help="reconstruct every slice once, not as the mean over its four mirror images (weights trained on such): one pass instead of four",
    )
    reconstruct.add_argument(
        "--dicom",
        type=path,
        metavar="SERIES_DIR",
        help="of one scan: also write DICOM images derived from the series in this directory, as NAME.dicom/0001.dcm ...",
    )
    reconstruct.add_argument(
        "--bids",
        action="store_true",
        help="write a BIDS data set of derivatives; scans must have BIDS names, sub-01_T1w.h5",
    )
    reconstruct.add_argument(
        "--self-check",
        action="store_true",
        help="hold out the scan's own samples in turn, and say how large the error of what was not sampled is; 15 times the time",
    )
    reconstruct.add_argument(
        "--uncertainty",
        action="store_true",
        help="also write NAME.uncertainty.nii.gz, error bars from images without some of the samples; 10 times the time",
    )
    reconstruct.add_argument(
        "--strict",
        action="store_true",
        help="end with exit code 8 where anything was warned of; the results are written all the same",
    )
    reconstruct.add_argument(
        "--report",
        action="store_true",
        help="also write NAME.html, one page for a browser: images to scroll through, warnings, methods, provenance",
    )
    reconstruct.add_argument(
        "--skip-existing",
        action="store_true",
        help="leave out scans whose sidecar is there, whatever options it was made with; they do not count under --strict",
    )
    reconstruct.add_argument("--json", action="store_true", help="print the sidecars on stdout")

    denoise = command(
        "denoise",
        "Clean one noisy, fully sampled scan or volume by Noise2Void on itself; writes the files of reconstruct.",
    )
    denoise.add_argument("scan", type=path, metavar="SCAN|VOLUME.nii.gz")
    add_scan_options(denoise)
    denoise.add_argument("-o", "--output", type=path, default=Path("denoised"), metavar="DIR", help="made when missing")
    denoise.add_argument(
        "--method",
        choices=DENOISERS,
        default="auto",
        help="auto measures the noise: white: n2v2; correlated along one axis: structn2v",
    )
    denoise.add_argument(
        "--noise",
        type=float,
        metavar="S",
        help="standard deviation of the complex noise, in the volume's units (magnitudes: of that they were taken of; real images "
        "with negative values: of their own); default: measured. Given, the floor it leaves in magnitudes is lowered too",
    )
    budget = denoise.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, help="of training on the scan; default 3")
    budget.add_argument("--steps", type=int)
    denoise.add_argument(
        "--dimensions", type=int, choices=(2, 3), default=2, help="learn from slices, or from the volume"
    )
    denoise.add_argument("--axis", type=int, choices=(0, 1, 2), help="slice axis of a volume; default 2")
    part = denoise.add_mutually_exclusive_group()
    part.add_argument("--phase-volume", type=path, metavar="PHASE.nii.gz", help="the phase of VOLUME, as in simulate")
    part.add_argument(
        "--imaginary-volume", type=path, metavar="IMAG.nii.gz", help="the imaginary part, where VOLUME is the real one"
    )
    denoise.add_argument(
        "--share", type=float, default=0.06, metavar="P", help="share of the pixels that are hidden and predicted"
    )
    denoise.add_argument(
        "--window", type=int, help="side of the window hidden pixels are replaced from; default 11, in volumes 5"
    )
    denoise.add_argument(
        "--noise-map",
        action="store_true",
        help="also write NAME.noise.nii.gz, the local standard deviation of what was removed",
    )
    denoise.add_argument(
        "--residual",
        action="store_true",
        help="also write NAME.residual.nii.gz, magnitude before minus after: look for structure in it",
    )
    denoise.add_argument(
        "--weights",
        type=path,
        metavar="RUN|FILE",
        help="of train --method noise2void or --corrupt, in place of a training on the scan itself",
    )
    denoise.add_argument("--seed", type=int, default=0)
    denoise.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    denoise.add_argument("--force", action="store_true", help="replace earlier results (never the input)")
    denoise.add_argument("--json", action="store_true", help="print the sidecar on stdout")

    evaluate = command(
        "evaluate",
        "NMSE, PSNR and SSIM of reconstructions against references, as fastMRI defines them, or their error without one.",
    )
    evaluate.add_argument("reconstruction", type=path, metavar="RECON|DIR")
    against = evaluate.add_mutually_exclusive_group(required=True)
    against.add_argument("--reference", type=path, metavar="SCAN|VOLUME|DIR")
    against.add_argument(
        "--second-acquisition",
        type=path,
        metavar="SCAN|DIR",
        help="of the same object, which had no part in RECON: the error without a reference, with an interval",
    )
    evaluate.add_argument(
        "--third-acquisition", type=path, metavar="SCAN|DIR", help="another one, with which no noise level is needed"
    )
    evaluate.add_argument(
        "--axis",
        type=int,
        choices=(0, 1, 2),
        help="slice axis of a NIfTI reference, when the reconstruction does not say; default 2",
    )
    evaluate.add_argument(
        "--report",
        type=path,
        metavar="PAGE.html",
        help="of one file: also write a page for a browser: images to scroll through, error, warnings, methods, provenance",
    )
    evaluate.add_argument("--force", action="store_true", help="replace an existing PAGE.html (never an input)")
    evaluate.add_argument("--json", action="store_true", help="print JSON on stdout")

    verify = command(
        "verify",
        "Check the files of a result, make its image again as the sidecar says, and compare.",
    )
    verify.add_argument("image", type=path, metavar="IMAGE", help="NAME.h5, NAME.nii.gz or NAME.json of a result")
    verify.add_argument(
        "--scan",
        type=path,
        metavar="SCAN",
        help="that it was made of; default: the file of its name beside the result or in this directory",
    )
    verify.add_argument(
        "--weights", type=path, metavar="RUN|FILE", help="that it was made with, unless they come with the package"
    )
    verify.add_argument("--json", action="store_true", help="print JSON on stdout")

    info = command("info", "Say what a scan, volume, result or weights file holds.")
    info.add_argument("file", type=path, metavar="FILE")
    add_scan_options(info)
    info.add_argument("--json", action="store_true", help="print JSON on stdout")

    convert = command(
        "convert", "Write a raw scan in another format, which the suffix of OUT says: .h5, .cfl, .npy or .mrd."
    )
    convert.add_argument("source", type=path, metavar="IN")
    convert.add_argument("target", type=path, metavar="OUT")
    add_scan_options(convert)
    convert.add_argument("--lossy", action="store_true", help="leave out what the target has no room for")
    convert.add_argument("--force", action="store_true", help="replace an existing file")

    benchmark = command("benchmark", "Run one of the measurements behind docs/benchmarks.md.")
    benchmark.add_argument("names", nargs="*", metavar="NAME", help="which ones; without a name they are listed")
    benchmark.add_argument("--list", action="store_true", help="list them, with their questions and parts")
    benchmark.add_argument(
        "--data",
        type=path,
        metavar="DIR",
        help="directory of NIfTI volumes of at least three subjects, or what the benchmark asks for; methods, speed and coils (regions apart) do without",
    )
    benchmark.add_argument(
        "-o",
        "--output",
        type=path,
        default=Path("runs"),
        metavar="DIR",
        help="where trainings and results are kept; finished parts are not run again",
    )
    benchmark.add_argument(
        "--docs", type=path, metavar="DIR", help="also write the table and pictures into this documentation directory"
    )
    benchmark.add_argument(
        "--part",
        action="append",
        default=[],
        metavar="PART",
        help="of one benchmark only this part (may be repeated); default all",
    )
    benchmark.add_argument(
        "--minutes",
        type=float,
        default=4.0,
        metavar="M",
        help="of training each, where trainings are compared; of the processor over its threads; default 4",
    )
    benchmark.add_argument("--quick", action="store_true", help="a short run that shows the machinery, not the result")
    return top
