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


def test_frechet_distance_equals_torchmetrics(cells, features):
    expected = asked(FrechetInceptionDistance(feature=Identity()), features).item()
    assert cells.frechet_distance(*features) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("block", [600, 1000])
def test_kernel_distance_equals_torchmetrics(cells, features, block):
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


def test_inception_score_equals_torchmetrics_and_reaches_its_bounds(cells):
    logits = torch.randn(400, 24, dtype=torch.float64) * 3
    oracle = InceptionScore(feature=Identity(), normalize=False, splits=1)
    oracle.update(logits)
    expected = oracle.compute()[0].item()
    assert cells.inception_score(logits.softmax(1)) == pytest.approx(expected, rel=1e-5)
    assert cells.inception_score(torch.eye(10).repeat(5, 1)) == pytest.approx(10)
    assert cells.inception_score(torch.full((50, 10), 0.1)) == pytest.approx(1)


def test_precision_and_recall_equal_torch_fidelitys(cells, features):
    real, generated = (f.float() for f in features)
    options = {"prc_neighborhood": 3, "prc_batch_size": 500, "verbose": False}
    oracle = prc_features_to_metric(generated, real, **options)
    found = cells.neighbour_scores(real, generated)
    for name in ("precision", "recall"):
        assert found[name] == pytest.approx(oracle[name], abs=2 / 600)
    assert found["precision"] != found["recall"]


def test_copies_are_scored_as_torch_fidelity_scores_them(cells):
    """Whole numbers, whose distances its arithmetic has exactly; a set against itself has 1."""
    rng = torch.Generator().manual_seed(0)
    x, other = torch.randn(2, 50, 128, generator=rng)
    real = (9 * x).round().repeat(6, 1)
    near = real[:50] + torch.randint(-1, 2, (50, 128), generator=rng)
    generated = torch.cat([real[:20], near.repeat(4, 1), (9 * other).round().repeat(2, 1)])
    options = {"prc_neighborhood": 3, "prc_batch_size": 500, "verbose": False}
    for a, b in ((real, generated), (near.repeat(2, 1), generated), (generated, near)):
        found, oracle = cells.neighbour_scores(a, b), prc_features_to_metric(b, a, **options)
        assert [found[name] == oracle[name] for name in ("precision", "recall")] == [True] * 2
    for scale in (1e-6, 1, 1e6):
        x = scale * torch.randn(50, 128, generator=rng).repeat(6, 1)
        assert set(cells.neighbour_scores(x, x).values()) == {1}
        assert (cells.distances(x, x[:50]) == 0).sum() == 300  # its copies, and no others
        assert cells.distances(x, x[:50] * 1.001).min() > 0


def test_coverage_equals_its_definition(cells, features):
    real, generated = features[0][:120].numpy(), 1.6 * features[1][:120].numpy()
    radius = [np.sort(np.linalg.norm(real - x, axis=1))[5] for x in real]  # 0 is itself
    pairs = zip(real, radius, strict=True)
    covered = [np.linalg.norm(generated - x, axis=1).min() < r for x, r in pairs]
    found = cells.neighbour_scores(*(torch.from_numpy(f) for f in (real, generated)))
    assert found["coverage"] == pytest.approx(np.mean(covered)) and 0 < np.mean(covered) < 1


def test_far_equal_and_collapsed_samples_get_the_scores_they_deserve(cells):
    real = torch.randn(300, 4)
    far = cells.neighbour_scores(real, real + 1000)
    assert far == {"precision": 0, "recall": 0, "coverage": 0}
    assert set(cells.neighbour_scores(real, real).values()) == {1}
    collapsed = cells.neighbour_scores(real, real[:1].repeat(300, 1))
    assert collapsed["precision"] == 1
    assert collapsed["recall"] < 0.05 and collapsed["coverage"] < 0.1


def test_the_nearest_is_found_across_chunks(cells):
    known, index = torch.randn(2000, 20), torch.tensor([0, 833, 1999])
    found = cells.nearest(known[index] + 1e-4, known, nn.Identity(), chunk=300)
    assert found[1].equal(index) and found[0].max() < 1e-2


# The judge


def striped(cells, target):
    """Images where what is asked can be seen: each has its own half or edge made bright."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(100, (400, 1, 28, 28), generator=rng, dtype=torch.uint8)
    labels = torch.randint(2, (400, 2), generator=rng)
    if target == "rotations":
        images[:, :, :10] += 100  # the sky is above
    else:
        images[labels[:, 0] > 0, :, :14] += 100
        images[labels[:, 1] > 0, :, :, :14] += 50
    labels = labels[:, 0] + 2 * labels[:, 1]
    parts = (images[:300], labels[:300], images[300:], labels[300:])
    return cells.ImageData(*parts, list("0123"), target)


@pytest.mark.parametrize("target", ["classes", "rotations"])
def test_the_judge_learns_what_can_be_seen(cells, target):
    data, classifier = striped(cells, target), cells.Classifier((1, 28, 28), 4)
    assert cells.Judge(classifier, data).accuracy < 0.8
    cells.train_classifier(classifier.train(), data, 6400)
    judge = cells.Judge(classifier, data)
    assert judge.accuracy > 0.95 and not classifier.training
    wrong = cells.replace(data, test_labels=(data.test_labels + 1) % 4)
    assert cells.Judge(classifier, wrong).accuracy < 0.05 or target == "rotations"
    features, given = judge.describe(data.test, batch=7)
    assert features.shape == (100, 128) and given.shape == (100, 4)
    assert given.sum(1).allclose(torch.ones(100))


def test_the_judge_is_shown_every_training_image_and_no_other(cells, tiny):
    shown = []

    class Watching(nn.Linear):
        def forward(self, images):
            shown.append(images.flatten(1))
            return super().forward(shown[-1])

    cells.train_classifier(Watching(784, 10), tiny, 20 * 128)
    distance = torch.cdist(torch.cat(shown), cells.to_float(tiny.train).flatten(1))
    assert len(shown) == 20 and distance.min(0).values.max() < 0.1 > distance.min(1).values.max()


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
    """Trained once, kept beside the runs of any seed; one's own goes before the published one."""
    shown, train_classifier = [], cells.train_classifier

    def train(classifier, data, n_images):
        shown.append(n_images)
        train_classifier(classifier, data, 2 * 128)

    monkeypatch.setattr(cells, "train_classifier", train)
    monkeypatch.setattr(cells, "published", tmp_path / "published")
    monkeypatch.setattr(cells, "models", tmp_path / "run-seed0")
    first = cells.load_judge(tiny)
    monkeypatch.setattr(cells, "models", tmp_path / "run-seed1")
    again = cells.load_judge(tiny)
    assert again.real.equal(first.real) and not again.classifier.training and shown == [2_560]
    (tmp_path / "published").mkdir()
    (tmp_path / "judges").rename(tmp_path / "published" / "judges")
    assert cells.load_judge(tiny).real.equal(first.real) and shown == [2_560]
    monkeypatch.setattr(cells, "profile", "paper")  # whose judge is the one of all other profiles
    cells.load_judge(tiny)
    assert shown == [2_560, 240_000]
    (own,) = (tmp_path / "judges").iterdir()
    assert own.name == "fashion-mnist.pt"
    cells.load_judge(cells.replace(tiny, name="other"))  # section 1 run again, with other data
    assert shown == [2_560, 240_000, 240_000] and (own.parent / "other.pt").exists()
    own.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"fashion-mnist\.pt cannot be read"):
        cells.load_judge(tiny)
