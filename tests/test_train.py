"""One training on several processes: the gradients, the weights, and what happens when one ends.

torchrun starts this file as a script, whose functions below `AS SCRIPTS` its processes run.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_data_sets
import torch
import train
from conftest import CPU, METHODS, ROOT, same_state, train_one
from notebook_cells import load_cells

N, LAST, AT = 16, 100, 10  # rows of a batch, iterations, the one at which something happens
CHANGES = {"WGAN-GP": {"iterations": LAST, "record_every": 10}}


# AS SCRIPTS


def part_of_batch():
    """Save this process's gradients of given rows, and what it draws itself."""
    folder = Path(sys.argv[1])
    cells = load_cells(PROFILE="smoke", MODELS_DIR=str(folder), IMAGES_DIR=str(folder))
    train.together.init_process_group("gloo")
    share = N // train.WORLD
    found = {}
    for kind in (torch.float32, torch.float64):
        found[str(kind)] = gradients(cells, kind, train.RANK * share, share)
    run = a_run(cells)
    for name in ("drawn", "drawn again"):
        cells.set_pace(run)
        found[name] = run.noise(share)
    run.iteration += 1
    cells.set_pace(run)
    found["drawn next"] = run.noise(share)
    torch.save(found, folder / f"{train.RANK}.pt")
    train.together.destroy_process_group()


def training():
    """tools/train.py, to whose process 1 (or all) something may happen at iteration AT."""
    deed, ask, bring = sys.argv.pop(1), train.Watch.is_set, train.train

    def watched(watch):
        if deed == "slowly":
            time.sleep(0.05)
        elif watch.run.iteration == AT and train.RESTARTS == 0:
            if deed in ("killed", "stopped") and train.RANK == 1:
                os.kill(os.getpid(), signal.SIGKILL if deed == "killed" else signal.SIGTERM)
            if deed == "spoilt":
                next(watch.run.critic.parameters()).data.fill_(torch.nan)
        return ask(watch)

    def kept(cells, run, interrupted):
        bring(cells, run, interrupted)
        networks = (run.generator, run.critic, run.average)
        weights = [weight.detach() for network in networks for weight in network.parameters()]
        torch.save(weights, f"{run.path}.of-process-{train.RANK}")

    train.Watch.is_set, train.train = watched, kept
    train.SAVE_SECONDS = 0 if deed == "killed" else 60
    if train.RESTARTS and train.RANK == 1:
        time.sleep(3)  # what process 1 left behind when it was killed is not taken for an answer
    train.main()


# THE TESTS


def a_run(cells):
    settings = cells.profile_settings("smoke", "WGAN-GP")
    return cells.new_run(settings, cells.build_networks(settings, (1, 28, 28), "cpu"), CPU)


def gradients(cells, kind, start, n):
    """The critic's, of rows `start` to `start + n` of a batch that is always the same."""
    run, rng = a_run(cells), torch.Generator().manual_seed(1)
    run.critic.to(kind)
    run.gradient = cells.written_out_gradient
    x, x_tilde = 2 * torch.rand(2, N, 1, 28, 28, generator=rng, dtype=kind) - 1
    torch.rand(start, generator=run.rng, dtype=kind)  # the epsilon of the rows before
    rows = slice(start, start + n)
    cells.critic_loss(run, x[rows], x_tilde[rows])[0].backward()
    cells.average_gradients(run.critic)
    return [weight.grad for weight in run.critic.parameters()]


def start(function, *arguments, options=()):
    """torchrun with two processes of this file's `function`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tools"), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command += ["--nproc-per-node", "2", *options, __file__, function, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, **pipes)


def end(process):
    """(return code, standard output, errors) of torchrun, which has three minutes to end."""
    try:
        shown, errors = process.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        process.terminate()  # and with it, after half a minute, the processes it started
        shown, errors = process.communicate(timeout=90)
        pytest.fail(f"did not end\n{shown}\n{errors}")
    return process.returncode, shown, errors


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with tiny data."""
    folder = tmp_path_factory.mktemp("several")
    tiny_data_sets.mnist(folder / "data", np.random.default_rng(0))
    return folder


@pytest.fixture(scope="module")
def chosen(place):
    """chosen(name, **others) -> parameters of a small training with its files in folder `name`."""

    def make(name, **others):
        usual = {"PROFILE": "smoke", "DATASET": "mnist", "METHODS": "WGAN-GP", "CHANGES": CHANGES}
        usual |= {"DEVICE": "cpu", "PRECISION": "float32", "DATA_DIR": str(place / "data")}
        folder = str(place / name)
        return usual | {"MODELS_DIR": folder, "IMAGES_DIR": folder} | others

    return make


@pytest.fixture(scope="module")
def launch(chosen):
    """launch(name, deed, *torchrun's options, **parameters) -> the process of a training."""

    def make(name, deed, *options, **others):
        pairs = chosen(name, **others).items()
        given = [word for key, value in pairs for word in ("-p", key, value)]
        return start("training", deed, *given, options=options)

    return make


@pytest.fixture(scope="module")
def finished(chosen):
    """finished(name) -> (cells, Run) of what is saved in folder `name`."""

    def make(name):
        cells = load_cells(**chosen(name))
        data = cells.load_images(cells.source, Path(cells.DATA_DIR), CPU)
        return cells, cells.start_run(cells.models / "WGAN-GP", cells.settings["WGAN-GP"], data)

    return make


@pytest.fixture(scope="module")
def uninterrupted(launch):
    """What a training showed, whose files are in folder 'whole'."""
    code, shown, errors = end(launch("whole", "alone"))
    assert code == 0, f"{shown}\n{errors}"
    return shown


@pytest.fixture(scope="module")
def parts(place):
    """What part_of_batch saved in each of two processes."""
    code, _, errors = end(start("part_of_batch", place))
    assert code == 0, errors
    return [torch.load(place / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize(("kind", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_gradients_of_two_processes_are_those_of_their_batches_together(cells, parts, kind, limit):
    for part in parts:
        found, expected = part[str(kind)], gradients(cells, kind, 0, N)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=limit, rtol=limit)
    half = gradients(cells, kind, 0, N // 2)  # which the joined batch's are not
    assert any((x - y).abs().max() > 1e-3 for x, y in zip(expected, half, strict=True))


def test_each_process_draws_its_own_numbers_which_the_iteration_alone_decides(parts):
    a, b = parts
    assert not a["drawn"].equal(b["drawn"])
    for one in parts:
        assert one["drawn"].equal(one["drawn again"])
        assert not one["drawn"].equal(one["drawn next"])
    assert not a["drawn next"].equal(b["drawn"]) and not b["drawn next"].equal(a["drawn"])


def test_both_processes_hold_the_same_weights_to_the_last_bit(uninterrupted, finished):
    cells, run = finished("whole")
    a, b = (torch.load(f"{run.path}.of-process-{rank}", weights_only=True) for rank in (0, 1))
    assert all(x.equal(y) for x, y in zip(a, b, strict=True))
    first = cells.build_networks(run.settings, (1, 28, 28), "cpu")
    first = [weight for network in first for weight in network.parameters()]
    assert not any(x.equal(y) for x, y in zip(a, first, strict=False) if y.dim() > 1)
    assert run.iteration == LAST


def test_files_are_the_notebooks_and_one_process_shows_how_far_it_is(uninterrupted, finished):
    cells, _ = finished("whole")
    saved = cells.read_saved(cells.weights_file("WGAN-GP"), cells.WEIGHTS)
    assert saved["iteration"] == LAST and saved["processor"].startswith("2 x ")
    assert uninterrupted.count("WGAN-GP: new\n") == 1
    assert uninterrupted.count("WGAN-GP: 100%|") == 1 and f"{LAST}/{LAST} [" in uninterrupted


def test_ctrl_c_saves_and_run_again_it_is_as_though_never_interrupted(
    uninterrupted, place, launch, finished
):
    cells, whole = finished("whole")
    process = launch("interrupted", "slowly")
    film = place / "interrupted" / whole.path.parent.name / "WGAN-GP.film"
    until = time.monotonic() + 120
    while not film.exists() or film.stat().st_size < 5 * 25 * 28 * 28:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, _, errors = end(process)
    assert code != 0 and errors.count("Stopped: saved at iteration") == 1
    _, stopped = finished("interrupted")
    assert 0 < stopped.iteration < LAST
    assert f"iteration {stopped.iteration} ({stopped.path}); run again" in errors
    code, shown, errors = end(launch("interrupted", "alone"))
    assert code == 0, errors
    assert f"WGAN-GP: at iteration {stopped.iteration} of {LAST}\n" in shown
    same_state(cells, whole, finished("interrupted")[1])


def test_a_signal_to_one_process_stops_all_at_the_same_iteration(launch, finished):
    code, _, errors = end(launch("stopped", "stopped"))
    assert code != 0 and errors.count(f"Stopped: saved at iteration {AT} ") == 1
    assert finished("stopped")[1].iteration == AT


def test_after_a_kill_a_restart_goes_on_from_the_checkpoint_although_started_afresh(
    uninterrupted, place, launch, finished
):
    cells, whole = finished("whole")
    old = place / "killed" / whole.path.parent.name / "WGAN-GP.checkpoint-b.pt"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of an earlier training, which is to be deleted")
    code, shown, errors = end(launch("killed", "killed", "--max-restarts", "1", START="afresh"))
    assert code == 0, errors
    assert shown.count("WGAN-GP: new\n") == 1
    assert shown.count(f"WGAN-GP: at iteration {AT - 1} of {LAST}\n") == 1  # saved at each
    same_state(cells, whole, finished("killed")[1])


def test_without_a_restart_the_process_that_is_left_says_in_one_line_what_to_do(launch):
    code, _, errors = end(launch("left", "killed"))
    assert code != 0 and "[rank" not in errors  # so torch marks a traceback
    assert errors.count("Stopped: another process has ended. Run again to go on\n") == 1


def test_weights_that_are_not_finite_end_all_with_one_message(launch):
    code, _, errors = end(launch("spoilt", "spoilt"))
    assert code != 0 and "[rank" not in errors and "gloo" not in errors
    assert errors.count(f"not finite by iteration {AT}; nothing saved") == 1
    assert "another process" not in errors


def test_bad_input_gets_one_message_before_anything_is_made(place, launch):
    odd = {"WGAN-GP": {"batch_size": 7}}
    code, shown, errors = end(launch("refused", "alone", CHANGES=odd))
    said = "batch_size of WGAN-GP is 7; allowed: multiples of 2 from 4, for 2 processes\n"
    assert code != 0 and not shown and errors.count(said) == 1 and "[rank" not in errors
    assert not [path for path in (place / "refused").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["-p", "SEEDS", "3"], "no such parameter: SEEDS; allowed: DATASET, IMAGE_SIZE"),
        (["-p", "PROFILE", "fast"], "PROFILE is 'fast'; allowed: 'auto', 'smoke'"),
        (["-p", "TRAIN", "False"], "TRAIN is False; allowed: True"),
        (["-p", "SEED", "one"], "seed is 'one', str; allowed: int"),
    ],
)
def test_a_parameter_that_is_not_allowed_is_refused(tmp_path, monkeypatch, capsys, given, said):
    folders = [w for name in ("MODELS_DIR", "IMAGES_DIR") for w in ("-p", name, str(tmp_path))]
    monkeypatch.setattr(sys, "argv", ["train.py", *folders, *given])
    with pytest.raises(SystemExit, match="1"):
        train.main()
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    ("n", "kind", "size", "said"),
    [
        (3, "cpu", 16, "batch_size of WGAN-GP is 16; allowed: multiples of 3 from 6"),
        (16, "cpu", 16, "batch_size of WGAN-GP is 16; allowed: multiples of 16 from 32"),
        (2, "mps", 16, "2 processes share DEVICE 'mps'; allowed: 1, or DEVICE cpu"),
        (3, "cuda", 18, "3 processes share DEVICE 'cuda'; allowed: 2, or DEVICE cpu"),
    ],
)
def test_more_processes_than_can_share_are_refused(monkeypatch, n, kind, size, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    settings = {"DCGAN": SimpleNamespace(batch_size=1), "WGAN-GP": SimpleNamespace(batch_size=size)}
    choices = {"TRAIN": True, "device": torch.device(kind), "methods": ["WGAN-GP"]}
    cells = SimpleNamespace(settings=settings, **choices)
    with pytest.raises(ValueError, match=said):
        train.check(cells, n)
    enough = {"cpu": 8, "mps": 1, "cuda": 2}
    train.check(cells, enough[kind])  # a DCGAN is not asked for, and may be what it likes


def test_one_process_alone_trains_as_the_notebook_does(chosen, monkeypatch, tmp_path):
    changes = {method: {"iterations": 5} for method in METHODS}
    others = {"METHODS": "DCGAN, WGAN-GP", "CHANGES": changes}
    given = [w for pair in chosen("one", **others).items() for w in ("-p", *map(str, pair))]
    monkeypatch.setattr(sys, "argv", ["train.py", *given])
    train.main()
    cells = load_cells(**chosen("one", **others))
    data = cells.load_images(cells.source, Path(cells.DATA_DIR), CPU)
    judge = cells.load_judge(data).scores
    for method in cells.methods:
        settings = cells.settings[method]
        run = cells.start_run(cells.models / method, settings, data)
        assert run.iteration == 5
        same_state(cells, run, train_one(cells, settings, data, tmp_path, judge=judge))


if __name__ == "__main__":
    globals()[sys.argv.pop(1)]()
