"""Make the committed run: execute the notebook alone in a fresh folder, then install what it made.

    python tools/publish.py              executes with the default parameters, then installs
    python tools/publish.py --from DIR   installs an execution that an earlier call left in DIR

Installed are: the executed notebook (cleaned), its figures in images/, its weights and table in
saved_models/published/DATASET/, and the table in the README and the notebook's opening cell.
"""

import argparse
import base64
import re
import shutil
import tempfile
from pathlib import Path

import nbformat
from notebook_cells import NOTEBOOK, code_digest
from run import execute

ROOT = NOTEBOOK.parent
BLOCK = re.compile(r"(<!-- results: begin -->).*(<!-- results: end -->)", re.DOTALL)


def make(folder):
    """Run the notebook alone in `folder`, with the project's data if it has been fetched before."""
    if (ROOT / "data").exists():
        (folder / "data").symlink_to(ROOT / "data")
    notebook = nbformat.read(NOTEBOOK, 4)
    execute(notebook, folder)
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
    (models,) = [p for p in (folder / "saved_models").iterdir() if p.name != "published"]
    (figures,) = (folder / "images").iterdir()
    published = ROOT / "saved_models" / "published" / models.name.rsplit("-", 2)[0]
    for old in (*(ROOT / "images").glob("*.*"), *published.glob("*")):
        old.unlink()
    published.mkdir(parents=True, exist_ok=True)
    for path in (*models.glob("*.pt"), models / "results.md"):
        if not path.name.endswith(".checkpoint.pt"):
            shutil.copy(path, published)
    (ROOT / "images").mkdir(exist_ok=True)
    for path in figures.iterdir():
        shutil.copy(path, ROOT / "images")

    block = rf"\1\n{(models / 'results.md').read_text().strip()}\n\2"
    readme = ROOT / "README.md"
    readme.write_text(BLOCK.sub(block, readme.read_text()))
    notebook = nbformat.read(folder / NOTEBOOK.name, 4)
    clean(notebook)
    opening = notebook.cells[0]
    picture = base64.b64encode((figures / "samples.png").read_bytes()).decode()
    opening["attachments"] = {"samples.png": {"image/png": picture}}
    opening.source = BLOCK.sub(block.replace(r"\n\2", r"\n\n![samples](attachment:samples.png)\n\2"), opening.source)
    nbformat.write(notebook, NOTEBOOK)
    print(f"Installed {folder}: wgan_gp.ipynb, images/, {published.relative_to(ROOT)}, README.md")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="folder", type=Path, help="a folder that an earlier call executed in")
    folder = parser.parse_args().folder
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="wgan_gp-"))
        print(f"Executing in {folder}", flush=True)
        make(folder)
    install(folder)


if __name__ == "__main__":
    main()
