"""Headless runs: what is shown, written and returned, also when a cell fails or Ctrl-C comes."""

import os
import pty
import select
import signal
import subprocess
import sys
import time

import live_lines
import nbformat
import pytest
from conftest import ROOT

PATCHED = "import pathlib, run_notebook as r; r.NOTEBOOK = pathlib.Path('small.ipynb'); r.main()"
SLOW = """import signal, time
stopped = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: stopped.append(1))
open("started", "w").close()
while not stopped:
    time.sleep(0.1)
time.sleep(8)  # an iteration that takes long, and the saving
open("saved", "w").close()
raise KeyboardInterrupt("saved at iteration 7")"""
UPDATING = """from IPython.display import display
lines = display({"text/plain": ""}, raw=True, display_id=True)
for i in range(3):
    lines.update({"text/plain": f"DCGAN: {i}%\\nWGAN: {i}%"}, raw=True)
"""
AGAIN = """lines.update({"text/plain": "DCGAN: 3%\\nWGAN: 3%"}, raw=True)"""
DEAF = """import time
while True:
    try:
        open("started", "w").close()
        time.sleep(60)
    except KeyboardInterrupt:
        open("deaf", "w").close()"""


@pytest.fixture
def start(tmp_path):
    """start(source, *arguments) -> the process of tools/run_notebook.py with a notebook of
    parameters and one other cell; `later` is that of a cell that an earlier run has executed.
    """

    started = []

    def run(source, *arguments, later=None, tags=(), stdout=subprocess.PIPE):
        new = nbformat.v4
        parameters = "SEED = 0\nMETHODS = 'all'"
        cells = [new.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
        work = new.new_code_cell(source, metadata={"tags": list(tags)})
        cells += [new.new_markdown_cell("## 1 Work\nProse."), work]
        if later:
            old = new.new_output("stream", text="of an earlier run\n")
            cells.append(new.new_code_cell(later, outputs=[old], execution_count=9))
        nbformat.write(new.new_notebook(cells=cells), tmp_path / "small.ipynb")
        command = [sys.executable, "-c", PATCHED, "--output", "executed.ipynb", *arguments]
        pipes = {"stdout": stdout, "stderr": subprocess.PIPE, "text": True}
        path = {"PYTHONPATH": str(ROOT / "tools"), "PATH": "/usr/bin:/bin"}
        started.append(subprocess.Popen(command, env=path, cwd=tmp_path, **pipes))
        return started[-1]

    yield run
    for process in started:
        process.kill()


def interrupt_at(process, path):
    """Ctrl-C as soon as there is a file at `path`."""
    until = time.monotonic() + 180
    while not path.exists():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)


def test_parameters_arrive_and_the_run_is_written(start, tmp_path):
    given = ("-p", "SEED", "3", "-p", "METHODS", "2024")  # a text, as its default is
    process = start("print(SEED + 1, repr(METHODS))", *given)
    shown, _ = process.communicate(timeout=180)
    assert process.returncode == 0
    assert "[cell 2/2] 1 Work\n4 '2024'\n" in shown
    assert "The executed notebook: executed.ipynb" in shown
    about, *_, last = nbformat.read(tmp_path / "executed.ipynb", 4).cells
    assert "`SEED = 3`, `METHODS = '2024'`" in about.source
    assert last.outputs[0].text == "4 '2024'\n"


def test_a_failing_cell_is_told_and_what_ran_is_written(start, tmp_path):
    process = start("print('so far')\nraise ValueError('wrong')", later="print('never')")
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 1 and "Stopped. ValueError: wrong" in errors
    *_, failed, later = nbformat.read(tmp_path / "executed.ipynb", 4).cells
    assert failed.outputs[0].text == "so far\n"
    assert not later.outputs and later.execution_count is None  # what was there is gone


def test_a_refused_parameter_leaves_no_notebook(start, tmp_path):
    process = start("raise ValueError('SEED is -1; allowed: 0 to 9')", tags=["setup"])
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 1 and errors == "ValueError: SEED is -1; allowed: 0 to 9\n"
    assert not (tmp_path / "executed.ipynb").exists()


def test_lines_that_are_updated_are_said_once_a_minute_and_at_their_end(start, tmp_path):
    """The executed notebook has the last ones alone."""
    process = start(UPDATING)
    shown, _ = process.communicate(timeout=180)
    assert process.returncode == 0
    assert "1 Work\nDCGAN: 0%\nWGAN: 0%\nDCGAN: 2%\nWGAN: 2%\n\nThe executed" in shown
    *_, last = nbformat.read(tmp_path / "executed.ipynb", 4).cells
    assert [output.data for output in last.outputs] == [{"text/plain": "DCGAN: 2%\nWGAN: 2%"}]


def test_in_a_terminal_they_are_redrawn_in_place(start):
    """What is printed meanwhile stays: the lines begin anew below it."""
    terminal, end = pty.openpty()
    process = start(UPDATING + "print('done')\n" + AGAIN, stdout=end)
    os.close(end)
    shown = b""
    while process.poll() is None or select.select([terminal], [], [], 0.1)[0]:
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
    process.wait(180)
    lines = shown.decode().replace("\r\n", "\n")
    drawn = [f"DCGAN: {i}%\x1b[K\nWGAN: {i}%\x1b[K\n" for i in range(4)]
    assert "\x1b[2F".join(drawn[:3]) + "done\n" + drawn[3] in lines


def test_where_lines_have_become_fewer_no_old_ones_stay(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    lines = live_lines.LiveLines()
    lines.update(["a", "b", "c"])
    lines.update(["d"])
    assert capsys.readouterr().out == "a\x1b[K\nb\x1b[K\nc\x1b[K\n\x1b[3Fd\x1b[K\x1b[J\n"


def test_a_kernel_that_does_not_end_when_asked_is_ended(start):
    endless = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()"
    process = start(endless)
    shown, _ = process.communicate(timeout=180)
    assert process.returncode == 0 and "The executed notebook: executed.ipynb" in shown


def test_an_unknown_parameter_is_refused_before_a_kernel_starts(start, tmp_path):
    process = start("print('never')", "-p", "SEEDS", "3")
    shown, errors = process.communicate(timeout=180)
    assert process.returncode == 1
    assert "no such parameter: SEEDS; allowed: SEED, METHODS" in errors
    assert not shown and not (tmp_path / "executed.ipynb").exists()


def test_a_folder_in_place_of_the_output_is_refused_before_a_kernel_starts(start, tmp_path):
    shown, errors = start("print('never')", "--output", str(tmp_path)).communicate(timeout=180)
    assert not shown and f"--output is {tmp_path}, a folder; allowed: a file" in errors


def test_ctrl_c_waits_for_the_saving(start, tmp_path):
    process = start(SLOW)
    interrupt_at(process, tmp_path / "started")
    shown, errors = process.communicate(timeout=180)
    assert process.returncode == 1 and (tmp_path / "saved").exists()
    assert errors == "Stopped. KeyboardInterrupt: saved at iteration 7\n"
    assert "The executed notebook: executed.ipynb" in shown


def test_a_second_ctrl_c_ends_what_does_not_listen(start, tmp_path):
    process = start(DEAF)
    for name in ("started", "deaf"):
        interrupt_at(process, tmp_path / name)
    shown, errors = process.communicate(timeout=180)
    assert process.returncode == 1 and "Stopped. interrupted" in errors
    assert "The executed notebook: executed.ipynb" in shown
