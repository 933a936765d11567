"""Losses: pure functions of a prediction and a pair."""

from torch import Tensor

from mri_n2n.operators import forward
from mri_n2n.pairs import Pair


def weighted_squared_error(prediction: Tensor, pair: Pair) -> Tensor:
    """Mean over the batch of sum weight |F S prediction - target|^2 / (pixels), in k-space or in the image.

    In k-space with weight = mask2 / probability2 its expectation over the second mask is the squared error of the full
    k-space (plus a constant under noise): the importance-weighted Noise2Noise loss.
    prediction: image (batch, 1, y, x) complex. Returns a scalar in squared intensity units.
    """
    if pair.domain == "kspace":
        difference = forward(prediction, pair.weight.new_ones(()), pair.input.sensitivity_maps) - pair.target
    else:
        difference = prediction - pair.target
    squared = difference.real.square() + difference.imag.square()
    batch, _, y, x = difference.shape
    return (pair.weight * squared).sum() / (batch * y * x)
