"""The verb `evaluate`: how good an image is, against a reference or by acquisitions that had no part in it."""

from __future__ import annotations

from pathlib import Path

from mri_n2n.errors import OptionError
from mri_n2n.evaluation import Evaluation, evaluate_files, summarise
from mri_n2n.metrics import evaluate_arrays
from mri_n2n.trust.population import Population, judge_all
from mri_n2n.trust.second_acquisition import Judged, judge


def evaluate(
    reconstruction, reference=None, axis: int | None = None, *, second_acquisition=None, third_acquisition=None
) -> Evaluation | Judged | Population:
    """`evaluate(recon, scan)` on files or directories (see `evaluate_files`), `evaluate(images, reference)` on magnitude arrays
    (slice, y, x) or (y, x) (see `evaluate_arrays`), `evaluate(recon, second_acquisition=scan)` where there is no reference: a result file
    (see `trust.second_acquisition.judge`) or a directory of them (see `trust.population.judge_all`).

    axis: the slice axis of NIfTI volumes, None: the last. third_acquisition: another one, with which no noise level is needed.
    Errors: OptionError for what does not go together; those of the functions above.
    """
    if third_acquisition is not None and second_acquisition is None:
        raise OptionError("--third-acquisition goes with --second-acquisition")
    if (reference is None) == (second_acquisition is None):
        raise OptionError("give either a reference or a second acquisition")
    if second_acquisition is None:
        if isinstance(reconstruction, (str, Path)) and isinstance(reference, (str, Path)):
            return evaluate_files(reconstruction, reference, 2 if axis is None else axis)
        return summarise((evaluate_arrays(reference, reconstruction),))
    if axis is not None:
        raise OptionError("--axis is of a NIfTI --reference")
    given = [one for one in (reconstruction, second_acquisition, third_acquisition) if one is not None]
    if not all(isinstance(one, (str, Path)) for one in given):
        raise OptionError("a second acquisition judges files: a result of reconstruct, by raw scans")
    result, *acquisitions = map(Path, given)
    return (judge_all if result.is_dir() else judge)(result, *acquisitions)
