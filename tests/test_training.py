"""Training: each step does what Algorithm 1 says and nothing else; interrupted or side by side,
a training comes out the same.
"""

import os
import re
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import CPU, METHODS, brightness, compare, same_state, train_all, train_one, weights


def snapshot(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(network, before):
    return [name for name, value in network.named_parameters() if not value.equal(before[name])]


def plain_optimizer(settings, network):
    """The library's own, with its defaults."""
    rate = settings.learning_rate
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(network.parameters(), rate)
    betas = (float(settings.beta1), float(settings.beta2))
    return torch.optim.Adam(network.parameters(), rate, betas, foreach=False)


def test_noise_is_standard_normal(run):
    z = run().noise(1000)
    assert z.shape == (1000, 128) and abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02


def check_step(settings, optimizer, network, twin, limit=float("inf")):
    """`network` has made one step of `optimizer`, along the gradients that its `twin` has."""
    plain = plain_optimizer(settings, twin)
    ours, theirs = (one.param_groups[0] for one in (optimizer, plain))
    for name in ("betas", "alpha", "eps", "momentum", "weight_decay"):
        assert ours.get(name) == theirs.get(name)
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-6)
        q.grad = p.grad  # of one near 0, Adam's step would depend on its last bit
    plain.step()
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q.clamp(-limit, limit), rtol=0, atol=settings.learning_rate / 100)


@pytest.mark.parametrize("method", METHODS)
def test_each_step_is_one_step_of_its_network_along_its_methods_loss(cells, run, tiny, method):
    """Losses and optimisers written out here; the penalty by definition, in one backward pass."""
    r, twin = run(method), run(method)
    r.gradient = cells.written_out_gradient
    x = cells.draw_real(tiny.train, 16, torch.Generator().manual_seed(5))
    generator, critic = snapshot(r.generator), snapshot(r.critic)
    cells.critic_step(r, x)
    assert changed(r.critic, critic) and not changed(r.generator, generator)
    assert all(p.grad is None for p in r.generator.parameters())  # generated without a graph
    with torch.no_grad():
        x_tilde = twin.generator(twin.noise(16))
    real, generated = twin.critic(x), twin.critic(x_tilde)
    entropy = F.binary_cross_entropy_with_logits
    loss = generated.mean() - real.mean()
    if method == "DCGAN":
        loss = entropy(real, torch.ones(16)) + entropy(generated, torch.zeros(16))
    if method == "WGAN-GP":
        loss = loss + 10 * cells.gradient_penalty(twin.critic, x, x_tilde, twin.rng)
    loss.backward()
    limit = r.settings.clip or float("inf")
    check_step(r.settings, r.critic_optimizer, r.critic, twin.critic, limit)
    critic = snapshot(r.critic)
    r.critic_optimizer.zero_grad()
    cells.generator_step(r)
    assert changed(r.generator, generator) and not changed(r.critic, critic)
    assert all(p.grad is None and p.requires_grad for p in r.critic.parameters())
    twin.critic.load_state_dict(critic)
    score = twin.critic(twin.generator(twin.noise(16)))
    (entropy(score, torch.ones(16)) if method == "DCGAN" else -score.mean()).backward()
    check_step(r.settings, r.generator_optimizer, r.generator, twin.generator)


def test_bfloat16_is_for_convolutions_alone(cells, run, tiny):
    r = run()
    for precision, expected in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        r.precision = precision
        with r.autocast():
            x = cells.to_float(tiny.train[:4])
            results = [r.critic(x), r.generator(r.noise(4))]
            results += [r.critic.head.weight, cells.written_out_gradient(r.critic, x)]
            assert r.critic.layers(x).dtype == expected
            assert {one.dtype for one in results} == {torch.float32}


@pytest.mark.parametrize(("method", "n_critic"), [("DCGAN", 1), ("WGAN", 5), ("WGAN-GP", 3)])
def test_an_iteration_has_fresh_images_for_each_critic_step_and_clips_after_it(
    cells, run, tiny, monkeypatch, method, n_critic
):
    r = run(method, n_critic=n_critic, learning_rate=0.5)
    critic_step, generator_step, seen, largest = cells.critic_step, cells.generator_step, [], []

    def watched_critic(r, x):
        seen.append(x)
        return critic_step(r, x)

    def watched_generator(r):
        largest.append(weights(r.critic).abs().max().item())
        return generator_step(r)

    monkeypatch.setattr(cells, "critic_step", watched_critic)
    monkeypatch.setattr(cells, "generator_step", watched_generator)
    cells.iterate(r, tiny.train)
    assert list(map(len, seen)) == [r.settings.batch_size] * n_critic
    assert len(largest) == r.iteration == 1
    assert all(not a.equal(b) for i, a in enumerate(seen) for b in seen[:i])
    assert largest[0] == pytest.approx(0.01) if method == "WGAN" else largest[0] > 0.1


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_average_moves_with_the_generator_and_forgets_the_start(cells, run, tiny, decay):
    r = run(ema_decay=decay)
    for expected in (min(decay, 2 / 11), min(decay, 3 / 12)):
        before = weights(r.average)
        cells.iterate(r, tiny.train)
        moved = expected * before + (1 - expected) * weights(r.generator)
        assert torch.allclose(weights(r.average), moved, rtol=0, atol=1e-6)
    r.iteration = 10**6
    cells.set_pace(r)
    assert r.average_decay.item() == pytest.approx(decay)


def test_settled_statistics_are_those_of_the_weights(cells, run, tiny):
    """The first layer's are those of its outputs for the same latents; the original is left."""
    r = run()
    for _ in range(20):
        cells.iterate(r, tiny.train)
    before = snapshot(r.average)
    settled = cells.settled(r.average)
    assert not settled.training and not r.average.training
    assert all(value.equal(before[name]) for name, value in r.average.state_dict().items())
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(1000, r.settings.latent_size, generator=rng)
    linear, norm = settled.layers[:2]
    assert torch.allclose(norm.running_mean, linear(z).mean(0), atol=1e-5)
    variance = linear(z).view(4, 250, -1).var(1).mean(0)
    assert torch.allclose(norm.running_var, variance, rtol=1e-4)
    assert torch.allclose(settled(z[:4]), settled(z)[:4], atol=1e-5)  # whatever its neighbours
    assert not changed(settled, before)


@pytest.mark.parametrize("method", ["WGAN", "WGAN-GP"])  # RMSProp, Adam
@pytest.mark.parametrize("rate", [0.01, 1])  # 1 is an int
@pytest.mark.parametrize(("decay", "shares"), [(0.0, [1, 1, 1]), (0.4, [1, 0.75, 0.25])])
def test_the_learning_rate_falls_along_a_line_at_the_end(cells, run, method, rate, decay, shares):
    """And the optimisers step with it."""
    r = run(method, linear_decay=decay, learning_rate=rate, iterations=10)
    for r.iteration, share in zip((5, 7, 9), shares, strict=True):
        cells.set_pace(r)
        for optimizer in (r.generator_optimizer, r.critic_optimizer):
            assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(rate * share)
    before = weights(r.critic)
    for p in r.critic.parameters():
        p.grad = torch.ones_like(p)
    r.critic_optimizer.step()
    move = (before - weights(r.critic)).mean().item()
    first_step = {"adam": 1, "rmsprop": 10}[r.settings.optimizer]  # for a gradient of 1, in rates
    assert move == pytest.approx(rate * shares[-1] * first_step, rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("recording", ["works", "fails", "fails in the generator's step"])
def test_a_graph_gives_the_same_numbers_recorded_or_not(
    cells, run, tiny, capsys, method, recording
):
    """Three iterations at once, then what an eager stand-in for a graph's recording has made."""
    eager, graphed = (run(method, linear_decay=1.0) for _ in range(2))
    captured = []

    def capture(compute, r, real):
        captured.append((r.iteration, real is tiny.train))
        if recording != "works":
            torch.rand(100, generator=r.rng)
            r.critic.requires_grad_(recording == "fails")
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        return compute

    steps = [cells.iterations(eager, tiny.train)]
    steps.append(cells.iterations(graphed, tiny.train, capture=capture))
    for _ in range(6):
        ours, theirs = (tuple(map(float, next(s))) for s in steps)
        assert ours == theirs and eager.iteration == graphed.iteration
    same_state(cells, eager, graphed)
    said = r"No CUDA graph.*operation not permitted.*\n" if recording != "works" else ""
    assert captured == [(3, True)]
    assert re.fullmatch(said, capsys.readouterr().out)  # once, in one line


def test_held_out_curve_is_the_critics_own_objective(cells, run, tiny, monkeypatch):
    """Not -D(x): generated part and penalty belong to it, against the same generated images."""
    r, calls, objective = run(), [], cells.critic_loss
    r.data = tiny

    def spy(r, x, x_tilde):
        calls.append((x, x_tilde, objective(r, x, x_tilde)))
        return calls[-1][2]

    monkeypatch.setattr(cells, "critic_loss", spy)
    cells.critic_step(r, cells.draw_real(tiny.train, 16, r.rng))
    assert len(calls) == 1  # the function that trains it
    cells.record(r)
    (x, x_tilde, train), (x_held, x_tilde_held, held) = calls[1:]
    assert len(x) == len(x_tilde) == len(x_held) == 256
    parts = [cells.to_float(part).flatten(1) for part in (tiny.train, tiny.test)]
    train_distance, held_distance = (torch.cdist(x_held.flatten(1), part).min(1) for part in parts)
    assert held_distance.values.max() < 0.1 < train_distance.values.min()
    assert x_tilde.equal(x_tilde_held)
    assert r.history["critic_loss_train"] == [train[0].item()]
    assert r.history["critic_loss_held_out"] == [held[0].item()]
    assert held[0] > held[2] - held[1]  # the penalty is in it


def test_recording_and_judging_change_no_weights(cells, run, tiny, tmp_path):
    """The judge is no part of the training's course, and sees the samples that are kept: of the
    settled average, from standard normal noise.
    """
    r, seen = run(seed=5), []
    r.data, r.path = tiny, tmp_path / "WGAN-GP"
    for _ in range(3):
        cells.iterate(r, tiny.train)
    r.iteration = 0
    r.judge = lambda pictures: seen.append(pictures) or {"score": 7.0}
    networks = (r.critic, r.generator, r.average)
    before = [snapshot(network) for network in networks]
    cells.record(r)
    state = r.rng.get_state()
    cells.keep_samples(r, judged=True)
    r.iteration = 4
    cells.keep_samples(r)  # from the same noise
    assert r.rng.get_state().equal(state)
    assert not any(map(changed, networks, before))
    z = torch.randn(200, 128, generator=torch.Generator().manual_seed(5))
    assert len(seen) == 1 and seen[0].equal(cells.generate(cells.settled(r.average), z))
    assert r.quality == {"iteration": [0.0], "seconds": [0.0], "score": [7.0]}
    film = cells.read_film(tmp_path / "WGAN-GP.film", r.frames, (1, 28, 28))
    assert list(film) == [0, 4] and film[0].equal(seen[0][:25]) and film[4].equal(film[0])
    assert cells.read_film(tmp_path / "none.film", r.frames, (1, 28, 28)) == {}


def test_records_and_frames_are_when_they_should_be_and_the_clock_counts_the_training_alone(
    cells, tiny, tmp_path, monkeypatch
):
    """It waits for the device before samples are kept, and stands still while they are judged."""
    check, keep, seen = cells.check_finite, cells.keep_samples, []

    def waiting(r, losses):
        seen.append("waits")
        check(r, losses)

    def keeping(r, *given):
        seen.append(r.iteration)
        keep(r, *given)

    def slow(pictures):
        time.sleep(0.1)
        return {"score": 0.0}

    monkeypatch.setattr(cells, "check_finite", waiting)
    monkeypatch.setattr(cells, "keep_samples", keeping)
    chosen = cells.profile_settings("smoke", "DCGAN", iterations=40, record_every=10)
    stages = cells.stages(chosen, len(tiny.train))
    recorded, frames = sorted(stages | {10, 20, 30}), sorted(stages | {20})
    start = time.monotonic()
    trained = train_one(cells, chosen, tiny, tmp_path, judge=slow)
    passed = time.monotonic() - start
    assert not stages & {10, 20, 30} and trained.history["iteration"] == recorded
    waits = [what for i in recorded for what in ("waits", i)]
    assert seen == [0] + [what for what in waits if what in ("waits", *frames)]
    assert trained.frames == [0, *frames] and trained.quality["iteration"] == sorted(stages)
    assert 0 < trained.seconds < passed - 0.1 * len(stages)
    assert trained.quality["seconds"] == sorted(trained.quality["seconds"])


@pytest.mark.parametrize(("method", "one", "ten"), [("DCGAN", 938, 9375), ("WGAN-GP", 188, 1875)])
def test_stages_are_24_in_geometric_progression_and_the_first_and_the_tenth_epoch(
    cells, method, one, ten
):
    paper = cells.PAPER[method]
    assert [cells.epoch_end(epoch, paper, 60_000) for epoch in (1, 10)] == [one, ten]
    assert {one, ten, paper.iterations} <= cells.stages(paper, 60_000)
    first, *between = sorted(cells.stages(paper, 60_000) - {one, ten})
    assert first == 800 and len(between) == 23  # each a third later than the one before
    assert all(1.25 < b / a < 1.3 for a, b in pairwise([first, *between]))
    assert max(cells.stages(cells.replace(paper, iterations=1000), 60_000)) == 1000
    for profile in ("quick", "standard", "paper"):
        chosen = cells.profile_settings(profile, method)
        assert chosen.iterations >= cells.epoch_end(10, chosen, 60_000)


@pytest.mark.parametrize("spoiled", ["critic before", "critic after", "generator after"])
def test_what_is_not_finite_ends_the_training_and_is_not_saved(
    cells, tiny, tmp_path, monkeypatch, spoiled
):
    """Losses are those before an iteration's last update, which may spoil the weights alone."""
    network, _, when = spoiled.partition(" ")
    iterate, at = cells.iterate, 5 if when == "before" else 6

    def spoiling(r, *given):
        losses = iterate(r, *given) if when == "after" else None
        if r.iteration == at:
            torch.nn.init.constant_(list(getattr(r, network).parameters())[-1], float("nan"))
        return losses or iterate(r, *given)

    monkeypatch.setattr(cells, "iterate", spoiling)
    said = r"WGAN-GP: loss or weights not finite by iteration 6.*rate below"
    with pytest.raises(FloatingPointError, match=said):
        train_one(cells, cells.profile_settings("smoke", "WGAN-GP"), tiny, tmp_path, save_seconds=0)
    _, saved = cells.newest_checkpoint(tmp_path / "WGAN-GP")
    assert saved["iteration"] == 5
    assert all(value.isfinite().all() for value in saved[network].values())


@pytest.fixture(scope="module")
def alone(cells, tiny, tmp_path_factory):
    """alone(precision): the whole training of each method by itself, with one thread."""

    @cache
    def make(precision="float32"):
        before, folder = torch.get_num_threads(), tmp_path_factory.mktemp("alone")
        torch.set_num_threads(1)
        several, common = [cells.profile_settings("smoke", m) for m in METHODS], (tiny, folder, CPU)
        runs = [train_one(cells, one, *common, precision, brightness) for one in several]
        torch.set_num_threads(before)
        return dict(zip(METHODS, runs, strict=True))

    return make


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize(
    ("number", "taken", "precision"),
    [(2, "newest", "float32"), (15, "older", "float32"), (2, "newest", "bfloat16")],
)
def test_trainings_side_by_side_stop_and_go_on_as_though_each_were_alone_and_never_stopped(
    cells, tiny, tmp_path, monkeypatch, capsys, alone, number, taken, precision
):
    """Bit for bit, film and all, also from the older of two checkpoints; a fourth had to wait."""
    where = dict(zip(("WGAN-GP", "WGAN", "DCGAN", "late/WGAN"), (3, 5, 4, 0), strict=True))
    go_on, step, usual, seen = cells.go_on, cells.generator_step, handlers(), set()
    events, arrived, threads = [], threading.Barrier(3), torch.get_num_threads()

    def begin():
        common = tiny, brightness, "resume", (CPU, precision)
        chosen = {name: cells.profile_settings("smoke", Path(name).name) for name in where}
        return [cells.start_run(tmp_path / name, chosen[name], *common) for name in where]

    def stopping(r):
        seen.add(torch.get_num_threads())
        if where[r.settings.method] == r.iteration:
            if arrived.wait(timeout=60) == 0:  # three are at work
                os.kill(os.getpid(), number)
            assert events[0].wait(timeout=60)
        return step(r)

    torch.set_num_threads(4)  # one each
    with monkeypatch.context() as patch:
        patch.setattr(cells, "go_on", lambda *given: (events.append(given[1]), go_on(*given)))
        patch.setattr(cells, "generator_step", stopping)
        stopped = [f"{at + (at > 0)} ({tmp_path / name})" for name, at in where.items()]
        said = f"saved at iteration {', '.join(stopped)}; run again with START='resume'"
        with pytest.raises(KeyboardInterrupt, match=re.escape(said)):
            cells.train(begin(), save_seconds=60 * (taken == "newest"))  # once, or each time
    with ThreadPoolExecutor(1) as pool:  # new threads, too, have as many as before
        assert seen == {1} and pool.submit(torch.get_num_threads).result() == 4
    torch.set_num_threads(threads)
    assert handlers() == usual
    for name in where if taken == "older" else ():
        if there := cells.newest_checkpoint(tmp_path / name):
            there[0].unlink()
    capsys.readouterr()
    cells.train(resumed := begin())
    printed = capsys.readouterr().out
    for run, (name, at) in zip(resumed, where.items(), strict=True):
        found = f"at iteration {at + (taken == 'newest')} of 12" if at else "new"
        assert f"{tmp_path / name}: {found}\n" in printed
        same_state(cells, alone(precision)[run.settings.method], run)
        assert run.history["seconds"] == sorted(run.history["seconds"])  # its clock goes on, too
        assert run.path.with_suffix(".film").stat().st_size == len(run.frames) * 25 * 28 * 28


def test_outside_the_main_thread_a_training_works_and_leaves_signals_alone(
    cells, tiny, tmp_path, alone
):
    usual, seen = handlers(), []
    chosen = cells.profile_settings("smoke", "WGAN"), tiny, tmp_path
    options = {"judge": brightness, "look": lambda runs: seen.append(handlers())}
    with ThreadPoolExecutor(1) as pool:
        trained = pool.submit(train_one, cells, *chosen, **options).result()
    same_state(cells, trained, alone()["WGAN"])
    assert seen and all(found == usual for found in seen)


def test_a_handler_that_is_not_pythons_stays(cells, monkeypatch):
    """signal.getsignal says None of it, and nothing could put it back."""
    usual, known = handlers(), signal.getsignal
    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda n: None if n == signal.SIGINT else known(n))
        with cells.deferred_interrupts():
            assert known(signal.SIGINT) == usual[0] and known(signal.SIGTERM) != usual[1]
    assert handlers() == usual


def test_the_plan_has_what_the_parameters_ask_for(cells, tiny, monkeypatch):
    labels = tiny.train_labels.repeat(6)
    many = cells.replace(tiny, train=tiny.train.repeat(6, 1, 1, 1), train_labels=labels)
    monkeypatch.setattr(cells, "data", many, raising=False)
    monkeypatch.setattr(cells, "judge", SimpleNamespace(scores=brightness), raising=False)
    own = {m: cells.replace(s, linear_decay=0.3) for m, s in cells.settings.items()}
    monkeypatch.setattr(cells, "settings", own)
    names = ["WGAN-GP", "WGAN", "DCGAN", "rmsprop/WGAN-GP", "few_images/WGAN-GP", "few_images/WGAN"]
    paths, settings, images, judges = zip(*cells.plan(), strict=True)
    assert list(paths) == [cells.models / name for name in names]
    assert [len(some.train) for some in images] == [1200] * 4 + [1000] * 2
    assert list(judges) == [brightness] * 4 + [None] * 2
    rate = {"optimizer": "rmsprop", "learning_rate": own["WGAN"].learning_rate}
    small = {"width": 16, "n_critic": 5, "record_every": 10, "linear_decay": 0.0, "iterations": 4}
    expected = [cells.replace(own["WGAN-GP"], **rate, linear_decay=0.0, iterations=9)]
    expected += [cells.replace(own[method], **small) for method in ("WGAN-GP", "WGAN")]
    assert list(settings) == [own[path.name] for path in paths[:3]] + expected
    asked = {"data": (tiny, names[:4]), "TEST_CLAIMS": (False, names[:3])}
    asked["methods"] = ["DCGAN", "WGAN-GP"], ["WGAN-GP", "DCGAN"]
    for name, (value, expected) in asked.items():
        monkeypatch.setattr(cells, name, value)
        assert [path for path, *_ in cells.plan()] == [cells.models / name for name in expected]


def test_a_training_that_fails_leaves_the_others_alone(
    cells, tiny, tmp_path, monkeypatch, capsys, alone
):
    """It says so at once, the others come to their end, and only then its error is raised."""
    chosen = [cells.profile_settings("smoke", method) for method in METHODS]
    step, error = cells.generator_step, "WGAN-GP: loss or weights not finite by iteration 4"

    def failing(r):
        if r.settings.method == "WGAN-GP" and r.iteration == 3:
            torch.nn.init.constant_(r.critic.head.weight, float("nan"))
        if r.settings.method == "DCGAN" and r.iteration == 5:
            end = time.monotonic() + 60
            while error not in sys.stdout.getvalue():
                assert time.monotonic() < end
                time.sleep(0.01)
        return step(r)

    with monkeypatch.context() as patch:
        patch.setattr(cells, "generator_step", failing)
        with pytest.raises(FloatingPointError, match=error):
            train_all(cells, chosen, tiny, tmp_path, judge=brightness)
    capsys.readouterr()
    again = train_all(cells, chosen, tiny, tmp_path, judge=brightness)
    printed = capsys.readouterr().out
    assert "WGAN-GP: new\n" in printed and printed.count("at iteration 12 of 12") == 2
    for method, expected in alone().items():
        same_state(cells, again[method], expected)


def test_lines_and_figure_are_redrawn_in_place_and_change_no_training(
    cells, tiny, tmp_path, monkeypatch, capsys, alone
):
    """The figure after so many seconds, and when all have ended; the lines each time."""
    step, drawn, shown, png = cells.generator_step, threading.Event(), [], tmp_path / "training.png"

    def show(what, **how):
        shown.append(what)
        if isinstance(what, cells.Picture):
            drawn.set()
        return SimpleNamespace(update=show)

    def waiting(r):
        assert r.iteration < 6 or drawn.wait(timeout=60)
        return step(r)

    for place in ("models", "figures"):
        monkeypatch.setattr(cells, place, tmp_path)
    monkeypatch.setattr(cells, "display", show)
    monkeypatch.setattr(cells, "generator_step", waiting)
    chosen, look = cells.profile_settings("smoke", "WGAN"), cells.LiveView(every=0)
    assert str(png) in capsys.readouterr().out

    def judge(pictures):
        return {"brightness": brightness(pictures)["brightness"], "Frechet distance": 7.0}

    trained = train_one(cells, chosen, tiny, tmp_path, judge=judge, look=look)
    del trained.quality["Frechet distance"]
    same_state(cells, trained, alone()["WGAN"])
    lines = [what["text/plain"] for what in shown if isinstance(what, dict)]
    loss = -trained.history["critic_loss_train"][-1]
    said = rf"WGAN: 100%\|█+\| 12/12 \[.*(it/s|s/it), negative loss {loss:.3g}, Frechet 7\.00\]"
    assert re.fullmatch(said, lines[-1]) and len(lines[-1]) <= 100
    look.every = 1000
    for iteration, redrawn in ((11, False), (12, True)):
        png.unlink(missing_ok=True)
        trained.iteration = iteration
        look([trained])
        assert png.exists() == redrawn


def test_what_looks_on_may_fail_and_the_trainings_end_with_all_threads_given_back(
    cells, tiny, tmp_path
):
    def failing(runs):
        raise OSError("no space left for the figure")

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    several = [cells.profile_settings("smoke", method) for method in METHODS]
    with pytest.raises(OSError, match="no space left"):
        train_all(cells, several, tiny, tmp_path, look=failing)
    with ThreadPoolExecutor(1) as later:  # what torch counts, it counts for each thread
        assert later.submit(torch.get_num_threads).result() == torch.get_num_threads() == 3
    torch.set_num_threads(before)
    assert all(cells.newest_checkpoint(tmp_path / m)[1]["iteration"] == 12 for m in METHODS)


def test_a_new_choice_of_device_and_precision_holds_for_the_next_training(
    cells, tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(cells, "precision", "bfloat16")
    run = cells.start_run(tmp_path / "WGAN", cells.profile_settings("smoke", "WGAN"), tiny)
    assert run.precision == "bfloat16"


def test_start_says_what_it_does_and_afresh_deletes_what_was_there(cells, tiny, tmp_path, capsys):
    chosen = cells.profile_settings("smoke", "WGAN")
    train_one(cells, cells.profile_settings("smoke", "WGAN-GP"), tiny, tmp_path)
    runs = []
    for start, said in (("resume", "new"), ("resume", "at iteration 12 of 12"), ("afresh", "new")):
        capsys.readouterr()
        runs.append(train_one(cells, chosen, tiny, tmp_path, start=start))
        assert capsys.readouterr().out == f"{tmp_path / 'WGAN'}: {said}\n"
        same_state(cells, runs[0], runs[-1])
    cells.start_run(tmp_path / "WGAN", chosen, tiny, start="afresh")
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"WGAN-GP"}


def test_images_of_another_data_set_are_refused_by_name(cells, tiny, tmp_path):
    """As when DATASET was changed, and its cell run, but not the one that loads the images."""
    other, chosen = cells.replace(tiny, name="mnist"), cells.profile_settings("smoke", "WGAN")
    with pytest.raises(ValueError, match="'mnist'; needed: 'fashion-mnist'"):
        cells.start_run(tmp_path / "WGAN", chosen, other)
    assert not list(tmp_path.iterdir())


def test_evaluation_needs_the_weights_file_alone(cells, tiny, tmp_path):
    """It holds the settled average and what was recorded; other images' are refused."""
    chosen = cells.profile_settings("smoke", "WGAN-GP")
    trained = train_one(cells, chosen, tiny, tmp_path, judge=brightness)
    for path in cells.checkpoints(tmp_path / "WGAN-GP"):
        path.unlink(missing_ok=True)
    generator, saved = cells.load_generator(tmp_path / "WGAN-GP.pt", (1, 28, 28), CPU)
    expected = cells.settled(trained.average)
    compare(dict(generator.state_dict()), dict(expected.state_dict()), "generator")
    assert not generator.training and saved["settings"] == cells.asdict(chosen)
    assert saved["quality"] == trained.quality and saved["frames"] == trained.frames
    assert trained.gradient is cells.written_out_gradient
    with pytest.raises(ValueError, match=r"WGAN-GP\.pt does not fit .*images of \[3, 32, 32\]"):
        cells.load_generator(tmp_path / "WGAN-GP.pt", (3, 32, 32), CPU)
