"""Noise2Void on a body of scans: whether its assumption holds is measured on what it would learn from."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from mri_n2n.batches import steps_per_epoch, training_batches
from mri_n2n.denoising.blind_spot import reaching
from mri_n2n.denoising.whiteness import Whiteness, caution_of, measure_whiteness
from mri_n2n.protocol import Protocol
from mri_n2n.sources import Source

# Slices that are looked at.
LOOKED_AT = 16


def fitted_to_noise(sources: Sequence[Source], protocol: Protocol) -> tuple[Protocol, str, str | None]:
    """(protocol, what was found, what speaks against Noise2Void or None) for the noise of some training slices.

    Where it is correlated along one axis of the slices, the protocol's blind spot hides along that axis too (structN2V). The
    reach of the correlation is the median over slices.
    """
    batches = training_batches(sources, protocol, batch_size=1)
    count = min(LOOKED_AT, steps_per_epoch(sources, batch_size=1))
    looked_at = [measure_whiteness(next(batches)[0].target[:, 0].numpy()) for _ in range(count)]
    told = [whiteness for whiteness in looked_at if whiteness.where != "nothing"]
    if not told:
        return protocol, "no noise found to look at", caution_of(looked_at[0])
    reach = (0, *(statistics.median_low(one.reach[axis] for one in told) for axis in (1, 2)))
    typical = Whiteness({}, told[0].where, reach, None)
    along, caution = typical.along(), caution_of(typical)
    if not along:
        return protocol, "white noise", caution
    found = f"noise correlated along {' and '.join(along)}"
    if typical.verdict() == "other":
        return protocol, found, caution
    spot = reaching(protocol.pair.blind_spot, reach[1:])
    return replace(protocol, pair=replace(protocol.pair, blind_spot=spot)), f"{found}: structN2V", caution
