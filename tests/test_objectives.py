"""Losses and penalty: closed forms, finite differences, float64, and known faults absent."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

F64 = torch.float64
FORMS = ("input_gradient", "written_out_gradient")


def test_losses_equal_their_definitions(cells):
    real, generated = torch.randn(2, 50)
    bce = F.binary_cross_entropy_with_logits
    expected = bce(real, torch.ones(50)) + bce(generated, torch.zeros(50))
    assert torch.allclose(cells.dcgan_critic_loss(real, generated), expected)
    assert torch.allclose(cells.dcgan_generator_loss(generated), bce(generated, torch.ones(50)))
    assert cells.dcgan_critic_loss(torch.tensor([-1e4]), torch.tensor([1e4])).isfinite()
    real, generated = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, 0.0])
    assert cells.wasserstein_critic_loss(real, generated) == -2.5
    assert cells.wasserstein_generator_loss(generated) == 0.5


def test_clipping_limits_every_parameter(cells):
    critic = nn.Linear(50, 50)
    before = [weight.detach().clone() for weight in critic.parameters()]
    cells.clip_weights(critic, 0.05)
    for now, then in zip(critic.parameters(), before, strict=True):
        assert now.equal(then.clamp(-0.05, 0.05)) and not now.equal(then)


def watched(critic):
    """(the critic, a list of what it has been shown)."""
    seen = []
    return lambda x: (seen.append(x.detach().clone()), critic(x))[1], seen


def test_penalty_of_a_quadratic_critic_uses_one_norm_per_sample(cells):
    """D(x) = |x|^2 / 2 has gradient x_hat: its norms differ, over all channels and pixels."""
    x, x_tilde = torch.randn(2, 7, 3, 4, 4, dtype=F64)
    critic, seen = watched(lambda x: x.flatten(1).square().sum(1) / 2)
    penalty = cells.gradient_penalty(critic, x, x_tilde)
    expected = (seen[0].flatten(1).norm(dim=1) - 1).square().mean()
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-12)


def test_epsilon_is_uniform_and_drawn_for_each_sample(cells):
    """It is the share of the way from x_tilde to x, the same for all pixels of a sample."""
    critic, seen = watched(lambda x: x.flatten(1).sum(1))
    n, rng = 20_000, torch.Generator().manual_seed(0)
    x, x_tilde = 1 + torch.rand(n, 1, 2, 2, dtype=F64), -torch.rand(n, 1, 2, 2, dtype=F64)
    cells.gradient_penalty(critic, x, x_tilde, rng)
    epsilon = (seen[0] - x_tilde) / (x - x_tilde)
    assert torch.allclose(epsilon, epsilon[:, :, :1, :1].expand_as(epsilon))
    values = epsilon[:, 0, 0, 0].sort().values
    assert values[0] >= -1e-12 and values[-1] <= 1 + 1e-12
    distance = (values - (torch.arange(n) + 0.5) / n).abs().max()  # Kolmogorov-Smirnov
    assert distance < 1.95 / n**0.5  # p about 0.001 for a uniform


def test_the_penaltys_gradient_equals_finite_differences(cells):
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 16, 1), nn.Flatten(0))
    critic = nn.Sequential(*layers).to(F64)  # without kinks
    x, x_tilde = torch.randn(2, 4, 2, 6, 6, dtype=F64)

    def penalty():
        return cells.gradient_penalty(critic, x, x_tilde, torch.Generator().manual_seed(1))

    weights = list(critic.parameters())
    gradients = torch.autograd.grad(penalty(), weights, materialize_grads=True)
    assert not gradients[-1].any() and gradients[0].any()  # the last bias shifts the score alone
    for parameter, gradient in zip(weights, gradients, strict=True):
        for index in range(0, parameter.numel(), max(1, parameter.numel() // 5)):
            flat, step, values = parameter.data.view(-1), 1e-6, []
            for sign in (1, -1):
                flat[index] += sign * step
                values.append(penalty().item())
                flat[index] -= sign * step
            numeric = (values[0] - values[1]) / (2 * step)
            assert gradient.flatten()[index].item() == pytest.approx(numeric, rel=1e-5, abs=1e-8)


def penalty_and_slopes(cells, critic, x, x_tilde, gradient):
    """The penalty, and its gradient by all weights of a critic in one vector."""
    weights = [p for p in critic.parameters() if p.dim() > 1]
    rng = torch.Generator().manual_seed(3)
    penalty = cells.gradient_penalty(critic, x, x_tilde, rng, gradient)
    slopes = torch.autograd.grad(penalty, weights)
    return penalty, torch.cat([slope.flatten() for slope in slopes])


@pytest.mark.parametrize(
    ("shape", "smallest_map"), [((1, 28, 28), 4), ((3, 32, 32), 4), ((3, 28, 28), 7)]
)
def test_the_gradient_that_is_written_out_is_the_definition(cells, shape, smallest_map):
    """And so are the penalty's derivatives by every weight; float64 would show any mistake."""
    settings = cells.profile_settings("smoke", "WGAN-GP", smallest_map=smallest_map)
    critic = cells.build_networks(settings, shape, "cpu")[1].double()
    for layer in critic.layers:
        if isinstance(layer, nn.Conv2d):  # zero at first: now the slopes met depend on them
            nn.init.normal_(layer.bias, std=0.1)
    x, x_tilde = torch.rand(2, 5, *shape, dtype=F64) - 0.5
    forms = [getattr(cells, form) for form in FORMS]
    defined, written = (form(critic, x) for form in forms)
    assert written.shape == x.shape and defined.abs().max() > 0
    torch.testing.assert_close(written, defined, rtol=1e-10, atol=1e-14)
    theirs, ours = (penalty_and_slopes(cells, critic, x, x_tilde, form) for form in forms)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
    assert theirs[1].abs().max() > 0


@pytest.mark.parametrize("form", FORMS)
def test_the_penalty_of_a_constant_critic_is_1_and_has_a_finite_gradient(cells, run, form):
    """A constant critic has gradient exactly 0, where a norm has no derivative."""
    critic = run().critic
    nn.init.zeros_(critic.head.weight)
    x, x_tilde = torch.randn(2, 3, 1, 28, 28)
    penalty = cells.gradient_penalty(critic, x, x_tilde, gradient=getattr(cells, form))
    penalty.backward()
    assert penalty.item() == 1 and critic.head.weight.grad is not None
    assert all(p.grad.isfinite().all() for p in critic.parameters() if p.grad is not None)


def test_only_penalised_critics_are_written_out(cells, tiny, tmp_path):
    """With batch normalisation, images of a batch depend on each other, and it would be wrong."""
    for method, form in (("WGAN", FORMS[0]), ("WGAN-GP", FORMS[1])):
        run = cells.start_run(tmp_path / method, cells.profile_settings("smoke", method), tiny)
        assert run.gradient is getattr(cells, form)
        x = torch.rand(5, 1, 28, 28)
        both = [getattr(cells, form)(run.critic, x) for form in FORMS]
        assert torch.allclose(*both, rtol=1e-4, atol=1e-7) == (method == "WGAN-GP")


@pytest.mark.parametrize("form", FORMS)
def test_penalty_is_finite_in_bfloat16(cells, run, form):
    r = run()
    r.precision, r.gradient = "bfloat16", getattr(cells, form)
    x = 200 * torch.randn(16, 1, 28, 28)
    with r.autocast():
        assert r.gradient(r.critic, x).dtype == torch.float32
        loss, real, _ = cells.critic_loss(r, x, -x)
    loss.backward()
    assert loss.isfinite() and loss.dtype == real.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in r.critic.parameters())
