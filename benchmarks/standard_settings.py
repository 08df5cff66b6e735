"""Compare learning rates for the `standard` profile, which is meant for a GPU, with the notebook's own cells.

    python benchmarks/standard_settings.py [--iterations 9375]

Each candidate trains from scratch at the profile's width and batch size for so many generator iterations, several side
by side as the notebook's trainings are. Its averaged generator then draws 10,000 images, whose Frechet distance to
10,000 TRAINING images is taken in the features of one classifier: the test images stay unseen by this choice. The table
goes into README.md beside it.
"""

import argparse
import re
import tempfile
from pathlib import Path

import torch
from quick_settings import HERE, ROOT, load_cells, table

ONE_STEP = {"n_critic": 1}
CLIPPED = {"clip": 0.2, "n_critic": 1}
CANDIDATES = [
    *(("WGAN-GP", ONE_STEP | {"learning_rate": rate}) for rate in (5e-4, 1e-3, 2e-3)),
    *(("DCGAN", {"learning_rate": rate}) for rate in (2e-4, 5e-4, 1e-3)),
    *(("WGAN", CLIPPED | {"learning_rate": rate}) for rate in (5e-4, 1e-3, 2e-3)),
]
LATE = {"width": 64, "linear_decay": 0.333}  # what all of them have


def make_trainings(cells, data, iterations, folder):
    """A Training for each of CANDIDATES."""
    rare = {"record_every": max(1, iterations // 10), "film_every": iterations}
    return [
        cells.Training(
            str(number), cells.replace(cells.PAPER[method], **LATE | rare | changes, iterations=iterations), data,
            Path(folder) / str(number),
        )
        for number, (method, changes) in enumerate(CANDIDATES)
    ]  # fmt: skip


def measure(cells, run, classifier, reference):
    """The result of a finished Run, a dict as table() takes it."""
    z = torch.randn(10_000, run.settings.latent_size, generator=torch.Generator().manual_seed(1)).to(cells.device)
    features, _ = cells.describe(classifier, cells.generate(cells.settled(run.average), z))
    method, changes = run.settings.method, {key: getattr(run.settings, key) for key in (*LATE, "n_critic", "clip")}
    changes |= {"learning_rate": run.settings.learning_rate}
    distance = cells.frechet_distance(reference, features)
    return {"method": method, "changes": changes, "iterations": run.iteration, "frechet_distance": distance}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=9_375)
    parser.add_argument("--classifier-images", type=int, help="that it is trained on; else as many as the notebook's")
    parser.add_argument("--data-dir", default=str(ROOT / "data"))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cells = load_cells(PROFILE="standard", DATA_DIR=chosen.data_dir, MODELS_DIR=folder, IMAGES_DIR=folder)
        device, precision = cells.device, cells.precision
        data = cells.load_images(cells.source, chosen.data_dir, device)
        n_seen = chosen.classifier_images or cells.CLASSIFIER_IMAGES
        classifier = cells.train_classifier(data, n_seen, device, precision)
        reference, other = (cells.describe(classifier, part)[0] for part in data.train[:20_000].split(10_000))
        runs = cells.train(make_trainings(cells, data, chosen.iterations, folder), device, precision, "afresh", 10**9)
    results = [measure(cells, run, classifier, reference) for run in runs.values()]
    note = (
        f"{chosen.iterations:,} generator iterations, seed 0, averaged generator, 10,000 samples against 10,000 "
        f"training images (10,000 other training images: {cells.frechet_distance(reference, other):.2f}); "
        f"{cells.processor(device)}, {precision}, torch {torch.__version__.split('+')[0]}."
    )
    found = table(cells, results, note)
    print(found)
    readme = HERE / "README.md"
    block = f"<!-- standard: begin -->\n{found}\n<!-- standard: end -->"
    readme.write_text(
        re.sub("<!-- standard: begin -->.*<!-- standard: end -->", block, readme.read_text(), flags=re.DOTALL)
    )


if __name__ == "__main__":
    main()
