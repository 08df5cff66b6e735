"""Publishing: what is shown is what the executed notebook left, and only of the current code."""

import base64
import json
import re
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import publish
import pytest
import sweep
import torch
from conftest import CPU, ROOT
from notebook_cells import code_versions
from PIL import Image, ImageSequence
from run_notebook import set_parameters

RUN = "fashion-mnist-quick-seed0"
RESULTS = {
    "scores": {
        "real training images": {"Frechet distance": 0.1, "precision": 0.8},
        "WGAN-GP": {"Frechet distance": 1.25, "precision": 0.7},
    },
    "minutes": {"WGAN-GP": 12.3},
    "samples": 10_000,
    "judge": "92.0% (classes)",
    "trained on": ["a machine"],
    "evaluation seed": 5,
    "torch": "2.14.1",
    "settings": {"WGAN-GP": {"dataset": "fashion-mnist"}},
}
CLAIMS = {
    "C1": {
        "paper": "said",
        "measured": "1 of 2",
        "verdict": "partly",
        "checks": {"a": True, "b": 0},
    },
    "C4": {"paper": "more", "measured": "not measured in this run", "verdict": "", "checks": {}},
}


def test_tables_have_the_columns_asked_for():
    table = publish.results_table(RESULTS, ("precision", "minutes")).split("\n")
    assert table[0] == "| method | precision | minutes |"
    assert table[2:4] == ["| real training images | 0.800 |  |", "| WGAN-GP | 0.700 | 12.3 |"]
    assert "10,000 samples" in table[-1] and "a machine" in table[-1] and "seed 5" in table[-1]
    assert publish.results_table(RESULTS).startswith(
        "| method | Frechet distance | precision | min"
    )


def test_claims_say_what_fails_and_what_was_not_measured():
    whole, short = publish.claims_table(CLAIMS, whole=True), publish.claims_table(CLAIMS)
    assert "| C1 | said | 1 of 2 | b | partly |" in whole
    assert "| C1 | said | partly |" in short and "| C4 | more | not measured |" in short


def test_a_block_is_replaced_between_its_marks_alone():
    text = "before <!-- x: begin -->old<!-- x: end --> after"
    new = publish.replace_block(text, "x", "new\n")
    assert new == "before <!-- x: begin -->\nnew\n<!-- x: end --> after"
    with pytest.raises(ValueError):
        publish.replace_block(text, "y", "new")


@pytest.fixture
def execution(tmp_path, monkeypatch):
    """(a copy of the project, a folder in which the notebook seems to have been executed)."""
    root, folder = tmp_path / "project", tmp_path / "executed"
    models, figures = folder / "saved_models" / RUN, folder / "images" / RUN
    published = root / "saved_models" / "published"
    for path in (
        models / "few_images",
        figures,
        models.parent / "judges",
        published,
        root / "images",
    ):
        path.mkdir(parents=True)
    (models / "random_architectures.pt").write_bytes(b"of tools/architectures.py")
    for name in ("README.md", "RESULTS.md", "wgan_gp.ipynb"):
        shutil.copy(ROOT / name, root / name)
    for name in ("WGAN-GP.pt", "WGAN-GP.checkpoint-a.pt", "WGAN-GP.film", "few_images/WGAN.pt"):
        (models / name).write_bytes(b"content")
    (models.parent / "judges" / "fashion-mnist.pt").write_bytes(b"judge")
    for name, content in (("results", RESULTS), ("claims", CLAIMS)):
        (models / f"{name}.json").write_text(json.dumps(content))
    for name in ("samples", "training"):
        Image.new("RGB", (2, 1), "red").save(figures / f"{name}.png")
    for name in ("old.png", "architectures.png"):
        (root / "images" / name).write_bytes(b"of an earlier run, and what is no run's")
    notebook = nbformat.read(ROOT / "wgan_gp.ipynb", 4)
    notebook.cells[-2].metadata["trace"] = notebook.metadata["widgets"] = {}
    set_parameters(notebook, {"PROFILE": publish.COMMITTED})
    nbformat.write(notebook, folder / "wgan_gp.ipynb")
    monkeypatch.setattr(publish, "ROOT", root)
    for name in ("export_generators", "lighten"):
        monkeypatch.setattr(publish, name, lambda *given, **how: None)  # no real weights
    monkeypatch.setattr(publish, "NOTEBOOK", root / "wgan_gp.ipynb")
    monkeypatch.setattr(publish, "COLUMNS", ("Frechet distance", "minutes"))
    return root, folder


def test_what_a_run_left_is_installed(execution):
    root, folder = execution
    publish.install(folder, "Made by `make publish`, commit abc.")
    published = root / "saved_models" / "published"
    kept = {str(p.relative_to(published)) for p in published.rglob("*") if p.is_file()}
    run = {"WGAN-GP.pt", "WGAN-GP.film", "few_images/WGAN.pt", "results.json", "claims.json"}
    assert kept == {f"fashion-mnist/{name}" for name in run} | {"judges/fashion-mnist.pt"}
    images = {path.name for path in (root / "images").iterdir()}
    assert images == {"samples.png", "architectures.png"}
    kept = json.loads((published / "fashion-mnist" / "results.json").read_text())
    assert kept["made by"] == "Made by `make publish`, commit abc."
    assert code_versions(nbformat.read(root / "wgan_gp.ipynb", 4).cells).items() <= kept.items()
    readme, page = (root / "README.md").read_text(), (root / "RESULTS.md").read_text()
    assert "| WGAN-GP | 1.250 | 12.3 |" in readme and "| C1 | said | partly |" in readme
    assert "architectures.png" not in page.split("<!-- run: end -->")[0]
    assert "commit abc" in page and "| C1 | said | 1 of 2 | b | partly |" in page
    notebook = nbformat.read(root / "wgan_gp.ipynb", 4)
    assert "| WGAN-GP | 1.250 | 12.3 |" in notebook.cells[0].source
    assert "samples.png" in notebook.cells[0].attachments and "widgets" not in notebook.metadata
    assert not any("trace" in cell.metadata for cell in notebook.cells)


def test_a_run_on_other_images_is_installed_beside_the_committed_one(execution):
    """With the figures that are asked for, and without films; the committed run stays."""
    root, folder = execution
    figures, page = folder / "images" / RUN, root / "RESULTS.md"
    for name in ("epochs", "real_images"):
        Image.new("RGB", (2, 1), "blue").save(figures / f"{name}.png")
    publish.install(folder, "The committed one.")
    notebook = nbformat.read(folder / "wgan_gp.ipynb", 4)
    set_parameters(notebook, {"DATASET": "folder:pictures"})
    nbformat.write(notebook, folder / "wgan_gp.ipynb")
    results = RESULTS | {"settings": {"WGAN-GP": {"dataset": "folder-1234-64px"}}}
    (folder / "saved_models" / RUN / "results.json").write_text(json.dumps(results))
    judges = folder / "saved_models" / "judges"
    (judges / "fashion-mnist.pt").rename(judges / "folder-1234-64px.pt")
    before = [path.read_bytes() for path in root.rglob("*") if path.is_file()]
    with pytest.raises(ValueError, match="<!-- run pictures: begin --> stands 0 times in the page"):
        publish.install(folder, "Made of pictures.", "pictures")
    assert before == [path.read_bytes() for path in root.rglob("*") if path.is_file()]
    marks = "<!-- run pictures: begin --><!-- run pictures: end -->"
    page.write_text(page.read_text() + marks)
    before = [(root / name).read_bytes() for name in ("README.md", "wgan_gp.ipynb")]
    for shown, expected in (("samples.png", {"samples.png"}), ("e*.png", {"epochs.png"})):
        publish.install(folder, "Made of pictures.", "pictures", shown)
        assert {path.name for path in (root / "images" / "pictures").iterdir()} == expected
    published = root / "saved_models" / "published"
    kept = {path.name for path in (published / "folder-1234-64px").iterdir()}
    assert kept == {"WGAN-GP.pt", "results.json"}
    judges = {path.name for path in (published / "judges").iterdir()}
    assert judges == {"fashion-mnist.pt", "folder-1234-64px.pt"}
    assert before == [(root / name).read_bytes() for name in ("README.md", "wgan_gp.ipynb")]
    assert (root / "images" / "samples.png").exists() and (published / "fashion-mnist").exists()
    block = page.read_text().split("<!-- run pictures: begin -->")[1]
    assert "Made of pictures." in block and "| WGAN-GP | 1.250 |" in block
    assert "![The same noise after 1 epoch and after 10](images/pictures/epochs.png)" in block


def test_another_profile_on_the_committed_runs_images_has_a_folder_of_its_own(execution):
    root, folder = execution
    publish.install(folder, "The committed one.")
    published, page = root / "saved_models" / "published", root / "RESULTS.md"
    before = {path: path.read_bytes() for path in root.rglob("*.*") if path.is_file()}
    notebook = nbformat.read(folder / "wgan_gp.ipynb", 4)
    set_parameters(notebook, {"PROFILE": "standard"})
    nbformat.write(notebook, folder / "wgan_gp.ipynb")
    publish.install(folder, "The wider one.")
    kept = {path.name for path in (published / "fashion-mnist-standard").iterdir()}
    assert kept == {"WGAN-GP.pt", "results.json"}
    assert {path.name for path in (root / "images" / "standard").iterdir()} == {"samples.png"}
    assert {path for path, held in before.items() if path.read_bytes() != held} == {page}
    assert "The wider one." in page.read_text().split("<!-- run standard: begin -->")[1]


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("", "make publish DATASET=folder:pictures"),
        ("--name mine", "tools/publish.py -p DATASET folder:pictures --commit abc --name mine"),
    ],
)
def test_a_folder_is_looked_for_from_here_and_the_command_said_as_given(
    execution, monkeypatch, tmp_path, words, command
):
    """Though the notebook runs in a folder of its own."""
    root, _ = execution
    page, made = root / "RESULTS.md", []
    name = "mine" if words else "pictures"
    page.write_text(f"{page.read_text()}<!-- run {name}: begin --><!-- run {name}: end -->")
    monkeypatch.setattr(publish, "make", lambda folder, parameters, _: made.append(parameters))
    monkeypatch.setattr(publish, "install", lambda _, said, *more: made.append(said))
    given = ["publish.py", "-p", "DATASET", "folder:pictures", "--commit", "abc", *words.split()]
    monkeypatch.setattr(sys, "argv", given)
    monkeypatch.chdir(tmp_path)
    publish.main()
    assert made[0]["DATASET"] == f"folder:{tmp_path / 'pictures'}"
    assert made[1] == f"`{command}`, commit abc."


def test_published_weights_are_scored_anew(execution):
    """Scores and fresh samples are replaced, weights and what shows their training stay."""
    root, folder = execution
    published = root / "saved_models" / "published"
    shutil.copytree(ROOT / "saved_models" / "published" / "mnist", published / "mnist")
    shutil.copytree(ROOT / "images" / "mnist", root / "images" / "mnist")
    files = [*(published / "mnist").iterdir(), *(root / "images" / "mnist").iterdir()]
    before = {path: path.read_bytes() for path in files}
    results = json.loads((published / "mnist" / "results.json").read_text())
    results["scores"]["WGAN-GP"]["Frechet distance"], trained = 1.25, results["made by"]
    scored = folder / "saved_models" / RUN / "results.json"
    scored.write_text(json.dumps(results | {"evaluation seed": 7}))
    notebook = nbformat.read(folder / "wgan_gp.ipynb", 4)
    set_parameters(notebook, {"DATASET": "mnist", "TRAIN": False})
    nbformat.write(notebook, folder / "wgan_gp.ipynb")
    for commit in ("abc", "def"):
        publish.install(folder, f"`make publish`, commit {commit}.")
        changed = {path.name for path in files if path.read_bytes() != before[path]}
        assert changed == {"results.json", "samples.png"}
        kept = json.loads((published / "mnist" / "results.json").read_text())
        assert kept["made by"] == f"{trained} Scored anew by `make publish`, commit {commit}."
        assert kept["evaluation seed"] == 7
        assert f"{kept['made by']} Torch" in (root / "RESULTS.md").read_text()
    one = {"WGAN-GP": results["settings"]["WGAN-GP"]}
    for odd, said in ((one, "the settings of these weights"), ({}, "scores of no method")):
        scored.write_text(json.dumps(results | {"settings": odd}))
        with pytest.raises(ValueError, match=said):
            publish.install(folder, "")
    kept["training code"] = "other"
    (published / "mnist" / "results.json").write_text(json.dumps(kept))
    scored.write_text(json.dumps(results))
    with pytest.raises(ValueError, match="the training code of these weights is not that of this"):
        publish.install(folder, "")


def test_a_run_without_weights_or_without_a_place_is_refused_before_it_is_made(
    execution, monkeypatch
):
    """Also when it has been made before; nothing that is installed is lost."""
    root, folder = execution
    publish.install(folder, "The committed one.")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    monkeypatch.setattr(publish, "make", lambda *given: pytest.fail("was made"))
    odd = {"TRAIN": ("False", "TRAIN is False; allowed: True")}
    odd["DATASET"] = "celeba", "<!-- run celeba: begin --> stands 0 times in the page"
    refused = [(["-p", name, value], said) for name, (value, said) in odd.items()]
    refused.append((["--trained", "nowhere"], "--trained is nowhere; allowed: the folder of a run"))
    for words, said in refused:
        monkeypatch.setattr(sys, "argv", ["publish.py", "--commit", "abc", *words])
        with pytest.raises(SystemExit, match=said):
            publish.main()
    notebook = nbformat.read(folder / "wgan_gp.ipynb", 4)
    set_parameters(notebook, {"TRAIN": False})
    nbformat.write(notebook, folder / "wgan_gp.ipynb")
    with pytest.raises(ValueError, match="TRAIN is False; allowed: True"):
        publish.install(folder, "")
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_sweeps_are_installed_as_one_table_if_the_code_is_still_the_same(execution):
    root, folder = execution
    page, files = root / "RESULTS.md", [folder / "quick.json", folder / "paper.json"]
    shared = {"data set": "mnist", "method": "WGAN", "minutes": 1.0, "machine": "a CPU"}
    expected = []
    for path, seeds in zip(files, ((0, 1), (2,)), strict=True):
        rows = [{"seed": seed, "scores": {"Frechet distance": 1.0 + seed}} for seed in seeds]
        rows = [shared | {"settings": path.stem} | row for row in rows]
        sweep.write_results(path, rows, sweep.versions())
        expected += rows
    publish.install_sweep([*files, files[0]], "`make sweep`, commit abc.")  # each row once
    said = f"`make sweep`, commit abc. Torch {sweep.versions()['torch']}.\n\n| data"
    assert f"<!-- sweep: begin -->\n{said}" in page.read_text()
    assert "| mnist | WGAN | quick | 0, 1 | 1.50 ± 0.71 |" in page.read_text()
    assert "| mnist | WGAN | paper | 2 | 3.00 |" in page.read_text()
    kept = json.loads((root / "saved_models" / "published" / "sweep.json").read_text())
    assert kept["made by"] == "`make sweep`, commit abc." and kept["table"] in page.read_text()
    assert kept["rows"] == expected
    several, again = folder / "several.json", "2.6.0+cu130 and 2.9.1"
    for _ in range(2):  # a table that was installed may be installed again, with more
        several.write_text(json.dumps(kept | {"torch": again}))
        publish.install_sweep([several, several], "Again.")
        assert "Again. Torch 2.6.0 and 2.9.1.\n" in page.read_text()
        again = json.loads((root / "saved_models/published/sweep.json").read_text())["torch"]
    notebook = nbformat.read(root / "wgan_gp.ipynb", 4)
    next(c for c in notebook.cells if "def critic_step" in c.source).source += "\nchanged = True"
    nbformat.write(notebook, root / "wgan_gp.ipynb")
    with pytest.raises(ValueError, match=r"quick\.json: since then the code has changed"):
        publish.install_sweep(files, "")


def test_architectures_are_installed_with_their_verdicts_if_the_code_is_still_the_same(execution):
    """And stay where the committed run is made anew, whose own claims say nothing of them."""
    root, folder = execution
    models, page = folder / "saved_models" / RUN, root / "RESULTS.md"
    claims = CLAIMS | {"C5": CLAIMS["C4"] | {"paper": "even more"}}
    (models / "claims.json").write_text(json.dumps(claims))
    publish.install(folder, "The committed one.")
    published = root / "saved_models" / "published" / "fashion-mnist"
    (models / "architectures.pt").write_bytes(b"too")
    for claim, name in (("C4", "random_architectures"), ("C5", "architectures")):
        found = {"claim": claim, "measured": "2 of 9", "checks": {"a": False}, "table": f"| {name}"}
        found |= {"name": name, "verdict": "not at all", "trained on": ["a CPU"]}
        path = models / f"{name}.json"
        sweep.write_json(path, found | sweep.versions())
        (folder / "images" / RUN / f"{name}.png").write_bytes(b"new")
        publish.install_architectures(models, "`make architectures`, commit abc.")
        path.unlink()  # each may have been made in a folder of its own
        assert (published / f"{name}.pt").read_bytes() == (models / f"{name}.pt").read_bytes()
    notebook = nbformat.read(root / "wgan_gp.ipynb", 4)
    attached = [cell.attachments for cell in notebook.cells if "attachments" in cell]
    assert [*attached[1].values()] == [{"image/png": base64.b64encode(b"new").decode()}]
    with pytest.raises(ValueError, match=r"holds no random_architectures nor architectures; allo"):
        publish.install_architectures(models, "")
    block = page.read_text().split("<!-- architectures: begin -->")[1]
    block = block.split("<!-- architectures: end -->")[0]
    parts = block.strip().split("\n\n")
    for part in (parts[0], parts[4]):
        assert part.startswith("`make architectures`, commit abc. Torch ")
        assert part.endswith("; a CPU.")
    assert "| C1 |" not in block and "| C5 |" not in parts[1]
    assert parts[5].endswith("\n| C5 | even more | 2 of 9 | a | not at all |")
    assert [parts[2], parts[6]] == ["| random_architectures", "| architectures"]
    assert "(images/random_architectures.png)" in parts[3] and len(parts) == 8
    for _ in range(2):
        readme = (root / "README.md").read_text()
        assert "| C1 | said | partly |" in readme and "| C5 | even more | not at all |" in readme
        assert (root / "images" / "architectures.png").read_bytes() == b"new"
        kept = json.loads((published / "architectures.json").read_text())
        assert kept["made by"] == "`make architectures`, commit abc."
        assert kept["table"] in page.read_text()
        publish.install(folder, "The committed one, again.")
    sweep.write_json(models / "architectures.json", kept | {"scoring code": "other"})
    with pytest.raises(ValueError, match=r"architectures\.json: since then the code has changed"):
        publish.install_architectures(models, "")


def test_a_lightened_weights_file_draws_the_same_pictures(cells, tmp_path):
    """In half the bytes; where nothing is drawn from it, only its course is kept."""
    chosen = cells.profile_settings("quick", "WGAN-GP")
    generator, _ = cells.build_networks(chosen, (1, 28, 28), CPU)
    generator = cells.settled(generator)
    course = dict.fromkeys(cells.WEIGHTS, 1) | {"settings": cells.asdict(chosen)}
    torch.save(course | {"average": generator.state_dict()}, path := tmp_path / "WGAN-GP.pt")
    size = path.stat().st_size
    publish.lighten(path, drawn=True)
    assert 0.4 * size < path.stat().st_size < 0.6 * size
    lighter, saved = cells.load_generator(path, (1, 28, 28), CPU)
    z = torch.randn(100, chosen.latent_size)
    pictures = [cells.generate(one, z).short() for one in (generator, lighter)]
    difference = (pictures[0] - pictures[1]).abs()
    assert difference.max() <= 1 and difference.float().mean() < 0.05
    publish.lighten(path, drawn=False)
    del saved["average"]
    assert torch.load(path, weights_only=True) == saved and path.stat().st_size < 0.02 * size


def test_what_an_experiment_kept_stays_in_full_precision(tmp_path):
    torch.save({"results": [torch.ones(3)]}, path := tmp_path / "value_surfaces.pt")
    before = path.read_bytes()
    publish.lighten(path, drawn=True)
    assert path.read_bytes() == before


def test_a_large_picture_gets_a_palette_and_looks_the_same(tmp_path):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((700, 700), Image.Resampling.BICUBIC))
    picture = Image.fromarray(np.clip(smooth + rng.normal(0, 3, smooth.shape), 0, 255).astype("u1"))
    for name in ("large.png", "small.png"):
        (picture if name == "large.png" else picture.resize((70, 70))).save(tmp_path / name)
    sizes = [(tmp_path / name).stat().st_size for name in ("large.png", "small.png")]
    assert sizes[1] < 4e5 < sizes[0]
    for name in ("large.png", "small.png"):
        publish.shrink(tmp_path / name)
    assert (tmp_path / "small.png").stat().st_size == sizes[1]
    assert (tmp_path / "large.png").stat().st_size < 0.7 * sizes[0]
    shown = np.asarray(Image.open(tmp_path / "large.png").convert("RGB")).astype(float)
    assert np.abs(shown - np.asarray(picture)).mean() < 8


def test_a_large_film_keeps_its_frames_and_their_times(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "film.gif"
    frames = [Image.fromarray(rng.integers(0, 256, (400, 400), dtype="u1")) for _ in range(30)]
    waits = [100] * 29 + [3000]
    for n, side in ((3, 400), (30, 300)):
        frames[0].save(path, save_all=True, append_images=frames[1:n], duration=waits[-n:], loop=0)
        publish.shrink(path)
        with Image.open(path) as film:
            found = [frame.info["duration"] for frame in ImageSequence.Iterator(film)]
            assert film.size == (side, side) and film.info["loop"] == 0 and found == waits[-n:]


def test_an_execution_of_other_code_is_refused(execution):
    root, folder = execution
    notebook = nbformat.read(folder / "wgan_gp.ipynb", 4)
    cell = next(c for c in notebook.cells if "def critic_step" in c.source)
    cell.source += "\nchanged = True"
    nbformat.write(notebook, folder / "wgan_gp.ipynb")
    before = (root / "README.md").read_text()
    with pytest.raises(ValueError, match="the code has changed"):
        publish.install(folder, "")
    assert (root / "README.md").read_text() == before


def test_the_readmes_lines_draw_with_pytorch_alone(tmp_path):
    """In a process without the notebook, for the same latents."""
    lines = re.search(r"```python\n(.+?)```", (ROOT / "README.md").read_text(), re.S)[1]
    assert sum(bool(line) for line in lines.splitlines()) == 4
    after = f"torch.save([z, pictures], {str(tmp_path / 'drawn')!r})"
    python = [sys.executable, "-W", "ignore", "-c", f"{lines}\n{after}"]
    subprocess.run(python, cwd=ROOT, check=True)
    z, pictures = torch.load(tmp_path / "drawn")
    path = ROOT / re.search(r"\"(saved_models/.+)\"", lines)[1]
    assert torch.jit.load(path)(z).equal(pictures) and len(pictures) == len(z) > 1


def test_published_generators_draw_with_pytorch_alone_what_the_notebook_draws(cells):
    """Of every data set, for one latent and for several, and in about as many bytes."""
    files = sorted((ROOT / "saved_models" / "published").glob("*/*.generator.pt"))
    assert len(files) >= 18
    for path in files:
        beside = path.with_name(path.name.replace(".generator", ""))
        alone, z = torch.jit.load(path), torch.randn(16, 128)
        shape = tuple(alone(z).shape[1:])
        generator, _ = cells.load_generator(beside, shape, CPU)
        for some in (z[:1], z):
            torch.testing.assert_close(alone(some), generator(some), rtol=0, atol=1e-5)
        assert path.stat().st_size < 1.2 * beside.stat().st_size, path
