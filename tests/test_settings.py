"""Every setting is refused, early and by name, when it is unknown, of the wrong type or out of range."""

import ast
import dataclasses
import os
import shlex
import subprocess

import nbformat
import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from notebook_cells import NOTEBOOK, load_cells

WRONG_TYPE = {int: 1.5, float: "fast", str: 3, bool: 1}


def test_every_setting_refuses_a_wrong_type(cells):
    for f in dataclasses.fields(cells.Settings):
        with pytest.raises(TypeError, match=rf"^{f.name} is .*allowed: {f.type.__name__}"):
            cells.Settings(**{f.name: WRONG_TYPE[f.type]})


def test_every_setting_refuses_values_out_of_range(cells):
    for f in dataclasses.fields(cells.Settings):
        low, high, choices = (f.metadata[key] for key in ("low", "high", "choices"))
        wrong = ["something else"] if choices else [] if low is None else [low - 1, high * 2]
        wrong += [float("nan"), float("inf")] if f.type is float else []
        assert wrong or f.type is bool or f.name == "dataset", f"{f.name} accepts anything"
        for value in wrong:
            with pytest.raises(ValueError, match=rf"^{f.name} is .*allowed: "):
                cells.Settings(**{f.name: value})


VALUES = st.one_of(st.integers(), st.floats(), st.text(max_size=5), st.booleans(), st.none(), st.lists(st.integers()))


@given(data=st.data())
def test_any_value_is_taken_or_refused_by_name(cells, data):
    """A setting holds a value of its type within its limits, or one error names it, the value and what is allowed."""
    f = data.draw(st.sampled_from(dataclasses.fields(cells.Settings)))
    low, high, choices = (f.metadata[key] for key in ("low", "high", "choices"))
    near = [] if low is None else [low, high, low - 1, high + 1, f.type(low), f.type(high)]
    value = data.draw(st.one_of(VALUES, st.sampled_from([*near, *(choices or ()), f.default])))
    right_type = type(value) is f.type or (f.type is float and type(value) is int)
    allowed = right_type and (choices is None or value in choices) and (low is None or low <= value <= high)
    try:
        settings = cells.Settings(**{f.name: value})
        assert allowed and getattr(settings, f.name) == value
    except (TypeError, ValueError) as error:
        if allowed:  # but not together with the other settings' defaults
            assert f.name in ("clip", "critic_batch_norm") and str(error).startswith(
                "penalty_weight is 10.0; allowed: 0"
            )
        else:
            assert str(error).startswith(f"{f.name} is {value!r}") and "allowed: " in str(error)


def test_unknown_setting(cells):
    with pytest.raises(TypeError, match="learning_rat"):
        cells.profile_settings("smoke", "WGAN-GP", learning_rat=1e-3)


@pytest.mark.parametrize("changes", [{"critic_batch_norm": True}, {"clip": 0.01}])
def test_penalty_excludes_batch_norm_and_clipping(cells, changes):
    with pytest.raises(ValueError, match=r"penalty_weight is 10\.0; allowed: 0"):
        cells.profile_settings("full", "WGAN-GP", **changes)


def test_settings_are_frozen(cells):
    with pytest.raises(AttributeError):
        cells.PAPER["WGAN"].clip = 1.0


def test_paper_settings(cells):
    gp, wgan, dcgan = (cells.profile_settings("full", method) for method in ("WGAN-GP", "WGAN", "DCGAN"))
    assert (gp.penalty_weight, gp.n_critic, gp.learning_rate, gp.beta1, gp.beta2) == (10, 5, 1e-4, 0, 0.9)
    assert (wgan.clip, wgan.n_critic, wgan.learning_rate, wgan.optimizer) == (0.01, 5, 5e-5, "rmsprop")
    assert (dcgan.learning_rate, dcgan.beta1, dcgan.beta2, dcgan.n_critic) == (2e-4, 0.5, 0.999, 1)
    assert [s.objective for s in (gp, wgan, dcgan)] == ["wasserstein", "wasserstein", "non-saturating"]
    assert [(s.penalty_weight, s.clip) for s in (wgan, dcgan)] == [(0, 0.01), (0, 0)]
    assert [s.critic_batch_norm for s in (gp, wgan, dcgan)] == [False, True, True]
    assert {s.iterations for s in (gp, wgan, dcgan)} == {200_000}
    assert {s.batch_size for s in (gp, wgan, dcgan)} == {64}


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("DATASET", "mnisst", ValueError),
        ("DATASET", "folder:", ValueError),
        ("DATASET", "folder:/no/such/folder", ValueError),
        ("IMAGE_SIZE", 50, ValueError),
        ("IMAGE_SIZE", "64", TypeError),
        ("INCEPTION", "yes", TypeError),
        ("METHODS", "WGAN, LSGAN", ValueError),
        ("METHODS", "", ValueError),
        ("PROFILE", "slow", ValueError),
        ("SEED", -1, ValueError),
        ("SEED", "one", TypeError),
        ("START", "again", ValueError),
        ("DEVICE", "tpu", ValueError),
        ("PRECISION", "float16", ValueError),
        ("EVALUATION_SEED", 0.5, TypeError),
        ("EVALUATION_SEED", -3, ValueError),
        ("TRAIN", 1, TypeError),
        ("TEST_CLAIMS", "no", TypeError),
        ("DATASET", 3, TypeError),
        ("METHODS", ["WGAN"], TypeError),
        ("DATA_DIR", None, TypeError),
        ("MODELS_DIR", 7, TypeError),
        ("MODELS_DIR", "/dev/null", ValueError),
        ("IMAGES_DIR", "/proc/nowhere", ValueError),
        ("CHANGES", "n_critic 5", TypeError),
        ("CHANGES", {"WGAN_GP": {"n_critic": 5}}, ValueError),
        ("CHANGES", {"WGAN-GP": 5}, TypeError),
        ("CHANGES", {"WGAN-GP": {"lambda": 5}}, ValueError),
        ("CHANGES", {"WGAN-GP": {"seed": 5}}, ValueError),
        ("CHANGES", {"WGAN-GP": {"n_critic": 0}}, ValueError),
        ("CHANGES", {"WGAN-GP": {"n_critic": "5"}}, TypeError),
    ],
)
def test_parameters_are_refused_before_any_work(tmp_path, name, value, error):
    folders = {"MODELS_DIR": str(tmp_path / "models"), "IMAGES_DIR": str(tmp_path / "images")}
    with pytest.raises(error, match="allowed: ") as refused:
        load_cells(**folders | {name: value})
    assert any(word in str(refused.value) for word in (name, name.lower(), "n_critic is "))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_changes_reach_the_settings_and_the_folders_of_the_run(tmp_path):
    folders = {"MODELS_DIR": str(tmp_path / "models"), "IMAGES_DIR": str(tmp_path / "images")}
    changes = {"WGAN-GP": {"penalty_weight": 1.0, "n_critic": 2}, "DCGAN": {"width": 16}}
    changed = load_cells(**folders, PROFILE="smoke", CHANGES=changes)
    plain = load_cells(**folders, PROFILE="smoke")
    run = "fashion-mnist-smoke-seed0"
    assert changed.models.name == f"{run}-DCGAN-width-16-WGAN-GP-n_critic-2-WGAN-GP-penalty_weight-1"
    assert changed.figures.name == changed.models.name and plain.models.name == plain.figures.name == run
    for method, settings in plain.settings.items():
        expected = dataclasses.asdict(settings) | changes.get(method, {})
        assert dataclasses.asdict(changed.settings[method]) == expected
    named = [changed.profile_of(dataclasses.asdict(settings)) for settings in changed.settings.values()]
    assert named == ["smoke, width 16", "smoke", "smoke, penalty_weight 1.0"]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    cells = load_cells(PROFILE="smoke", DATA_DIR="~/data", MODELS_DIR="~/models", IMAGES_DIR="~/images")
    assert cells.models == tmp_path / "models" / cells.run_name and str(tmp_path / "data") == cells.DATA_DIR
    assert cells.published.is_relative_to(tmp_path) and cells.figures.is_relative_to(tmp_path)


def test_settings_table_leaves_out_what_an_optimiser_does_not_have(cells):
    rows = [line.strip("| ").split(" | ") for line in cells.settings_table(cells.settings).split("\n")]
    assert rows[0] == ["setting", "DCGAN", "WGAN", "WGAN-GP"] and ["beta2", "0.999", "-", "0.9"] in rows
    assert [row[0] for row in rows[2:]] == list(cells.HYPERPARAMETERS)


def test_parameters_cell_holds_literals_only():
    cells = nbformat.read(NOTEBOOK, 4).cells
    (parameters,) = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    for statement in ast.parse(parameters.source).body:
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)


def test_make_passes_every_parameter_on():
    (given,) = [line for line in (ROOT / "Makefile").read_text().split("\n") if line.startswith("PARAMETERS := ")]
    cells = nbformat.read(NOTEBOOK, 4).cells
    (parameters,) = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    names = [statement.targets[0].id for statement in ast.parse(parameters.source).body]
    assert given.removeprefix("PARAMETERS := ").split() == names


def test_what_make_passes_on_arrives_as_it_was_typed():
    """Blanks and quotes included; what only the environment has is not passed on."""
    given = {"DATASET": "folder:/Anna's pictures/2024", "SEED": "3", "METHODS": "DCGAN, WGAN"}
    command = ["make", "-n", "run", *(f"{name}={value}" for name, value in given.items())]
    printed = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"DEVICE": "tpu"}, check=True, capture_output=True, text=True
    ).stdout
    words = shlex.split(next(line for line in printed.split("\n") if "tools/run.py" in line))
    passed = [words[i + 1 : i + 3] for i, word in enumerate(words) if word == "-p"]
    assert sorted(passed) == sorted(map(list, given.items()))


def test_make_refuses_what_it_does_not_know():
    made = subprocess.run(["make", "-n", "run", "SEEED=3"], cwd=ROOT, check=False, capture_output=True, text=True)
    assert made.returncode and "no such parameter: SEEED; allowed: DATASET " in made.stderr
    assert "run.py" not in made.stdout


def test_profiles_are_complete(cells):
    assert cells.PROFILES.keys() == cells.EXPERIMENTS.keys()
    for profile, methods in cells.PROFILES.items():
        assert methods.keys() == cells.PAPER.keys()
        settings = {method: cells.profile_settings(profile, method) for method in methods}
        assert [chosen.method for chosen in settings.values()] == list(methods)
        assert cells.experiment_settings(profile, settings).keys() == {"rmsprop", "few_images"}
        assert cells.EXPERIMENTS[profile].keys() == cells.EXPERIMENTS["smoke"].keys()


@pytest.mark.parametrize(("flags", "expected"), [("fma avx512_bf16", "bfloat16"), ("fma avx2", "float32")])
def test_bfloat16_is_chosen_where_the_processor_has_it(cells, monkeypatch, flags, expected):
    monkeypatch.setattr(cells.Path, "exists", lambda path: True)
    monkeypatch.setattr(cells.Path, "read_text", lambda path: flags)
    monkeypatch.setattr(cells.torch.cuda, "is_bf16_supported", lambda including_emulation: expected == "bfloat16")
    for device in ("cpu", "cuda"):
        assert cells.choose_precision("auto", torch.device(device)) == expected
    assert cells.choose_precision("auto", torch.device("mps")) == "float32"
    assert cells.choose_precision("bfloat16", torch.device("cpu")) == "bfloat16"


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_cuda_comes_before_mps_before_the_cpu(cells, monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(cells.torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(cells.torch.backends.mps, "is_available", lambda: mps)
    assert cells.choose_device("auto").type == expected and cells.choose_device("cpu").type == "cpu"
    if not cuda:
        with pytest.raises(ValueError, match="DEVICE is 'cuda'; allowed: 'auto', "):
            cells.choose_device("cuda")
