"""Import the cells of wgan_gp.ipynb as a module: tests, benchmarks and tools run its code."""

import ast
import hashlib
import io
import json
import linecache
import os
import re
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType

NOTEBOOK = Path(os.environ.get("NOTEBOOK", Path(__file__).resolve().parents[1] / "wgan_gp.ipynb"))
SECTIONS = {  # of the notebook, by what their code decides; all decide on the committed run
    "training code": (1, 2, 3, 4, 5, 7),
    "scoring code": range(1, 9),
}


def load_cells(path=NOTEBOOK, tags=("setup", "parameters", "define"), **parameters):
    """A module in which the code cells with one of `tags` have run, with these `parameters`.

    Of the other cells, which train and evaluate, only functions and classes are defined. Raises
    KeyError for a parameter that the notebook does not have.
    """
    module = ModuleType("wgan_gp_cells")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    for number, cell in enumerate(json.loads(Path(path).read_text("utf-8"))["cells"]):
        found = set(cell["metadata"].get("tags", ()))
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        tree = ast.parse(source)
        if not found & set(tags):
            kinds = ast.FunctionDef | ast.ClassDef
            tree.body = [node for node in tree.body if isinstance(node, kinds)]
        name = f"{Path(path).name}[{cell.get('id', number)}]"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        with redirect_stdout(io.StringIO()):
            exec(compile(tree, name, "exec"), module.__dict__)
        if "parameters" in found:
            if unknown := parameters.keys() - vars(module).keys():
                raise KeyError(f"no such parameter: {', '.join(sorted(unknown))}")
            vars(module).update(parameters)
    return module


def load_judged(**parameters):
    """load_cells with the images, their judge and the number of samples that it scores at the end.

    Raises as it does, and RuntimeError for images that cannot be fetched or read.
    """
    cells = load_cells(**parameters)
    cells.data = cells.load_images(cells.source, Path(cells.DATA_DIR).expanduser(), cells.device)
    cells.judge = cells.load_judge(cells.data)
    n = 500 if cells.profile == "smoke" else 10_000
    cells.n_samples = min(n, len(cells.data.test), len(cells.data.train))
    return cells


@contextmanager
def silence():
    """What is printed inside goes nowhere."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def code_digest(cells, sections=None):
    """SHA-256 of the code of a notebook's cells, less blank lines and lines of comments only.

    With `sections` only of the cells that follow a heading "## N" with one of these numbers.
    """
    section, lines = None, []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and (sections is None or section in sections):
            lines += [line.rstrip() for line in source.splitlines()]
        elif found := re.match(r"## (\d+) ", source):
            section = int(found[1])
    code = "\n".join(line for line in lines if line and not line.lstrip().startswith("#"))
    return hashlib.sha256(code.encode()).hexdigest()


def code_versions(cells):
    """{kind: digest} of the code of a notebook's cells that trains and that scores."""
    return {kind: code_digest(cells, sections) for kind, sections in SECTIONS.items()}
