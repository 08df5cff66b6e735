"""Killed, damaged, full: training goes on as though nothing had happened, or says why it cannot."""

import errno
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, train_one

CPU = torch.device("cpu")


def test_kills_and_damages():
    """A shorter `make stress`; what it asserts is in tests/stress.py."""
    command = [sys.executable, str(ROOT / "tests/stress.py"), "--kills", "10", "--damages", "260"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stdout + found.stderr
    kills = re.findall(r"(\d+) kills in (\d+) trainings, (\d+) of them equal", found.stdout)
    assert len(kills) == 3 and all(int(k) >= 4 and trainings == equal for k, trainings, equal in kills)
    outcomes = {name: int(n) for n, name in re.findall(r"^ *(\d+)  (.+)$", found.stdout, re.MULTILINE)}
    assert outcomes["checkpoint truncated: previous taken"] == 100
    assert outcomes["weights truncated: refused"] == 100 and outcomes["both truncated: refused"] == 20
    assert "none resumed wrongly, no foreign code executed" in found.stdout


def failing_save(cells, monkeypatch, fails):
    """Make the saves whose number is in `fails` meet a full disk."""
    numbers, save = [], torch.save

    def full(content, file):
        numbers.append(len(numbers))
        if numbers[-1] in fails:
            file.write(b"some bytes")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", full)


def test_a_full_disk_is_said_and_the_training_goes_on(cells, tiny, tmp_path, monkeypatch, capsys):
    settings = cells.profile_settings("smoke", "WGAN")
    whole = train_one(cells, settings, tiny, tmp_path / "whole", CPU, save_seconds=0)
    failing_save(cells, monkeypatch, {6, 7, 8})
    run = train_one(cells, settings, tiny, tmp_path / "full", CPU, save_seconds=0)
    said = capsys.readouterr()
    assert "could not be written (No space left on device); what was saved before is intact" in said.err + said.out
    assert "The training goes on" in said.err + said.out
    assert run.generator.layers[0].weight.equal(whole.generator.layers[0].weight)
    assert not list((tmp_path / "full").glob("*.part"))


def test_a_full_disk_at_the_end_is_an_error_and_the_last_checkpoint_is_intact(cells, tiny, tmp_path, monkeypatch):
    settings = cells.profile_settings("smoke", "WGAN")
    whole = train_one(cells, settings, tiny, tmp_path / "whole", CPU, save_seconds=0)
    with monkeypatch.context() as patch:
        failing_save(cells, patch, range(22, 1000))  # two files a save: from the twelfth on, which is the last
        with pytest.raises(OSError, match=r"WGAN\.checkpoint\.pt could not be written \(No space left on device\)"):
            train_one(cells, settings, tiny, tmp_path / "full", CPU, save_seconds=0)
    saved = cells.read_saved(tmp_path / "full" / "WGAN.checkpoint.pt", cells.WEIGHTS)
    assert saved["iteration"] == 11
    run = train_one(cells, settings, tiny, tmp_path / "full", CPU)
    assert run.generator.layers[0].weight.equal(whole.generator.layers[0].weight)


def test_a_disk_that_is_full_after_the_last_checkpoint_costs_no_training(cells, tiny, tmp_path, monkeypatch):
    settings = cells.profile_settings("smoke", "WGAN")
    with monkeypatch.context() as patch:
        failing_save(cells, patch, range(23, 1000))
        with pytest.raises(OSError, match=r"WGAN\.pt could not be written \(No space left on device\)"):
            train_one(cells, settings, tiny, tmp_path, CPU, save_seconds=0)
    monkeypatch.setattr(cells, "iterate", None)  # it does not train again
    train_one(cells, settings, tiny, tmp_path, CPU)
    assert cells.read_saved(tmp_path / "WGAN.pt", cells.WEIGHTS)["iteration"] == 12


def test_a_real_full_disk(cells, tmp_path):
    """On a file system of one megabyte; what torch.save makes of it is an error of another kind."""
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True
    ).returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        path = tmp_path / "state.pt"
        cells.write_atomically(path, {"a": torch.zeros(1000)})
        with pytest.raises(OSError, match=r"state\.pt could not be written .*what was saved before is intact"):
            cells.write_atomically(path, {"a": torch.zeros(10**6)})
        assert cells.read_saved(path, ("a",))["a"].shape == (1000,)
        assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_folder_that_vanishes_is_made_again(cells, tiny, tmp_path):
    settings, folder = cells.profile_settings("smoke", "DCGAN"), tmp_path / "models"

    def judge(pictures):
        shutil.rmtree(folder, ignore_errors=True)
        return {"score": 0.0}

    train_one(cells, settings, tiny, folder, CPU, judge=judge, save_seconds=0)
    assert cells.read_saved(folder / "DCGAN.checkpoint.pt", cells.WEIGHTS)["iteration"] == 12


def test_a_folder_that_cannot_be_written_is_refused_at_once(cells, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"MODELS_DIR is '.*file'; allowed: a folder that can be written to"):
        cells.usable_folder("MODELS_DIR", str(tmp_path / "file"), "run")
    os.chmod(tmp_path, 0o500)
    if not os.access(tmp_path, os.W_OK):  # the superuser may write everywhere
        with pytest.raises(ValueError, match="allowed: a folder that can be written to"):
            cells.usable_folder("MODELS_DIR", str(tmp_path), "run")
    os.chmod(tmp_path, 0o700)


def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_goes_on(cells, tiny, tmp_path, capsys):
    settings = cells.profile_settings("smoke", "WGAN-GP")
    whole = train_one(cells, settings, tiny, tmp_path, CPU, save_seconds=0)
    path = tmp_path / "WGAN-GP.checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-100])
    again = train_one(cells, settings, tiny, tmp_path, CPU)
    said = capsys.readouterr().out
    assert "WGAN-GP.checkpoint.pt is no readable checkpoint" in said and "Taking the checkpoint before it" in said
    assert "WGAN-GP: resuming at iteration 11 of 12" in said
    assert again.critic.head.weight.equal(whole.critic.head.weight)
    saved = [cells.read_saved(tmp_path / f"WGAN-GP.{name}.pt", cells.WEIGHTS) for name in cells.CHECKPOINTS]
    assert [one["iteration"] for one in saved] == [12, 11]  # the damaged one has not become the one before


def test_starting_afresh_leaves_no_checkpoint_of_the_run_before(cells, tiny, tmp_path):
    settings = cells.profile_settings("smoke", "DCGAN")
    train_one(cells, settings, tiny, tmp_path, CPU, save_seconds=0)
    assert (tmp_path / "DCGAN.checkpoint.previous.pt").exists()
    train_one(cells, settings, tiny, tmp_path, CPU, start="afresh")  # saves at its beginning and at its end
    saved = [cells.read_saved(tmp_path / f"DCGAN.{name}.pt", cells.WEIGHTS) for name in cells.CHECKPOINTS]
    assert [one["iteration"] for one in saved] == [12, 0]


@pytest.mark.parametrize("change", [{"precision": "bfloat16"}, {"device": "cuda"}])
def test_an_unfinished_training_does_not_change_its_machine(cells, run, tiny, tmp_path, change):
    r = run("WGAN")
    cells.iterate(r, tiny.train)
    cells.save_run(r, tmp_path)
    path = tmp_path / "WGAN.checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    torch.save(saved | {"machine": saved["machine"] | change}, path)
    with pytest.raises(ValueError, match=r"other settings: (precision|device) is '(bfloat16|cuda)' there"):
        train_one(cells, r.settings, tiny, tmp_path, CPU)


def test_an_unfinished_training_of_a_version_with_another_order_of_weights_is_refused(cells, run, tiny, tmp_path):
    """Of the critic's last layer, whose weights would have the same shape and another meaning."""
    r = run("WGAN")
    cells.iterate(r, tiny.train)
    cells.save_run(r, tmp_path)
    path = tmp_path / "WGAN.checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    del saved["machine"]["critic"]
    torch.save(saved, path)
    with pytest.raises(ValueError, match="other settings: critic is None there, 'flattened channels last' here"):
        train_one(cells, r.settings, tiny, tmp_path, CPU)


def test_a_finished_training_of_another_machine_is_finished_here_too(cells, tiny, tmp_path, capsys):
    settings = cells.profile_settings("smoke", "WGAN")
    train_one(cells, settings, tiny, tmp_path, CPU)
    path = tmp_path / "WGAN.checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    other = {"machine": {"device": "cuda", "precision": "bfloat16"}, "rng": torch.zeros(16, dtype=torch.uint8)}
    torch.save(saved | other, path)  # a CUDA generator's state has 16 bytes
    train_one(cells, settings, tiny, tmp_path, CPU)
    assert "WGAN: finished before" in capsys.readouterr().out


def test_weights_for_other_images_are_refused(cells, tiny, tmp_path):
    train_one(cells, cells.profile_settings("smoke", "WGAN"), tiny, tmp_path, CPU)
    with pytest.raises(ValueError, match=r"WGAN\.pt does not fit this notebook or images of shape \[3, 32, 32\]"):
        cells.load_generator(tmp_path / "WGAN.pt", (3, 32, 32), CPU)
