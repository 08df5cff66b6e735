"""The notebook as a user of JupyterLab sees it, in a headless Chromium: Run All, fresh samples, the
Stop button.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import nbformat
import pytest
from conftest import DATA_DIR, METHODS
from notebook_cells import NOTEBOOK
from run_notebook import set_parameters

WHY = "needs Chromium and playwright: make browser"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, PROGRAMS)), None)
if not CHROMIUM:
    pytest.skip(WHY, allow_module_level=True)
browsers = pytest.importorskip("playwright.sync_api", reason=WHY)
browsers.expect.set_options(timeout=60_000)
expect = browsers.expect
LAB_SETTINGS = {
    # every cell is in the page, on screen or not
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
TRAIN, SCORES = "def plan(", "def show_scores("
FEW = ("few_images/WGAN", "few_images/WGAN-GP")
ENDED = r"^[^:]+: 100%\|█+\| (\d+)/\1 \["


def smoke_notebook():
    """The notebook at smoke size without outputs; its last cell prints which Python runs it."""
    notebook = nbformat.read(NOTEBOOK, 4)
    for code in (c for c in notebook.cells if c.cell_type == "code"):
        code.outputs, code.execution_count = [], None
    given = {"PROFILE": "smoke", "DEVICE": "cpu", "DATA_DIR": str(DATA_DIR.resolve())}
    set_parameters(notebook, given)
    notebook.cells.append(nbformat.v4.new_code_cell("import sys\nsys.executable"))
    return notebook


def place(notebook, text):
    """The index of the first code cell that contains `text`."""
    cells = enumerate(notebook.cells)
    return next(i for i, cell in cells if cell.cell_type == "code" and text in cell.source)


@contextmanager
def jupyterlab(browser, notebook, folder):
    """Yield the page of a JupyterLab with settings of its own and `notebook` open in `folder`."""
    (folder / "work").mkdir()
    nbformat.write(notebook, folder / "work" / NOTEBOOK.name)
    for name, values in LAB_SETTINGS.items():
        place = folder / "config" / "lab" / "user-settings" / "@jupyterlab"
        path = place / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    foreign = ("JUPYTER", "IPYTHON", "MPLBACKEND")
    own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    kinds = ("config", "data", "runtime")
    own |= {f"JUPYTER_{kind.upper()}_DIR": str(folder / kind) for kind in kinds}
    own["IPYTHONDIR"] = str(folder / "ipython")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    # else a page that a busy machine holds up is cut off from its kernel, and never told the end
    command += ["--ServerApp.tornado_settings={'ws_ping_interval': 0}"]
    with (folder / "server.log").open("w") as log:
        pipes = {"cwd": folder / "work", "env": own, "stdout": log, "stderr": log}
        server = subprocess.Popen([*command, "--ip=127.0.0.1"], **pipes)
    try:
        deadline, found = time.monotonic() + 180, []
        while not found:  # the server writes down on which free port it listens, and its token
            log = (folder / "server.log").read_text()
            assert server.poll() is None and time.monotonic() < deadline, log
            time.sleep(0.1)
            texts = [path.read_text() for path in (folder / "runtime").glob("jpserver-*.json")]
            found = [json.loads(text) for text in texts if text.endswith("}")]
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        page.set_default_timeout(120_000)
        # Asked which kernel is wanted, which a busy machine may ask, it takes the one proposed.
        page.add_locator_handler(page.locator(".jp-Dialog"), accept)
        address = f"{found[0]['url']}lab/tree/{NOTEBOOK.name}"
        page.goto(f"{address}?token={found[0]['token']}")
        expect(page.locator(".jp-Notebook .jp-Cell")).to_have_count(len(notebook.cells))
        expect(page.locator(".jp-Spinner:visible")).to_have_count(0)
        indicator = page.locator(".jp-Notebook-ExecutionIndicator")
        expect(indicator).to_have_attribute("data-status", "idle")
        yield page
        page.close()
    finally:
        server.terminate()  # and with it the kernel
        server.wait(60)


def accept(dialog):
    dialog.locator(".jp-mod-accept").click()


def run_all(page):
    """Choose it from the menu, which a notebook that is still opening may close again."""
    menu = page.locator(".lm-MenuBar-itemLabel").get_by_text("Run", exact=True)
    for _ in range(6):
        menu.click()
        with suppress(browsers.TimeoutError):
            return page.locator('.lm-Menu li[data-command="runmenu:run-all"]').click(timeout=20_000)
    raise AssertionError("the menu does not stay open")


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
    return int(re.search(pattern, locator.text_content())[1].replace(",", ""))


@contextmanager
def explained(page, log):
    """To a wait in vain add the number of each code cell, the kernel's state, the server's log."""
    try:
        yield
    except browsers.TimeoutError as error:
        shown = [f"{i}: {one.text_content()}" for i, one in enumerate(code_prompts(page).all())]
        status = page.locator(".jp-Notebook-ExecutionIndicator").get_attribute("data-status")
        raise AssertionError(f"kernel {status}; {shown}\n{log.read_text()[-2000:]}") from error


def code_prompts(page):
    return page.locator(".jp-CodeCell .jp-InputPrompt")


@pytest.fixture(scope="module")
def browser():
    with browsers.sync_playwright() as playwright:
        options = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}  # root needs that
        browser = playwright.chromium.launch(**options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def ran(browser, tmp_path_factory, fashion_mnist):
    """(notebook, page, folder) after Run All has come to the end or to an error."""
    notebook, folder = smoke_notebook(), tmp_path_factory.mktemp("lab")
    with jupyterlab(browser, notebook, folder) as page:
        run_all(page)
        last = cell(page, len(notebook.cells) - 1).locator(".jp-OutputArea-output")
        with explained(page, folder / "server.log"):
            last.or_(red(page, error=True)).first.wait_for(timeout=600_000)
        cell(page, place(notebook, TRAIN)).locator("pre").last.scroll_into_view_if_needed()
        page.screenshot(path=folder / "after a training.png")
        yield notebook, page, folder / "work"


def test_run_all_shows_every_table_and_figure_and_no_error(ran):
    notebook, page, work = ran
    assert red(page, error=True).all_text_contents() == []
    code = [c for c in notebook.cells if c.cell_type == "code"]
    folded = ["machinery" in c.metadata.get("tags", []) for c in code]  # these show no number
    numbers = ["" if folded[i] else f"[{i + 1}]:" for i in range(len(code))]
    expect(code_prompts(page)).to_have_text(numbers)
    last = cell(page, len(notebook.cells) - 1).locator(".jp-OutputArea-output")
    expect(last).to_have_text(f"'{sys.executable}'")
    first_columns = {SCORES: ["real training images", *METHODS]}
    first_columns["def show_claims("] = [f"C{i}" for i in range(1, 9)]
    for text, expected in first_columns.items():
        found = cell(page, place(notebook, text)).locator("table tbody td:first-child")
        expect(found).to_have_text(expected)
    figures = {path.stem for path in work.glob("images/*/*.png")}
    assert {"training", "samples", "quality", *(f"training-{m}" for m in METHODS)} <= figures
    assert page.locator(".jp-OutputArea-output img").count() == len(figures)
    whole = "all => all.every(image => image.complete && image.naturalWidth)"
    assert page.locator(".jp-Notebook img").evaluate_all(whole)
    assert page.locator("mjx-container").count() > 50
    assert page.locator("mjx-merror").count() == 0


def test_machinery_is_folded_and_red_ground_has_bars_alone(ran):
    """Each bar is a line, at its end; there is a line for each training, and one live figure."""
    notebook, page, _ = ran
    for i, one in enumerate(notebook.cells):
        hidden = cell(page, i).locator(".jp-InputPlaceholder").count() > 0
        assert hidden == ("machinery" in one.metadata.get("tags", [])), one.source
    lines = [line for line in red(page, error=False).all_text_contents() if line.strip()]
    ended = ENDED[1:] + r"[^\n\r]*\]\n?"
    assert lines and [line for line in lines if not re.fullmatch(ended, line)] == []
    training = cell(page, place(notebook, TRAIN))
    assert training.locator(".jp-OutputArea-output img").count() == 1
    lines = [text.splitlines() for text in training.locator("pre").all_text_contents()]
    ended = [one.partition(":")[0] for some in lines for one in some if re.search(ENDED, one)]
    assert sorted(ended) == sorted([*METHODS, "rmsprop/WGAN-GP", *FEW])


def test_samples_are_drawn_again_and_the_contents_lead_to_their_sections(ran):
    """Drawing samples again, without training, shows and scores new ones."""
    notebook, page, _ = ran
    texts = ("evaluation_seed =", "def show_samples(", SCORES)
    drawing, showing, scoring = (place(notebook, text) for text in texts)
    picture = cell(page, showing).locator(".jp-OutputArea-output img")
    table = cell(page, scoring).locator("tbody")
    before = picture.get_attribute("src"), table.text_content()
    for index in (drawing, showing, scoring):
        run_cell(page, index)
    expect(picture).not_to_have_attribute("src", before[0])
    expect(table).not_to_have_text(before[1])
    assert red(page, error=True).count() == 0
    for link in cell(page, 0).locator('p:has-text("Contents.") a').all():
        link.click()
        named = re.compile(rf"^{link.text_content().split()[0]}\b")
        heading = page.locator(".jp-Notebook h2").filter(has_text=named)
        expect(heading).to_be_in_viewport()


def test_the_stop_button_saves_and_a_training_goes_on_from_there(browser, tmp_path, fashion_mnist):
    """Stop saves and says where; the same cell run again goes on from there."""
    notebook = smoke_notebook()
    longer = (
        "methods = ['DCGAN']\nsettings['DCGAN'] = replace(settings['DCGAN'], iterations=100_000)"
    )
    training = place(notebook, TRAIN)
    notebook.cells.insert(training, nbformat.v4.new_code_cell(longer))
    del notebook.cells[training + 2 :]
    with jupyterlab(browser, notebook, tmp_path) as page:
        output = cell(page, training + 1).locator(".jp-OutputArea")

        def stop():
            line = output.locator("pre").filter(has_text=re.compile(r"^DCGAN:.*(it/s|s/it)"))
            at = wait_number(line, moved := r"\b([1-9]\d*)/100000 \[", seconds=120)
            wait_number(line, rf"(?!\b{at}/){moved}")
            line.scroll_into_view_if_needed()
            page.screenshot(path=tmp_path / "during a training.png")
            page.locator(".jp-NotebookPanel-toolbar [data-jp-item-name=interrupt]").click()
            said = r"KeyboardInterrupt: saved at iteration (\d+) \(\S+DCGAN\); run again with "
            return wait_number(red(output, error=True), said)

        run_all(page)
        first = stop()
        run_cell(page, training + 1)
        resumed = wait_number(output, r"DCGAN: at iteration ([\d,]+) of 100,000")
        assert resumed == first > 0 and stop() > first
