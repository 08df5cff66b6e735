"""Killed, damaged, full: training goes on as though nothing had happened, or says why not."""

import errno
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, same_state, train_one


def test_no_kill_and_no_damage_makes_a_training_go_on_wrongly():
    """A shorter `make stress`; what it asserts is in tests/stress.py."""
    command = [sys.executable, str(ROOT / "tests/stress.py"), "--kills", "10", "--damages", "260"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stdout + found.stderr
    kills = re.findall(r"(\d+) kills in (\d+) trainings, (\d+) of them equal", found.stdout)
    assert len(kills) == 3
    assert all(int(k) >= 4 and trainings == equal for k, trainings, equal in kills)
    lines = re.findall(r"^ *(\d+)  (.+)$", found.stdout, re.MULTILINE)
    outcomes = {name: int(n) for n, name in lines}
    assert outcomes["newest truncated: the other taken"] == 100
    assert outcomes["weights truncated: refused"] == 100
    assert outcomes["both truncated: refused"] == 20


def fill_disk(monkeypatch, after):
    """Make every save after so many meet a full disk."""
    numbers, save = [], torch.save

    def full(content, file):
        numbers.append(len(numbers))
        if numbers[-1] >= after:
            file.write(b"some bytes")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", full)


@pytest.mark.parametrize("after", [7, 22, 23])  # in the middle; at the end; only its second file
def test_a_full_disk_is_an_error_and_loses_nothing_that_was_saved(
    cells, tiny, tmp_path, monkeypatch, after
):
    settings = cells.profile_settings("smoke", "WGAN")
    whole = train_one(cells, settings, tiny, tmp_path / "whole", save_seconds=0)
    folder, said = tmp_path / "full", r"WGAN\..*pt could not be written \(.*No space left on device"
    with monkeypatch.context() as patch:
        fill_disk(patch, after)
        with pytest.raises(OSError, match=said):
            train_one(cells, settings, tiny, folder, save_seconds=0)
    assert not list(folder.glob("*.part"))
    assert cells.newest_checkpoint(folder / "WGAN")[1]["iteration"] == after // 2
    kept = cells.read_saved(folder / "WGAN.pt", cells.WEIGHTS)
    assert kept["iteration"] == (after + 1) // 2
    same_state(cells, whole, train_one(cells, settings, tiny, folder))
    assert cells.read_saved(folder / "WGAN.pt", cells.WEIGHTS)["iteration"] == 12


def test_a_file_survives_a_disk_that_is_really_full(cells, tmp_path):
    """On a file system of one megabyte; torch.save makes an error of another kind of it."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        path = tmp_path / "state.pt"
        cells.write_atomically(path, {"a": torch.zeros(1000)})
        said = r"state\.pt could not be written .*what it held is intact"
        with pytest.raises(OSError, match=said):
            cells.write_atomically(path, {"a": torch.zeros(10**6)})
        assert cells.read_saved(path, ("a",))["a"].shape == (1000,)
        assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_folder_that_cannot_be_written_is_refused_at_once(cells, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"MODELS_DIR is '.*file'; allowed: a folder to write to"):
        cells.usable_folder("MODELS_DIR", str(tmp_path / "file"), "run")
    os.chmod(tmp_path, 0o500)
    if not os.access(tmp_path, os.W_OK):  # the superuser may write everywhere
        with pytest.raises(ValueError, match="allowed: a folder to write to"):
            cells.usable_folder("MODELS_DIR", str(tmp_path), "run")
    os.chmod(tmp_path, 0o700)


def test_a_damaged_newest_checkpoint_is_said_and_the_other_one_goes_on(
    cells, tiny, tmp_path, capsys
):
    settings = cells.profile_settings("smoke", "WGAN-GP")
    whole = train_one(cells, settings, tiny, tmp_path / "whole", save_seconds=0)
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    path, _ = cells.newest_checkpoint(tmp_path / "damaged/WGAN-GP")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # of a weight, which PyTorch alone would not notice
    path.write_bytes(content)
    again = train_one(cells, settings, tiny, tmp_path / "damaged")
    said = capsys.readouterr().out
    assert f"{path} cannot be read" in said and "ooking for the other checkpoint" in said
    assert "damaged/WGAN-GP: at iteration 11 of 12" in said
    same_state(cells, whole, again)
    assert again.newest == path  # written over: of the two, none is damaged any more


def test_a_checkpoint_of_other_settings_is_refused_by_name(cells, tiny, tmp_path):
    train_one(cells, cells.profile_settings("smoke", "WGAN"), tiny, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = cells.profile_settings("smoke", "WGAN", clip=0.5, width=4)
    with pytest.raises(ValueError, match=r"other settings: .*START='afresh'") as refused:
        train_one(cells, other, tiny, tmp_path)
    assert "clip is 0.01 there, 0.5 here" in str(refused.value)
    assert "width is 8 there, 4 here" in str(refused.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("change", [{"precision": "bfloat16"}, {"device": "cuda"}])
def test_only_a_finished_training_may_come_from_another_machine(
    cells, run, tiny, tmp_path, capsys, change
):
    r = run("WGAN", iterations=2)
    r.path = tmp_path / "WGAN"
    for refused in (True, False):
        cells.iterate(r, tiny.train)
        cells.save_run(r)
        saved = torch.load(r.newest)
        rng = torch.zeros(16, dtype=torch.uint8)  # as a CUDA generator's state has
        other = {"machine": saved["machine"] | change} | (
            {"rng": rng} if "device" in change else {}
        )
        torch.save(saved | other, r.newest)
        if refused:
            with pytest.raises(ValueError, match=r"(precision|device) is '(bfloat16|cuda)' there"):
                train_one(cells, r.settings, tiny, tmp_path)
        else:
            train_one(cells, r.settings, tiny, tmp_path)
            assert "WGAN: at iteration 2 of 2" in capsys.readouterr().out
