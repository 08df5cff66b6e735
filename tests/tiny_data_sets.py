"""Tiny data sets in the on-disk formats of the real ones, read by torchvision's own readers."""

import csv
import pickle

import numpy as np
from PIL import Image

# Tiny data sets cannot have the check sums that torchvision knows: run this before they are read.
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
    """n labelled pictures uint8 [n, side, side, channels]: noise, a bar as high as the class."""
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
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": labels.tolist()}))
    names = {"label_names": [str(i) for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names))


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
        rows, corners = csv.writer(file, delimiter=";"), ["Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2"]
        rows.writerow(["Filename", "Width", "Height", *corners, "ClassId"])
        for i, image in enumerate(pictures(N_TEST, 40, 3, rng, classes=43)[0]):
            Image.fromarray(image).save(images / f"{i:05}.ppm")
            rows.writerow([f"{i:05}.ppm", 40, 40, 5, 5, 35, 35, i % 43])


def celeba(root, rng):
    """178 x 218 JPEGs and the five text files."""
    base, n = root / "celeba", N_TRAIN + 2 * N_TEST
    (base / "img_align_celeba").mkdir(parents=True)
    names, noise = [f"{i:06}.jpg" for i in range(1, n + 1)], rng.integers(0, 256, (n, 9, 7, 3))
    for name, image in zip(names, noise.astype(np.uint8), strict=True):
        Image.fromarray(image).resize((178, 218)).save(base / "img_align_celeba" / name)
    part = [0] * N_TRAIN + [1] * N_TEST + [2] * N_TEST
    points, kinds = (" ".join(f"{x}{i}" for i in range(k)) for x, k in (("p", 10), ("a", 40)))
    tables = {  # name: what stands above, the row of image i
        "list_eval_partition": ("", lambda i: [part[i]]),
        "identity_CelebA": ("", lambda i: [1 + i % 9]),
        "list_bbox_celeba": (f"{n}\nimage_id x_1 y_1 width height\n", lambda i: [1, 1, 100, 100]),
        "list_landmarks_align_celeba": (f"{n}\n{points}\n", lambda i: range(10)),
        "list_attr_celeba": (f"{n}\n{kinds}\n", lambda i: [1] * 40),
    }
    for name, (head, row) in tables.items():
        lines = [" ".join(map(str, [file, *row(i)])) for i, file in enumerate(names)]
        (base / f"{name}.txt").write_text(head + "\n".join(lines) + "\n")


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


def write_all(root):
    """All tiny data sets, under `root`; their folder of pictures is root/pictures."""
    rng = np.random.default_rng(0)
    for write in (mnist, cifar10, gtsrb, celeba, folder):
        write(root, rng)
    mnist(root, rng, "FashionMNIST")
