"""Fixtures: the notebook's cells as a module, real data, and a small random stand-in for speed."""

import ast
import json
import os
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["OMP_NUM_THREADS"] = "1"  # of each test process: sums depend on it, cores are shared

import pytest
import torch
from notebook_cells import NOTEBOOK, load_cells

ROOT = Path(__file__).resolve().parents[1]
DATA_DIR = Path(os.environ.get("DATA_DIR", ROOT / "data"))
CPU = torch.device("cpu")
METHODS = ("DCGAN", "WGAN", "WGAN-GP")
LONGEST = ("test_sources.py", "test_orders.py", "test_notebook.py")


def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that none is left to one process at the end."""

    def place(item):
        return LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST)

    items.sort(key=place)


@pytest.fixture(scope="session")
def cells(tmp_path_factory):
    """The notebook's setup and define cells, at smoke size in float32 on the CPU."""
    folder = tmp_path_factory.mktemp("run")
    chosen = {
        "PROFILE": "smoke",
        "DEVICE": "cpu",
        "PRECISION": "float32",
        "DATA_DIR": str(DATA_DIR),
    }
    places = {name: str(folder / name) for name in ("MODELS_DIR", "IMAGES_DIR")}
    return load_cells(**chosen, **places)


@pytest.fixture(scope="session")
def fashion_mnist(cells):
    """The real data set, fetched if it is not there."""
    import fetch_data

    fetch_data.fetch(DATA_DIR)
    return cells.load_images(cells.source, DATA_DIR, CPU)


def random_images(cells):
    """An ImageData of 200 random training and 100 random test images."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (300, 1, 28, 28), generator=rng, dtype=torch.uint8)
    labels = torch.randint(10, (300,), generator=rng)
    parts = (images[:200], labels[:200], images[200:], labels[200:])
    return cells.ImageData(*parts, list("0123456789"))


@pytest.fixture(scope="session")
def tiny(cells):
    return random_images(cells)


@pytest.fixture
def run_cell(cells, monkeypatch):
    """run_cell(name): run what stands beside definitions in the cell that defines this function.

    What the cell assigns is a name of `cells` until the test ends.
    """
    code = [c for c in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    trees = [ast.parse("".join(cell["source"])) for cell in code]

    def make(name):
        (tree,) = (t for t in trees if name in [getattr(node, "name", None) for node in t.body])
        nodes = [node for node in tree.body if not hasattr(node, "name")]
        for node in nodes:
            for target in getattr(node, "targets", ()):
                monkeypatch.setattr(cells, target.id, None, raising=False)
        exec(compile(ast.Module(nodes, []), name, "exec"), vars(cells))

    return make


@pytest.fixture
def cluster(monkeypatch):
    """Two workers, each a process with one thread, which find the tools."""
    from distributed import LocalCluster  # takes a second

    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tools"))
    options = {"threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": ":0"}
    with LocalCluster(n_workers=2, **options) as cluster:
        yield cluster


@pytest.fixture
def run(cells):
    """make(method, **changes) -> a new smoke-size Run."""

    def make(method="WGAN-GP", **changes):
        settings = cells.profile_settings("smoke", method, **changes)
        return cells.new_run(settings, cells.build_networks(settings, (1, 28, 28), "cpu"), CPU)

    return make


def train_all(
    cells, several, data, folder, device=CPU, precision="float32", judge=None, start="resume", **how
):
    """{method: finished Run} of trainings with `several` Settings on `data`, files in `folder`."""
    common = data, judge, start, (device, precision)
    runs = [cells.start_run(folder / chosen.method, chosen, *common) for chosen in several]
    cells.train(runs, **how)
    return {run.settings.method: run for run in runs}


def train_one(cells, settings, *arguments, **options):
    """The finished Run of one training."""
    return train_all(cells, [settings], *arguments, **options)[settings.method]


def weights(network):
    """All weights of a network, float [n]."""
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def brightness(pictures):
    """A judge for tests."""
    return {"brightness": pictures.float().mean().item()}


def compare(x, y, path):
    """Fail unless x and y, of dictionaries, lists, tensors and plain values, are equal."""
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
    """All that makes up two runs, their films too, is equal bit for bit; the seconds may differ."""
    found = []
    for r in (a, b):
        state = {name: getattr(r, name).state_dict() for name in cells.STATEFUL}
        state |= {"rng": r.rng.get_state(), "iteration": r.iteration, "frames": r.frames}
        for table in ("history", "quality"):
            columns = getattr(r, table).items()
            state[table] = {name: column for name, column in columns if name != "seconds"}
        found.append(state)
    compare(*found, "run")
    if a.newest and b.newest:
        films = [Path(f"{r.path}.film").read_bytes() for r in (a, b)]
        assert films[0] == films[1], "film"
