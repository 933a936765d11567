"""One volume to train on, and who trains and who validates: by subject, so that nobody is in both parts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from mri_n2n.errors import InputError, NotFoundError, UserError
from mri_n2n.volumes import Volume

VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class Source:
    """One volume to train on. name: stable, from the file's own stem; random draws depend on it, never on a path.

    subject: what the split goes by. slices: how many `load` returns. simulated: whether k-space was made from an image;
    None where no file says. has_phase: of volumes, whether their images are complex.
    """

    name: str
    subject: str
    slices: int
    load: Callable[[], Volume]
    simulated: bool | None = True
    has_phase: bool = False


@dataclass(frozen=True)
class Split:
    """Sources sorted by name. rule: how they were divided, in words. validation is empty with one subject only."""

    train: list[Source]
    validation: list[Source]
    rule: str


@dataclass(frozen=True)
class Selection:
    """What of a data set is used, and how: the options of `datasets.find_sources`."""

    matrix_size: int | None
    axis: int
    slices: tuple[int, int] | None
    validation_subjects: tuple[str, ...] | None
    excluded_subjects: tuple[str, ...]


def slice_range(path: Path, count: int, slices: tuple[int, int] | None) -> tuple[int, int]:
    """(first, one past the last) of the chosen slices of a volume that has `count`. Errors: InputError for none."""
    start, stop = slices or (0, count)
    if start >= count:
        raise InputError(f"{path} has {count} slices, none of {start}..{stop - 1}; choose other slices or another axis")
    return start, min(stop, count)


def divide(
    train: list[Source],
    validation: list[Source],
    selection: Selection,
    rule: str | None = None,
) -> Split:
    """Keep a split that folders make (`rule` says which), or divide by subject; the selection's
    `validation_subjects` beat both.

    validation_subjects: ("none",) trains on all. excluded_subjects: in neither part.
    Errors: UserError for subjects that do not exist or leave none, NotFoundError for an empty training folder.
    """
    validation_subjects, excluded_subjects = selection.validation_subjects, selection.excluded_subjects
    rule, had_folders = rule or "training and validation folders", bool(validation)
    known = {source.subject for source in [*train, *validation]}
    if missing := sorted(set(excluded_subjects) - known):
        raise UserError(f"no subject {', '.join(missing)} to exclude; the subjects are {', '.join(sorted(known)[:10])}")
    train, validation = ([s for s in part if s.subject not in excluded_subjects] for part in (train, validation))
    if excluded_subjects and not train:
        raise UserError("every training subject is excluded; nothing is left to train on")
    sources = sorted([*train, *validation], key=lambda source: source.name)
    if validation_subjects == ("none",):
        rule, chosen = "all for training, no validation", set()
    elif validation_subjects:
        rule, chosen = "validation subjects as named", set(validation_subjects)
        subjects = {source.subject for source in sources}
        if missing := sorted(chosen - subjects):
            known = ", ".join(sorted(subjects)[:10]) + (" ..." if len(subjects) > 10 else "")
            raise UserError(f"no subject {', '.join(missing)} in the data; the subjects are {known}")
        if chosen == subjects:
            raise UserError("every subject is named for validation, which leaves none to train on")
    elif had_folders:  # even when every subject of the validation folder is excluded
        if not train:
            raise NotFoundError("the training folder is empty, only the validation folder holds data")
        if shared := sorted({s.subject for s in train} & {s.subject for s in validation}):
            warnings.warn(f"training and validation folders share subjects: {', '.join(shared[:5])}", stacklevel=4)
        return Split(train, validation, rule)
    else:
        chosen = validation_of({source.subject for source in sources})
        rule = f"by subject, the last {len(chosen)} in alphabetical order for validation"
        if not chosen:
            rule = "one subject only, all of it for training"
            warnings.warn(
                f"all files are of one subject, {next(iter(sources)).subject}, so there is no validation; name files "
                "SUBJECT_..., or put them into folders train and validation",
                stacklevel=4,
            )
    return Split([s for s in sources if s.subject not in chosen], [s for s in sources if s.subject in chosen], rule)


def validation_of(subjects: Iterable[str]) -> set[str]:
    """The last fifth of the subjects in alphabetical order, at least one; none of a single subject."""
    ordered = sorted(set(subjects))
    return set(ordered[-max(1, round(VALIDATION_SHARE * len(ordered))) :]) if len(ordered) > 1 else set()
