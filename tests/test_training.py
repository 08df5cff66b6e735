"""Training: each step does what Algorithm 1 says and nothing else; interrupted or side by side,
a training comes out the same.
"""

import os
import re
import signal
import threading
import time
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import CPU, METHODS, brightness, compare, same_state, train_all, train_one


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


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


@pytest.mark.parametrize("method", METHODS)
def test_each_step_is_one_step_of_its_network_along_its_methods_loss(cells, run, tiny, method):
    """Losses and optimisers written out here; the penalty by definition, in one backward pass."""
    r, twin = run(method), run(method)
    r.gradient, rate = cells.written_out_gradient, r.settings.learning_rate
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
    plain_optimizer(r.settings, twin.critic).step()
    limit = r.settings.clip or float("inf")
    for p, q in zip(r.critic.parameters(), twin.critic.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-6)
        assert torch.allclose(p, q.clamp(-limit, limit), rtol=0, atol=rate / 100)
    critic = snapshot(r.critic)
    r.critic_optimizer.zero_grad()
    cells.generator_step(r)
    assert changed(r.generator, generator) and not changed(r.critic, critic)
    assert all(p.grad is None and p.requires_grad for p in r.critic.parameters())
    twin.critic.load_state_dict(critic)
    score = twin.critic(twin.generator(twin.noise(16)))
    (entropy(score, torch.ones(16)) if method == "DCGAN" else -score.mean()).backward()
    plain_optimizer(r.settings, twin.generator).step()
    for p, q in zip(r.generator.parameters(), twin.generator.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-6)
        assert torch.allclose(p, q, rtol=0, atol=rate / 100)


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
    assert len(seen) == n_critic and len(largest) == r.iteration == 1
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
    settled = cells.settled(r.average, n=1000, batch=500)
    assert not settled.training and not r.average.training
    assert all(value.equal(before[name]) for name, value in r.average.state_dict().items())
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(1000, r.settings.latent_size, generator=rng)
    linear, norm = settled.layers[:2]
    assert torch.allclose(norm.running_mean, linear(z).mean(0), atol=1e-5)
    variance = linear(z).view(2, 500, -1).var(1).mean(0)
    assert torch.allclose(norm.running_var, variance, rtol=1e-4)
    assert torch.allclose(settled(z[:4]), settled(z)[:4], atol=1e-5)  # whatever its neighbours
    assert not changed(settled, before)


@pytest.mark.parametrize("method", ["WGAN", "WGAN-GP"])  # RMSProp, Adam
@pytest.mark.parametrize(("decay", "shares"), [(0.0, [1, 1, 1]), (0.4, [1, 0.75, 0.25])])
def test_the_learning_rate_falls_along_a_line_at_the_end(cells, run, method, decay, shares):
    """And the optimisers step with it."""
    r = run(method, linear_decay=decay, learning_rate=0.01, iterations=10)
    for r.iteration, share in zip((5, 7, 9), shares, strict=True):
        cells.set_pace(r)
        for optimizer in (r.generator_optimizer, r.critic_optimizer):
            assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.01 * share)
    before = weights(r.critic)
    for p in r.critic.parameters():
        p.grad = torch.ones_like(p)
    r.critic_optimizer.step()
    move = (before - weights(r.critic)).mean().item()
    first_step = {"adam": 1, "rmsprop": 10}[r.settings.optimizer]  # for a gradient of 1, in rates
    assert move == pytest.approx(0.01 * shares[-1] * first_step, rel=1e-3)


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

    def spy(r, x, x_tilde):
        calls.append((x, x_tilde, objective(r, x, x_tilde)))
        return calls[-1][2]

    monkeypatch.setattr(cells, "critic_loss", spy)
    cells.critic_step(r, cells.draw_real(tiny.train, 16, r.rng))
    assert len(calls) == 1  # the function that trains it
    cells.record(r, tiny)
    (_, x_tilde, train), (x_held, x_tilde_held, held) = calls[1:]
    parts = [cells.to_float(part).flatten(1) for part in (tiny.train, tiny.test)]
    train_distance, held_distance = (torch.cdist(x_held.flatten(1), part).min(1) for part in parts)
    assert held_distance.values.max() < 0.1 < train_distance.values.min()
    assert x_tilde.equal(x_tilde_held)
    assert r.history["critic_loss_train"] == [train[0].item()]
    assert r.history["critic_loss_held_out"] == [held[0].item()]
    assert held[0] > held[2] - held[1]  # the penalty is in it


def test_recording_and_judging_change_no_weights(cells, run, tiny, tmp_path):
    """The judge is no part of the training's course, and sees the samples that are kept."""
    r, seen = run(), []
    networks = (r.critic, r.generator, r.average)
    before = [snapshot(network) for network in networks]
    cells.record(r, tiny)
    state = r.rng.get_state()
    cells.keep_samples(r, tmp_path, lambda pictures: seen.append(pictures) or {"score": 7.0})
    r.iteration = 4
    cells.keep_samples(r, tmp_path)  # unjudged, from the same noise
    assert r.rng.get_state().equal(state)
    assert not any(map(changed, networks, before))
    assert seen[0].shape == (r.settings.judged_samples, 1, 28, 28)
    assert r.quality == {"iteration": [0.0], "seconds": [0.0], "score": [7.0]}
    film = cells.read_film(tmp_path / "WGAN-GP.film", r.frames, (1, 28, 28))
    assert list(film) == [0, 4] and film[0].equal(seen[0][:25]) and film[4].equal(film[0])
    assert cells.read_film(tmp_path / "none.film", r.frames, (1, 28, 28)) == {}


def test_the_clock_counts_the_training_alone(cells, tiny, tmp_path, monkeypatch):
    """It waits for the device before samples are kept, and stands still while they are judged."""
    check, keep, seen = cells.check_finite, cells.keep_samples, []

    def waiting(name, r, losses):
        seen.append("waits")
        check(name, r, losses)

    def keeping(r, *given):
        seen.append(r.iteration)
        keep(r, *given)

    def slow(pictures):
        time.sleep(0.2)
        return {"score": 0.0}

    monkeypatch.setattr(cells, "check_finite", waiting)
    monkeypatch.setattr(cells, "keep_samples", keeping)
    chosen = cells.profile_settings("smoke", "DCGAN", film_every=1, record_every=100)
    start = time.monotonic()
    trained = train_one(cells, chosen, tiny, tmp_path, CPU, judge=slow)
    passed = time.monotonic() - start
    assert seen == [0] + [event for i in range(1, 13) for event in ("waits", i)]
    judged = trained.quality["iteration"]
    assert judged == sorted(cells.stages(chosen, len(tiny.train))) and len(judged) >= 8
    assert 0 < trained.seconds < passed - 0.2 * len(judged)
    assert trained.quality["seconds"] == sorted(trained.quality["seconds"])


@pytest.mark.parametrize(("method", "one", "ten"), [("DCGAN", 938, 9375), ("WGAN-GP", 188, 1875)])
def test_stages_include_the_first_and_the_tenth_epoch(cells, method, one, ten):
    paper = cells.PAPER[method]
    assert [cells.epoch_end(epoch, paper, 60_000) for epoch in (1, 10)] == [one, ten]
    assert {one, ten, paper.iterations} <= cells.stages(paper, 60_000)
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
    with pytest.raises(
        FloatingPointError, match=r"WGAN-GP: loss or weights not finite by iteration 6.*rate below"
    ):
        chosen = cells.profile_settings("smoke", "WGAN-GP")
        train_one(cells, chosen, tiny, tmp_path, CPU, save_seconds=0)
    _, saved = cells.newest_checkpoint(tmp_path, "WGAN-GP")
    assert saved["iteration"] == 5
    assert all(value.isfinite().all() for value in saved[network].values())


def stop_at(cells, patch, where, number=signal.SIGINT):
    """Have a signal sent when each method has come to iteration `where`[method], in the middle."""
    deferred, step = cells.deferred_interrupts, cells.generator_step
    events, arrived = [], threading.Barrier(len(where))

    @contextmanager
    def remembered():
        with deferred() as requested:
            events.append(requested)
            yield requested

    def stopping(r):
        if where.get(r.settings.method) == r.iteration:
            if arrived.wait(timeout=60) == 0:
                os.kill(os.getpid(), number)
            assert events[0].wait(timeout=60)
        return step(r)

    patch.setattr(cells, "deferred_interrupts", remembered)
    patch.setattr(cells, "generator_step", stopping)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("taken", ["newest", "older"])
def test_an_interrupted_training_equals_an_uninterrupted_one(
    cells, tiny, tmp_path, monkeypatch, capsys, method, taken
):
    """Film and all, also from the older of its two checkpoints."""
    chosen = cells.profile_settings("smoke", method)
    whole = train_one(cells, chosen, tiny, tmp_path / "whole", CPU, judge=brightness)
    number = signal.SIGTERM if taken == "older" else signal.SIGINT
    handler, parts = signal.getsignal(number), tmp_path / "parts"
    with monkeypatch.context() as patch:
        stop_at(cells, patch, {method: 5}, number)
        with pytest.raises(
            KeyboardInterrupt, match=rf"saved at iteration 6 \({method}\); run again"
        ):
            train_one(cells, chosen, tiny, parts, CPU, judge=brightness, save_seconds=0)
    assert signal.getsignal(number) == handler
    if taken == "older":
        cells.newest_checkpoint(parts, method)[0].unlink()
    resumed = train_one(cells, chosen, tiny, parts, CPU, judge=brightness)
    at = 6 if taken == "newest" else 5
    assert f"{method}: resuming at iteration {at} of 12" in capsys.readouterr().out
    same_state(cells, whole, resumed)
    films = [(folder / f"{method}.film").read_bytes() for folder in (tmp_path / "whole", parts)]
    assert films[0] == films[1] and len(films[0]) == len(whole.frames) * 25 * 28 * 28


@pytest.fixture(scope="module")
def alone(cells, tiny, tmp_path_factory):
    """alone(iterations, precision): each method's training by itself, with one thread."""

    @cache
    def make(iterations, precision):
        before, folder = torch.get_num_threads(), tmp_path_factory.mktemp("alone")
        torch.set_num_threads(1)
        runs = []
        for method in METHODS:
            chosen = cells.profile_settings("smoke", method, iterations=iterations)
            runs.append(train_one(cells, chosen, tiny, folder, CPU, precision, judge=brightness))
        torch.set_num_threads(before)
        return runs

    return make


@pytest.fixture
def threads(request):
    """PyTorch's number of threads during a test: 2, or what it is parametrised with."""
    before = torch.get_num_threads()
    torch.set_num_threads(getattr(request, "param", 2))
    yield torch.get_num_threads()
    torch.set_num_threads(before)


def test_the_plan_has_what_the_parameters_ask_for(cells, tiny, monkeypatch):
    judge, labels = SimpleNamespace(scores=brightness), tiny.train_labels.repeat(6)
    many = cells.replace(tiny, train=tiny.train.repeat(6, 1, 1, 1), train_labels=labels)
    monkeypatch.setattr(cells, "judge", judge, raising=False)
    monkeypatch.setattr(cells, "data", many, raising=False)
    names = ["WGAN-GP", "WGAN", "DCGAN", "WGAN-GP with RMSProp"]
    names += ["WGAN-GP on 1,000 images", "WGAN on 1,000 images"]
    trainings = cells.plan()
    assert [training.name for training in trainings] == names
    assert [len(training.data.train) for training in trainings] == [1200] * 4 + [1000] * 2
    assert [training.judge for training in trainings] == [brightness] * 4 + [None] * 2
    assert len({(training.folder, training.settings.method) for training in trainings}) == 6
    assert trainings[3].settings.optimizer == "rmsprop" and trainings[3].settings.penalty_weight
    asked = {"data": (tiny, names[:4]), "TEST_CLAIMS": (False, names[:3])}
    asked["methods"] = ["DCGAN", "WGAN-GP"], ["WGAN-GP", "DCGAN"]
    for name, (value, expected) in asked.items():
        monkeypatch.setattr(cells, name, value)
        assert [training.name for training in cells.plan()] == expected


@pytest.mark.parametrize("kind", [(12, "float32"), (5, "bfloat16")])  # bfloat16 may be emulated
def test_trainings_side_by_side_equal_single_ones(
    cells, tiny, tmp_path, monkeypatch, alone, threads, kind
):
    """Two at a time, with a thread each; every one as though alone, bit for bit."""
    iterations, precision = kind
    chosen = [cells.profile_settings("smoke", method, iterations=iterations) for method in METHODS]
    seen, step, meeting = set(), cells.generator_step, threading.Barrier(2)

    def watching(r):
        seen.add(torch.get_num_threads())
        if r.iteration == 3 and r.settings.method != "WGAN-GP":
            meeting.wait(timeout=60)  # the first two are both at work
        return step(r)

    with monkeypatch.context() as patch:
        patch.setattr(cells, "generator_step", watching)
        together = train_all(cells, chosen, tiny, tmp_path, CPU, precision, judge=brightness)
    assert seen == {1} and torch.get_num_threads() == threads
    assert {name: r.settings.method for name, r in together.items()} == {m: m for m in METHODS}
    for expected in alone(iterations, precision):
        same_state(cells, together[expected.settings.method], expected)


def test_the_stop_button_saves_all_trainings(
    cells, tiny, tmp_path, monkeypatch, capsys, alone, threads
):
    chosen = [cells.profile_settings("smoke", method) for method in METHODS[::-1]]
    with monkeypatch.context() as patch:
        stop_at(cells, patch, {"WGAN": 5, "WGAN-GP": 3})
        said = r"saved at iteration 4 \(WGAN-GP\), 6 \(WGAN\), 0 \(DCGAN\); run again"
        with pytest.raises(KeyboardInterrupt, match=said):
            train_all(cells, chosen, tiny, tmp_path, CPU, judge=brightness)
    capsys.readouterr()
    resumed = train_all(cells, chosen, tiny, tmp_path, CPU, judge=brightness)
    printed = capsys.readouterr().out
    assert "WGAN-GP: resuming at iteration 4 of 12" in printed
    assert (
        "WGAN: resuming at iteration 6 of 12" in printed and "DCGAN: starting afresh\n" in printed
    )
    for expected in alone(12, "float32"):
        same_state(cells, resumed[expected.settings.method], expected)


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def test_a_training_that_fails_leaves_the_others_alone(
    cells, tiny, tmp_path, monkeypatch, capsys, alone, threads
):
    """It says so at once, the others come to their end, and only then its error is raised."""
    chosen = [cells.profile_settings("smoke", method) for method in METHODS[::-1]]
    step, said = cells.generator_step, []

    def failing(r):
        if r.settings.method == "WGAN-GP" and r.iteration == 3:
            torch.nn.init.constant_(r.critic.head.weight, float("nan"))
        if r.settings.method == "DCGAN" and r.iteration == 11:
            said.append(capsys.readouterr().out)
        return step(r)

    with monkeypatch.context() as patch:
        patch.setattr(cells, "generator_step", failing)
        error = r"^WGAN-GP: loss or weights not finite by iteration 4"
        with pytest.raises(FloatingPointError, match=error):
            train_all(cells, chosen, tiny, tmp_path, CPU, judge=brightness)
    assert "WGAN-GP ended by an error: WGAN-GP: loss" in said[0]
    again = train_all(cells, chosen, tiny, tmp_path, CPU, judge=brightness)
    printed = capsys.readouterr().out
    assert "WGAN-GP: starting afresh\n" in printed and printed.count("finished before") == 2
    for expected in alone(12, "float32"):
        same_state(cells, again[expected.settings.method], expected)


def test_start_says_what_it_does_and_afresh_deletes_what_was_there(
    cells, tiny, tmp_path, monkeypatch, capsys
):
    chosen = cells.profile_settings("smoke", "WGAN")
    train_one(cells, cells.profile_settings("smoke", "WGAN-GP"), tiny, tmp_path, CPU)
    first = train_one(cells, chosen, tiny, tmp_path, CPU)
    assert "WGAN: starting afresh\n" in capsys.readouterr().out
    again = train_one(cells, chosen, tiny, tmp_path, CPU)
    assert "WGAN: finished before" in capsys.readouterr().out
    same_state(cells, first, again)
    afresh = train_one(cells, chosen, tiny, tmp_path, CPU, start="afresh")
    assert "WGAN: starting afresh\n" in capsys.readouterr().out
    same_state(cells, first, afresh)
    monkeypatch.setattr(cells, "go_on", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # before its first iteration
        train_one(cells, chosen, tiny, tmp_path, CPU, start="afresh")
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"WGAN-GP"}


def test_evaluation_needs_the_weights_file_alone(cells, tiny, tmp_path):
    """It holds the settled average and what was recorded; other images' are refused."""
    chosen = cells.profile_settings("smoke", "WGAN-GP")
    trained = train_one(cells, chosen, tiny, tmp_path, CPU, judge=brightness)
    for path in cells.checkpoints(tmp_path, "WGAN-GP"):
        path.unlink(missing_ok=True)
    generator, saved = cells.load_generator(tmp_path / "WGAN-GP.pt", (1, 28, 28), CPU)
    expected = cells.settled(trained.average)
    compare(dict(generator.state_dict()), dict(expected.state_dict()), "generator")
    assert not generator.training and saved["settings"] == cells.asdict(chosen)
    assert saved["quality"] == trained.quality and saved["frames"] == trained.frames
    assert trained.gradient is cells.written_out_gradient
    with pytest.raises(ValueError, match=r"WGAN-GP\.pt does not fit .*images of \[3, 32, 32\]"):
        cells.load_generator(tmp_path / "WGAN-GP.pt", (3, 32, 32), CPU)
