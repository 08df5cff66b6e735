"""Networks: the authors' parameter counts, shapes at every size, where batch normalisation is."""

import math

import pytest
import torch
from torch import nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def build(cells, method="WGAN-GP", shape=(3, 32, 32), **changes):
    settings = cells.profile_settings("full", method, **changes)
    return cells.build_networks(settings, shape, "cpu")


def test_counts_equal_the_authors_on_cifar10(cells):
    generator, critic = build(cells, width=128)
    assert cells.count_parameters(generator) == 5_179_907
    assert cells.count_parameters(critic) == 4_114_689


def test_counts_equal_the_authors_on_28_pixels(cells):
    generator, critic = build(cells, shape=(1, 28, 28), width=64)
    norms = sum(p.numel() for m in generator.modules() if isinstance(m, NORMS) for p in m.parameters())
    assert cells.count_parameters(critic) == 1_030_145
    assert cells.count_parameters(generator) - norms == 1_554_177  # the MNIST script's generator has no normalisation


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 44, 44)])
@pytest.mark.parametrize("smallest_map", [4, 7])
def test_shapes_and_ranges(cells, shape, smallest_map):
    generator, critic = build(cells, shape=shape, width=8, smallest_map=smallest_map)
    images = generator(torch.randn(3, 128))
    assert images.shape == (3, *shape) and images.abs().max() <= 1 and images.dtype == torch.float32
    assert critic(images).shape == (3,)


def test_map_sides(cells):
    assert cells.map_sides(32, 4) == [32, 16, 8, 4]
    assert cells.map_sides(28, 4) == [28, 14, 7, 4]
    with pytest.raises(ValueError, match="smallest_map is 28"):
        cells.map_sides(28, 28)


def test_the_way_from_4_to_7_equals_the_authors_crop(cells):
    generator, _ = build(cells, shape=(1, 28, 28), width=8)
    ours = next(layer for layer in generator.layers if isinstance(layer, nn.ConvTranspose2d))
    full = nn.ConvTranspose2d(ours.in_channels, ours.out_channels, 5, 2, 2, output_padding=1)
    full.load_state_dict(ours.state_dict())
    x = torch.randn(2, ours.in_channels, 4, 4)
    assert ours(x).shape[2:] == (7, 7) and torch.allclose(full(x)[:, :, :7, :7], ours(x), atol=1e-6)


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32)])
def test_our_own_layers_equal_pytorchs(cells, channels, side):
    """Values and gradients, the second one through the penalty's path included."""
    torch.manual_seed(0)
    for ours, plain, extra, x in (
        (cells.ImageConv(channels, 6, 5, 2, 2), nn.Conv2d, {}, torch.randn(3, channels, side, side)),
        (
            cells.ImageConvTranspose(6, channels, 5, 2, 2, output_padding=1), nn.ConvTranspose2d,
            {"output_padding": 1}, torch.randn(3, 6, side // 2, side // 2),
        ),
        (cells.ConvTranspose(6, channels, 5, 2, 2), nn.ConvTranspose2d, {}, torch.randn(3, 6, 4, 4)),
        (
            cells.ConvTranspose(6, channels, 5, 2, 2, output_padding=1), nn.ConvTranspose2d,
            {"output_padding": 1}, torch.randn(3, 6, 7, 7),
        ),
    ):  # fmt: skip
        theirs = plain(ours.in_channels, ours.out_channels, 5, 2, 2, **extra)
        theirs.load_state_dict(ours.state_dict())
        found = []
        for layer in (ours, theirs):
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            (gradient,) = torch.autograd.grad(y.sin().sum(), leaf, create_graph=True)
            gradient.square().sum().backward()
            found.append((y, gradient, leaf.grad, layer.weight.grad, layer.bias.grad))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("method", "in_critic"), [("DCGAN", 2), ("WGAN", 2), ("WGAN-GP", 0)])
def test_where_batch_normalisation_is(cells, method, in_critic):
    generator, critic = build(cells, method)
    assert sum(isinstance(m, NORMS) for m in generator.modules()) == 3
    assert sum(isinstance(m, NORMS) for m in critic.modules()) == in_critic


def test_penalised_critic_scores_each_image_alone_and_has_no_sigmoid(cells):
    _, critic = build(cells)
    images = torch.randn(4, 3, 32, 32)
    assert torch.allclose(critic(images)[:2], critic(images[:2]), atol=1e-6)
    with torch.no_grad():
        critic.head.weight.mul_(1000)
    assert critic(images).abs().max() > 1


def test_initial_spread_is_the_authors(cells):
    generator, critic = build(cells, width=128)
    conv, deconv, linear = critic.layers[2], generator.layers[4], generator.layers[0]
    # tflib: std = sqrt(4 / (fan_in + fan_out)); the fan on the strided side is divided by stride^2 = 4
    assert conv.weight.std().item() == pytest.approx(math.sqrt(4 / (128 * 25 + 256 * 25 / 4)), rel=0.02)
    assert deconv.weight.std().item() == pytest.approx(math.sqrt(4 / (512 * 25 / 4 + 256 * 25)), rel=0.02)
    assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / (128 + 8192)), rel=0.02)
    assert all(layer.bias.abs().max() == 0 for layer in (conv, deconv, linear))
    assert conv.weight.abs().max().item() == pytest.approx(conv.weight.std().item() * math.sqrt(3), rel=0.02)  # uniform


def test_seed_determines_the_networks(cells):
    first, again, other = (build(cells, width=8, seed=seed) for seed in (1, 1, 2))
    same = [
        p.equal(q)
        for a, b in zip(first, again, strict=True)
        for p, q in zip(a.parameters(), b.parameters(), strict=True)
    ]
    assert all(same)
    assert not first[0].layers[0].weight.equal(other[0].layers[0].weight)
