"""Check downloaded IXI T1 volumes and lay out the published training and validation subjects as folders.

Writes DIR/train and DIR/validation, which hold links to the volumes (or copies), and DIR/manifest.json.
The originals are only read.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from mri_n2n.errors import InputError, NotFoundError, OutputError, UserError

KIND = "mri-n2n prepared IXI"


def prepare(source: Path, output: Path, *, every: bool, copy: bool, force: bool, log=print) -> dict:
    """Make the tree `output` from the IXI T1 volumes anywhere below `source`; returns its manifest.

    One volume is in memory at a time. Nothing is written unless every volume can be read.
    """
    from mri_n2n.datasets import IXI_NAME, IXI_SLICES, official_ixi_split
    from mri_n2n.sources import validation_of

    if not source.is_dir():
        raise NotFoundError(
            f"no directory {source}; download IXI with: python data_scripts/download_ixi.py -o {source}"
        )
    if output.resolve().is_relative_to(source.resolve()):
        raise UserError(f"the prepared tree {output} must not lie within the source {source}; choose another -o")
    check_output(output, force)
    paths = sorted((path for path in source.rglob("IXI*") if IXI_NAME.fullmatch(path.name)), key=lambda path: path.name)
    if not paths:
        raise NotFoundError(
            f"no IXI T1 volumes (IXI002-Guys-0828-T1.nii.gz ...) in {source}; "
            f"download them with: python data_scripts/download_ixi.py -o {source}"
        )
    if repeated := [name for name, count in Counter(path.name for path in paths).items() if count > 1]:
        raise InputError(f"{source} holds {repeated[0]} more than once; keep one of each")

    train, validation, rule = ([], [], "") if every else official_ixi_split(paths)
    if not validation:
        chosen = validation_of(subject_of(path) for path in paths)
        train = [path for path in paths if subject_of(path) not in chosen]
        validation = [path for path in paths if subject_of(path) in chosen]
        if not validation:
            raise InputError(f"{source} holds one subject only; training and validation need at least two")
        rule = f"by subject, the last {len(chosen)} of {len(paths)} in alphabetical order for validation"

    volumes, unreadable = [], []
    for part, members in (("train", train), ("validation", validation)):
        for path in members:
            try:
                volumes.append(
                    {"name": path.name, "part": part, "subject": subject_of(path), **describe(path, IXI_SLICES)}
                )
            except InputError as error:
                unreadable.append(path)
                log(f"unreadable: {error}", file=sys.stderr)
    if unreadable:
        raise InputError(
            f"{len(unreadable)} of {len(train) + len(validation)} volumes cannot be used (named above), nothing was "
            "written; download them again or take them out"
        )
    manifest = {
        "kind": KIND,
        "rule": rule,
        "slice_axis": 2,
        "slices_used": [IXI_SLICES[0], IXI_SLICES[1] - 1],
        "licence": "IXI data set, CC BY-SA 3.0, https://brain-development.org/ixi-dataset/",
        "subjects": {part: [v["subject"] for v in volumes if v["part"] == part] for part in ("train", "validation")},
        "slices": {
            part: sum(v["slices_used"] for v in volumes if v["part"] == part) for part in ("train", "validation")
        },
        "volumes": volumes,
    }
    write_tree(output, {"train": train, "validation": validation}, manifest, copy)
    return manifest


def subject_of(path: Path) -> str:
    return path.name.split("-")[0]


def describe(path: Path, used: tuple[int, int]) -> dict:
    """Shape (slice, y, x), slices used, largest value and size of a volume, after reading all of it."""
    from mri_n2n.formats import read_volume

    array, _ = read_volume(path, axis=2)
    count = max(0, min(used[1], len(array)) - used[0])
    if not count:
        raise InputError(f"{path} has {len(array)} slices, none of {used[0]}..{used[1] - 1}")
    largest = float(array.max())
    if largest <= 0:
        raise InputError(f"{path} is empty: its largest value is {largest:g}")
    return {"shape": list(array.shape), "slices_used": count, "maximum": largest, "bytes": path.stat().st_size}


def check_output(output: Path, force: bool) -> None:
    """OutputError unless `output` is new, or a tree of this script and `force` is given."""
    if not (output.exists() or output.is_symlink()):
        return
    if not force:
        raise OutputError(
            f"{output} exists; choose another -o, or give --force to replace a tree that was prepared before"
        )
    try:
        ours = json.loads((output / "manifest.json").read_text())["kind"] == KIND
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise OutputError(f"{output} was not made by this script and is left alone; choose another -o")


def write_tree(output: Path, parts: dict[str, list[Path]], manifest: dict, copy: bool) -> None:
    """Build the tree under a temporary name beside `output`, then rename it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        temporary.chmod(0o755)
        for part, paths in parts.items():
            (temporary / part).mkdir()
            for path in paths:
                target = temporary / part / path.name
                if copy:
                    shutil.copyfile(path, target)
                else:
                    # Relative, as the final place is as deep as this one: source and tree can move together.
                    target.symlink_to(os.path.relpath(path.resolve(), target.parent.resolve()))
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        if output.exists():
            shutil.rmtree(output)
        temporary.rename(output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prepare_ixi.py",
        description="Check IXI T1 volumes (every one is read) and lay out the 50 training and 10 validation subjects "
        "of Lehtinen et al. 2018, or those of them that are there, as DIR/train and DIR/validation, with "
        "DIR/manifest.json. "
        "Without any of them, the volumes are split by subject. Train with: mri-n2n train --dataset ixi --data DIR. "
        "IXI is licensed CC BY-SA 3.0.",
        epilog="Exit codes: 0 done; 2 wrong usage; 3 a volume that cannot be read; 4 output exists or cannot be "
        "written; 5 no volumes found.",
    )
    parser.add_argument("source", metavar="FOLDER", type=Path, help="where the volumes are, subfolders included")
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, required=True, help="the tree to make, outside FOLDER"
    )
    parser.add_argument(
        "--all", action="store_true", help="every T1 volume, the last fifth of the subjects for validation"
    )
    parser.add_argument("--copy", action="store_true", help="copy the volumes instead of linking to them")
    parser.add_argument("--force", action="store_true", help="replace a tree that this script made before")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    try:
        manifest = prepare(options.source, options.output, every=options.all, copy=options.copy, force=options.force)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: cannot write {options.output}: {error.strerror or error}", file=sys.stderr)
        return OutputError.exit_code
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    for part in ("train", "validation"):
        print(f"{part}: {len(manifest['subjects'][part])} volumes, {manifest['slices'][part]} slices")
    print(f"{options.output}: {manifest['rule']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
