"""A real kernel in which the cells are run out of order, twice, interrupted and again: each does what is promised."""

import re
import shutil

import nbformat
import numpy as np
import pytest
import replicas
import torch
from conftest import METHODS
from jupyter_client.manager import start_new_kernel
from notebook_cells import NOTEBOOK
from run import set_parameters

LONGER = """
longer = {"iterations": 300, "record_every": 100, "film_every": 100}
settings = {method: replace(chosen, **longer) for method, chosen in settings.items()}
"""


class Session:
    """The notebook at smoke size on a tiny MNIST, open in a kernel of its own that works in `folder`."""

    def __init__(self, folder, **parameters):
        self.folder = folder
        self.models = folder / "saved_models" / "mnist-smoke-seed0"
        notebook = nbformat.read(NOTEBOOK, 4)
        given = {"PROFILE": "smoke", "DEVICE": "cpu", "DATASET": "mnist"} | parameters
        set_parameters(notebook, given)
        self.cells, part = [], ""
        for cell in notebook.cells:  # (section, tag, source)
            if cell.cell_type == "markdown":
                part = [part, *re.findall(r"^##+ ([\d.]+)", cell.source, re.MULTILINE)][-1]
            else:
                self.cells.append((part, cell.metadata["tags"][0], cell.source))
        self.manager, self.client = start_new_kernel(kernel_name="python3", cwd=str(folder))

    def pick(self, sections, tags=("setup", "parameters", "define", "train", "evaluate")):
        """Sources of the code cells with one of `tags` in the named sections; "8." means 8 and all of its parts."""
        wanted = sections.split()
        inside = {part for part, _, _ in self.cells if part in wanted or f"{part.split('.')[0]}." in wanted}
        return [source for part, tag, source in self.cells if tag in tags and part in inside]

    def run(self, *sources, stop_at=None):
        """Run the cells in the given order until one fails; return all that they print, and the error if there is one.

        The Stop button is pressed as soon as `stop_at` has been printed.
        """
        printed = []

        def hear(message):
            content = message["content"]
            printed.append(content.get("text", "") + content.get("data", {}).get("text/markdown", ""))
            if stop_at and not stopped and re.search(stop_at, "".join(printed)):
                stopped.append(self.manager.interrupt_kernel())

        stopped = []
        for source in sources:
            reply = self.client.execute_interactive(source, output_hook=hear, timeout=300, allow_stdin=False)
            if reply["content"]["status"] != "ok":
                printed.append(f"\n{reply['content'].get('ename')}: {reply['content'].get('evalue')}")
                break
        return "".join(printed)

    def prepare(self, *more):
        """Run all that a training needs, and then the cells `more`."""
        cells = self.pick("1 2") + self.pick("3 4 5", ("define",)) + self.pick("6") + self.pick("7", ("define",))
        assert "Error" not in (text := self.run(*cells, *more)), text

    def train(self, *methods, **options):
        """Run the training cell of section 7 for `methods`."""
        (cell,) = self.pick("7.", ("train",))
        self.run(f"wanted, methods = methods, {methods}")
        text = self.run(cell, **options)
        self.run("methods = wanted")
        return text

    def weights(self):
        """{method: its averaged generator as saved} of the finished and unfinished trainings."""
        saved = {path.stem: torch.load(path, weights_only=True) for path in self.models.glob("*.pt")}
        return {m: saved[m]["average"] for m in METHODS if m in saved}


def same(one, other):
    """Are two dictionaries of dictionaries of tensors equal to the last bit?"""
    return one.keys() == other.keys() and all(
        torch.equal(one[m][name], other[m][name]) for m in one for name in one[m] | other[m]
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which sections 1 to 7 have run from top to bottom, and its weights."""
    folder = tmp_path_factory.mktemp("trained")
    replicas.mnist(folder / "data", np.random.default_rng(0))
    session = Session(folder)
    session.prepare()
    session.train(*METHODS)
    session.manager.shutdown_kernel(now=True)
    return session.folder, session.weights()


@pytest.fixture
def open_session(tmp_path, trained):
    """open_session(with_weights, **parameters): a Session in a fresh folder, with the classifier or all weights."""
    sessions = []

    def make(with_weights, **parameters):
        if not sessions:
            shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
            for method in () if with_weights else METHODS:
                for path in tmp_path.rglob(f"{method}.*pt"):
                    path.unlink()
        sessions.append(Session(tmp_path, **parameters))
        return sessions[-1]

    yield make
    for session in sessions:
        session.manager.shutdown_kernel(now=True)


def test_evaluation_before_training_and_again_after(open_session):
    session = open_session(False)
    session.prepare()
    text = session.run(*session.pick("7. 8.", ("define", "evaluate")))
    assert text.count("Run the training cell (7.1) first") == 3 and text.count("left out, no weights in") == 3
    session.train(*METHODS)
    text = session.run(*session.pick("7. 8.", ("define", "evaluate")))
    assert "Error" not in text and all(f"| {method} | " in text for method in METHODS)


def test_the_methods_in_reverse_order(open_session, trained):
    session = open_session(False)
    session.prepare()
    assert session.train(*reversed(METHODS)).count("starting afresh") == 4
    assert same(session.weights(), trained[1])


def test_the_training_cell_twice(open_session, trained):
    session = open_session(False)
    session.prepare()
    text = session.train("WGAN") + session.train("WGAN")
    assert text.count("WGAN: starting afresh") == 1 and text.count("WGAN: finished before") == 1
    assert same(session.weights(), {"WGAN": trained[1]["WGAN"]})


def test_the_same_kernel_from_top_to_bottom_twice(open_session, trained):
    session = open_session(True)
    for _ in range(2):
        text = session.run(*session.pick("1 2 3 4 5 6 7. 8."))
        assert "Error" not in text and text.count("finished before") == 4 and "starting afresh" not in text
    assert same(session.weights(), trained[1])


def test_evaluation_cells_twice_and_then_with_a_seed(open_session):
    session = open_session(True)
    session.prepare()
    seeds = [re.findall(r"Samples from seed (\d+)", session.run(*session.pick("8."))) for _ in range(2)]
    assert seeds[0] != seeds[1]
    tables = []
    for _ in range(2):
        assert "seed 7" in session.run("EVALUATION_SEED = 7", *session.pick("8."))
        tables.append((session.models / "results.md").read_text())
    assert tables[0] == tables[1]


def test_evaluation_cells_backwards(open_session):
    session = open_session(True)
    session.prepare(*session.pick("8."))
    text = session.run(*reversed(session.pick("7. 8.", ("evaluate",))))
    assert "Error" not in text and "| WGAN-GP | " in text


def test_stopped_and_run_again(open_session):
    session = open_session(False)
    session.prepare(LONGER)
    text = session.train("WGAN-GP", stop_at=r"WGAN-GP: +[1-9]")
    said = r"KeyboardInterrupt: saved at iteration (\d+) \(WGAN-GP\); run again with START='resume'"
    at = int(re.search(said, text)[1])
    text = session.train("WGAN-GP")
    assert 0 < at < 300 and f"WGAN-GP: resuming at iteration {at} of 300" in text and "Error" not in text
    resumed = session.weights()
    assert "starting afresh, replacing" in session.run("START = 'afresh'") + session.train("WGAN-GP")
    assert same(session.weights(), resumed)


def test_stopped_evaluated_and_run_again(open_session):
    """Looking at an unfinished training shows what there is, and does not change how it goes on."""
    session = open_session(False)
    session.prepare(LONGER)
    at = re.search(r"saved at iteration (\d+)", session.train("DCGAN", stop_at=r"DCGAN: +[1-9]"))[1]
    text = session.run(*session.pick("7. 8.", ("define", "evaluate")))
    assert "Error" not in text and f"{at} iterations, " in text and f" | {at} | " in text
    assert not (session.models / "scores" / "DCGAN.pt").exists()  # else it would count as one of the finished ones
    assert "Error" not in session.train("DCGAN")
    resumed = session.weights()
    session.run("START = 'afresh'")
    session.train("DCGAN")
    assert same(session.weights(), resumed)


def test_stopped_and_the_kernel_killed(open_session):
    session = open_session(False)
    session.prepare(LONGER)
    at = re.search(r"saved at iteration (\d+)", session.train("WGAN", stop_at=r"WGAN: +[1-9]"))[1]
    session.manager.shutdown_kernel(now=True)
    again = open_session(False)
    again.prepare(LONGER)
    assert f"WGAN: resuming at iteration {at} of 300" in again.train("WGAN")


def test_definitions_again_in_between(open_session, trained):
    session = open_session(True)
    session.prepare(*session.pick("8."))
    text = session.run(*session.pick("1 2 3 4 5 6 7. 8.", ("setup", "define")), *session.pick("8.", ("evaluate",)))
    assert "Error" not in text and "| DCGAN | " in text
    assert session.train(*METHODS).count("finished before") == 4 and same(session.weights(), trained[1])


def test_another_seed_in_the_same_kernel(open_session, trained):
    session = open_session(True)
    session.prepare()
    text = session.run("SEED = 1", *session.pick("1", ("setup",)), *session.pick("2 3 4 5 6 7", ("define", "evaluate")))
    assert "Error" not in text
    assert "DCGAN: starting afresh" in session.train("DCGAN") and same(session.weights(), trained[1])
    assert (session.models.parent / "mnist-smoke-seed1" / "DCGAN.pt").exists()


def test_a_wrong_parameter_corrected(open_session):
    session = open_session(True)
    session.run(*session.pick("1"))
    setup = session.pick("1", ("setup",))[-1]
    assert "ValueError: PROFILE is 'slow'; allowed: " in session.run("PROFILE = 'slow'", setup)
    assert "Profile smoke on" in session.run("PROFILE = 'smoke'", setup)


def test_weights_deleted_and_damaged_in_between(open_session):
    session = open_session(True)
    session.prepare()
    (session.models / "DCGAN.pt").unlink()
    text = session.run(*session.pick("7. 8.", ("define", "evaluate")))
    assert "DCGAN: left out, no weights in" in text and "| WGAN | " in text and "Error" not in text
    (session.models / "WGAN.pt").write_bytes(b"PK")
    text = session.run(*session.pick("8.", ("define", "evaluate")))
    assert re.search(r"ValueError: .*WGAN\.pt is no readable checkpoint .*START='afresh'", text)


def test_experiments_evaluated_before_and_stopped_in_the_middle(open_session):
    session = open_session(True)
    session.prepare(*session.pick("8."))
    text = session.run(*session.pick("9.", ("define", "evaluate")))
    assert "Error" not in text and text.count("not measured yet") == 6 and "value_surfaces: no finished results" in text
    first, *rest = session.pick("9.", ("train",))
    text = session.run(first, stop_at=r"value_surfaces: +[1-9]\d*%")
    assert "KeyboardInterrupt" in text
    text = session.run(first)
    found, cases = map(int, re.search(r"value_surfaces.pt: (\d+) of (\d+) were measured before", text).groups())
    assert 0 < found < cases
    assert "Error" not in session.run(*rest)
    text = session.run(*session.pick("9.", ("define", "evaluate")))
    assert "Error" not in text and text.count("not measured yet") == 1  # C8 needs more than 1,000 images
