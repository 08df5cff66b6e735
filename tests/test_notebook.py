"""The whole notebook in a fresh kernel and folder, evaluation on its own, and the committed run."""

import ast
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
import torch
from conftest import DATA_DIR, METHODS, ROOT
from notebook_cells import NOTEBOOK, code_digest
from run import execute, set_parameters

PUBLISHED = ROOT / "saved_models" / "published"
OTHERS = sorted(folder.name for folder in PUBLISHED.iterdir() if folder.name != "fashion-mnist")


def run_notebook(folder, without=(), **parameters):
    """Run the notebook alone in `folder`, leaving out cells with a tag in `without`; return it executed."""
    notebook = nbformat.read(NOTEBOOK, 4)
    notebook.cells = [c for c in notebook.cells if not set(without) & set(c.metadata.get("tags", []))]
    set_parameters(notebook, {"PROFILE": "smoke", "DEVICE": "cpu", "DATA_DIR": str(DATA_DIR), **parameters})
    execute(notebook, folder, echo=False)
    return notebook


def printed(notebook):
    """All text that the notebook's cells wrote."""
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    streams = [o.text for o in outputs if o.output_type == "stream"]
    return "\n".join(streams + [str(o.data.get("text/markdown", "")) for o in outputs if "data" in o])


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, fashion_mnist):
    folder = tmp_path_factory.mktemp("alone")
    return folder, run_notebook(folder)


def test_the_whole_notebook_runs_alone(smoke):
    folder, notebook = smoke
    models = folder / "saved_models" / "fashion-mnist-smoke-seed0"
    images = folder / "images" / "fashion-mnist-smoke-seed0"
    trainings = [*METHODS, "rmsprop/WGAN-GP", "few_images/WGAN", "few_images/WGAN-GP"]
    names = {f"{training}{end}" for training in trainings for end in (".pt", ".checkpoint.pt")}
    experiments = ("value_surfaces", "layer_gradients", "architectures", "random_architectures")
    names |= {f"{name}.pt" for name in ("classifier", *experiments)}
    names |= {"results.md", "runs.md", "claims.md"}
    names |= {f"scores/{method}.pt" for method in METHODS}
    assert {str(p.relative_to(models)) for p in models.rglob("*") if p.is_file()} == names
    figures = {"real_images", "wasserstein_and_jensen_shannon", "samples", "interpolation", "nearest_neighbours"}
    figures |= {"epochs", "value_surfaces", "layer_gradients", "weights", "quality", "loss_and_quality", "few_images"}
    figures |= {"architectures", "random_architectures", "class_shares"}
    figures |= {f"{kind}-{method}" for kind in ("losses", "film_strip") for method in METHODS}
    assert {p.name for p in images.iterdir()} == {f"{name}.png" for name in figures} | {"time_lapse.gif"}
    text = printed(notebook)
    assert "Profile smoke on" in text and all(f"{method}: starting afresh" in text for method in METHODS)
    assert all(f"{method}: 12 iterations to go, about" in text for method in METHODS)  # the cost, before it starts
    claims = (models / "claims.md").read_text()
    assert re.findall(r"^\| (C\d) \|", claims, re.MULTILINE) == [f"C{n}" for n in range(1, 9)]
    assert "rest on so few iterations that they mean nothing" in claims
    assert "Not trained with" not in (models / "results.md").read_text()
    assert "not measured" not in claims and claims.strip() in text and "published" not in claims
    assert "5,179,907" in text and "4,114,689" in text
    assert (
        sum(
            line.startswith(tuple(f"| {m} |" for m in METHODS))
            for line in (models / "results.md").read_text().split("\n")
        )
        == 3
    )


def test_evaluation_alone(smoke):
    """In another kernel, without the training cells: fresh samples, and nothing saved is touched."""
    folder, _ = smoke
    models = folder / "saved_models" / "fashion-mnist-smoke-seed0"
    samples = folder / "images" / "fashion-mnist-smoke-seed0" / "samples.png"
    saved = [p for p in models.rglob("*.pt") if p.parent.name != "scores"]
    before = {p: p.read_bytes() for p in [*saved, samples]}
    text = printed(run_notebook(folder, without=("train",)))
    assert "starting afresh" not in text
    assert [path for path, content in before.items() if path.read_bytes() != content] == [samples]
    assert "not measured" not in (models / "claims.md").read_text()  # drawn from the saved results


def test_published_weights_are_found_and_left_alone(tmp_path, fashion_mnist):
    """A fresh clone without any training: the published weights give samples and scores."""
    shutil.copytree(PUBLISHED, tmp_path / "saved_models" / "published")
    before = {p: p.read_bytes() for p in (tmp_path / "saved_models").rglob("*") if p.is_file()}
    text = printed(run_notebook(tmp_path, TRAIN=False))
    assert "No GAN will be trained" in text and "starting afresh" not in text
    claims = (PUBLISHED / "fashion-mnist" / "claims.md").read_text()
    measured = [line for line in claims.split("\n") if line.startswith("| C")]
    assert len(measured) == 8 and all(line in text for line in measured)
    for method in METHODS:
        assert f"{method}: saved_models/published/fashion-mnist/{method}.pt" in text
    for name in ("value_surfaces.pt", "layer_gradients.pt", "few_images/WGAN-GP.pt", "rmsprop/WGAN-GP.pt"):
        assert f"saved_models/published/fashion-mnist/{name}" in text  # the claims say what they are drawn from
    assert all(path.read_bytes() == content for path, content in before.items())
    runs = tmp_path / "saved_models" / "fashion-mnist-smoke-seed0"  # of another profile: its scores are not this run's
    strange = "Not trained with this run's settings (fashion-mnist-smoke-seed0): DCGAN, WGAN, WGAN-GP."
    assert (runs / "results.md").read_text().strip().endswith(strange) and not (runs / "scores").exists()
    whose = "From the published run, not from this one: C1, C2, C3, C4, C5, C6, C7, C8."
    assert (runs / "claims.md").read_text().strip().endswith(whose)


def test_runs_of_other_seeds_are_shown_beside(smoke):
    """Another seed's run in the same folder, with the same judge: one row for both."""
    folder, _ = smoke
    judge = folder / "saved_models" / "fashion-mnist-smoke-seed0" / "classifier.pt"
    other = folder / "saved_models" / "fashion-mnist-smoke-seed1"
    other.mkdir()
    shutil.copy(judge, other)
    run_notebook(folder, SEED=1, METHODS="WGAN-GP", TEST_CLAIMS=False)
    lines = (other / "runs.md").read_text().strip().split("\n")
    (pooled,) = [line for line in lines if "WGAN-GP" in line]
    assert pooled.startswith("| WGAN-GP | smoke | 2 | 0.0001 | 12 | 384 | ")
    assert " | 0, 1 | " in pooled and pooled.count("±") == 7
    assert len(lines) == 5 and sum("±" in line for line in lines) == 1  # DCGAN and WGAN have one seed


def test_own_weights_and_published_ones_are_not_mixed(cells, tmp_path, monkeypatch):
    """After a training of one method an evaluation of all shows that one, not the others as published beside it."""
    for name in ("models", "published"):
        monkeypatch.setattr(cells, name, tmp_path / name)
        (tmp_path / name).mkdir()
    for method in METHODS:
        (cells.published / f"{method}.pt").touch()
    assert {cells.weights_file(method) for method in METHODS} == {*cells.published.iterdir()}
    (cells.models / "WGAN-GP.pt").touch()
    assert [m for m in METHODS if cells.weights_file(m).is_file()] == ["WGAN-GP"]
    assert {cells.weights_file(method).parent for method in METHODS} == {cells.models}


def test_evaluation_without_any_weights_says_what_to_do(tmp_path, fashion_mnist):
    text = printed(run_notebook(tmp_path, without=("train",), METHODS="WGAN-GP"))
    assert re.search(r"WGAN-GP: left out, no weights in .*run the training cell \(7\.1\) first", text)
    assert "value_surfaces: no finished results in" in text and text.count("not measured yet") == 8


def test_an_unknown_parameter_is_refused():
    with pytest.raises(ValueError, match=r"no such parameter: PROFIL; allowed: DATASET, IMAGE_SIZE, METHODS, "):
        set_parameters(nbformat.read(NOTEBOOK, 4), {"PROFIL": "smoke"})


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, 4)


def test_the_committed_run_is_whole(committed):
    code = [c for c in committed.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    assert not [o for c in code for o in c.outputs if o.output_type == "error"]
    assert "widgets" not in committed.metadata and "papermill" not in committed.metadata
    assert "application/vnd.jupyter.widget" not in json.dumps(committed)
    assert not [c for c in code if c.metadata.keys() - {"tags"}]  # no timings
    assert committed.metadata.language_info.name == "python"
    text = printed(committed)
    assert "Profile long on" in text and all(f"{method}.pt: 28,125 iterations, " in text for method in METHODS)
    taken_over = all(f"{method}: finished before" in text for method in METHODS)
    assert taken_over or "No GAN will be trained: TRAIN is False" in text
    assert "starting afresh" not in text and "no weights in" not in text and "not measured yet" not in text


def test_the_committed_run_was_made_by_the_current_code(committed):
    assert committed.metadata["code_sha256"] == code_digest(committed.cells)


def bound_names(source):
    """The names that a cell's top level binds: functions, classes, assigned and loop variables; not imports."""
    names, waiting = set(), [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif not isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            waiting += ast.iter_child_nodes(node)
    return names


def test_no_cell_takes_a_definition_away(committed):
    """What a define cell defines keeps its name: else cells that are run again would find something else."""
    bound = [(c, bound_names(c.source)) for c in committed.cells if c.cell_type == "code"]
    defined = [names for c, names in bound if "define" in c.metadata["tags"]]
    assert sum(map(len, defined)) == len(set().union(*defined)) > 100
    for cell, names in bound:
        if {"train", "evaluate"} & set(cell.metadata["tags"]):
            assert not names & set().union(*defined), cell.source


def test_the_notebook_is_short_and_tagged(committed):
    code = [c for c in committed.cells if c.cell_type == "code"]
    sizes = sorted(sum(bool(line.strip()) and line.strip()[0] != "#" for line in c.source.split("\n")) for c in code)
    assert len(code) <= 125 and sizes[len(sizes) // 2] <= 12 and sizes[-1] <= 40
    assert 1.0 <= (len(committed.cells) - len(code)) / len(code) <= 1.6
    tags = {"setup", "parameters", "define", "train", "evaluate"}
    assert all(set(c.metadata.get("tags", [])) & tags for c in code)
    assert NOTEBOOK.stat().st_size < 5e6


def test_the_claims_are_those_of_the_committed_run(committed):
    table = (PUBLISHED / "fashion-mnist" / "claims.md").read_text().strip()
    assert table in printed(committed) and table in (ROOT / "README.md").read_text()


def test_the_runs_are_those_of_the_committed_run(committed):
    """The table of all runs: committed output and README are one, and it has seeds and Algorithm 1's settings."""
    table = (PUBLISHED / "fashion-mnist" / "runs.md").read_text().strip()
    assert table in printed(committed) and table in (ROOT / "README.md").read_text()
    rows = [line.split(" | ") for line in table.split("\n")]
    assert {row[0] for row in rows if row[1] == "quick" and row[7] == "0, 1, 2"} == {f"| {m}" for m in METHODS}
    assert [row[0] for row in rows if row[1] == "letter"] == ["| WGAN-GP"]


def test_only_evaluation_is_published():
    """What a reader needs to evaluate, and no more: under 25 MB together."""
    files = [p for p in PUBLISHED.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 25e6 and not [p for p in files if "checkpoint" in p.name]


def test_every_published_file_is_on_a_model_card():
    card = (ROOT / "saved_models" / "README.md").read_text()
    files = [str(p.relative_to(PUBLISHED)).removeprefix("fashion-mnist/") for p in PUBLISHED.rglob("*") if p.is_file()]
    named = [{name, f"{Path(name).parent}/"} for name in files]  # itself or its folder
    assert len(files) >= 10 and [n for n in named if not any(f"`{one}`" in card for one in n)] == []
    weights = [path for method in METHODS for path in PUBLISHED.glob(f"*/{method}.pt")]
    assert len(weights) >= 6 and all(f"| {torch.load(path)['seconds'] / 60:.0f} |" in card for path in weights)


@pytest.mark.parametrize("dataset", OTHERS)
def test_what_the_page_of_other_runs_shows(cells, dataset):
    """Tables and figures are the published ones."""
    text = (ROOT / "images" / "README.md").read_text()
    assert (PUBLISHED / dataset / "results.md").read_text().strip() in text
    figures = sorted(f"{dataset}/{p.name}" for p in (ROOT / "images" / dataset).iterdir())
    assert figures and figures == sorted(set(re.findall(rf"\(({dataset}/[^)]+)\)", text)))


@pytest.mark.parametrize("dataset", sorted(path.parent.name for path in PUBLISHED.glob("*/classifier.pt")))
def test_the_published_generators_are_those_of_the_tables(cells, dataset):
    """Each file is of its method, has its row's cost and its scores' settings, and draws many of the classes."""
    results = (PUBLISHED / dataset / "results.md").read_text().split("\n")
    source = cells.DATASETS[dataset]
    shape, device = (source.channels, source.side, source.side), torch.device("cpu")
    judge = cells.Classifier(shape, len(source.names)).eval()
    judge.load_state_dict(torch.load(PUBLISHED / dataset / "classifier.pt"))
    for method in METHODS:
        generator, saved = cells.load_generator(PUBLISHED / dataset / f"{method}.pt", shape, device)
        cost = cells.training_cost(saved)
        scored = (torch.load(path) for path in PUBLISHED.glob(f"{dataset}/scores/*/{method}.pt"))
        (scores,) = (one["scores"] for one in scored if (one["settings"], one["cost"]) == (saved["settings"], cost))
        row = [method, *(f"{value:.3f}" for value in scores.values()), *(f"{value:,}" for value in cost.values())]
        assert saved["settings"]["method"] == method and f"| {' | '.join(row)} |" in results
        z = torch.randn(100, saved["settings"]["latent_size"], generator=torch.Generator().manual_seed(0))
        pictures = cells.generate(generator, z)
        _, probabilities = cells.describe(judge, pictures)
        assert pictures.shape == (100, *shape) and len(probabilities.argmax(1).unique()) >= 5


def test_the_results_are_those_of_the_committed_run(committed):
    """README, opening cell, committed output and published table are one."""
    table = (PUBLISHED / "fashion-mnist" / "results.md").read_text().strip()
    assert table in printed(committed)
    assert table in committed.cells[0].source
    assert table in (ROOT / "README.md").read_text()
    accuracy = float(re.search(r"classifier \(classes\) with ([\d.]+)% test", table)[1])
    assert accuracy >= 91


@pytest.mark.parametrize("page", ["README.md", *(f"{n}/README.md" for n in ("benchmarks", "images", "saved_models"))])
def test_links_between_the_pages_lead_somewhere(page):
    """Files exist, and headings that links name."""
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text())
    local = [link.partition("#") for link in links if "://" not in link]
    assert len(local) >= 2
    for name, _, heading in local:
        target = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert target.exists(), name
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in anchors, (name, heading)


def test_the_readmes_pictures_exist_and_are_small():
    names = re.findall(r"!\[[^\]]*\]\((images/[^)]+)\)", (ROOT / "README.md").read_text())
    assert len(names) >= 4
    for name in names:
        assert (ROOT / name).stat().st_size < (4e6 if name.endswith(".gif") else 5e5), name
