"""Networks: the authors' parameter counts, shapes at every size, where batch normalisation is."""

import math

import pytest
import torch
from torch import nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
LINEAR = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def build(cells, method="WGAN-GP", shape=(3, 32, 32), **changes):
    settings = cells.profile_settings("paper", method, **changes)
    return cells.build_networks(settings, shape, "cpu")


def count(network, kinds=nn.Module):
    layers = [layer for layer in network.modules() if isinstance(layer, kinds)]
    return sum(p.numel() for layer in layers for p in layer.parameters(recurse=False))


def test_counts_equal_the_authors(cells):
    """Less the generator's biases before a batch normalisation, which would take them away."""
    generator, critic = build(cells, width=128)  # the CIFAR-10 script's
    assert count(generator) == 5_171_331 == 5_179_907 - 8_576
    assert count(critic) == 4_114_689
    generator, critic = build(cells, shape=(1, 28, 28), width=64)  # MNIST's, without normalisation
    assert count(critic) == 1_030_145
    assert count(generator) - count(generator, NORMS) == 1_554_177 - 8_576 // 2


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 44, 44)])
@pytest.mark.parametrize("smallest_map", [4, 7])
def test_images_have_the_shape_and_range_that_the_critic_takes(cells, shape, smallest_map):
    generator, critic = build(cells, shape=shape, width=8, smallest_map=smallest_map)
    images = generator(10 * torch.randn(3, 128))
    assert images.shape == (3, *shape) and images.dtype == torch.float32
    assert 0.5 < images.abs().max() <= 1
    assert critic(images).shape == (3,)


def test_maps_double_from_the_coarsest_to_the_image(cells):
    for (side, smallest), sides in {(32, 4): [32, 16, 8, 4], (28, 4): [28, 14, 7, 4]}.items():
        assert cells.map_sides(side, smallest) == sides
    with pytest.raises(ValueError, match="smallest_map is 28; allowed: "):
        cells.map_sides(28, 28)


def test_the_way_from_4_to_7_equals_the_authors_crop(cells):
    generator, _ = build(cells, shape=(1, 28, 28), width=8)
    ours = next(layer for layer in generator.layers if isinstance(layer, nn.ConvTranspose2d))
    full = nn.ConvTranspose2d(32, 16, 5, 2, 2, output_padding=1, bias=False)
    full.load_state_dict(ours.state_dict())
    x = torch.randn(2, 32, 4, 4)
    assert ours(x).shape[2:] == (7, 7)
    assert torch.allclose(full(x)[:, :, :7, :7], ours(x), atol=1e-6)


@pytest.mark.parametrize(("method", "in_critic"), [("DCGAN", 2), ("WGAN", 2), ("WGAN-GP", 0)])
def test_batch_normalisation_is_where_the_paper_has_it_and_nowhere_else(cells, method, in_critic):
    """No bias before one, a bias everywhere else; without one, images are scored alone."""
    networks = build(cells, method)
    for network, expected in zip(networks, (3, in_critic), strict=True):
        layers = [*network.layers, nn.Identity()]
        followed = [isinstance(layer, NORMS) for layer in layers[1:]]
        assert sum(followed) == expected
        for layer, normalised in zip(layers, followed, strict=False):
            assert not isinstance(layer, LINEAR) or (layer.bias is None) == normalised
    critic, images = networks[1], torch.randn(4, 3, 32, 32)
    alone = torch.allclose(critic(images)[:2], critic(images[:2]), atol=1e-6)
    assert alone == (method == "WGAN-GP")
    critic.head.weight.data.mul_(1000)
    assert critic(images).abs().max() > 1  # there is no sigmoid
    assert critic.eval()(images).equal(critic.train()(images))  # always the batch's statistics


def test_nonlinearities_are_the_authors(cells):
    generator, critic = build(cells)
    slopes = [layer.negative_slope for layer in critic.layers if isinstance(layer, nn.LeakyReLU)]
    assert slopes == [0.2] * 3 and [type(layer) for layer in generator.layers].count(nn.ReLU) == 3


def test_initial_spread_is_the_authors(cells):
    """tflib: std = sqrt(4 / (fan_in + fan_out)); the fan on the strided side divided by 2^2."""
    generator, critic = build(cells, width=128)
    for layer, fans in (
        (critic.layers[2], 128 * 25 + 256 * 25 / 4),
        (generator.layers[4], 512 * 25 / 4 + 256 * 25),
        (generator.layers[0], (128 + 8192) * 2),
        (critic.head, (8192 + 1) * 2),
    ):
        expected = math.sqrt(4 / fans)
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.02)
        largest = layer.weight.abs().max().item()
        assert largest == pytest.approx(expected * math.sqrt(3), rel=0.02)  # uniform
        assert layer.bias is None or not layer.bias.any()


def test_the_seed_determines_the_networks(cells):
    first, again, other = (
        torch.cat([p.flatten() for net in build(cells, width=8, seed=s) for p in net.parameters()])
        for s in (1, 1, 2)
    )
    assert first.equal(again) and (first != other).float().mean() > 0.9
