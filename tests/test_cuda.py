"""What only a CUDA device can show: the graph computes what the steps compute, all works there."""

import os
import signal
import threading

import pytest
import torch
from conftest import CPU, METHODS, brightness, same_state, train_all, train_one, weights
from test_notebook import printed, run_notebook

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
CUDA = torch.device("cuda")
NATIVE = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
EMULATED = pytest.mark.skipif(not NATIVE, reason="this GPU has no bfloat16")
PRECISIONS = ["float32", pytest.param("bfloat16", marks=EMULATED)]


@pytest.fixture(autouse=True)
def repeatable(monkeypatch):
    """Convolutions that add in the same order each time."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


@pytest.fixture(scope="module")
def there(cells, tiny):
    """`tiny` on the device."""
    parts = ("train", "train_labels", "test", "test_labels")
    return cells.replace(tiny, **{name: getattr(tiny, name).to(CUDA) for name in parts})


def new_run(cells, method, precision="float32", **changes):
    settings = cells.profile_settings("smoke", method, **changes)
    networks = cells.build_networks(settings, (1, 28, 28), CUDA)
    run = cells.new_run(settings, networks, CUDA, precision)
    if settings.penalty_weight:
        run.gradient = cells.written_out_gradient
    return run


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", [*METHODS, "WGAN-GP with RMSProp"])
def test_the_graph_computes_what_the_steps_compute(cells, there, capsys, precision, method):
    """With a learning rate that falls; up to the order of additions, the same random numbers."""
    method, _, other = method.partition(" ")
    changes = {"optimizer": "rmsprop", "learning_rate": 1e-3} if other else {}
    runs = [new_run(cells, method, precision, linear_decay=1.0, **changes) for _ in range(2)]
    eager, graphed = runs
    start = {name: weights(getattr(eager, name)) for name in ("critic", "generator", "average")}
    steps = cells.iterations(eager, there.train)
    with cells.iterating(graphed, there.train) as replayed:
        for _ in range(10):
            losses = [torch.tensor(list(map(float, next(run)))) for run in (steps, replayed)]
            assert torch.allclose(*losses, rtol=1e-3, atol=1e-3)
    assert "No CUDA graph" not in capsys.readouterr().out
    assert eager.rng.get_state().equal(graphed.rng.get_state())
    assert eager.iteration == graphed.iteration == 10
    for name, before in start.items():
        ours, theirs = (weights(getattr(r, name)) for r in runs)
        assert (ours - theirs).norm() < 0.05 * (ours - before).norm(), name


def test_without_a_graph_the_training_goes_on(cells, there, monkeypatch, capsys):
    """Recording meets what cannot be recorded: waiting for the device, in the generator's step."""
    eager, fallen = (new_run(cells, "WGAN-GP") for _ in range(2))
    loss = cells.wasserstein_generator_loss

    def waiting(generated):
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()
        return loss(generated)

    monkeypatch.setitem(cells.LOSSES, "wasserstein", (cells.wasserstein_critic_loss, waiting))
    steps = cells.iterations(eager, there.train)
    with cells.iterating(fallen, there.train) as others:
        for _ in range(6):
            ours, theirs = (torch.tensor(list(map(float, next(run)))) for run in (steps, others))
            assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3)
    assert capsys.readouterr().out.count("No CUDA graph") == 1
    assert eager.rng.get_state().equal(fallen.rng.get_state())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_trained_on_cuda_is_evaluated_anywhere(cells, there, tmp_path, method, precision):
    settings = cells.profile_settings("smoke", method)
    trained = train_one(cells, settings, there, tmp_path, CUDA, precision)
    assert trained.iteration == 12 and next(trained.generator.parameters()).is_cuda
    z, pictures = torch.randn(4, 128), []
    for device in (CPU, CUDA):
        generator, _ = cells.load_generator(tmp_path / f"{method}.pt", (1, 28, 28), device)
        pictures.append(cells.generate(generator, z.to(device)).cpu().int())
    assert pictures[0].shape == (4, 1, 28, 28)
    assert (pictures[0] - pictures[1]).abs().max() <= 2


def test_trainings_side_by_side_stop_and_go_on_as_though_each_were_alone_and_never_stopped(
    cells, there, tmp_path, monkeypatch
):
    """Stopped while iterations come from the graphs; what goes on has graphs of its own."""
    several = [cells.profile_settings("smoke", method, iterations=40) for method in METHODS]
    pace, arrived = cells.set_pace, threading.Barrier(3)

    def interrupting(r):
        if r.iteration == 6 and arrived.wait(timeout=60) == 0:
            os.kill(os.getpid(), signal.SIGINT)
        pace(r)

    with monkeypatch.context() as patch:
        patch.setattr(cells, "set_pace", interrupting)
        with pytest.raises(KeyboardInterrupt, match=r"saved at iteration \d+ "):
            train_all(cells, several, there, tmp_path / "parts", CUDA, judge=brightness)
    resumed = train_all(cells, several, there, tmp_path / "parts", CUDA, judge=brightness)
    for chosen in several:
        alone = train_one(cells, chosen, there, tmp_path / "alone", CUDA, judge=brightness)
        same_state(cells, resumed[chosen.method], alone)


def test_scores_are_those_of_the_cpu(cells, fashion_mnist):
    """The same classifier, asked on both devices."""
    parts = ("train", "train_labels", "test", "test_labels")
    moved = {name: getattr(fashion_mnist, name).to(CUDA) for name in parts}
    data = cells.replace(fashion_mnist, **moved)
    classifier, scores = cells.Classifier((1, 28, 28), 10).to(CUDA), []
    cells.train_classifier(classifier, data, 20_000)
    for device, images in ((CUDA, data), (CPU, fashion_mnist)):
        judge = cells.Judge(classifier.to(device), images)
        scores.append(judge.scores(images.train[:2000], thorough=True))
    assert scores[0] == pytest.approx(scores[1], rel=0.02)


def test_the_whole_notebook_runs_on_cuda(tmp_path, fashion_mnist):
    notebook = run_notebook(tmp_path, DEVICE="cuda", EVALUATION_SEED=0)
    text = printed(notebook)
    assert "Profile smoke on cuda" in text and torch.cuda.get_device_name() in text
    assert "No CUDA graph" not in text
