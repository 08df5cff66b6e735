"""Training: each step does what Algorithm 1 says and nothing else; interrupted training equals uninterrupted."""

import os
import signal
import threading
import time
from contextlib import contextmanager
from functools import cache, partial
from itertools import pairwise

import pytest
import torch
from conftest import METHODS, brightness, compare, same_state, train_all, train_one

CPU = torch.device("cpu")


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def snapshot(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(network, before):
    return [name for name, value in network.named_parameters() if not value.equal(before[name])]


@pytest.mark.parametrize("method", METHODS)
def test_critic_step_moves_the_critic_alone(cells, run, tiny, method):
    r = run(method)
    generator, critic = snapshot(r.generator), snapshot(r.critic)
    cells.critic_step(r, cells.draw_real(tiny.train, 16, r.rng))
    assert not changed(r.generator, generator)
    assert changed(r.critic, critic)
    assert all(p.grad is None for p in r.generator.parameters())  # no graph through the generator


@pytest.mark.parametrize("method", METHODS)
def test_generator_step_moves_the_generator_alone(cells, run, method):
    r = run(method)
    generator, critic = snapshot(r.generator), snapshot(r.critic)
    cells.generator_step(r)
    assert changed(r.generator, generator)
    assert not changed(r.critic, critic)
    assert all(p.grad is None and p.requires_grad for p in r.critic.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_each_step_follows_the_gradient_of_its_methods_loss(cells, run, tiny, method):
    """Gradients of both steps against losses written out here; with the penalty's weight of 10."""
    r, twin = run(method), run(method)
    x = cells.draw_real(tiny.train, 16, torch.Generator().manual_seed(5))
    cells.critic_step(r, x)
    with torch.no_grad():
        x_tilde = twin.generator(twin.noise(16))
    real, generated = twin.critic(x), twin.critic(x_tilde)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    if method == "DCGAN":
        loss = entropy(real, torch.ones(16)) + entropy(generated, torch.zeros(16))
    else:
        loss = generated.mean() - real.mean()
    if method == "WGAN-GP":
        loss = loss + 10 * cells.gradient_penalty(twin.critic, x, x_tilde, twin.rng)
    loss.backward()
    for p, q in zip(r.critic.parameters(), twin.critic.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-6)
    twin.critic.load_state_dict(r.critic.state_dict())
    score = twin.critic(twin.generator(twin.noise(16)))
    (entropy(score, torch.ones(16)) if method == "DCGAN" else -score.mean()).backward()
    cells.generator_step(r)
    for p, q in zip(r.generator.parameters(), twin.generator.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-6) and p.grad.abs().max() > 0


def test_bfloat16_is_for_convolutions_alone(cells, tiny):
    settings = cells.profile_settings("smoke", "WGAN-GP")
    networks = cells.build_networks(settings, (1, 28, 28), "cpu")
    for precision, expected in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        r = cells.new_run(settings, networks, CPU, precision)
        with r.autocast():
            x = cells.to_float(tiny.train[:4])
            assert r.critic.layers(x).dtype == expected
            assert r.critic(x).dtype == r.generator(r.noise(4)).dtype == torch.float32
            assert cells.gradient_norms(r.critic, x).dtype == torch.float32
        assert {p.dtype for network in networks for p in network.parameters()} == {torch.float32}


def test_loss_and_penalty_are_one_adam_step(cells, run, tiny, monkeypatch):
    """The update equals one Adam step on loss + lambda * penalty, computed here from the pieces."""
    r, twin = run(), run()
    x = cells.draw_real(tiny.train, 16, torch.Generator().manual_seed(5))
    steps = []
    original = r.critic_optimizer.step
    monkeypatch.setattr(r.critic_optimizer, "step", lambda: steps.append(original()))
    cells.critic_step(r, x)
    assert len(steps) == 1
    with torch.no_grad():
        x_tilde = twin.generator(twin.noise(16))
    loss = twin.critic(x_tilde).mean() - twin.critic(x).mean()
    loss = loss + 10 * cells.gradient_penalty(twin.critic, x, x_tilde, twin.rng)
    optimizer = torch.optim.Adam(twin.critic.parameters(), lr=1e-4, betas=(0.0, 0.9))
    loss.backward()
    optimizer.step()
    for p, q in zip(r.critic.parameters(), twin.critic.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("method", "n_critic"), [("DCGAN", 1), ("WGAN", 5), ("WGAN-GP", 3)])
def test_every_critic_step_sees_fresh_images(cells, run, tiny, monkeypatch, method, n_critic):
    r = run(method, n_critic=n_critic)
    seen = []
    step = cells.critic_step
    monkeypatch.setattr(cells, "critic_step", lambda r, x: (seen.append(x), step(r, x))[1])
    cells.iterate(r, tiny.train)
    assert len(seen) == n_critic and r.iteration == 1
    assert all(not a.equal(b) for i, a in enumerate(seen) for b in seen[:i])


def test_the_generator_only_sees_a_clipped_critic(cells, run, tiny, monkeypatch):
    r = run("WGAN", learning_rate=0.5)
    largest = []
    step = cells.generator_step

    def generator_step(r):
        largest.append(max(p.abs().max().item() for p in r.critic.parameters()))
        return step(r)

    monkeypatch.setattr(cells, "generator_step", generator_step)
    for _ in range(3):
        cells.iterate(r, tiny.train)
    assert largest == pytest.approx([0.01] * 3)


def test_average(cells, run, tiny):
    r = run(ema_decay=0.9)
    for _ in range(100):
        cells.iterate(r, tiny.train)
    assert r.average_decay.item() == pytest.approx(0.9)
    before = snapshot(r.average)
    cells.update_average(r)
    for (name, value), current in zip(r.average.named_parameters(), r.generator.parameters(), strict=True):
        assert torch.allclose(value, 0.9 * before[name] + 0.1 * current, atol=1e-6), name


def test_settled_statistics_are_those_of_the_weights(cells, run, tiny):
    """The first layer's are those of its outputs for the same latents; two batch sizes agree; the original is left."""
    r = run()
    for _ in range(20):
        cells.iterate(r, tiny.train)
    before = snapshot(r.average)
    settled = cells.settled(r.average, n=1000, batch=500)
    assert not settled.training and not r.average.training
    assert all(value.equal(before[name]) for name, value in r.average.state_dict().items())
    z = torch.randn(1000, r.settings.latent_size, generator=torch.Generator().manual_seed(0))
    linear, norm = settled.layers[:2]
    assert torch.allclose(norm.running_mean, linear(z).mean(0), atol=1e-5)
    assert torch.allclose(norm.running_var, linear(z).view(2, 500, -1).var(1).mean(0), rtol=1e-4)
    assert torch.allclose(settled(z[:4]), settled(z)[:4], atol=1e-5)  # a sample does not depend on its neighbours
    assert all(p.equal(before[name]) for name, p in settled.named_parameters())


def test_no_average_when_the_decay_is_zero(cells, run, tiny):
    r = run(ema_decay=0.0)
    cells.iterate(r, tiny.train)
    assert not changed(r.average, snapshot(r.generator))


def test_the_average_forgets_the_start(cells, run):
    r = run(ema_decay=0.999)
    decays = []
    for r.iteration in (0, 8, 10**6):
        cells.set_pace(r)
        decays.append(r.average_decay.item())
    assert decays == pytest.approx([2 / 11, 10 / 19, 0.999])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("decay", "shares"), [(0.0, [1, 1, 1, 1]), (0.4, [1, 1, 0.75, 0.25]), (1.0, [1, 0.5, 0.3, 0.1])]
)
def test_learning_rate(cells, run, tiny, method, decay, shares):
    """Constant, or down to 0 along a line, at the end or throughout; and both optimisers step with it."""
    r = run(method, linear_decay=decay, learning_rate=0.01, iterations=10)
    groups = [g for optimizer in (r.generator_optimizer, r.critic_optimizer) for g in optimizer.param_groups]
    for r.iteration, share in zip((0, 5, 7, 9), shares, strict=True):
        cells.set_pace(r)
        assert [float(group["lr"]) for group in groups] == pytest.approx([0.01 * share] * 2)
    for optimizer, network in ((r.generator_optimizer, r.generator), (r.critic_optimizer, r.critic)):
        moves = []
        for rate in (1.0, 0.1):
            twin = cells.deepcopy(network)
            twin_optimizer = cells.build_optimizer(r.settings, twin)
            twin_optimizer.param_groups[0]["lr"].fill_(rate)
            for p in twin.parameters():
                p.grad = torch.ones_like(p)
            twin_optimizer.step()
            moves.append((weights(twin) - weights(network)).abs().mean())
        assert moves[0] / moves[1] == pytest.approx(10, rel=1e-3), optimizer


@pytest.mark.parametrize("method", METHODS)
def test_optimisers_are_the_library_s_own(cells, run, method):
    """Fused, capturable and with the rate in a tensor, they step as the plain ones with the same settings do."""
    r = run(method)
    chosen = r.settings
    for network in (r.generator, r.critic):
        twin = cells.deepcopy(network)
        ours = cells.build_optimizer(chosen, network)
        if chosen.optimizer == "rmsprop":
            plain = torch.optim.RMSprop(twin.parameters(), lr=chosen.learning_rate)
        else:
            betas = (float(chosen.beta1), float(chosen.beta2))
            plain = torch.optim.Adam(twin.parameters(), lr=chosen.learning_rate, betas=betas, foreach=False)
        rng = torch.Generator().manual_seed(0)
        for _ in range(3):
            for p, q in zip(network.parameters(), twin.parameters(), strict=True):
                p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=rng))
                q.grad = p.grad.clone()
            ours.step()
            plain.step()
        assert torch.allclose(weights(network), weights(twin), rtol=0, atol=chosen.learning_rate / 100)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_lie_in_memory_as_their_weights_do(cells, run, tiny, method):
    """A fused optimiser takes that for granted, and would be silently wrong otherwise."""
    r = run(method)

    def alike(p):
        return all(a == b for size, a, b in zip(p.shape, p.stride(), p.grad.stride(), strict=True) if size > 1)

    cells.critic_step(r, r.draw(tiny.train, 16))
    assert all(map(alike, r.critic.parameters()))
    cells.generator_step(r)
    assert all(map(alike, r.generator.parameters()))


@pytest.mark.parametrize("method", METHODS)
def test_the_path_of_a_graph_gives_the_same_numbers(cells, run, tiny, method):
    """Three iterations at once, then what was captured; with an eager stand-in for the GPU's graph."""
    eager, graphed = (run(method, linear_decay=1.0) for _ in range(2))
    captured = []

    def capture(compute, r, real):
        captured.append((r.iteration, real))
        return compute

    steps = cells.iterations(eager, tiny.train), cells.iterations(graphed, tiny.train, capture=capture)
    for i in range(6):
        ours, theirs = (tuple(map(float, next(s))) for s in steps)
        assert ours == theirs and eager.iteration == graphed.iteration == i + 1
    assert len(captured) == 1 and captured[0][0] == 3 and captured[0][1] is tiny.train
    same_state(cells, eager, graphed)


def test_held_out_curve_is_the_critics_objective(cells, run, tiny, monkeypatch):
    """Not -D(x): generated part and penalty belong to it, on held-out images, against the same generated ones."""
    r = run()
    calls = []
    objective = cells.critic_objective

    def spy(r, x, x_tilde):
        calls.append((x, x_tilde, objective(r, x, x_tilde)))
        return calls[-1][2]

    monkeypatch.setattr(cells, "critic_objective", spy)
    cells.record(r, tiny)
    (_, x_tilde, train), (x_held, x_tilde_held, held) = calls
    nearest = [
        torch.cdist(x_held.flatten(1), cells.to_float(part).flatten(1)).min(1).values
        for part in (tiny.train, tiny.test)
    ]
    assert nearest[1].max() < 0.1 < nearest[0].min()
    assert x_tilde.equal(x_tilde_held)
    assert r.history["critic_loss_train"] == [train[0].item()]
    assert r.history["critic_loss_held_out"] == [held[0].item()]
    assert held[0] > held[2] - held[1]  # the penalty is in it


def test_recording_changes_no_weights(cells, run, tiny):
    r = run("WGAN")
    critic, generator, average = snapshot(r.critic), snapshot(r.generator), snapshot(r.average)
    cells.record(r, tiny)
    state = r.rng.get_state()
    cells.keep_samples(r, judge=brightness)
    assert r.rng.get_state().equal(state)  # the judge is no part of the training's course
    assert not changed(r.critic, critic) and not changed(r.generator, generator)
    assert all(value.equal(average[name]) for name, value in r.average.state_dict().items())


def test_the_judge_sees_the_samples_that_are_kept(cells, run):
    r = run("WGAN-GP")
    seen = []
    cells.keep_samples(r, judge=lambda pictures: seen.append(pictures) or {"score": 7.0})
    assert seen[0].shape == (r.settings.judged_samples, 1, 28, 28)
    assert r.strip[0].equal(seen[0][:25])
    assert r.quality == {"iteration": [0.0], "seconds": [0.0], "score": [7.0]}
    r.strip.clear()
    cells.keep_samples(r)  # the noise of the kept ones does not depend on whether somebody judges
    assert r.strip[0].shape == (25, 1, 28, 28) and r.quality["score"] == [7.0]


def test_the_clock_counts_the_training_alone(cells, tiny, tmp_path):
    def slow(pictures):
        time.sleep(0.2)
        return {"score": 0.0}

    start = time.monotonic()
    trained = train_one(cells, cells.profile_settings("smoke", "DCGAN"), tiny, tmp_path, CPU, judge=slow)
    passed = time.monotonic() - start
    judged = len(trained.quality["score"])
    assert judged >= 10 and trained.seconds < passed - 0.2 * judged
    assert trained.quality["seconds"] == sorted(trained.quality["seconds"])
    assert trained.quality["iteration"] == sorted(cells.stages(trained.settings, len(tiny.train)))


def test_the_clock_waits_for_the_device_before_samples_are_kept(cells, tiny, tmp_path, monkeypatch):
    """Else the device's time would pass while they are drawn, and not be counted."""
    check, keep, seen = cells.check_finite, cells.keep_samples, []
    monkeypatch.setattr(cells, "check_finite", lambda *given: (seen.append("waits"), check(*given)))
    monkeypatch.setattr(cells, "keep_samples", lambda r, *judge: (seen.append(r.iteration), keep(r, *judge)))
    train_one(cells, cells.profile_settings("smoke", "DCGAN", film_every=1, record_every=100), tiny, tmp_path, CPU)
    assert seen == [0] + [event for i in range(1, 13) for event in ("waits", i)]


def test_the_time_lapse_has_a_frame_every_so_many_iterations(cells, tiny, tmp_path):
    settings = cells.profile_settings("smoke", "WGAN", film_every=5)
    trained = train_one(cells, settings, tiny, tmp_path, CPU)
    assert {0, 5, 10} <= set(trained.strip)
    for pictures in trained.strip.values():  # saved as they are, not with a larger tensor that they were cut from
        assert pictures.untyped_storage().nbytes() == pictures.nbytes


@pytest.mark.parametrize(("channels", "side", "zoom"), [(1, 28, 2), (3, 64, 1)])
def test_a_frame_shows_what_each_method_drew_last(cells, channels, side, zoom):
    black, white = (torch.full((25, channels, side, side), value, dtype=torch.uint8) for value in (0, 255))
    strips = {"WGAN": {0: black, 5: white}, "DCGAN": {0: black}}  # the second ended earlier, and rests
    for at, left in ((0, 0), (4, 0), (5, 255), (9, 255)):
        frame = cells.film_frame(strips, at).convert("L")
        assert frame.size == (2 * zoom * (5 * (side + 1) + 1), zoom * (5 * (side + 1) + 1) + 16)
        middle = zoom * (2 * (side + 1) + side // 2)
        assert frame.getpixel((middle, 16 + middle)) == left
        assert frame.getpixel((frame.width // 2 + middle, 16 + middle)) == 0


@pytest.mark.parametrize(("method", "one", "ten"), [("DCGAN", 938, 9375), ("WGAN-GP", 188, 1875)])
def test_stages_include_the_first_and_the_tenth_epoch(cells, method, one, ten):
    full = cells.PAPER[method]
    assert (cells.epoch_end(1, full, 60_000), cells.epoch_end(10, full, 60_000)) == (one, ten)
    assert {one, ten, full.iterations} <= cells.stages(full, 60_000)
    short = cells.replace(full, iterations=1000)
    assert max(cells.stages(short, 60_000)) == 1000
    for profile in ("quick", "standard", "full"):
        chosen = cells.profile_settings(profile, method)
        assert chosen.iterations >= cells.epoch_end(10, chosen, 60_000)


def test_a_loss_that_is_not_finite_stops_the_training(cells, tiny, tmp_path, monkeypatch):
    settings = cells.profile_settings("smoke", "WGAN-GP", record_every=2)
    iterate = cells.iterate

    def poisoned(r, images, compute):
        if r.iteration == 5:
            torch.nn.init.constant_(r.critic.head.weight, float("nan"))
        return iterate(r, images, compute)

    monkeypatch.setattr(cells, "iterate", poisoned)
    with pytest.raises(
        FloatingPointError, match=r"WGAN-GP: loss or weights not finite by iteration 6 .*learning_rate below"
    ):
        train_one(cells, settings, tiny, tmp_path, CPU, save_seconds=0)
    saved = cells.read_saved(tmp_path / "WGAN-GP.checkpoint.pt", cells.WEIGHTS)
    assert saved["iteration"] == 5 and saved["critic"]["head.weight"].isfinite().all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_equals_an_uninterrupted_one(
    cells, tiny, tmp_path, monkeypatch, capsys, method, number
):
    settings = cells.profile_settings("smoke", method)
    whole = train_one(cells, settings, tiny, tmp_path / "whole", CPU, judge=brightness)
    step, handler = cells.generator_step, signal.getsignal(number)

    def interrupting(r):
        if r.iteration == 5:
            os.kill(os.getpid(), number)  # the Stop button, in the middle of an iteration
        return step(r)

    with monkeypatch.context() as patch:
        patch.setattr(cells, "generator_step", interrupting)
        with pytest.raises(KeyboardInterrupt, match="saved at iteration 6"):
            train_one(cells, settings, tiny, tmp_path / "parts", CPU, judge=brightness)
    assert signal.getsignal(number) == handler
    resumed = train_one(cells, settings, tiny, tmp_path / "parts", CPU, judge=brightness)
    assert f"{method}: resuming at iteration 6 of 12" in capsys.readouterr().out
    same_state(cells, whole, resumed)


@pytest.fixture(scope="module")
def alone(cells, tiny, tmp_path_factory):
    """alone(iterations, precision): each method's training by itself, with one thread."""

    @cache
    def make(iterations, precision):
        before, folder = torch.get_num_threads(), tmp_path_factory.mktemp("alone")
        torch.set_num_threads(1)
        settings = [cells.profile_settings("smoke", method, iterations=iterations) for method in METHODS]
        runs = [train_one(cells, chosen, tiny, folder, CPU, precision, judge=brightness) for chosen in settings]
        torch.set_num_threads(before)
        return runs

    return make


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_plan_has_what_the_parameters_ask_for(cells, tiny, monkeypatch):
    monkeypatch.setattr(cells, "data", tiny, raising=False)
    monkeypatch.setattr(cells, "judge", brightness, raising=False)
    methods = ["DCGAN", "WGAN", "WGAN-GP"]
    assert [training.name for training in cells.plan()] == [*methods, "WGAN-GP with RMSProp"]
    many = cells.replace(tiny, train=tiny.train.repeat(6, 1, 1, 1), train_labels=tiny.train_labels.repeat(6))
    monkeypatch.setattr(cells, "data", many)
    trainings = cells.plan()
    few = ["WGAN-GP on 1,000 images", "WGAN on 1,000 images"]
    assert [training.name for training in trainings] == [*methods, "WGAN-GP with RMSProp", *few]
    assert [len(training.data.train) for training in trainings] == [1200] * 4 + [1000] * 2
    assert [training.judge for training in trainings] == [brightness] * 4 + [None] * 2
    assert len({(training.folder, training.settings.method) for training in trainings}) == 6
    monkeypatch.setattr(cells, "TEST_CLAIMS", False)
    assert [training.name for training in cells.plan()] == methods
    monkeypatch.setattr(cells, "TEST_CLAIMS", True)
    monkeypatch.setattr(cells, "methods", ["DCGAN", "WGAN-GP"])
    assert [training.name for training in cells.plan()] == ["DCGAN", "WGAN-GP"]


def test_the_threads_of_a_method_do_not_depend_on_the_experiments(cells, monkeypatch):
    for threads, expected in ((1, 1), (2, 2), (8, 3)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert cells.at_once(3, CPU) == cells.at_once(6, CPU) == expected
        assert cells.at_once(6, torch.device("mps")) == 1
    assert [cells.at_once(n, torch.device("cuda")) for n in (1, 2, 6)] == [1, 2, 3]


@pytest.mark.parametrize("kind", [(12, "float32"), (5, "bfloat16")])  # bfloat16 is slow where it is emulated
def test_trainings_side_by_side_equal_single_ones(cells, tiny, tmp_path, monkeypatch, alone, two_threads, kind):
    """Two at a time, with a thread each; every one as though alone, bit for bit."""
    iterations, precision = kind
    trainings = [cells.profile_settings("smoke", method, iterations=iterations) for method in METHODS]
    threads = set()
    step, meeting = cells.generator_step, threading.Barrier(2)

    def watching(r):
        threads.add(torch.get_num_threads())
        if r.iteration == 3 and r.settings.method != "DCGAN":
            meeting.wait(timeout=60)  # the first two are both at work
        return step(r)

    with monkeypatch.context() as patch:
        patch.setattr(cells, "generator_step", watching)
        together = train_all(cells, trainings, tiny, tmp_path, CPU, precision, judge=brightness)
    assert threads == {1} and torch.get_num_threads() == 2
    assert {name: r.settings.method for name, r in together.items()} == {method: method for method in METHODS}
    for expected in alone(iterations, precision):
        same_state(cells, together[expected.settings.method], expected)


def test_the_stop_button_saves_all_trainings(cells, tiny, tmp_path, monkeypatch, capsys, alone, two_threads):
    trainings = [cells.profile_settings("smoke", method) for method in METHODS[::-1]]
    step, watched, events, reached = cells.generator_step, cells.watched, [], threading.Event()

    @contextmanager
    def remembered(runs):
        with watched(runs) as (bar, interrupted):
            events.append(interrupted)
            yield bar, interrupted

    def stopping(r):
        if r.settings.method == "WGAN" and r.iteration == 5:
            reached.set()
            assert events[0].wait(timeout=60)
        if r.settings.method == "WGAN-GP" and r.iteration == 3:
            assert reached.wait(timeout=60)
            os.kill(os.getpid(), signal.SIGINT)
            assert events[0].wait(timeout=60)
        return step(r)

    with monkeypatch.context() as patch:
        patch.setattr(cells, "watched", remembered)
        patch.setattr(cells, "generator_step", stopping)
        with pytest.raises(
            KeyboardInterrupt, match=r"saved at iteration 4 \(WGAN-GP\), 6 \(WGAN\); DCGAN not begun; run again"
        ):
            train_all(cells, trainings, tiny, tmp_path, CPU, judge=brightness)
    capsys.readouterr()
    resumed = train_all(cells, trainings, tiny, tmp_path, CPU, judge=brightness)
    printed = capsys.readouterr().out
    assert "WGAN-GP: resuming at iteration 4 of 12" in printed and "WGAN: resuming at iteration 6 of 12" in printed
    assert "DCGAN: starting afresh\n" in printed
    for expected in alone(12, "float32"):
        same_state(cells, resumed[expected.settings.method], expected)


def test_of_the_jobs_that_wait_the_longest_is_next(cells):
    """New ones before all, in their order."""
    left, called = {"short": 2, "long": 7, "longer": 9}, []

    def job(name):
        called.append((name, left[name] == max(left.values())))
        left[name] -= 1
        return left[name]

    cells.side_by_side({name: partial(job, name) for name in left}, 1)
    assert set(left.values()) == {0} and [name for name, _ in called[:3]] == ["short", "long", "longer"]
    assert all(longest for _, longest in called[3:])


def test_two_workers_are_busy_to_the_end(cells):
    """Every turn meets another one: were the longest job left for last, it would wait for company in vain."""
    left, company = {"short": 4, "long": 4, "longer": 6}, threading.Barrier(2)

    def job(name):
        company.wait(timeout=30)
        left[name] -= 1
        return left[name]

    cells.side_by_side({name: partial(job, name) for name in left}, 2)
    assert set(left.values()) == {0}


def test_more_trainings_than_cores_take_turns(cells, tiny, tmp_path, monkeypatch, alone, two_threads):
    """A turn ends with a save, if it succeeds, and what comes of the trainings is the same, bit for bit."""
    trainings = [cells.profile_settings("smoke", method) for method in METHODS]
    saves, save = {}, cells.save_run  # of each worker

    def saving(r, folder):
        saves.setdefault(threading.get_ident(), []).append((r.settings.method, r.iteration))
        if r.settings.method == "WGAN" and r.iteration == 4:
            raise OSError("disk full")
        save(r, folder)

    with monkeypatch.context() as patch:
        patch.setattr(cells, "save_run", saving)
        runs = train_all(cells, trainings, tiny, tmp_path, CPU, judge=brightness, save_seconds=0)
    assert sorted(one for turns in saves.values() for one in turns) == [
        (method, i) for method in METHODS for i in range(1, 13)
    ]
    assert len(saves) == 2 and any(a[0] != b[0] for turns in saves.values() for a, b in pairwise(turns))
    (failed,) = [turns for turns in saves.values() if ("WGAN", 4) in turns]
    assert failed[failed.index(("WGAN", 4)) + 1] == ("WGAN", 5)
    for expected in alone(12, "float32"):
        same_state(cells, runs[expected.settings.method], expected)


def test_stop_loses_nothing_of_those_whose_turn_it_is_not(
    cells, tiny, tmp_path, monkeypatch, capsys, alone, two_threads
):
    trainings = [cells.profile_settings("smoke", method) for method in METHODS]
    stages, watched, events = cells.stages, cells.watched, []

    @contextmanager
    def remembered(runs):
        with watched(runs) as (bar, interrupted):
            events.append(interrupted)
            yield bar, interrupted

    def stopping(settings, n_train):
        if settings.method == "WGAN-GP":  # the last to begin: one of the others has had its first turn, and waits
            events[0].set()
        return stages(settings, n_train)

    with monkeypatch.context() as patch:
        patch.setattr(cells, "watched", remembered)
        patch.setattr(cells, "stages", stopping)
        with pytest.raises(
            KeyboardInterrupt, match=r"saved at iteration \d+ \(DCGAN\), \d+ \(WGAN\); WGAN-GP not begun; run again"
        ):
            train_all(cells, trainings, tiny, tmp_path, CPU, judge=brightness, save_seconds=0)
    resumed = train_all(cells, trainings, tiny, tmp_path, CPU, judge=brightness)
    printed = capsys.readouterr().out
    assert printed.count("resuming at iteration") == 2 and "WGAN-GP: starting afresh" in printed
    for expected in alone(12, "float32"):
        same_state(cells, resumed[expected.settings.method], expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_training_that_fails_leaves_the_others_alone(cells, tiny, tmp_path, monkeypatch, capsys, alone, threads):
    """It says so at once, the others come to their end, and only then its error is raised."""
    trainings = [cells.profile_settings("smoke", method) for method in METHODS[::-1]]
    step, before, said = cells.generator_step, torch.get_num_threads(), []

    def failing(r):
        if r.settings.method == "WGAN-GP" and r.iteration == 3:
            torch.nn.init.constant_(r.critic.head.weight, float("nan"))
        if r.settings.method == "DCGAN" and r.iteration == 11:
            said.append(capsys.readouterr().out)
        return step(r)

    torch.set_num_threads(threads)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(cells, "generator_step", failing)
            with pytest.raises(FloatingPointError, match=r"^WGAN-GP: loss or weights not finite by iteration 4"):
                train_all(cells, trainings, tiny, tmp_path, CPU, judge=brightness)
        assert "WGAN-GP ended by an error, which is raised when the others have ended: WGAN-GP: loss" in said[0]
        again = train_all(cells, trainings, tiny, tmp_path, CPU, judge=brightness)
    finally:
        torch.set_num_threads(before)
    printed = capsys.readouterr().out
    assert "WGAN-GP: starting afresh\n" in printed and printed.count("finished before") == 2
    for expected in alone(12, "float32"):
        same_state(cells, again[expected.settings.method], expected)


def test_start_says_what_it_does(cells, tiny, tmp_path, capsys):
    settings = cells.profile_settings("smoke", "DCGAN")
    first = train_one(cells, settings, tiny, tmp_path, CPU)
    assert "DCGAN: starting afresh\n" in capsys.readouterr().out
    again = train_one(cells, settings, tiny, tmp_path, CPU)
    assert "DCGAN: finished before" in capsys.readouterr().out
    same_state(cells, first, again)
    afresh = train_one(cells, settings, tiny, tmp_path, CPU, start="afresh")
    assert "DCGAN: starting afresh, replacing" in capsys.readouterr().out
    same_state(cells, first, afresh)


def test_what_is_left_of_a_training_is_known_before_it_starts(cells, tiny, tmp_path):
    """What has not been saved: nothing of a finished training, all of one whose file is damaged or not there."""
    train_one(cells, cells.profile_settings("smoke", "DCGAN", iterations=5), tiny, tmp_path, CPU)
    for name in ("DCGAN.pt", "DCGAN.checkpoint.pt"):
        assert [cells.iterations_left(tmp_path / name, total) for total in (4, 5, 12)] == [0, 0, 7]
        (tmp_path / name).write_bytes(b"damaged")
        assert cells.iterations_left(tmp_path / name, 5) == 5
    assert cells.iterations_left(tmp_path / "other.pt", 5) == 5


@pytest.mark.parametrize("harm", ["lost", "damaged", "older"])
def test_weights_of_a_finished_training_come_back_from_its_checkpoint(cells, tiny, tmp_path, monkeypatch, harm):
    settings, path = cells.profile_settings("smoke", "WGAN"), tmp_path / "WGAN.pt"
    train_one(cells, settings, tiny, tmp_path, CPU)
    whole = cells.read_saved(path, (*cells.WEIGHTS, "average"))
    if harm == "lost":
        path.unlink()
    elif harm == "damaged":
        path.write_bytes(path.read_bytes()[:1000])
    else:  # the run was killed between its last two writes
        cells.write_atomically(path, whole | {"iteration": 7, "average": {}})
    monkeypatch.setattr(cells, "processor", lambda device: "another one")  # which did not make it
    train_one(cells, settings, tiny, tmp_path, CPU)
    compare(cells.read_saved(path, whole), whole, "WGAN.pt")


def test_a_training_begun_afresh_does_not_go_on_with_the_old_one(cells, tiny, tmp_path, monkeypatch):
    """Stopped before its first iteration, it is resumed there; what the old run left does not pass for its own."""
    trainings = [cells.profile_settings("smoke", method) for method in METHODS]
    train_all(cells, trainings, tiny, tmp_path, CPU)

    def stopped(runs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cells, "watched", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_all(cells, trainings, tiny, tmp_path, CPU, start="afresh")
    for method in METHODS:
        assert cells.read_saved(tmp_path / f"{method}.checkpoint.pt", cells.WEIGHTS)["iteration"] == 0
        saved = cells.read_saved(tmp_path / f"{method}.pt", cells.WEIGHTS)
        assert saved["iteration"] == 0 and list(saved["strip"]) == [0]


@pytest.mark.parametrize("network", ["critic", "generator"])
def test_weights_that_are_not_finite_are_not_saved(cells, tiny, tmp_path, monkeypatch, network):
    """The losses of an iteration are those before its last update, which may spoil the weights."""
    iterate = cells.iterate

    def spoiling(r, images, compute):
        losses = iterate(r, images, compute)
        if r.iteration == 6:
            torch.nn.init.constant_(next(getattr(r, network).parameters()), float("inf"))
        return losses

    monkeypatch.setattr(cells, "iterate", spoiling)
    with pytest.raises(FloatingPointError, match="DCGAN: loss or weights not finite by iteration 6"):
        train_one(cells, cells.profile_settings("smoke", "DCGAN"), tiny, tmp_path, CPU, save_seconds=0)
    saved = cells.read_saved(tmp_path / "DCGAN.checkpoint.pt", cells.WEIGHTS)
    assert saved["iteration"] == 5 and all(weight.isfinite().all() for weight in saved[network].values())


def test_a_checkpoint_of_other_settings_is_refused_by_name(cells, tiny, tmp_path):
    train_one(cells, cells.profile_settings("smoke", "WGAN"), tiny, tmp_path, CPU)
    before = (tmp_path / "WGAN.checkpoint.pt").read_bytes()
    other = cells.profile_settings("smoke", "WGAN", clip=0.5, width=4)
    with pytest.raises(ValueError, match=r"other settings: .*START='afresh'") as refused:
        train_one(cells, other, tiny, tmp_path, CPU)
    assert "clip is 0.01 there, 0.5 here" in str(refused.value) and "width is 8 there, 4 here" in str(refused.value)
    assert (tmp_path / "WGAN.checkpoint.pt").read_bytes() == before


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch hostile_code_ran",))


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "foreign", "code"])
def test_a_file_that_is_no_checkpoint_is_refused(cells, tiny, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    settings = cells.profile_settings("smoke", "DCGAN")
    train_one(cells, settings, tiny, tmp_path, CPU)
    path = tmp_path / "DCGAN.checkpoint.pt"
    if kind == "foreign":
        torch.save({"some": "thing"}, path)
    elif kind == "code":
        torch.save(Hostile(), path)
    else:
        path.write_bytes({"truncated": path.read_bytes()[:5000], "empty": b"", "text": b"not a checkpoint"}[kind])
    with pytest.raises(ValueError, match=r"DCGAN.checkpoint.pt is no readable checkpoint .*Delete it"):
        train_one(cells, settings, tiny, tmp_path, CPU)
    assert not (tmp_path / "hostile_code_ran").exists()


def test_a_failed_write_leaves_the_old_file(cells, tmp_path):
    path = tmp_path / "state.pt"
    cells.write_atomically(path, {"a": 1})
    with pytest.raises(Exception, match=r"(?i)pickle|local"):
        cells.write_atomically(path, {"a": lambda: None})
    assert torch.load(path, weights_only=True) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_same_seed_same_training_other_seed_another(cells, tiny, tmp_path):
    runs = [
        train_one(cells, cells.profile_settings("smoke", "WGAN-GP", seed=seed), tiny, tmp_path / str(i), CPU)
        for i, seed in enumerate((3, 3, 4))
    ]
    same_state(cells, runs[0], runs[1])
    assert not runs[0].generator.layers[0].weight.equal(runs[2].generator.layers[0].weight)


@pytest.mark.parametrize("device_says", ["CUDA out of memory. Tried to allocate 20 MiB", "MPS backend out of memory"])
def test_out_of_memory_says_what_to_change(cells, tiny, tmp_path, monkeypatch, device_says):
    """The devices' own words here; the CPU's own error, met for real, in the next test."""

    def full(run, real):
        raise RuntimeError(device_says)

    monkeypatch.setattr(cells, "critic_step", full)
    settings = cells.profile_settings("smoke", "WGAN")
    with pytest.raises(MemoryError, match=r"^WGAN: batches of 16 at width 8 do not fit in the memory of cpu\. Take a"):
        train_one(cells, settings, tiny, tmp_path, torch.device("cpu"))


def test_out_of_memory_on_a_cpu(cells):
    with (
        pytest.raises(MemoryError, match="do not fit in the memory of cpu"),
        cells.memory_explained(cells.PAPER["WGAN"], "cpu"),
    ):
        torch.empty(2**55)
    with pytest.raises(RuntimeError, match="shape"), cells.memory_explained(cells.PAPER["WGAN"], "cpu"):
        torch.zeros(2) @ torch.zeros(3, 3)
