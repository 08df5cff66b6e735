"""Publishing without training again: weights stay, and scores of other runs are added to those that were there."""

import shutil

import publish
import pytest
from conftest import ROOT

SEED0, SEED3 = (f"fashion-mnist-quick-seed{n}" for n in (0, 3))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of what publishing writes to, and a notebook that is not executed but leaves tables and figures."""
    root = tmp_path / "project"
    shutil.copytree(ROOT / "saved_models/published", root / "saved_models/published")
    (root / "images").mkdir()
    for name in ("README.md", "wgan_gp.ipynb"):
        shutil.copy(ROOT / name, root / name)

    def leave_results(notebook, folder):
        models, figures = (folder / place / "fashion-mnist-long-seed0" for place in ("saved_models", "images"))
        models.mkdir(parents=True, exist_ok=True)
        figures.mkdir(parents=True)
        for name in ("results", "runs", "claims"):
            (models / f"{name}.md").write_text(f"new {name}")
        (figures / "samples.png").write_bytes(b"new picture")

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
    assert "new results" in (project / "README.md").read_text()
    assert (project / "images/samples.png").read_bytes() == b"new picture"
    assert "new results" in (project / "wgan_gp.ipynb").read_text()
    assert (published / "claims.md").read_text() == "new claims"
