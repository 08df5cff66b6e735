"""The paper's experiments: each number on a case whose answer is known."""

import json
import math

import numpy as np
import pytest
import torch
from notebook_cells import NOTEBOOK, load_cells
from scipy.optimize import linear_sum_assignment
from scipy.stats import spearmanr
from torch import nn

CPU = torch.device("cpu")
PUBLISHED_CLAIMS = NOTEBOOK.parent / "saved_models" / "published" / "fashion-mnist" / "claims.md"


def points(n, seed=0):
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(seed))


# 9.1 value surfaces


def test_transport_cost_of_two_shifted_squares(cells):
    """Moving a unit square by (3, 4) costs 5, and no plan does better."""
    square = points(200)
    cost, _ = cells.transport_cost(square, square + torch.tensor([3.0, 4.0]))
    assert cost == pytest.approx(5, abs=1e-3)


def test_transport_cost_where_the_pairing_matters(cells):
    """On a line sorted pairs are best, whatever the order in which the points come; ties do no harm."""
    real, generated = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([[4.0], [1.0], [3.0], [2.0]])
    assert cells.transport_cost(real, generated)[0] == pytest.approx(1, abs=1e-3)
    assert cells.transport_cost(real, real.flip(0))[0] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("name", ["8 Gaussians", "25 Gaussians", "Swiss roll"])
def test_transport_cost_equals_scipys_assignment(cells, name):
    rng = torch.Generator().manual_seed(1)
    real = cells.TOY_DATA[name](300, rng)
    generated = cells.TOY_DATA[name](300, rng) + torch.randn(300, 2, generator=rng)
    cost, potential = cells.transport_cost(real, generated)
    distance = torch.cdist(real.double(), generated.double(), compute_mode="donot_use_mm_for_euclid_dist").numpy()
    best = distance[linear_sum_assignment(distance)].mean()
    assert best - 1e-9 <= cost <= best + 1e-3
    of_real, of_generated = potential[:300], potential[300:]
    assert (of_real[:, None] - of_generated <= distance + 1e-9).all()  # never steeper than 1 between the two samples
    assert best - 1e-3 <= of_real.mean() - of_generated.mean() <= best + 1e-9  # and worth the whole distance


def test_the_perfect_critic_gets_the_whole_distance_at_any_scale(cells):
    real = points(200)
    shift = torch.tensor([3.0, 0.0])
    for scale in (1.0, 0.01, 70.0):
        found = cells.judge_surface(lambda x, scale=scale: -scale * x[:, 0], real, real + shift)
        assert found["exact"] == pytest.approx(3, abs=2e-3)
        assert found["share"] == pytest.approx(1, abs=1e-2)
        assert found["explained"] > 0.95


def test_poor_critics_get_little(cells):
    real = points(200)
    generated = real + torch.tensor([3.0, 0.0])
    assert cells.judge_surface(lambda x: x[:, 0], real, generated)["share"] < -0.9  # the sign reversed
    assert abs(cells.judge_surface(lambda x: x[:, 1], real, generated)["share"]) < 1e-6  # the wrong direction
    wave = cells.judge_surface(lambda x: -x[:, 0] + torch.sin(40 * x[:, 1]), real, generated)
    assert wave["share"] < 0.2  # steep somewhere: what it says must be divided by that slope


@pytest.mark.parametrize(
    ("name", "centres", "spread"), [("8 Gaussians", 8, 0.02 / 1.414), ("25 Gaussians", 25, 0.05 / 2.828)]
)
def test_gaussian_mixtures_are_the_scripts(cells, name, centres, spread):
    drawn = cells.TOY_DATA[name](20_000, torch.Generator().manual_seed(0))
    if name == "8 Gaussians":
        angle = torch.arange(8) * math.pi / 4
        expected = 2 * torch.stack([angle.cos(), angle.sin()], 1) / 1.414
    else:
        side = torch.arange(-2, 3) * 2 / 2.828
        expected = torch.cartesian_prod(side, side)
    distance, which = torch.cdist(drawn, expected).min(1)
    share = which.bincount(minlength=centres) / len(drawn)
    assert ((share * centres - 1).abs() < 0.25).all()
    assert distance.square().mean().sqrt() == pytest.approx(spread * math.sqrt(2), rel=0.05)


def test_swiss_roll_is_a_spiral(cells):
    drawn = cells.swiss_roll(20_000, torch.Generator().manual_seed(0)) * 7.5
    radius = drawn.norm(dim=1)
    t = torch.linspace(1.5 * math.pi, 4.5 * math.pi, 2000)
    spiral = torch.stack([t * t.cos(), t * t.sin()], 1)
    assert torch.cdist(drawn, spiral).min(1).values.mean() < 0.25
    assert radius.min() > 1.5 * math.pi - 1.5 and radius.max() < 4.5 * math.pi + 1.5


def test_noisy_data_is_the_data_plus_unit_noise(cells):
    data = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0], [100.0, 100.0]])
    x_tilde = cells.NoisyData(data)(torch.randn(40_000, 3, generator=torch.Generator().manual_seed(0))).detach()
    distance, row = torch.cdist(x_tilde, data).min(1)
    assert (row.bincount() / 40_000 - 0.25).abs().max() < 0.01
    noise = x_tilde - data[row]
    assert noise.mean(0).abs().max() < 0.02 and (noise.std(0) - 1).abs().max() < 0.02 and distance.max() < 10
    edges = cells.NoisyData(data)(torch.tensor([[-40.0, 0, 0], [40.0, 0, 0]]))  # no row is out of range
    assert edges.tolist() == [[0, 0], [100, 100]]


@pytest.mark.parametrize("method", ["WGAN", "WGAN-GP"])
def test_fitting_a_critic_leaves_the_generator_alone(cells, method):
    run = cells.fit_critic(method, cells.swiss_roll, seed=0, width=8, steps=3, learning_rate=1e-3)
    assert run.generator.scale.item() == 1 and run.iteration == 3
    if method == "WGAN":
        assert max(w.abs().max() for w in run.critic.parameters()) <= run.settings.clip
    again = cells.fit_critic(method, cells.swiss_roll, seed=0, width=8, steps=3, learning_rate=1e-3)
    assert all(a.equal(b) for a, b in zip(run.critic.parameters(), again.critic.parameters(), strict=True))


def test_a_fitted_critic_learns_the_surface(cells):
    """With the penalty, a few hundred steps on data plus noise find most of the potential; one step finds little."""
    rng = torch.Generator().manual_seed(5)
    real = cells.eight_gaussians(300, rng)
    generated = cells.eight_gaussians(300, rng) + torch.randn(300, 2, generator=rng)
    worth = [
        cells.judge_surface(
            cells.fit_critic("WGAN-GP", cells.eight_gaussians, 0, 64, steps, 2e-3).critic, real, generated
        )
        for steps in (1, 300)
    ]
    assert worth[1]["explained"] > 0.6 > worth[0]["explained"]
    assert worth[1]["share"] <= 1.001


# 9.2 gradients and weights


def deep_run(cells, gain, depth=6, width=4):
    """A Run with a critic of linear layers gain * identity, positive inputs, so that every ReLU is the identity."""
    layers = []
    for _ in range(depth):
        layer = nn.Linear(width, width)
        layer.weight.data = gain * torch.eye(width)
        layer.bias.data.zero_()
        layers += [layer, nn.ReLU()]
    head = nn.Linear(width, 1)
    head.weight.data.fill_(1.0)
    critic = nn.Sequential(*layers, head, nn.Flatten(0))
    settings = cells.replace(cells.TOY["WGAN"], latent_size=width)
    return cells.new_run(settings, (nn.Linear(width, width), critic), CPU)


@pytest.mark.parametrize("gain", [0.1, 1.0, 10.0])
def test_slope_of_layers_scaled_on_purpose(cells, gain):
    """Every layer multiplies the gradient by `gain`, so log10 of its norm moves by log10(gain) for each layer back."""
    run = deep_run(cells, gain)
    norms = cells.layer_gradient_norms(run, 1 + torch.rand(32, 4), 1 + torch.rand(32, 4))
    assert len(norms) == 6
    assert cells.norm_slope(norms) == pytest.approx(math.log10(gain), abs=1e-4)
    # the last layer: d loss / d h = -1/n for real, +1/n for generated, in each of 4 coordinates
    assert norms[-1] == pytest.approx(math.sqrt(2 * 32 * 4) / 32, rel=1e-5)
    assert not [layer for layer in run.critic if layer._forward_hooks]


def test_gradient_norms_do_not_underflow(cells):
    norms = cells.layer_gradient_norms(deep_run(cells, 1e-5), 1 + torch.rand(8, 4), 1 + torch.rand(8, 4))
    assert min(norms) > 0 and cells.norm_slope(norms) == pytest.approx(-5, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "slope"),
    [
        ("clipping, c = 0.1", -0.18),
        ("clipping, c = 0.01", -1.11),
        ("clipping, c = 0.001", -2.10),
        ("gradient penalty", 0),
    ],
)
def test_slopes_before_training(cells, name, slope):
    """The slopes that section 9.2 gives for critics as they are drawn, clipped once and never trained."""
    slopes = []
    for seed in range(5):
        rng = torch.Generator().manual_seed(seed)
        points = cells.swiss_roll(2000, rng)
        settings = cells.replace(cells.CONSTRAINTS[name], latent_size=2)
        run = cells.new_run(settings, [cells.relu_mlp(2, n, 128, 12, rng) for n in (2, 1)], CPU)
        if settings.clip:
            cells.clip_weights(run.critic, settings.clip)
        with torch.no_grad():
            x_tilde = run.generator(run.noise(1000))
        slopes.append(cells.norm_slope(cells.layer_gradient_norms(run, points[:1000], x_tilde)))
    assert sum(slopes) / len(slopes) == pytest.approx(slope, abs=0.01)


def test_share_at_limit(cells):
    run = deep_run(cells, 1.0, depth=1, width=2)  # weights: 1 0 0 1, 1 1
    run.settings = cells.replace(run.settings, clip=1.0)
    assert cells.share_at_limit(run) == pytest.approx(4 / 6)
    run.settings = cells.replace(run.settings, clip=2.0)
    assert cells.share_at_limit(run) == 0
    run.settings = cells.TOY["WGAN-GP"]  # no limit: of each layer's own largest weight
    next(run.critic.parameters()).data.mul_(8)
    assert cells.share_at_limit(run) == pytest.approx(4 / 6)


def test_a_clipped_critic_starts_inside_its_limits(cells):
    """Before training its weights fill the range evenly: the first clipping changes nothing, 1% are at the limit."""
    run = cells.fit_critic("WGAN", cells.swiss_roll, seed=0, width=128, steps=0, learning_rate=1e-3)
    before = [w.clone() for w in run.critic.parameters()]
    cells.clip_weights(run.critic, run.settings.clip)
    assert all(torch.allclose(w, b, atol=1e-8) for w, b in zip(run.critic.parameters(), before, strict=True))
    assert cells.share_at_limit(run) == pytest.approx(0.01, abs=0.003)


def test_relu_mlp_has_the_depth_and_the_spread_it_says(cells):
    net = cells.relu_mlp(2, 1, 256, 12, torch.Generator().manual_seed(0))
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    assert len(linear) == 12 and sum(isinstance(layer, nn.ReLU) for layer in net) == 11
    assert net(torch.randn(5, 2)).shape == (5,)
    assert cells.relu_mlp(2, 3, 8, 4, torch.Generator())(torch.randn(5, 2)).shape == (5, 3)
    assert linear[5].weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.02)  # He
    assert not any(layer.bias.any() for layer in linear)


# 9.3 to 9.5 curves


def test_rank_correlation_equals_scipys(cells):
    a, b = np.random.default_rng(0).normal(size=(2, 30))
    assert cells.rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert cells.rank_correlation(a, a**3) == pytest.approx(1)
    assert cells.rank_correlation(a, -a) == pytest.approx(-1)
    assert cells.trend([5, 6, 9, 70]) == pytest.approx(1)


def test_stage_losses_average_the_records_since_the_stage_before(cells):
    saved = {
        "history": {"iteration": [1, 2, 3, 4, 6], "critic_loss_train": [-1.0, -3.0, -5.0, -7.0, -11.0]},
        "quality": {"iteration": [2.0, 4.0, 6.0]},
    }
    assert cells.stage_losses(saved, "train") == [2, 6, 11]


def test_quality_at_interpolates(cells):
    table = {"iteration": [10.0, 20.0], "seconds": [1.0, 3.0], "Frechet distance": [8.0, 4.0]}
    assert cells.quality_at(table, "iteration", 15) == 6
    assert cells.quality_at(table, "seconds", 1.5) == 7


def test_overfitting_numbers_of_curves_that_part(cells):
    """Training rises by 1 per record, held out falls by 1: the gap grows from about 0 to about 2 * 100."""
    rising = np.arange(100.0)
    history = {"iteration": list(range(100)), "critic_loss_train": -rising, "critic_loss_held_out": rising}
    curves, numbers = cells.overfitting_numbers(history)
    assert len(curves["train"]) == 10 and curves["train"][0] == pytest.approx(4.5)
    assert numbers["first gap"] == pytest.approx(9) and numbers["last gap"] == pytest.approx(189)
    assert numbers["train"] == pytest.approx(1) and numbers["held_out"] == pytest.approx(-1)


def test_nearer_share_knows_copies_from_strangers(cells):
    rng = torch.Generator().manual_seed(0)
    known, unseen, fresh = (torch.randn(2000, 20, generator=rng) for _ in range(3))
    same = torch.nn.Identity()
    copies = known[:500] + 0.01 * torch.randn(500, 20, generator=rng)
    assert cells.nearer_share(copies, known, unseen, same) == 1
    assert cells.nearer_share(copies, unseen, known, same) == 0
    assert cells.nearer_share(fresh, known, unseen, same) == pytest.approx(0.5, abs=0.04)


def test_some_images_are_always_the_same_and_only_training_images(cells, tiny):
    few, again = cells.some_images(tiny, 50), cells.some_images(tiny, 50)
    assert few.train.equal(again.train) and few.test is tiny.test and len(few.train_labels) == 50
    pairs = (few.train[:, None].flatten(2) == tiny.train.flatten(1)).all(2)  # [50, 200]
    assert (pairs.sum(1) == 1).all() and (pairs.sum(0) <= 1).all()
    assert few.train_labels.equal(tiny.train_labels[pairs.int().argmax(1)])


# how results are kept and put into words


def test_an_experiment_is_kept_until_its_size_changes(cells, tmp_path, capsys):
    calls = []

    def measure(case, n):
        calls.append((case, n))
        if (case, n) == ("b", 3) and len(calls) < 7:
            raise KeyboardInterrupt
        return {"case": case, "n": n}

    def experiment(n, start="resume"):
        cells.run_experiment("measured", measure, [("a",), ("b",)], {"n": n, "seeds": 1}, tmp_path, start)

    experiment(1)
    experiment(1)
    assert "measured.pt: 2 of 2 were measured before" in capsys.readouterr().out
    experiment(2)
    assert calls == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    with pytest.raises(KeyboardInterrupt):
        experiment(3)
    assert calls[4:] == [("a", 3), ("b", 3)]
    assert len(cells.read_saved(tmp_path / "measured.pt", cells.EXPERIMENT)["results"]) == 1
    experiment(3)  # goes on where it was interrupted
    assert calls[6:] == [("b", 3)]
    assert cells.read_saved(tmp_path / "measured.pt", cells.EXPERIMENT)["results"][1] == {"case": "b", "n": 3}
    experiment(3, "afresh")
    assert calls[7:] == [("a", 3), ("b", 3)]
    for cases in ([("a",), ("b",), ("c",)], [("c",), ("a",)]):  # more of them: the first are kept; others: none is
        cells.run_experiment("measured", measure, cases, {"n": 3, "seeds": 1}, tmp_path, "resume")
    assert calls[9:] == [("c", 3), ("c", 3), ("a", 3)]
    (tmp_path / "measured.pt").write_bytes(b"no experiment")
    with pytest.raises(ValueError, match=r"measured\.pt is no readable checkpoint"):
        experiment(3)


def test_results_that_are_not_there_or_unfinished_are_named(cells, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cells, "models", tmp_path)
    assert cells.read_results("no_such_experiment") == []
    assert "no_such_experiment: no finished results in" in capsys.readouterr().out
    saved = {"cases": [["a"], ["b"]], "size": {"n": 1}, "processor": "abacus", "results": [{"n": 1}]}
    cells.write_atomically(tmp_path / "some.pt", saved)
    assert cells.read_results("some") == []
    cells.write_atomically(tmp_path / "some.pt", saved | {"results": [{"n": 1}, {"n": 2}]})
    assert len(cells.read_results("some")) == 2 and "n 1; abacus" in capsys.readouterr().out


def test_what_is_missing_of_several_trainings_is_named(cells, run, tiny, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cells, "models", tmp_path)
    for method in ("DCGAN", "WGAN"):
        r = run(method, iterations=1)
        cells.iterate(r, tiny.train)
        cells.save_run(r, tmp_path)
    assert len(cells.read_finished("DCGAN.pt", "WGAN.pt")) == 2
    capsys.readouterr()
    assert cells.read_finished("DCGAN.pt", "WGAN.pt", "rmsprop/WGAN-GP.pt") == []
    assert "Left out: needs rmsprop/WGAN-GP.pt, finished, in" in capsys.readouterr().out
    cells.save_run(run("WGAN", iterations=2), tmp_path)
    assert cells.read_finished("DCGAN.pt", "WGAN.pt") == []
    assert "Left out: needs DCGAN.pt, WGAN.pt, finished, in" in capsys.readouterr().out


def test_verdicts(cells):
    assert cells.verdict({"a": True, "b": True}) == "reproduced (2 of 2)"
    assert cells.verdict({"a": True, "b": False}) == "partly (1 of 2)"
    assert cells.verdict({"a": False, "b": False}) == "not reproduced (0 of 2)"


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"), [(0, 0, 1), (0, 9, 2 / 512), (9, 0, 2 / 512), (2, 4, 44 / 64), (3, 3, 1)]
)
def test_sign_test_counts_what_one_has_alone(cells, only_a, only_b, p):
    """What both have, or neither, says nothing: 2 against 4 is 2 * (1 + 6 + 15) / 2^6."""
    a = np.array([True] * only_a + [False] * only_b + [True, True, False])
    b = np.array([False] * only_a + [True] * only_b + [True, True, False])
    assert cells.sign_test(a, b) == pytest.approx(p)


@pytest.mark.parametrize(("rising", "expected"), [(False, 1.0), (True, -1.0)])
def test_correlation_in_parts_is_over_the_chosen_records(cells, rising, expected):
    """Distances fall throughout; a loss that falls in the chosen records has correlation 1, whatever others do."""
    at = np.arange(100.0)
    chosen = at >= 60
    negative = np.where(chosen, at if rising else -at, np.sin(at))
    saved = {
        "history": {"iteration": at.tolist(), "critic_loss_train": (-negative).tolist()},
        "quality": {"iteration": [0.0, 10.0, 99.0], "Frechet distance": [50.0, 20.0, 1.0]},
    }
    assert cells.correlation_in_parts(saved, chosen) == pytest.approx(expected)
    assert abs(cells.correlation_in_parts(saved, ~chosen)) < 0.9
    assert np.isnan(cells.correlation_in_parts(saved, at >= 95))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("method", ["DCGAN", "WGAN", "WGAN-GP"])
def test_varied_architectures(cells, method, shape):
    """Figure 2's networks: shapes, where they normalise, and gradient norms that are the automatic ones."""
    settings, rng = cells.replace(cells.PAPER[method], width=4), torch.Generator().manual_seed(0)
    norms, x = {}, torch.randn(3, *shape).requires_grad_()
    for name, changes in cells.ARCHITECTURES.items():
        generator = cells.VariedGenerator(settings, shape, rng, **changes[0])
        critic = cells.VariedCritic(settings, shape, rng, **changes[1])
        x_tilde = generator(torch.randn(3, 128))
        assert x_tilde.shape == (3, *shape) and critic(x_tilde).shape == (3,)
        norms[name] = [sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (generator, critic)]
        (gradient,) = torch.autograd.grad(critic(x).sum(), x)
        torch.testing.assert_close(cells.gradient_norms(critic, x), gradient.flatten(1).norm(dim=1))
        kinds = {type(m) for net in (generator, critic) for m in net.modules()}
        assert (nn.ReLU in kinds or nn.LeakyReLU in kinds) == (name not in ("gated", "tanh"))
        if "constant" in name:
            assert {m.in_channels for m in generator.modules() if isinstance(m, nn.ConvTranspose2d)} == {4}
    n = 0 if method == "WGAN-GP" else 2
    assert list(norms.values()) == [[3, n], [0, n], [0, n], [0, 0], [3, n], [3, n]]


@pytest.mark.parametrize("method", ["DCGAN", "WGAN-GP"])
def test_random_architectures(cells, method):
    """Table 2's networks: the drawn parts are there, for each number the same ones, and every part is drawn."""
    settings, kinds = cells.PAPER[method], set()
    norm_of_critic = {"DCGAN": nn.BatchNorm2d, "WGAN-GP": nn.GroupNorm}[method]
    for number in range(20):
        drawn = cells.random_architecture(number)
        assert str(drawn) == str(cells.random_architecture(number))
        kinds |= {(key, str(value)) for part in drawn for key, value in part.items() if key != "layer_norm"}
        rng = torch.Generator().manual_seed(0)
        networks = cells.VariedGenerator, cells.VariedCritic
        generator, critic = (net(settings, (1, 28, 28), rng, **part) for net, part in zip(networks, drawn, strict=True))
        x = generator(torch.randn(2, 128))
        assert x.shape == (2, 1, 28, 28) and critic(x).shape == (2,)
        cases = (generator, drawn[0], nn.BatchNorm2d, 0), (critic, drawn[1], norm_of_critic, 1)
        for net, part, norm, spared in cases:
            modules = list(net.modules())
            n = 3 * (1 + part["extra"])
            assert sum(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in modules) == n
            assert sum(isinstance(m, nn.BatchNorm2d | nn.GroupNorm) for m in modules) == part["norm"] * (n - spared)
            assert sum(isinstance(m, norm) for m in modules) == part["norm"] * (n - spared)
            assert sum(isinstance(m, type(part["nonlinearity"]())) for m in modules) == n
        widths = [min(m.out_channels for m in critic.modules() if isinstance(m, nn.Conv2d))]
        widths.append(min(m.in_channels for m in generator.modules() if isinstance(m, nn.ConvTranspose2d)))
        assert widths == [drawn[1]["width"], drawn[0]["width"]]
    assert len(kinds) == 4 + 4 + 3 + 2
    x = torch.tensor([-50.0, 0.0, 50.0])
    torch.testing.assert_close(cells.Softplus()(x), torch.tensor([-1.0, math.log(1 + math.exp(2)) / 2 - 1, 50.0]))


def test_layer_normalisation_leaves_each_images_gradient_its_own(cells):
    """Where an image's score depended on the rest of its batch, the penalty would not be valid (Section 4)."""
    rng, x = torch.Generator().manual_seed(0), torch.randn(4, 1, 28, 28)
    for method, its_own in (("WGAN-GP", True), ("DCGAN", False)):
        settings = cells.replace(cells.PAPER[method], width=4)
        critic = cells.VariedCritic(settings, (1, 28, 28), rng, extra=1, layer_norm=True)
        assert torch.allclose(critic(x)[:2], critic(x[:2]), atol=1e-5) == its_own


def test_the_baseline_is_section_4s_critic_and_a_gate_halves_the_maps(cells):
    settings, rng = cells.PAPER["WGAN-GP"], torch.Generator().manual_seed(0)
    varied = cells.VariedCritic(settings, (1, 28, 28), rng)
    plain = cells.build_networks(settings, (1, 28, 28), "cpu")[1]
    plain.load_state_dict(varied.state_dict())
    x = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(varied(x), plain(x))
    maps = torch.randn(2, 6, 3, 3)
    torch.testing.assert_close(cells.Gate()(maps)[:, 1], maps[:, 2].sigmoid() * maps[:, 3].tanh())


# 9.7 the claims: what the checks say, of the published results and of altered ones

CELLS_OF = {  # what the cells that judge a claim contain
    "C1": ('surfaces = read_results("value_surfaces")', 'claims["C1"]'),
    "C2": ("def over_seeds", 'claims["C2"]'),
    "C3": ('surfaces = read_results("value_surfaces")', "def over_seeds", 'claims["C3"]'),
    "C4": ('claims["C4"]',),
    "C5": ("def over_seeds", 'varied = read_results("architectures")', 'claims["C5"]'),
    "C6": ('claims["C6"]',),
    "C7": ('claims["C7"]',),
    "C8": ('claims["C8"]',),
}


def checks_of(claim, folder, alter=None, names=()):
    """{check: did it hold} of a claim, judged by the notebook's cells from the published files `names`, altered."""
    cells = load_cells(PROFILE="long", TRAIN=False, MODELS_DIR=str(folder), IMAGES_DIR=str(folder / "images"))
    there = NOTEBOOK.parent / "saved_models" / "published" / "fashion-mnist"
    saved = {name: torch.load(there / name, weights_only=True) for name in names}
    if alter:
        alter(saved)
    for name, content in saved.items():
        cells.write_atomically(cells.models / name, content)
    cells.published, cells.display = there, lambda _: None
    cells.claims, cells.surfaces = {}, []
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["metadata"].get("tags") == ["evaluate"] and any(marker in source for marker in CELLS_OF[claim]):
            exec(source, vars(cells))
    return {check: bool(held) for check, held in cells.claims[claim][1].items()}


def each_row(change):
    """Apply change(row) to each result of the only file."""

    def alter(saved):
        (one,) = saved.values()
        for row in one["results"]:
            change(row)

    return alter


def methods_exchanged(*pair):
    other = dict(zip(pair, reversed(pair), strict=True))
    return each_row(lambda row: row.update(method=other.get(row["method"], row["method"])))


def perceptron_fails(row):
    if (row["method"], row["architecture"]) == ("WGAN-GP", "G: perceptron"):
        row["Inception score"] = 4.9


def weights_move_inwards(row):
    row["at_limit"] = {"WGAN": 0.9, "WGAN-GP": 2 * row["at_limit_fresh"]}[row["method"]]


def exchange_quality(saved):
    first, second = saved["rmsprop/WGAN-GP.pt"], saved["WGAN-GP.pt"]
    first["quality"], second["quality"] = second["quality"], first["quality"]


def negative_loss_rises(saved):
    for part in ("train", "held_out"):
        saved["WGAN-GP.pt"]["history"][f"critic_loss_{part}"].sort(reverse=True)


def held_out_and_training_exchanged(saved):
    for one in saved.values():
        history = one["history"]
        names = "critic_loss_train", "critic_loss_held_out"
        history[names[0]], history[names[1]] = history[names[1]], history[names[0]]


METHODS = ["DCGAN.pt", "WGAN.pt", "WGAN-GP.pt"]
ALTERED = [  # claim, files, what is done to them, how many checks hold then
    ("C1", ["value_surfaces.pt"], methods_exchanged("WGAN", "WGAN-GP"), 0),
    ("C2", ["layer_gradients.pt"], each_row(lambda row: row["norms"].reverse()), 1),
    ("C3", ["value_surfaces.pt"], each_row(weights_move_inwards), 1),
    ("C4", ["random_architectures.pt"], methods_exchanged("DCGAN", "WGAN-GP"), 0),
    ("C5", ["architectures.pt"], each_row(perceptron_fails), 1),
    ("C6", [*METHODS, "rmsprop/WGAN-GP.pt"], exchange_quality, 1),
    ("C7", METHODS, negative_loss_rises, 0),
    ("C8", ["few_images/WGAN.pt", "few_images/WGAN-GP.pt"], held_out_and_training_exchanged, 1),
]


@pytest.mark.parametrize(("claim", "names", "alter", "held"), ALTERED, ids=[row[0] for row in ALTERED])
def test_a_claim_falls_with_its_evidence(claim, names, alter, held, tmp_path):
    """Its checks hold as the published table says, and others hold if the results are altered."""
    found = checks_of(claim, tmp_path / "as they are")
    (row,) = [line for line in PUBLISHED_CLAIMS.read_text().splitlines() if line.startswith(f"| {claim} |")]
    assert f"({sum(found.values())} of {len(found)})" in row
    altered = checks_of(claim, tmp_path / "altered", alter, names)
    assert altered.keys() == found.keys() and altered != found and sum(altered.values()) == held
