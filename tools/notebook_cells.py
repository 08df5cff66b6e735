"""Import the cells of wgan_gp.ipynb as a module, so that tests and benchmarks run the notebook's own code."""

import hashlib
import io
import json
import linecache
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType

NOTEBOOK = Path(__file__).resolve().parent.parent / "wgan_gp.ipynb"


def load_cells(path=NOTEBOOK, tags=("setup", "parameters", "define"), **parameters):
    """A module in which the code cells with one of `tags` have run in order, after `parameters` replaced the defaults.

    Raises KeyError for a parameter that the notebook does not have.
    """
    module = ModuleType("wgan_gp_cells")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    for number, cell in enumerate(json.loads(Path(path).read_text("utf-8"))["cells"]):
        found = set(cell["metadata"].get("tags", ()))
        if cell["cell_type"] != "code" or not found & set(tags):
            continue
        source = "".join(cell["source"])
        name = f"{Path(path).name}[{cell.get('id', number)}]"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        with redirect_stdout(io.StringIO()):
            exec(compile(source, name, "exec"), module.__dict__)
        if "parameters" in found:
            if unknown := parameters.keys() - vars(module).keys():
                raise KeyError(f"no such parameter: {', '.join(sorted(unknown))}")
            vars(module).update(parameters)
    return module


def code_digest(cells):
    """SHA-256 of the code of a notebook's cells, less prose, blank lines and lines that are comments only."""
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    lines = [line.rstrip() for source in sources for line in source.splitlines()]
    return hashlib.sha256("\n".join(x for x in lines if x and not x.lstrip().startswith("#")).encode()).hexdigest()
