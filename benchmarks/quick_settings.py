"""Compare settings for the `quick` profile at equal processor time, with the notebook's own cells.

    python benchmarks/quick_settings.py [--core-seconds 180]

Each candidate trains from scratch with seed 0 until the process has used that much processor time (two cores:
half as many seconds on the clock). Its averaged generator then draws 10,000 images, whose Frechet distance to 10,000
TRAINING images is taken in the features of one classifier: the test images stay unseen by this choice.
Results are kept in quick_settings.json; a candidate that is there already is not trained again (delete the file to
start over). The table goes into README.md beside it.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "tools"))

import torch  # noqa: E402
from notebook_cells import load_cells  # noqa: E402

SMALL = {"width": 32, "smallest_map": 7}  # about half the arithmetic of a smallest map of 4
GP = SMALL | {"beta1": 0.5}
CANDIDATES = [
    ("WGAN-GP", SMALL),  # Algorithm 1's rates and steps
    ("WGAN-GP", GP | {"learning_rate": 5e-4, "n_critic": 5}),
    ("WGAN-GP", GP | {"learning_rate": 5e-4, "n_critic": 2}),
    ("WGAN-GP", GP | {"learning_rate": 1e-3, "n_critic": 3}),
    ("WGAN-GP", GP | {"learning_rate": 1e-3, "n_critic": 2}),
    ("WGAN-GP", GP | {"learning_rate": 1e-3, "n_critic": 1}),
    ("WGAN-GP", GP | {"learning_rate": 2e-3, "n_critic": 2}),
    ("WGAN-GP", GP | {"learning_rate": 1e-3, "n_critic": 2, "smallest_map": 4}),
    ("WGAN-GP", GP | {"learning_rate": 2e-3, "n_critic": 2, "smallest_map": 4}),
    ("WGAN-GP", GP | {"learning_rate": 1e-3, "n_critic": 1, "smallest_map": 4}),
    ("DCGAN", SMALL),
    ("DCGAN", SMALL | {"learning_rate": 5e-4}),
    ("DCGAN", SMALL | {"learning_rate": 1e-3}),
    ("DCGAN", SMALL | {"learning_rate": 5e-4, "smallest_map": 4}),
    ("DCGAN", SMALL | {"learning_rate": 1e-3, "smallest_map": 4}),
    ("WGAN", SMALL),
    ("WGAN", SMALL | {"learning_rate": 5e-4}),
    ("WGAN", SMALL | {"learning_rate": 5e-4, "clip": 0.05, "n_critic": 3}),
    ("WGAN", SMALL | {"learning_rate": 1e-3, "clip": 0.1, "n_critic": 2}),
    ("WGAN", SMALL | {"learning_rate": 1e-3, "clip": 0.1, "n_critic": 2, "smallest_map": 4}),
    ("WGAN", SMALL | {"learning_rate": 2e-3, "clip": 0.2, "n_critic": 1, "smallest_map": 4}),
]


def score(cells, run, classifier, reference):
    """Frechet distance of 10,000 samples of the averaged generator to the reference features."""
    rng = torch.Generator(run.device).manual_seed(1)
    z = torch.randn(10_000, run.settings.latent_size, generator=rng, device=run.device)
    features, _ = cells.describe(classifier, cells.generate(run.average, z))
    return cells.frechet_distance(reference, features)


def table(cells, results, note):
    """A Markdown table of the results, the best of each method first."""
    rows = []
    for result in sorted(results, key=lambda result: (result["method"], result["frechet_distance"])):
        settings = cells.replace(cells.PAPER[result["method"]], **result["changes"])
        changed = [f"{k} {v:g}" for k, v in result["changes"].items() if k not in SMALL]
        net = f"{settings.width}, {settings.smallest_map}"
        found = [f"{result['iterations']:,}", f"{result['frechet_distance']:.2f}"]
        rows.append([result["method"], net, ", ".join(changed) or "nothing", *found])
    header = ["method", "width, smallest map", "otherwise changed from the paper", "iterations", "Frechet distance"]
    return f"{cells.markdown_table(header, rows)}\n\n{note}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--core-seconds", type=float, default=180)
    parser.add_argument("--data-dir", default=str(ROOT / "data"))
    chosen = parser.parse_args()
    kept = HERE / "quick_settings.json"
    results = json.loads(kept.read_text()) if kept.exists() else []
    with tempfile.TemporaryDirectory() as unused:
        cells = load_cells(PROFILE="quick", DATA_DIR=chosen.data_dir, MODELS_DIR=unused, IMAGES_DIR=unused)
    data = cells.load_images(cells.source, chosen.data_dir, cells.device)
    classifier = cells.train_classifier(data, 240_000, cells.device, cells.precision)
    reference, _ = cells.describe(classifier, data.train[:10_000])
    floor = cells.frechet_distance(reference, cells.describe(classifier, data.train[10_000:20_000])[0])
    note = (
        f"{chosen.core_seconds:g} core-seconds each, seed 0, batch 64, averaged generator, 10,000 samples against "
        f"10,000 training images (10,000 other training images: {floor:.2f}); {cells.processor(cells.device)}, "
        f"{cells.precision}, torch {torch.__version__.split('+')[0]}."
    )
    for method, changes in CANDIDATES:
        key = {"method": method, "changes": changes, "core_seconds": chosen.core_seconds}
        if any(key.items() <= result.items() for result in results):
            continue
        settings = cells.replace(cells.PAPER[method], **changes)
        networks = cells.build_networks(settings, data.train.shape[1:], cells.device)
        run = cells.new_run(settings, networks, cells.device, cells.precision)
        start = time.process_time()
        while time.process_time() - start < chosen.core_seconds:
            losses = cells.iterate(run, data.train)
        cells.check_finite(run, *losses)
        distance = score(cells, run, classifier, reference)
        results.append(key | {"iterations": run.iteration, "frechet_distance": distance})
        print(results[-1], flush=True)
        kept.write_text(json.dumps(results, indent=1) + "\n")
    readme = HERE / "README.md"
    block = f"<!-- table: begin -->\n{table(cells, results, note)}\n<!-- table: end -->"
    readme.write_text(re.sub("<!-- table: begin -->.*<!-- table: end -->", block, readme.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    main()
