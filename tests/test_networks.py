"""What the networks promise: sizes, equivariance, data consistency, and the 2018 U-Net layer by layer."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mri_n2n.acquisition import Acquisition
from mri_n2n.errors import OptionError
from mri_n2n.fastmri_networks import FastMRIUNet, FastMRIVarNet
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.losses import weighted_squared_error
from mri_n2n.masks import draw_mask
from mri_n2n.networks import MOST_NOISE, NETWORKS, UNet2018, Unrolled
from mri_n2n.noise import noise_variance_at_most
from mri_n2n.operators import adjoint
from mri_n2n.pairs import target_pair
from mri_n2n.unet import DoublingUNet, UNet

SIZES = [(32, 32), (17, 23), (33, 40), (5, 7), (3, 9), (40, 31)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scan(
    shape=(24, 27),
    batch: int = 2,
    coils: int = 1,
    *,
    seed: int = 0,
    mask_seed: int = 0,
    real: bool = False,
    dc: bool = True,
    noise_variance: float | torch.Tensor | None = None,
) -> Acquisition:
    """An acquisition of random images; without `dc` the centre is not measured. noise_variance: what it says of itself."""
    images = torch.randn((batch, coils, *shape), dtype=torch.complex64, generator=generator(seed))
    full = fft2c(images.real.to(torch.complex64) if real else images)
    sampling = [
        draw_mask("roulette", shape, 2.0, generator(100 + 10 * (seed + mask_seed) + i), hermitian=real)
        for i in range(batch)
    ]
    mask = torch.stack([s.mask for s in sampling])[:, None]
    if not dc:
        mask[..., shape[0] // 2, shape[1] // 2] = 0
    probability = sampling[0].probability.expand(batch, 1, *shape).contiguous()
    return Acquisition(full * mask, mask, probability, None, noise_variance)


def unit_maps(coils: int, shape: tuple[int, int], batch: int = 1, seed: int = 1) -> torch.Tensor:
    """Random maps, sum |S|^2 = 1."""
    maps = torch.randn((batch, coils, *shape), dtype=torch.complex64, generator=generator(seed))
    return maps / maps.abs().square().sum(dim=1, keepdim=True).sqrt()


def last_of(unet: torch.nn.Module) -> torch.nn.Conv2d:
    return unet.last[-1] if isinstance(unet, UNet) else unet.last


def awaken(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every last layer weights: a new cascade is the identity, of which any promise would hold trivially."""
    for unet in network.modules():
        if isinstance(unet, (UNet, DoublingUNet)):
            last, draw = last_of(unet), generator(seed)
            last.weight.data = 0.05 * torch.randn(last.weight.shape, generator=draw)
            last.bias.data = 0.05 * torch.randn(last.bias.shape, generator=draw)
    return network.eval()


def small_unrolled(**options) -> Unrolled:
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        return awaken(Unrolled(**{"cascades": 2, "channels": 8, "levels": 2, **options}))


def small_2018(**options) -> UNet2018:
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        return UNet2018(channels=12, **options).eval()


def relative(result: torch.Tensor, expected: torch.Tensor) -> float:
    return ((result - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize(
    "make",
    [
        small_unrolled,
        small_2018,
        lambda: small_2018(complex_images=True),
        lambda: small_unrolled(consistency="hard", memory=3),
        lambda: small_unrolled(unet="flat"),
    ],
)
@torch.no_grad()
def test_any_size_gives_an_image_of_that_size(make, shape):
    ones = torch.ones(1, 1, *shape)
    kspace = torch.randn((2, 1, *shape), dtype=torch.complex64, generator=generator())
    image = make()(Acquisition(kspace * (ones.cumsum(-1) % 2), ones.cumsum(-1) % 2, 0.5 * ones))
    assert image.shape == (2, 1, *shape) and image.dtype == torch.complex64 and image.isfinite().all()


@pytest.mark.parametrize("factor", [2.0, -1.0, -3.0, 1e-6, 1e6, 0.5j, 2 - 1j])
@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("consistency", ["hard", "soft"])
@torch.no_grad()
def test_unrolled_scales_with_its_input(factor, real, consistency):
    network, acquisition = small_unrolled(consistency=consistency), scan(real=real)
    for variance in (None, 0.0, 0.02, torch.tensor([0.1, 0.0]).reshape(2, 1, 1, 1)):  # in squared units of the samples
        scaled_variance = variance if variance is None else variance * abs(factor) ** 2
        scaled = Acquisition(acquisition.kspace * factor, acquisition.mask, noise_variance=scaled_variance)
        expected = network(replace(acquisition, noise_variance=variance)) * factor
        assert relative(network(scaled), expected) < 1e-4


@torch.no_grad()
def test_items_of_a_batch_do_not_see_each_other():
    """Of different scale and noise, known, zero or not known, of one coil and several, with memory."""
    network, known = small_unrolled(memory=2), torch.tensor([0.0, 300.0, 1e-6]).reshape(3, 1, 1, 1)
    for coils in (1, 3):
        acquisition = scan(batch=3, coils=coils)
        kspace = acquisition.kspace * torch.tensor([1.0, 100.0, 0.01]).reshape(3, 1, 1, 1)
        maps = None if coils == 1 else unit_maps(coils, (24, 27), batch=3)
        for variance in (known, None):
            together = network(Acquisition(kspace, acquisition.mask, None, maps, variance))
            for i in range(3):
                one = [value if value is None else value[i : i + 1] for value in (maps, variance)]
                alone = network(Acquisition(kspace[i : i + 1], acquisition.mask[i : i + 1], None, *one))
                assert relative(together[i : i + 1], alone) < 1e-4


@pytest.mark.parametrize("shape", [(24, 27), (32, 32), (17, 23)])
@pytest.mark.parametrize(
    "make",
    [small_unrolled, lambda: small_unrolled(consistency="hard"), small_2018, lambda: small_2018(complex_images=True)],
)
@torch.no_grad()
def test_hard_consistency_returns_the_measured_samples(make, shape):
    """As measured: not divided by the probability, and to rounding; what was not measured is the network's."""
    acquisition = scan(shape, noise_variance=0.0)
    result = fft2c(make()(acquisition))
    assert relative(acquisition.mask * result, acquisition.kspace) < 1e-5
    assert ((1 - acquisition.mask) * result).abs().max() > 1e-3


def cascade_alone(network: Unrolled, acquisition: Acquisition) -> torch.Tensor:
    """k-space of what the network's one U-Net makes of the zero-filled image, before data consistency, which samples of
    huge noise variance v_f / (v_f + v) of nothing are: from the U-Net itself, by the network's own normalisation."""
    seen = []
    hook = network.unets[0].register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    network(acquisition)
    hook.remove()
    ((before, out),) = seen
    zero_filled = ifft2c(acquisition.kspace)
    scale = (zero_filled / torch.complex(before[:, :1], before[:, 1:2])).mean(dim=(1, 2, 3), keepdim=True)
    return fft2c(zero_filled + scale * torch.complex(out[:, :1], out[:, 1:2])), scale


@torch.no_grad()
@pytest.mark.parametrize("shape", [(24, 27), (16, 17)])
def test_soft_consistency_moves_the_samples_by_the_stated_share(shape):
    """One cascade, one coil: z + M (s - z) v_f / (v_f + v), v_f = exp(a + b r) on the scale of the network, v / v_f at
    most 9; v = 0 returns the samples themselves."""
    network = small_unrolled(cascades=1)
    network.error.copy_(torch.tensor([[-3.0, -2.0]]))
    ky, kx = np.meshgrid(*(np.abs(np.arange(n) - n // 2) / (n // 2) for n in shape), indexing="ij")
    for variance in (0.0, 1e-3, 0.05, torch.tensor([0.3, 0.0]).reshape(2, 1, 1, 1)):
        acquisition = scan(shape, noise_variance=variance)
        z, scale = cascade_alone(network, acquisition)
        relative_variance = torch.as_tensor(variance) / scale.abs().square()
        ratio = relative_variance / torch.from_numpy(np.exp(-3.0 - 2.0 * np.hypot(ky, kx)))
        expected = z + acquisition.mask * (acquisition.kspace - z) / (1 + ratio.clamp_max(MOST_NOISE))
        result = fft2c(network(acquisition))
        torch.testing.assert_close(result, expected.to(torch.complex64), rtol=1e-3, atol=1e-3)
        if not torch.as_tensor(variance).any():
            assert relative(acquisition.mask * result, acquisition.kspace) < 1e-5


@pytest.mark.parametrize("unit", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("coils", [1, 3])
@torch.no_grad()
def test_any_unit_of_the_samples_will_do(unit, coils):
    """The squares of some leave float32: of noise that is zero, known, or told by the samples."""
    maps = None if coils == 1 else unit_maps(coils, (24, 27), batch=2)
    network, acquisition = small_unrolled(), replace(scan((24, 27), coils=coils), sensitivity_maps=maps)
    for variance in (0.0, 0.05, None):
        known = replace(acquisition, noise_variance=variance)
        scaled = replace(known, kspace=known.kspace * unit, noise_variance=variance and variance * unit**2)
        assert relative(network(scaled) / unit, network(known)) < 1e-4


@torch.no_grad()
def test_noise_that_is_not_known_is_taken_from_the_outermost_samples():
    network, acquisition = small_unrolled(), scan((40, 41))
    estimated = noise_variance_at_most(acquisition.kspace, acquisition.mask)
    assert estimated.isfinite().all() and estimated.min() > 0
    result = network(acquisition)
    assert torch.equal(result, network(replace(acquisition, noise_variance=estimated)))
    assert relative(result, network(replace(acquisition, noise_variance=0.0))) > 1e-3
    few = acquisition.mask.clone()
    few[..., :8, :] = few[..., -8:, :] = few[..., :8] = few[..., -8:] = 0  # no samples far out: taken for noise-free
    inner = Acquisition(acquisition.kspace * few, few)
    assert torch.equal(network(inner), network(replace(inner, noise_variance=0.0)))


@pytest.mark.parametrize("coils", [1, 3])
def test_checkpointing_changes_no_gradient(coils):
    """Loss and every gradient are equal with activations computed again; with memory, noise and several coils."""
    acquisition = scan((20, 23), coils=coils, noise_variance=0.05)
    maps = None if coils == 1 else unit_maps(coils, (20, 23), batch=2)
    pair = target_pair(replace(acquisition, sensitivity_maps=maps), scan((20, 23), coils=coils, mask_seed=3))
    found = []
    for checkpointing in (False, True):
        network = small_unrolled(cascades=3, memory=2).train()
        network.checkpointing = checkpointing
        calls = []
        network.unets[1].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        loss = weighted_squared_error(network(pair.input), pair)
        loss.backward()
        found.append((loss.detach(), [p.grad for p in network.parameters()]))
        assert len(calls) == 1 + checkpointing  # once more for the gradient
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-8)
    assert all(gradient is not None for gradient in found[0][1])


@torch.no_grad()
def test_memory_is_handed_on_and_used():
    """What a cascade says beside its image changes the next one's; the last hands on nothing."""
    acquisition, network = scan(noise_variance=0.0), small_unrolled(memory=3)
    assert [u.encoder[0][0].in_channels for u in network.unets] == [3, 6]
    assert [last_of(u).out_channels for u in network.unets] == [5, 2]
    before = network(acquisition)
    last_of(network.unets[0]).bias[2:] += 1
    assert relative(network(acquisition), before) > 1e-4
    for wrong in (-1, 5000):
        with pytest.raises(OptionError, match="channels"):
            Unrolled(2, 8, 2, memory=wrong)


def fastmri_networks():
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        return FastMRIVarNet(2, 4, 2).eval(), FastMRIUNet(4, 2).eval()


@pytest.mark.parametrize("shape", [(32, 32), (17, 23), (33, 40), (5, 37), (40, 31)])
@pytest.mark.parametrize("coils", [1, 3])
@torch.no_grad()
def test_fastmri_networks_take_any_size_and_scale_with_their_input(shape, coils):
    maps = None if coils == 1 else unit_maps(coils, shape, batch=2)
    acquisition = replace(scan(shape, coils=coils), sensitivity_maps=maps)
    for network in fastmri_networks():
        image = network(acquisition)
        assert image.shape == (2, 1, *shape) and image.dtype == torch.complex64 and image.isfinite().all()
        assert relative(image, adjoint(acquisition.kspace, acquisition.mask, maps)) > 1e-3
        for factor in (1e-6, 2 - 1j):
            scaled = replace(acquisition, kspace=acquisition.kspace * factor)
            assert relative(network(scaled), factor * image) < 1e-3


@pytest.mark.parametrize("coils", [1, 4])
@torch.no_grad()
def test_fastmri_varnet_is_fastmris_own_cascades(coils):
    """fastMRI's VarNet with these cascades, and our maps in place of its network for them, on the scale that ours brings
    its input to (largest magnitude 1, mean phase 45 degrees): of one coil its magnitude image is ours; of several its last k-space,
    combined by the maps."""
    from fastmri.models.varnet import VarNet

    shape = (30, 36)
    maps = torch.ones(1, 1, *shape, dtype=torch.complex64) if coils == 1 else unit_maps(coils, shape)
    acquisition = replace(scan(shape, batch=1, coils=coils), sensitivity_maps=maps)
    ours, _ = fastmri_networks()
    theirs = VarNet(num_cascades=2, sens_chans=2, sens_pools=2, chans=4, pools=2).eval()
    theirs.cascades.load_state_dict(ours.cascades.state_dict())
    theirs.sens_net.forward = lambda *_: torch.view_as_real(maps)
    image = adjoint(acquisition.kspace, acquisition.mask, maps)
    scale = image.abs().max() * torch.sgn((image * image.abs()).sum()) * (1 - 1j) / 2**0.5
    last = []
    theirs.cascades[-1].register_forward_hook(lambda *arguments: last.append(torch.view_as_complex(arguments[-1])))
    magnitude = theirs(torch.view_as_real(acquisition.kspace / scale), acquisition.mask[..., None] > 0)
    found = ours(acquisition) / scale
    torch.testing.assert_close(found[:, 0], (maps.conj() * ifft2c(last[0])).sum(dim=1), rtol=1e-3, atol=1e-4)
    if coils == 1:
        torch.testing.assert_close(found[:, 0].abs(), magnitude, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(32, 32), (37, 37), (64, 64)])
def test_fastmri_networks_take_real_images(shape):
    """Whose imaginary part is nothing, or rounding, which must not be brought to the variance of the real one: a change by rounding
    changes the image as little, and gradients are finite."""
    image = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0)).to(torch.complex64)
    mask = torch.zeros(1, 1, *shape)
    mask[..., ::2, :] = 1
    for network in fastmri_networks():
        found = network(Acquisition(fft2c(image) * mask, mask))
        other = network(Acquisition(fft2c(image * (1 + 1e-6j)) * mask, mask))
        assert found.isfinite().all() and relative(found, other) < 1e-4
        found.abs().square().mean().backward()
        assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.grad is not None)


def test_fastmri_networks_pass_empty_slices_and_refuse_images_too_small_for_them():
    acquisition = scan((20, 24))
    empty = replace(acquisition, kspace=acquisition.kspace * torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1))
    for network in fastmri_networks():
        image = network(empty)
        assert not image[1].any()
        torch.testing.assert_close(image[:1], network(acquisition.slices(torch.tensor([0]))))
        for some in (empty, replace(acquisition, kspace=0 * acquisition.kspace)):
            network.zero_grad()
            network(some).abs().sum().backward()
            assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    for network in (FastMRIVarNet(1, 4, 4), FastMRIUNet(4, 4)):
        with pytest.raises(OptionError, match="too small"):
            network(scan((16, 12)))


@pytest.mark.parametrize("consistency", ["hard", "soft"])
@torch.no_grad()
def test_unrolled_never_sees_the_probability(consistency):
    network, acquisition = small_unrolled(consistency=consistency), scan()
    result = network(acquisition)
    nan = torch.full_like(acquisition.probability, math.nan)
    assert torch.equal(network(Acquisition(acquisition.kspace, acquisition.mask, nan)), result)
    assert torch.equal(network(Acquisition(acquisition.kspace, acquisition.mask, None)), result)


@torch.no_grad()
def test_a_new_cascade_is_the_identity():
    """An untrained network returns the zero-filled image, whatever the noise: data consistency has nothing to change."""
    for variance in (0.0, 0.1, None):
        acquisition = scan(noise_variance=variance)
        for network in (Unrolled(2, 8, 2), Unrolled(3, 8, 2, memory=4), Unrolled(2, 8, 2, consistency="hard")):
            assert relative(network(acquisition), ifft2c(acquisition.kspace)) < 1e-5


@torch.no_grad()
def test_zero_input_gives_zero_output():
    zero = torch.zeros((2, 1, 16, 16), dtype=torch.complex64)
    image = small_unrolled()(Acquisition(zero, torch.ones(1, 1, 16, 16)))
    assert torch.equal(image, zero)


@torch.no_grad()
def test_unrolled_with_sensitivity_maps_fits_all_coils():
    """Maps of unit sum of squares and full sampling: the measurement determines the image, but for the tenth of the
    network's own image that consistency keeps."""
    shape, coils = (16, 15), 3
    maps = torch.randn((1, coils, *shape), dtype=torch.complex64, generator=generator(1))
    maps = maps / maps.abs().square().sum(dim=1, keepdim=True).sqrt()
    image = torch.randn((1, 1, *shape), dtype=torch.complex64, generator=generator(2))
    acquisition = Acquisition(fft2c(maps * image), torch.ones(1, 1, *shape), None, maps, 0.0)
    network = small_unrolled()
    result = network(acquisition)
    assert result.shape == (1, 1, *shape)
    alone = network(Acquisition(acquisition.kspace, torch.zeros_like(acquisition.mask), None, maps))
    assert relative(result, image) < 0.15 and relative(alone, image) > 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: Unrolled(2, 8, 2),
        lambda: Unrolled(2, 8, 2, consistency="hard"),
        lambda: Unrolled(3, 8, 2, memory=2),
        lambda: FastMRIVarNet(2, 4, 2),
        lambda: FastMRIUNet(4, 2),
        lambda: UNet2018(12),
        lambda: UNet2018(12, True),
    ],
)
def test_gradients_reach_every_parameter_after_one_step(make):
    """The second gradient: the first stops at last layers that start at zero. DC is not measured here, since a
    constant added to the image changes DC alone, which hard consistency would replace."""
    network = make()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    pair = target_pair(scan((32, 32), dc=False, noise_variance=1e-3), scan((32, 32), seed=7))
    for _ in range(2):
        optimizer.zero_grad()
        loss = weighted_squared_error(network(pair.input), pair)
        loss.backward()
        optimizer.step()
    for name, parameter in network.named_parameters():
        if name == "cascades.0.dc_weight":  # of fastMRI's first cascade, which is given the samples themselves
            continue
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("make", [lambda: Unrolled(2, 8, 2), lambda: UNet2018(12, True)])
def test_training_steps_fit_a_pair(make):
    """Two acquisitions of one object: the loss on the second's samples falls by a quarter at least."""
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        network = make()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    pair = target_pair(scan((32, 32), noise_variance=0.0), scan((32, 32), mask_seed=1))
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = weighted_squared_error(network(pair.input), pair)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]


# The 2018 U-Net, from the table of its paper's appendix: name, input features, output features, size divisor.
TABLE_2018 = [
    ("enc_conv0", 1, 48, 1), ("enc_conv1", 48, 48, 1), ("enc_conv2", 48, 48, 2), ("enc_conv3", 48, 48, 4),
    ("enc_conv4", 48, 48, 8), ("enc_conv5", 48, 48, 16), ("enc_conv6", 48, 48, 32),
    ("dec_conv5a", 96, 96, 16), ("dec_conv5b", 96, 96, 16), ("dec_conv4a", 144, 96, 8), ("dec_conv4b", 96, 96, 8),
    ("dec_conv3a", 144, 96, 4), ("dec_conv3b", 96, 96, 4), ("dec_conv2a", 144, 96, 2), ("dec_conv2b", 96, 96, 2),
    ("dec_conv1a", 97, 64, 1), ("dec_conv1b", 64, 32, 1), ("dec_conv1c", 32, 1, 1),
]  # fmt: skip


@torch.no_grad()
def test_2018_unet_has_the_papers_layers():
    network, rows = UNet(1, 1), []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            assert module.kernel_size == (3, 3) and module.stride == (1, 1)
            module.register_forward_hook(
                lambda m, inputs, output: rows.append((m.in_channels, m.out_channels, 64 // output.shape[-1]))
            )
    network(torch.zeros(1, 1, 64, 64))
    assert rows == [row[1:] for row in TABLE_2018]
    assert sum(p.numel() for p in network.parameters()) == sum(9 * i * o + o for _, i, o, _ in TABLE_2018) == 988_609


@torch.no_grad()
def test_2018_unet_computes_what_the_paper_draws():
    """The forward pass written out with functions, on the network's own weights in order of use."""
    network = UNet(2, 2, channels=12, levels=5)
    used = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.bias.normal_(generator=generator(len(used)))
            module.register_forward_hook(lambda m, *_: used.append(m))
    x = torch.randn((1, 2, 64, 32), generator=generator())
    result = network(x)
    layers = iter(used)
    linear = lambda value: F.conv2d(value, (layer := next(layers)).weight, layer.bias, padding=1)  # noqa: E731
    conv = lambda value: torch.where((out := linear(value)) > 0, out, 0.1 * out)  # noqa: E731
    up = lambda value: value.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)  # noqa: E731
    pool = lambda v: v.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(-1, -2))  # noqa: E731
    pools = [x, pool(conv(conv(x)))]
    for _ in range(4):
        pools.append(pool(conv(pools[-1])))
    deep = conv(pools.pop())
    for _ in range(4):
        deep = conv(conv(torch.cat((up(deep), pools.pop()), dim=1)))
    expected = linear(conv(conv(torch.cat((up(deep), pools.pop()), dim=1))))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_2018_unet_starts_with_he_initialisation():
    """Standard deviation sqrt(2 / (1 + 0.1^2) / fan_in), zero bias; 1 / sqrt(fan_in) for the linear last layer."""
    network = UNet(1, 1)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    for conv in convolutions:
        gain = 1.0 if conv is network.last[-1] else math.sqrt(2 / 1.01)
        expected = gain / math.sqrt(9 * conv.in_channels)
        tolerance = 5 / math.sqrt(2 * conv.weight.numel())
        assert conv.weight.std().item() == pytest.approx(expected, rel=tolerance)
        assert conv.bias.abs().max() == 0


@torch.no_grad()
def test_recipe_shows_its_unet_the_weighted_zero_filled_image():
    """Real: the real part of ifft(M s / p) minus 0.5; complex: both parts in two channels."""
    acquisition = scan(real=True)
    weighted = ifft2c(acquisition.kspace * acquisition.mask / acquisition.probability)
    for network in (small_2018(), small_2018(complex_images=True)):
        seen = []
        network.unet.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        network(acquisition)
        expected = torch.cat((weighted.real, weighted.imag), dim=1) if network.complex_images else weighted.real - 0.5
        torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_recipe_returns_a_real_image_for_a_real_object():
    image = small_2018()(scan(real=True))
    assert image.imag.abs().max() < 1e-5 * image.real.abs().max()


def test_recipe_needs_the_probability_and_says_so():
    acquisition = scan()
    with pytest.raises(ValueError, match="sampling probability"):
        small_2018()(Acquisition(acquisition.kspace, acquisition.mask))


def test_unknown_consistency_is_refused():
    with pytest.raises(ValueError, match="hard or soft"):
        Unrolled(1, 8, 2, consistency="firm")


@pytest.mark.parametrize("kind", sorted(NETWORKS))
@torch.no_grad()
def test_equal_seed_equal_weights_and_use_draws_nothing(kind):
    with torch.random.fork_rng():
        states = []
        for seed in (0, 0, 1):
            torch.random.manual_seed(seed)
            network = NETWORKS[kind](channels=12)
            states.append([p.clone() for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1]))
    assert not all(torch.equal(a, b) for a, b in zip(states[0], states[2]))
    state, acquisition = torch.get_rng_state().clone(), scan((24, 16))
    before = acquisition.kspace.clone()
    assert torch.equal(network.train()(acquisition), network.eval()(acquisition))  # no dropout, no batch statistics
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(acquisition.kspace, before)


@torch.no_grad()
def test_bfloat16_convolutions_leave_the_samples_exact():
    """Under autocast the Fourier transforms stay complex64."""
    acquisition = scan((32, 32), noise_variance=0.0)
    for network in (small_unrolled(memory=2), small_2018()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            image = network(acquisition)
        assert image.dtype == torch.complex64
        assert relative(acquisition.mask * fft2c(image), acquisition.kspace) < 1e-5
        assert relative(image, network(acquisition)) < 0.1


@pytest.mark.parametrize("shape", [(32, 40), (33, 27)])
def test_conjugate_symmetric_samples_give_a_real_image_and_others_do_not(shape):
    network = Unrolled(cascades=2, channels=8)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    image = torch.rand((1, 1, *shape), generator=torch.Generator().manual_seed(2)).to(torch.complex64)
    mask = draw_mask("roulette", shape, 3.0, torch.Generator().manual_seed(3), hermitian=True).mask[None, None]
    phase = torch.exp(torch.tensor(0.7j))
    real = network(Acquisition(fft2c(image) * mask, mask, noise_variance=0.0))
    turned = network(Acquisition(phase * fft2c(image) * mask, mask, noise_variance=0.0))
    smooth = torch.exp(0.1j * torch.arange(shape[1]))
    other = network(Acquisition(fft2c(image * smooth) * mask, mask, noise_variance=0.0))
    assert real.imag.abs().max() < 1e-6 and real.real.abs().max() > 0.1
    torch.testing.assert_close(turned, phase * real, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mask * fft2c(real), fft2c(image) * mask, rtol=1e-3, atol=1e-3)
    assert other.imag.abs().max() > 0.1


def test_nothing_is_said_outside_the_support_of_the_maps():
    maps = torch.randn((1, 3, 16, 20), dtype=torch.complex64, generator=generator(1))
    maps[..., :5] = 0
    mask = (torch.rand((1, 1, 16, 20), generator=generator(2)) < 0.5).float()
    kspace = mask * torch.randn((1, 3, 16, 20), dtype=torch.complex64, generator=generator(3))
    for variance in (None, 0.0, 0.5):
        for network in (small_unrolled(), small_unrolled(consistency="hard")):
            image = network(Acquisition(kspace, mask, None, maps, variance))
            assert not image[..., :5].any() and (image[..., 5:] != 0).all()
