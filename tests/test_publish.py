"""Publishing: weights stay where nothing was trained, scores of other runs are added, each data set has its place."""

import shutil
import sys

import publish
import pytest
import torch
from conftest import ROOT
from PIL import Image
from run import parameters_cell

SHOWN = "fashion-mnist-long-seed0"
SEED0, SEED3 = (f"fashion-mnist-quick-seed{n}" for n in (0, 3))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of what publishing writes to, and a notebook that is not executed but leaves tables and figures."""
    root = tmp_path / "project"
    shutil.copytree(ROOT / "saved_models/published/fashion-mnist", root / "saved_models/published/fashion-mnist")
    (root / "images").mkdir()
    for name in ("README.md", "images/README.md", "wgan_gp.ipynb"):
        shutil.copy(ROOT / name, root / name)

    def leave_results(notebook, folder):
        given = parameters_cell(notebook).source
        run = "mnist-quick-seed0" if "DATASET = 'mnist'" in given else SHOWN
        run = "fashion-mnist-standard-seed0" if "PROFILE = 'standard'" in given else run
        models, figures = (folder / place / run for place in ("saved_models", "images"))
        models.mkdir(parents=True, exist_ok=True)
        figures.mkdir(parents=True)
        for name in ("results", "runs", "claims"):
            (models / f"{name}.md").write_text(f"new {name}")
        for name in ("samples", "losses-DCGAN"):
            Image.new("RGBA", (2, 1), "red").save(figures / f"{name}.png")

    monkeypatch.setattr(publish, "ROOT", root)
    monkeypatch.setattr(publish, "NOTEBOOK", root / "wgan_gp.ipynb")
    monkeypatch.setattr(publish, "execute", leave_results)
    return root


def test_weights_stay_and_scores_are_added(project, tmp_path):
    published = project / "saved_models/published/fashion-mnist"
    before = {p.relative_to(published): p.read_bytes() for p in published.rglob("*.pt")}
    other = tmp_path / SEED0  # a run of one method, beside three published ones of the same profile and seed
    for run in (other, tmp_path / SEED3):
        (run / "scores").mkdir(parents=True)
        (run / "scores" / "WGAN-GP.pt").write_bytes(b"new scores")
    (tmp_path / "folder").mkdir()
    publish.make(tmp_path / "folder", {"TRAIN": False}, None, [other, tmp_path / SEED3])
    publish.install(tmp_path / "folder")
    after = {p.relative_to(published): p.read_bytes() for p in published.rglob("*.pt")}
    added = {published / "scores" / name / "WGAN-GP.pt" for name in (SEED0, SEED3)}
    assert after == before | {p.relative_to(published): b"new scores" for p in added}
    assert "new results" in (project / "README.md").read_text() and (project / "images/README.md").exists()
    assert Image.open(project / "images/samples.png").size == (2, 1)
    assert "new results" in (project / "wgan_gp.ipynb").read_text()
    assert (published / "claims.md").read_text() == "new claims"


def test_another_data_set_leaves_the_committed_run_alone(project, tmp_path):
    """Its weights with a shorter film, and of its tables and figures those that its page shows."""
    page, notebook = project / "images/README.md", project / "wgan_gp.ipynb"
    places = [f"<!-- {name}: begin --><!-- {name}: end -->" for name in ("results", "mnist results")]
    page.write_text("\n".join([*places, "![digits](mnist/samples.png)"]))
    before = notebook.read_bytes()
    (project / "images/samples.png").write_bytes(b"clothes")
    trained = tmp_path / "mnist-quick-seed0"
    trained.mkdir()
    (trained / "few_images").mkdir()
    film = {at: torch.full((1, 1, 2, 2), at) for at in (0, 100, 150, 200)}
    for name in ("DCGAN.pt", "DCGAN.checkpoint.pt"):
        torch.save({"strip": film, "quality": {"iteration": [150, 200]}}, trained / name)
    (tmp_path / "folder").mkdir()
    publish.make(tmp_path / "folder", {"DATASET": "mnist"}, trained, [])
    publish.install(tmp_path / "folder")
    assert notebook.read_bytes() == before and (project / "images/samples.png").read_bytes() == b"clothes"
    assert page.read_text().startswith(f"{places[0]}\n<!-- mnist results: begin -->\nnew results\n")
    assert [p.name for p in (project / "images/mnist").iterdir()] == ["samples.png"]
    assert Image.open(project / "images/mnist/samples.png").getpixel((1, 0)) == (254, 0, 0)  # without its last bit
    installed = {p.name for p in (project / "saved_models/published/mnist").iterdir()}
    assert installed == {"DCGAN.pt", "results.md", "runs.md", "claims.md"}
    shortened = torch.load(project / "saved_models/published/mnist/DCGAN.pt")["strip"]
    assert list(shortened) == [0, 150, 200] and shortened[150].unique().tolist() == [150]


def test_tables_without_weights(project, tmp_path):
    trained = tmp_path / "mnist-quick-seed0"
    trained.mkdir()
    (trained / "DCGAN.pt").write_bytes(b"weights")
    (tmp_path / "folder").mkdir()
    publish.make(tmp_path / "folder", {"DATASET": "mnist"}, trained, [])
    publish.install(tmp_path / "folder", tables_only=True)
    installed = {p.name for p in (project / "saved_models/published/mnist").iterdir()}
    assert installed == {"results.md", "runs.md", "claims.md"}


def test_another_profile_has_its_tables_beside_the_committed_run(project, tmp_path):
    page, published = project / "images/README.md", project / "saved_models/published/fashion-mnist"
    page.write_text("<!-- standard results: begin --><!-- standard results: end -->![a](standard/samples.png)")
    shutil.rmtree(published / "standard")
    before = {p: p.read_bytes() for p in project.rglob("*") if p.is_file() and p != page}
    trained = tmp_path / "fashion-mnist-standard-seed0"
    (trained / "few_images").mkdir(parents=True)
    for name in ("DCGAN.pt", "few_images/WGAN.pt"):
        (trained / name).write_bytes(b"weights")
    (tmp_path / "folder").mkdir()
    publish.make(tmp_path / "folder", {"PROFILE": "standard"}, trained, [])
    publish.install(tmp_path / "folder", tables_only=True)
    assert {p.name for p in (published / "standard").iterdir()} == {"results.md", "runs.md", "claims.md"}
    assert [p.name for p in (project / "images/standard").iterdir()] == ["samples.png"]
    assert page.read_text().startswith("<!-- standard results: begin -->\nnew results\n")
    assert before.items() <= {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}.items()


def test_another_profile_does_not_replace_the_committed_run(project, tmp_path):
    before = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}
    publish.make(tmp_path, {"PROFILE": "standard"}, None, [])
    with pytest.raises(ValueError, match="holds a run of standard; allowed: long"):
        publish.install(tmp_path)
    assert {p: p.read_bytes() for p in project.rglob("*") if p.is_file()} == before


def test_the_committed_run_has_its_weights(project, tmp_path):
    """New tables above old weights would be another run's."""
    before = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}
    publish.make(tmp_path, {"TRAIN": False}, None, [])
    with pytest.raises(ValueError, match="--tables is for other data sets than fashion-mnist"):
        publish.install(tmp_path, tables_only=True)
    assert {p: p.read_bytes() for p in project.rglob("*") if p.is_file()} == before


def test_a_run_with_changes_is_not_published(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["publish.py", "-p", "CHANGES", "{'WGAN': {'width': 8}}"])
    with pytest.raises(SystemExit):
        publish.main()
    assert "CHANGES: what is published has the settings of a profile" in capsys.readouterr().err
