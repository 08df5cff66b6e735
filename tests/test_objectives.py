"""Losses and the gradient penalty: closed forms, finite differences, a float64 reference, and known faults absent."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn


def test_dcgan_losses_are_cross_entropies(cells):
    real, generated = torch.randn(2, 50)
    bce = F.binary_cross_entropy_with_logits
    expected = bce(real, torch.ones(50)) + bce(generated, torch.zeros(50))
    assert torch.allclose(cells.dcgan_critic_loss(real, generated), expected)
    assert torch.allclose(cells.dcgan_generator_loss(generated), bce(generated, torch.ones(50)))
    assert cells.dcgan_critic_loss(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(2 * torch.tensor(2.0).log())
    assert cells.dcgan_critic_loss(torch.tensor([-1e4]), torch.tensor([1e4])).isfinite()


def test_wasserstein_losses(cells):
    real, generated = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, 0.0])
    assert cells.wasserstein_critic_loss(real, generated) == -2.5
    assert cells.wasserstein_generator_loss(generated) == 0.5


def test_clipping(cells):
    critic = nn.Linear(50, 50)
    before = critic.weight.detach().clone()
    cells.clip_weights(critic, 0.05)
    assert critic.weight.equal(before.clamp(-0.05, 0.05)) and critic.bias.abs().max() <= 0.05


class Spy(nn.Module):
    """A critic that remembers what it was shown."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.seen = inner, []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.inner(x)


def smooth_critic(dtype=torch.float64, channels=2):
    """A small critic without kinks, so that finite differences hold."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(channels, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 16, 1), nn.Flatten(0))
    return nn.Sequential(*layers).to(dtype)


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_penalty_of_a_linear_critic(cells, scale):
    u = F.normalize(torch.randn(2 * 6 * 6, dtype=torch.float64), dim=0)
    x, x_tilde = torch.randn(2, 5, 2, 6, 6, dtype=torch.float64)
    penalty = cells.gradient_penalty(lambda x: scale * x.flatten(1) @ u, x, x_tilde)
    assert penalty.item() == pytest.approx((scale - 1) ** 2, abs=1e-12)


def test_penalty_of_a_quadratic_critic_uses_one_norm_per_sample(cells):
    """D(x) = |x|^2 / 2 has gradient x_hat, so the norms differ between samples, over all channels and pixels."""
    x, x_tilde = torch.randn(2, 7, 3, 4, 4, dtype=torch.float64)
    spy = Spy(lambda x: x.flatten(1).square().sum(1) / 2)
    penalty = cells.gradient_penalty(spy, x, x_tilde)
    expected = (spy.seen[0].flatten(1).norm(dim=1) - 1).square().mean()
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-12)


def test_epsilon_is_uniform_and_drawn_for_each_sample(cells):
    """With x = 1 and x_tilde = 0, x_hat is epsilon itself."""
    spy = Spy(lambda x: x.flatten(1).sum(1))
    n = 20_000
    cells.gradient_penalty(spy, torch.ones(n, 1, 2, 2), torch.zeros(n, 1, 2, 2), torch.Generator().manual_seed(0))
    epsilon = spy.seen[0]
    assert (epsilon == epsilon[:, :, :1, :1]).all()  # the same for all pixels of a sample
    values = epsilon[:, 0, 0, 0].sort().values
    assert values[0] >= 0 and values[-1] <= 1 and values.unique().numel() > n / 2
    distance = (values - (torch.arange(n) + 0.5) / n).abs().max()  # Kolmogorov-Smirnov
    assert distance < 1.95 / n**0.5  # p about 0.001 for a uniform


def test_x_hat_lies_between_the_real_and_the_generated_image(cells):
    x, x_tilde = torch.randn(2, 6, 1, 3, 3, dtype=torch.float64)
    spy = Spy(lambda x: x.flatten(1).sum(1))
    cells.gradient_penalty(spy, x, x_tilde)
    along = (spy.seen[0] - x_tilde) / (x - x_tilde)
    assert torch.allclose(along, along[:, :, :1, :1].expand_as(along)) and along.min() >= 0 and along.max() <= 1


def test_penalty_gradient_against_finite_differences(cells):
    critic = smooth_critic()
    x, x_tilde = torch.randn(2, 4, 2, 6, 6, dtype=torch.float64)

    def penalty():
        return cells.gradient_penalty(critic, x, x_tilde, torch.Generator().manual_seed(1))

    for parameter, gradient in zip(
        critic.parameters(), torch.autograd.grad(penalty(), critic.parameters(), allow_unused=True), strict=True
    ):
        if gradient is None:  # the last bias shifts the score and cannot change its slope
            gradient = torch.zeros_like(parameter)
        for index in range(0, parameter.numel(), max(1, parameter.numel() // 5)):
            flat, step, values = parameter.data.view(-1), 1e-6, []
            for sign in (1, -1):
                flat[index] += sign * step
                values.append(penalty().item())
                flat[index] -= sign * step
            numeric = (values[0] - values[1]) / (2 * step)
            assert gradient.flatten()[index].item() == pytest.approx(numeric, rel=1e-5, abs=1e-8)


def test_float32_agrees_with_float64(cells):
    _, critic = cells.build_networks(cells.profile_settings("smoke", "WGAN-GP"), (1, 28, 28), "cpu")
    exact = copy.deepcopy(critic).double()
    x, x_tilde, epsilon = torch.rand(16, 1, 28, 28), torch.rand(16, 1, 28, 28), torch.rand(16, 1, 1, 1)
    gradients = []
    for network, dtype in ((critic, torch.float32), (exact, torch.float64)):
        x_hat = epsilon.to(dtype) * x.to(dtype) + (1 - epsilon.to(dtype)) * x_tilde.to(dtype)
        penalty = (cells.gradient_norms(network, x_hat) - 1).square().mean()
        weights = [p for p in network.parameters() if p.dim() > 1]
        gradients.append(torch.cat([g.flatten().double() for g in torch.autograd.grad(penalty, weights)]))
    assert (gradients[0] - gradients[1]).norm() / gradients[1].norm() < 1e-5


@pytest.mark.parametrize(("shape", "smallest_map"), [((1, 28, 28), 4), ((3, 32, 32), 4), ((3, 28, 28), 7)])
def test_the_gradient_that_is_written_out_is_the_automatic_one(cells, shape, smallest_map):
    """Of each image, and of their norms with respect to every weight; in float64, where no rounding hides a mistake."""
    settings = cells.profile_settings("smoke", "WGAN-GP", smallest_map=smallest_map)
    critic = cells.build_networks(settings, shape, "cpu")[1].double()
    x = torch.rand(5, *shape, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    written = critic.gradient(x)
    assert torch.allclose(written, expected, rtol=1e-10, atol=1e-14) and expected.abs().max() > 0
    weights = [p for p in critic.parameters() if p.dim() > 1]
    gradients = [torch.autograd.grad(g.flatten(1).norm(dim=1).sum(), weights) for g in (written, expected)]
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-14) for a, b in zip(*gradients, strict=True))


def test_with_batch_normalisation_the_gradient_is_automatic(cells):
    """Where images of a batch depend on each other, what is written out would be wrong."""
    _, critic = cells.build_networks(cells.profile_settings("smoke", "WGAN"), (1, 28, 28), "cpu")
    x = torch.rand(5, 1, 28, 28, requires_grad=True)
    (expected,) = torch.autograd.grad(critic(x).sum(), x)
    assert torch.allclose(cells.gradient_norms(critic, x), expected.flatten(1).norm(dim=1))
    assert not torch.allclose(critic.gradient(x), expected, rtol=0.1)


def test_zero_gradient_is_finite(cells):
    critic = smooth_critic(torch.float32)
    nn.init.zeros_(critic[3].weight)  # D is constant: its gradient is exactly 0
    penalty = cells.gradient_penalty(critic, torch.randn(3, 2, 6, 6), torch.randn(3, 2, 6, 6))
    penalty.backward()
    assert penalty.item() == 1
    assert all(p.grad.isfinite().all() for p in critic.parameters() if p.grad is not None)
    assert critic[3].weight.grad is not None


def test_penalty_is_finite_in_bfloat16(cells):
    settings = cells.profile_settings("smoke", "WGAN-GP")
    networks = cells.build_networks(settings, (1, 28, 28), "cpu")
    run = cells.new_run(settings, networks, torch.device("cpu"), "bfloat16")
    x = 200 * torch.randn(16, 1, 28, 28)
    loss, real, _ = cells.critic_objective(run, x, -x)
    loss.backward()
    assert loss.isfinite() and loss.dtype == torch.float32 and real.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in run.critic.parameters())
