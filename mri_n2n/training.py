"""Training: options, and one loop. `train` is the whole story; the rest of this file is what it calls, in order."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

import mri_n2n
from mri_n2n.batches import steps_per_epoch, training_batches
from mri_n2n.checkpoint import build_network, find_weights, network_options, restore_optimizer
from mri_n2n.choice import choose_method
from mri_n2n.correction import in_use
from mri_n2n.datasets import REPEATED, find_sources
from mri_n2n.denoising.body import fitted_to_noise
from mri_n2n.device import choose_device, choose_precision
from mri_n2n.distributed import Processes, joined
from mri_n2n.errors import InputError, UserError
from mri_n2n.files import sha256_of
from mri_n2n.growth import initial_weights
from mri_n2n.options import TrainOptions, check_options, with_network
from mri_n2n.process import progress_shown
from mri_n2n.quality import Quality, draw_curve, shown
from mri_n2n.runs import (
    check_unused,
    discard_run,
    read_checkpoint,
    read_log,
    save_run,
    saved_options,
    start_run,
    write_log,
    write_options,
)
from mri_n2n.schedule import set_schedule
from mri_n2n.selection import after, from_tensors, to_tensors
from mri_n2n.sources import Split
from mri_n2n.steps import Prefetch, new_optimizer, training_step
from mri_n2n.training_statistics import SCANS, add_to
from mri_n2n.trust.familiarity import FEWEST
from mri_n2n.trust.pair_check import checked_split
from mri_n2n.validation import judges, validate, validation_set

# Of so many slices in training steps, statistics of one scan are taken at the end: a few per cent of the time.
PASSES_FOR_A_SCAN = 16
# What a run saves of itself, and what it begins with.
FRESH = {"step": 0, "seconds": 0.0, "loss": None, "quality": {}}


@dataclass(frozen=True)
class TrainResult:
    """weights: the file written; psnr: their validation PSNR in dB, of the reference or estimated (None: neither); loss: the
    last; steps and seconds spent; kept_step: that of the weights; quality: all that their validation found, as in the log; stopped: "patience", or None."""

    weights: Path
    psnr: float | None
    loss: float | None
    steps: int
    seconds: float
    finished: bool
    kept_step: int
    quality: Quality
    stopped: str | None = None


@dataclass(frozen=True)
class Kept:
    """weights: those to be saved. facts: step, seconds, loss and quality when they were taken."""

    weights: dict[str, Tensor]
    facts: dict


class Stopped:
    """True once Ctrl-C or a termination signal asked the loop to save and leave; a second Ctrl-C leaves at once, other signals, which
    launchers pass on beside the system's own, do not."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, _frame: object) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def __bool__(self) -> bool:
        return self.signal is not None


def train(options: TrainOptions, run: Path | str, *, resume: bool = False) -> TrainResult:
    """Train a network and write `run`/weights.safetensors (and checkpoint, log.jsonl, example.png, curve.png, run.json).

    The weights are those of the last validation that was not worse than the best one beyond uncertainty, see `selection`.

    With `resume` an interrupted run goes on from its checkpoint: on the CPU in float32, with a budget in steps or
    epochs, to bit for bit the result of an uninterrupted one.
    Under torchrun several processes train together: each reads and computes its own part of every step, see
    `batches.training_batches`; the first validates and writes.
    Errors: NotFoundError without data, OutputError when `run` holds another run, InputError for bad data or options.
    """
    check_options(options)
    device = choose_device(options.device)
    # Where it is not torchrun that starts processes, nobody says how many a machine has: Gloo joins one or several.
    several_here = int(os.environ.get("LOCAL_WORLD_SIZE", "2")) > 1
    with joined(device, share_gpu=several_here and options.device.startswith("cuda:")) as processes:
        return _train(options, Path(run), resume, device, processes)


def _train(options: TrainOptions, run: Path, resume: bool, device: torch.device, processes: Processes) -> TrainResult:
    if not resume and processes.is_first:
        check_unused(run)
    options = shared(options, saved_options(run) if resume else {}, device, processes)
    sources = sources_of(options)
    if options.dataset in REPEATED:
        sources, check = checked_split(sources)
        if not options.quiet:
            tqdm.write(f"repetitions: {check.summary}", file=sys.stderr)
        for one in check.left_out:
            warnings.warn(f"repetitions that do not show the same object are left out: {one}", stacklevel=2)
    if options.protocol.method == "auto":
        method, why = choose_method(options.dataset, sources.train, options.protocol)
        if not options.quiet:
            tqdm.write(f"method: {method} ({why})", file=sys.stderr)
        options = replace(options, protocol=replace(options.protocol, method=method))
    options = with_network(options)
    foreign = set(options.network_options) - set(network_options(options.network, {}))
    if foreign:
        raise UserError(f"--{' and --'.join(sorted(foreign))} say nothing of --network {options.network}")
    check_options(options)
    if options.protocol.method == "noise2void":
        protocol, found, caution = fitted_to_noise(sources.train, options.protocol)
        if not options.quiet:
            tqdm.write(f"noise: {found}", file=sys.stderr)
        if caution:
            warnings.warn(caution, stacklevel=2)
        network = options.network_options
        if network.get("body") == "n2v2":
            network = network | {"span": list(protocol.pair.blind_spot.span)}
        options = replace(options, protocol=protocol, network_options=network)
    if options.network == "unet" and not options.network_options.get("complex_images"):
        if any(source.has_phase for source in sources.train):
            raise UserError(
                "the images of this data set are complex, of which the U-Net sees the real part; use --network unrolled"
            )
    data = described(sources)
    checkpoint, saved = read_checkpoint(run, asdict(options), data) if resume else ({}, {})
    step, seconds, loss, quality = (saved[key] if saved else new for key, new in FRESH.items())
    facts = {"step": step, "seconds": seconds, "loss": loss, "quality": quality}
    kept = Kept(part(checkpoint, "kept.") or part(checkpoint, "average."), saved.get("kept", facts))
    best, landmark = (part(checkpoint, f"standing.{name}.") for name in ("best", "landmark"))
    standing = from_tensors(best, landmark, saved.get("since", 0))
    precision = choose_precision(saved.get("precision", options.precision), device)

    network = with_seed(options.protocol.seed, partial(new_network, options, device, precision))
    optimizer = new_optimizer(network, options.learning_rate)
    init_sha256 = saved.get("init_sha256")
    if options.init and not checkpoint:
        start = find_weights(Path(options.init))
        network.load_state_dict(initial_weights(start, options.network, options.network_options, network.state_dict()))
        init_sha256 = sha256_of(start)
    average = AveragedModel(network, avg_fn=partial(moving_average, options.average))
    used = in_use(average.module, options.protocol.method, options.protocol.pair)
    if checkpoint:
        network.load_state_dict(part(checkpoint, "network."))
        average.module.load_state_dict(part(checkpoint, "average."))
        average.n_averaged.fill_(step)
        restore_optimizer(optimizer, checkpoint)

    per_epoch = steps_per_epoch(sources.train, options.batch_size, options.shards)
    total = options.steps or (options.epochs or 0) * per_epoch or None
    protocol = replace(options.protocol, combined=options.protocol.combined and options.network != "unet")
    validation = validation_set(sources.validation, protocol) if processes.is_first else []
    by = judges(validation)
    if by and not options.quiet:
        tqdm.write(f"validation: {by.words}", file=sys.stderr)
    batches = training_batches(sources.train, protocol, options.batch_size, step, options.shards, processes)
    header = {
        "network": options.network,
        "network_options": network_options(options.network, options.network_options),
        "precision": precision,
        "version": mri_n2n.__version__,
        "torch": torch.__version__,
        "note": "research use only",
        "threads": torch.get_num_threads(),
        "processes": processes.count,
        "parameters": sum(p.numel() for p in network.parameters()),
        **data,
        "init_sha256": init_sha256,
        "training": asdict(options),
    }

    def save(keep: bool) -> None:
        nonlocal kept
        facts = {"step": step, "seconds": seconds, "loss": loss, "quality": quality}
        if keep:
            weights = {name: value.detach().to("cpu", copy=True) for name, value in average.module.state_dict().items()}
            kept = Kept(weights, facts)
        header.update(facts, kept=kept.facts, since=0 if standing is None else standing.since)
        save_run(run, network, average.module, optimizer, header, kept.weights, to_tensors(standing))

    def done() -> float:
        """Share of the budget."""
        return step / total if total else seconds / 60 / options.minutes

    if checkpoint and done() >= 1 and not options.quiet:
        told = f"{step} steps, {seconds / 60:.1f} minutes; for more give more --steps, --epochs or --minutes"
        tqdm.write(f"{run} is at its end: {told}", file=sys.stderr)
    if processes.is_first:
        start_run(run, asdict(options), step)
    stopped = Stopped()
    previous = {number: signal.signal(number, stopped) for number in catchable_signals()}
    upcoming = Prefetch(batches) if device.type == "cuda" else batches  # on the CPU the network needs every core itself
    validated = seconds
    bar = tqdm(total=total, initial=step, unit="step", disable=not progress_shown(options.quiet), dynamic_ncols=True)
    started = time.monotonic() - seconds
    exhausted = standing is not None and standing.exhausted(options.patience)
    try:
        while True:
            progress = done()
            progress, goes_on = processes.agree(progress, not (stopped or exhausted or progress >= 1))
            if not goes_on:
                break
            set_schedule(optimizer, options, progress)
            loss = training_step(network, optimizer, next(upcoming), device, precision, progress, processes)
            average.update_parameters(network)
            if not math.isfinite(loss):
                kept_one = "; the last checkpoint is kept" if (run / "checkpoint.safetensors").exists() else ""
                raise InputError(
                    f"the loss became {loss} at step {step}{kept_one}. Lower --learning-rate or check the data"
                )
            step, seconds = step + 1, time.monotonic() - started
            bar.update()
            left = {} if total else {"minutes_left": f"{max(0.0, options.minutes - seconds / 60):.1f}"}
            bar.set_postfix({"loss": f"{loss:.3e}", **shown(quality), **left}, refresh=False)
            last = done() >= 1
            if processes.is_first and (last or seconds - validated > options.validate_every):
                found = validate(used, validation, device, precision, run / "example.png", by)
                quality = found.quality
                standing = after(standing, found.errors, by.designs if by else {}) if found.errors else None
                keep = standing is None or standing.keep
                exhausted = standing is not None and standing.exhausted(options.patience)
                entry = {"step": step, "epoch": step / per_epoch, "seconds": round(seconds, 2), "loss": loss, **quality}
                entry |= {"kept": keep, **({"stopped": "patience"} if exhausted else {})}
                log = [*read_log(run), entry]
                write_log(run, log)  # before the checkpoint: a resumed run drops what came after it
                draw_curve(log, run / "curve.png", validation[0].note if validation else "")
                save(keep)
                validated = time.monotonic() - started  # however long a validation takes, training goes on after it
        finished = not stopped
        if not processes.is_first:
            pass  # the first saves
        elif stopped:
            save(keep=standing is None)
        elif options.network not in ("unet", "denoiser"):
            scans = max(FEWEST, min(SCANS, step * options.batch_size // PASSES_FOR_A_SCAN))
            add_to(run / "weights.safetensors", sources.train, protocol, device, scans)
        if exhausted and processes.is_first:
            write_options(run, asdict(options) | {"stopped": "patience"})
            if not options.quiet:
                tqdm.write(
                    f"stopped: no improvement beyond uncertainty in {options.patience} validations; "
                    f"the weights are those of step {kept.facts['step']}",
                    file=sys.stderr,
                )
    except BaseException:
        if processes.is_first and not (run / "checkpoint.safetensors").exists():
            discard_run(run)
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        bar.close()
    quality, taken, why = kept.facts["quality"], kept.facts["step"], "patience" if exhausted else None
    weights = run / "weights.safetensors"
    return TrainResult(weights, quality.get("psnr"), loss, step, seconds, finished, taken, quality, why)


def shared(options: TrainOptions, before: dict, device: torch.device, processes: Processes) -> TrainOptions:
    """The options with a batch size and shards, where none are given: those of the run `before`, or the defaults for these processes, the
    others of which are quiet. Errors: UserError."""
    began = before.get("shards", 1) if before else None
    if options.shards and began and options.shards != began:
        raise InputError(f"the run began with --shards {began}, which it keeps")
    shards = options.shards or began or processes.count
    size = default_batch_size(options.protocol.recipe_2018, device) * processes.count
    size = options.batch_size or before.get("batch_size") or -(-size // shards) * shards
    options = replace(options, batch_size=size, shards=shards, quiet=options.quiet or not processes.is_first)
    check_options(options)
    if shards % processes.count:
        raise UserError(
            f"--shards must be a multiple of the {processes.count} processes; got {shards}"
            + ", which the run began with" * bool(began)
        )
    return options


def sources_of(options: TrainOptions) -> Split:
    """The slices to train and to validate on."""
    return find_sources(
        options.dataset,
        Path(options.data) if options.data else None,
        matrix_size=options.matrix_size,
        axis=options.axis,
        validation_subjects=options.validation_subjects,
        excluded_subjects=options.excluded_subjects,
        coils=options.coils,
    )


def described(sources: Split) -> dict:
    """What a run says of its data; names only as a hash."""
    listed = [[(source.name, source.slices) for source in part] for part in (sources.train, sources.validation)]
    simulated = {source.simulated for source in sources.train}
    return {
        "simulated": simulated.pop() if len(simulated) == 1 else None,
        "split": sources.rule,
        "sources_sha256": hashlib.sha256(json.dumps(listed).encode()).hexdigest(),
        "train_volumes": len(sources.train),
        "train_slices": sum(s.slices for s in sources.train),
        "validation_volumes": len(sources.validation),
    }


def new_network(options: TrainOptions, device: torch.device, precision: str) -> nn.Module:
    """The network as it is trained, with random weights."""
    network = build_network(options.network, options.network_options).to(device)
    if precision == "bfloat16":
        network = network.to(memory_format=torch.channels_last)
    network.checkpointing = options.checkpointing
    return network


def with_seed(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    """A network whose initial weights depend on the seed alone; every other draw has its own generator. The caller's global
    one stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make()


def default_batch_size(recipe_2018: bool, device: torch.device) -> int:
    """The paper's 16 for the recipe. Else 2 where a step takes as long as it has slices: in equal time more steps of fewer
    slices learn more (see `benchmark ablation`); 8 on a GPU, which computes them side by side."""
    return 16 if recipe_2018 else 8 if device.type == "cuda" else 2


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def moving_average(decay: float, average: Tensor, value: Tensor, steps: Tensor) -> Tensor:
    """Exponential, over at most a tenth of the steps so far: the beginning is forgotten."""
    return torch.lerp(value, average, min(decay, (1 + int(steps)) / (10 + int(steps))))


def catchable_signals() -> tuple[int, ...]:
    try:  # only the main thread may handle signals; elsewhere they are the host program's business
        signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT))
    except ValueError:
        return ()
    return (signal.SIGINT, signal.SIGTERM)
