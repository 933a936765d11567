"""Which weights of a training are kept, and when it has gone on for long enough: validations compared on the same samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mri_n2n.trust.design import Design
from mri_n2n.trust.error_estimate import Terms, total

# By how many standard errors of their difference validations have to differ. One, as these are upper bounds: of two equally good weights the later
# is then called worse in at most one of six validations, which costs nothing, as the earlier are as good; weights that are worse by two of them are
# recognised in five of six.
STANDARD_ERRORS = 1.0
# The name of errors that are one of each slice.
SLICES = "slices"

# What two validations are compared by, lower is better: of each mask of a second acquisition, by the name of its design, the errors (y, x)
# of `Terms`; or without them, by the name `SLICES`, an error of each slice (slices,).
Errors = dict[str, Tensor]


@dataclass(frozen=True)
class Standing:
    """Where a training stands after its validations. best: errors of the one that was best. landmark: of the last that was better beyond
    uncertainty than the landmark before it. since: validations since the landmark. keep: whether the last one's weights are kept."""

    best: Errors
    landmark: Errors
    since: int = 0
    keep: bool = True

    def exhausted(self, patience: int | None) -> bool:
        return patience is not None and self.since >= patience


def difference(later: Errors, earlier: Errors, designs: Mapping[str, Design]) -> tuple[float, float]:
    """By how much later errors are larger, and the standard error of that, in a unit of their own.

    On the same samples most of what makes each estimate uncertain is the same for both, and cancels: the noise of the second acquisition, its
    level, and whether its mask met large errors. Left are the differences D of each sample, with the variance of `total` over masks, to which noise adds
    the variance 2 v |F S (x1' - x2')|^2 of each D. D^2 stands for that: its mean is that variance and the square of D's mean, whatever v is. So the
    standard error is an upper bound, as if frequencies that every mask has were drawn by chance too: a difference that a few of them make is none that
    other scans would have to show. Of slices it is the standard error of their mean; 0 of a single one.
    """
    change = {name: later[name] - earlier[name] for name in later}
    if SLICES in change:
        each = change[SLICES]
        return each.mean().item(), each.std().item() / len(each) ** 0.5 if len(each) > 1 else 0.0
    found = total([(Terms(one, one.square()), designs[name]) for name, one in change.items()])
    return found.value, found.variance**0.5


def after(standing: Standing | None, errors: Errors, designs: Mapping[str, Design]) -> Standing:
    """After one more validation. Its weights are kept unless they are worse than the best beyond uncertainty, `STANDARD_ERRORS` of
    the difference: training goes on because later weights are expected to be better, and a difference within chance says nothing against
    that. The best is that of all validations, not the one whose weights are kept, so that many small steps down do not add up.
    """
    if standing is None:
        return Standing(errors, errors)
    worse, doubt = difference(errors, standing.best, designs)
    change, own_doubt = difference(errors, standing.landmark, designs)
    better = change < -STANDARD_ERRORS * own_doubt
    return Standing(
        errors if worse < 0 else standing.best,
        errors if better else standing.landmark,
        0 if better else standing.since + 1,
        worse <= STANDARD_ERRORS * doubt,
    )


def to_tensors(standing: Standing | None) -> dict[str, Tensor]:
    """What a checkpoint keeps of it, with `since` in its header."""
    parts = {} if standing is None else {"best": standing.best, "landmark": standing.landmark}
    return {f"{part}.{name}": value.clone() for part, errors in parts.items() for name, value in errors.items()}


def from_tensors(best: Errors, landmark: Errors, since: int) -> Standing | None:
    """What `to_tensors` kept, or None of nothing."""
    return Standing(best, landmark, since) if best else None
