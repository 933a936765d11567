"""A = M F S against explicit matrices, the dot-product test, and conjugate gradients against numpy.linalg.solve."""

import numpy as np
import pytest
import torch

from mri_n2n import operators
from mri_n2n.operators import (
    HARD_WITH_MAPS,
    adjoint,
    conjugate_gradient,
    data_consistency,
    forward,
    normal_operator,
)

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
        normal_operator(mask, maps)(image).flatten().numpy(), a.conj().T @ (a @ image.flatten().numpy()), atol=1e-12
    )


@pytest.mark.parametrize("at_once", [1, 2 * 7 * 5 * 2, 10**6])
def test_normal_by_few_coils_at_a_time_is_that_of_all(at_once, monkeypatch):
    """Five coils by one, by two (the last alone) and together."""
    monkeypatch.setattr(operators, "SAMPLES_AT_ONCE", at_once)
    mask, maps, image = random_mask(1, (7, 5)), complex_normal(2, 5, 7, 5, seed=1), complex_normal(2, 1, 7, 5, seed=2)
    for item in range(2):
        a = explicit(mask, maps[item : item + 1])
        expected = a.conj().T @ (a @ image[item].flatten().numpy())
        np.testing.assert_allclose(normal_operator(mask, maps)(image)[item].flatten().numpy(), expected, atol=1e-12)


def ratio(kind: str, batch: int, shape: tuple[int, int]) -> torch.Tensor | float:
    """v / v_f: a number, a tensor without axes, one per batch item, or by frequency; some of them zero."""
    draw = torch.Generator().manual_seed(5)
    match kind:
        case "hard":
            return 0.0
        case "number":
            return 0.7
        case "tensor":
            return torch.tensor(0.7, dtype=torch.float64)
        case "by item":
            return torch.arange(batch, dtype=torch.float64).reshape(batch, 1, 1, 1) + (batch == 1) * 0.3
        case "by frequency":
            return 3 * torch.rand((batch, 1, *shape), generator=draw, dtype=torch.float64)


RATIOS = ["hard", "number", "tensor", "by item", "by frequency"]


@pytest.mark.parametrize("kind", ["hard", "number", "by frequency"])
def test_consistency_of_several_coils_needs_the_zero_filled_image_alone(kind):
    mask, maps, image = random_mask(1, (8, 7)), complex_normal(1, 3, 8, 7, seed=1), complex_normal(1, 1, 8, 7, seed=2)
    kspace = mask * complex_normal(1, 3, 8, 7, seed=3)
    zero_filled = adjoint(kspace, mask, maps)
    found = data_consistency(image, None, mask, maps, zero_filled=zero_filled, noise_to_error=ratio(kind, 1, (8, 7)))
    expected = data_consistency(image, kspace, mask, maps, noise_to_error=ratio(kind, 1, (8, 7)))
    torch.testing.assert_close(found, expected)


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


@pytest.mark.parametrize("shape", [(6, 5), (7, 4)])
@pytest.mark.parametrize("kind", RATIOS)
def test_soft_consistency_of_one_coil_minimises_the_weighted_squares(kind, shape):
    """|M (F x - s)|^2 + sum_k (v / v_f) |F (x - z)|^2: by numpy where v > 0, which decides every frequency, and in closed
    form; where v = 0 the samples are put back."""
    batch = 2
    mask, image = random_mask(batch, shape), complex_normal(batch, 1, *shape, seed=1)
    kspace = mask * complex_normal(batch, 1, *shape, seed=2)
    noise = ratio(kind, batch, shape)
    result = data_consistency(image, kspace, mask, noise_to_error=noise)
    fourier = np.kron(dft_matrix(shape[0]), dft_matrix(shape[1]))
    every = np.broadcast_to(np.asarray(noise), (batch, 1, *shape)).reshape(batch, -1)
    for item in range(batch):
        m, s = mask[item].flatten().numpy(), kspace[item].flatten().numpy()
        z = fourier @ image[item].flatten().numpy()
        found = fourier @ result[item].flatten().numpy()
        np.testing.assert_allclose(found, z + m * (s - z) / (1 + every[item]), atol=1e-12)
        if (every[item] > 0).all():
            system = fourier.conj().T @ np.diag(m + every[item]) @ fourier
            right = fourier.conj().T @ (m * s + every[item] * z)
            np.testing.assert_allclose(result[item].flatten().numpy(), np.linalg.solve(system, right), atol=1e-10)


def test_soft_consistency_is_the_best_linear_estimate():
    """With v and v_f that change with the frequency: the error is v v_f / (v + v_f) at each, and any other share has more;
    Monte Carlo over 400 draws of the network's error and of the noise."""
    shape, draws = (9, 8), 400
    error, noise = (scale * torch.rand((1, 1, *shape), dtype=torch.float64) + 0.1 for scale in (1.0, 0.5))
    mask = random_mask(1, shape)
    truth = complex_normal(draws, 1, *shape, seed=0)
    predicted = truth + error.sqrt() * complex_normal(draws, 1, *shape, seed=1)
    measured = mask * (truth + noise.sqrt() * complex_normal(draws, 1, *shape, seed=2))
    fy, fx = (torch.from_numpy(dft_matrix(n)) for n in shape)
    image = fy.conj().T @ predicted @ fx.conj()

    def left(factor: float) -> torch.Tensor:
        found = fy @ data_consistency(image, measured, mask, noise_to_error=factor * noise / error) @ fx.T
        return (found - truth).abs().square().mean(dim=0, keepdim=True)

    expected = torch.where(mask > 0, noise * error / (noise + error), error)
    off = (left(1.0) - expected).abs() / (expected / draws**0.5)  # |.|^2 of complex normal: its deviation is its mean
    assert off.max() < 5 and off.mean() < 1.2
    assert left(1.0).mean() < min(left(factor).mean() for factor in (0.0, 0.5, 2.0, 9.0))


@pytest.mark.parametrize("shape", [(4, 6), (5, 3)])
@pytest.mark.parametrize("kind", RATIOS)
@pytest.mark.parametrize("coils", [1, 3])
def test_consistency_with_maps_is_the_stated_minimiser(shape, kind, coils):
    """|A x - s|^2 + w (x - z)^H (1 - A^H A) (x - z) + sum_k (v / v_f) |F (x - z)|^2, w = `HARD_WITH_MAPS`, sum |S|^2 = 1,
    solved by numpy from explicit matrices, for each item of a batch."""
    batch = 2
    mask, maps = random_mask(batch, shape, share=0.6), complex_normal(batch, coils, *shape, seed=1)
    maps = maps / maps.abs().square().sum(dim=1, keepdim=True).sqrt()
    kspace, image = mask * complex_normal(batch, coils, *shape, seed=2), complex_normal(batch, 1, *shape, seed=3)
    noise = ratio(kind, batch, shape)
    result = data_consistency(image, kspace, mask, maps, noise_to_error=noise, iterations=200)
    every = np.broadcast_to(np.asarray(noise), (batch, 1, *shape)).reshape(batch, -1)
    fourier, one = np.kron(dft_matrix(shape[0]), dft_matrix(shape[1])), np.eye(shape[0] * shape[1])
    for item in range(batch):
        a, z = explicit(mask[item : item + 1], maps[item : item + 1]), image[item].flatten().numpy()
        keep = HARD_WITH_MAPS * (one - a.conj().T @ a) + fourier.conj().T @ np.diag(every[item]) @ fourier
        right = a.conj().T @ kspace[item].flatten().numpy() + keep @ z
        expected = np.linalg.solve(a.conj().T @ a + keep, right)
        np.testing.assert_allclose(result[item].flatten().numpy(), expected, atol=1e-6)


def test_a_noisy_item_of_a_batch_leaves_the_others_as_they_are():
    shape = (8, 7)
    for maps in (None, complex_normal(2, 3, *shape, seed=1)):
        mask, kspace = random_mask(2, shape), complex_normal(2, 1 if maps is None else 3, *shape, seed=2)
        image, noise = complex_normal(2, 1, *shape, seed=3), ratio("by frequency", 2, shape)
        together = data_consistency(image, kspace, mask, maps, noise_to_error=noise)
        for i in range(2):
            own = None if maps is None else maps[i : i + 1]
            one = [value[i : i + 1] for value in (image, kspace, mask)]
            alone = data_consistency(*one, own, noise_to_error=noise[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone)


# Masks of every kind that `normal_operator` tells apart: along which axes there is anything to transform.
def masks_of(shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    points = random_mask(1, shape)
    lines = points[..., :1, :].expand_as(points).contiguous()
    rows = points[..., :1].expand_as(points).contiguous()
    several = torch.cat((lines, points))
    return {
        "points": points, "lines along y": lines, "lines along x": rows, "all": torch.ones_like(points),
        "none": torch.zeros_like(points), "one per item": several,
    }  # fmt: skip


@pytest.mark.parametrize("shape", [(8, 6), (7, 5), (8, 5), (1, 6), (5, 1)])
@pytest.mark.parametrize("coils", [None, 1, 4])
@pytest.mark.parametrize("kind", ["points", "lines along y", "lines along x", "all", "none", "one per item"])
def test_normal_operator_is_adjoint_after_forward(kind, coils, shape):
    """And so is its gradient: that of |A x|^2 / 2 is A^H A x; a second gradient too."""
    mask = masks_of(shape)[kind]
    batch = 2
    maps = None if coils is None else complex_normal(batch, coils, *shape, seed=1)
    image, other = (complex_normal(batch, 1, *shape, seed=seed).requires_grad_() for seed in (2, 3))
    operator = normal_operator(mask, maps)
    expected = adjoint(forward(image, mask, maps), mask, maps)
    torch.testing.assert_close(operator(image), expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(operator(other), adjoint(forward(other, mask, maps), mask, maps))  # used again
    energy = (image.conj() * operator(image)).real.sum() / 2
    (gradient,) = torch.autograd.grad(energy, image)
    torch.testing.assert_close(gradient, expected.detach(), atol=1e-12, rtol=1e-12)
    if kind == "one per item" and min(shape) > 1:
        assert torch.autograd.gradcheck(operator, (image,)) and torch.autograd.gradgradcheck(operator, (image,))


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


@pytest.mark.parametrize("kind", ["tensor", "by item", "by frequency"])
def test_gradient_reaches_image_and_noise_to_error(kind):
    shape = (5, 4)
    mask, maps = random_mask(1, shape), complex_normal(1, 2, *shape, seed=1)
    noise = ratio(kind, 1, shape).requires_grad_()
    for coil_maps in (None, maps):
        image = complex_normal(1, 1, *shape, seed=2).requires_grad_()
        kspace = mask * complex_normal(1, 1 if coil_maps is None else 2, *shape, seed=3)
        assert torch.autograd.gradcheck(
            lambda image, noise: data_consistency(image, kspace, mask, coil_maps, noise_to_error=noise, iterations=2),  # noqa: B023
            (image, noise),
        )
