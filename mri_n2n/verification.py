"""The verb `verify`: is a result what its sidecar says? Its files, its scan and its weights by their hashes, its image by making it again."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from mri_n2n.bids import fields
from mri_n2n.checkpoint import find_weights
from mri_n2n.denoising.denoise import denoise_file
from mri_n2n.device import choose_device
from mri_n2n.errors import InputError, NotFoundError, OptionError, UserError, VerificationError
from mri_n2n.files import one_line, sha256_of, stem
from mri_n2n.formats import cfl, read_volume
from mri_n2n.formats.hdf5 import checked_dataset, open_hdf5
from mri_n2n.formats.result import read_header
from mri_n2n.process import with_threads
from mri_n2n.reconstruction import reconstruct_files
from mri_n2n.record import Record, read_record

# Differences up to this share of the image's maximum are what other threads and processors make of the same sums (docs/trust.md).
ROUNDING = 1e-4
# Of the sidecar: not compared with that of the new result, as hashes, or the result itself, answer for it, or it is of its day.
ELSEWHERE = {"software", "output", "output_sha256", "redo", "seconds"}
TRAINED = (
    "The network was trained on the scan again, which is the same only with the same threads, processor and versions."
)
# What rounding decides, on another machine or with other versions; and what is of its day.
BY_ROUNDING = {"device", "most_iterations", "sweep", "own_pixels", "alarm", "tested_samples"}
OF_ITS_DAY = {"training_seconds"}


@dataclass(frozen=True)
class Verification:
    """What became of a result that was made again; its files, scan and weights are those on record, or there would be none.

    verdict: "identical", bit for bit; "equal to rounding", no voxel farther than `limit` from its new value, as a share of the
    image's maximum; "different"; or "contradicted", where it is not different, but the sidecar says otherwise than the new one.
    differences: the largest of each file's arrays, in these units. contradicted: the sidecar's keys of which that is so. changed: what it was made with and what it was made again with, in words.
    """

    image: str
    verdict: str
    differences: dict[str, float]
    limit: float
    contradicted: tuple[str, ...]
    changed: tuple[str, ...]
    trained: bool
    seconds: float

    @property
    def largest(self) -> float:
        return max(self.differences.values())

    @property
    def verified(self) -> bool:
        return self.verdict in ("identical", "equal to rounding")


def verify(
    image: Path | str, *, scan: Path | str | None = None, weights: Path | str | None = None, quiet: bool = True
) -> Verification:
    """Check the files of a result against its sidecar, make it again in a temporary directory, and compare.

    image: NAME.h5, NAME.nii.gz or NAME.json. scan: None: the file of the recorded name beside the result, or in the current
    directory. weights: a run or a file; None: those that come with the package. Nothing else is written.
    Errors: VerificationError for files, a scan or weights of other hashes; InputError for a sidecar that cannot be read or lacks what is
    needed; NotFoundError without sidecar, scan or weights.
    """
    started = time.monotonic()
    record = read_record(Path(image))
    check_outputs(record)
    check_version(record)
    scan, *others = scan_of(record, None if scan is None else Path(scan))
    weights = weights_of(record, None if weights is None else Path(weights))
    with TemporaryDirectory(prefix="mri-n2n-verify-") as folder:
        said = made_again(record, scan, others, weights, Path(folder), quiet)
        differences = compared(record, Path(folder), stem(scan))
    changed = changes(record.said, said)
    contradicted = contradictions(record, said, OF_ITS_DAY | BY_ROUNDING if changed else OF_ITS_DAY)
    if weights is not None and record.said["weights"]["bundled"]:  # of which there are warnings, not of files
        contradicted = tuple(key for key in contradicted if key != "warnings")
    if record.said["software"]["mri-n2n"] != said["software"]["mri-n2n"]:  # which may say the same in other words
        changed += tuple(f"the sidecar would say something else of {key}" for key in contradicted)
        contradicted = ()
    largest = max(differences.values())
    same = "identical" if largest == 0 else "equal to rounding"
    verdict = "different" if largest > ROUNDING else "contradicted" if contradicted else same
    seconds = round(time.monotonic() - started, 2)
    return Verification(record.name, verdict, differences, ROUNDING, contradicted, changed, record.trained, seconds)


# ------------------------------------------------------------------------------------------------------------- hashes


def check_outputs(record: Record) -> None:
    """VerificationError, with their names, for outputs that are not there or are not those that were written."""
    folder, said = record.path.parent, record.said["output_sha256"]
    missing = [name for name in said if not (folder / name).is_file()]
    touched = [name for name in said if name not in missing and sha256_of(folder / name) != said[name]]
    found = [f"missing: {', '.join(missing)}"] if missing else []
    found += [f"changed since it was written (other SHA-256): {', '.join(touched)}"] if touched else []
    if found:
        raise VerificationError(f"{one_line(record.path)}: {one_line('; '.join(found), 600)}")


def check_version(record: Record) -> None:
    """VerificationError where NAME.h5 was written by another version than the sidecar says."""
    written = read_header(record.path.parent / f"{record.name}.h5")[0].get("software")
    if written != (told := f"mri-n2n {record.said['software']['mri-n2n']}"):
        raise VerificationError(
            f"{one_line(record.path)} says that it is of {one_line(told, 60)}, and {record.name}.h5 that it is of {one_line(written, 60)}"
        )


def scan_of(record: Record, given: Path | None) -> list[Path]:
    """The files of the scan, found and with the hashes on record. Errors: NotFoundError, VerificationError."""
    first, *more = record.said["redo"]["files"]
    if given is not None and given.suffix in (".cfl", ".hdr") and record.said["input"].get("format") == cfl.FORMAT:
        given = given.with_suffix(Path(first["name"]).suffix)
    places = [record.path.parent, Path()]
    found = [_of_hash(record, first, [given] if given else _beside(record, first["name"], places), "--scan SCAN")]
    for one in more:
        if record.said["input"].get("format") == cfl.FORMAT:  # the two have one name
            candidates = [found[0].with_suffix(Path(one["name"]).suffix)]
        else:
            candidates = _beside(record, one["name"], [found[0].parent, *places])
        found.append(_of_hash(record, one, candidates, f"it beside {found[0].name}"))
    return found


def _beside(record: Record, name: str, places: list[Path]) -> list[Path]:
    """Files of this name that are there; NAME.h5 of the result is not the scan NAME.h5."""
    outputs = [record.path.parent / output for output in record.said["output_sha256"]]
    candidates = [place / name for place in places if (place / name).is_file()]
    return [path for path in candidates if not any(path.samefile(output) for output in outputs)]


def _of_hash(record: Record, file: dict, candidates: list[Path], give: str) -> Path:
    if not candidates:
        raise NotFoundError(
            f"{record.name} was made of {file['name']}, which is neither beside it nor in this directory; give {give}"
        )
    for path in candidates:
        if sha256_of(path) == file["sha256"]:
            return path
    raise VerificationError(
        f"{one_line(candidates[0])} is not the {file['name']} that {record.name} was made of: its SHA-256 is another"
    )


def weights_of(record: Record, given: Path | None) -> Path | None:
    """The weights on record, None for the bundled ones or where there are none. Errors: OptionError, NotFoundError, VerificationError."""
    said = record.said["weights"]
    if said is None:
        if given is not None:
            raise OptionError(f"{record.name} was made without weights; leave out --weights")
        return None
    if given is not None and sha256_of(find_weights(given)) != said["sha256"]:
        raise VerificationError(
            f"{one_line(find_weights(given))} are not the weights that {record.name} was made with ({said['name']}): their SHA-256 is another"
        )
    if said["bundled"] and sha256_of(find_weights(None)) == said["sha256"]:
        return None
    if given is None:
        whose = (
            f"that come with mri-n2n {one_line(record.said['software']['mri-n2n'], 40)}, others than this one's"
            if said["bundled"]
            else said["name"]
        )
        raise NotFoundError(
            f"{record.name} was made with the weights {whose} (SHA-256 {said['sha256'][:12]}...); give them with --weights"
        )
    return given


# -------------------------------------------------------------------------------------------------------- and again


def made_again(record: Record, scan: Path, others: list[Path], weights: Path | None, folder: Path, quiet: bool) -> dict:
    """Make the result again in `folder`, with the recorded options, threads and, where it is there, device. Returns the sidecar."""
    machine, options = record.said["redo"]["machine"], record.options
    device, read = machine["device"], {"format": options["format"], "repetition": options["repetition"]}
    try:
        choose_device(device)
    except UserError:
        device = "cpu"
    common = {"weights": weights, "device": device, "quiet": quiet, **read}
    try:
        with warnings.catch_warnings(), with_threads(machine["threads"]):
            warnings.simplefilter("ignore")  # they are on record, and compared
            if record.command == "denoise":
                part = {options["part"]: others[0]} if options["part"] and others else {}
                return denoise_file(scan, folder, record.plan(), axis=options["axis"], **part, **common)
            chosen = {
                name: options[name] for name in ("baseline", "regularisation", "flips", "self_check", "uncertainty")
            }
            return reconstruct_files([scan], folder, **chosen, **common)[0]
    except OptionError as error:
        raise InputError(f"{one_line(record.path)} has options that cannot be: {one_line(error)}") from None


def compared(record: Record, again: Path, name: str) -> dict[str, float]:
    """The largest difference in each array of each file, as a share of the image's maximum, 0 where every bit is the same; infinite for
    other shapes, names, places or attributes. name: of the new files."""
    old, new = record.path.parent / f"{record.name}.h5", again / f"{name}.h5"
    found, peak = {}, 0.0
    with open_hdf5(old) as first, open_hdf5(new) as second:
        if set(first) != set(second):
            return {old.name: np.inf}
        for key in ("reconstruction", *sorted(set(second) - {"reconstruction"})):  # whose maximum is the image's
            rank = (second[key].ndim,)
            one, other = (
                checked_dataset(file, path, key, rank, "fc", streamed=True)
                for file, path in ((first, old), (second, new))
            )
            if one.shape != other.shape or one.dtype != other.dtype:
                return {old.name: np.inf}
            peak = peak or max((float(np.abs(slab).max()) for slab in other), default=0.0)
            found[f"{old.name}: {key}"] = _largest(
                zip(one, other, strict=True), peak if key in ("reconstruction", "image") else 1.0
            )
    (first, place), (second, new_place) = read_header(old), read_header(new)
    if place != new_place or any(first.get(key) != second.get(key) for key in ("note", "simulated")):
        found[f"{old.name}: attributes"] = np.inf
    axis = 2 if new_place is None else new_place.slice_axis
    for volume in record.volumes:
        other = again / (name + volume.removeprefix(record.name))
        found[volume] = (
            0.0
            if sha256_of(record.path.parent / volume) == sha256_of(other)
            else _volumes(record.path.parent / volume, other, axis, peak)
        )
    return found


def _volumes(old: Path, new: Path, axis: int, peak: float) -> float:
    (one, place), (other, new_place) = (read_volume(path, axis=axis) for path in (old, new))
    if one.shape != other.shape or place != new_place:
        return np.inf
    return _largest(zip(one, other, strict=True), peak)


def _largest(slices: Iterator[tuple[np.ndarray, np.ndarray]], peak: float) -> float:
    """Of |one - other| / peak; never 0 where a bit differs."""
    worst = 0.0
    for one, other in slices:
        if one.tobytes() != other.tobytes():
            with np.errstate(all="ignore"):
                difference = float(np.abs(one - other).max()) / peak if peak else np.inf
            worst = max(worst, difference or np.finfo(np.float32).tiny, np.inf if np.isnan(difference) else 0.0)
    return worst


# ------------------------------------------------------------------------------------------------------------- words


def contradictions(record: Record, new: dict, but: set[str]) -> tuple[str, ...]:
    """The keys of the sidecar that say otherwise than those of the new one, of scan and weights as KEY.KEY; `but` for these, wherever
    they are."""
    old = record.said
    # The name on record is that of the scan when the result was made; of weights that were given nothing tells the name, nor
    # whether they came with another version.
    new = new | {"input": new["input"] | {"name": old["redo"]["files"][0]["name"]}}
    if new["weights"] is not None and not new["weights"]["bundled"]:
        new |= {"weights": new["weights"] | {"name": old["weights"]["name"]}}
        if old["software"]["mri-n2n"] != new["software"]["mri-n2n"]:
            new["weights"]["bundled"] = old["weights"]["bundled"]
    if record.options.get("bids"):
        new |= fields(new["input"]["name"], new["input"]["simulated"])
    found = []
    for key in (*old, *(key for key in new if key not in old)):
        if key in ("input", "weights") and isinstance(old[key], dict) and isinstance(new[key], dict):
            parts = dict.fromkeys((*old[key], *new[key]))
            both = {part: [_said(side[key], part) for side in (old, new)] for part in parts}
            found += [f"{key}.{part}" for part, (one, other) in both.items() if not agree(one, other, but)]
        elif key not in ELSEWHERE and not agree(_said(old, key), _said(new, key), but):
            found.append(key)
    return tuple(one_line(key, 60) for key in found)


def _said(of: dict, key: str) -> object:
    """What a sidecar says, None of nothing; of warnings without their numbers, which may be rounded otherwise."""
    value = of.get(key)
    if key == "warnings" and isinstance(value, list):
        return [re.sub(r"\d[\d.]*", "0", str(one)) for one in value]
    return value


def agree(one: object, other: object, but: set[str]) -> bool:
    """Whether two parts of sidecars say the same, numbers to 1 %, `but` for these keys, which both need to have."""
    if isinstance(one, dict) and isinstance(other, dict):
        return set(one) == set(other) and all(key in but or agree(one[key], other[key], but) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(agree(a, b, but) for a, b in zip(one, other, strict=True))
    if type(one) is float and type(other) is float:
        return bool(np.isclose(one, other, rtol=1e-2, atol=0))
    return type(one) is type(other) and one == other


def changes(old: dict, new: dict) -> tuple[str, ...]:
    """Versions and machine, where they are not those on record."""
    then = old["software"] | old["redo"]["machine"]
    now = new["software"] | new["redo"]["machine"]
    return tuple(
        f"{key} {one_line(then.get(key), 60)} then, {one_line(value, 60)} now"
        for key, value in now.items()
        if then.get(key) != value
    )


def format_text(result: Verification) -> str:
    """As plain text: the verdict first."""
    worst = max(result.differences, key=result.differences.get)
    far = f"largest difference {result.largest:.1e} of the image's maximum, in {worst} (limit {result.limit:.0e})"
    if np.isinf(result.largest):
        far = f"{worst}: other arrays, shapes, values that are no numbers, places or attributes"
    same = "every voxel is the same, bit for bit" if result.largest == 0 else far
    told = {"identical": same, "equal to rounding": same, "different": far}
    told["contradicted"] = f"the sidecar says otherwise; {same}"
    lines = [f"{result.image}: {result.verdict}: {told[result.verdict]}; made again in {result.seconds} s"]
    if result.contradicted:
        lines.append(f"The sidecar says otherwise than the one made again: {', '.join(result.contradicted)}.")
    if result.trained and result.verdict == "different":
        lines.append(TRAINED)
    if result.changed:
        lines.append(f"Not as on record: {'; '.join(result.changed)}.")
    return "\n".join(lines)


def to_json(result: Verification) -> dict:
    """As plain values; what JSON has no number for is None."""
    plain = asdict(result) | {"verified": result.verified, "largest_difference": result.largest}
    number = lambda value: value if np.isfinite(value) else None  # noqa: E731
    plain["differences"] = {name: number(value) for name, value in result.differences.items()}
    return plain | {"largest_difference": number(result.largest), "note": "research use only"}
