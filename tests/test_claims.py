"""The paper's experiments: numbers known beforehand, claims that fall with their evidence."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CPU, METHODS, brightness, train_all
from scipy.optimize import linear_sum_assignment
from scipy.stats import spearmanr
from torch import nn

# C1: value surfaces


def points(n):
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(0))


def test_moving_costs_its_distance_along_the_best_pairs(cells):
    """Moving a square by (3, 4) costs 5; on a line sorted pairs are best; ties do no harm."""
    square, line = points(200), torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    for real, generated, cost in (
        (square, square + torch.tensor([3.0, 4.0]), 5),
        (line, torch.tensor([[4.0], [1.0], [3.0], [2.0]]), 1),
        (line, line.flip(0), 0),
    ):
        assert cells.transport_cost(real, generated)[0] == pytest.approx(cost, abs=1e-3)


@pytest.mark.parametrize("name", ["8 Gaussians", "25 Gaussians", "Swiss roll"])
def test_transport_cost_equals_scipys_assignment(cells, name):
    rng = torch.Generator().manual_seed(1)
    real, generated = (cells.TOY_DATA[name](300, rng) for _ in range(2))
    generated = generated + torch.randn(300, 2, generator=rng)
    cost, potential = cells.transport_cost(real, generated)
    distance = (real.double()[:, None] - generated.double()).norm(dim=2).numpy()
    best = distance[linear_sum_assignment(distance)].mean()
    assert best - 1e-9 <= cost <= best + 1e-3
    of_real, of_generated = potential[:300], potential[300:]
    assert (of_real[:, None] - of_generated <= distance + 1e-9).all()  # nowhere steeper than 1
    worth = of_real.mean() - of_generated.mean()
    assert best - 1e-3 <= worth <= best + 1e-9  # and worth the whole distance


def test_critics_get_the_share_that_they_deserve(cells):
    real = points(200)
    generated = real + torch.tensor([3.0, 0.0])

    def worth(critic):
        return cells.judge_surface(critic, real, generated)

    for scale in (1.0, 0.01, 70.0):
        perfect = worth(lambda x, scale=scale: -scale * x[:, 0])
        assert perfect["share"] == pytest.approx(1, abs=1e-2) and perfect["explained"] > 0.95
    reversed_sign = worth(lambda x: x[:, 0])
    assert reversed_sign["share"] < -0.9 and reversed_sign["explained"] > 0.95
    assert abs(worth(lambda x: x[:, 1])["share"]) < 1e-6  # the wrong direction
    steep = worth(lambda x: -x[:, 0] + torch.sin(40 * x[:, 1]))
    assert steep["share"] < 0.2  # somewhere: what it says must be divided by that slope


CIRCLE = [[math.cos(i * math.pi / 4), math.sin(i * math.pi / 4)] for i in range(8)]
GRID = [[i, j] for i in range(-2, 3) for j in range(-2, 3)]
SPIRAL = [[t * math.cos(t), t * math.sin(t)] for t in np.linspace(1.5, 4.5, 2000) * math.pi]
TOYS = [(CIRCLE, 0.02, 2 / 1.414), (GRID, 0.05, 2 / 2.828), (SPIRAL, 0.25, 1 / 7.5)]


def test_toy_data_are_the_scripts(cells):
    """The same noise around the same places, none of which is left out."""
    for draw, (places, noise, scale) in zip(cells.TOY_DATA.values(), TOYS, strict=True):
        drawn = draw(20_000, torch.Generator().manual_seed(0)) / scale
        distance = torch.cdist(drawn, torch.tensor(places, dtype=torch.float32))
        noise = noise if places is SPIRAL else noise / 2 * math.sqrt(2)  # across it, or around
        assert distance.min(1).values.square().mean().sqrt() == pytest.approx(noise, rel=0.05)
        share = distance.argmin(1).bincount(minlength=len(places)) * len(places) / 20_000
        assert (share - 1).abs().max() < 0.25 or places is SPIRAL
        assert distance.min(0).values.max() < 0.5


def test_noisy_data_is_the_data_plus_unit_noise(cells):
    data = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0], [100.0, 100.0]])
    z = torch.randn(40_000, 3, generator=torch.Generator().manual_seed(0))
    x_tilde = cells.NoisyData(data)(z).detach()
    row = torch.cdist(x_tilde, data).argmin(1)
    assert (row.bincount() / 40_000 - 0.25).abs().max() < 0.01
    noise = x_tilde - data[row]
    assert noise.mean(0).abs().max() < 0.02 and (noise.std(0) - 1).abs().max() < 0.02
    edges = cells.NoisyData(data)(torch.tensor([[-40.0, 0, 0], [40.0, 0, 0]]))
    assert edges.tolist() == [[0, 0], [100, 100]]  # no row is out of range


def fit(cells, method, steps, width=8):
    return cells.fit_critic(method, cells.eight_gaussians, 0, width, steps)


def test_a_fitted_critic_learns_the_surface(cells):
    """With the penalty, a few hundred steps find most of the potential; the generator rests."""
    rng = torch.Generator().manual_seed(5)
    real, generated = (cells.eight_gaussians(300, rng) for _ in range(2))
    generated = generated + torch.randn(300, 2, generator=rng)
    runs = [fit(cells, "WGAN-GP", steps, 64) for steps in (1, 600)]
    worth = [cells.judge_surface(run.critic, real, generated) for run in runs]
    assert worth[1]["explained"] > 0.6 > worth[0]["explained"]
    assert 0 < worth[1]["share"] <= 1.001 and runs[1].generator.scale.item() == 1


def test_a_clipped_critic_starts_and_stays_inside_its_limits(cells):
    """Before training its weights fill the range evenly, and the first clipping does nothing."""
    fresh, run, again = (fit(cells, "WGAN", steps, 128) for steps in (0, 3, 3))
    weights = [torch.cat([p.flatten() for p in r.critic.parameters()]) for r in (fresh, run, again)]
    assert weights[1].equal(weights[2]) and not weights[0].equal(weights[1])
    assert max(w.abs().max() for w in weights) <= 0.01 + 1e-8
    share = cells.share_at_limit(cells.matrices(fresh.critic), 0.01)
    assert share == pytest.approx(0.01, abs=0.003)


# C2, C3: gradients and weights


@pytest.mark.parametrize("gain", [1e-5, 0.1, 1.0, 10.0])
def test_gradients_grow_by_what_each_layer_multiplies_with(cells, gain):
    """Each layer back multiplies the norm by `gain`, without underflow; no hook is left."""
    layers = []
    for _ in range(6):  # gain * identity; inputs above 0 pass every ReLU
        layers += [nn.Linear(4, 4, bias=False), nn.ReLU()]
        layers[-2].weight.data = gain * torch.eye(4)
    head = nn.Linear(4, 1)
    head.weight.data.fill_(1.0)
    networks = nn.Linear(4, 4), nn.Sequential(*layers, head, nn.Flatten(0))
    run = cells.new_run(cells.replace(cells.TOY["WGAN"], latent_size=4), networks, CPU)
    norms = cells.layer_gradient_norms(run, 1 + torch.rand(32, 4), 1 + torch.rand(32, 4))
    last = math.sqrt(2 * 32 * 4) / 32  # -1/n for real, 1/n for generated, in 4 coordinates
    expected = [last * gain**i for i in range(5, -1, -1)]
    assert norms == pytest.approx(expected, rel=1e-4, abs=0)
    assert not [layer for layer in run.critic if layer._forward_hooks]


@pytest.mark.parametrize(("c", "slope"), [(0.1, -0.18), (0.01, -1.11), (0.001, -2.10), (0, 0)])
def test_critics_before_training_have_the_slopes_that_section_9_2_says(cells, c, slope):
    """What section 9.2 says of critics as they are drawn, clipped once and never trained."""
    name, slopes = f"clipping, c = {c:g}" if c else "gradient penalty", []
    for seed in range(5):
        rng = torch.Generator().manual_seed(seed)
        points = cells.swiss_roll(2000, rng)
        settings = cells.replace(cells.CONSTRAINTS[name], latent_size=2)
        run = cells.new_run(settings, [cells.relu_mlp(2, n, 128, 12, rng) for n in (2, 1)], CPU)
        if c:
            cells.clip_weights(run.critic, c)
        with torch.no_grad():
            x_tilde = run.generator(run.noise(1000))
        norms = np.log10(cells.layer_gradient_norms(run, points[:1000], x_tilde))
        slopes.append(np.polyfit(range(len(norms), 0, -1), norms, 1)[0])
    assert np.mean(slopes) == pytest.approx(slope, abs=0.01)


def test_weights_near_the_limit_are_counted_or_those_near_their_layers_largest(cells):
    weights = [torch.eye(2), torch.ones(1, 2)]
    for clip, share in ((1.0, 4 / 6), (2.0, 0)):
        assert cells.share_at_limit(weights, clip) == pytest.approx(share)
    weights[0] *= 8  # no limit: of each layer's own largest weight
    assert cells.share_at_limit(weights, 0) == pytest.approx(4 / 6)


def test_toy_critics_have_the_settings_that_the_text_says(cells):
    """Batches of 256 and a rate of 1e-3, which is ours; the penalty's weight is 1."""
    common = {"batch_size": 256, "learning_rate": 1e-3}
    clipped = cells.replace(cells.PAPER["WGAN"], critic_batch_norm=False, **common)
    penalised = cells.replace(cells.PAPER["WGAN-GP"], penalty_weight=1.0, beta1=0.5, **common)
    assert list(cells.TOY.items()) == [("WGAN", clipped), ("WGAN-GP", penalised)]
    constraints = [cells.replace(clipped, clip=c) for c in (0.1, 0.01, 0.001)] + [penalised]
    assert list(cells.CONSTRAINTS.values()) == constraints


def test_a_surface_is_judged_on_generated_points_that_are_not_made_of_the_real_ones(
    cells, monkeypatch
):
    seen = []
    monkeypatch.setattr(cells, "judge_surface", lambda *given: seen.extend(given) or {})
    cells.value_surface("8 Gaussians", "WGAN", 0, 8, 1)
    _, real, generated = seen
    assert len(real) == len(generated) == 1000
    assert abs(np.corrcoef(real.flatten(), generated.flatten())[0, 1]) < 0.1
    spread = generated.std(0) ** 2 - real.std(0) ** 2
    assert (spread - 1).abs().max() < 0.2  # of the noise that is added


def test_the_null_of_c3_moves_each_layer_as_far_as_its_training_did(cells, monkeypatch):
    seen = []
    monkeypatch.setattr(cells, "share_at_limit", lambda weights, clip: seen.append(weights))
    row = cells.value_surface("8 Gaussians", "WGAN-GP", 0, 64, 20)
    assert list(row["at_limit"]) == ["before", "after", "moved at random"]
    for before, after, random in zip(*seen, strict=True):
        moved, at_random = after - before, random - before
        assert at_random.std().item() == pytest.approx(moved.std().item(), rel=0.3)
        assert abs(np.corrcoef(moved.flatten(), at_random.flatten())[0, 1]) < 0.5


def test_relu_mlp_has_the_depth_and_the_spread_it_says(cells):
    net = cells.relu_mlp(2, 1, 256, 12, torch.Generator().manual_seed(0))
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    assert [*map(type, net)] == [*[nn.Linear, nn.ReLU] * 11, nn.Linear, nn.Flatten]
    assert net(torch.randn(5, 2)).shape == (5,)
    assert linear[5].weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.02)  # He
    assert not any(layer.bias.any() for layer in linear)


# C6 to C8: curves


def test_curves_are_put_into_numbers(cells):
    a, b = np.random.default_rng(0).normal(size=(2, 30))
    assert cells.rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    history = {"iteration": [1, 2, 3, 4, 6], "critic_loss_train": [-1.0, -3.0, -5.0, -7.0, -11.0]}
    saved = {"history": history, "quality": {"iteration": [2.0, 4.0, 6.0]}}
    assert cells.stage_losses(saved, "train") == [2, 6, 11]  # the mean since the stage before
    history = {"critic_loss_train": list(-np.arange(100.0)), "critic_loss_held_out": [1.0, 3.0]}
    assert cells.tenths(history, "train").tolist() == [4.5 + 10 * i for i in range(10)]
    assert cells.tenths(history, "held_out").tolist() == [-1, -3]


def test_c7_says_what_is_left_in_the_later_half(cells):
    """Where WGAN-GP's training loss here rises, which from first to last falls."""
    results = losses(cells)
    part("train", "WGAN-GP", np.where(AT < 50, 200 - AT, AT - 50))(results)
    measured, _ = cells.judge_losses(results)
    assert "; WGAN 1.00, 1.00 (1.00, 1.00); " in measured
    assert re.search(r"; WGAN-GP 0\.\d\d, 1\.00 \(-1\.00, 1\.00\)$", measured)


# How results are kept


def test_an_experiment_is_kept_until_its_size_or_its_settings_change(cells, tmp_path, monkeypatch):
    calls, own = [], tmp_path / "some.pt"
    published = tmp_path / "published" / cells.source.name / "some.pt"
    monkeypatch.setattr(cells, "models", tmp_path)
    monkeypatch.setattr(cells, "published", published.parent.parent)

    def measure(case, n):
        calls.append(f"{case}{n}")
        if calls == ["a3", "b3"]:
            raise KeyboardInterrupt
        return {"size": n}

    def measured(n, cases="ab", method="WGAN", **parameters):
        """What is measured anew for these cases, and the cases of what is returned."""
        calls.clear()
        with monkeypatch.context() as patch:
            for name, value in parameters.items():
                patch.setattr(cells, name, value)
            chosen = {"critic": cells.TOY[method]}
            results = cells.experiment("some", measure, cases, chosen, n=n)
        assert {row["processor"] for row in results} <= {cells.processor(CPU)}
        return " ".join(calls), "".join(row["case"][0] for row in results)

    assert measured(1, TRAIN=False) == measured(1, TEST_CLAIMS=False) == ("", "")
    assert measured(1) == ("a1 b1", "ab") and measured(1) == ("", "ab")
    with pytest.raises(KeyboardInterrupt):
        measured(3)
    assert measured(3, TRAIN=False) == ("", "")  # half an experiment is none
    assert measured(3) == ("b3", "ab")  # goes on where it was interrupted
    assert measured(4, START="afresh", TEST_CLAIMS=False) == ("", "ab")
    assert measured(4) == measured(4, START="afresh") == ("a4 b4", "ab")
    assert measured(4, method="WGAN-GP") == ("a4 b4", "ab") == measured(4)  # other settings
    assert measured(4, "abc") == ("c4", "abc")  # more cases: the first are kept
    assert measured(4, "ca") == ("c4 a4", "ca")  # others: none is
    published.parent.mkdir(parents=True)
    own.rename(published)  # which is read where there is none of one's own
    assert measured(9, "ca", TRAIN=False) == ("", "ca")
    own.write_bytes(b"no experiment")
    with pytest.raises(ValueError, match=r"some\.pt cannot be read"):
        measured(4)


def test_only_finished_trainings_with_some_records_are_compared(
    cells, tiny, tmp_path, monkeypatch, capsys
):
    """Others are left out, not correlated to nan; own ones come before published ones."""
    published = tmp_path / "published" / cells.source.name
    for name, folder in (("models", tmp_path / "own"), ("published", published.parent)):
        monkeypatch.setattr(cells, name, folder)

    def train(folder, iterations):
        settings = [cells.profile_settings("smoke", m, iterations=iterations) for m in METHODS]
        return train_all(cells, settings, tiny, folder, judge=brightness, start="afresh")

    def compared():
        """The folder whose trainings are, or why none are."""
        capsys.readouterr()
        found = cells.finished(*(f"{method}.pt" for method in METHODS))
        said = capsys.readouterr().out.splitlines()[0]
        return Path(said).parent if found else said

    left_out = f"Left out: needs DCGAN.pt, WGAN.pt, WGAN-GP.pt in {cells.models}, finished, with"
    assert left_out in compared()
    train(cells.models, 1)
    assert left_out in compared() and cells.show_loss_and_quality() is None
    train(published, 4)
    assert compared() == published
    runs = train(cells.models, 4)
    assert compared() == cells.models
    runs["WGAN"].settings = cells.replace(runs["WGAN"].settings, iterations=5)
    cells.save_run(runs["WGAN"])  # not finished
    assert compared() == published


def test_each_curve_of_c6_is_of_its_own_training(cells, monkeypatch):
    ends = {"WGAN.pt": 9, "rmsprop/WGAN-GP.pt": 6, "WGAN-GP.pt": 3, "DCGAN.pt": 2}

    def finished(*names):
        at = {"iteration": [1, 10], "seconds": [60, 600]}
        trained = {"iteration": 10, "settings": {"linear_decay": 0.5}}
        quality = [at | {"Frechet distance": [20, ends[name]]} for name in names]
        return [trained | {"quality": table} for table in quality]

    monkeypatch.setattr(cells, "finished", finished)
    measured, _ = cells.show_quality()
    assert "10: clipping 9.0, penalty 6.0, with Adam 3.0, DCGAN 2.0; after 5.0 min" in measured
    assert measured.endswith("before a rate falls: penalty 12.44, DCGAN 12.00")


# Every claim holds of results like the paper's, and falls with its evidence


def surfaces(cells):
    """Results of C1 and C3."""
    same = {"points": points(5), "counts": torch.ones(60), "range": [-1, 1], "share": 0.5}
    same["surface"] = torch.arange(61.0**2).view(61, 61)
    of = {"WGAN": {"explained": 0.5, "at_limit": at_limit(0.8)}}
    of["WGAN-GP"] = {"explained": 0.9, "at_limit": at_limit(0.001)}
    cases = itertools.product(cells.TOY_DATA, of, (0, 1))
    return [same | of[m] | {"data": d, "method": m, "case": [d, m, seed]} for d, m, seed in cases]


def at_limit(after, random=0.003):
    return {"before": 0.01, "after": after, "moved at random": random}


def line(slope):
    return [10 ** (slope * back) for back in range(12, 0, -1)]


def gradients(cells):
    """Results of C2."""
    slopes = zip(cells.CONSTRAINTS, (0.3, -0.5, -1, 0.02), strict=True)
    return [{"constraint": name, "norms": line(slope)} for name, slope in slopes for _ in range(2)]


def qualities(cells):
    """Results of C6."""
    at = {"iteration": [1.0, 10.0], "seconds": [60.0, 600.0]}
    ends = zip(cells.CURVES, (9, 6, 3, 2), strict=True)
    return {name: at | {"Frechet distance": [20.0, end]} for name, end in ends}


def losses(cells):
    """Results of C7: distances fall, and so do negative losses, but for DCGAN's."""
    quality = {"iteration": AT[9::10], "Frechet distance": 1 / AT[9::10]}
    signs = zip(METHODS, (-1, 1, 1), strict=True)
    return {m: {"history": curves(-sign * AT, -sign * AT), "quality": quality} for m, sign in signs}


def overfitting(cells):
    """Results of C8: negative losses part, training rises."""
    return {method: curves(AT, -AT) for method in cells.TOY}


def curves(train, held_out):
    """A history of these negative losses."""
    return {"iteration": AT, "critic_loss_train": -train, "critic_loss_held_out": -held_out}


AT = np.arange(100.0)
HILL = np.where(AT < 60, AT, 120 - AT)  # rises first, and falls in the second half
RATES = dict.fromkeys(("clipping (RMSProp)", "penalty (RMSProp)", "penalty (Adam)"), 10)
JUDGES = {  # claim: its judge, results like the paper's, how many checks, what the judge needs more
    "C1": ("show_value_surfaces", surfaces, 3),
    "C2": ("show_layer_gradients", gradients, 4),
    "C3": ("show_weights", surfaces, 3),
    "C6": ("judge_quality", qualities, 3, RATES | {"DCGAN (Adam)": 5.5}),
    "C7": ("judge_losses", losses, 3),
    "C8": ("judge_overfitting", overfitting, 3),
}


def failing(cells, claim, alter=lambda results: None):
    """The checks of a claim that fail, in one text, and their number."""
    judge, results, n, *more = JUDGES[claim]
    results = results(cells)
    alter(results)
    measured, checks = getattr(cells, judge)(results, *more)
    assert len(checks) == n and measured
    failed = [check for check, held in checks.items() if not held]
    return " | ".join(failed), len(failed)


@pytest.mark.parametrize("claim", JUDGES)
def test_a_claim_holds_of_results_like_the_papers(cells, claim):
    assert failing(cells, claim) == ("", 0)
    assert cells.verdict({"a": True, "b": True}) == "reproduced (2 of 2)"
    assert cells.verdict({"a": True, "b": False}) == "partly (1 of 2)"
    assert cells.verdict({"a": False, "b": False}) == "not reproduced (0 of 2)"
    judge = getattr(cells, JUDGES[claim][0])
    assert not judge.__name__.startswith("show") or judge([]) is None


def exchange(results, a, b):
    other = {a: b, b: a}
    for row in results:
        row["method"] = other.get(row["method"], row["method"])


def one(results, i, **values):
    results[i].update(values)


def part(name, method, values):
    """Replace one negative loss of C7 or C8."""

    def alter(results):
        table = results[method].get("history", results[method])
        table[f"critic_loss_{name}"] = -np.array(values)

    return alter


LATE = {"iteration": [1, 5.5, 10], "seconds": [60, 330, 600]}
LATE["Frechet distance"] = [20, 19, 2]  # ahead only since its rate fell
ALTERED = [  # claim, what is done to its results, how many checks fail then, words of them
    ("C1", lambda r: exchange(r, "WGAN", "WGAN-GP"), 3, "8 Gaussians"),
    ("C1", lambda r: one(r, -1, explained=0.49), 1, "Swiss roll"),
    ("C1", lambda r: one(r, 3, share=-0.5), 1, "8 Gaussians"),
    ("C2", lambda r: one(r, 1, norms=line(0.05)), 1, "c = 0.1 explodes"),
    ("C2", lambda r: one(r, 2, norms=line(0.2)), 1, "c = 0.01 vanishes"),
    ("C2", lambda r: one(r, 5, norms=line(-0.05)), 1, "c = 0.001 vanishes"),
    ("C2", lambda r: one(r, 7, norms=line(0.15)), 1, "penalty stays level"),
    ("C2", lambda r: one(r, 6, norms=line(-0.15)), 1, "penalty stays level"),
    ("C3", lambda r: one(r, 4, at_limit=at_limit(0.4)), 1, "more than half"),
    ("C3", lambda r: one(r, 4, at_limit=at_limit(0.8, 0.9)), 1, "moved as far at random"),
    ("C3", lambda r: one(r, -1, at_limit=at_limit(0.02)), 1, "penalty"),
    ("C6", lambda r: one(r, "clipping (RMSProp)", **{"Frechet distance": [9, 5]}), 1, "clipping"),
    ("C6", lambda r: one(r, "penalty (RMSProp)", **{"Frechet distance": [9, 2.5]}), 1, "Adam"),
    ("C6", lambda r: one(r, "penalty (RMSProp)", iteration=[1, 4]), 1, "Adam"),  # as it was at 4
    ("C6", lambda r: one(r, "penalty (Adam)", seconds=[6, 60]), 1, "at the same time"),
    ("C6", lambda r: r.update({"DCGAN (Adam)": LATE}), 1, "at the same time"),
    ("C7", part("held_out", "WGAN", AT), 2, "WGAN: at least 0.7"),
    ("C7", part("train", "WGAN-GP", -HILL), 1, "WGAN-GP: at least 0.7"),
    ("C7", part("train", "DCGAN", -AT), 1, "DCGAN"),
    ("C7", part("held_out", "DCGAN", -AT), 1, "DCGAN"),
    ("C8", part("train", "WGAN", 200 - 2 * AT), 1, "WGAN: gap"),  # positive, but narrower
    ("C8", part("train", "WGAN", AT - 300), 1, "WGAN: gap"),  # wider, but below 0
    ("C8", part("train", "WGAN-GP", HILL), 1, "training rises while"),
    ("C8", part("held_out", "WGAN-GP", -HILL), 1, "held out falls"),
]


@pytest.mark.parametrize(("claim", "alter", "n", "words"), ALTERED)
def test_a_claim_falls_with_its_evidence(cells, claim, alter, n, words):
    failed, found = failing(cells, claim, alter)
    assert found == n and words in failed
