"""The whole notebook in a fresh kernel and folder, evaluation on its own, the layout, and the
committed run.
"""

import ast
import json
import re
import shutil
import symtable
from collections import Counter, defaultdict
from copy import deepcopy

import nbformat
import numpy as np
import publish
import pytest
import torch
from conftest import CPU, DATA_DIR, METHODS, ROOT
from notebook_cells import NOTEBOOK, SECTIONS, code_digest, code_versions
from PIL import Image
from run_notebook import execute, set_parameters

LINES = 1766  # of code, neither blank nor a comment alone
MACHINERY = 865  # of these in cells that can stay folded
PUBLISHED = ROOT / "saved_models" / "published"
RUN = "fashion-mnist-smoke-seed0"
TAGS = {"setup", "parameters", "define", "train", "evaluate"}
EXPERIMENTS = ("value_surfaces", "layer_gradients")
ELSEWHERE = ["C4", "C5"]  # claims that tools/architectures.py tests
FIGURES = {
    *("real_images", "untrained", "divergences", "first_steps", "training", "samples", "epochs"),
    *("interpolation", "nearest_neighbours", "class_shares", "weights", "quality"),
    *("loss_and_quality", "few_images", *EXPERIMENTS, *(f"training-{m}" for m in METHODS)),
}


def run_notebook(folder, **parameters):
    """Run the notebook alone in `folder`, at smoke size; return it executed."""
    notebook = nbformat.read(NOTEBOOK, 4)
    given = {"PROFILE": "smoke", "DEVICE": "cpu", "DATA_DIR": str(DATA_DIR)}
    set_parameters(notebook, given | parameters)
    execute(notebook, folder, echo=False)
    return notebook


def printed(notebook):
    """All text that the notebook's cells wrote."""
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    streams = [o.text for o in outputs if o.output_type == "stream"]
    tables = [str(o.data.get("text/markdown", "")) for o in outputs if "data" in o]
    return "\n".join(streams + tables)


def kept(folder, name, run=RUN):
    """A table that a run in `folder` has kept."""
    return json.loads((folder / "saved_models" / run / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, fashion_mnist):
    folder = tmp_path_factory.mktemp("alone")
    return folder, run_notebook(folder)


def test_the_whole_notebook_runs_alone(smoke):
    folder, notebook = smoke
    trainings = [*METHODS, "rmsprop/WGAN-GP", "few_images/WGAN", "few_images/WGAN-GP"]
    ends = (".pt", ".checkpoint-a.pt", ".film")
    names = {f"{RUN}/{training}{end}" for training in trainings for end in ends}
    names |= {f"{RUN}/{name}.pt" for name in EXPERIMENTS}
    names |= {f"{RUN}/results.json", f"{RUN}/claims.json", "judges/fashion-mnist-smoke.pt"}
    models, images = folder / "saved_models", folder / "images" / RUN
    assert {str(p.relative_to(models)) for p in models.rglob("*") if p.is_file()} == names
    assert {p.name for p in images.iterdir()} == {f"{f}.png" for f in FIGURES} | {"time_lapse.gif"}
    text = printed(notebook)
    assert "Profile smoke on" in text and "Not trained with" not in text
    assert all(f"/{training}: new\n" in text for training in trainings)
    assert "Warning" not in text
    claims = kept(folder, "claims")
    assert list(claims) == [f"C{n}" for n in range(1, 9)]
    assert [name for name, claim in claims.items() if not claim["verdict"]] == ELSEWHERE
    assert [name for name, claim in claims.items() if not claim["checks"]] == ELSEWHERE
    assert "these verdicts mean nothing" in text and "nan" not in json.dumps(claims)
    scores = kept(folder, "results")["scores"]
    assert list(scores) == ["real training images", *METHODS]
    assert all(
        f"| {method} | {scores[method]['Frechet distance']:.3f} | " in text for method in METHODS
    )
    control = {  # the nearest-neighbour check would see memory
        name: [float(number) for number in re.search(rf"\| {name} \| (.+) \|", text)[1].split("|")]
        for name in ("held-out images", "noisy copies")
    }
    assert all(np.divide(*control.values()) > 2)
    with Image.open(images / "time_lapse.gif") as film:
        assert film.n_frames == 4  # of iterations 0, 4, 8 and 12


def test_evaluation_alone_draws_fresh_samples_and_touches_nothing_trained(smoke):
    """In another kernel: fresh samples, and nothing that was trained or measured is touched."""
    folder, _ = smoke
    samples = folder / "images" / RUN / "samples.png"
    saved = [p for p in (folder / "saved_models").rglob("*") if p.suffix in (".pt", ".film")]
    before = {path: path.read_bytes() for path in (*saved, samples)}
    claims = kept(folder, "claims")
    text = printed(run_notebook(folder, TRAIN=False, SAVE_SAMPLES=20))
    assert ": new" not in text and kept(folder, "claims") == claims
    assert [path for path, held in before.items() if path.read_bytes() != held] == [samples]
    files = Counter(path.parent.name for path in samples.parent.glob("samples/*/*.png"))
    assert files == dict.fromkeys(("real", *METHODS), 20)


def test_published_weights_give_the_published_numbers_again_and_are_left_alone(
    tmp_path, fashion_mnist, committed, tables
):
    """A fresh clone that trains nothing, with the committed run's evaluation seed."""
    shutil.copytree(PUBLISHED, tmp_path / "saved_models" / "published")
    saved = [p for p in (tmp_path / "saved_models").rglob("*") if p.is_file()]
    before = {path: path.read_bytes() for path in saved}
    results, claims = tables
    seed = results["evaluation seed"]
    executed = run_notebook(tmp_path, TRAIN=False, PROFILE="quick", EVALUATION_SEED=seed)
    text, shown = printed(executed), printed(committed)
    assert ": new" not in text and "Not trained with" not in text
    for name in (*METHODS, "value_surfaces", "few_images/WGAN-GP", "rmsprop/WGAN-GP"):
        assert f"saved_models/published/fashion-mnist/{name}.pt" in text
    assert all(path.read_bytes() == held for path, held in before.items())
    again = kept(tmp_path, "results", RUN.replace("smoke", "quick"))
    assert again["judge"] == results["judge"]
    for name, scores in results["scores"].items():
        found = again["scores"][name]
        assert found.pop("KID x 1000") == pytest.approx(scores["KID x 1000"], rel=0.01, abs=0.1)
        assert found == pytest.approx({key: scores[key] for key in found}, rel=0.01)
    assert kept(tmp_path, "claims", RUN.replace("smoke", "quick")) == claims
    for name in ("held-out images", "noisy copies"):  # medians of the nearest-neighbour distances
        rows = [re.search(rf"\| {name} \| (\S+) \| (\S+) \|", some) for some in (text, shown)]
        assert all(
            float(a) == pytest.approx(float(b), rel=0.02)
            for a, b in zip(*map(re.Match.groups, rows), strict=True)
        )


def test_own_weights_and_published_ones_are_not_mixed(cells, tmp_path, monkeypatch):
    """After a training of one method an evaluation shows that one, no published ones beside it."""
    for name, place in (("models", "run"), ("published", "published")):
        monkeypatch.setattr(cells, name, tmp_path / place)
    folder = cells.published / cells.source.name
    for place in (cells.models, folder):
        place.mkdir(parents=True)
    for method in METHODS:
        (folder / f"{method}.pt").touch()
    assert {cells.weights_file(method) for method in METHODS} == {*folder.iterdir()}
    (cells.models / "WGAN-GP.pt").touch()
    assert [m for m in METHODS if cells.weights_file(m).is_file()] == ["WGAN-GP"]


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, 4)


@pytest.fixture(scope="module")
def code(committed):
    return [c for c in committed.cells if c.cell_type == "code"]


def size(cell):
    lines = map(str.strip, cell.source.splitlines())
    return sum(bool(line) and not line.startswith("#") for line in lines)


def is_machinery(cell):
    return "machinery" in cell.metadata.tags


def test_the_notebook_is_not_long(committed, code):
    words = sum(len(c.source.split()) for c in committed.cells if c.cell_type == "markdown")
    assert len(code) <= 80 and words <= 6500
    assert sum(map(size, code)) <= LINES
    assert sum(size(cell) for cell in code if is_machinery(cell)) <= MACHINERY
    lines = [line for c in code for line in c.source.splitlines() if "# @param" not in line]
    assert [line for line in lines if len(line) > 100] == []


def test_cells_are_short_and_tagged_and_machinery_is_folded(code):
    for cell in code:
        assert TAGS & set(cell.metadata.tags), cell.source
        assert size(cell) <= (40 if is_machinery(cell) else 30), cell.source
        folded = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        titled = cell.source.startswith("# @title ") and cell.metadata.get("cellView") == "form"
        assert is_machinery(cell) == folded == titled, cell.source


def test_what_a_reader_wants_to_see_comes_early(code):
    def first(wanted):
        return next(i for i, cell in enumerate(code) if wanted(cell))

    def drawn(cell):
        return any("image/png" in o.get("data", {}) for o in cell.outputs)

    defined = {"class Generator": 12, "class Critic": 13, "def gradient_penalty": 20}
    defined["def critic_step"] = 26
    for name, most in defined.items():
        assert first(lambda c, name=name: re.search(rf"^{name}\b", c.source, re.M)) <= most, name
    assert first(drawn) <= 10
    step = first(lambda c: "def critic_step(" in c.source)
    assert first(lambda c: drawn(c) and code.index(c) > step) <= 30


def names_of(source):
    """Names that a cell assigns at its top level, those of others that it reads, its functions."""
    top = symtable.symtable(source, "cell", "exec")
    definitions = (ast.FunctionDef, ast.ClassDef)
    defined = {n.name for n in ast.parse(source).body if isinstance(n, definitions)}
    symbols = top.get_symbols()
    assigned = {s.get_name() for s in symbols if s.is_assigned() and not s.is_imported()}
    read = {s.get_name() for s in symbols if s.is_referenced() and not s.is_assigned()}
    tables = list(top.get_children())
    while tables:
        table = tables.pop()
        found = table.get_symbols()
        read |= {s.get_name() for s in found if s.is_global() and s.is_referenced()}
        tables += table.get_children()
    return assigned - defined, read - assigned, defined


def test_no_cell_takes_a_name_of_another_away(code):
    """Else cells that are run again would find something else."""
    assigned, defined, read = defaultdict(list), Counter(), set()
    for i, cell in enumerate(code):
        own, others, definitions = names_of(cell.source)
        defined.update(definitions)
        read |= others
        for name in own:
            assigned[name].append(i)
    assert {name: at for name, at in assigned.items() if len(at) > 1 and name in read} == {}
    assert [name for name, n in defined.items() if n > 1 or name in assigned] == []
    assert len(defined) > 100


def test_the_committed_run_is_whole_and_of_the_current_code(committed, code):
    assert committed.metadata["code_sha256"] == code_digest(committed.cells)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert committed.metadata.language_info.name == "python"
    assert "application/vnd.jupyter.widget" not in json.dumps(committed)
    assert "widgets" not in committed.metadata
    allowed = {"tags", "cellView", "jupyter"}  # no timings
    assert not [cell for cell in code if cell.metadata.keys() - allowed]
    assert max(len(json.dumps(cell.outputs)) for cell in code) < 5e5
    text = printed(committed)
    assert f"Profile {publish.COMMITTED} on" in text and "left out" not in text.lower()


@pytest.fixture(scope="module")
def tables():
    """(results.json, claims.json) of the published run."""
    folder = PUBLISHED / "fashion-mnist"
    return [json.loads((folder / f"{name}.json").read_text()) for name in ("results", "claims")]


def test_the_tables_that_are_shown_are_those_of_the_committed_run(committed, tables):
    results, claims = tables
    readme, page = ((ROOT / name).read_text() for name in ("README.md", "RESULTS.md"))
    shown = publish.results_table(results, publish.COLUMNS)
    assert shown in readme and shown in committed.cells[0].source
    assert publish.results_table(results) in page
    assert publish.claims_table(publish.all_claims(claims)) in readme
    assert publish.claims_table(claims, whole=True) in page
    text = printed(committed)
    for name, scores in results["scores"].items():
        row = " | ".join(f"{value:.3f}" for value in scores.values())
        assert f"| {name} | {row} | " in text
    for claim in claims.values():
        assert f"| {claim['measured']}" in text and f"| {claim['verdict']} |" in text
    assert float(re.match(r"[\d.]+", results["judge"])[0]) >= 91


def test_the_codes_version_is_that_of_what_trains_and_of_what_scores(committed):
    """Each section but 9 decides on weights or scores; comments and prose decide on nothing."""
    headings = [re.match(r"## (\d+) ", cell.source) for cell in committed.cells]
    assert [int(found[1]) for found in headings if found] == list(range(1, 11))
    before = code_versions(committed.cells)
    for words, changes in (
        ("def critic_step", {*SECTIONS}),
        ("def go_on", {*SECTIONS}),
        ("class Judge", {"scoring code"}),
        ("def show_scores", {"scoring code"}),
        ("def judge_quality", set()),
    ):
        changed = deepcopy(committed.cells)
        cell = next(cell for cell in changed if words in cell.source)
        cell.source += "\n# a comment"
        assert code_versions(changed) == before
        cell.source += "\nchanged = True"
        after = code_versions(changed)
        assert {kind for kind in SECTIONS if after[kind] != before[kind]} == changes
        assert code_digest(changed) != code_digest(committed.cells)


def test_all_that_is_shown_was_made_by_one_version_of_the_code(committed):
    """RESULTS.md names its commit and its tables; for each data set there are all its files."""
    now = code_versions(committed.cells).items()
    page, found = (ROOT / "RESULTS.md").read_text(), sorted(PUBLISHED.glob("*/results.json"))
    assert PUBLISHED / "fashion-mnist" / "results.json" in found
    for path in found:
        results = json.loads(path.read_text())
        assert now <= results.items(), path
        assert f"{results['made by']} Torch" in page and publish.results_table(results) in page
        assert path.parent.name in (results["data set"], f"{results['data set']}-standard")
        assert (PUBLISHED / "judges" / f"{results['data set']}.pt").exists()
        for name in (f"{m}{end}" for m in results["minutes"] for end in (".pt", ".generator.pt")):
            assert (path.parent / name).exists()
    others = [PUBLISHED / "sweep.json", *PUBLISHED.glob("fashion-mnist/*architectures.json")]
    for path in others:
        results = json.loads(path.read_text())
        assert now <= results.items()
        assert f"{results['made by']} Torch" in page and results["table"] in page
    assert len(others) > 1
    for path in PUBLISHED.glob("fashion-mnist/*architectures.pt"):
        rows = torch.load(path, weights_only=True)["results"]
        assert rows and all(now <= row.items() for row in rows)


def test_only_what_evaluation_needs_is_published():
    files = [path for path in PUBLISHED.rglob("*") if path.is_file()]
    sizes = dict.fromkeys(PUBLISHED.iterdir(), 0)
    for path in files:
        sizes[PUBLISHED / path.relative_to(PUBLISHED).parts[0]] += path.stat().st_size
    assert max(sizes.values()) < 20e6 and sum(sizes.values()) < 60e6
    assert not [path for path in files if "checkpoint" in path.name]


def test_the_committed_run_was_made_with_the_settings_of_its_profile(cells, tables):
    for method, made_with in tables[0]["settings"].items():
        assert made_with == cells.asdict(cells.profile_settings(publish.COMMITTED, method))


@pytest.mark.parametrize("method", METHODS)
def test_published_generators_have_the_score_of_their_last_stage(
    cells, fashion_mnist, tables, method
):
    """Which they had in full precision."""
    classifier = cells.Classifier((1, 28, 28), 10)
    classifier.load_state_dict(torch.load(PUBLISHED / "judges" / "fashion-mnist.pt"))
    path = PUBLISHED / "fashion-mnist" / f"{method}.pt"
    generator, saved = cells.load_generator(path, (1, 28, 28), CPU)
    chosen = cells.Settings(**saved["settings"])
    assert saved["settings"] == tables[0]["settings"][method]
    assert tables[0]["minutes"][method] == round(saved["seconds"] / 60, 1)
    z = torch.randn(
        chosen.judged_samples,
        chosen.latent_size,
        generator=torch.Generator().manual_seed(chosen.seed),
    )
    judge = cells.Judge(classifier, fashion_mnist)
    scores = judge.scores(cells.generate(generator, z))
    assert {name: saved["quality"][name][-1] for name in scores} == pytest.approx(scores, rel=0.01)


@pytest.mark.parametrize(
    "page", ["README.md", "RESULTS.md", "benchmarks/README.md", "saved_models/README.md"]
)
def test_links_and_pictures_of_the_pages_lead_somewhere(page):
    """Files exist, and headings that links name; pictures are small; so is the README."""
    text = (ROOT / page).read_text()
    links = [link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", text)]
    for name, _, heading in (link for link in links if ":" not in link[0]):
        target = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert target.exists(), name
        if target.suffix in (".png", ".gif"):
            assert target.stat().st_size < (4e6 if target.suffix == ".gif" else 5e5), name
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles]
            assert heading in anchors, (name, heading)
    pictures = [name for name, _, _ in links if name.endswith(".png")]
    if page == "README.md":
        assert len(text.split()) <= 1200 and pictures
