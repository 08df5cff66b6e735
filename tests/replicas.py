"""Tiny data sets in the on-disk formats of the real ones, read by torchvision's own readers."""

import csv
import pickle

import numpy as np
from PIL import Image

# Where torchvision knows check sums, replicas cannot have them: this is run before the notebook's table is made.
WITHOUT_CHECKSUMS = """
from torchvision import datasets
for files in (datasets.CIFAR10.train_list, datasets.CIFAR10.test_list):
    for entry in files:
        entry[1] = None
datasets.CIFAR10.meta = datasets.CIFAR10.meta | {"md5": None}
datasets.CelebA.file_list = [(place, None, name) for place, _, name in datasets.CelebA.file_list]
"""
N_TRAIN, N_TEST = 120, 60


def pictures(n, side, channels, rng, classes=10):
    """n labelled pictures uint8 [n, side, side, channels]: noise with a bar whose height tells the class."""
    labels = np.arange(n) % classes
    images = rng.integers(0, 80, (n, side, side, channels), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row = label * (side - 2) // classes
        image[row : row + 2, : side // 2] = 255
    return images, labels


def write_idx(path, array):
    """An IDX file of bytes: magic number, sizes, content."""
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def mnist(root, rng, name="MNIST"):
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", N_TRAIN), ("t10k", N_TEST)):
        images, labels = pictures(n, 28, 1, rng)
        write_idx(raw / f"{part}-images-idx3-ubyte", images[..., 0])
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels)


def cifar10(root, rng):
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        images, labels = pictures(N_TEST if name == "test_batch" else N_TRAIN // 5, 32, 3, rng)
        batch = {"data": images.transpose(0, 3, 1, 2).reshape(len(images), -1), "labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(i) for i in range(10)]}))


def gtsrb(root, rng):
    """Signs of many sizes, not all square."""
    base = root / "gtsrb"
    for i in range(43):
        folder = base / "GTSRB" / "Training" / f"{i:05}"
        folder.mkdir(parents=True)
        for j in range(3):
            side = int(rng.integers(15, 60))
            image = pictures(43, side, 3, rng, classes=43)[0][i]
            Image.fromarray(image[:, : side - j]).save(folder / f"00000_{j:05}.ppm")
    images = base / "GTSRB" / "Final_Test" / "Images"
    images.mkdir(parents=True)
    with open(base / "GT-final_test.csv", "w", newline="") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["Filename", "Width", "Height", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId"])
        for i, image in enumerate(pictures(N_TEST, 40, 3, rng, classes=43)[0]):
            Image.fromarray(image).save(images / f"{i:05}.ppm")
            rows.writerow([f"{i:05}.ppm", 40, 40, 5, 5, 35, 35, i % 43])


def celeba(root, rng):
    """178 x 218 JPEGs and the five text files; attribute k is set in every (k + 2)th image."""
    base = root / "celeba"
    (base / "img_align_celeba").mkdir(parents=True)
    n = N_TRAIN + 2 * N_TEST
    names = [f"{i:06}.jpg" for i in range(1, n + 1)]
    for name, image in zip(names, rng.integers(0, 256, (n, 9, 7, 3), dtype=np.uint8), strict=True):
        Image.fromarray(image).resize((178, 218)).save(base / "img_align_celeba" / name)
    part = [0] * N_TRAIN + [1] * N_TEST + [2] * N_TEST
    attributes = [[1 if i % (k + 2) == 0 else -1 for k in range(40)] for i in range(n)]
    tables = {
        "list_eval_partition.txt": ("", [[p] for p in part]),
        "identity_CelebA.txt": ("", [[1 + i % 9] for i in range(n)]),
        "list_bbox_celeba.txt": (f"{n}\nimage_id x_1 y_1 width height\n", [[1, 1, 100, 100]] * n),
        "list_landmarks_align_celeba.txt": (f"{n}\n{' '.join(f'p{i}' for i in range(10))}\n", [list(range(10))] * n),
        "list_attr_celeba.txt": (f"{n}\n{' '.join(f'a{i}' for i in range(40))}\n", attributes),
    }
    for name, (head, rows) in tables.items():
        lines = [" ".join(map(str, [file, *row])) for file, row in zip(names, rows, strict=True)]
        (base / name).write_text(head + "\n".join(lines) + "\n")


def folder(root, rng):
    """Nested, of mixed sizes, formats and modes; with a text file among them."""
    for i in range(150):
        place = root / "pictures" / f"album {i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        height, width = (int(x) for x in rng.integers(20, 90, 2))
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        kind = ("jpg", "png", "bmp")[i % 3]
        image.convert("L" if i % 4 == 0 else "RGB").save(place / f"{i}.{kind}")
    (root / "pictures" / "notes.txt").write_text("not a picture")


def write_all(root, seed=0):
    """All replicas under `root`; return {DATASET: (channels, side)} of them."""
    rng = np.random.default_rng(seed)
    for write in (mnist, cifar10, gtsrb, celeba, folder):
        write(root, rng)
    mnist(root, rng, "FashionMNIST")
    return {
        "fashion-mnist": (1, 28),
        "mnist": (1, 28),
        "cifar-10": (3, 32),
        "gtsrb": (3, 32),
        "celeba": (3, 64),
        f"folder:{root / 'pictures'}": (3, 32),
    }
