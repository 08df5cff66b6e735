"""Every setting is refused, early and by name, when it is unknown, of the wrong type or range."""

import ast
import dataclasses
import os
import shlex
import subprocess

import nbformat
import pytest
import torch
from conftest import METHODS, ROOT
from hypothesis import given, strategies as st
from notebook_cells import NOTEBOOK, load_cells

WRONG_TYPE = {int: 1.5, float: "fast", str: 3, bool: 1}


def parameters():
    """{name: default} of the notebook's parameters cell, which must hold literals only."""
    cells = nbformat.read(NOTEBOOK, 4).cells
    (cell,) = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    body = ast.parse(cell.source).body
    return {line.targets[0].id: ast.literal_eval(line.value) for line in body}


def test_every_setting_refuses_wrong_types_and_values_out_of_range(cells):
    for f in dataclasses.fields(cells.Settings):
        with pytest.raises(TypeError, match=rf"^{f.name} is .*allowed: {f.type.__name__}"):
            cells.Settings(**{f.name: WRONG_TYPE[f.type]})
        low, high, choices = (f.metadata[key] for key in ("low", "high", "choices"))
        wrong = ["something else"] if choices else [] if low is None else [low - 1, high * 2]
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
    low, high, choices = (f.metadata[key] for key in ("low", "high", "choices"))
    near = [] if low is None else [low, high, low - 1, high + 1, f.type(low), f.type(high)]
    value = data.draw(st.one_of(VALUES, st.sampled_from([*near, *(choices or ()), f.default])))
    allowed = type(value) is f.type or (f.type is float and type(value) is int)
    allowed = allowed and (choices is None or value in choices)
    allowed = allowed and (low is None or low <= value <= high)
    try:
        settings = cells.Settings(**{f.name: value})
        assert allowed and getattr(settings, f.name) == value
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
        assert len({(s.iterations, s.width, s.batch_size, s.film_every) for s in settings}) == 1
    for s in settings:
        found = [getattr(s, name) for name in (*COLUMNS, "objective", "critic_batch_norm")]
        assert found == list(OF_THE_PAPER[s.method])
        assert (s.iterations, s.batch_size, s.linear_decay) == (200_000, 64, 0)


WRONG = {"lambda": 5}, {"seed": 5}, {"n_critic": 0}, {"n_critic": "5"}
REFUSED = {
    "DATASET": ("mnisst", "folder:", "folder:/no/such/folder", 3),
    "IMAGE_SIZE": (50, "64"),
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
def test_parameters_are_refused_before_any_work(tmp_path, name, value):
    folders = {part: str(tmp_path / part) for part in ("MODELS_DIR", "IMAGES_DIR")}
    with pytest.raises((TypeError, ValueError), match="allowed: ") as refused:
        load_cells(**folders | {name: value})
    assert any(word in str(refused.value) for word in (name, name.lower(), "n_critic is "))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_methods_are_chosen_by_name_and_no_parameter_is_left_unchecked(cells):
    assert parameters().keys() == REFUSED.keys()
    for named, chosen in (("WGAN-GP,DCGAN", ["DCGAN", "WGAN-GP"]), (" WGAN , ", ["WGAN"])):
        assert cells.check_choices(parameters() | {"METHODS": named}) == chosen


def test_changes_reach_the_settings_and_the_folders_of_the_run(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):  # a tilde is the home folder
        monkeypatch.setenv(name, str(tmp_path))
    changes = {"WGAN-GP": {"penalty_weight": 1.0, "n_critic": 2}, "DCGAN": {"width": 16}}
    chosen = {"PROFILE": "smoke", "SEED": 3, "MODELS_DIR": "~/models", "IMAGES_DIR": "~/images"}
    plain, changed = load_cells(**chosen), load_cells(**chosen, CHANGES=changes)
    assert plain.models == tmp_path / "models" / "fashion-mnist-smoke-seed3"
    assert plain.published == tmp_path / "models" / "published"
    name = plain.models.name + "-DCGAN-width-16-WGAN-GP-n_critic-2-WGAN-GP-penalty_weight-1.0"
    assert changed.models.name == name and changed.figures == tmp_path / "images" / name
    for method, settings in plain.settings.items():
        expected = dataclasses.asdict(settings) | {"seed": 3} | changes.get(method, {})
        assert dataclasses.asdict(changed.settings[method]) == expected


def make(*arguments):
    command, environment = ["make", "-n", "run", *arguments], os.environ | {"DEVICE": "tpu"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_make_passes_every_parameter_on_as_it_was_typed():
    """Blanks and quotes included; what only the environment has is not passed on."""
    every = dict.fromkeys(parameters(), "3") | {"DATASET": "folder:/Anna's pictures/2024"}
    for chosen in (every, {"METHODS": "DCGAN, WGAN"}):
        lines = make(*(f"{name}={value}" for name, value in chosen.items())).stdout.split("\n")
        words = shlex.split(next(line for line in lines if "tools/run_notebook.py" in line))
        passed = [words[i + 1 : i + 3] for i, word in enumerate(words) if word == "-p"]
        assert sorted(passed) == sorted(map(list, chosen.items()))
    made = make("SEEED=3")
    assert made.returncode and "no such parameter: SEEED; allowed: DATASET " in made.stderr


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
