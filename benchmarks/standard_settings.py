"""Compare learning rates for the `standard` profile, for a GPU, with the notebook's own cells.

    python benchmarks/standard_settings.py [--iterations 9375]

Each candidate trains from scratch at the profile's width and batch size for so many generator
iterations, several side by side as the notebook's trainings are. Its averaged generator then draws
10,000 images, whose Frechet distance to 10,000 TRAINING images is taken in the features of one
classifier: the test images stay unseen by this choice. The table goes into README.md beside it.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from quick_settings import (
    HERE,
    ROOT,
    load_cells,
    rewrite_readme,
    sample_distance,
    table,
    trained_judge,
)

ONE_STEP = {"n_critic": 1}
CLIPPED = {"clip": 0.2, "n_critic": 1}
CANDIDATES = [
    *(("WGAN-GP", ONE_STEP | {"learning_rate": rate}) for rate in (5e-4, 1e-3, 2e-3)),
    *(("DCGAN", {"learning_rate": rate}) for rate in (2e-4, 5e-4, 1e-3)),
    *(("WGAN", CLIPPED | {"learning_rate": rate}) for rate in (5e-4, 1e-3, 2e-3)),
]
LATE = {"width": 64, "linear_decay": 0.333}  # what all of them have


def start_runs(cells, data, iterations, folder):
    """A new Run for each of CANDIDATES."""
    common, runs = {"iterations": iterations, "record_every": max(1, iterations // 10)}, []
    for number, (method, changes) in enumerate(CANDIDATES):
        settings = cells.replace(cells.PAPER[method], **LATE | changes | common)
        runs.append(cells.start_run(Path(folder, str(number)), settings, data))
    return runs


def measure(cells, run, judge, reference):
    """The result of a finished Run, a dict as table() takes it."""
    changed = (*LATE, "n_critic", "clip", "learning_rate")
    return {
        "method": run.settings.method,
        "changes": {name: getattr(run.settings, name) for name in changed},
        "iterations": run.iteration,
        "frechet_distance": sample_distance(cells, run, judge, reference),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=9_375)
    parser.add_argument("--classifier-images", type=int, default=240_000)
    parser.add_argument("--data-dir", default=str(ROOT / "data"))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folders = {"DATA_DIR": chosen.data_dir, "MODELS_DIR": folder, "IMAGES_DIR": folder}
        cells = load_cells(PROFILE="standard", **folders)
        data = cells.load_images(cells.source, Path(chosen.data_dir), cells.device)
        judge = trained_judge(cells, data, chosen.classifier_images)
        reference, other = judge.describe(data.train[:20_000])[0].split(10_000)
        runs = start_runs(cells, data, chosen.iterations, folder)
        cells.train(runs, save_seconds=10**9)
    results = [measure(cells, run, judge, reference) for run in runs]
    note = (
        f"{chosen.iterations:,} generator iterations, seed 0, averaged generator, 10,000 samples "
        f"against 10,000 training images (10,000 other training images: "
        f"{cells.frechet_distance(reference, other):.2f}); {cells.processor(cells.device)}, "
        f"{cells.precision}, torch {torch.__version__.split('+')[0]}."
    )
    found = table(cells, results, note)
    print(found)
    rewrite_readme(HERE, "standard", found)


if __name__ == "__main__":
    main()
