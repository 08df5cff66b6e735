"""Data collection: the real files are checked, the fallback works, a failure names the four files."""

import gzip
import os
import shutil
import subprocess

import pytest
import torch
from conftest import DATA_DIR


def test_the_real_data(fashion_mnist, cells):
    assert fashion_mnist.train.shape == (60_000, 1, 28, 28)
    assert fashion_mnist.test.shape == (10_000, 1, 28, 28)
    assert fashion_mnist.train.dtype == torch.uint8
    assert fashion_mnist.train_labels.bincount().tolist() == [6000] * 10
    assert cells.wrong_files(DATA_DIR / "FashionMNIST" / "raw") == {}


def replica(cells, monkeypatch, folder):
    """Make tiny stand-ins for the four files the expected ones, and write them gzipped into `folder`."""
    contents = {name: name.encode() * 10 for name in cells.FASHION_MNIST_FILES}
    expected = {n: (len(c), cells.hashlib.sha256(c).hexdigest()) for n, c in contents.items()}
    monkeypatch.setattr(cells, "FASHION_MNIST_FILES", expected)
    folder.mkdir()
    for name, content in contents.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    return contents


def unreachable(raw):
    raise RuntimeError("Error downloading: no route to host")


def test_fallback_to_the_installed_package(cells, monkeypatch, tmp_path):
    contents = replica(cells, monkeypatch, tmp_path / "package")

    def package(raw):
        cells.from_debian(raw, installed=tmp_path / "package")

    cells.fetch_fashion_mnist(tmp_path, sources=(unreachable, package))
    raw = tmp_path / "FashionMNIST" / "raw"
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == contents


def test_nothing_is_fetched_when_the_files_are_there(cells, fashion_mnist):
    cells.fetch_fashion_mnist(DATA_DIR, sources=(unreachable,))


@pytest.mark.parametrize("damage", ["truncated", "changed", "absent"])
def test_a_damaged_file_is_fetched_again(cells, monkeypatch, tmp_path, damage):
    contents = replica(cells, monkeypatch, tmp_path / "package")
    raw = tmp_path / "FashionMNIST" / "raw"
    cells.from_debian(raw, installed=tmp_path / "package")
    victim = raw / "train-images-idx3-ubyte"
    good = victim.read_bytes()
    {
        "truncated": lambda: victim.write_bytes(good[:-1]),
        "changed": lambda: victim.write_bytes(bytes([good[0] ^ 1]) + good[1:]),
        "absent": victim.unlink,
    }[damage]()
    assert list(cells.wrong_files(raw)) == [victim.name]
    cells.fetch_fashion_mnist(tmp_path, sources=(lambda raw: cells.from_debian(raw, tmp_path / "package"),))
    assert {name: (raw / name).read_bytes() for name in contents} == contents
    assert (raw / f"{victim.name}.wrong").exists() == (damage != "absent")  # the user's file is not lost


def test_one_error_says_which_files_to_put_where(cells, tmp_path):
    with pytest.raises(FileNotFoundError) as failed:
        cells.fetch_fashion_mnist(tmp_path, sources=(unreachable, unreachable))
    message = str(failed.value)
    assert str(tmp_path / "FashionMNIST" / "raw") in message and "no route to host" in message
    assert all(name in message for name in cells.FASHION_MNIST_FILES)


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt-get on this machine")
def test_fallback_fetches_the_debian_package(cells, tmp_path):
    try:
        cells.from_debian(tmp_path / "raw", installed=tmp_path / "not installed")
    except subprocess.CalledProcessError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(f"Debian's archive cannot be reached: {error.stderr}")
    assert cells.wrong_files(tmp_path / "raw") == {}


def test_pixels_survive_the_way_to_float_and_back(cells):
    every = torch.arange(256, dtype=torch.uint8)
    assert cells.to_float(every).aminmax() == (-1, 1)
    assert cells.to_uint8(cells.to_float(every)).equal(every)


def test_drawn_images_are_real_and_follow_the_generator(cells, tiny):
    first, again = (cells.draw_real(tiny.train, 50, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.equal(again)
    flat = cells.to_float(tiny.train).flatten(1)
    assert torch.cdist(first.flatten(1), flat).min(dim=1).values.max() < 0.1
