"""Open a data set of CelebA's size: time to decode it, time of the second start, memory.

    python benchmarks/large_data.py [--images 202599] [--folder DIR]

CelebA itself may not be passed on, so this writes five hundred pictures of its size (178 x 218,
JPEG) and gives each as many names, by hard links, as it takes to have as many files as CelebA,
with its five text files beside them. They are read by torchvision's CelebA reader through the
notebook's own cells, each part in a process of its own.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import numpy as np  # noqa: E402
from notebook_cells import load_cells  # noqa: E402
from PIL import Image, ImageFilter  # noqa: E402
from torchvision import datasets  # noqa: E402


def write(root, n):
    """CelebA's files under `root`, with `n` images: four fifths for training."""
    different = 500  # the others are links to these
    rng = np.random.default_rng(0)
    images = root / "celeba" / "img_align_celeba"
    images.mkdir(parents=True)
    for i in range(n):
        path = images / f"{i + 1:06}.jpg"
        if i < different:  # smooth noise, about as large in bytes as a photograph
            pixels = rng.integers(0, 256, (218, 178, 3), dtype=np.uint8)
            Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1)).save(path, quality=90)
        else:
            path.hardlink_to(images / f"{i % different + 1:06}.jpg")
    names = [f"{i + 1:06}.jpg" for i in range(n)]
    part = [0 if i < 0.8 * n else 1 if i < 0.9 * n else 2 for i in range(n)]
    tables = {
        "list_eval_partition.txt": ("", part),
        "identity_CelebA.txt": ("", [1] * n),
        "list_bbox_celeba.txt": (f"{n}\nimage_id x_1 y_1 width height\n", ["1 1 100 100"] * n),
        "list_landmarks_align_celeba.txt": (
            f"{n}\n{' '.join('p' * 10)}\n",
            [" ".join("0" * 10)] * n,
        ),
        "list_attr_celeba.txt": (f"{n}\n{' '.join('a' * 40)}\n", [" ".join(["1", "-1"] * 20)] * n),
    }
    for name, (head, rows) in tables.items():
        lines = "\n".join(f"{file} {row}" for file, row in zip(names, rows, strict=True))
        (root / "celeba" / name).write_text(f"{head}{lines}\n")


def open_once(root):
    """Load the data set and draw a thousand batches; print seconds and peak memory."""
    files = datasets.CelebA.file_list
    datasets.CelebA.file_list = [(link, None, name) for link, _, name in files]  # other checksums
    with tempfile.TemporaryDirectory() as unused:
        folders = {"DATA_DIR": str(root), "MODELS_DIR": unused, "IMAGES_DIR": unused}
        cells = load_cells(PROFILE="quick", DEVICE="cpu", DATASET="celeba", **folders)
        start = time.monotonic()
        data = cells.load_images(cells.source, root, cells.device)
        loaded = time.monotonic() - start
        rng = cells.torch.Generator().manual_seed(0)
        for _ in range(1000):
            cells.draw_real(data.train, 64, rng)
        drawn = time.monotonic() - start - loaded
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1e6
    print(
        f"{len(data.train):,} + {len(data.test):,} images {list(data.train.shape[1:])}: loaded in "
        f"{loaded:.1f} s, 1,000 batches of 64 drawn in {drawn:.1f} s, peak memory {peak:.1f} GB"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=202_599)
    parser.add_argument(
        "--folder", type=Path, help="where to put them (default: a temporary folder)"
    )
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.open:
        open_once(chosen.open)
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        write(Path(folder), chosen.images)
        for said in ("first start", "second start"):
            command = [sys.executable, __file__, "--open", folder]
            found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            print(f"{said}: {found.strip()}", flush=True)


if __name__ == "__main__":
    main()
