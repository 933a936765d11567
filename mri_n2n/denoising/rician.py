"""The magnitude of a signal under complex noise: biased, and how the bias is taken away where the noise is known.

A: signal, v = E|n|^2, m = |A + n|. E[m^2] = A^2 + v, and m has Rice's distribution, of mean
(pi v / 4)^(1/2) L(-A^2 / v), L the Laguerre function of order 1/2 (Rice 1944; Gudbjartsson, Patz, MRM 34, 1995).
"""

from __future__ import annotations

import numpy as np
from scipy.special import ive

# From A = 0 to A = 20 sqrt(v), beyond which the mean is A + v / (4 A) to 1e-6 of A.
_GRID = np.linspace(0.0, 20.0, 20001)


def rician_mean(signal: np.ndarray, variance: float) -> np.ndarray:
    """E[m] of signals A >= 0, in their unit."""
    half = np.asarray(signal, np.float64) ** 2 / (2 * variance)
    # L(-2 h) = exp(-h) ((1 + 2 h) I0(h) + 2 h I1(h)); ive has the exponential in it.
    return np.sqrt(np.pi * variance / 4) * ((1 + 2 * half) * ive(0, half) + 2 * half * ive(1, half))


def signal_of_mean(mean: np.ndarray, variance: float) -> np.ndarray:
    """The signal whose magnitudes have this mean: 0 below the mean of noise alone (Koay, Basser, JMR 179, 2006)."""
    if not variance > 0:
        return np.maximum(mean, 0)
    deviation = variance**0.5
    scaled = np.asarray(mean, np.float64) / deviation
    found = np.interp(scaled, rician_mean(_GRID, 1.0), _GRID)
    far = scaled > 19
    found[far] = (scaled[far] + np.sqrt(scaled[far] ** 2 - 1)) / 2  # A + 1 / (4 A) = mean
    return (deviation * found).astype(np.asarray(mean).dtype)


def variance_of_mean(mean: np.ndarray, variance: float) -> np.ndarray:
    """The variance of magnitudes of this mean, E[m^2] - E[m]^2: half that of the complex noise where the signal is strong, 0.215 of
    it in noise alone."""
    at_least = np.maximum(np.asarray(mean, np.float64), rician_mean(np.zeros(1), variance)[0] if variance > 0 else 0)
    spread = signal_of_mean(at_least, variance) ** 2 + variance - at_least**2
    return np.clip(spread, (1 - np.pi / 4) * variance, variance / 2)


def noise_of_moments(mean: float, variance: float) -> float:
    """v of magnitudes of this mean and variance (Koay, Basser, JMR 179, 2006); of noise alone where the mean is as small as that."""
    means = rician_mean(_GRID, 1.0)
    spread = 1 + _GRID**2 - means**2  # E[m^2] - E[m]^2 for v = 1, from 0.215 to 0.5
    found = np.interp(mean / variance**0.5, means / spread**0.5, spread, right=0.5)
    return float(variance / found)
