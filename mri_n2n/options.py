"""Everything a training run depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from mri_n2n.corruptions import check_strength, losses_for
from mri_n2n.datasets import MEASURED
from mri_n2n.denoising.blind_spot import BlindSpot
from mri_n2n.errors import UserError
from mri_n2n.losses import LOSSES
from mri_n2n.pairs import (
    CORRECTIONS,
    LOG_METHODS,
    OTHER_MASK_METHODS,
    PAIR_MAKERS,
    REMEASURING_METHODS,
    SINGLE_SCAN_METHODS,
    SPLITTING_METHODS,
    WEIGHTED_METHODS,
    PairOptions,
)
from mri_n2n.protocol import Protocol


@dataclass(frozen=True)
class TrainOptions:
    """Everything a run depends on; stored with its weights. Give exactly one of epochs, steps, minutes.

    coils: of phantoms, with sensitivities and phase. average: decay per step of the moving average of the weights, which
    are what is validated and saved (0: the last ones). checkpointing: activations of a cascade are computed again when
    they are needed: less memory, a third more time. init: weights file or run to start from, of the same
    network, or of one that grows into it, see `growth`.
    network: None is the one that goes with the method, see `default_network`. batch_size: slices in a step, of all processes together; None is
    `default_batch_size`. shards: see `batches.training_batches`; None: one for each process.
    validate_every: seconds between validations, which save too. patience: stop after so many validations without improvement beyond
    uncertainty, see `selection`; None: never.
    """

    dataset: str
    data: str | None = None
    matrix_size: int | None = None
    axis: int = 2
    validation_subjects: tuple[str, ...] | None = None
    excluded_subjects: tuple[str, ...] = ()
    coils: int | None = None
    protocol: Protocol = field(default_factory=Protocol)
    network: str | None = None
    network_options: dict = field(default_factory=dict)
    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None
    batch_size: int | None = None
    shards: int | None = None
    learning_rate: float = 1e-3
    average: float = 0.999
    checkpointing: bool = False
    device: str = "auto"
    precision: str = "auto"
    init: str | None = None
    validate_every: float = 60.0
    patience: int | None = None
    quiet: bool = False


def default_network(protocol: Protocol) -> str | None:
    """The network that goes with a method; None with `auto`, which has not chosen yet."""
    if protocol.method == "noise2void" or protocol.corrupt is not None:
        return "denoiser"
    if protocol.method == "auto":
        return None
    return "unet" if protocol.recipe_2018 else "unrolled"


def with_network(options: TrainOptions) -> TrainOptions:
    """The options with the network that goes with their method, where none is given."""
    network, given = options.network or default_network(options.protocol), options.network_options
    if network == "denoiser":
        given = {"body": "n2v2" if options.protocol.method == "noise2void" else "n2v"} | given
    return replace(options, network=network, network_options=given)


def check_options(options: TrainOptions) -> None:
    """UserError for a number that makes no sense."""
    given = [value for value in (options.epochs, options.steps, options.minutes) if value is not None]
    if len(given) != 1 or not 0 < given[0] < math.inf:
        raise UserError("give exactly one of --epochs, --steps, --minutes, a finite number above zero")
    protocol = options.protocol
    (low, high), (quiet, loud), pair = protocol.acceleration, protocol.noise, protocol.pair
    wrong = {
        f"--matrix-size must be at most 8192; got {options.matrix_size}": (options.matrix_size or 0) <= 8192,
        f"--batch-size must be at least 1; got {options.batch_size}": (
            options.batch_size is None or options.batch_size >= 1
        ),
        f"--shards must be at least 1, and --batch-size a multiple of it; got {options.shards} and {options.batch_size}": (
            options.shards is None
            or options.shards >= 1
            and (options.batch_size or options.shards) % options.shards == 0
        ),
        f"--patience must be at least 1; got {options.patience}": options.patience is None or options.patience >= 1,
        "--patience counts validations; leave out --validation-subjects none": (
            options.patience is None or options.validation_subjects != ("none",)
        ),
        f"--learning-rate must be above 0 and below 1; got {options.learning_rate}": 0 < options.learning_rate < 1,
        f"--acceleration must be 1 or more, a range rising; got {low}:{high}": 1 <= low <= high < math.inf,
        f"--noise must be between 0 and 1000, a range rising; got {quiet}:{loud}": 0 <= quiet <= loud <= 1000,
        f"--average must be at least 0 and below 1; got {options.average}": 0 <= options.average < 1,
        f"--weight-cap must be above zero; got {pair.weight_cap}": pair.weight_cap is None or pair.weight_cap > 0,
        f"--input-share must be above 0 and below 1; got {pair.input_share}": 0 < pair.input_share < 1,
        f"--extra-noise must be above 0 and at most 100; got {pair.extra_noise}": 0 < pair.extra_noise <= 100,
        f"--acquisitions must be 1 or 2; got {protocol.acquisitions}": protocol.acquisitions in (1, 2),
        f"--seed must be between 0 and 2^63 - 1; got {protocol.seed}": 0 <= protocol.seed < 2**63,
        f"--phase must be in 0..1; got {protocol.phase}": 0 <= protocol.phase <= 1,
        "measured scans have no clean targets; --method supervised needs full k-space": (
            options.dataset not in MEASURED or not protocol.method.startswith("supervised")
        ),
        "only measured repetitions (pairs, m4raw) are undersampled further": (
            options.dataset in ("pairs", "m4raw") or not protocol.undersample
        ),
        f"unknown method {protocol.method!r}": protocol.method in ("auto", *PAIR_MAKERS),
        f"--method {protocol.method} learns from two acquisitions of each slice": (
            protocol.method in ("auto", *SINGLE_SCAN_METHODS)
            or protocol.method.startswith("supervised")
            or (protocol.acquisitions == 2 and options.dataset != "scans")
        ),
        f"--center-gaps must be in 0..1; got {pair.center_gaps}": 0 <= pair.center_gaps <= 1,
        f"--center-gaps is of --method noise2noise, not {protocol.method}": (
            not pair.center_gaps or protocol.method in ("auto", "noise2noise")
        ),
        "--center-gaps leaves the sampling probability as it was, by which --network unet divides": (
            not pair.center_gaps or options.network != "unet"
        ),
        "--center-gaps has nothing to leave out of lines": (
            not pair.center_gaps
            or (options.dataset in MEASURED and not protocol.undersample)
            or not all(mask.endswith("-lines") for mask in protocol.masks)
        ),
        f"--exchange is of --method noise2noise, not {protocol.method}": (
            not pair.exchange or protocol.method in ("auto", "noise2noise")
        ),
        f"--method {protocol.method} needs different masks; leave out --one-mask": (
            not protocol.one_mask or protocol.method not in (*OTHER_MASK_METHODS, "noise2noise", "noise2noise-2018")
        ),
        "--one-mask goes with --acquisitions 1, one --mask, one --acceleration, one number of --coils, a --phase of 0 or 1 "
        "and --pairs fixed": (
            not protocol.one_mask
            or (protocol.acquisitions, len(protocol.masks), low, protocol.pairs) == (1, 1, high, "fixed")
            and len(protocol.coils) <= 1
            and protocol.phase in (0, 1)
        ),
        f"unknown correction {pair.correction!r}; choose from {', '.join(CORRECTIONS)}": pair.correction in CORRECTIONS,
        f"--weight-cap is of methods whose samples have weights, not of {protocol.method}": (
            pair.weight_cap is None or protocol.method in ("auto", *WEIGHTED_METHODS)
        ),
        f"--input-share is of the ssdu methods, not of {protocol.method}": (
            pair.input_share == PairOptions.input_share or protocol.method in ("auto", *SPLITTING_METHODS)
        ),
        f"--extra-noise is of robust-ssdu, not of {protocol.method}": (
            pair.extra_noise == PairOptions.extra_noise or protocol.method in ("auto", "robust-ssdu")
        ),
        "--exchange has nothing to exchange of equispaced lines, which are not drawn one by one": (
            not pair.exchange or protocol.masks != ("equispaced-lines",)
        ),
        f"--checkpointing is of --network unrolled, not of {options.network}": (
            not options.checkpointing or options.network in (None, "unrolled")
        ),
        f"--method {protocol.method} measures images again, with a sampling probability that --network unet cannot know": (
            options.network != "unet" or protocol.method not in REMEASURING_METHODS
        ),
        "--network unet sees every coil alone; --coils simulates coils that are combined": (
            options.network != "unet" or not protocol.coils
        ),
        f"--hidden-share must be above 0 and at most 0.25; got {pair.blind_spot.share}": 0
        < pair.blind_spot.share
        <= 0.25,
        f"--hidden-share and --hidden-rule are of noise2void, not of {protocol.method}": (
            pair.blind_spot == BlindSpot() or protocol.method in ("auto", "noise2void")
        ),
        "--corrupt is of simulated data (nifti, ixi, fastmri, phantom) and goes with --network denoiser, --method noise2noise or "
        "supervised, and two acquisitions": (
            protocol.corrupt is None
            or options.dataset not in MEASURED
            and (options.network in (None, "denoiser") and protocol.acquisitions == 2)
            and protocol.method in ("noise2noise", "supervised", "auto")
        ),
        "--corrupt takes the place of an acquisition: leave out --noise, --coils, --phase, --exchange and --center-gaps": (
            protocol.corrupt is None
            or (protocol.noise, protocol.coils, protocol.phase, pair.exchange, pair.center_gaps)
            == ((0, 0), (), 0, False, 0)
        ),
        "--strength is of --corrupt": protocol.corrupt is not None or protocol.strength is None,
        f"--loss {protocol.loss} is of --corrupt": protocol.corrupt is not None or protocol.loss in (None, "log-l2"),
        f"--loss log-l2 is of {', '.join(LOG_METHODS)} without --corrupt, not of {protocol.corrupt or protocol.method}": (
            protocol.loss != "log-l2" or protocol.corrupt is None and protocol.method in ("auto", *LOG_METHODS)
        ),
        f"--loss must be one of {', '.join(LOSSES)}; got {protocol.loss}": protocol.loss in (None, *LOSSES),
        f"--loss {protocol.loss} cannot compare targets of --corrupt {protocol.corrupt}: those of rician-corrected, and no others, "
        "are squares": (
            None in (protocol.loss, protocol.corrupt)
            or protocol.loss in losses_for(protocol.corrupt, clean=protocol.method == "supervised")
        ),
        f"--acceleration 1 without --noise or --corrupt leaves --method {protocol.method} nothing to learn": (
            options.dataset in MEASURED
            or protocol.corrupt is not None
            or protocol.method in ("auto", "noise2void")
            or high > 1
            or loud > 0
        ),
        "--weight-cap is of undersampling, not of --corrupt": protocol.corrupt is None or pair.weight_cap is None,
        f"--method noise2void, given or chosen, goes with --network denoiser, not {options.network}; give that": (
            protocol.method != "noise2void" or options.network in (None, "denoiser")
        ),
        "--network denoiser cleans images of fully sampled scans, --acceleration 1": (
            options.network != "denoiser" or options.dataset in MEASURED or high == 1
        ),
        f"the 2018 recipe (--method {protocol.method}) is defined with --network unet": (
            not protocol.recipe_2018 or options.network in (None, "unet")
        ),
    }
    for message, fits in wrong.items():
        if not fits:
            raise UserError(message)
    if protocol.corrupt is not None:
        check_strength(protocol.corrupt, protocol.strength)
