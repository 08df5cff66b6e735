"""Run the notebook headless, showing in the terminal what its cells print while they run.

    python tools/run.py [--output FILE] [-p NAME VALUE]...

NAME is a variable of the notebook's parameters cell; any other is refused. Ctrl-C lets the training save first. The
executed notebook, whole or as far as it came, is written to FILE.
"""

import argparse
import ast
import logging
import sys
from datetime import datetime
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from notebook_cells import NOTEBOOK
from traitlets.config import Config

PATIENCE = 120  # seconds that an interrupted training has to finish its iterations and save


class EchoingClient(NotebookClient):
    """An nbclient that also prints text and tables as they arrive, and each cell's number and first line."""

    def output(self, outs, msg, display_id, cell_index):
        content = msg["content"]
        if msg["msg_type"] == "stream":
            print(content["text"], end="", flush=True)
        elif "text/markdown" in content.get("data", {}):
            print(content["data"]["text/markdown"], flush=True)
        return super().output(outs, msg, display_id, cell_index)

    def announce(self, cell, cell_index):
        code = [c for c in self.nb.cells if c.cell_type == "code"]
        if cell.cell_type == "code":
            number = next(i for i, c in enumerate(code, 1) if c is cell)
            print(f"[cell {number}/{len(code)}] {cell.source.splitlines()[0]}", flush=True)


def parameters_cell(notebook):
    """The cell of `notebook` that holds its parameters."""
    return next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))


def set_parameters(notebook, parameters):
    """Set `parameters` at the end of the parameters cell. Raises ValueError for an unknown name."""
    cell = parameters_cell(notebook)
    names = [s.targets[0].id for s in ast.parse(cell.source).body]
    if unknown := [name for name in parameters if name not in names]:
        raise ValueError(f"no such parameter: {', '.join(unknown)}; allowed: {', '.join(names)}")
    cell.source = "\n".join([cell.source, *(f"{name} = {value!r}" for name, value in parameters.items())])


def execute(notebook, folder, echo=True):
    """Run all cells of `notebook`, in place, in a fresh kernel whose working directory is `folder`."""
    kind = EchoingClient if echo else NotebookClient
    client = kind(
        notebook,
        kernel_name="python3",
        timeout=None,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--log-level=ERROR"],
        config=Config(KernelManager={"shutdown_wait_time": PATIENCE}),
    )
    if echo:
        client.on_cell_start = client.announce
    client.execute()


def literal(text):
    """'3' -> 3, 'None' -> None, 'WGAN-GP' -> 'WGAN-GP'."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--output", type=Path, default=Path(f"runs/wgan_gp-{datetime.now():%Y%m%d-%H%M%S}.ipynb"))
    chosen = parser.parse_args()
    notebook = nbformat.read(NOTEBOOK, 4)
    try:
        set_parameters(notebook, {name: literal(value) for name, value in chosen.parameters})
    except ValueError as error:
        sys.exit(str(error))
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # an interrupt leaves nbclient's tasks unfinished
    failure = None
    try:
        execute(notebook, Path.cwd())
    except CellExecutionError as error:
        failure = f"{error.ename}: {error.evalue}"
    except Exception as error:  # an interrupted nbclient ends in several ways
        failure = f"interrupted ({type(error).__name__}); a training that was under way goes on if you run this again"
    nbformat.write(notebook, chosen.output)
    print(f"\nThe executed notebook: {chosen.output}")
    sys.exit(f"Stopped. {failure}" if failure else 0)


if __name__ == "__main__":
    main()
