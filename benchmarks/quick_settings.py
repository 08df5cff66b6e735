"""Compare settings for the `quick` profile at equal processor time, with the notebook's own cells.

    python benchmarks/quick_settings.py [--core-seconds 300] [--workers 2]

Each candidate trains from scratch, with seed 0 and in the precision that the notebook chooses on
this machine unless it names others, in a process of one thread, until that has used so much
processor time. Its averaged generator then draws 10,000 images, whose Frechet distance to 10,000
TRAINING images is taken in the features of one classifier: the test images stay unseen by this
choice. A learning rate that decays reaches 0 when the time is up, or a moment later. Results are
kept in quick_settings.json; a candidate that is there already, by the same classifier and under the
same conditions, is not trained again. One that diverges is left out. The table goes into README.md.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "tools"))

import torch  # noqa: E402
from notebook_cells import load_cells  # noqa: E402
from pages import markdown_table, replace_block  # noqa: E402

SMALL = {"width": 16, "batch_size": 32}
QUICK = {"width": 24, "batch_size": 64}  # what `quick` has
SHALLOW = {"width": 32, "batch_size": 64, "smallest_map": 7}  # two convolutions instead of three
FIRST = {"width": 32, "batch_size": 64, "learning_rate": 2e-3, "n_critic": 2, "beta1": 0.5}  # once
GP = {"learning_rate": 2e-3, "n_critic": 1}
FADING = {"linear_decay": 1.0}
LATE = {"linear_decay": 0.333}  # what `quick` has
GAN = {"learning_rate": 1e-3}
CLIPPED = {"learning_rate": 2e-3, "clip": 0.2, "n_critic": 1}
FLOAT32 = {"precision": "float32"}
CANDIDATES = [
    ("WGAN-GP", GP | QUICK | LATE),
    ("DCGAN", GAN | QUICK | LATE),
    ("WGAN-GP", GP | QUICK | LATE | {"seed": 1}),
    ("DCGAN", GAN | QUICK | LATE | {"seed": 1}),
    ("WGAN-GP", GP | QUICK | LATE | {"seed": 2}),
    ("DCGAN", GAN | QUICK | LATE | {"seed": 2}),
    ("WGAN-GP", FIRST),
    ("WGAN-GP", GP | QUICK | LATE | FLOAT32),
    ("DCGAN", GAN | QUICK | LATE | FLOAT32),
    ("WGAN-GP", GP | SHALLOW | LATE),
    ("DCGAN", GAN | SHALLOW | LATE),
    ("WGAN-GP", GP | SMALL | LATE),
    ("DCGAN", GAN | SMALL | LATE),
    ("WGAN-GP", GP | QUICK | FADING | {"learning_rate": 3e-3}),
    ("WGAN-GP", GP | QUICK),
    ("DCGAN", GAN | QUICK),
    ("WGAN-GP", GP | QUICK | LATE | {"ema_decay": 0.99}),
    ("WGAN-GP", GP | QUICK | LATE | {"n_critic": 2}),
    ("WGAN", CLIPPED | QUICK | LATE),
    ("WGAN", CLIPPED | QUICK),
]


def load(data_dir, precision="auto"):
    """(the notebook's cells, its ImageData)."""
    with tempfile.TemporaryDirectory() as unused:
        folders = {"DATA_DIR": data_dir, "MODELS_DIR": unused, "IMAGES_DIR": unused}
        cells = load_cells(PROFILE="quick", DEVICE="cpu", PRECISION=precision, **folders)
    return cells, cells.load_images(cells.source, Path(data_dir), cells.device)


def new_judge(cells, data, state):
    """The notebook's Judge of `data` with a classifier of these weights."""
    classifier = cells.Classifier(data.train.shape[1:], len(data.names)).to(cells.device)
    classifier.load_state_dict(state)
    return cells.Judge(classifier, data)


def trained_judge(cells, data, n_images):
    """A Judge whose classifier was shown n_images, always the same."""
    torch.manual_seed(0)
    classifier = cells.Classifier(data.train.shape[1:], len(data.names)).to(cells.device)
    cells.train_classifier(classifier, data, n_images)
    return cells.Judge(classifier, data)


def sample_distance(cells, run, judge, reference):
    """Frechet distance of 10,000 samples of a Run to the features `reference`."""
    size = (10_000, run.settings.latent_size)
    z = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(cells.device)
    features, _ = judge.describe(cells.generate(cells.settled(run.average), z))
    return cells.frechet_distance(reference, features)


def train_for(cells, data, settings, core_seconds):
    """A Run that has used so many seconds of this process."""
    networks = cells.build_networks(settings, data.train.shape[1:], cells.device)
    run = cells.new_run(settings, networks, cells.device, cells.precision)
    run.path = Path(settings.method)
    if settings.penalty_weight:
        run.gradient = cells.written_out_gradient
    start = time.process_time()
    while (used := time.process_time() - start) < core_seconds:
        if run.iteration and run.iteration % 10 == 0:  # a decaying rate is 0 where it will end
            last = max(run.iteration + 10, round(run.iteration * core_seconds / used))
            run.settings = cells.replace(run.settings, iterations=last)
        losses = cells.iterate(run, data.train)
    cells.check_finite(run, losses)
    return run


def measure(method, changes, core_seconds, data_dir, classifier_state, reference):
    """The result of one candidate, a dict."""
    torch.set_num_threads(1)
    chosen = dict(changes)
    cells, data = load(data_dir, chosen.pop("precision", "auto"))
    run = train_for(cells, data, cells.replace(cells.PAPER[method], **chosen), core_seconds)
    judge = new_judge(cells, data, classifier_state)
    distance = sample_distance(cells, run, judge, reference)
    key = {"method": method, "changes": changes, "core_seconds": core_seconds}
    return key | {"iterations": run.iteration, "frechet_distance": distance}


def digest(state):
    """A short text that differs for the weights of classifiers which differ in any bit."""
    content = b"".join(value.numpy().tobytes() for value in state.values())
    return hashlib.sha256(content).hexdigest()[:12]


def table(cells, results, note):
    """A Markdown table of the results, the best of each method first."""
    rows = []
    for result in sorted(
        results, key=lambda result: (result["method"], result["frechet_distance"])
    ):
        paper = cells.PAPER[result["method"]]
        changed = [f"{k} {v}" for k, v in result["changes"].items() if getattr(paper, k, None) != v]
        found = [f"{result['iterations']:,}", f"{result['frechet_distance']:.2f}"]
        rows.append([result["method"], ", ".join(changed) or "nothing", *found])
    header = ["method", "changed from the paper's settings", "iterations", "Frechet distance"]
    return f"{markdown_table(header, rows)}\n\n{note}"


def rewrite_readme(folder, name, content):
    """Put `content` between the marks `name: begin` and `name: end` of README.md in `folder`."""
    path = folder / "README.md"
    path.write_text(replace_block(path.read_text(), name, content))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--core-seconds", type=float, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--classifier-images", type=int, default=240_000)
    parser.add_argument("--data-dir", default=str(ROOT / "data"))
    chosen = parser.parse_args()
    kept = HERE / "quick_settings.json"
    cells, data = load(chosen.data_dir)
    judge = trained_judge(cells, data, chosen.classifier_images)
    state = judge.classifier.state_dict()
    reference, other = judge.describe(data.train[:20_000])[0].split(10_000)
    conditions = {
        "workers": chosen.workers,
        "torch": torch.__version__,
        "classifier": digest(state),
    }
    conditions["machine"] = f"{cells.platform.machine()} CPU, {cells.precision} where none is named"
    results = json.loads(kept.read_text()) if kept.exists() else []
    results = [result for result in results if conditions.items() <= result.items()]
    keys = [{"method": m, "changes": c, "core_seconds": chosen.core_seconds} for m, c in CANDIDATES]
    missing = [key for key in keys if not any(key.items() <= result.items() for result in results)]
    common = {"data_dir": chosen.data_dir, "classifier_state": state, "reference": reference}
    with ProcessPoolExecutor(chosen.workers, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(measure, **key, **common): key for key in missing}
        try:
            for done in as_completed(waiting):
                try:
                    results.append(done.result() | conditions)
                except FloatingPointError as error:
                    print(f"{waiting[done]}: left out, {error}", flush=True)
                    continue
                print(results[-1], flush=True)
                kept.write_text(json.dumps(results, indent=1) + "\n")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    note = (
        f"{chosen.core_seconds:g} seconds of one core each, {chosen.workers} at a time; seed 0 "
        f"where none is named, averaged generator, 10,000 samples against 10,000 training images "
        f"(10,000 other training images: {cells.frechet_distance(reference, other):.2f}); "
        f"{conditions['machine']}, torch {torch.__version__.split('+')[0]}."
    )
    wanted = [result for result in results if any(key.items() <= result.items() for key in keys)]
    rewrite_readme(HERE, "table", table(cells, wanted, note))


if __name__ == "__main__":
    main()
