"""Kill trainings at random instants, damage their files, and see that nothing is lost and nothing wrong is resumed.

    python tests/stress.py [--kills 100] [--damages 500] [--seed 0]

Kills: a process of its own trains, saving after every iteration, and gets SIGKILL after a random time: in a step, while
a checkpoint is written or renamed, while samples are judged. Another goes on, until the training is finished. Its final
networks, average, optimisers, random numbers and history must equal an uninterrupted training's bit for bit.

Damages: files cut off at every percent of their length, bytes changed at random, other things in their place. A resumed
training must be the newest or the previous checkpoint, whole, or be refused with one clear error.
"""

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import torch
from notebook_cells import load_cells
from tqdm import tqdm

# Its lock is one semaphore for all forked processes: killed while it holds that, a training would stop every later one.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0

CPU = torch.device("cpu")
METHODS = ("DCGAN", "WGAN", "WGAN-GP")


def load(folder):
    """(the notebook's cells at smoke size, an ImageData of random images)."""
    folders = {"MODELS_DIR": str(folder / "models"), "IMAGES_DIR": str(folder / "images")}
    cells = load_cells(PROFILE="smoke", DEVICE="cpu", PRECISION="float32", **folders)
    images = torch.randint(256, (300, 1, 28, 28), dtype=torch.uint8)
    labels = torch.randint(10, (300,))
    return cells, cells.ImageData(images[:200], labels[:200], images[200:], labels[200:], cells.source.names)


def digest(content):
    """SHA-256 of nested containers of tensors and plain values, leaving out the seconds on the clock."""
    sha = hashlib.sha256()

    def add(value):
        if isinstance(value, dict):
            for key in sorted(value, key=repr):
                if key != "seconds":
                    sha.update(repr(key).encode())
                    add(value[key])
        elif isinstance(value, list | tuple):
            for part in value:
                add(part)
        elif torch.is_tensor(value):
            sha.update(repr((value.dtype, tuple(value.shape))).encode() + value.contiguous().numpy().tobytes())
        else:
            sha.update(repr(value).encode())

    add(content)
    return sha.hexdigest()


def state_of(cells, run):
    """Digest of all that makes up a Run."""
    parts = {name: getattr(run, name).state_dict() for name in cells.STATEFUL}
    parts |= {name: getattr(run, name).get_state() for name in cells.GENERATORS}
    return digest(parts | {name: getattr(run, name) for name in cells.PLAIN})


def brightness(pictures):
    """A judge."""
    return {"brightness": pictures.float().mean().item()}


def train(cells, data, settings, folder):
    """Train with a checkpoint after every iteration, silently."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        trainings = [cells.Training(settings.method, settings, data, folder, brightness)]
        return cells.train(trainings, CPU, save_seconds=0)[settings.method]


def train_and_kill(cells, data, settings, folder, after):
    """Train in a process of its own, killed `after` so many seconds; return whether it had finished before."""
    pid = os.fork()
    if pid == 0:
        try:
            train(cells, data, settings, folder)
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
    end = time.monotonic() + after
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, f"the training failed by itself after it had been killed before ({folder})"
            return True
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1] == 0  # it may have ended in that very moment


def kill_test(cells, data, method, kills, rng, folder):
    """Kill trainings of `method` `kills` times in all; return {"trainings": ..., "kills": ..., "equal": ...}."""
    settings = cells.profile_settings("smoke", method, iterations=30)
    start = time.monotonic()
    whole = state_of(cells, train(cells, data, settings, folder / "whole"))
    seconds = time.monotonic() - start
    counts = Counter()
    while counts["kills"] < kills:
        place = folder / f"training-{counts['trainings']}"
        while not train_and_kill(cells, data, settings, place, rng.uniform(0, seconds / 3)):
            counts["kills"] += 1
            assert counts["kills"] < 10 * kills + 100, f"{method}: killed so often, yet never finished"
            for path in place.glob("*.pt"):  # whatever is there under its final name is whole
                cells.read_saved(path, cells.WEIGHTS)
        counts["trainings"] += 1
        counts["equal"] += state_of(cells, train(cells, data, settings, place)) == whole
        shutil.rmtree(place)
    return dict(counts)


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch hostile_code_ran",))


def damage(path, kind, at, rng, foreign):
    """Do to the file at `path` what `kind` says; `at` (0 to 1) says where."""
    content = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: int(at * len(content))])
    elif kind == "flipped":
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 3, 20))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
    elif kind == "directory":
        path.unlink()
        path.mkdir()
    elif kind == "code":
        torch.save(Hostile(), path)
    elif kind == "foreign":
        torch.save({"some": "thing"}, path)
    elif kind == "text":
        path.write_bytes(b"not a checkpoint")
    else:  # another training's
        shutil.copy(foreign[kind], path)


def cases(number, rng):
    """(which file, kind of damage, where) for `number` cases, the systematic ones first."""
    single = [
        ("checkpoint", kind, 0) for kind in ("directory", "code", "foreign", "text", "method", "width", "data set")
    ]
    single += [("weights", kind, 0) for kind in ("directory", "code", "foreign", "text")]
    single += [(which, "truncated", i / 100) for i in range(100) for which in ("checkpoint", "weights")]
    single += [("both", "truncated", i / 20) for i in range(20)]
    flips = [(which, "flipped", 0) for which in ("checkpoint", "weights", "both")]
    return [*single, *(flips[rng.randrange(3)] for _ in range(max(0, number - len(single))))][:number]


def damage_test(cells, data, number, rng, folder):
    """Damage files in `number` ways; return how often each outcome came about. AssertionError for a wrong resume."""

    def started(changes, place, iterations, method="WGAN-GP"):
        run = cells.new_run(
            settings := cells.profile_settings("smoke", method, **changes),
            cells.build_networks(settings, (1, 28, 28), CPU), CPU,
        )  # fmt: skip
        place.mkdir()
        states = []
        for _ in range(iterations):
            cells.iterate(run, data.train)
            cells.save_run(run, place)
            states.append(state_of(cells, run))
        return settings, states

    settings, states = started({}, folder / "good", 3)
    started({}, folder / "method", 2, "WGAN")
    started({"width": 4}, folder / "width", 2)
    started({"dataset": "mnist"}, folder / "set", 2)
    names = {"method": "WGAN", "width": "WGAN-GP", "data set": "WGAN-GP"}
    foreign = {k: folder / k.removeprefix("data ") / f"{name}.checkpoint.pt" for k, name in names.items()}
    weights = digest(cells.load_generator(folder / "good" / "WGAN-GP.pt", (1, 28, 28), CPU)[0].state_dict())
    outcomes = Counter()
    for which, kind, at in cases(number, rng):
        place = folder / "damaged"
        shutil.copytree(folder / "good", place)
        files = {"checkpoint": ["checkpoint"], "both": ["checkpoint", "checkpoint.previous"], "weights": []}[which]
        for path in [place / f"WGAN-GP.{name}.pt" for name in files] or [place / "WGAN-GP.pt"]:
            damage(path, kind, at, rng, foreign)
        try:
            if which == "weights":
                generator, _ = cells.load_generator(place / "WGAN-GP.pt", (1, 28, 28), CPU)
                assert digest(generator.state_dict()) == weights, f"wrong weights were loaded: {kind} {at}"
                outcome = "unharmed"
            else:
                with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                    run = cells.start_run(cells.Training("WGAN-GP", settings, data, place), CPU, "float32", "resume")
                assert state_of(cells, run) in states[-2:], f"a wrong state was resumed: {which} {kind} {at}"
                outcome = "unharmed" if run.iteration == 3 else "previous taken"
        except ValueError as error:
            assert "START='afresh'" in str(error) and str(place) in str(error), error
            outcome = "refused"
        if kind in ("method", "width", "data set"):
            assert outcome == "refused", f"a checkpoint of another {kind} was resumed"
        outcomes[f"{which} {kind}: {outcome}"] += 1
        shutil.rmtree(place)
    assert not Path("hostile_code_ran").exists(), "code in a file was executed"
    return dict(sorted(outcomes.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--damages", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rng = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as folder:
        cells, data = load(Path(folder))
        os.chdir(folder)
        failed = False
        for method in METHODS:
            place = Path(folder) / method
            place.mkdir()
            counts = kill_test(cells, data, method, -(-chosen.kills // len(METHODS)), rng, place)
            failed |= counts["equal"] != counts["trainings"]
            print(f"{method}: {counts['kills']} kills in {counts['trainings']} trainings, "
                  f"{counts['equal']} of them equal to an uninterrupted one bit for bit", flush=True)  # fmt: skip
        outcomes = damage_test(cells, data, chosen.damages, rng, Path(folder))
        for outcome, count in outcomes.items():
            print(f"{count:4d}  {outcome}")
        print(f"{sum(outcomes.values())} damaged files: none resumed wrongly, no foreign code executed")
        sys.exit(failed)


if __name__ == "__main__":
    main()
