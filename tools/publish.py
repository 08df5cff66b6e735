"""Make the committed run: execute the notebook alone in a fresh folder, then install what it made.

    python tools/publish.py [-p NAME VALUE]...      executes with these parameters, then installs
    python tools/publish.py ... -p TRAIN False      evaluates the published weights anew, which stay as they are
    python tools/publish.py ... --trained DIR       takes the trainings over that are in DIR, a run's own folder
    python tools/publish.py ... --beside DIR...     shows the scores of other runs beside it
    python tools/publish.py --from DIR              installs an execution that an earlier call left in DIR

Installed are: the executed notebook (cleaned), its figures in images/, its weights, results and tables in
saved_models/published/DATASET/, the table of scores in the README and the notebook's opening cell, and the tables of
all runs and of the claims in the README.
"""

import argparse
import base64
import shutil
import tempfile
from pathlib import Path

import nbformat
from notebook_cells import NOTEBOOK, code_digest
from run import execute, literal, parameters_cell, set_parameters

ROOT = NOTEBOOK.parent


def replace_block(text, name, content):
    """`text` with what stands between the marks `name: begin` and `name: end` replaced."""
    begin, end = (f"<!-- {name}: {place} -->" for place in ("begin", "end"))
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content.strip()}\n{end}{rest.split(end)[1]}"


def make(folder, parameters, trained, beside):
    """Run the notebook alone in `folder`, with the project's data if it has been fetched before."""
    if (ROOT / "data").exists():
        (folder / "data").symlink_to(ROOT / "data")
    shutil.copytree(ROOT / "saved_models" / "published", folder / "saved_models" / "published")
    if trained:
        shutil.copytree(trained, folder / "saved_models" / trained.name, ignore=shutil.ignore_patterns("scores"))
    kept = [(scores.name, scores) for scores in ROOT.glob("saved_models/published/*/scores/*")]
    for name, scores in kept + [(other.name, other / "scores") for other in beside]:
        if scores.is_dir():
            shutil.copytree(scores, folder / "saved_models" / name / "scores", dirs_exist_ok=True)
    notebook = nbformat.read(NOTEBOOK, 4)
    defaults = parameters_cell(notebook)
    source = defaults.source
    set_parameters(notebook, parameters)
    execute(notebook, folder)
    defaults.source = source
    nbformat.write(notebook, folder / NOTEBOOK.name)


def clean(notebook):
    """Keep code, prose and results, and note which code it was that ran."""
    for trace in ("widgets", "jupytext"):
        notebook.metadata.pop(trace, None)
    notebook.metadata["code_sha256"] = code_digest(notebook.cells)
    for cell in notebook.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}


def install(folder):
    """Put the execution in `folder` in the places that are committed."""
    (figures,) = (folder / "images").iterdir()
    models = folder / "saved_models" / figures.name
    dataset = figures.name.rsplit("-", 2)[0]
    published = ROOT / "saved_models" / "published" / dataset
    for old in (ROOT / "images").glob("*.*"):
        old.unlink()
    shutil.rmtree(published / "scores", ignore_errors=True)
    shutil.copytree(models, published, ignore=shutil.ignore_patterns("*.checkpoint.*", "scores"), dirs_exist_ok=True)
    for scores in (folder / "saved_models").glob(f"{dataset}-*-seed*/scores"):
        shutil.copytree(scores, published / "scores" / scores.parent.name)
    (ROOT / "images").mkdir(exist_ok=True)
    for path in figures.iterdir():
        shutil.copy(path, ROOT / "images")

    readme = ROOT / "README.md"
    for name in ("results", "runs", "claims"):
        readme.write_text(replace_block(readme.read_text(), name, (models / f"{name}.md").read_text()))
    notebook = nbformat.read(folder / NOTEBOOK.name, 4)
    clean(notebook)
    opening = notebook.cells[0]
    picture = base64.b64encode((figures / "samples.png").read_bytes()).decode()
    opening["attachments"] = {"samples.png": {"image/png": picture}}
    shown = "\n\n![samples](attachment:samples.png)"
    opening.source = replace_block(opening.source, "results", (models / "results.md").read_text().strip() + shown)
    nbformat.write(notebook, NOTEBOOK)
    print(f"Installed {folder}: wgan_gp.ipynb, images/, {published.relative_to(ROOT)}, README.md")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--trained", type=Path, help="saved_models/DATASET-PROFILE-seedN of trainings to take over")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="runs whose scores are shown too")
    parser.add_argument("--from", dest="folder", type=Path, help="a folder that an earlier call executed in")
    chosen = parser.parse_args()
    folder = chosen.folder
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="wgan_gp-"))
        print(f"Executing in {folder}", flush=True)
        make(folder, {name: literal(value) for name, value in chosen.parameters}, chosen.trained, chosen.beside)
    install(folder)


if __name__ == "__main__":
    main()
