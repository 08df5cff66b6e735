"""Every setting is refused, early and by name, when it is unknown, of the wrong type or range."""

import dataclasses
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from conftest import METHODS, ROOT
from hypothesis import given, strategies as st
from notebook_cells import NOTEBOOK, load_cells
from run_notebook import defaults

WRONG_TYPE = {int: 1.5, float: "fast", str: 3, bool: 1}
PARAMETERS = defaults(nbformat.read(NOTEBOOK, 4))


@pytest.fixture
def folders(tmp_path):
    return {name: str(tmp_path / name) for name in ("MODELS_DIR", "IMAGES_DIR")}


def test_every_setting_refuses_wrong_types_and_values_out_of_range(cells):
    for f in dataclasses.fields(cells.Settings):
        with pytest.raises(TypeError, match=rf"^{f.name} is .*allowed: {f.type.__name__}"):
            cells.Settings(**{f.name: WRONG_TYPE[f.type]})
        allowed = f.metadata["allowed"]
        wrong = [allowed[0] - 1, allowed[1] * 2] if f.type in (int, float) else []
        wrong += ["something else"] if f.type is str and allowed else []
        wrong += [float("nan"), float("inf")] if f.type is float else []
        assert wrong or f.type is bool or f.name == "dataset", f"{f.name} accepts anything"
        for value in wrong:
            with pytest.raises(ValueError, match=rf"^{f.name} is .*allowed: "):
                cells.Settings(**{f.name: value})


NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans())
VALUES = st.one_of(NUMBERS, st.text(max_size=5), st.none(), st.lists(st.integers()))


@given(data=st.data())
def test_any_value_is_taken_or_refused_by_name(cells, data):
    """A value of its type within its limits, or one error with name, value and what is allowed."""
    f = data.draw(st.sampled_from(dataclasses.fields(cells.Settings)))
    limits, number = f.metadata["allowed"], f.type in (int, float)
    near = [limits[0] - 1, limits[1] + 1, *map(f.type, limits)] if number else []
    value = data.draw(st.one_of(VALUES, st.sampled_from([*near, *limits, f.default])))
    allowed = type(value) is f.type or (f.type is float and type(value) is int)
    if allowed and limits:
        allowed = limits[0] <= value <= limits[1] if number else value in limits
    try:
        found = getattr(cells.Settings(**{f.name: value}), f.name)
        assert allowed and found == value and type(found) is f.type
    except (TypeError, ValueError) as error:
        if allowed:  # but not together with the other settings' defaults
            assert f.name in ("clip", "critic_batch_norm")
            assert str(error).startswith("penalty_weight is 10.0; allowed: 0 with")
        else:
            assert str(error).startswith(f"{f.name} is {value!r}") and "allowed: " in str(error)


def test_settings_cannot_be_misspelt_changed_or_combined_against_the_paper(cells):
    with pytest.raises(TypeError, match="learning_rat"):
        cells.profile_settings("smoke", "WGAN-GP", learning_rat=1e-3)
    with pytest.raises(AttributeError):
        cells.PAPER["WGAN"].clip = 1.0
    for changes in ({"critic_batch_norm": True}, {"clip": 0.01}):
        with pytest.raises(ValueError, match=r"penalty_weight is 10\.0; allowed: 0"):
            cells.profile_settings("paper", "WGAN-GP", **changes)


COLUMNS = ("optimizer", "learning_rate", "beta1", "beta2", "n_critic", "penalty_weight", "clip")
OF_THE_PAPER = {
    "DCGAN": ("adam", 2e-4, 0.5, 0.999, 1, 0, 0, "non-saturating", True),
    "WGAN": ("rmsprop", 5e-5, 0, 0.9, 5, 0, 0.01, "wasserstein", True),
    "WGAN-GP": ("adam", 1e-4, 0, 0.9, 5, 10, 0, "wasserstein", False),
}


def test_profiles_are_complete_and_the_last_is_the_papers(cells):
    assert list(cells.PROFILES) == ["smoke", "quick", "standard", "paper"]
    for profile in cells.PROFILES:
        settings = [cells.profile_settings(profile, method) for method in METHODS]
        assert [chosen.method for chosen in settings] == list(METHODS)
        assert len({(s.iterations, s.width, s.batch_size, s.record_every) for s in settings}) == 1
    for s in settings:
        found = [getattr(s, name) for name in (*COLUMNS, "objective", "critic_batch_norm")]
        assert found == list(OF_THE_PAPER[s.method])
        assert (s.iterations, s.batch_size, s.linear_decay) == (200_000, 64, 0)


WRONG = {"lambda": 5}, {"seed": 5}, {"n_critic": 0}, {"n_critic": "5"}
REFUSED = {
    "DATASET": ("mnisst", "folder:", "folder:/no/such/folder", 3),
    "IMAGE_SIZE": (15, 257, "64"),
    "METHODS": ("WGAN, LSGAN", "", " , ", ["WGAN"]),
    "PROFILE": ("slow", None),
    "SEED": (-1, "one", True),
    "TRAIN": (1, "no"),
    "START": ("again", False),
    "DEVICE": ("tpu",),
    "PRECISION": ("float16",),
    "EVALUATION_SEED": (0.5, -3, "", False),
    "TEST_CLAIMS": ("no", 0),
    "SAVE_SAMPLES": (-1, "ten", True),
    "CHANGES": ("n_critic 5", {"GAN": {}}, {"WGAN": 5}, *({"WGAN-GP": wrong} for wrong in WRONG)),
    "DATA_DIR": (None,),
    "MODELS_DIR": (7, "/dev/null"),
    "IMAGES_DIR": ([], "/proc/nowhere"),
}
CASES = [(name, value) for name, values in REFUSED.items() for value in values]


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{n}={v}" for n, v in CASES])
def test_parameters_are_refused_before_any_work(tmp_path, folders, name, value):
    with pytest.raises((TypeError, ValueError), match="allowed: ") as refused:
        load_cells(**folders | {name: value})
    assert any(word in str(refused.value) for word in (name, name.lower(), "n_critic is "))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_methods_are_chosen_by_name_and_no_parameter_is_left_unchecked(cells):
    assert PARAMETERS.keys() == REFUSED.keys()
    for named, chosen in (("WGAN-GP,DCGAN", ["DCGAN", "WGAN-GP"]), (" WGAN , ", ["WGAN"])):
        assert cells.check_choices(PARAMETERS | {"METHODS": named}) == chosen


def test_changes_reach_the_settings_and_the_folders_of_the_run(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):  # a tilde is the home folder
        monkeypatch.setenv(name, str(tmp_path))
    changes = {"WGAN-GP": {"penalty_weight": 1.0, "n_critic": 2}, "DCGAN": {"width": 16}}
    chosen = {"PROFILE": "smoke", "SEED": 3, "MODELS_DIR": "~/models", "IMAGES_DIR": "~/images"}
    plain, changed = load_cells(**chosen), load_cells(**chosen, CHANGES=changes)
    assert plain.models == tmp_path / "models" / "fashion-mnist-smoke-seed3"
    name = plain.models.name + "-DCGAN-width-16-WGAN-GP-n_critic-2-WGAN-GP-penalty_weight-1.0"
    assert changed.models.name == name and changed.figures == tmp_path / "images" / name
    for method, chosen in plain.settings.items():
        expected = dataclasses.asdict(chosen) | {"seed": 3} | changes.get(method, {})
        assert dataclasses.asdict(changed.settings[method]) == expected


def test_a_whole_number_makes_no_whole_learning_rate(cells):
    settings = cells.profile_settings("smoke", "WGAN-GP", learning_rate=1)
    (group,) = cells.build_optimizer(settings, torch.nn.Linear(1, 1)).param_groups
    assert group["lr"].is_floating_point()


def test_published_weights_are_found_or_it_says_where_it_looked(
    tmp_path, folders, monkeypatch, capsys
):
    monkeypatch.chdir(ROOT)
    cells = load_cells(**folders)  # with folders elsewhere
    assert cells.weights_file("WGAN-GP").is_file()
    monkeypatch.chdir(tmp_path)
    cells = load_cells(MODELS_DIR="models", IMAGES_DIR="images")
    assert cells.load_runs() == {}
    places = tmp_path / cells.models, tmp_path / "models" / "published" / "fashion-mnist"
    assert "WGAN-GP: left out: neither in {} nor in {}\n".format(*places) in capsys.readouterr().out


def test_a_training_of_one_iteration_is_planned_and_left_out_of_curves(
    tmp_path, folders, tiny, monkeypatch, capsys
):
    """The message names what is missing, also for a folder of few images."""
    monkeypatch.chdir(tmp_path)  # where no published weights are
    changes = {"WGAN-GP": {"iterations": 1}}
    cells = load_cells(**folders, PROFILE="quick", CHANGES=changes)
    cells.data, cells.judge = tiny, SimpleNamespace(scores=None)
    for path, chosen, *_ in cells.plan():
        saved = {"settings": dataclasses.asdict(chosen), "iteration": chosen.iterations}
        saved["history"] = {"iteration": sorted(cells.stages(chosen, 200))}
        cells.write_atomically(Path(f"{path}.pt"), dict.fromkeys(cells.WEIGHTS) | saved)
    assert cells.finished("DCGAN.pt", "WGAN.pt") and not cells.finished("DCGAN.pt", "WGAN-GP.pt")
    assert not cells.finished("few_images/WGAN.pt")
    said = rf"few_images/WGAN.pt in {cells.models}, finished, with more than three records\n"
    assert re.search(rf"{said}.*few_images of over 1,000 images", capsys.readouterr().out)


@pytest.fixture
def make(tmp_path):
    """make(*arguments) -> the run of make, with a Python that only shows its own arguments."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nprintf '<%s>\\n' \"$@\"\n")
    python.chmod(0o755)
    (tmp_path / "venv" / "ready").touch()

    def run(*arguments):
        command = ["make", f"VENV={tmp_path / 'venv'}", *arguments]
        environment = os.environ | {"DEVICE": "tpu"}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    return run


def test_make_passes_every_parameter_on_as_it_was_typed(make, tmp_path):
    """Nothing in a value is executed; what only the environment has is not passed on."""
    touch = f"touch {tmp_path / 'touched'}"
    dataset = f'folder:/Anna\'s cash$money/$(shell {touch}) `{touch}` $$ ${{HOME}} "2024", #'
    for chosen in (dict.fromkeys(PARAMETERS, "3") | {"DATASET": dataset}, {"METHODS": "A, B"}):
        typed = [f"{name}={value}" for name, value in chosen.items()]
        shown = make("run", *typed).stdout.splitlines()
        words = [line[1:-1] for line in shown if line[0] == "<"]
        fetched = chosen.get("DATASET", "fashion-mnist"), chosen.get("DATA_DIR", "data")
        assert words[:4] == ["tools/fetch_data.py", *fetched, "tools/run_notebook.py"]
        passed = zip(words[4::3], words[5::3], words[6::3], strict=True)
        assert sorted(passed) == sorted(("-p", *pair) for pair in chosen.items())
        assert "cash$money" in make("-n", "run", *typed).stdout or chosen == {"METHODS": "A, B"}
    assert not (tmp_path / "touched").exists()
    several = {"SEEDS": "0,1", "DATASETS": "mnist,gtsrb", "CLUSTER": "tcp://one:8786"}
    shown = make("sweep", *map("=".join, several.items())).stdout
    assert "<tools/fetch_data.py>\n<mnist,gtsrb>\n<data>\n" in shown
    assert "<tools/sweep.py>\n<-p>\n" in shown
    assert all(f"<-p>\n<{name}>\n<{value}>\n" in shown for name, value in several.items())
    made = make("run", "SEEED=3")
    assert made.returncode and "no such parameter: SEEED; allowed: DATASET " in made.stderr
    made = make("bench", "DATASET=mnist")
    said = "bench has no parameters, but these were given: -p DATASET 'mnist'."
    assert made.returncode and said in made.stderr
    assert "<benchmarks/training_speed.py>" in make("bench").stdout


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_chosen_where_the_hardware_has_it(cells, monkeypatch, native):
    flags, expected = ("fma avx512_bf16", "bfloat16") if native else ("fma avx2", "float32")
    monkeypatch.setattr(cells.Path, "exists", lambda path: True)
    monkeypatch.setattr(cells.Path, "read_text", lambda path: flags)
    on_cuda = {"is_bf16_supported": lambda including_emulation: native or including_emulation}
    monkeypatch.setattr(cells.torch.cuda, *on_cuda.popitem())
    for device in ("cpu", "cuda"):
        assert cells.choose_precision("auto", torch.device(device)) == expected
    assert cells.choose_precision("auto", torch.device("mps")) == "float32"
    assert cells.choose_precision("bfloat16", torch.device("cpu")) == "bfloat16"


@pytest.mark.parametrize("there", [("cuda", "mps"), ("cuda",), ("mps",), ()])
def test_cuda_comes_before_mps_before_the_cpu(cells, monkeypatch, there):
    monkeypatch.setattr(cells.torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(cells.torch.backends.mps, "is_available", lambda: "mps" in there)
    assert cells.choose_device("auto").type == (*there, "cpu")[0]
    assert cells.choose_device("cpu").type == "cpu"
    if "cuda" not in there:
        with pytest.raises(ValueError, match="DEVICE is 'cuda'; allowed: 'auto', "):
            cells.choose_device("cuda")
