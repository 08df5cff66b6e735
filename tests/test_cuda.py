"""What only a CUDA device can show: the graph computes what the steps compute, and everything works there."""

import math
import os
import signal

import nbformat
import pytest
import torch
from conftest import DATA_DIR, METHODS, brightness, same_state, train_all, train_one
from notebook_cells import NOTEBOOK
from run import execute, set_parameters

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
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
    parts = (getattr(tiny, name).to(CUDA) for name in ("train", "train_labels", "test", "test_labels"))
    return cells.ImageData(*parts, tiny.names)


def new_run(cells, method, precision="float32", **changes):
    settings = cells.profile_settings("smoke", method, **changes)
    return cells.new_run(settings, cells.build_networks(settings, (1, 28, 28), CUDA), CUDA, precision)


def flat(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("method", "changes"), [*((m, {}) for m in METHODS), ("WGAN-GP", {"optimizer": "rmsprop", "learning_rate": 1e-3})]
)
def test_the_graph_computes_what_the_steps_compute(cells, there, precision, method, changes):
    """With a learning rate that falls. The same random numbers, bit for bit; the rest up to the order of additions."""
    eager, graphed = (new_run(cells, method, precision, linear_decay=1.0, **changes) for _ in range(2))
    start = {name: flat(getattr(eager, name)) for name in ("critic", "generator", "average")}
    steps = cells.iterations(eager, there.train)
    with cells.iterating(graphed, there.train) as replayed:
        for _ in range(10):
            losses = [torch.tensor(list(map(float, next(run)))) for run in (steps, replayed)]
            assert torch.allclose(*losses, rtol=1e-3, atol=1e-3)
    assert eager.rng.get_state().equal(graphed.rng.get_state()) and eager.iteration == graphed.iteration == 10
    for name, before in start.items():
        ours, theirs = (flat(getattr(r, name)) for r in (eager, graphed))
        assert (ours - theirs).norm() < 0.05 * (ours - before).norm(), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_on_cuda(cells, there, tmp_path, method, precision):
    trained = train_one(cells, cells.profile_settings("smoke", method), there, tmp_path, CUDA, precision)
    assert trained.iteration == 12 and next(trained.generator.parameters()).is_cuda
    on_cpu, _ = cells.load_generator(tmp_path / f"{method}.pt", (1, 28, 28), torch.device("cpu"))
    z = torch.randn(4, 128)
    pictures = cells.generate(on_cpu, z)
    on_gpu, _ = cells.load_generator(tmp_path / f"{method}.pt", (1, 28, 28), CUDA)
    difference = pictures.int() - cells.generate(on_gpu, z.to(CUDA)).cpu().int()
    assert pictures.shape == (4, 1, 28, 28) and difference.abs().max() <= 2


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_training_goes_on_as_though_it_never_stopped(cells, there, tmp_path, monkeypatch, method):
    """Stopped while iterations come from the graph; the one that goes on has a graph of its own."""
    settings = cells.profile_settings("smoke", method)
    whole = train_one(cells, settings, there, tmp_path / "whole", CUDA, judge=brightness)
    pace = cells.set_pace

    def interrupting(r):
        if r.iteration == 6:
            os.kill(os.getpid(), signal.SIGINT)
        pace(r)

    with monkeypatch.context() as patch:
        patch.setattr(cells, "set_pace", interrupting)
        with pytest.raises(KeyboardInterrupt, match="saved at iteration 7"):
            train_one(cells, settings, there, tmp_path / "parts", CUDA, judge=brightness)
    resumed = train_one(cells, settings, there, tmp_path / "parts", CUDA, judge=brightness)
    same_state(cells, whole, resumed)


def test_several_trainings_equal_single_ones(cells, there, tmp_path):
    settings = [cells.profile_settings("smoke", method) for method in METHODS]
    together = train_all(cells, settings, there, tmp_path / "all", CUDA, judge=brightness)
    for chosen in settings:
        alone = train_one(cells, chosen, there, tmp_path / "alone", CUDA, judge=brightness)
        same_state(cells, together[chosen.method], alone)


def test_images_in_host_memory_train_too(cells, tiny, tmp_path):
    """Where they do not fit on the device: without a graph, since batches have to be moved."""
    trained = train_one(cells, cells.profile_settings("smoke", "WGAN-GP"), tiny, tmp_path, CUDA)
    assert trained.iteration == 12 and all(map(math.isfinite, trained.history["critic_loss_train"]))


def test_batches_from_host_memory_arrive_on_the_gpu(cells, tiny):
    r = new_run(cells, "WGAN")
    x = r.draw(tiny.train, 32)
    expected = cells.draw_real(tiny.train, 32, torch.Generator().manual_seed(r.settings.seed))
    assert x.device.type == "cuda" and cells.to_uint8(x).cpu().equal(cells.to_uint8(expected))


def test_a_loss_that_is_not_finite_ends_the_training(cells, there, tmp_path, monkeypatch):
    """Also when the graph computes it."""
    pace = cells.set_pace

    def poisoning(r):
        if r.iteration == 5:
            torch.nn.init.constant_(r.critic.head.weight, math.nan)
        pace(r)

    monkeypatch.setattr(cells, "set_pace", poisoning)
    with pytest.raises(FloatingPointError, match="WGAN-GP: loss or weights not finite by iteration 6"):
        train_one(cells, cells.profile_settings("smoke", "WGAN-GP"), there, tmp_path, CUDA)


def test_too_little_memory_is_said(cells, there, tmp_path):
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + 300e6
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(CUDA).total_memory)
    settings = cells.profile_settings("smoke", "WGAN-GP", width=64, batch_size=16384)
    try:
        with pytest.raises(MemoryError, match="batches of 16384 at width 64 do not fit in the memory of cuda"):
            train_one(cells, settings, there, tmp_path, CUDA)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("method", ["WGAN", "WGAN-GP"])
def test_toy_critics_come_out_the_same_from_a_graph(cells, monkeypatch, method):
    monkeypatch.setattr(cells, "device", CUDA)
    graphed = cells.fit_critic(method, cells.swiss_roll, 0, 16, 8, 1e-3)
    monkeypatch.setattr(cells, "captured", lambda compute, run, real: compute)
    eager = cells.fit_critic(method, cells.swiss_roll, 0, 16, 8, 1e-3)
    assert all(a.equal(b) for a, b in zip(graphed.critic.parameters(), eager.critic.parameters(), strict=True))


def test_scores_are_those_of_the_cpu(cells, fashion_mnist):
    """The same classifier, asked on both devices."""
    classifier = cells.train_classifier(fashion_mnist, 20_000, CUDA, "float32")
    answers = [
        cells.describe(classifier.to(device), fashion_mnist.test[:2000].to(device), "classes")
        for device in (CUDA, torch.device("cpu"))
    ]
    real, _ = cells.describe(classifier, fashion_mnist.train[:2000])
    first, second = (cells.all_scores(real, described, "classes") for described in answers)
    assert first == pytest.approx(second, rel=0.02)


def test_the_whole_notebook_runs_on_cuda(tmp_path, fashion_mnist):  # which are in DATA_DIR then
    notebook = nbformat.read(NOTEBOOK, 4)
    (tmp_path / "data").symlink_to(DATA_DIR.resolve())
    set_parameters(notebook, {"PROFILE": "smoke", "DEVICE": "cuda", "EVALUATION_SEED": 0})
    execute(notebook, tmp_path, echo=False)
    printed = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert f"Profile smoke on {torch.cuda.get_device_name()}" in printed and "held on cuda" in printed
