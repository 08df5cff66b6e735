"""Scores against well-kept libraries, and against answers known beforehand."""

import sys
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn
from torch_fidelity.metric_prc import prc_features_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance


class Identity(nn.Module):
    num_features = 24

    def forward(self, x):
        return x


@pytest.fixture(scope="module")
def features():
    rng = torch.Generator().manual_seed(0)
    real = torch.randn(600, 24, generator=rng, dtype=torch.float64)
    generated = 0.7 * torch.randn(600, 24, generator=rng, dtype=torch.float64) + 0.2
    return real, generated


def test_frechet_distance_against_torchmetrics(cells, features):
    oracle = FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
    for part, is_real in zip(features, (True, False), strict=True):
        oracle.update(part, real=is_real)
    assert cells.frechet_distance(*features) == pytest.approx(oracle.compute().item(), rel=1e-6)


def test_frechet_distance_of_known_gaussians(cells):
    """Shifting by v adds |v|^2; scaling a standard normal by s adds d (s - 1)^2."""
    x = torch.randn(2000, 8, dtype=torch.float64)
    assert cells.frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert cells.frechet_distance(x, x + 0.5) == pytest.approx(8 * 0.25, rel=1e-6)
    assert cells.frechet_distance(x, 3 * x - 2 * x.mean(0)) == pytest.approx(4 * x.T.cov().trace().item(), rel=1e-6)


@pytest.mark.parametrize("block", [600, 1000])
def test_kernel_distance_against_torchmetrics(cells, features, block):
    oracle = KernelInceptionDistance(feature=Identity(), subsets=1, subset_size=600).set_dtype(torch.float64)
    for part, is_real in zip(features, (True, False), strict=True):
        oracle.update(part, real=is_real)
    assert cells.kernel_distance(*features, block=block) == pytest.approx(oracle.compute()[0].item(), rel=1e-5)


def test_kernel_distance_averages_its_blocks(cells, features):
    parts = [cells.kernel_distance(*(f[i : i + 200] for f in features)) for i in (0, 200, 400)]
    assert cells.kernel_distance(*features, block=200) == pytest.approx(np.mean(parts), rel=1e-9)


@pytest.mark.parametrize(("n", "used"), [(401, 400), (201, 200), (150, 150), (599, 400)])
def test_kernel_distance_takes_whole_blocks_only(cells, features, n, used):
    """A remainder of one feature would have no unbiased estimate; fewer than a block are one block."""
    real, generated = features[0][:n], features[1][:n]
    found = cells.kernel_distance(real, generated, block=200)
    assert np.isfinite(found)
    assert found == pytest.approx(cells.kernel_distance(real[:used], generated[:used], block=200), rel=1e-12)


def test_inception_score_against_torchmetrics(cells):
    logits = torch.randn(400, 24, dtype=torch.float64) * 3
    oracle = InceptionScore(feature=Identity(), normalize=False, splits=1)
    oracle.update(logits)
    assert cells.inception_score(logits.softmax(1)) == pytest.approx(oracle.compute()[0].item(), rel=1e-5)


def test_inception_score_at_its_bounds(cells):
    assert cells.inception_score(torch.eye(10).repeat(5, 1)) == pytest.approx(10)
    assert cells.inception_score(torch.full((50, 10), 0.1)) == pytest.approx(1)


def test_precision_and_recall_against_torch_fidelity(cells, features):
    real, generated = (f.float() for f in features)
    oracle = prc_features_to_metric(generated, real, prc_neighborhood=3, prc_batch_size=500, verbose=False)
    found = cells.neighbour_scores(real, generated)
    assert found["precision"] == pytest.approx(oracle["precision"], abs=2 / 600)
    assert found["recall"] == pytest.approx(oracle["recall"], abs=2 / 600)


def test_density_and_coverage_against_their_definition(cells, features):
    real, generated = (f[:120].numpy() for f in features)
    k = 5
    radius = [np.sort(np.linalg.norm(real - x, axis=1))[k] for x in real]  # entry 0 is the point itself
    inside = [[np.linalg.norm(x - y) < r for y in generated] for x, r in zip(real, radius, strict=True)]
    found = cells.neighbour_scores(*(torch.from_numpy(f) for f in (real, generated)))
    assert found["density"] == pytest.approx(np.sum(inside) / (k * len(generated)))
    assert found["coverage"] == pytest.approx(np.mean(np.any(inside, axis=1)))


def test_neighbour_scores_of_known_cases(cells):
    real = torch.randn(300, 4)
    far = cells.neighbour_scores(real, real + 1000)
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    same = cells.neighbour_scores(real, real)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    collapsed = cells.neighbour_scores(real, real[:1].repeat(300, 1))
    assert collapsed["precision"] == 1 and collapsed["recall"] < 0.05 and collapsed["coverage"] < 0.1


def test_nearest_finds_planted_copies_across_chunks(cells):
    candidates = torch.randn(70, 6)
    index = torch.tensor([0, 33, 69])
    distances, found = cells.nearest(candidates[index] + 1e-4, candidates, lambda part: part, chunk=30)
    assert found.equal(index) and distances.max() < 1e-2


def test_inception_scores_of_equal_and_of_unlike_pictures(cells, monkeypatch):
    """The whole way through torch-fidelity's network, with random weights, as the real ones need a download."""
    network = "torch_fidelity.feature_extractor_inceptionv3"
    monkeypatch.setattr(f"{network}.load_state_dict_from_url", lambda *_, **__: {})
    monkeypatch.setattr(f"{network}.FeatureExtractorInceptionV3.load_state_dict", lambda *_, **__: None)
    rng = torch.Generator().manual_seed(0)
    grey = torch.randint(256, (12, 1, 28, 28), generator=rng, dtype=torch.uint8)
    same = cells.inception_scores(grey, grey.expand(-1, 3, -1, -1))
    other = cells.inception_scores(grey, torch.zeros_like(grey))
    assert same["FID (Inception)"] == pytest.approx(0, abs=1e-2) and same["IS (Inception)"] >= 1 - 1e-12
    assert other["FID (Inception)"] > 10 * abs(same["FID (Inception)"])


def test_inception_scores_say_what_is_missing(cells, monkeypatch):
    pictures = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)

    def no_network(*_, **__):
        raise URLError("no route to host")

    network = "torch_fidelity.feature_extractor_inceptionv3"
    monkeypatch.setattr(f"{network}.load_state_dict_from_url", no_network)
    with pytest.raises(RuntimeError, match=r"weights could not be fetched into .*checkpoints .*no route to host"):
        cells.inception_scores(pictures, pictures)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(RuntimeError, match="pip install torch-fidelity"):
        cells.inception_scores(pictures, pictures)


# the table of all runs


def test_spread(cells):
    assert cells.spread([1.0, 2.0, 3.0]) == "2.00 ± 1.00"
    assert cells.spread([1.5]) == "1.50"


def test_seeds_of_equal_settings_on_one_kind_of_machine_share_a_row(cells):
    def scored(profile, method, seed, distance, trained_on="a CPU", **changes):
        settings = cells.profile_settings(profile, method, seed=seed, **changes)
        cost = {"iterations": settings.iterations, "real images seen": 1000, "minutes": 2.0 + seed}
        values = ("judge", 10, cells.asdict(settings), cost, {"Frechet distance": distance, "recall": 0.5})
        return dict(zip(cells.SCORED, values, strict=True)) | {"trained_on": trained_on}

    kept = [
        scored("quick", "WGAN-GP", 1, 3.0),
        scored("long", "WGAN-GP", 0, 1.2),
        scored("letter", "WGAN-GP", 0, 7.0),
        scored("quick", "DCGAN", 0, 2.0),
        scored("quick", "WGAN-GP", 0, 2.0),
        scored("quick", "WGAN-GP", 0, 9.0, learning_rate=1e-3),
        scored("quick", "WGAN-GP", 2, 2.2, "a GPU"),
    ]
    header, _, *rows = [line.strip("| ").split(" | ") for line in cells.runs_table(kept).split("\n")]
    columns = "method, profile, n_critic, learning rate, iterations, real images seen, minutes, seeds"
    assert header == [*columns.split(", "), "Frechet distance", "recall"]
    iterations = f"{cells.profile_settings('quick', 'WGAN-GP').iterations:,}"
    falling, paid = "falling over the last 33%", [iterations, "1,000"]
    assert rows[0][:2] == ["DCGAN", "quick"] and len(rows) == 6
    quick, alone = ["WGAN-GP", "quick", "1", f"0.002, {falling}", *paid], ["2.0 (a CPU)", "0"]
    assert [*quick, "2.5 (a CPU)", "0, 1", "2.50 ± 0.71", "0.50 ± 0.00"] in rows
    assert [*quick, "4.0 (a GPU)", "2", "2.20", "0.50"] in rows
    assert ["WGAN-GP", "quick, learning_rate 0.001", "1", f"0.001, {falling}", *paid, *alone, "9.00", "0.50"] in rows
    assert rows[-2] == ["WGAN-GP", "letter", "5", "0.0001", "9,600", "1,000", *alone, "7.00", "0.50"]
    assert rows[-1] == ["WGAN-GP", "long", "1", f"0.002, {falling}", "28,125", "1,000", *alone, "1.20", "0.50"]


def test_a_run_whose_machine_was_not_kept_has_its_row(cells):
    """Scores of earlier versions of the notebook."""
    settings = cells.asdict(cells.profile_settings("quick", "WGAN"))
    cost = {"iterations": 9, "real images seen": 9, "minutes": 2.0}
    old = dict(zip(cells.SCORED, ("judge", 10, settings, cost, {"recall": 0.5}), strict=True))
    assert "| 2.0 (?) | 0 | 0.50 |" in cells.runs_table([old])


def test_without_any_run_the_table_is_a_header(cells):
    assert cells.runs_table([]).split("\n")[0].startswith("| method | profile |")
