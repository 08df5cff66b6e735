"""Make the committed run: execute the notebook alone in a fresh folder, then install what it made.

    python tools/publish.py [-p NAME VALUE]...      executes with these parameters, then installs
    python tools/publish.py ... -p TRAIN False      evaluates the published weights anew, which stay as they are
    python tools/publish.py ... --trained DIR       takes the trainings over that are in DIR, a run's own folder
    python tools/publish.py ... --beside DIR...     shows the scores of other runs beside it
    python tools/publish.py --from DIR              installs an execution that an earlier call left in DIR
    python tools/publish.py ... --tables            installs tables and figures, no weights (not for the committed run)

Installed are a run's weights, results and tables in saved_models/published/DATASET/. Those of Fashion-MNIST bring the
executed notebook (cleaned), all figures in images/, the table of scores in the README and the notebook's opening cell,
and the tables of all runs and of the claims in the README; those of other data sets what images/README.md shows of
their tables and, in images/DATASET/, of their figures. To keep the repository small, these have the weights of
section 7 alone, with films that keep the judged stages only. With --tables a run of another profile on Fashion-MNIST
is installed in the same way as another data set, with the profile's name in place of the data set's.
"""

import argparse
import base64
import shutil
import tempfile
from pathlib import Path

import nbformat
import torch
from notebook_cells import NOTEBOOK, code_digest
from PIL import Image, ImageOps
from run import execute, literal, parameters_cell, set_parameters

ROOT = NOTEBOOK.parent
SHOWN, COMMITTED = "fashion-mnist", "long"  # data set and profile of the committed notebook
# What section 9 adds to a run:
EXPERIMENTS = ("value_surfaces.pt", "layer_gradients.pt", "*architectures.pt", "rmsprop", "few_images")


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


def install(folder, tables_only=False):
    """Put the execution in `folder` in the places that are committed."""
    (figures,) = (folder / "images").iterdir()
    models = folder / "saved_models" / figures.name
    dataset, profile, _ = figures.name.rsplit("-", 2)
    published = ROOT / "saved_models" / "published" / dataset
    beside = "" if dataset == SHOWN else dataset  # what else is shown, beside the committed run
    if tables_only and dataset == SHOWN:
        if profile == COMMITTED:
            raise ValueError(
                f"--tables is for other data sets than {SHOWN}, or other profiles than {COMMITTED}: the notebook's own "
                "run needs its weights"
            )
        beside, published = profile, published / profile
    elif dataset == SHOWN and profile != COMMITTED:
        raise ValueError(f"{folder} holds a run of {profile}; allowed: {COMMITTED}, as COMMITTED says, or --tables")
    else:
        shutil.rmtree(published / "scores", ignore_errors=True)
        for scores in (folder / "saved_models").glob(f"{dataset}-*-seed*/scores"):
            shutil.copytree(scores, published / "scores" / scores.parent.name)
    left_out = ("*.checkpoint.*", "scores") + (EXPERIMENTS if beside else ()) + ("*.pt",) * tables_only
    shutil.copytree(models, published, ignore=shutil.ignore_patterns(*left_out), dirs_exist_ok=True)
    if beside:
        for path in published.glob("*.pt"):
            shorten_film(path)
    pictures = ROOT / "images" / beside
    install_page(figures, models, pictures, f"{beside} " if beside else "")
    if not beside:
        install_notebook(folder, (models / "results.md").read_text(), (figures / "samples.png").read_bytes())
    print(f"Installed {folder}: {published.relative_to(ROOT)}, {pictures.relative_to(ROOT)} and the page of its tables")


def shorten_film(path):
    """Leave in the weights file `path` the frames at the judged stages only: its film can be most of its size."""
    saved = torch.load(path, map_location="cpu")
    if "strip" in saved:
        judged = {0, *saved["quality"]["iteration"]}
        saved["strip"] = {at: frame for at, frame in saved["strip"].items() if at in judged}
        torch.save(saved, path)


def install_page(figures, models, pictures, prefix):
    """Put the tables that the run's page has a place for into it, and the figures that it shows into `pictures`.

    The page is README.md, or images/README.md for a run that is shown beside the committed one.
    """
    path = ROOT / ("images/README.md" if prefix else "README.md")
    text = path.read_text()
    for name in ("results", "runs", "claims"):
        if f"<!-- {prefix}{name}: begin -->" in text:
            text = replace_block(text, prefix + name, (models / f"{name}.md").read_text())
    path.write_text(text)
    pictures.mkdir(parents=True, exist_ok=True)
    for old in (*pictures.glob("*.png"), *pictures.glob("*.gif")):
        old.unlink()
    for figure in figures.iterdir():
        place = pictures / figure.name
        if not prefix:
            shutil.copy(figure, place)
        elif f"({place.relative_to(path.parent)})" in text:
            # Photographs make large files: the last of 8 bits is mostly noise.
            ImageOps.posterize(Image.open(figure).convert("RGB"), 7).save(place, optimize=True)


def install_notebook(folder, results, samples):
    """Make the notebook executed in `folder` the committed one, with its scores and samples in the opening cell."""
    notebook = nbformat.read(folder / NOTEBOOK.name, 4)
    clean(notebook)
    opening = notebook.cells[0]
    opening["attachments"] = {"samples.png": {"image/png": base64.b64encode(samples).decode()}}
    shown = "\n\n![samples](attachment:samples.png)"
    opening.source = replace_block(opening.source, "results", results.strip() + shown)
    nbformat.write(notebook, NOTEBOOK)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--trained", type=Path, help="saved_models/DATASET-PROFILE-seedN of trainings to take over")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="runs whose scores are shown too")
    parser.add_argument("--from", dest="folder", type=Path, help="a folder that an earlier call executed in")
    parser.add_argument("--tables", action="store_true", help="install tables and figures, no weights")
    chosen = parser.parse_args()
    if "CHANGES" in dict(chosen.parameters):
        parser.error("CHANGES: what is published has the settings of a profile; allowed: none")
    folder = chosen.folder
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="wgan_gp-"))
        print(f"Executing in {folder}", flush=True)
        make(folder, {name: literal(value) for name, value in chosen.parameters}, chosen.trained, chosen.beside)
    install(folder, chosen.tables)


if __name__ == "__main__":
    main()
