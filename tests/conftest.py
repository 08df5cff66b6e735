"""Fixtures: the notebook's cells as a module, real data, and a small random stand-in for speed."""

import os
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several test processes, which share the cores
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from notebook_cells import NOTEBOOK, load_cells

ROOT = NOTEBOOK.parent
DATA_DIR = Path(os.environ.get("DATA_DIR", ROOT / "data"))


METHODS = ("DCGAN", "WGAN", "WGAN-GP")
LONGEST = ("test_sources.py", "test_orders.py", "test_notebook.py")


def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that none is left to one process at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def cells(tmp_path_factory):
    """The notebook's setup and define cells, at smoke size in float32 on the CPU."""
    folder = tmp_path_factory.mktemp("run")
    return load_cells(
        PROFILE="smoke",
        DEVICE="cpu",
        PRECISION="float32",
        DATA_DIR=str(DATA_DIR),
        MODELS_DIR=str(folder / "models"),
        IMAGES_DIR=str(folder / "images"),
    )


@pytest.fixture(scope="session")
def fashion_mnist(cells):
    """The real data set, fetched by the notebook's own cells if it is not there."""
    return cells.load_images(cells.source, DATA_DIR, torch.device("cpu"))


@pytest.fixture(scope="session")
def tiny(cells):
    """An ImageData of 200 random training and 100 random test images."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (300, 1, 28, 28), generator=rng, dtype=torch.uint8)
    labels = torch.randint(10, (300,), generator=rng)
    return cells.ImageData(images[:200], labels[:200], images[200:], labels[200:], cells.source.names)


@pytest.fixture
def run(cells, tiny):
    """make(method, **changes) -> a new smoke-size Run."""

    def make(method="WGAN-GP", **changes):
        settings = cells.profile_settings("smoke", method, **changes)
        return cells.new_run(settings, cells.build_networks(settings, (1, 28, 28), "cpu"), torch.device("cpu"))

    return make


def train_all(cells, several, data, folder, *arguments, judge=None, **options):
    """The finished Runs, {method: Run}, of trainings with `several` Settings on `data`, with files in `folder`."""
    trainings = [cells.Training(chosen.method, chosen, data, folder, judge) for chosen in several]
    return cells.train(trainings, *arguments, **options)


def train_one(cells, settings, *arguments, **options):
    """The finished Run of one training."""
    return train_all(cells, [settings], *arguments, **options)[settings.method]


def brightness(pictures):
    """A judge for tests."""
    return {"brightness": pictures.float().mean().item()}


def compare(x, y, path):
    """Fail unless x and y, of dictionaries, lists, tensors and plain values, are equal; `path` is their name."""
    assert type(x) is type(y), path
    if isinstance(x, dict):
        assert x.keys() == y.keys(), path
        for key in x:
            compare(x[key], y[key], f"{path}.{key}")
    elif isinstance(x, list | tuple):
        assert len(x) == len(y), path
        for i, (p, q) in enumerate(zip(x, y, strict=True)):
            compare(p, q, f"{path}[{i}]")
    else:
        assert x.equal(y) if torch.is_tensor(x) else x == y, path


def same_state(cells, a, b):
    """All that makes up two runs is equal, bit for bit; only the seconds may differ."""
    left, right = ({n: getattr(r, n).state_dict() for n in cells.STATEFUL} for r in (a, b))
    left["strip"], right["strip"] = a.strip, b.strip
    for name in cells.GENERATORS:
        left[name], right[name] = (getattr(r, name).get_state() for r in (a, b))
    compare(left, right, "run")
    for table in ("history", "quality"):
        compare(*({k: v for k, v in getattr(r, table).items() if k != "seconds"} for r in (a, b)), table)
