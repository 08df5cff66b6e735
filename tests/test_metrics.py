"""Scores against well-kept libraries, and against answers known beforehand; the judge."""

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
    real, generated = torch.randn(2, 600, 24, generator=rng, dtype=torch.float64)
    return real, 0.7 * generated + 0.2


def asked(oracle, features):
    """What an oracle of torchmetrics says about (real, generated) features."""
    oracle.set_dtype(torch.float64)
    for part, is_real in zip(features, (True, False), strict=True):
        oracle.update(part, real=is_real)
    return oracle.compute()


def test_frechet_distance_against_torchmetrics(cells, features):
    expected = asked(FrechetInceptionDistance(feature=Identity()), features).item()
    assert cells.frechet_distance(*features) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("block", [600, 1000])
def test_kernel_distance_against_torchmetrics(cells, features, block):
    oracle = KernelInceptionDistance(feature=Identity(), subsets=1, subset_size=600)
    expected = asked(oracle, features)[0].item()
    found = cells.kernel_distance(*features, block=block)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("n", "used"), [(600, 600), (401, 400), (150, 150), (599, 400)])
def test_kernel_distance_is_the_mean_over_whole_blocks(cells, features, n, used):
    """A remainder of one feature would have no unbiased estimate; a few are one block."""
    parts = [[f[i : min(i + 200, used)] for f in features] for i in range(0, used, 200)]
    expected = np.mean([cells.kernel_distance(*part) for part in parts])
    found = cells.kernel_distance(*(f[:n] for f in features), block=200)
    assert found == pytest.approx(expected, rel=1e-9)


def test_inception_score_against_torchmetrics_and_at_its_bounds(cells):
    logits = torch.randn(400, 24, dtype=torch.float64) * 3
    oracle = InceptionScore(feature=Identity(), normalize=False, splits=1)
    oracle.update(logits)
    expected = oracle.compute()[0].item()
    assert cells.inception_score(logits.softmax(1)) == pytest.approx(expected, rel=1e-5)
    assert cells.inception_score(torch.eye(10).repeat(5, 1)) == pytest.approx(10)
    assert cells.inception_score(torch.full((50, 10), 0.1)) == pytest.approx(1)


def test_precision_and_recall_against_torch_fidelity(cells, features):
    real, generated = (f.float() for f in features)
    options = {"prc_neighborhood": 3, "prc_batch_size": 500, "verbose": False}
    oracle = prc_features_to_metric(generated, real, **options)
    found = cells.neighbour_scores(real, generated)
    for name in ("precision", "recall"):
        assert found[name] == pytest.approx(oracle[name], abs=2 / 600)
    assert found["precision"] != found["recall"]


def test_coverage_against_its_definition(cells, features):
    real, generated = features[0][:120].numpy(), 1.6 * features[1][:120].numpy()
    radius = [np.sort(np.linalg.norm(real - x, axis=1))[5] for x in real]  # 0 is itself
    pairs = zip(real, radius, strict=True)
    covered = [np.linalg.norm(generated - x, axis=1).min() < r for x, r in pairs]
    found = cells.neighbour_scores(*(torch.from_numpy(f) for f in (real, generated)))
    assert found["coverage"] == pytest.approx(np.mean(covered)) and 0 < np.mean(covered) < 1


def test_neighbour_scores_of_known_cases(cells):
    real = torch.randn(300, 4)
    far = cells.neighbour_scores(real, real + 1000)
    assert far == {"precision": 0, "recall": 0, "coverage": 0}
    assert set(cells.neighbour_scores(real, real).values()) == {1}
    collapsed = cells.neighbour_scores(real, real[:1].repeat(300, 1))
    assert collapsed["precision"] == 1
    assert collapsed["recall"] < 0.05 and collapsed["coverage"] < 0.1


def test_copies_are_known_from_strangers(cells):
    rng = torch.Generator().manual_seed(0)
    known, unseen, fresh = torch.randn(3, 2000, 20, generator=rng)
    copies = known[:500] + 0.01 * torch.randn(500, 20, generator=rng)
    for pictures, expected in ((copies, 1), (unseen[:500], 0), (fresh, 0.5)):
        share = cells.nearer_share(pictures, known, unseen, nn.Identity())
        assert share == pytest.approx(expected, abs=0.04)
    index = torch.tensor([0, 833, 1999])  # the nearest ones, across chunks
    found = cells.nearest(known[index] + 1e-4, known, nn.Identity(), chunk=300)
    assert found[1].equal(index) and found[0].max() < 1e-2


# The judge


def striped(cells, target, names, n=400):
    """An ImageData where what is asked can be seen: each has its own half or edge made bright."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(100, (n, 1, 28, 28), generator=rng, dtype=torch.uint8)
    labels = torch.randint(2, (n, 2), generator=rng)
    if target == "rotations":
        images[:, :, :10] += 100  # the sky is above
    else:
        images[labels[:, 0] > 0, :, :14] += 100
        images[labels[:, 1] > 0, :, :, :14] += 50
    labels = labels.float() if target == "attributes" else labels[:, 0] + 2 * labels[:, 1]
    part = 3 * n // 4
    return cells.ImageData(
        images[:part], labels[:part], images[part:], labels[part:], list(names), target
    )


CASES = [("classes", "0123"), ("attributes", ("top", "left")), ("rotations", "0123")]


@pytest.mark.parametrize(("target", "names"), CASES)
def test_the_judge_learns_what_can_be_seen(cells, target, names):
    data = striped(cells, target, names)
    classifier = cells.Classifier((1, 28, 28), len(names))
    assert cells.Judge(classifier, data).accuracy < 0.8
    cells.train_classifier(classifier.train(), data, 6400)
    judge = cells.Judge(classifier, data)
    assert judge.accuracy > 0.95 and not classifier.training
    features, given = judge.describe(data.test, batch=7)
    assert features.shape == (100, 128) and given.shape == (100, len(names))
    if target == "attributes":
        assert ((given > 0.5) == data.test_labels).float().mean() == pytest.approx(judge.accuracy)
    else:
        assert given.sum(1).allclose(torch.ones(100))


def test_the_judges_scores_are_those_of_its_features(cells, tiny):
    """In training against all held-out images, thoroughly against as many as there are samples."""
    judge = cells.Judge(cells.Classifier((1, 28, 28), 10), tiny)
    real, pictures = judge.describe(tiny.test)[0], tiny.train[:60]
    assert judge.real.equal(real) and len(real) == 100
    features, given = judge.describe(pictures)
    found = judge.scores(pictures)
    assert list(found) == ["Frechet distance", "Inception score"]
    expected = cells.frechet_distance(judge.real, features)
    assert found["Frechet distance"] == pytest.approx(expected)
    assert found["Inception score"] == pytest.approx(cells.inception_score(given))
    thorough, real = judge.scores(pictures, thorough=True), judge.real[:60]
    assert thorough["Frechet distance"] == pytest.approx(cells.frechet_distance(real, features))
    expected = 1000 * cells.kernel_distance(real, features)
    assert thorough["KID x 1000"] == pytest.approx(expected)
    assert cells.neighbour_scores(real, features).items() <= thorough.items()


def test_there_is_one_judge_for_a_data_set(cells, tiny, tmp_path, monkeypatch):
    """Trained once and kept beside the runs; one's own goes before the published one."""
    shown, train_classifier = [], cells.train_classifier

    def train(classifier, data, n_images):
        shown.append(n_images)
        train_classifier(classifier, data, 2 * 128)

    monkeypatch.setattr(cells, "train_classifier", train)
    monkeypatch.setattr(cells, "models", tmp_path / "run")
    monkeypatch.setattr(cells, "published", tmp_path / "published")
    first, again = (cells.load_judge(tiny) for _ in range(2))
    assert again.real.equal(first.real) and not again.classifier.training and shown == [2_560]
    (tmp_path / "published").mkdir()
    (tmp_path / "judges").rename(tmp_path / "published" / "judges")
    assert cells.load_judge(tiny).real.equal(first.real) and shown == [2_560]
    monkeypatch.setattr(cells, "profile", "paper")  # whose judge is the one of all other profiles
    cells.load_judge(tiny)
    assert shown == [2_560, 240_000]
    (own,) = (tmp_path / "judges").iterdir()
    assert own.name == "fashion-mnist.pt"
    own.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"fashion-mnist\.pt cannot be read"):
        cells.load_judge(tiny)
