"""The command line: one function per verb. `--help` answers without importing torch."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import warnings
from dataclasses import make_dataclass
from importlib import import_module

from mri_n2n.arguments import parser
from mri_n2n.errors import InputError, OptionError, PartialError, UserError, VerificationError
from mri_n2n.train_options import strength_of, train_options_from


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code. Errors print one line on stderr, a traceback only with --debug."""
    options = parser().parse_args(arguments)
    warnings.formatwarning = lambda message, *_, **__: f"mri-n2n: warning: {' '.join(str(message).split())}\n"
    try:
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if threading.current_thread() is threading.main_thread():
                signal.signal(number, interrupted)  # a batch system's time limit: cleaned up as after Ctrl-C
        interruptible(options.command)
        COMMANDS[options.command](options)
        if sys.stdout is not None:
            sys.stdout.flush()  # here a full disk behind it is still an error of ours
    except UserError as error:
        if options.debug:
            raise
        print(f"mri-n2n: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("mri-n2n: interrupted; no file is half-written", file=sys.stderr)
        # Python remembers an interrupt that passed through text that was run, as in a late import, though it was caught, and `python -m`
        # then ends by the signal in place of the code. The next text that is run, as of any dataclass, makes it forget.
        make_dataclass("Forgotten", ())
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:  # names too long, a full disk behind stdout, a file where a directory should be
        if options.debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print("mri-n2n: error:", *f"{where}{error.strerror or error}".split(), file=sys.stderr)
        return 4
    except (MemoryError, RuntimeError) as error:
        if options.debug or not is_out_of_memory(error):
            return internal_error(error, options.debug)
        print(
            "mri-n2n: error: not enough memory; use a smaller --batch-size or --matrix-size, fewer coils, --checkpointing, or a "
            "machine with more",
            file=sys.stderr,
        )
        return InputError.exit_code
    except Exception as error:  # a bug: say so in one line, and how to see more
        return internal_error(error, options.debug)
    return options.exit_code if hasattr(options, "exit_code") else 0


def internal_error(error: Exception, debug: bool) -> int:
    """One line, and how to see more; with `debug` the error itself."""
    if debug:
        raise error
    print(
        f"mri-n2n: internal error: {type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)",
        file=sys.stderr,
    )
    return 1


def is_out_of_memory(error: Exception) -> bool:
    """MemoryError, or what torch raises in its place."""
    words = ("can't allocate memory", "out of memory", "not enough memory")
    return isinstance(error, MemoryError) or any(one in str(error).lower() for one in words)


def interrupted(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def interruptible(command: str) -> None:
    """Import what a command needs; signals wait until that is done, for within an import an exception gets lost in
    extension modules. A second one ends the process."""
    waiting: list[int] = []

    def note(number: int, _frame: object) -> None:
        if waiting:
            os._exit(130)
        waiting.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    heard = [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    previous = {number: signal.signal(number, note) for number in heard}
    try:
        import_module(MODULES[command])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if waiting:
        raise KeyboardInterrupt


def run_demo(options: argparse.Namespace) -> None:
    from mri_n2n.demo import demo
    from mri_n2n.process import tune_process

    tune_process()
    print(demo(options.output, force=options.force, quiet=options.quiet))


def run_simulate(options: argparse.Namespace) -> None:
    from mri_n2n.formats import open_scan
    from mri_n2n.simulation import SimulationOptions, simulate_file

    if options.corrupt and options.mask is not None:
        raise UserError("--corrupt takes the place of undersampling; leave out --mask")
    default_acceleration = 1.0 if options.corrupt else 10.0
    simulation = SimulationOptions(
        axis=options.axis,
        mask=options.mask or SimulationOptions.mask,
        acceleration=default_acceleration if options.acceleration is None else options.acceleration,
        coils=options.coils,
        phase=options.phase,
        noise=options.noise,
        repetitions=options.repetitions,
        seed=options.seed,
        reference=not options.no_reference,
        corrupt=options.corrupt,
        strength=strength_of(options),
    )
    parts = {"phase": options.phase_volume, "imaginary": options.imaginary_volume}
    for path in simulate_file(options.volume, options.output, simulation, **parts, force=options.force):
        share = open_scan(path).read(0, 1).mask.mean().item()
        print(f"{path} (simulated k-space, {1 / share:.2f}x)")


def run_train(options: argparse.Namespace) -> None:
    from mri_n2n.distributed import told
    from mri_n2n.process import tune_process
    from mri_n2n.quality import in_words
    from mri_n2n.training import train

    train_options = train_options_from(options)
    tune_process()
    result = train(train_options, options.output, resume=options.resume)
    if not told().is_first:
        return
    words = in_words(result.quality)
    quality = f", validation: {words}" if words else ""
    if result.kept_step != result.steps:
        quality += f", weights of step {result.kept_step}"
    if result.finished:
        print(f"{result.weights}: {result.steps} steps in {result.seconds / 60:.1f} minutes{quality}")
    else:
        print(
            f"stopped and saved at step {result.steps}; the same command with --resume goes on from there",
            file=sys.stderr,
        )
        options.exit_code = 130


def run_reconstruct(options: argparse.Namespace) -> None:
    from mri_n2n.process import tune_process
    from mri_n2n.reconstruction import reconstruct_files
    from mri_n2n.trust.words import self_check_line

    tune_process()
    failed = None
    try:
        sidecars = reconstruct_files(
            options.scans,
            options.output,
            weights=options.weights,
            baseline=options.baseline,
            regularisation=options.regularisation,
            force=options.force,
            device=options.device,
            flips=False if options.no_flips else None,
            format=options.format,
            repetition=options.repetition,
            skip_existing=options.skip_existing,
            dicom=options.dicom,
            bids=options.bids,
            self_check=options.self_check,
            uncertainty=options.uncertainty,
            report=options.report,
            quiet=options.quiet,
        )
    except PartialError as error:
        sidecars, failed = error.done, error
    if options.json:
        print(json.dumps(sidecars, indent=2))
    else:
        for sidecar in sidecars:
            name = sidecar["output"]
            print(
                f"{options.output / name}.h5 .nii.gz .png .json{' .html' * options.report}{' .dicom' if options.dicom else ''}: {sidecar['slices']} slices in {sidecar['seconds']} s, {sidecar['measured_share']:.1%} of the samples and {sidecar['measured_energy_share']:.1%} of the image's energy measured"
            )
            if "self_check" in sidecar:
                print(f"  {self_check_line(sidecar['self_check'])}")
    if failed:
        raise failed
    if options.strict and any(sidecar["warnings"] for sidecar in sidecars):
        options.exit_code = 8


def run_denoise(options: argparse.Namespace) -> None:
    from mri_n2n.denoising.blind_spot import BlindSpot
    from mri_n2n.denoising.cleaning import Plan
    from mri_n2n.denoising.denoise import denoise_file
    from mri_n2n.denoising.self_training import DenoiseOptions
    from mri_n2n.process import tune_process

    tune_process()
    minutes = 3.0 if options.minutes is options.steps is None else options.minutes
    training = DenoiseOptions(
        spot=BlindSpot(share=options.share, window=options.window),
        dimensions=options.dimensions,
        minutes=minutes,
        steps=options.steps,
        seed=options.seed,
    )
    sidecar = denoise_file(
        options.scan,
        options.output,
        Plan(options.method, options.noise, training, options.noise_map, options.residual),
        weights=options.weights,
        axis=options.axis,
        phase=options.phase_volume,
        imaginary=options.imaginary_volume,
        format=options.format,
        repetition=options.repetition,
        force=options.force,
        device=options.device,
        quiet=options.quiet,
    )
    if options.json:
        print(json.dumps(sidecar, indent=2))
    else:
        name = options.output / sidecar["output"]
        print(f"{name}.h5 .nii.gz .png .json: {sidecar['slices']} slices in {sidecar['seconds']} s")


def run_evaluate(options: argparse.Namespace) -> None:
    from mri_n2n.judgement import evaluate

    if options.force and not options.report:
        raise UserError("--force is of --report")
    given = [options.reconstruction, options.reference, options.second_acquisition, options.third_acquisition]
    if options.report:
        from mri_n2n.page.evaluated import check_page, page_of_judgement, page_of_scores, write_page

        check_page(options.report, [path for path in given if path], options.force)
    result = evaluate(
        options.reconstruction,
        options.reference,
        options.axis,
        second_acquisition=options.second_acquisition,
        third_acquisition=options.third_acquisition,
    )
    if options.second_acquisition:
        from mri_n2n.trust.words import format_table, to_json
    else:
        from mri_n2n.evaluation import format_table, to_json
    if options.report:
        acquisitions = options.second_acquisition, options.third_acquisition
        axis = 2 if options.axis is None else options.axis
        page = (
            page_of_judgement(options.reconstruction, *acquisitions, result)
            if options.second_acquisition
            else page_of_scores(options.reconstruction, options.reference, axis, result)
        )
        write_page(options.report, page, options.force)
    print(json.dumps(to_json(result), indent=2) if options.json else format_table(result))


def run_verify(options: argparse.Namespace) -> None:
    from mri_n2n.process import tune_process
    from mri_n2n.verification import format_text, to_json, verify

    tune_process()
    result = verify(options.image, scan=options.scan, weights=options.weights, quiet=options.quiet)
    print(json.dumps(to_json(result), indent=2) if options.json else format_text(result))
    if not result.verified:
        options.exit_code = VerificationError.exit_code


def run_info(options: argparse.Namespace) -> None:
    from mri_n2n.inspection import describe

    facts = describe(options.file, options.format, options.repetition)
    print(
        json.dumps(facts, indent=2) if options.json else "\n".join(f"{key:<16} {as_text(facts[key])}" for key in facts)
    )


def as_text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return " to ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def run_convert(options: argparse.Namespace) -> None:
    from mri_n2n.conversion import convert

    lost = convert(
        options.source,
        options.target,
        format=options.format,
        repetition=options.repetition,
        lossy=options.lossy,
        force=options.force,
    )
    print(f"{options.target}" + (f" (without {', '.join(lost)})" if lost else ""))


def run_benchmark(options: argparse.Namespace) -> None:
    from mri_n2n.benchmarks import check, listing, run
    from mri_n2n.benchmarks.common import Setting
    from mri_n2n.process import tune_process

    if options.list or not options.names:
        print(listing())
        return
    setting = Setting(options.data, options.output, options.docs, options.quick, options.minutes)
    if options.part and len(options.names) > 1:
        raise OptionError(f"--part is of one benchmark; got {', '.join(options.names)}")
    for name in options.names:  # all of them before hours are spent on the first
        check(name, setting, options.part)
    tune_process()
    for name in options.names:
        print(run(name, setting, options.part), flush=True)


COMMANDS = {
    "demo": run_demo,
    "simulate": run_simulate,
    "train": run_train,
    "reconstruct": run_reconstruct,
    "denoise": run_denoise,
    "evaluate": run_evaluate,
    "verify": run_verify,
    "info": run_info,
    "convert": run_convert,
    "benchmark": run_benchmark,
}


MODULES = {
    "demo": "mri_n2n.demo",
    "simulate": "mri_n2n.simulation",
    "train": "mri_n2n.training",
    "reconstruct": "mri_n2n.reconstruction",
    "denoise": "mri_n2n.denoising.denoise",
    "evaluate": "mri_n2n.judgement",
    "verify": "mri_n2n.verification",
    "info": "mri_n2n.inspection",
    "convert": "mri_n2n.conversion",
    "benchmark": "mri_n2n.benchmarks.common",
}


if __name__ == "__main__":
    sys.exit(main())
