"""The notebook as a user of JupyterLab sees it, in a headless Chromium: Run All, new samples, the Stop button."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from conftest import DATA_DIR, METHODS
from notebook_cells import NOTEBOOK
from run import set_parameters

WHY = "needs Chromium and playwright: make browser"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if not CHROMIUM:
    pytest.skip(WHY, allow_module_level=True)
browsers = pytest.importorskip("playwright.sync_api", reason=WHY)
browsers.expect.set_options(timeout=60_000)
expect = browsers.expect
LAB_SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page, on screen or not
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


def smoke_notebook():
    """The notebook at smoke size without outputs; its last cell prints which Python runs it."""
    notebook = nbformat.read(NOTEBOOK, 4)
    for code in (c for c in notebook.cells if c.cell_type == "code"):
        code.outputs, code.execution_count = [], None
    set_parameters(notebook, {"PROFILE": "smoke", "DEVICE": "cpu", "DATA_DIR": str(DATA_DIR.resolve())})
    notebook.cells.append(nbformat.v4.new_code_cell("import sys\nsys.executable"))
    return notebook


def place(notebook, text):
    """The index of the first code cell that contains `text`."""
    return next(i for i, c in enumerate(notebook.cells) if c.cell_type == "code" and text in c.source)


@contextmanager
def jupyterlab(browser, notebook, folder):
    """Yield the page of a JupyterLab with settings of its own and `notebook` open, alone in `folder`/work."""
    (folder / "work").mkdir()
    nbformat.write(notebook, folder / "work" / NOTEBOOK.name)
    for name, values in LAB_SETTINGS.items():
        path = folder / "config" / "lab" / "user-settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON", "MPLBACKEND"))}
    own = {f"JUPYTER_{kind.upper()}_DIR": str(folder / kind) for kind in ("config", "data", "runtime")}
    own["IPYTHONDIR"] = str(folder / "ipython")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder / "work", env=kept | own, stdout=log, stderr=log)
    try:
        deadline, found = time.monotonic() + 60, []
        while not found:  # the server writes down on which free port it listens, and its token
            assert server.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.1)
            texts = [path.read_text() for path in (folder / "runtime").glob("jpserver-*.json")]
            found = [json.loads(text) for text in texts if text.endswith("}")]
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        page.goto(f"{found[0]['url']}lab/tree/{NOTEBOOK.name}?token={found[0]['token']}")
        expect(page.locator(".jp-Notebook .jp-Cell")).to_have_count(len(notebook.cells))
        expect(page.locator(".jp-Spinner:visible")).to_have_count(0)
        expect(page.locator(".jp-Notebook-ExecutionIndicator")).to_have_attribute("data-status", "idle")
        yield page
        page.close()
    finally:
        server.terminate()  # and with it the kernel
        server.wait(60)


def run_all(page):
    page.locator(".lm-MenuBar-itemLabel").get_by_text("Run", exact=True).click()
    page.locator('.lm-Menu li[data-command="runmenu:run-all"]').click()


def cell(page, index):
    return page.locator(".jp-Notebook .jp-Cell").nth(index)


def run_cell(page, index):
    """Select a cell and run it, without waiting for its end."""
    cell(page, index).locator(".jp-InputPrompt").click()
    page.keyboard.press("Control+Enter")


def red(place, error):
    """The outputs of `place` on red ground: the errors, or everything else."""
    text = {"has_text" if error else "has_not_text": "Traceback (most recent call last)"}
    return place.locator('[data-mime-type$=".stderr"]').filter(**text)


def wait_number(locator, pattern, seconds=60):
    """Wait until the text of `locator` has the pattern; return the number in it."""
    expect(locator).to_have_text(re.compile(pattern), timeout=1000 * seconds)
    return int(re.search(pattern, locator.text_content())[1])


@pytest.fixture(scope="module")
def shoot(tmp_path_factory):
    """shoot(page, name, index=None) takes a picture of the window, with the cell `index` at its top."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)

    def take(page, name, index=None):
        if index is not None:
            cell(page, index).evaluate("cell => cell.scrollIntoView()")
        page.screenshot(path=folder / f"{name}.png")

    return take


@pytest.fixture(scope="module")
def browser():
    with browsers.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # root needs that
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def ran(browser, tmp_path_factory, fashion_mnist, shoot):
    """(notebook, page, folder) after Run All has come to the end or to an error."""
    notebook, folder = smoke_notebook(), tmp_path_factory.mktemp("lab")
    with jupyterlab(browser, notebook, folder) as page:
        shoot(page, "opened")
        run_all(page)
        end = cell(page, len(notebook.cells) - 1).locator(".jp-OutputArea-output").or_(red(page, error=True))
        end.first.wait_for(timeout=300_000)
        for name in ("train(plan()", '"samples")', "results.md", '"quality")', '"few_images")', "claims.md"):
            shoot(page, re.sub(r"\W+", "-", name).strip("-"), place(notebook, name))
        yield notebook, page, folder / "work"


def test_run_all(ran):
    notebook, page, work = ran
    assert red(page, error=True).all_text_contents() == []
    prompts = page.locator(".jp-CodeCell .jp-InputPrompt").all_text_contents()
    assert prompts == [f"[{i}]:" for i in range(1, 1 + sum(c.cell_type == "code" for c in notebook.cells))]
    expect(cell(page, len(notebook.cells) - 1).locator(".jp-OutputArea-output")).to_have_text(f"'{sys.executable}'")
    claims = [f"C{i}" for i in (1, 2, 3, 6, 7, 8)]
    for name, rows in {"results": ["real training images", *METHODS], "claims": claims}.items():
        table = cell(page, place(notebook, f"{name}.md")).locator("table")
        assert table.locator("tbody td:first-child").all_text_contents() == rows
    figures = {path.stem for path in work.glob("images/*/*.png")}
    assert {f"losses-{m}" for m in METHODS} | {"samples", "quality", "value_surfaces"} <= figures
    assert page.locator(".jp-OutputArea-output img").count() == len(figures)
    assert page.locator(".jp-Notebook img").evaluate_all("all => all.every(img => img.complete && img.naturalWidth)")
    assert page.locator("mjx-container").count() > 50 and page.locator("mjx-merror").count() == 0


def test_progress_bars(ran):
    """On red ground there are bars alone, each a line, at its end."""
    notebook, page, _ = ran
    lines = red(page, error=False).all_text_contents()
    ended = r"(\d trainings|\S+): 100%\|█+\| (\d+)/\2 \[[^\n\r]*\]\n?"
    assert [line for line in lines if not re.fullmatch(ended, line)] == []
    training = cell(page, place(notebook, "train(plan()"))
    expect(red(training, error=False)).to_contain_text(re.compile(r"^6 trainings: 100%.* 60/60 "))
    texts = page.locator(".jp-OutputArea-output").all_text_contents()
    assert [text for text in texts if re.search(r"[\x1b\r\x08]|\[\d+m|\[A\b", text)] == []


def test_links_of_the_contents(ran):
    """They lead to the headings with their numbers."""
    _, page, _ = ran
    contents = cell(page, 0).locator('p:has-text("Contents.") a')
    assert contents.count() >= 10
    for link in contents.all():
        link.click()
        named = re.compile(rf"^{link.text_content().split()[0]}\b")
        expect(page.locator(".jp-Notebook h2").filter(has_text=named)).to_be_in_viewport(timeout=10_000)


def test_samples_again(ran):
    """Drawing samples again, without training, shows and scores new ones."""
    notebook, page, _ = ran
    drawing, showing, scoring = (place(notebook, text) for text in ("evaluation_seed =", '"samples")', "results.md"))
    picture, table = cell(page, showing).locator(".jp-OutputArea-output img"), cell(page, scoring).locator("tbody")
    before = picture.get_attribute("src"), table.text_content()
    for index in (drawing, showing, scoring):
        run_cell(page, index)
    expect(picture).not_to_have_attribute("src", before[0])
    expect(table).not_to_have_text(before[1])
    assert red(page, error=True).count() == 0


def test_stop_button(browser, tmp_path, fashion_mnist, shoot):
    """Stop saves and says where; the same cell run again goes on from there."""
    notebook = smoke_notebook()
    training = place(notebook, "train(plan()") + 1
    longer = "settings, methods = {m: replace(s, iterations=100_000) for m, s in settings.items()}, ['DCGAN']"
    notebook.cells.insert(place(notebook, "settings = {method: ") + 1, nbformat.v4.new_code_cell(longer))
    del notebook.cells[training + 1 :]
    with jupyterlab(browser, notebook, tmp_path) as page:
        output = cell(page, training).locator(".jp-OutputArea")

        def stop(before):
            at = wait_number(red(output, error=False), rf"(?!{before}/)\b(\d+)/100000", seconds=120)
            wait_number(red(output, error=False), rf"(?!{at}/)\b(\d+)/100000")
            page.locator(".jp-NotebookPanel-toolbar [data-jp-item-name=interrupt]").click()
            said = r"KeyboardInterrupt: saved at iteration (\d+) \(DCGAN\); run again with START='resume' to go on"
            return wait_number(red(output, error=True), said)

        run_all(page)
        first = stop(0)
        shoot(page, "stopped")
        run_cell(page, training)
        assert wait_number(output, r"DCGAN: resuming at iteration (\d+) of 100000") == first > 0
        assert stop(first) > first
        shoot(page, "stopped-again")
