"""fft2c and ifft2c against closed-form Fourier pairs, explicit DFT matrices and the adjointness identity."""

import numpy as np
import pytest
import torch

from mri_n2n.fourier import fft2c, ifft2c

SHAPES = [(8, 6), (7, 9), (8, 5), (1, 4), (1, 1)]


def complex_normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def dft_matrix(n: int) -> np.ndarray:
    """Unitary centred DFT, written out: F[k, r] = exp(-2 pi i k r / n) / sqrt(n), k and r from -(n // 2)."""
    index = np.arange(n) - n // 2
    return np.exp(-2j * np.pi * np.outer(index, index) / n) / np.sqrt(n)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_both_transforms_equal_the_explicit_matrix(shape, leading):
    x = complex_normal(*leading, *shape)
    fy, fx = dft_matrix(shape[0]), dft_matrix(shape[1])
    np.testing.assert_allclose(fft2c(x).numpy(), fy @ x.numpy() @ fx.T, atol=1e-12)
    np.testing.assert_allclose(ifft2c(x).numpy(), fy.conj().T @ x.numpy() @ fx.conj(), atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 6), (7, 9), (16, 5)])
@pytest.mark.parametrize("at", [(0, 0), (2, -1), (-3, 2)])
def test_shifted_delta_is_a_plane_wave(shape, at):
    """A point at (y0, x0) from the centre pixel becomes exp(-2 pi i (ky y0 / ny + kx x0 / nx)) / sqrt(ny nx)."""
    image = torch.zeros(shape, dtype=torch.complex128)
    image[shape[0] // 2 + at[0], shape[1] // 2 + at[1]] = 1
    ky, kx = (np.arange(n) - n // 2 for n in shape)
    wave = np.exp(-2j * np.pi * (ky[:, None] * at[0] / shape[0] + kx[None] * at[1] / shape[1])) / np.sqrt(
        shape[0] * shape[1]
    )
    np.testing.assert_allclose(fft2c(image).numpy(), wave, atol=1e-13)


@pytest.mark.parametrize("shape", [(64, 64), (63, 65), (64, 63)])
def test_gaussian_is_a_gaussian(shape):
    """exp(-pi r^2 / w^2) has the continuous transform w^2 exp(-pi w^2 k^2): aliasing is below 1e-12 for these widths."""
    y, x = (np.arange(n) - n // 2 for n in shape)
    wy, wx = (np.sqrt(n) for n in shape)
    image = np.exp(-np.pi * (y[:, None] ** 2 / wy**2 + x[None] ** 2 / wx**2))
    ky, kx = y / shape[0], x / shape[1]
    expected = (
        wy * wx * np.exp(-np.pi * (wy**2 * ky[:, None] ** 2 + wx**2 * kx[None] ** 2)) / np.sqrt(shape[0] * shape[1])
    )
    np.testing.assert_allclose(fft2c(torch.from_numpy(image).to(torch.complex128)).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_dc_lies_at_half_the_size(shape):
    kspace = fft2c(torch.ones(shape, dtype=torch.complex128))
    expected = torch.zeros(shape, dtype=torch.complex128)
    expected[shape[0] // 2, shape[1] // 2] = (shape[0] * shape[1]) ** 0.5
    torch.testing.assert_close(kspace, expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize("dtype, tolerance", [(torch.complex64, 1e-5), (torch.complex128, 1e-13)])
@pytest.mark.parametrize("shape", [(16, 12), (15, 13), (16, 13)])
def test_adjoint_inverse_and_parseval(shape, dtype, tolerance):
    x, s = complex_normal(2, 3, *shape, seed=1, dtype=dtype), complex_normal(2, 3, *shape, seed=2, dtype=dtype)
    assert fft2c(x).dtype == dtype
    norm = x.abs().square().sum().item()
    left, right = torch.vdot(fft2c(x).flatten(), s.flatten()), torch.vdot(x.flatten(), ifft2c(s).flatten())
    assert abs(left - right) < tolerance * norm
    assert abs(fft2c(x).abs().square().sum().item() - norm) < tolerance * norm
    torch.testing.assert_close(ifft2c(fft2c(x)), x, atol=tolerance, rtol=0)
    torch.testing.assert_close(fft2c(ifft2c(s)), s, atol=tolerance, rtol=0)


@pytest.mark.parametrize("shape", [(8, 6), (7, 9), (8, 9)])
def test_agrees_with_fastmri(shape):
    from fastmri.fftc import fft2c_new

    x = complex_normal(2, *shape)
    peer = torch.view_as_complex(fft2c_new(torch.view_as_real(x)).contiguous())
    torch.testing.assert_close(fft2c(x), peer, atol=1e-12, rtol=0)
