"""A = M F S against explicit matrices, the dot-product test, and conjugate gradients against numpy.linalg.solve."""

import numpy as np
import pytest
import torch

from mri_n2n import operators
from mri_n2n.operators import HARD_WITH_MAPS, adjoint, conjugate_gradient, data_consistency, forward, normal

DTYPES = [(torch.complex64, 2e-5), (torch.complex128, 1e-13)]
SHAPES = [(8, 6), (7, 5), (8, 5)]


def complex_normal(*shape: int, seed: int, dtype: torch.dtype = torch.complex128) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def random_mask(
    batch: int, shape: tuple[int, int], dtype: torch.dtype = torch.float64, share: float = 0.5
) -> torch.Tensor:
    return (torch.rand((batch, 1, *shape), generator=torch.Generator().manual_seed(9)) < share).to(dtype)


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.zeros((), dtype=dtype).real.dtype


def dft_matrix(n: int) -> np.ndarray:
    index = np.arange(n) - n // 2
    return np.exp(-2j * np.pi * np.outer(index, index) / n) / np.sqrt(n)


def explicit(mask: torch.Tensor, maps: torch.Tensor | None) -> np.ndarray:
    """A of one batch item as a matrix (coils * y * x, y * x), from its definition."""
    y, x = mask.shape[-2:]
    fourier = np.kron(dft_matrix(y), dft_matrix(x))
    sensitivities = [np.ones(y * x)] if maps is None else [m.flatten().numpy() for m in maps[0]]
    return np.vstack([np.diag(mask[0, 0].flatten().numpy()) @ fourier @ np.diag(s) for s in sensitivities])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("coils", [None, 1, 3])
def test_forward_adjoint_normal_equal_the_explicit_matrix(shape, coils):
    mask = random_mask(1, shape)
    maps = None if coils is None else complex_normal(1, coils, *shape, seed=1)
    a = explicit(mask, maps)
    image, kspace = complex_normal(1, 1, *shape, seed=2), complex_normal(1, coils or 1, *shape, seed=3)
    np.testing.assert_allclose(forward(image, mask, maps).flatten().numpy(), a @ image.flatten().numpy(), atol=1e-12)
    np.testing.assert_allclose(
        adjoint(kspace, mask, maps).flatten().numpy(), a.conj().T @ kspace.flatten().numpy(), atol=1e-12
    )
    np.testing.assert_allclose(
        normal(image, mask, maps).flatten().numpy(), a.conj().T @ (a @ image.flatten().numpy()), atol=1e-12
    )


@pytest.mark.parametrize("at_once", [1, 2 * 7 * 5 * 2, 10**6])
def test_normal_by_few_coils_at_a_time_is_that_of_all(at_once, monkeypatch):
    """Five coils by one, by two (the last alone) and together."""
    monkeypatch.setattr(operators, "SAMPLES_AT_ONCE", at_once)
    mask, maps, image = random_mask(1, (7, 5)), complex_normal(2, 5, 7, 5, seed=1), complex_normal(2, 1, 7, 5, seed=2)
    for item in range(2):
        a = explicit(mask, maps[item : item + 1])
        expected = a.conj().T @ (a @ image[item].flatten().numpy())
        np.testing.assert_allclose(normal(image, mask, maps)[item].flatten().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("trust", [1.0, 0.4])
def test_consistency_of_several_coils_needs_the_zero_filled_image_alone(trust):
    mask, maps, image = random_mask(1, (8, 7)), complex_normal(1, 3, 8, 7, seed=1), complex_normal(1, 1, 8, 7, seed=2)
    kspace = mask * complex_normal(1, 3, 8, 7, seed=3)
    zero_filled = adjoint(kspace, mask, maps)
    found = data_consistency(image, None, mask, maps, zero_filled=zero_filled, trust=trust)
    torch.testing.assert_close(found, data_consistency(image, kspace, mask, maps, trust=trust))


@pytest.mark.parametrize("dtype, tolerance", DTYPES)
@pytest.mark.parametrize("shape", [(16, 12), (15, 13), (16, 13)])
@pytest.mark.parametrize("coils", [None, 1, 4])
@pytest.mark.parametrize("mask_batch", [1, 2])
def test_dot_product(shape, coils, dtype, tolerance, mask_batch):
    """<A x, s> = <x, A^H s>."""
    mask = random_mask(mask_batch, shape, real_dtype(dtype))
    maps = None if coils is None else complex_normal(2, coils, *shape, seed=1, dtype=dtype)
    x, s = complex_normal(2, 1, *shape, seed=2, dtype=dtype), complex_normal(2, coils or 1, *shape, seed=3, dtype=dtype)
    ax, ahs = forward(x, mask, maps), adjoint(s, mask, maps)
    assert ax.shape == s.shape and ahs.shape == x.shape and ax.dtype == ahs.dtype == dtype
    left, right = torch.vdot(ax.flatten(), s.flatten()), torch.vdot(x.flatten(), ahs.flatten())
    assert abs(left - right) < tolerance * ax.norm() * s.norm()


@pytest.mark.parametrize("size", [1, 4, 9])
def test_conjugate_gradient_equals_a_direct_solution(size):
    """Each batch item is a system of its own: a matrix per item, solved by numpy."""
    generator = np.random.default_rng(0)
    b = generator.normal(size=(3, size, size)) + 1j * generator.normal(size=(3, size, size))
    scale = np.array([1.0, 1e-6, 1e4])[:, None, None]  # very different systems in one batch
    matrices = scale * (b @ b.conj().transpose(0, 2, 1) + size * np.eye(size))
    right = generator.normal(size=(3, size)) + 1j * generator.normal(size=(3, size))
    expected = np.linalg.solve(matrices, right[..., None])[..., 0]
    system = torch.from_numpy(matrices)
    solution = conjugate_gradient(
        lambda v: (system @ v.reshape(3, size, 1)).reshape(3, 1, 1, size),
        torch.from_numpy(right).reshape(3, 1, 1, size),
        torch.zeros((3, 1, 1, size), dtype=torch.complex128),
        3 * size,
    )
    np.testing.assert_allclose(solution.reshape(3, size).numpy(), expected, rtol=1e-9)


def test_conjugate_gradient_converges_in_as_many_steps_as_there_are_eigenvalues():
    """The property that makes it conjugate gradients, which steepest descent lacks."""
    diagonal = torch.tensor([1.0, 1.0, 5.0, 5.0, 30.0], dtype=torch.float64).reshape(1, 1, 1, 5)
    right = complex_normal(1, 1, 1, 5, seed=1)
    solve = lambda count: conjugate_gradient(lambda v: diagonal * v, right, torch.zeros_like(right), count)  # noqa: E731
    assert (solve(3) - right / diagonal).abs().max() < 1e-12
    assert (solve(2) - right / diagonal).abs().max() > 1e-3


def test_conjugate_gradient_stays_finite_at_the_solution_and_for_zero():
    right = complex_normal(2, 1, 3, 3, seed=1)
    right[1] = 0
    solution = conjugate_gradient(lambda v: 2 * v, right, torch.zeros_like(right), 20)
    torch.testing.assert_close(solution, right / 2)
    torch.testing.assert_close(conjugate_gradient(lambda v: 2 * v, right, right / 2, 5), right / 2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype, tolerance", DTYPES)
def test_hard_consistency_puts_the_samples_back_and_keeps_the_rest(shape, dtype, tolerance):
    mask = random_mask(2, shape, real_dtype(dtype))
    image, kspace = (
        complex_normal(2, 1, *shape, seed=1, dtype=dtype),
        mask * complex_normal(2, 1, *shape, seed=2, dtype=dtype),
    )
    fy, fx = (torch.from_numpy(dft_matrix(n)).to(dtype) for n in shape)
    transform = lambda value: fy @ value @ fx.T  # noqa: E731
    result = transform(data_consistency(image, kspace, mask))
    expected = torch.where(mask > 0, kspace, transform(image))
    assert (result - expected).abs().max() < 20 * tolerance


@pytest.mark.parametrize("trust", [0.0, 0.3, 1.0, torch.tensor(0.3, dtype=torch.float64)])
def test_soft_consistency_moves_the_samples_by_the_trust(trust):
    """z + trust * M (s - z), with trust a number or a tensor."""
    shape = (6, 5)
    mask, image = random_mask(1, shape), complex_normal(1, 1, *shape, seed=1)
    kspace = mask * complex_normal(1, 1, *shape, seed=2)
    fy, fx = (torch.from_numpy(dft_matrix(n)) for n in shape)
    z = fy @ image @ fx.T
    result = fy @ data_consistency(image, kspace, mask, trust=trust) @ fx.T
    torch.testing.assert_close(result, z + float(trust) * mask * (kspace - z))


def test_optimal_trust_is_the_share_of_the_error_variance():
    """trust = v_f / (v_f + v) has the smallest mean squared error of all: checked against its neighbours by Monte Carlo."""
    variance_network, variance_noise, n = 0.5, 0.2, 200
    truth = complex_normal(1, 1, n, n, seed=0)
    network = truth + variance_network**0.5 * complex_normal(1, 1, n, n, seed=1)
    measured = truth + variance_noise**0.5 * complex_normal(1, 1, n, n, seed=2)
    fy = torch.from_numpy(dft_matrix(n))
    image, mask = fy.conj().T @ network @ fy.conj(), torch.ones(1, 1, n, n)

    def error(trust: float) -> float:
        result = fy @ data_consistency(image, measured, mask, trust=trust) @ fy.T
        return (result - truth).abs().square().mean().item()

    best = variance_network / (variance_network + variance_noise)
    assert error(best) == pytest.approx(
        variance_network * variance_noise / (variance_network + variance_noise), rel=0.03
    )
    assert error(best) < min(error(best - 0.1), error(best + 0.1), error(1.0))


@pytest.mark.parametrize("shape", [(4, 6), (5, 3)])
@pytest.mark.parametrize("trust", [0.0, 0.2, 0.7, 1.0, torch.tensor(0.7, dtype=torch.float64)])
def test_consistency_of_several_coils_is_the_stated_minimiser(shape, trust):
    """(trust A^H A + (1 - trust)) x = trust A^H s + (1 - trust) z, solved by numpy; for trust 1 the image counts with
    w (1 - A^H A), w = `HARD_WITH_MAPS`."""
    mask, maps = random_mask(1, shape, share=0.6), complex_normal(1, 3, *shape, seed=1)
    kspace, image = mask * complex_normal(1, 3, *shape, seed=2), complex_normal(1, 1, *shape, seed=3)
    a, pixels, share = explicit(mask, maps), shape[0] * shape[1], float(trust)
    normal_matrix, one = a.conj().T @ a, np.eye(pixels)
    keep = HARD_WITH_MAPS * (one - normal_matrix) if share == 1 else max(1 - share, 1e-3 * share) * one
    right = share * a.conj().T @ kspace.flatten().numpy() + keep @ image.flatten().numpy()
    expected = np.linalg.solve(share * normal_matrix + keep, right)
    result = data_consistency(image, kspace, mask, maps, trust=trust, iterations=200)
    np.testing.assert_allclose(result.flatten().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("dtype, tolerance", DTYPES)
def test_hard_consistency_of_several_coils_sampled_fully_is_the_measurement(dtype, tolerance):
    """Whatever the network says; and nothing is measured where the maps are zero."""
    shape = (9, 8)
    maps = complex_normal(2, 4, *shape, seed=1, dtype=dtype)
    maps = maps / maps.abs().square().sum(dim=1, keepdim=True).sqrt()
    maps[..., :2] = 0
    image, kspace = complex_normal(2, 1, *shape, seed=2, dtype=dtype), complex_normal(2, 4, *shape, seed=3, dtype=dtype)
    mask = torch.ones((1, 1, *shape), dtype=real_dtype(dtype))
    result = data_consistency(image, kspace, mask, maps)
    measured = adjoint(kspace, mask, maps)
    torch.testing.assert_close(result[..., 2:], measured[..., 2:], rtol=0, atol=20 * tolerance)
    torch.testing.assert_close(result[..., :2], image[..., :2], rtol=0, atol=20 * tolerance)


def test_consistency_of_several_coils_leaves_a_consistent_image_alone():
    shape = (8, 7)
    mask, maps, image = (
        random_mask(2, shape),
        complex_normal(2, 4, *shape, seed=1),
        complex_normal(2, 1, *shape, seed=2),
    )
    torch.testing.assert_close(data_consistency(image, forward(image, mask, maps), mask, maps), image)


def test_gradient_reaches_image_and_trust():
    shape = (5, 4)
    mask, maps = random_mask(1, shape), complex_normal(1, 2, *shape, seed=1)
    trust = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    for coil_maps in (None, maps):
        image = complex_normal(1, 1, *shape, seed=2).requires_grad_()
        kspace = mask * complex_normal(1, 1 if coil_maps is None else 2, *shape, seed=3)
        assert torch.autograd.gradcheck(
            lambda image, trust: data_consistency(image, kspace, mask, coil_maps, trust=trust, iterations=2),
            (image, trust),
        )
