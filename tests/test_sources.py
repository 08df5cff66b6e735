"""Every data set with every method, on tiny replicas in the real formats, through torchvision's readers."""

import math

import nbformat
import numpy as np
import pytest
import replicas
import torch
from conftest import train_one
from notebook_cells import NOTEBOOK, load_cells
from PIL import Image
from run import execute, set_parameters
from test_notebook import METHODS, printed

NAMES = ("fashion-mnist", "mnist", "cifar-10", "gtsrb", "celeba", "folder")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    replicas.write_all(folder)
    return folder


@pytest.fixture(scope="module")
def load(root, tmp_path_factory):
    """load(name) -> (cells, ImageData) of a replica."""

    def make(name):
        exec(replicas.WITHOUT_CHECKSUMS)
        where = tmp_path_factory.mktemp("run")
        cells = load_cells(
            DATASET=f"folder:{root / 'pictures'}" if name == "folder" else name,
            IMAGE_SIZE=32,
            PROFILE="smoke",
            DEVICE="cpu",
            PRECISION="float32",
            DATA_DIR=str(root),
            MODELS_DIR=str(where / "models"),
            IMAGES_DIR=str(where / "images"),
        )
        if name == "fashion-mnist":  # its sums are the notebook's own
            cells.source = cells.replace(cells.source, files=dict.fromkeys(cells.source.files))
        return cells, cells.load_images(cells.source, root, CPU)

    return make


@pytest.mark.parametrize("name", NAMES)
def test_every_method_trains_and_is_judged_on_every_source(load, name):
    cells, data = load(name)
    source = cells.source
    assert data.train.shape[1:] == data.test.shape[1:] == (source.channels, source.side, source.side)
    assert data.train.dtype == torch.uint8 and len(data.train) >= 120 and len(data.test) >= 30
    classifier = cells.train_classifier(data, 1280, CPU, "float32")
    real = cells.describe(classifier, data.test, data.target)[0]
    assert 0 <= cells.accuracy_of(classifier, data) <= 1

    def judge(pictures):
        return cells.judge_scores(real, cells.describe(classifier, pictures, data.target), data.target)

    for method in METHODS:
        settings = cells.replace(cells.settings[method], iterations=4)
        trained = train_one(cells, settings, data, cells.models, CPU, judge=judge)
        assert all(math.isfinite(v) for column in trained.history.values() for v in column)
        generator, _ = cells.load_generator(cells.models / f"{method}.pt", data.train.shape[1:], CPU)
        samples = cells.generate(generator, torch.randn(len(real), settings.latent_size))
        assert samples.shape == data.test.shape
        scores = cells.all_scores(real, cells.describe(classifier, samples, data.target), data.target)
        assert all(map(math.isfinite, scores.values()))
        assert ("Inception score" in scores) == (data.target == "classes")  # elsewhere it would be something else
        assert set(trained.quality) == {"iteration", "seconds"} | scores.keys() & {
            "Frechet distance",
            "Inception score",
        }


def test_cifar10_is_read_as_written(load, root):
    _, data = load("cifar-10")
    batch = np.load(root / "cifar-10-batches-py" / "test_batch", allow_pickle=True)
    assert np.array_equal(data.test.numpy().reshape(len(data.test), -1), batch["data"])
    assert data.test_labels.tolist() == batch["labels"]


def test_signs_of_any_size_become_squares_without_a_crop(load, root):
    _, data = load("gtsrb")
    path = root / "gtsrb" / "GTSRB" / "Training" / "00007" / "00000_00002.ppm"
    with Image.open(path) as picture:
        assert picture.width != picture.height
        expected = np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(data.train[7 * 3 + 2].numpy(), expected)
    assert data.train_labels.tolist() == [i for i in range(43) for _ in range(3)]


def test_faces_are_cropped_and_keep_their_attributes(load, root):
    cells, data = load("celeba")
    with Image.open(root / "celeba" / "img_align_celeba" / "000001.jpg") as picture:
        square = picture.crop((0, 20, 178, 198)).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(data.train[0].numpy(), np.asarray(square).transpose(2, 0, 1))
    assert data.train_labels.dtype == torch.float32 and data.train_labels[:, 0].tolist() == [1, 0] * 60
    assert data.train_labels[:, 2].tolist() == ([1, 0, 0, 0] * 30)
    assert len(cells.source.names) == 40


def test_the_judge_of_faces_learns_attributes_that_can_be_seen(cells):
    """Attribute 0: a bright upper half; attribute 1: a bright left half."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(100, (400, 3, 28, 28), generator=rng, dtype=torch.uint8)
    labels = torch.randint(2, (400, 2), generator=rng).float()
    images[labels[:, 0] > 0, :, :14] += 100
    images[labels[:, 1] > 0, :, :, :14] += 50
    data = cells.ImageData(images[:300], labels[:300], images[300:], labels[300:], ("top", "left"), "attributes")
    classifier = cells.train_classifier(data, 6400, CPU, "float32")
    assert cells.accuracy_of(classifier, data) > 0.95


def test_the_judge_without_labels_learns_rotations_that_can_be_seen(cells):
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(100, (400, 1, 28, 28), generator=rng, dtype=torch.uint8)
    images[:, :, :10] += 100  # the sky is above
    labels = torch.zeros(400, dtype=torch.int64)
    parts = (images[:300], labels[:300], images[300:], labels[300:])
    data = cells.ImageData(*parts, ("0°", "90°", "180°", "270°"), "rotations")
    classifier = cells.train_classifier(data, 6400, CPU, "float32")
    assert cells.accuracy_of(classifier, data) > 0.95


@pytest.mark.parametrize("name", NAMES[1:])  # the whole notebook with Fashion-MNIST is in test_notebook.py
def test_the_whole_notebook_with_every_source(root, tmp_path, name):
    notebook = nbformat.read(NOTEBOOK, 4)
    dataset = f"folder:{root / 'pictures'}" if name == "folder" else name
    chosen = {"PROFILE": "smoke", "DEVICE": "cpu", "DATA_DIR": str(root), "DATASET": dataset, "IMAGE_SIZE": 32}
    set_parameters(notebook, chosen | {"TEST_CLAIMS": name == "folder", "INCEPTION": name == "mnist"})
    no_network = f"import os\nos.environ |= {{'TORCH_HOME': '{tmp_path}', 'https_proxy': 'http://127.0.0.1:9'}}"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(replicas.WITHOUT_CHECKSUMS + no_network))
    execute(notebook, tmp_path, echo=False)
    (models,) = (tmp_path / "saved_models").iterdir()
    (images,) = (tmp_path / "images").iterdir()
    assert models.name == images.name and models.name.startswith(name)
    table = (models / "results.md").read_text()
    assert all(f"| {method} |" in table for method in METHODS)
    target = {"celeba": "attributes", "folder": "rotations"}.get(name, "classes")
    assert f"judged by the features of a classifier ({target})" in table
    pictures = {"real_images", "samples", "epochs", "interpolation", "nearest_neighbours", "class_shares"}
    pictures |= {f"{kind}-{method}" for kind in ("losses", "film_strip") for method in METHODS}
    assert pictures | {"time_lapse"} <= {p.stem for p in images.iterdir()}
    said = "INCEPTION: left out, Inception's weights could not be fetched into"
    assert (said in printed(notebook)) == (name == "mnist")
