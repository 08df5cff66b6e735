"""Run the notebook headless, showing in the terminal what its cells print while they run.

    python tools/run_notebook.py [--output FILE] [-p NAME VALUE]...

NAME is a variable of the notebook's parameters cell; any other is refused. Ctrl-C, or SIGTERM,
interrupts the cell, so that a training saves and says where; a second one ends the run at once. The
executed notebook, whole or as far as it came, is written to FILE, unless a parameter was refused.
"""

import argparse
import ast
import asyncio
import logging
import re
import signal
import sys
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path

import nbformat
from live_lines import LiveLines
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from notebook_cells import NOTEBOOK
from traitlets.config import Config

ABOUT = """**Run of {:%d %B %Y, %H:%M}**, with {}. Its outputs stand below. The table and the
picture that follow here, and whatever is said of *the committed run*, are of another run."""
PATIENCE = 120  # seconds to save where nbclient's own Ctrl-C ends the kernel (Windows)


class InterruptibleClient(NotebookClient):
    """An nbclient whose first Ctrl-C interrupts the cell, where nbclient's own ends the kernel."""

    async def listen(self, notebook):
        """Take SIGINT and SIGTERM over from nbclient."""
        loop = asyncio.get_running_loop()
        answers = iter((self.km.interrupt_kernel, partial(self.km.shutdown_kernel, now=True)))

        def answer():
            if how := next(answers, None):
                self.answering = asyncio.ensure_future(how())

        with suppress(NotImplementedError, RuntimeError):  # on Windows, outside the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, answer)


class EchoingClient(InterruptibleClient):
    """One that also prints text, tables and lines as they arrive, and the section that it is in."""

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        self.section, self.live = None, LiveLines()

    def output(self, outs, msg, display_id, cell_index):
        content = msg["content"]
        if text := content.get("text") or content.get("data", {}).get("text/markdown"):
            print(text, end="" if msg["msg_type"] == "stream" else "\n", flush=True)
            self.live.stay()
        return super().output(outs, msg, display_id, cell_index)

    def process_message(self, msg, cell, cell_index):
        data = msg["content"].get("data", {})
        if msg["msg_type"] == "update_display_data" and set(data) == {"text/plain"}:
            self.live.update(data["text/plain"].splitlines())
        return super().process_message(msg, cell, cell_index)

    def conclude(self, cell, cell_index, execute_reply):
        self.live.end()

    def announce(self, cell, cell_index):
        prose = [c.source for c in self.nb.cells[:cell_index] if c.cell_type == "markdown"]
        headings = re.findall(r"^#{1,3} (.*)", "\n".join(prose), re.MULTILINE)
        section = headings[-1] if headings else ""
        if cell.cell_type == "code" and section != self.section:
            kinds = [c.cell_type for c in self.nb.cells]
            at = f"{kinds[:cell_index].count('code') + 1}/{kinds.count('code')}"
            print(f"[cell {at}] {section}", flush=True)
            self.section = section


def parameters_cell(notebook):
    """The cell of `notebook` that holds its parameters."""
    return next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))


def defaults(notebook):
    """{name: value} of the parameters cell, which holds literals only."""
    lines = ast.parse(parameters_cell(notebook).source).body
    return {line.targets[0].id: ast.literal_eval(line.value) for line in lines}


def set_parameters(notebook, parameters):
    """Set `parameters` at the end of the parameters cell. Raises ValueError for an unknown name."""
    names = defaults(notebook)
    if unknown := [name for name in parameters if name not in names]:
        raise ValueError(f"no such parameter: {', '.join(unknown)}; allowed: {', '.join(names)}")
    given = [f"{name} = {value!r}" for name, value in parameters.items()]
    cell = parameters_cell(notebook)
    cell.source = "\n".join([cell.source, *given])


def execute(notebook, folder, echo=True):
    """Run all cells of `notebook`, in place, in a fresh kernel whose working directory is `folder`.

    Outputs of an earlier run are removed first, so that none passes for this run's.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    kind = EchoingClient if echo else InterruptibleClient
    waiting = {"shutdown_wait_time": PATIENCE} if sys.platform == "win32" else {}
    client = kind(
        notebook,
        kernel_name="python3",
        timeout=None,
        iopub_timeout=60,  # for outputs still on their way, on a busy machine
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--log-level=ERROR"],
        config=Config(KernelManager=waiting),
    )
    client.on_notebook_start = client.listen
    if echo:
        client.on_cell_start, client.on_cell_executed = client.announce, client.conclude
    client.execute()


def is_refused(notebook):
    """Did a setup cell fail, so that nothing has begun?"""
    setup = [cell for cell in notebook.cells if "setup" in cell.metadata.get("tags", ())]
    return any(output.output_type == "error" for cell in setup for output in cell.outputs)


def literal(text, default=None):
    """'3' -> 3, 'None' -> None, 'WGAN-GP' -> 'WGAN-GP'; with a text for default always the text."""
    try:
        return text if isinstance(default, str) else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def add_parameters(parser):
    """Let an ArgumentParser take -p NAME VALUE any number of times, as pairs in `given`."""
    pair = {"nargs": 2, "metavar": ("NAME", "VALUE")}
    parser.add_argument("-p", dest="given", action="append", default=[], **pair)


def read_parameters(notebook, given):
    """Set pairs of a name and a text in `notebook`; {name: value}. Raises as set_parameters."""
    usual = defaults(notebook)
    parameters = {name: literal(value, usual.get(name)) for name, value in given}
    set_parameters(notebook, parameters)
    return parameters


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_parameters(parser)
    output = Path(f"runs/wgan_gp-{datetime.now():%Y%m%d-%H%M%S}.ipynb")
    parser.add_argument("--output", type=Path, default=output)
    chosen = parser.parse_args()
    notebook = nbformat.read(NOTEBOOK, 4)
    try:
        parameters = read_parameters(notebook, chosen.given)
        chosen.output.parent.mkdir(parents=True, exist_ok=True)
        if chosen.output.is_dir():
            raise ValueError(f"--output is {chosen.output}, a folder; allowed: a file")
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    given = ", ".join(f"`{name} = {value!r}`" for name, value in parameters.items())
    about = ABOUT.format(datetime.now(), given or "the defaults")
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(about))
    # An interrupt leaves nbclient's tasks unfinished, which need not be said:
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    failure = None
    try:
        execute(notebook, Path.cwd())
    except CellExecutionError as error:
        failure = f"{error.ename}: {error.evalue}"
        if is_refused(notebook):
            sys.exit(failure)
    except (Exception, KeyboardInterrupt) as error:  # nbclient can be interrupted in several ways
        failure = f"interrupted ({type(error).__name__}); run again, and a training goes on"
    nbformat.write(notebook, chosen.output)
    print(f"\nThe executed notebook: {chosen.output}")
    sys.exit(f"Stopped. {failure}" if failure else 0)


if __name__ == "__main__":
    main()
