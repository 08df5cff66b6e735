"""Execute the notebook alone in a fresh folder, then install what it made as a run that is shown.

python tools/publish.py [-p NAME VALUE]...   executes with these parameters, then installs
python tools/publish.py --trained DIR        takes over what is finished in DIR, a run's folder
python tools/publish.py --from DIR           installs an execution of the notebook left in DIR
python tools/publish.py --sweep FILE...      installs the results.json of runs of tools/sweep.py
python tools/publish.py --architectures DIR  installs what tools/architectures.py left in DIR

Without parameters it is the committed run, whose outputs the notebook holds. Another data set's or
profile's goes to its block in RESULTS.md, `run NAME`, whose marks must stand there before, and to
images/NAME. With `-p TRAIN False` the weights of such a run stay, and what is shown of their scores
and samples is made anew. A sweep's table goes to the block `sweep`, architectures to theirs.
"""

import argparse
import base64
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import torch
from notebook_cells import NOTEBOOK, SECTIONS, code_digest, code_versions, load_cells
from pages import markdown_table, replace_block
from PIL import Image, ImageSequence
from run_notebook import add_parameters, defaults, execute, read_parameters, set_parameters
from sweep import pool, write_json
from torch.nn.utils.parametrize import register_parametrization

ROOT = NOTEBOOK.parent
SHOWN, COMMITTED = "fashion-mnist", "quick"  # data set and profile of the committed run
KEYS = ("data set", "method", "settings", "seed")  # of a sweep's row
COLUMNS = ("Frechet distance", "KID x 1000", "precision", "recall", "coverage", "minutes")
INSTALLED = ("*.pt", "*.film", "*.json", "rmsprop/*.pt", "few_images/*.pt")
OTHERS = ("*.checkpoint-?.pt", "training.png", "*architectures.*")  # the last have their own way
ARCHITECTURES = {  # what tools/architectures.py leaves: caption of its figure
    "random_architectures": "C4: random architectures",
    "architectures": "C5: samples of each architecture's first seed, and its Inception score",
}
ELSEWHERE = ("*.pt", "results.json")  # of other data sets, whose films are large
FIGURES = "samples.png training-*.png epochs.png"
DRAWN = ("samples", "interpolation", "nearest_neighbours", "class_shares")  # of fresh samples


def results_table(results, columns=None):
    """The scores of results.json in these columns, or all, and a line on how they came about."""
    columns = list(columns or [*next(iter(results["scores"].values())), "minutes"])
    rows = []
    for name, scores in results["scores"].items():
        cells = {key: f"{value:.3f}" for key, value in scores.items()}
        cells["minutes"] = results["minutes"].get(name, "")
        rows.append([name, *(cells[column] for column in columns)])
    note = (
        f"{results['samples']:,} samples each against as many held-out images; accuracy of the "
        f"judge: {results['judge']}; trained on {'; '.join(results['trained on'])}; "
        f"evaluation seed {results['evaluation seed']}."
    )
    return f"{markdown_table(['method', *columns], rows)}\n\n{note}"


def claims_table(claims, whole=False):
    """The verdicts of claims.json; as a whole with what was measured and the checks that fail."""
    rows = []
    for name, claim in claims.items():
        failed = "<br>".join(check for check, holds in claim["checks"].items() if not holds)
        more = [claim["measured"], failed] if whole else []
        rows.append([name, claim["paper"], *more, claim["verdict"] or "not measured"])
    more = ["measured here", "fails"] if whole else []
    return markdown_table(["", "the paper", *more, "verdict"], rows)


def all_claims(claims):
    """Claims of the committed run, with what tools/architectures.py measured of two of them."""
    for name in ARCHITECTURES:
        path = shelf_of(SHOWN) / f"{name}.json"
        if path.exists():
            found = json_of(path.parent, name)
            claims = claims | {found["claim"]: claims[found["claim"]] | found}
    return claims


def place_of(parameters, name=None):
    """What a run with these parameters is called: '' if it is the committed one, else `name`.

    Without one it has its data set's or folder's, or on the committed run's images its profile's.
    Raises ValueError for one that RESULTS.md has no place for, or a committed one without training.
    """
    dataset, profile = parameters["DATASET"], parameters["PROFILE"]
    committed = (dataset, profile) == (SHOWN, COMMITTED)
    if committed and not parameters["TRAIN"]:
        raise ValueError("TRAIN is False; allowed: True, for the committed run is a whole one")
    usual = profile if dataset == SHOWN else Path(dataset.removeprefix("folder:")).name
    name = "" if committed else name or usual
    replace_block((ROOT / "RESULTS.md").read_text(), f"run {name}".strip(), "")
    return name


def make(folder, parameters, trained=None):
    """Run the notebook alone in `folder`, with the project's data if it has been fetched before."""
    if (ROOT / "data").exists():
        (folder / "data").symlink_to(ROOT / "data")
    taken = [trained, trained.parent / "judges"] if trained else []
    for path in filter(Path.exists, [ROOT / "saved_models/published", *taken]):
        shutil.copytree(path, folder / "saved_models" / path.name)
    notebook = nbformat.read(NOTEBOOK, 4)
    set_parameters(notebook, parameters)
    execute(notebook, folder)
    nbformat.write(notebook, folder / NOTEBOOK.name)


def executed_notebook(path):
    """The notebook as it is now, cleaned, with the outputs of its execution at `path`.

    Raises ValueError if the code has changed since; parameters have their defaults.
    """
    notebook, executed = nbformat.read(NOTEBOOK, 4), nbformat.read(path, 4)
    code = [[c for c in some.cells if c.cell_type == "code"] for some in (notebook, executed)]
    for cell, ran in zip(*code, strict=True):
        digests = {code_digest([cell]), code_digest([ran])}
        if len(digests) > 1 and "parameters" not in cell.metadata["tags"]:
            raise ValueError(f"{path}: since then the code has changed, here:\n{cell.source}")
        cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
    for cell in notebook.cells:
        for name in cell.metadata.keys() - {"tags", "cellView", "jupyter"}:
            del cell.metadata[name]
    kept = {name: executed.metadata[name] for name in ("kernelspec", "language_info")}
    notebook.metadata = nbformat.from_dict(kept | {"code_sha256": code_digest(notebook.cells)})
    return notebook


def is_installed(path):
    """Does a file of a run, or in images/, belong to what this script installs?"""
    return path.is_file() and not any(map(path.match, OTHERS))


def copy_new(places, folder, patterns):
    """Copy files to their {path: place}, into `folder` too, which keeps no others of `patterns`."""
    folder.mkdir(parents=True, exist_ok=True)
    old = {path for pattern in patterns for path in folder.glob(pattern)}
    for path in filter(is_installed, old):
        path.unlink()
    for path, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)


def shelf_of(dataset, name=""):
    """The folder of published weights of a run on `dataset` that is called `name`."""
    beside = f"-{name}" * bool(name and dataset == SHOWN)  # of the committed run, with its images
    return ROOT / "saved_models/published" / f"{dataset}{beside}"


def install_files(models, figures, kept, shown, shelf, name):
    """Put what is `kept` of a run's weights and `shown` of its figures where they are committed."""
    dataset = json_of(models, "results")["data set"]
    found = [path for pattern in kept for path in models.glob(pattern) if is_installed(path)]
    places = {path: shelf / path.relative_to(models) for path in found}
    judges = models.parent.glob(f"judges/{dataset}.pt")
    places |= {path: shelf.parent / "judges" / path.name for path in judges}
    copy_new(places, shelf, INSTALLED)
    found = [path for pattern in shown for path in figures.glob(pattern) if is_installed(path)]
    place = ROOT / "images" / name
    copy_new({path: place / path.name for path in found}, place, ["*.*"])


def shrink(path):
    """For a page of many: a palette for a large PNG; for a film 3/4 of its side and 40 colours."""
    bytes_now, film = path.stat().st_size, Image.open(path)
    if path.suffix == ".png" and bytes_now > 4e5:
        film.convert("RGB").quantize(256).save(path, optimize=True)
    if path.suffix == ".gif" and bytes_now > 4e6:
        size, frames, waits = [round(0.75 * side) for side in film.size], [], []
        for frame in ImageSequence.Iterator(film):
            waits.append(frame.info["duration"])
            small = frame.convert("RGB").resize(size, Image.Resampling.LANCZOS)
            frames.append(small.quantize(40, dither=Image.Dither.NONE))
        how = {"save_all": True, "append_images": frames[1:], "loop": 0, "optimize": True}
        frames[0].save(path, duration=waits, **how)


def lighten(path, drawn):
    """Store a weights file's generator in half precision, or not at all if it is not `drawn` from.

    In half precision it draws the same pictures.
    """
    saved = torch.load(path, weights_only=True)
    if "average" not in saved:  # results of an experiment
        return
    parts = saved.pop("average").items()
    if drawn:
        saved["average"] = {name: p.half() if p.is_floating_point() else p for name, p in parts}
    torch.save(saved, path)


class Widen(torch.nn.Module):
    """Numbers of any precision as float32."""

    def forward(self, numbers):
        return numbers.float()


def keep_in_half(network):
    """Let a network keep its numbers in half precision; it computes in float32 all the same."""
    for module in list(network.half().modules()):
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name in (name for name, numbers in own if numbers.is_floating_point()):
            register_parametrization(module, name, Widen(), unsafe=True)  # changes the type


def export_generators(folder, parameters):
    """Beside each METHOD.pt in `folder` write METHOD.generator.pt, which needs PyTorch alone.

    TorchScript, since what torch.export writes is not read by older versions: latents float
    [n, latent_size] -> images float32 [n, C, side, side] in [-1, 1]. It keeps its numbers in half
    precision, as METHOD.pt does.
    """
    given = {name: parameters[name] for name in ("DATASET", "IMAGE_SIZE")}
    with tempfile.TemporaryDirectory() as away:
        cells = load_cells(DEVICE="cpu", MODELS_DIR=away, IMAGES_DIR=away, **given)
    shape = (cells.source.channels, cells.source.side, cells.source.side)
    for method in filter(lambda name: (folder / f"{name}.pt").exists(), cells.PAPER):
        generator, saved = cells.load_generator(folder / f"{method}.pt", shape, cells.device)
        z = torch.randn(2, saved["settings"]["latent_size"])
        keep_in_half(generator)
        generator.requires_grad_(False)
        torch.jit.trace(generator, z).save(folder / f"{method}.generator.pt")


def run_page(text, name, results, claims):
    """RESULTS.md's part on a run, whose figures are in images/NAME; `text` holds the captions."""
    figures = sorted(path.name for path in filter(is_installed, (ROOT / "images" / name).iterdir()))
    captions = {name: said for said, name in re.findall(r"!\[(.+)\]\(images/([^/)]+)\)", text)}
    order = [*filter(figures.__contains__, captions), *(n for n in figures if n not in captions)]
    shown = []
    for figure in order:
        said = captions.get(figure, figure)
        shown.append(f"{said}:\n\n![{said}](images/{Path(name, figure)})")
    tables = [results_table(results)] + [claims_table(claims, whole=True)] * bool(claims)
    return "\n\n".join([f"{results['made by']} Torch {results['torch']}.", *tables, *shown])


def json_of(models, name):
    """What results.json or claims.json of a run's folder holds."""
    return json.loads((models / f"{name}.json").read_text("utf-8"))


def install_committed(notebook, results, claims):
    """Write the notebook with its outputs, and what it found into its opening and the README."""
    opening = notebook.cells[0]
    table = results_table(results, COLUMNS)
    shown = f"{table}\n\n![samples](attachment:samples.png)"
    opening.source = replace_block(opening.source, "results", shown)
    nbformat.write(notebook, NOTEBOOK)
    attach("samples.png", ROOT / "images")
    readme = ROOT / "README.md"
    readme.write_text(replace_block(readme.read_text(), "results", table))
    install_verdicts(claims)


def attach(name, folder):
    """Put a picture into the notebook's cell that shows it as an attachment."""
    notebook = nbformat.read(NOTEBOOK, 4)
    (cell,) = [cell for cell in notebook.cells if f"(attachment:{name})" in cell.source]
    encoded = base64.b64encode((folder / name).read_bytes()).decode()
    cell["attachments"] = {name: {"image/png": encoded}}
    nbformat.write(notebook, NOTEBOOK)


def install_verdicts(claims):
    """Write the verdicts on all claims into the README, from those of the committed run."""
    readme = ROOT / "README.md"
    table = claims_table(all_claims(claims))
    readme.write_text(replace_block(readme.read_text(), "claims", table))


def score_anew(results, figures, shelf, name):
    """Install scores and samples of published weights; `results` then say who trained these too.

    Raises ValueError if these weights are not what this run's code and settings train.
    """
    path = shelf / "results.json"
    before = json.loads(path.read_text("utf-8"))
    for what in ("training code", "settings"):
        if results[what] != before[what]:
            raise ValueError(f"{path}: the {what} of these weights is not that of this run")
    trained = before["made by"].partition(" Scored anew")[0]
    results["made by"] = f"{trained} Scored anew by {results['made by']}"
    path.write_text(json.dumps(results, indent=1), "utf-8")
    places = [ROOT / "images" / name / f"{figure}.png" for figure in DRAWN]
    for place in filter(Path.exists, places):
        shutil.copy(figures / place.name, place)
        shrink(place)


def install(folder, made, name=None, shown=FIGURES):
    """Install the execution in `folder`; `made` says where it came from. Raises ValueError.

    A run of another data set is called `name`, and of its figures those `shown` are installed.
    """
    notebook = executed_notebook(folder / NOTEBOOK.name)
    parameters = defaults(nbformat.read(folder / NOTEBOOK.name, 4))
    name, page = place_of(parameters, name), ROOT / "RESULTS.md"
    runs = [path for path in (folder / "images").iterdir() if path.is_dir()]
    if len(runs) != 1:
        raise ValueError(f"{folder} holds {len(runs)} runs; allowed: 1")
    models = folder / "saved_models" / runs[0].name
    results, claims = json_of(models, "results"), {}
    if not results["settings"]:
        raise ValueError(f"{folder} holds scores of no method; allowed: one or more")
    dataset = next(iter(results["settings"].values()))["dataset"]
    results |= {"data set": dataset, "made by": made} | code_versions(notebook.cells)
    (models / "results.json").write_text(json.dumps(results, indent=1), "utf-8")
    shelf = shelf_of(dataset, name)
    if not parameters["TRAIN"]:
        score_anew(results, runs[0], shelf, name)
    elif not name:
        claims = json_of(models, "claims")
        install_files(models, runs[0], INSTALLED, ["*.*"], shelf, "")
        install_committed(notebook, results, claims)
    else:
        install_files(models, runs[0], ELSEWHERE, shown.split(), shelf, name)
        for path in (ROOT / "images" / name).iterdir():
            shrink(path)
    if parameters["TRAIN"]:
        for path in shelf.rglob("*.pt"):
            lighten(path, drawn=path.parent == shelf)
        export_generators(shelf, parameters)
    text = page.read_text()
    shown = run_page(text, name, results, claims)
    page.write_text(replace_block(text, f"run {name}".strip(), shown))


def read_current(path):
    """What a JSON file of a sweep or of architectures holds. Raises ValueError for other code."""
    found, code = json_of(path.parent, path.stem), code_versions(nbformat.read(NOTEBOOK, 4).cells)
    if not code.items() <= found.items():
        raise ValueError(f"{path}: since then the code has changed")
    return found


def install_architectures(models, made):
    """Install what tools/architectures.py left in a run's folder; `made` says how it came about.

    Raises ValueError if there is nothing, or the code has changed since.
    """
    found = {name: models / f"{name}.json" for name in ARCHITECTURES}
    found = {name: read_current(path) for name, path in found.items() if path.exists()}
    if not found:
        raise ValueError(f"{models} holds no {' nor '.join(ARCHITECTURES)}; allowed: one or both")
    place, page, shown = shelf_of(SHOWN), ROOT / "RESULTS.md", []
    for name, kept in found.items():
        write_json(place / f"{name}.json", kept | {"made by": made})
        shutil.copy(models / f"{name}.pt", place)  # with it the same can be extended
        shutil.copy(models.parents[1] / "images" / models.name / f"{name}.png", ROOT / "images")
    if "architectures" in found:
        attach("architectures.png", ROOT / "images")
    claims = json_of(place, "claims")
    install_verdicts(claims)
    for claim in filter(lambda claim: "table" in claim, all_claims(claims).values()):
        made = f"{claim['made by']} Torch {claim['torch']}; {'; '.join(claim['trained on'])}."
        picture = f"![{ARCHITECTURES[claim['name']]}](images/{claim['name']}.png)"
        table = claims_table({claim["claim"]: claim}, whole=True)
        shown += [made, table, claim["table"], picture]
    page.write_text(replace_block(page.read_text(), "architectures", "\n\n".join(shown)))


def install_sweep(paths, made):
    """Install the results.json of sweeps as one table; `made` says where they came from.

    Raises ValueError if the code has changed since.
    """
    found, page = [read_current(path) for path in paths], ROOT / "RESULTS.md"
    rows = {tuple(row[key] for key in KEYS): row for some in found for row in some["rows"]}
    rows = list(rows.values())  # each once
    releases = r"\d+\.[\d.]*\d"  # without the build, and of a file that has pooled several
    torches = sorted({name for some in found for name in re.findall(releases, some["torch"])})
    kept = {kind: found[0][kind] for kind in SECTIONS}
    kept |= {"torch": " and ".join(torches), "made by": made}
    kept |= {"table": pool(rows), "rows": rows}
    shown = f"{made} Torch {kept['torch']}.\n\n{kept['table']}"
    page.write_text(replace_block(page.read_text(), "sweep", shown))
    write_json(ROOT / "saved_models/published/sweep.json", kept)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_parameters(parser)
    parser.add_argument("--trained", type=Path)
    parser.add_argument("--from", dest="folder", type=Path)
    parser.add_argument("--sweep", type=Path, nargs="+")
    parser.add_argument("--architectures", type=Path)
    parser.add_argument("--command", help="what trained, if not this")
    parser.add_argument("--commit", help="of the code that trained, if not HEAD")
    parser.add_argument("--name", help="of another run, if not its data set's, folder's, profile's")
    parser.add_argument("--figures", default=FIGURES, help="of such a run that are shown")
    chosen = parser.parse_args()
    git = ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"]
    commit = chosen.commit or subprocess.run(git, capture_output=True, text=True).stdout.strip()
    tool = "sweep" if chosen.sweep else "architectures" if chosen.architectures else "publish"
    command = " ".join([f"make {tool}", *map("=".join, chosen.given)])
    if chosen.name or chosen.figures != FIGURES:  # which make has no words for
        command = shlex.join(["tools/publish.py", *sys.argv[1:]])
    made = f"`{chosen.command or command}`, commit {commit}."
    try:
        if chosen.sweep:
            return install_sweep(chosen.sweep, made)
        if chosen.architectures:
            return install_architectures(chosen.architectures.resolve(), made)
        folder = chosen.folder or Path(tempfile.mkdtemp(prefix="wgan_gp-"))
        if not chosen.folder:
            notebook = nbformat.read(NOTEBOOK, 4)
            parameters = defaults(notebook) | {"DATASET": SHOWN, "PROFILE": COMMITTED}
            parameters |= read_parameters(notebook, chosen.given)
            kind, _, place = parameters["DATASET"].partition(":")
            if place:  # as it is seen from here, not from where the notebook will run
                parameters["DATASET"] = f"{kind}:{Path(place).expanduser().resolve()}"
            if chosen.trained and not chosen.trained.is_dir():
                raise ValueError(f"--trained is {chosen.trained}; allowed: the folder of a run")
            place_of(parameters, chosen.name)  # now, not after hours
            print(f"Executing in {folder}", flush=True)
            make(folder, parameters, chosen.trained)
        print(f"Installing {folder}", flush=True)
        install(folder, made, chosen.name, chosen.figures)
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
