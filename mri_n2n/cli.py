"""The command line: one function per verb. `--help` answers without importing torch."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

import mri_n2n
from mri_n2n.errors import UserError

MASKS = ("roulette", "gaussian-points", "random-lines", "equispaced-lines", "gaussian-lines")
EXIT_CODES = (
    "exit codes: 0 done; 1 internal error; 2 wrong usage; 3 input that cannot be read or does not fit; "
    "4 output that exists or cannot be written; 5 data or weights not found; 130 interrupted. Research use only."
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code. Errors print one line on stderr, a traceback only with --debug."""
    options = parser().parse_args(arguments)
    warnings.formatwarning = lambda message, *_, **__: f"mri-n2n: warning: {' '.join(str(message).split())}\n"
    try:
        options.run(options)
    except UserError as error:
        if options.debug:
            raise
        print(f"mri-n2n: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("mri-n2n: interrupted; nothing half-written was kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:  # a bug: say so in one line, and how to see more
        if options.debug:
            raise
        print(f"mri-n2n: internal error: {type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)", file=sys.stderr)
        return 1
    return options.exit_code if hasattr(options, "exit_code") else 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="mri-n2n", description="MRI reconstruction that learns from scans nobody ever sampled fully.", epilog=EXIT_CODES)
    top.add_argument("--version", action="version", version=f"mri-n2n {mri_n2n.__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, epilog=EXIT_CODES, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.set_defaults(run=run)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.add_argument("--quiet", action="store_true", help="no progress on stderr")
        return sub

    demo = command("demo", run_demo, "Simulate, train, reconstruct and evaluate on embedded phantoms, in under 3 minutes on 2 cores.")
    demo.add_argument("-o", "--output", type=Path, default=Path("n2n-demo"), metavar="DIR", help="where everything is written")
    demo.add_argument("--force", action="store_true", help="replace the files of an earlier demo")

    simulate = command("simulate", run_simulate, "Make a simulated undersampled scan from a magnitude volume.")
    simulate.add_argument("volume", type=Path, metavar="VOLUME.nii.gz")
    simulate.add_argument("-o", "--output", type=Path, required=True, metavar="scan.h5")
    simulate.add_argument("--axis", type=int, choices=(0, 1, 2), default=2, help="array axis along which slices are taken")
    simulate.add_argument("--mask", choices=MASKS, default="roulette")
    simulate.add_argument("--acceleration", type=float, default=10.0, help="one sample in this many is kept")
    simulate.add_argument("--coils", type=int, default=1)
    simulate.add_argument("--phase", action="store_true", help="give the image a smooth random phase; without it and with one coil the image is real and the mask Hermitian")
    simulate.add_argument("--noise", type=float, default=0.0, metavar="S", help="standard deviation of the complex noise, as a share of the volume's maximum")
    simulate.add_argument("--repetitions", type=int, default=1, metavar="N", help="several: writes NAME_rep1.h5, NAME_rep2.h5 ... with independent masks and noise")
    simulate.add_argument("--seed", type=int, default=0)
    simulate.add_argument("--no-reference", action="store_true", help="leave the fully sampled image out of the file")
    simulate.add_argument("--force", action="store_true", help="replace existing files")

    train = command("train", run_train, "Train a network from undersampled scans, without references.")
    train.add_argument("--dataset", required=True, choices=("ixi", "nifti", "fastmri", "pairs", "phantom"))
    train.add_argument("--data", metavar="DIR", help="directory of the data set; default: data/<dataset> here, or under $MRI_N2N_DATA")
    train.add_argument("-o", "--output", type=Path, required=True, metavar="RUN", help="run directory: weights, checkpoint, log, example picture")
    train.add_argument("--recipe", choices=("default", "noise2noise-2018"), default="default", help="noise2noise-2018: the MRI experiment of Lehtinen et al. 2018 to the letter")
    train.add_argument("--targets", choices=("undersampled", "clean"), default="undersampled", help="clean: the same run with fully sampled targets, for comparison")
    train.add_argument("--pairs", choices=("fixed", "redrawn"), help="simulated data: every slice acquired exactly twice, or new masks at every step; default fixed (redrawn with the 2018 recipe)")
    train.add_argument("--network", choices=("unrolled", "unet"), help="default unrolled (unet with the 2018 recipe)")
    train.add_argument("--cascades", type=int, help="unrolled: number of cascades")
    train.add_argument("--channels", type=int, help="channels of the U-Net(s)")
    train.add_argument("--consistency", choices=("hard", "soft"), help="unrolled: samples put back as measured, or trusted by a learned share (for noise); default hard, soft with --noise")
    train.add_argument("--mask", default="roulette", help=f"one of {', '.join(MASKS)}, several separated by commas, or all")
    train.add_argument("--acceleration", default="10", help="a number, or a range such as 4:12")
    train.add_argument("--noise", type=float, default=0.0, metavar="S", help="standard deviation of simulated complex noise, as a share of the volume's maximum")
    train.add_argument("--phase", type=float, default=0.0, metavar="P", help="share of the slices given a smooth random phase")
    train.add_argument("--matrix-size", type=int, metavar="N", help="pad slices to a square and Fourier-crop them to N x N")
    train.add_argument("--axis", type=int, choices=(0, 1, 2), default=2, help="array axis along which slices are taken")
    train.add_argument("--validation-subjects", metavar="NAMES", help="comma-separated, or none to train on all; default: the data set's own split, or the last fifth")
    train.add_argument("--exclude-subjects", metavar="NAMES", help="comma-separated; kept out of training and validation, for a test")
    budget = train.add_mutually_exclusive_group()
    budget.add_argument("--epochs", type=int)
    budget.add_argument("--steps", type=int)
    budget.add_argument("--minutes", type=float)
    train.add_argument("--batch-size", type=int, help="default 8 (16 with the 2018 recipe)")
    train.add_argument("--learning-rate", type=float, help="default 2e-3 (1e-3 with the 2018 recipe)")
    train.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    train.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: bfloat16 where the hardware multiplies it")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--init", metavar="RUN|FILE", help="start from the weights of another run of the same network")
    train.add_argument("--resume", action="store_true", help="continue the run in RUN")

    reconstruct = command("reconstruct", run_reconstruct, "Reconstruct scans; writes NAME.h5, NAME.nii.gz, NAME.png and NAME.json for each.")
    reconstruct.add_argument("scans", type=Path, nargs="+", metavar="scan.h5")
    reconstruct.add_argument("-o", "--output", type=Path, default=Path("reconstruction"), metavar="DIR", help="made when missing")
    reconstruct.add_argument("--weights", type=Path, metavar="RUN|FILE", help="default: the weights that come with the package")
    reconstruct.add_argument("--force", action="store_true", help="replace earlier results (never the input)")
    reconstruct.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    reconstruct.add_argument("--json", action="store_true", help="print the sidecars on stdout")

    evaluate = command("evaluate", run_evaluate, "NMSE, PSNR and SSIM of reconstructions against references, as fastMRI defines them.")
    evaluate.add_argument("reconstruction", type=Path, metavar="RECON|DIR")
    evaluate.add_argument("--reference", type=Path, required=True, metavar="SCAN|VOLUME|DIR")
    evaluate.add_argument("--axis", type=int, choices=(0, 1, 2), default=2, help="slice axis of a NIfTI reference, when the reconstruction does not say")
    evaluate.add_argument("--json", action="store_true", help="print JSON on stdout")

    info = command("info", run_info, "Say what a scan, volume, result or weights file holds.")
    info.add_argument("file", type=Path, metavar="FILE")
    info.add_argument("--json", action="store_true", help="print JSON on stdout")

    benchmark = command("benchmark", run_benchmark, "Run one of the measurements behind docs/benchmarks.md.")
    benchmark.add_argument("name", nargs="?", help="which one; without a name they are listed")
    benchmark.add_argument("--data", type=Path, metavar="DIR", help="directory of NIfTI volumes named patientNN_studyN_CONTRAST.nii.gz")
    benchmark.add_argument("-o", "--output", type=Path, default=Path("runs"), metavar="DIR", help="where trainings and results are kept; finished parts are not run again")
    benchmark.add_argument("--docs", type=Path, metavar="DIR", help="also write the table and pictures into this documentation directory")
    benchmark.add_argument("--quick", action="store_true", help="a short run that shows the machinery, not the result")
    return top


def run_demo(options: argparse.Namespace) -> None:
    from mri_n2n.demo import demo
    from mri_n2n.process import tune_process

    tune_process()
    print(demo(options.output, force=options.force, quiet=options.quiet))


def run_simulate(options: argparse.Namespace) -> None:
    from mri_n2n.simulate import SimulationOptions, simulate_file

    simulation = SimulationOptions(
        axis=options.axis, mask=options.mask, acceleration=options.acceleration, coils=options.coils, phase=options.phase,
        noise=options.noise, repetitions=options.repetitions, seed=options.seed, reference=not options.no_reference,
    )
    for path in simulate_file(options.volume, options.output, simulation, force=options.force):
        print(f"{path} (simulated k-space)")


def run_train(options: argparse.Namespace) -> None:
    from mri_n2n.process import tune_process
    from mri_n2n.train import train

    train_options = train_options_from(options)
    tune_process()
    result = train(train_options, options.output, resume=options.resume)
    quality = "" if result.psnr is None else f", validation PSNR {result.psnr:.2f} dB"
    if result.finished:
        print(f"{result.weights}: {result.steps} steps in {result.seconds / 60:.1f} minutes{quality}")
    else:
        print(f"stopped and saved at step {result.steps}; the same command with --resume goes on from there", file=sys.stderr)
        options.exit_code = 130


def train_options_from(options: argparse.Namespace):
    """The options of a run from those of the command line; the 2018 recipe changes the defaults that were not given."""
    from mri_n2n.batches import Protocol
    from mri_n2n.train import TrainOptions

    recipe = options.recipe == "noise2noise-2018"
    network = options.network or ("unet" if recipe else "unrolled")
    if recipe and network != "unet":
        raise UserError("--recipe noise2noise-2018 is defined with --network unet")
    unrolled_only = {"--cascades": options.cascades, "--consistency": options.consistency}
    if network != "unrolled" and any(value is not None for value in unrolled_only.values()):
        raise UserError(f"{' and '.join(unrolled_only)} belong to --network unrolled")
    masks = MASKS if options.mask == "all" else tuple(options.mask.split(","))
    unknown = [mask for mask in masks if mask not in MASKS]
    if unknown:
        raise UserError(f"unknown mask {unknown[0]!r}; choose from {', '.join(MASKS)}")
    try:
        low, _, high = options.acceleration.partition(":")
        acceleration = (float(low), float(high or low))
    except ValueError:
        raise UserError(f"--acceleration must be a number or a range such as 4:12; got {options.acceleration!r}") from None
    if not 1 <= acceleration[0] <= acceleration[1]:
        raise UserError("--acceleration must be at least 1, and a range must rise")
    network_options = {"channels": options.channels, "cascades": options.cascades}
    network_options = {name: value for name, value in network_options.items() if value is not None}
    if network == "unrolled":
        network_options["consistency"] = options.consistency or ("soft" if options.noise else "hard")
    elif options.phase or options.dataset in ("fastmri", "pairs"):  # images of these are not real
        network_options["complex_images"] = True
    if not (options.epochs or options.steps or options.minutes):
        options.epochs = 300 if recipe else 50
    return TrainOptions(
        dataset=options.dataset, data=options.data, matrix_size=options.matrix_size, axis=options.axis,
        validation_subjects=tuple(options.validation_subjects.split(",")) if options.validation_subjects else None,
        excluded_subjects=tuple(options.exclude_subjects.split(",")) if options.exclude_subjects else (),
        protocol=Protocol(
            recipe=options.recipe, targets=options.targets, pairs=options.pairs or ("redrawn" if recipe else "fixed"),
            masks=masks, acceleration=acceleration, noise=options.noise, phase=options.phase, seed=options.seed,
        ),
        network=network, network_options=network_options,
        epochs=options.epochs, steps=options.steps, minutes=options.minutes,
        batch_size=options.batch_size or (16 if recipe else 8), learning_rate=options.learning_rate or (1e-3 if recipe else 2e-3),
        device=options.device, precision=options.precision, quiet=options.quiet, init=options.init,
    )


def run_reconstruct(options: argparse.Namespace) -> None:
    from mri_n2n.process import tune_process
    from mri_n2n.reconstruct import reconstruct_files

    tune_process()
    sidecars = reconstruct_files(
        options.scans, options.output, weights=options.weights, force=options.force, device=options.device, quiet=options.quiet
    )
    if options.json:
        print(json.dumps(sidecars, indent=2))
    else:
        for sidecar in sidecars:
            name = sidecar["output"]
            print(f"{options.output / name}.h5 .nii.gz .png .json: {sidecar['slices']} slices in {sidecar['seconds']} s, {sidecar['measured_share']:.1%} of the samples measured")


def run_evaluate(options: argparse.Namespace) -> None:
    from mri_n2n.evaluate import evaluate_files, format_table, to_json

    result = evaluate_files(options.reconstruction, options.reference, axis=options.axis)
    print(json.dumps(to_json(result), indent=2) if options.json else format_table(result))


def run_info(options: argparse.Namespace) -> None:
    from mri_n2n.info import describe

    facts = describe(options.file)
    print(json.dumps(facts, indent=2) if options.json else "\n".join(f"{key:<16} {value}" for key, value in facts.items()))


def run_benchmark(options: argparse.Namespace) -> None:
    from mri_n2n.benchmarks import listing, run
    from mri_n2n.process import tune_process

    if options.name is None:
        print(listing())
        return
    tune_process()
    print(run(options.name, data=options.data, output=options.output, docs=options.docs, quick=options.quick))


if __name__ == "__main__":
    sys.exit(main())
