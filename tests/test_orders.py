"""A real kernel in which cells are run out of order, twice, interrupted and again: each does what
is promised.
"""

import json
import re
import shutil

import nbformat
import numpy as np
import pytest
import tiny_data_sets
import torch
from conftest import METHODS
from jupyter_client.manager import start_new_kernel
from notebook_cells import NOTEBOOK
from run_notebook import set_parameters

KINDS = ("setup", "parameters", "define", "train", "evaluate")
LONGER = """
longer = {"iterations": 1500, "record_every": 500}
settings = {method: replace(chosen, **longer) for method, chosen in settings.items()}
"""


class Session:
    """The notebook at smoke size on a tiny MNIST, open in a kernel of its own in `folder`."""

    def __init__(self, folder, **parameters):
        self.models = folder / "saved_models" / "mnist-smoke-seed0"
        notebook = nbformat.read(NOTEBOOK, 4)
        given = {"PROFILE": "smoke", "DEVICE": "cpu", "DATASET": "mnist"} | parameters
        set_parameters(notebook, given)
        self.cells, part = [], ""
        for cell in notebook.cells:  # (section, kind, source)
            if cell.cell_type == "markdown":
                part = [part, *re.findall(r"^##+ ([\d.]+)", cell.source, re.MULTILINE)][-1]
            else:
                kind = next(tag for tag in cell.metadata["tags"] if tag in KINDS)
                self.cells.append((part, kind, cell.source))
        self.manager, self.client = start_new_kernel(kernel_name="python3", cwd=str(folder))

    def pick(self, sections, kinds=KINDS):
        """Sources of the code cells of these kinds; section "8." means 8 and all of its parts."""
        wanted, picked = sections.split(), []
        for part, kind, source in self.cells:
            if kind in kinds and (part in wanted or f"{part.split('.')[0]}." in wanted):
                picked.append(source)
        return picked

    def run(self, *sources, stop_at=None):
        """Run cells until one fails; return all that they print, and the error if there is one.

        The Stop button is pressed as soon as `stop_at` has been printed.
        """
        printed, stopped = [], []

        def hear(message):
            content = message["content"]
            printed.append(content.get("text", ""))
            data = content.get("data", {})
            printed.append(data.get("text/markdown", data.get("text/plain", "")))
            if stop_at and not stopped and re.search(stop_at, "".join(printed)):
                stopped.append(self.manager.interrupt_kernel())

        options = {"output_hook": hear, "timeout": 600, "allow_stdin": False}
        for source in sources:
            reply = self.client.execute_interactive(source, **options)["content"]
            if reply["status"] != "ok":
                printed.append(f"\n{reply.get('ename')}: {reply.get('evalue')}")
                break
        return "".join(printed)

    def prepare(self, *more):
        """Run all that a training needs, and then the cells `more`."""
        cells = self.pick("1 2 6") + self.pick("3 4 5 7.", ("define",))
        cells.sort(key=[source for _, _, source in self.cells].index)
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
        paths = {method: self.models / f"{method}.pt" for method in METHODS}
        return {m: torch.load(path)["average"] for m, path in paths.items() if path.exists()}


def same(one, other):
    """Are two dictionaries of dictionaries of tensors equal to the last bit?"""
    return one.keys() == other.keys() and all(
        torch.equal(one[m][name], other[m][name]) for m in one for name in one[m] | other[m]
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(a folder in which all cells have run in order, each evaluating one then once more by itself
    in order and in reverse; {what went wrong in those}; the weights).
    """
    folder, rng = tmp_path_factory.mktemp("trained"), np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_data_sets, "N_TRAIN", 1200)  # enough for a training on 1,000 of them
        tiny_data_sets.mnist(folder / "data", rng)
    session = Session(folder)
    text, errors = session.run(*(source for _, _, source in session.cells)), {}
    evaluating = [source for _, kind, source in session.cells if kind == "evaluate"]
    for order in (evaluating, evaluating[::-1]) if "Error" not in text else ():
        for source in order:
            if "Error" in (said := session.run(source)):
                errors[source] = said
    session.manager.shutdown_kernel(now=True)
    return folder, text, errors, session.weights()


@pytest.fixture
def open_session(tmp_path, trained):
    """open_session(with_weights, **parameters): a Session in a folder of its own that has the
    judge, and all weights or none.
    """
    sessions = []

    def make(with_weights, **parameters):
        if not sessions:
            shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
            if not with_weights:
                shutil.rmtree(tmp_path / "saved_models" / "mnist-smoke-seed0")
        sessions.append(Session(tmp_path, **parameters))
        return sessions[-1]

    yield make
    for session in sessions:
        session.manager.shutdown_kernel(now=True)


def test_every_evaluating_cell_runs_again_by_itself_in_any_order(trained):
    folder, text, errors, _ = trained
    assert "Error" not in text and text.count(": new\n") == 6
    assert errors == {}
    claims = json.loads(next(folder.glob("saved_models/*/claims.json")).read_text())
    assert [name for name, claim in claims.items() if not claim["checks"]] == ["C4", "C5"]


def test_evaluation_works_before_training_and_again_after(open_session, trained):
    session = open_session(False)
    session.prepare()
    text = session.run("TRAIN = False", *session.pick("7. 8. 9.", ("define", "evaluate")))
    assert "Error" not in text and text.count(": left out: neither in ") == 3
    assert text.count("run the training cell (7.1)") == 3
    assert "value_surfaces: not measured in this run" in text
    assert text.count("| not measured in this run |") == 8
    session.run("TRAIN = True")
    session.train(*METHODS)
    text = session.run(*session.pick("7. 8.", ("define", "evaluate")))
    assert "Error" not in text and all(f"| {method} | " in text for method in METHODS)
    text = session.train("WGAN")  # once more
    assert "/WGAN: at iteration 12 of 12\n" in text and ": new" not in text
    assert same(session.weights(), trained[3])


def test_running_all_again_or_the_definitions_in_between_trains_nothing(open_session, trained):
    session = open_session(True)
    text = session.run(*session.pick("1 2 3 4 5 6 7. 8."))
    assert "Error" not in text and ": new" not in text
    assert len(re.findall(r": at iteration (\d+) of \1\n", text)) == 6
    definitions = session.pick("1 2 3 4 5 6 7. 8.", ("setup", "define"))
    text = session.run(*definitions, *session.pick("8.", ("evaluate",)))
    assert "Error" not in text and "| DCGAN | " in text
    assert same(session.weights(), trained[3])


def test_evaluation_brings_fresh_samples_unless_it_has_a_seed(open_session):
    session = open_session(True)
    session.prepare(*session.pick("7.", ("define",)))
    cells, tables = session.pick("8."), []
    for seed in (None, None, 7, 7):
        assert "Error" not in session.run(f"EVALUATION_SEED = {seed}", *cells)
        tables.append(json.loads((session.models / "results.json").read_text())["scores"])
    assert tables[0] != tables[1] and tables[2] == tables[3]


def test_a_stopped_training_can_be_looked_at_and_goes_on_to_the_same_weights(open_session):
    """Looking at an unfinished training shows what there is, and does not change its course."""
    session = open_session(False)
    session.prepare(LONGER)
    text = session.train("DCGAN", stop_at=r"DCGAN: +[1-9]")
    said = r"KeyboardInterrupt: saved at iteration (\d+) \(\S+/DCGAN\); run again with START='res"
    at = int(re.search(said, text)[1])
    text = session.run(*session.pick("7. 8.", ("define", "evaluate")))
    assert "Error" not in text and f"{at:,} iterations, " in text and "| DCGAN | " in text
    text = session.train("DCGAN")
    assert 0 < at < 1500 and f"/DCGAN: at iteration {at:,} of 1,500\n" in text
    assert "Error" not in text
    resumed = session.weights()
    session.run("START = 'afresh'")
    assert "/DCGAN: new\n" in session.train("DCGAN")
    assert same(session.weights(), resumed)


def test_a_wrong_parameter_is_corrected_and_another_seed_trained_in_one_kernel(
    open_session, trained
):
    session = open_session(True)
    session.run(*session.pick("1"))
    setup = session.pick("1", ("setup",))[-1]
    said = session.run("PROFILE = 'slow'", setup)
    assert "ValueError: PROFILE is 'slow'; allowed: " in said
    assert "Profile smoke on" in session.run("PROFILE = 'smoke'", setup)
    session.prepare()
    assert "Error" not in session.run("SEED = 1", *session.pick("1 2", ("setup",)))
    assert "seed1/DCGAN: new\n" in session.train("DCGAN")
    assert same(session.weights(), trained[3])
    assert (session.models.parent / "mnist-smoke-seed1" / "DCGAN.pt").exists()


def test_weights_deleted_or_damaged_in_between_are_left_out_or_refused(open_session):
    session = open_session(True)
    session.prepare()
    (session.models / "DCGAN.pt").unlink()
    text = session.run(*session.pick("7. 8.", ("define", "evaluate")))
    assert "DCGAN: left out: neither in " in text
    assert "| WGAN | " in text and "Error" not in text
    (session.models / "WGAN.pt").write_bytes(b"PK")
    text = session.run(*session.pick("8.", ("define", "evaluate")))
    assert re.search(r"ValueError: .*WGAN\.pt cannot be read .*START='afresh'", text)


def test_experiments_stopped_in_the_middle_go_on(open_session):
    session = open_session(False)
    session.prepare(*session.pick("9.", ("define",)))
    (cell,) = (source for source in session.pick("9.") if 'claims["C1"] = ' in source)
    session.run(
        "bar = tqdm\ndef tqdm(*given, **how): return bar(*given, **how | {'mininterval': 0})"
    )
    text = session.run(cell, stop_at=r"value_surfaces: +[1-9]\d*%")
    assert "KeyboardInterrupt" in text
    found = torch.load(session.models / "value_surfaces.pt")
    done, n = len(found["results"]), len(found["cases"])
    text = session.run(cell)
    assert 0 < done < n and f"value_surfaces.pt: {n} cases" in text
    assert f" {n - done}/{n - done} " in text  # the others only
