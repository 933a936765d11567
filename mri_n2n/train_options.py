"""From the command line to the options of a training."""

from __future__ import annotations

import argparse

from mri_n2n.choices import MASKS
from mri_n2n.errors import UserError


def train_options_from(options: argparse.Namespace):
    """The options of a run from those of the command line; the methods of 2018 change the defaults that were not given."""
    from mri_n2n.denoising.blind_spot import BlindSpot
    from mri_n2n.options import TrainOptions, default_network
    from mri_n2n.pairs import PairOptions
    from mri_n2n.protocol import Protocol

    recipe = options.method.endswith("-2018")
    blind, images = options.method == "noise2void", options.method == "noise2void" or options.corrupt
    network = options.network or default_network(Protocol(method=options.method, corrupt=options.corrupt))
    if options.body and network != "denoiser":
        raise UserError("--body belongs to --network denoiser" + (f", not {network}" if network else "; give that too"))
    if options.corrupt and options.mask is not None:
        raise UserError("--corrupt takes the place of undersampling; leave out --mask")
    if blind and options.mask is not None:
        raise UserError("--method noise2void learns from fully sampled scans; leave out --mask")
    unrolled_only = {"--cascades": options.cascades, "--consistency": options.consistency, "--unet": options.unet}
    if network in (None, "unrolled"):
        unrolled_only = {}
    elif network == "fastmri-varnet":
        unrolled_only.pop("--cascades")
    foreign = [name for name, value in unrolled_only.items() if value is not None]
    if foreign:
        raise UserError(
            f"{' and '.join(foreign)} belong{'s' * (len(foreign) == 1)} to --network unrolled, not {network}"
        )
    measured = options.dataset in ("pairs", "m4raw", "scans")
    undersample = options.dataset == "m4raw" or (
        options.dataset == "pairs" and (options.mask is not None or options.acceleration is not None)
    )
    simulated_only = {"--noise": options.noise, "--phase": options.phase, "--acquisitions": options.acquisitions}
    simulated_only |= {"--coils": options.coils, "--one-mask": options.one_mask or None}
    if not undersample:
        simulated_only["--pairs"] = options.pairs
    if options.dataset == "scans":
        simulated_only |= {"--mask": options.mask, "--acceleration": options.acceleration}
    given = [name for name, value in simulated_only.items() if value is not None]
    if measured and given:
        raise UserError(
            f"{' and '.join(given)} say{'s' * (len(given) == 1)} how to simulate acquisitions; --dataset {options.dataset} holds "
            "measured ones"
        )
    default_mask, default_acceleration = ("gaussian-lines", "4") if options.dataset == "m4raw" else ("roulette", "10")
    default_acceleration = "1" if images else default_acceleration
    masks = (
        MASKS if options.mask == "all" else tuple((default_mask if options.mask is None else options.mask).split(","))
    )
    unknown = [mask for mask in masks if mask not in MASKS]
    if unknown:
        raise UserError(f"unknown mask {unknown[0]!r}; choose from {', '.join(MASKS)}")
    wanted = ("9.54" if recipe else default_acceleration) if options.acceleration is None else options.acceleration
    acceleration = number_range("--acceleration", wanted, "4:12")
    noise = number_range("--noise", options.noise or "0", "0:0.05")
    coils = coil_numbers(options.coils)
    phantoms = options.dataset == "phantom"
    if phantoms and len(coils) > 1:
        raise UserError(f"phantoms have one number of coils; got {options.coils}")
    network_options = {name: getattr(options, name) for name in ("channels", "cascades", "consistency", "unet")}
    network_options = {name: value for name, value in network_options.items() if value is not None}
    if options.body:
        network_options["body"] = options.body
    # The images of these are not real.
    if network == "unet" and (options.phase or coils or measured or options.dataset == "fastmri"):
        network_options["complex_images"] = True
    if options.epochs is options.steps is options.minutes is None:
        options.epochs = 300 if recipe else 50
    return TrainOptions(
        dataset=options.dataset,
        data=options.data,
        matrix_size=options.matrix_size,
        axis=options.axis,
        validation_subjects=tuple(options.validation_subjects.split(",")) if options.validation_subjects else None,
        excluded_subjects=tuple(options.exclude_subjects.split(",")) if options.exclude_subjects else (),
        coils=coils[0] if phantoms and coils else None,
        protocol=Protocol(
            method=options.method,
            pair=PairOptions(
                weight_cap=options.weight_cap,
                exchange=options.exchange,
                center_gaps=options.center_gaps,
                input_share=options.input_share,
                extra_noise=options.extra_noise,
                blind_spot=BlindSpot(share=options.hidden_share, rule=options.hidden_rule),
            ),
            pairs=options.pairs or ("redrawn" if recipe else "fixed"),
            acquisitions=options.acquisitions or (1 if blind else 2),
            masks=masks,
            acceleration=acceleration,
            one_mask=options.one_mask,
            noise=noise,
            coils=() if phantoms else coils,
            phase=options.phase or 0.0,
            flips=not recipe,
            undersample=undersample,
            corrupt=options.corrupt,
            strength=strength_of(options),
            loss=options.loss,
            seed=options.seed,
        ),
        network=network,
        network_options=network_options,
        epochs=options.epochs,
        steps=options.steps,
        minutes=options.minutes,
        patience=options.patience,
        batch_size=options.batch_size,
        shards=options.shards,
        learning_rate=options.learning_rate,
        average=(0.0 if recipe else TrainOptions.average) if options.average is None else options.average,
        checkpointing=options.checkpointing,
        device=options.device,
        precision=options.precision,
        quiet=options.quiet,
        init=options.init,
    )


def number_range(name: str, text: str, example: str) -> tuple[float, float]:
    """(low, high) of "4", or "4:12". UserError for anything else."""
    low, colon, high = text.partition(":")
    try:
        return float(low), float(high if colon else low)
    except ValueError:
        raise UserError(f"{name} must be a number or a range such as {example}; got {text!r}") from None


def strength_of(options: argparse.Namespace) -> tuple[float, float] | None:
    return None if options.strength is None else number_range("--strength", options.strength, "0:0.5")


def coil_numbers(text: str | None) -> tuple[int, ...]:
    """The numbers of "8" or "1,4,8". UserError for anything else."""
    if text is None:
        return ()
    try:
        coils = tuple(int(part) for part in text.split(","))
    except ValueError:
        coils = (0,)
    if not all(1 <= number <= 128 for number in coils):
        raise UserError(f"--coils must be numbers from 1 to 128, separated by commas; got {text!r}")
    return coils
