"""Train and judge every combination of data sets, methods, settings and seeds, on Dask's workers.

    python tools/sweep.py [-p DATASETS A,B] [-p SEEDS 0,1,2] [-p CLUSTER tcp://HOST:8786]
                          [-p NAME VALUE]...

The other parameters are the notebook's; where CHANGES lists several values of a setting,
{"WGAN-GP": {"learning_rate": [0.001, 0.002]}}, there is a task for each. A task trains with the
notebook's cells and leaves its files where the notebook puts them. Its samples, drawn from the
training's seed, are scored by the notebook's judge; beside these scores stands the Frechet distance
to training images, by which settings may be chosen. What was finished or begun before is not made
again. Without CLUSTER the workers are this machine's, one for each core or GPU; those of a cluster
run in the same folder, with PYTHONPATH=tools. A worker that dies costs what it did since its last
checkpoint: another one goes on. Ctrl-C saves, and the same command goes on. At the end there is a
table, seeds pooled; it and every row stand in MODELS_DIR/sweep/results.json until the next sweep.
"""

import argparse
import ctypes
import json
import os
import platform
import signal
import statistics
import sys
import time
from itertools import product
from pathlib import Path

import distributed
import nbformat
import torch
from dask.system import CPU_COUNT
from live_lines import LiveLines
from notebook_cells import NOTEBOOK, code_versions, load_cells, load_judged, silence
from pages import markdown_table
from run_notebook import add_parameters, defaults, literal, read_parameters
from tqdm import tqdm

SAVE_SECONDS = 60
STOPPED = set()  # of this worker: the sweeps whose trainings are to save and end
JUDGED = {}  # of this worker: the cells with the last data set and its judge, and their parameters


def combinations(changes):
    """One {name: value} for each choice of a value where `changes` lists several."""
    several = [value if isinstance(value, list) else [value] for value in changes.values()]
    return [dict(zip(changes, chosen, strict=True)) for chosen in product(*several)]


def plan(parameters, datasets, seeds):
    """[(the notebook's parameters, iterations) of a task]. Raises as the notebook's cells do."""
    if (parameters["TRAIN"], parameters["START"]) != (True, "resume"):
        raise ValueError("TRAIN or START was given; allowed in a sweep: True, 'resume'")
    tasks, changed = {}, parameters["CHANGES"]  # each once, or two workers would write its files
    for dataset in datasets:
        cells = load_cells(**parameters | {"DATASET": dataset, "CHANGES": {}})
        cells.check_setting("CHANGES", changed, dict)
        for method, changes in changed.items():
            cells.check_setting("a method in CHANGES", method, str, *cells.PAPER)
            cells.check_setting(f"CHANGES[{method!r}]", changes, dict)
        common = parameters | {"DATASET": dataset, "PROFILE": cells.profile}  # here, not by worker
        for method in cells.methods:
            several = combinations(changed.get(method, {}))
            for changes, seed in product(several, seeds):
                task = common | {"METHODS": method, "SEED": seed, "CHANGES": {method: changes}}
                cells = load_cells(**task)
                tasks[cells.models / method] = task, cells.settings[method].iterations
    if not tasks:
        raise ValueError(f"CHANGES is {changed!r}, which lists no values; allowed: one or more")
    return list(tasks.values())


def name_of(task):
    """A task in a few words."""
    changes = "".join(f", {k} {v}" for some in task["CHANGES"].values() for k, v in some.items())
    return f"{task['DATASET']}, {task['METHODS']}, seed {task['SEED']}{changes}"


def keep_freed_memory():
    """Have glibc use freed memory again, as it does by itself; Dask's workers give it back."""
    if platform.libc_ver()[0] == "glibc":
        for kind, size in ((-3, 2**25), (-1, 2**26)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(kind, size)


def load_task(task):
    """The notebook's cells with a task's parameters, its images and their judge."""
    keep_freed_memory()
    where = {name: value for name, value in task.items() if name not in ("SEED", "METHODS")}
    del where["CHANGES"]
    if n := torch.cuda.device_count():  # workers here have numbers for names
        name = str(distributed.get_worker().name)
        torch.cuda.set_device(int(name) % n if name.isdigit() else 0)
    if JUDGED.get("where") != where:
        JUDGED.update(where=where, cells=load_judged(**task))
    cells = load_cells(**task)
    for name in ("data", "judge", "n_samples"):
        setattr(cells, name, getattr(JUDGED["cells"], name))
    return cells


def prepare(task):
    """Make the files that the tasks on a data set share, before any of them begins."""
    with silence():
        load_task(task)


def tell(message):
    """Send what is known of this task to its sweep; has nobody use for the task any more?

    Dask adds the worker's address, and lets a task go on whose sweep is gone.
    """
    worker = distributed.get_worker()
    worker.log_event("sweep", message)
    return worker.state.tasks[worker.get_current_task()].state == "cancelled"


class Watch:
    """What go_on asks once an iteration whether to stop; each second it tells how far `run` is."""

    def __init__(self, sweep, number, cells, run):
        self.task, self.cells, self.run = {"sweep": sweep, "task": number}, cells, run
        self.told, self.unwanted = 0, False

    def is_set(self):
        if time.monotonic() - self.told > 1:
            self.told = time.monotonic()
            line = f"{self.cells.run_name}/{self.cells.progress(self.run)}"
            self.unwanted = tell(self.task | {"line": line, "iteration": self.run.iteration})
        return self.unwanted or self.task["sweep"] in STOPPED


def run_task(sweep, number, task, ready=None):
    """Train one combination, or go on with it, and judge it: its row, or None if it was stopped."""
    if sweep in STOPPED:
        return None
    with silence():
        cells = load_task(task)
        (method,) = cells.methods
        path, settings = cells.models / method, cells.settings[method]
        run = cells.start_run(path, settings, cells.data, cells.judge.scores)
        cells.go_on(run, Watch(sweep, number, cells, run), SAVE_SECONDS)
        if run.iteration < settings.iterations:
            return None
        shape, device = cells.data.train.shape[1:], cells.device
        generator, saved = cells.load_generator(Path(f"{path}.pt"), shape, device)
        rng = torch.Generator(device).manual_seed(task["SEED"])
        z = torch.randn(cells.n_samples, settings.latent_size, generator=rng, device=device)
        pictures = cells.generate(generator, z)
        scores = cells.judge.scores(pictures, thorough=True)
        known = cells.some_images(cells.data, cells.n_samples).train  # settings are chosen by these
        features = [cells.judge.describe(some)[0] for some in (known, pictures)]
        scores["to training images"] = cells.frechet_distance(*features)
    chosen = {"profile": cells.profile} | task["CHANGES"][method]
    return {
        "data set": cells.source.name,
        "method": method,
        "settings": ", ".join(f"{name} {value}" for name, value in chosen.items()),
        "seed": task["SEED"],
        "scores": scores,
        "minutes": saved["seconds"] / 60,
        "machine": f"{saved['processor']}, {saved['machine']['precision']}",
    }


def spread(values, digits=2):
    """'mean ± standard deviation' of several numbers; one number stands alone, '' for none."""
    if len(values) < 2:
        return "".join(f"{value:.{digits}f}" for value in values)
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def pool(rows):
    """A Markdown table of rows as run_task returns them, seeds pooled."""
    keys, groups, lines = ("data set", "method", "settings"), {}, []
    names = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    for key, some in groups.items():
        scores = [[row["scores"][n] for row in some if n in row["scores"]] for n in names]
        minutes = spread([row["minutes"] for row in some], 1)
        machines = "; ".join(sorted({row["machine"] for row in some}))
        seeds = ", ".join(str(row["seed"]) for row in some)
        lines.append([*key, seeds, *map(spread, scores), minutes, machines])
    return markdown_table([*keys, "seeds", *names, "minutes", "machine"], lines)


def versions():
    """Those of the notebook's code and of PyTorch, whose build ("+cu130") does not matter."""
    release = torch.__version__.partition("+")[0]
    return code_versions(nbformat.read(NOTEBOOK, 4).cells) | {"torch": release}


def write_json(path, content):
    """Write it as JSON, never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    beside.write_text(json.dumps(content, indent=1), "utf-8")
    os.replace(beside, path)


def write_results(path, rows, made_by):
    """Write rows, their table and `made_by`, versions(), as JSON."""
    write_json(path, made_by | {"table": pool(rows), "rows": rows})


class LeaveInterrupts(distributed.WorkerPlugin):
    """Ctrl-C in a terminal reaches local workers too, which are to save before they end."""

    def setup(self, worker):
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def new_client(address):
    """A Client of the scheduler at `address`, or of new workers here. Raises ValueError."""
    if not address:
        os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # where workers find this module
        workers = torch.cuda.device_count() or CPU_COUNT
        options = {"host": "127.0.0.1", "dashboard_address": ":0", "threads_per_worker": 1}
        options |= {"n_workers": workers, "memory_limit": 0}  # none of its own: Dask would kill
        client = distributed.Client(distributed.LocalCluster(**options))
        client.register_plugin(LeaveInterrupts())
        return client
    try:
        return distributed.Client(address, timeout=10)
    except (OSError, ValueError) as error:
        said = f"CLUSTER is {address!r}; allowed: the address of a Dask scheduler ({error})"
        raise ValueError(said) from None


def look(token):
    """On a worker: (is the file `token` seen from here, versions())."""
    return token.exists(), versions()


def stop(sweep):
    """On a worker: let the trainings of this sweep save and end."""
    STOPPED.add(sweep)


def check_workers(client, folder):
    """Raise ValueError unless there are workers, which see `folder` and have our versions()."""
    token = folder / f"sweep-{os.getpid()}.token"
    token.touch()
    try:
        client.wait_for_workers(1, timeout=30)
        found = client.run(look, token)
    except TimeoutError:
        raise ValueError("CLUSTER has no workers; allowed: one or more") from None
    except ModuleNotFoundError as error:
        said = f"CLUSTER's workers lack {error.name}; allowed: started here, with PYTHONPATH=tools"
        raise ValueError(said) from None
    finally:
        token.unlink()
    if blind := [address for address, (seen, _) in found.items() if not seen]:
        said = f"MODELS_DIR is {str(folder)!r}, which {', '.join(blind)} cannot see"
        raise ValueError(f"{said}; allowed: a folder that all workers share")
    if other := [f"{address} {some}" for address, (_, some) in found.items() if some != versions()]:
        raise ValueError(f"CLUSTER's workers have {', '.join(other)}; allowed: {versions()}")


def connect(address, folder):
    """A Client of the workers at `address`, or of new ones here, which see `folder`.

    Raises ValueError.
    """
    client = new_client(address)
    check_workers(client, folder)
    return client


def leave(client, address):
    """Let the workers at `address` be, or end those that new_client began."""
    if address:
        client.close()
    else:
        client.shutdown()


def follow(futures, iterations, told, interrupted):
    """Show what each task does until all have ended, or `interrupted` is set."""
    lines, start, ended = LiveLines(), time.monotonic(), [False]
    while not (all(ended) or interrupted.wait(1)):
        ended, now = [future.done() for future in futures], dict(told)
        here = {n: one for n, one in now.items() if not ended[n]}
        left = sum(n for n, end in zip(iterations, ended, strict=True) if not end)
        left -= sum(one["iteration"] for one in here.values())
        made = sum(iterations[n] if ended[n] else one["iteration"] for n, one in now.items())
        made -= sum(one["first"] for one in now.values())
        name = f"{sum(ended)} of {len(ended)} tasks"
        meter = tqdm.format_meter(made, made + left, time.monotonic() - start, 100, prefix=name)
        doing = [f"{one['worker']} {one['line']}" for _, one in sorted(here.items())]
        lines.update([*doing, meter])
    lines.end()


def run_all(client, tasks, deferred_interrupts):
    """(rows of the tasks that ended, what is to be said of the others, whether it was stopped)."""
    told, ready, rows, failed = {}, {}, [], []

    def hear(event):
        if event[1]["sweep"] != client.id:
            return
        first = {"first": event[1]["iteration"]}
        told[event[1]["task"]] = first | told.get(event[1]["task"], {}) | event[1]

    client.subscribe_topic("sweep", hear)
    for dataset, task in {task["DATASET"]: task for task, _ in tasks}.items():
        ready[dataset] = client.submit(prepare, task, pure=False)
    futures = [
        client.submit(run_task, client.id, number, task, ready[task["DATASET"]], pure=False)
        for number, (task, _) in enumerate(tasks)
    ]
    with deferred_interrupts() as interrupted:
        follow(futures, [n for _, n in tasks], told, interrupted)
    if interrupted.is_set():
        print("Stopping: each training saves itself. Ctrl-C again does not wait", flush=True)
        client.run(stop, client.id, on_error="ignore")
    for (task, _), future in zip(tasks, futures, strict=True):
        try:
            rows += [future.result()]
        except KeyboardInterrupt:
            failed.append("Not waited for; what was saved last is kept")
            break
        except Exception as error:  # of a task, which may raise anything, or a worker that dies
            failed.append(f"{name_of(task)}: {type(error).__name__}: {error}")
    return [row for row in rows if row], failed, interrupted.is_set()


def listed(text):
    """'0,1,1' -> [0, 1], 'mnist,gtsrb' -> ['mnist', 'gtsrb'], '' -> []."""
    return [literal(word) for word in dict.fromkeys(text.split(",")) if text]


def choose(given, **own):
    """(the notebook's parameters, `own` ones), from pairs of a name and a text. Raises ValueError.

    What is not given has the notebook's default, or that in `own`.
    """
    notebook = nbformat.read(NOTEBOOK, 4)
    of_notebook = [pair for pair in given if pair[0] not in own]
    parameters = defaults(notebook) | read_parameters(notebook, of_notebook)
    for name in ("DATA_DIR", "MODELS_DIR", "IMAGES_DIR"):  # workers may stand elsewhere
        parameters[name] = str(Path(parameters[name]).expanduser().resolve())
    return parameters, own | {name: value for name, value in given if name in own}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_parameters(parser)
    os.environ.setdefault("MPLBACKEND", "Agg")
    try:
        own = {"DATASETS": "", "SEEDS": "", "CLUSTER": ""}
        parameters, own = choose(parser.parse_args().given, **own)
        datasets = listed(own["DATASETS"]) or [parameters["DATASET"]]
        seeds = listed(own["SEEDS"]) or [parameters["SEED"]]
        tasks = plan(parameters, datasets, seeds)
        client = connect(own["CLUSTER"], Path(parameters["MODELS_DIR"]))
    except (KeyError, TypeError, ValueError) as error:
        sys.exit(error.args[0])
    made_by = versions()  # not later, when the notebook may have been edited
    print(f"{len(tasks)} tasks on {len(client.ncores())} workers", flush=True)
    interrupts = load_cells(**tasks[0][0]).deferred_interrupts
    rows, failed, stopped = run_all(client, tasks, interrupts)
    if rows:
        path = Path(parameters["MODELS_DIR"], "sweep", "results.json")
        print(f"{pool(rows)}\n", flush=True)
        write_results(path, rows, made_by)
        print(f"{path}: {len(rows)} of {len(tasks)} tasks", flush=True)
    leave(client, own["CLUSTER"])
    again = ["Stopped and saved; the same command goes on"] if stopped else []
    sys.exit("\n".join([*failed, *again]) or 0)


if __name__ == "__main__":
    import sweep  # by its name, as the workers know it

    sweep.main()
