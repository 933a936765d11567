"""The arguments of `train`, and of corruptions. Nothing here imports torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from mri_n2n.choices import BODIES, CORRUPTIONS, MASKS, METHODS, NETWORKS


def path(text: str) -> Path:
    if not text:  # Path("") is the current directory, which nobody meant
        raise argparse.ArgumentTypeError("an empty path")
    return Path(text)


def add_corruption(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--corrupt",
        choices=CORRUPTIONS,
        help="corrupt fully sampled images in place of undersampling them; docs/denoising.md has them all",
    )
    command.add_argument(
        "--strength",
        metavar="S",
        help="of --corrupt: a number, or a range such as 0:0.5, drawn per slice; default: its own",
    )


def add_train_arguments(train: argparse.ArgumentParser) -> None:
    train.add_argument(
        "--dataset", required=True, choices=("ixi", "nifti", "fastmri", "pairs", "m4raw", "scans", "phantom")
    )
    train.add_argument(
        "--data", metavar="DIR", help="directory of the data set; default: data/<dataset> here, or under $MRI_N2N_DATA"
    )
    train.add_argument(
        "-o",
        "--output",
        type=path,
        required=True,
        metavar="RUN",
        help="run directory: weights, checkpoint, log, example picture",
    )
    train.add_argument(
        "--method",
        choices=METHODS,
        default="auto",
        help="auto looks at the data; supervised and those of 2018 (Lehtinen et al.) are for comparison; docs/methods.md has them all",
    )
    train.add_argument(
        "--pairs",
        choices=("fixed", "redrawn"),
        help="simulated data: every slice acquired once and for ever, or new masks at every step; default fixed (redrawn with the methods of 2018)",
    )
    train.add_argument(
        "--acquisitions",
        type=int,
        choices=(1, 2),
        help="simulated data: how often each slice is acquired; methods of single scans take two as one; default 2 (1 with noise2void)",
    )
    train.add_argument("--one-mask", action="store_true", help="simulated data: the same mask for every slice")
    train.add_argument(
        "--exchange", action="store_true", help="noise2noise: two acquisitions of one design exchange samples at random"
    )
    train.add_argument(
        "--center-gaps",
        type=float,
        default=0.0,
        metavar="P",
        help="noise2noise: share (0 to 1) of the inputs under roulette masks that lack samples beside the k-space centre, as some do by chance; default 0",
    )
    train.add_argument(
        "--weight-cap", type=float, metavar="C", help="a sample counts for min(1/probability, C); default: no cap"
    )
    train.add_argument(
        "--input-share",
        type=float,
        default=0.5,
        metavar="R",
        help="ssdu methods: share of the rarely sampled locations that stays in the input",
    )
    train.add_argument(
        "--extra-noise",
        type=float,
        default=1.0,
        metavar="A",
        help="robust-ssdu: the input is given further noise, A times the scan's",
    )
    add_corruption(train)
    train.add_argument(
        "--loss",
        choices=("l2", "log-l2", "l1", "l0", "l2-of-squares"),
        help="log-l2: the logarithm of each slice's squared error, so that slices of little error count as much as others; the others "
        "are of --corrupt: mean, median, (nearly) mode, or root mean square; default: the squared error, or what fits the corruption",
    )
    train.add_argument("--body", choices=BODIES, help="denoiser: its network; default n2v2 with noise2void, else n2v")
    train.add_argument(
        "--hidden-share",
        type=float,
        default=0.06,
        metavar="P",
        help="noise2void: share of the pixels that are hidden",
    )
    train.add_argument(
        "--hidden-rule",
        choices=("median", "uniform"),
        default="median",
        help="noise2void: what replaces a hidden pixel, the median around it (N2V2) or one of them",
    )
    train.add_argument(
        "--network",
        choices=NETWORKS,
        help="default unrolled (unet with the methods of 2018, denoiser with noise2void and --corrupt)",
    )
    train.add_argument("--cascades", type=int, help="unrolled, fastmri-varnet: number of cascades")
    train.add_argument("--channels", type=int, help="channels of the U-Net(s)")
    train.add_argument(
        "--consistency",
        choices=("hard", "soft"),
        help="unrolled: samples put back as measured, or as far as the level of their noise says; default soft, which without noise is hard",
    )
    train.add_argument(
        "--unet", choices=("doubling", "flat"), help="unrolled: channels of its U-Nets; default doubling with depth"
    )
    train.add_argument(
        "--mask",
        help=f"one of {', '.join(MASKS)}, several separated by commas, or all; default roulette (m4raw: gaussian-lines)",
    )
    train.add_argument(
        "--acceleration",
        help="a number, or a range such as 4:12; default 10 (9.54 with the 2018 recipe: its p_edge of 0.025; m4raw 4; 1 with noise2void and --corrupt; pairs as measured)",
    )
    train.add_argument(
        "--noise",
        metavar="S",
        help="standard deviation of simulated complex noise, as a share of the volume's maximum, or a range such as 0:0.05; default 0",
    )
    train.add_argument(
        "--phase", type=float, metavar="P", help="share of the slices given a smooth random phase; default 0"
    )
    train.add_argument(
        "--coils",
        metavar="N",
        help="simulated coils; of several numbers, 1,4,8, each volume has one",
    )
    train.add_argument(
        "--matrix-size", type=int, metavar="N", help="pad slices to a square and Fourier-crop them to N x N"
    )
    train.add_argument("--axis", type=int, choices=(0, 1, 2), default=2, help="array axis along which slices are taken")
    train.add_argument(
        "--validation-subjects",
        metavar="NAMES",
        help="comma-separated, or none to train on all; default: the data set's own split, or the last fifth",
    )
    train.add_argument(
        "--exclude-subjects", metavar="NAMES", help="comma-separated; kept out of training and validation, for a test"
    )
    budget = train.add_mutually_exclusive_group()
    budget.add_argument("--epochs", type=int)
    budget.add_argument("--steps", type=int)
    budget.add_argument("--minutes", type=float)
    train.add_argument(
        "--patience",
        type=int,
        metavar="N",
        help="stop when N validations (one a minute) in a row did not improve on the best beyond uncertainty; default: the whole budget",
    )
    train.add_argument(
        "--batch-size",
        type=int,
        help="slices in a step, of all processes together; default 2 on the CPU, 8 on a GPU (16 with the methods of 2018), times the processes",
    )
    train.add_argument(
        "--shards",
        type=int,
        metavar="N",
        help="parts that the files are divided into, each with an equal share of every step; a multiple of torchrun's processes, which each read "
        "their own in training; default: one for each process",
    )
    train.add_argument("--learning-rate", type=float, default=1e-3)
    train.add_argument(
        "--average",
        type=float,
        metavar="D",
        help="decay per step of the moving average of the weights; 0: the last ones; default 0.999 (0 with the methods of 2018)",
    )
    train.add_argument(
        "--checkpointing",
        action="store_true",
        help="compute a cascade's activations again when they are needed: less memory, more time",
    )
    train.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    train.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="auto: bfloat16 where the hardware multiplies it",
    )
    train.add_argument("--seed", type=int, default=0)
    train.add_argument(
        "--init",
        metavar="RUN|FILE",
        help="start from the weights of another run of the same network, or of an unrolled one with fewer cascades or hard consistency",
    )
    train.add_argument("--resume", action="store_true", help="continue the run in RUN")
