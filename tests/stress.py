"""Kill trainings at random instants, damage their files, and see that nothing is lost and nothing
wrong is resumed.

    python tests/stress.py [--kills 100] [--damages 500] [--seed 0]

Kills: a process of its own trains, saving after every iteration, and gets SIGKILL after a random
time: in a step, while a file is written or renamed, while samples are judged. Another goes on until
the training is finished. What it leaves must equal an uninterrupted training's bit for bit.

Damages: files cut off at every percent of their length, bytes changed at random, other things in
their place. A resumed training must be one of the two checkpoints, whole, or be refused with one
clear error.
"""

import argparse
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
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import torch
from conftest import CPU, METHODS, brightness, random_images, train_one
from notebook_cells import load_cells, silence
from tqdm import tqdm

# Its lock is one semaphore for all forked processes: killed while it holds that, a training would
# stop every later one.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0

ODD = ("directory", "code", "foreign", "text")  # things that are no files of the notebook


def digest(content):
    """SHA-256 of nested containers of tensors and plain values, without seconds on the clock."""
    sha = hashlib.sha256()

    def add(value):
        if isinstance(value, dict):
            for key in sorted(value.keys() - {"seconds"}, key=repr):
                sha.update(repr(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for part in value:
                add(part)
        elif torch.is_tensor(value):
            sha.update(repr((value.dtype, value.shape)).encode())
            sha.update(value.contiguous().numpy().tobytes())
        else:
            sha.update(repr(value).encode())

    add(content)
    return sha.hexdigest()


def state_of(cells, run):
    """Digest of all that makes up a Run."""
    parts = {name: getattr(run, name).state_dict() for name in cells.STATEFUL}
    parts |= {name: getattr(run, name) for name in cells.PLAIN}
    return digest(parts | {"rng": run.rng.get_state()})


def train(cells, data, settings, folder):
    """Train with a checkpoint after every iteration, silently."""
    with silence():
        return train_one(cells, settings, data, folder, judge=brightness, save_seconds=0)


def train_and_kill(cells, data, settings, folder, after):
    """Train in a process of its own, killed `after` so many seconds; return whether it ended."""
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
            assert status == 0, f"the training failed by itself after a kill ({folder})"
            return True
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1] == 0  # it may have ended in that very moment


def kill_test(cells, data, method, kills, rng, folder):
    """Kill trainings of `method` so many times in all; {"trainings": ..., "kills": ..., ...}."""
    settings = cells.profile_settings("smoke", method, iterations=30)
    start = time.monotonic()
    whole = state_of(cells, train(cells, data, settings, folder / "whole"))
    seconds = time.monotonic() - start
    film, counts = (folder / "whole" / f"{method}.film").read_bytes(), Counter()
    while counts["kills"] < kills:
        place = folder / f"training-{counts['trainings']}"
        while not train_and_kill(cells, data, settings, place, rng.uniform(0, seconds / 3)):
            counts["kills"] += 1
            assert counts["kills"] < 10 * kills + 100, f"{method}: killed so often, never finished"
            for path in place.glob("*.pt"):  # whatever is there under its final name is whole
                cells.read_saved(path, cells.WEIGHTS)
        counts["trainings"] += 1
        saved = cells.read_saved(place / f"{method}.pt", cells.WEIGHTS)
        same = saved["iteration"] == 30 and (place / f"{method}.film").read_bytes() == film
        counts["equal"] += same and state_of(cells, train(cells, data, settings, place)) == whole
        shutil.rmtree(place)
    return dict(counts)


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch hostile_code_ran",))


def damage(path, kind, at, rng):
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
    elif kind in ("code", "foreign"):
        torch.save(Hostile() if kind == "code" else {"some": "thing"}, path)
    else:
        path.write_bytes(b"not a checkpoint")


def cases(number, rng):
    """(which file, kind of damage, where) for `number` cases, the systematic ones first."""
    listed = [(which, kind, 0) for kind in ODD for which in ("both", "weights")]
    listed += [(which, "truncated", i / 100) for i in range(100) for which in ("newest", "weights")]
    listed += [("both", "truncated", i / 20) for i in range(20)]
    while len(listed) < number:
        listed.append((rng.choice(("newest", "weights", "both")), "flipped", 0))
    return listed[:number]


def outcome_of(cells, data, settings, place, which, expected):
    """'unharmed', 'the other taken' or 'refused'. AssertionError if something wrong is loaded."""
    try:
        if which == "weights":
            generator, _ = cells.load_generator(place / "WGAN-GP.pt", (1, 28, 28), CPU)
            assert digest(generator.state_dict()) == expected[-1], "wrong weights were loaded"
            return "unharmed"
        with silence():
            run = cells.start_run(place / "WGAN-GP", settings, data)
        assert state_of(cells, run) == expected[run.iteration - 1], "a wrong state was resumed"
        return "unharmed" if run.iteration == 3 else "the other taken"
    except ValueError as error:
        assert "START='afresh'" in str(error) and str(place) in str(error), error
        return "refused"


def damage_test(cells, data, number, rng, folder):
    """Damage files in `number` ways; return how often each outcome came about."""
    settings, states = cells.profile_settings("smoke", "WGAN-GP"), []
    run = cells.new_run(settings, cells.build_networks(settings, (1, 28, 28), CPU), CPU)
    good, outcomes = folder / "good", Counter()
    run.path = good / "WGAN-GP"
    for _ in range(3):
        cells.iterate(run, data.train)
        cells.save_run(run)
        states.append(state_of(cells, run))
    generator, _ = cells.load_generator(good / "WGAN-GP.pt", (1, 28, 28), CPU)
    expected = [*states, digest(generator.state_dict())]
    for which, kind, at in cases(number, rng):
        place = folder / "damaged"
        shutil.copytree(good, place)
        paths = {"newest": [place / run.newest.name], "weights": [place / "WGAN-GP.pt"]}
        for path in paths.get(which) or cells.checkpoints(place / "WGAN-GP"):
            damage(path, kind, at, rng)
        outcome = outcome_of(cells, data, settings, place, which, expected)
        assert outcome == "refused" or kind not in ODD, f"{which} {kind}: {outcome}"
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
    rng, failed = random.Random(chosen.seed), False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = {"MODELS_DIR": str(folder / "models"), "IMAGES_DIR": str(folder / "images")}
        cells = load_cells(PROFILE="smoke", DEVICE="cpu", PRECISION="float32", **places)
        data = random_images(cells)
        os.chdir(folder)
        for method in METHODS:
            (folder / method).mkdir()
            kills = -(-chosen.kills // len(METHODS))
            counts = kill_test(cells, data, method, kills, rng, folder / method)
            failed |= counts["equal"] != counts["trainings"]
            of = f"{counts['kills']} kills in {counts['trainings']} trainings"
            print(f"{method}: {of}, {counts['equal']} of them equal to an uninterrupted one")
        outcomes = damage_test(cells, data, chosen.damages, rng, folder)
        for outcome, count in outcomes.items():
            print(f"{count:4d}  {outcome}")
        said = "none resumed wrongly, no foreign code executed"
        print(f"{sum(outcomes.values())} damaged files: {said}", flush=True)
        os.chdir("/")
    sys.exit(failed)


if __name__ == "__main__":
    main()
