"""Sweeps on Dask's workers: every combination is trained and judged once, whatever happens."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import distributed
import live_lines
import numpy as np
import pytest
import sweep
import tiny_data_sets
import torch
from conftest import ROOT, compare
from dask.system import CPU_COUNT

ITERATIONS = 120
CHANGES = {"WGAN-GP": {"iterations": ITERATIONS, "penalty_weight": [1.0, 10.0]}}


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Parameters, as texts, of four smoke trainings on a tiny MNIST."""
    tiny_data_sets.mnist(tmp_path / "data", np.random.default_rng(0))
    monkeypatch.chdir(tmp_path)
    chosen = {"DATASET": "mnist", "METHODS": "WGAN-GP", "SEEDS": "0,1", "PROFILE": "smoke"}
    return chosen | {"CHANGES": repr(CHANGES), "DEVICE": "cpu", "PRECISION": "float32"}


def words(given):
    return [word for name, value in given.items() for word in ("-p", name, str(value))]


def run(monkeypatch, given):
    """The status with which the sweep of these parameters ends in this process."""
    monkeypatch.setattr(sys, "argv", ["sweep.py", *words(given)])
    with pytest.raises(SystemExit) as ended:
        sweep.main()
    return ended.value.code


def rows_of(folder):
    return json.loads((folder / "sweep" / "results.json").read_text())["rows"]


def test_a_list_of_values_means_each_of_them(given, tmp_path):
    parameters, own = sweep.choose(given.items(), SEEDS="")
    tasks = sweep.plan(parameters, ["mnist", "fashion-mnist"], [0, 1])
    found = [(t["DATASET"], t["CHANGES"]["WGAN-GP"]["penalty_weight"], t["SEED"]) for t, _ in tasks]
    assert found == [(d, c, s) for d in ("mnist", "fashion-mnist") for c in (1, 10) for s in (0, 1)]
    assert (
        sweep.plan(parameters | {"PROFILE": "auto"}, ["mnist"], [0, 0, 0])[0][0]["PROFILE"]
        == "quick"
    )
    assert len(sweep.plan(parameters, ["mnist", "mnist"], [0, 1, 0])) == 4  # each once
    assert {n for _, n in tasks} == {ITERATIONS} and own["SEEDS"] == "0,1"
    assert parameters["MODELS_DIR"] == str(tmp_path / "saved_models")


@pytest.fixture
def client(given, cluster):
    """A client of workers which save ten times a second."""
    with distributed.Client(cluster) as client:
        client.run(setattr, sweep, "SAVE_SECONDS", 0.1)
        yield client


def test_a_sweep_is_what_its_tasks_are_one_by_one_although_a_worker_is_killed(
    given, client, tmp_path, monkeypatch, capsys
):
    """The killed worker's task goes on elsewhere, from its checkpoint, to the same weights."""
    killed, models = [], tmp_path / "saved_models"

    def kill():
        """SIGKILL to the worker of the first training that has saved."""
        found = []
        while not found:
            time.sleep(0.05)
            saved = {path.parent.name for path in models.glob("*/WGAN-GP.checkpoint-a.pt")}
            told = [event for _, event in client.get_events("sweep")] if saved else []
            found = [event for event in told if event["line"].partition("/")[0] in saved]
        one = found[-1]
        killed.append((one["task"], one["iteration"]))
        os.kill(pids[one["worker"]], signal.SIGKILL)

    monkeypatch.setattr(live_lines, "SECONDS", 0)
    pids, address = client.run(os.getpid), client.scheduler.address
    killing = threading.Thread(target=kill, daemon=True)
    killing.start()
    assert run(monkeypatch, given | {"CLUSTER": address}) == 0
    killing.join()
    (task, at), said = killed[0], capsys.readouterr().out
    told = [event for _, event in client.get_events("sweep") if event["task"] == task]
    before, after = next((a, b) for a, b in pairwise(told) if a["worker"] != b["worker"])
    assert before["iteration"] >= at and 0 < after["iteration"] < ITERATIONS
    assert "4 of 4 tasks: 100%" in said and f"{before['line'].split(':')[0]}: " in said
    rows = rows_of(models)
    monkeypatch.setattr(sweep, "tell", lambda message: None)
    parameters, _ = sweep.choose((given | {"MODELS_DIR": "alone"}).items(), SEEDS="")
    tasks, threads = sweep.plan(parameters, ["mnist"], [0, 1]), torch.get_num_threads()
    torch.set_num_threads(1)
    alone = [sweep.run_task("", number, task) for number, (task, _) in enumerate(tasks)]
    torch.set_num_threads(threads)
    for row in rows + alone:
        assert row.pop("minutes") > 0
        row["minutes"] = 1
    assert rows == alone and sweep.pool(rows) == sweep.pool(alone)
    settings = f"profile smoke, iterations {ITERATIONS}, penalty_weight 10.0"
    assert f"| mnist | WGAN-GP | {settings} | 0, 1 |" in said
    paths = sorted(models.glob("mnist-*/WGAN-GP.pt"))
    assert len(paths) == 4
    for path in paths:
        other = tmp_path / "alone" / path.parent.name / path.name
        both = [torch.load(some)["average"] for some in (path, other)]
        compare(*map(dict, both), path)
    dates = [path.stat().st_mtime_ns for path in paths]
    assert run(monkeypatch, given | {"CLUSTER": address}) == 0
    assert dates == [path.stat().st_mtime_ns for path in paths]  # finished before
    assert [row["scores"] for row in rows_of(models)] == [row["scores"] for row in rows]


def test_ctrl_c_saves_and_the_same_command_goes_on(given, tmp_path):
    """Sent to workers and sweep alike, as a terminal does; what fails by itself is named."""
    given |= {"DATASETS": "mnist,cifar-10", "SEEDS": "0"}  # there is no CIFAR-10, nor a way to it
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    how = {"env": os.environ | nowhere | {"no_proxy": "127.0.0.1"}, "text": True}
    command = [sys.executable, ROOT / "tools" / "sweep.py", *words(given)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, **how, start_new_session=True)
    models, until = tmp_path / "saved_models", time.monotonic() + 300
    try:
        while not list(models.glob("mnist-*/WGAN-GP.film")):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        said, errors = process.communicate(timeout=300)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1 and "Stopping: each training saves itself" in said
    assert "Stopped and saved; the same command goes on" in errors
    saved = [torch.load(path)["iteration"] for path in models.glob("mnist-*/WGAN-GP.pt")]
    assert saved and all(0 < n < ITERATIONS for n in saved)
    done = subprocess.run(command, capture_output=True, timeout=300, **how)
    assert done.returncode == 1 and "2 of 4 tasks" in done.stdout
    failed = [line for line in done.stderr.splitlines() if "cifar-10, WGAN-GP, seed 0" in line]
    assert len(failed) == 2 and all("cannot be fetched or read" in line for line in failed)
    assert {row["data set"] for row in rows_of(models)} == {"mnist"}


def test_a_training_whose_sweep_is_gone_saves_and_ends(given, client, cluster, tmp_path):
    """Else it would go on beside the one that begins where the same command is given again."""
    given |= {"CHANGES": repr({"WGAN-GP": {"iterations": 100_000}}), "SEEDS": "0"}
    parameters, _ = sweep.choose(given.items(), SEEDS="")
    ((task, _),) = sweep.plan(parameters, ["mnist"], [0])
    models, until = tmp_path / "saved_models", time.monotonic() + 120
    with distributed.Client(cluster) as gone:
        kept = gone.submit(sweep.run_task, gone.id, 0, task)
        while not list(models.glob("mnist-*/WGAN-GP.checkpoint-?.pt")):
            assert time.monotonic() < until and not kept.done()
            time.sleep(0.05)
        assert any(client.run(lambda dask_worker: len(dask_worker.active_threads)).values())
    while any(client.run(lambda dask_worker: len(dask_worker.active_threads)).values()):
        assert time.monotonic() < until
        time.sleep(0.05)
    (path,) = models.glob("mnist-*/WGAN-GP.pt")
    assert 0 < torch.load(path)["iteration"] < 100_000


def test_workers_use_freed_memory_again(given, client):
    """Else each operation of a training has the system fetch it anew, page by page."""

    def pages():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(100):
            torch.zeros(2**21)  # 2,048 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    parameters, _ = sweep.choose(given.items(), SEEDS="")
    task = sweep.plan(parameters, ["mnist"], [0])[0][0]
    for worker in client.ncores():
        where = {"workers": [worker], "pure": False}
        client.submit(sweep.prepare, task, **where).result()
        assert client.submit(pages, **where).result() < 20_000


class Ended:
    """The future of a task that has ended: with its row, or while Ctrl-C is pressed again."""

    def __init__(self, row):
        self.row = row

    def done(self):
        return True

    def result(self):
        if self.row is None:
            raise KeyboardInterrupt
        return self.row


def test_data_are_prepared_once_and_rows_survive_a_second_ctrl_c(cells):
    rows, prepared = iter([{"seed": 0}, {"seed": 1}, None]), []

    def submit(function, *given, **options):
        if function is sweep.prepare:
            return prepared.append(given[0]["DATASET"])
        return Ended(next(rows))

    known = {"METHODS": "WGAN", "SEED": 0, "CHANGES": {}}
    tasks = [(known | {"DATASET": name}, 5) for name in ("mnist", "gtsrb", "mnist")]
    client = SimpleNamespace(id="one", subscribe_topic=lambda *_: None, submit=submit)
    found, failed, _ = sweep.run_all(client, tasks, cells.deferred_interrupts)
    assert prepared == ["mnist", "gtsrb"] and found == [{"seed": 0}, {"seed": 1}]
    assert failed == ["Not waited for; what was saved last is kept"]


def test_other_sweeps_on_the_same_workers_are_neither_heard_nor_stopped(cells):
    told = {"sweep": "two", "task": 7, "iteration": 3, "line": "mnist"}
    hears, ends = [], iter([False, True, True])

    class Future(Ended):
        def done(self):
            hears[0]((0.0, told))
            return next(ends)

    client = SimpleNamespace(id="one", subscribe_topic=lambda _, hear: hears.append(hear))
    client.submit = lambda *given, **options: Future({"seed": 0})
    tasks = [({"DATASET": "mnist"}, 5)]
    assert sweep.run_all(client, tasks, cells.deferred_interrupts) == ([{"seed": 0}], [], False)
    sweep.stop("two")
    assert sweep.run_task("two", 0, {}) is None
    with pytest.raises(KeyError):  # that of one goes to work
        sweep.run_task("one", 0, {})


REFUSED = [
    ({"METHODS": "GAN"}, "METHODS is 'GAN'; allowed: 'DCGAN'"),
    ({"SEEDS": "0,x"}, "seed is 'x'"),
    ({"DATASETS": "mnist,lsun"}, "DATASET is 'lsun'; allowed: "),
    ({"SPEED": "3"}, "no such parameter: SPEED"),
    ({"START": "afresh"}, "allowed in a sweep: True, 'resume'"),
    ({"CHANGES": "{'WGAN': {'clip': [0.1, 99.0]}}", "METHODS": "WGAN"}, "clip is 99.0; allowed"),
    ({"CHANGES": "3"}, "CHANGES is 3, int; allowed: dict"),
    ({"CHANGES": "{'WGANGP': {'clip': 0.1}}"}, "a method in CHANGES is 'WGANGP'; allowed: 'DCGAN'"),
    ({"CHANGES": "{'WGAN-GP': 3}"}, "CHANGES['WGAN-GP'] is 3, int; allowed: dict"),
    ({"CHANGES": "{'WGAN-GP': {'clip': []}}"}, "lists no values; allowed: one or more"),
    ({"CLUSTER": "tcp://127.0.0.1:9"}, "CLUSTER is 'tcp://127.0.0.1:9'; allowed: the address"),
]


@pytest.mark.parametrize(("wrong", "said"), REFUSED)
def test_bad_input_is_refused_before_anything_starts(given, monkeypatch, wrong, said):
    monkeypatch.setattr(sweep.distributed, "LocalCluster", None)
    assert said in run(monkeypatch, given | wrong)


def raising(error):
    def fail(*_, **__):
        raise error

    return fail


HERE = sweep.versions()


def test_workers_that_are_begun_here_may_take_all_the_memory(monkeypatch):
    """Scoring takes gigabytes for seconds: with a share for each worker, Dask would kill it."""
    monkeypatch.setenv("PYTHONPATH", "")
    client = sweep.new_client("")
    try:
        workers = client.scheduler_info(-1)["workers"].values()
        assert [(one["nthreads"], one["memory_limit"]) for one in workers] == [(1, 0)] * CPU_COUNT
    finally:
        sweep.leave(client, "")


WORKERS = [
    (
        lambda *_: {"tcp://one:1": (True, HERE), "tcp://two:2": (False, HERE)},
        "which tcp://two:2 cannot see; all",
    ),
    (
        lambda *_: {"tcp://one:1": (True, HERE), "tcp://two:2": (True, HERE | {"torch": "2.6"})},
        r"workers have tcp://two:2 \{.*'torch': '2.6'\}; allowed: ",
    ),
    (raising(ModuleNotFoundError("No module", name="sweep")), "lack sweep; allowed: started here"),
    (raising(TimeoutError()), "CLUSTER has no workers; allowed: one or more"),
]


@pytest.mark.parametrize(("answer", "said"), WORKERS)
def test_workers_that_cannot_work_are_refused(tmp_path, answer, said):
    client = SimpleNamespace(wait_for_workers=lambda *_, **__: None, run=answer)
    with pytest.raises(ValueError, match=said):
        sweep.check_workers(client, Path(tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_table_pools_seeds():
    def row(seed, distance, **more):
        known = {"data set": "mnist", "method": "WGAN", "settings": "profile quick", "minutes": 2.0}
        return known | {"seed": seed, "scores": {"KID": distance}, "machine": "a"} | more

    table = sweep.pool([row(0, 1.0), row(1, 3.0, machine="b"), row(0, 5.0, method="DCGAN")])
    assert table.splitlines()[2:] == [
        "| mnist | WGAN | profile quick | 0, 1 | 2.00 ± 1.41 | 2.0 ± 0.0 | a; b |",
        "| mnist | DCGAN | profile quick | 0 | 5.00 | 2.0 | a |",
    ]
