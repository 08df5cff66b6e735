"""Every data set with every method, on tiny ones in the real formats, by torchvision's readers."""

import math

import nbformat
import numpy as np
import pytest
import tiny_data_sets
import torch
from conftest import CPU, METHODS, train_all
from notebook_cells import NOTEBOOK, load_cells
from PIL import Image
from run_notebook import execute, set_parameters

NAMES = ("fashion-mnist", "mnist", "cifar-10", "gtsrb", "celeba", "folder")
SHAPES = dict(zip(NAMES, ((1, 28), (1, 28), (3, 32), (3, 32), (3, 64), (3, 32)), strict=True))
TARGETS = {"celeba": "rotations", "folder": "rotations"}  # of the others: classes


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_data_sets.write_all(folder)
    return folder


def chosen(root, name):
    """The notebook's parameters for the data set `name`, at smoke size."""
    dataset = f"folder:{root / 'pictures'}" if name == "folder" else name
    where = {"DATASET": dataset, "DATA_DIR": str(root), "IMAGE_SIZE": 32}
    return where | {"PROFILE": "smoke", "DEVICE": "cpu", "PRECISION": "float32"}


@pytest.fixture(scope="module")
def load(root, tmp_path_factory):
    """load(name) -> (cells, ImageData)."""

    def make(name):
        exec(tiny_data_sets.WITHOUT_CHECKSUMS)
        place = tmp_path_factory.mktemp("run")
        folders = {part: str(place / part) for part in ("MODELS_DIR", "IMAGES_DIR")}
        cells = load_cells(**chosen(root, name), **folders)
        return cells, cells.load_images(cells.source, root, CPU)

    return make


@pytest.mark.parametrize("name", NAMES)
def test_every_method_trains_and_is_judged_on_every_source(load, name):
    cells, data = load(name)
    channels, side = SHAPES[name]
    assert data.train.shape[1:] == data.test.shape[1:] == (channels, side, side)
    assert len(data.train) >= 120 and len(data.test) >= 30
    assert data.train.dtype == data.test.dtype == torch.uint8
    assert data.target == cells.source.target == TARGETS.get(name, "classes")
    judge = cells.load_judge(data)
    assert 0 <= judge.accuracy <= 1
    settings = [cells.replace(cells.settings[method], iterations=4) for method in METHODS]
    for run in train_all(cells, settings, data, cells.models, judge=judge.scores).values():
        columns = [*run.history.values(), *run.quality.values()]
        assert all(math.isfinite(value) for column in columns for value in column)
        path = cells.models / f"{run.settings.method}.pt"
        generator, _ = cells.load_generator(path, data.train.shape[1:], CPU)
        samples = cells.generate(generator, torch.randn(len(data.test), 128))
        assert samples.shape == data.test.shape
        scores = judge.scores(samples, thorough=True)
        assert all(map(math.isfinite, scores.values()))
        known = data.target == "classes"  # of other answers the score would be something else
        assert ("Inception score" in scores) == ("Inception score" in run.quality) == known


def test_images_and_labels_are_read_as_written(load, root):
    _, data = load("cifar-10")
    batch = np.load(root / "cifar-10-batches-py" / "test_batch", allow_pickle=True)
    assert np.array_equal(data.test.numpy().reshape(len(data.test), -1), batch["data"])
    assert data.test_labels.tolist() == batch["labels"] and data.names == list("0123456789")
    _, data = load("mnist")
    raw = (root / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()
    assert data.test.numpy().tobytes() == raw[16:] and len(data.names) == 10
    assert data.test_labels.tolist() == [i % 10 for i in range(60)]


def test_signs_of_any_size_become_squares_without_a_crop(load, root):
    _, data = load("gtsrb")
    path = root / "gtsrb" / "GTSRB" / "Training" / "00007" / "00000_00002.ppm"
    with Image.open(path) as picture:
        assert picture.width != picture.height
        square = picture.resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(data.train[7 * 3 + 2].numpy(), np.asarray(square).transpose(2, 0, 1))
    assert data.train_labels.tolist() == [i for i in range(43) for _ in range(3)]
    assert len(data.names) == 43


def test_faces_are_cropped_and_have_no_classes(load, root):
    _, data = load("celeba")
    with Image.open(root / "celeba" / "img_align_celeba" / "000001.jpg") as picture:
        square = picture.crop((0, 20, 178, 198)).resize((64, 64), Image.Resampling.BILINEAR)
    expected = np.asarray(square).transpose(2, 0, 1)[:, 1:-1]  # the edge blends with what is cut
    assert np.array_equal(data.train[0].numpy()[:, 1:-1], expected)
    assert data.train_labels.tolist() == [0] * 120 and data.names == ["0°", "90°", "180°", "270°"]


@pytest.mark.parametrize("name", NAMES[1:])  # Fashion-MNIST's is in test_notebook.py
def test_the_whole_notebook_runs_with_every_source(root, tmp_path, name):
    notebook = nbformat.read(NOTEBOOK, 4)
    set_parameters(notebook, chosen(root, name) | {"TEST_CLAIMS": name == "folder"})
    first = nbformat.v4.new_code_cell(tiny_data_sets.WITHOUT_CHECKSUMS)
    notebook.cells.insert(0, first)
    execute(notebook, tmp_path, echo=False)
    (models,) = (tmp_path / "saved_models").glob("*-smoke-seed0")
    (images,) = (tmp_path / "images").iterdir()
    assert models.name == images.name and models.name.startswith(name)
    kept = (models / "results.json").read_text()
    assert all(f'"{method}"' in kept for method in METHODS)
    assert f"({TARGETS.get(name, 'classes')})" in kept
    figures = {"real_images", "untrained", "samples", "epochs", "interpolation", "time_lapse"}
    figures |= {"nearest_neighbours", "class_shares"}
    figures |= {f"training-{method}" for method in METHODS}
    assert figures <= {path.stem for path in images.iterdir()}
