"""Train on several processes at once, which share each batch: one on each GPU, or on a CPU.

    torchrun --standalone --nproc-per-node N tools/train.py [-p NAME VALUE]...

trains METHODS, one after the other, with the notebook's cells, parameters and files: opened with
the same parameters and TRAIN = False, the notebook evaluates them. Each process draws its share of
the batch; their gradients are averaged. Batch normalisation, which every generator has, and the
critics of DCGAN and WGAN, sees the share of a process alone.

Ctrl-C saves, for which torchrun waits half a minute (--shutdown-timeout). Run again, it goes on, on
a CPU with as many processes bit for bit as though never interrupted; with torchrun's --max-restarts
it does so by itself when a process has died. On a CPU each process has one thread, unless
OMP_NUM_THREADS says otherwise. Without torchrun it is one process.
"""

import argparse
import os
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from datetime import timedelta
from functools import partial
from pathlib import Path

import nbformat
import torch
import torch.distributed as together
from live_lines import LiveLines
from notebook_cells import NOTEBOOK, load_cells
from run_notebook import add_parameters, read_parameters

SET = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "TORCHELASTIC_RESTART_COUNT": 0}  # by torchrun
RANK, WORLD, LOCAL_RANK, RESTARTS = (int(os.environ.get(name, SET[name])) for name in SET)
SAVE_SECONDS = 60


def join(timeout):
    """Make the process group of torchrun's processes, each of which waits so long for the others.

    Flags go by gloo on the CPU also beside NCCL, so that asking does not wait for a GPU.
    """
    # PyTorch 2.14 keeps what processes wrote here before a restart: old addresses, which hang it.
    store, _, _ = next(together.rendezvous("env://", timeout=timeout))
    store = together.PrefixStore(f"after {RESTARTS} restarts", store)
    kinds = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    places = {"store": store, "rank": RANK, "world_size": WORLD}
    together.init_process_group(kinds, timeout=timeout, **places)


def anywhere(flag):
    """Whether `flag` is true in any process; each waits until all have asked."""
    flag = torch.tensor(int(flag))
    if WORLD > 1:
        together.all_reduce(flag, together.ReduceOp.MAX)
    return bool(flag)


def leave(said=None, all_leave=False):
    """Exit with status 1, having said why if it is this process that says it."""
    if said:
        print(said, file=sys.stderr, flush=True)
    if all_leave:
        anywhere(False)  # torchrun ends all as soon as one has ended, even while it speaks or saves
    sys.exit(1)


def in_turn(work):
    """What work() returns, called by process 0 first. If it raises, all end, and one says why."""
    failure = result = None
    for turn in (True, False):
        if turn == (RANK == 0):
            try:
                result = work()
            except (OSError, RuntimeError, TypeError, ValueError) as error:
                failure = str(error)
        if anywhere(failure is not None):
            leave(failure, all_leave=True)
    return result


def check(cells, n):
    """Raise ValueError for choices with which n processes cannot train."""
    if not cells.TRAIN:
        raise ValueError("TRAIN is False; allowed: True (the notebook evaluates)")
    kind = cells.device.type
    most = {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind, n)
    if n > most:
        raise ValueError(f"{n} processes share DEVICE {kind!r}; allowed: {most}, or DEVICE cpu")
    for method in cells.methods:
        size = cells.settings[method].batch_size
        if size % n or size < 2 * n:  # batch normalisation needs two
            allowed = f"multiples of {n} from {2 * n}, for {n} processes"
            raise ValueError(f"batch_size of {method} is {size}; allowed: {allowed}")


def begin(given):
    """(the notebook's cells, a Run for each method) for parameters {name: text}.

    Raises as check and the cells do.
    """
    cells = load_cells(**read_parameters(nbformat.read(NOTEBOOK, 4), given))
    check(cells, WORLD)
    if cells.device.type == "cuda":
        torch.cuda.set_device(LOCAL_RANK)
    if WORLD > 1:
        one = cells.processor
        cells.processor = lambda device: f"{WORLD} x {one(device)}"
    data = cells.load_images(cells.source, Path(cells.DATA_DIR).expanduser(), cells.device)
    judge = None if RANK else cells.load_judge(data).scores
    # What a restart finds was made by this very command, and the other processes only read:
    start = "resume" if RANK or RESTARTS else cells.START
    places = [(cells.models / method, cells.settings[method]) for method in cells.methods]
    return cells, [cells.start_run(*place, data, judge, start) for place in places]


class Watch:
    """What go_on asks once an iteration: is_set() is true at the same one in all processes.

    On the way it shows each second how far `run` is.
    """

    def __init__(self, cells, run, interrupted):
        self.cells, self.run, self.interrupted = cells, run, interrupted
        self.lines, self.shown = LiveLines(), time.monotonic()

    def is_set(self):
        if time.monotonic() - self.shown > 1:
            self.show()
        return anywhere(self.interrupted.is_set())

    def show(self):
        self.lines.update([self.cells.progress(self.run)])
        self.shown = time.monotonic()


def follow(cells, run, watch):
    """The iterations of go_on, which ask as often as it does; nothing is recorded or written."""
    ending = run.iteration == run.settings.iterations or watch.is_set()
    with cells.iterating(run, run.data.train) as steps:
        while not ending:
            next(steps)
            ending = run.iteration == run.settings.iterations or watch.is_set()


def train(cells, run, interrupted):
    """Bring `run` to its end in all processes; exits with a message if `interrupted` is set."""
    watch = Watch(cells, run, interrupted)
    if RANK == 0:
        cells.go_on(run, watch, SAVE_SECONDS)
    else:
        follow(cells, run, watch)
    watch.show()
    watch.lines.end()
    if run.iteration < run.settings.iterations:
        at = f"iteration {run.iteration:,} ({run.path})"
        said = f"Stopped: saved at {at}; run again with START resume to go on"
        leave(None if RANK else said, all_leave=True)


def work(given):
    """Load, then train; exits with a message if that fails or is interrupted."""
    try:
        cells, runs = in_turn(partial(begin, given))
        with cells.deferred_interrupts() as interrupted:
            for run in runs:
                train(cells, run, interrupted)
    except KeyboardInterrupt:
        leave(None if RANK else "Stopped before the first iteration")
    except (FloatingPointError, OSError) as error:
        leave(error)
    except RuntimeError as error:
        if "gloo" not in str(error) and not isinstance(error, together.DistError):
            raise
        leave(None if RANK else "Stopped: another process has ended. Run again to go on")


def main():
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    add_parameters(parser)
    os.environ.setdefault("MPLBACKEND", "Agg")
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere if RANK else sys.stdout):
        with redirect_stderr(nowhere if RANK else sys.stderr):
            given = parser.parse_args().given
        if WORLD > 1:
            join(timedelta(hours=2))  # process 0 may have to fetch data and train a judge
        try:
            work(given)
        finally:
            if WORLD > 1:
                together.destroy_process_group()


if __name__ == "__main__":
    main()
