"""Data collection: files are checked and named, the ways to get them are tried in turn, decoding is right and kept."""

import gzip
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA_DIR
from PIL import Image
from replicas import write_idx

CPU = torch.device("cpu")


def test_the_real_data(fashion_mnist, cells):
    assert fashion_mnist.train.shape == (60_000, 1, 28, 28)
    assert fashion_mnist.test.shape == (10_000, 1, 28, 28)
    assert fashion_mnist.train.dtype == torch.uint8
    assert fashion_mnist.train_labels.bincount().tolist() == [6000] * 10
    assert cells.wrong_files(cells.source, DATA_DIR) == {}
    original = cells.datasets.FashionMNIST(DATA_DIR, train=False)
    assert fashion_mnist.test[:, 0].equal(original.data) and fashion_mnist.test_labels.equal(original.targets)


@pytest.fixture
def replica(cells, tmp_path):
    """A source like Fashion-MNIST with four tiny files, which stand gzipped in tmp_path/package/fashion-mnist."""
    package = tmp_path / "package" / "fashion-mnist"
    package.mkdir(parents=True)
    sums = {}
    for name in cells.IDX:
        path = tmp_path / "idx"
        write_idx(path, np.full((3, 28, 28) if "images" in name else (3,), len(name)))
        (package / f"{name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        sums[f"FashionMNIST/raw/{name}"] = cells.hashlib.md5(path.read_bytes()).hexdigest()
    return cells.replace(cells.source, files=sums)


def unreachable(source, root):
    raise RuntimeError("Error downloading: no route to host")


def test_fallback_to_the_installed_package(cells, replica, tmp_path):
    def package(source, root):
        cells.from_debian(source, root, installed=tmp_path / "package")

    cells.fetch(replica, tmp_path, ways=(unreachable, package))
    assert cells.wrong_files(replica, tmp_path) == {}
    parts = [cells.open_part(replica, part, tmp_path) for part in ("train", "test")]
    assert all(images.shape == (3, 1, 28, 28) and labels.shape == (3,) for images, labels in parts)


def test_nothing_is_fetched_when_the_files_are_there(cells, fashion_mnist):
    cells.fetch(cells.source, DATA_DIR, ways=(unreachable,))


@pytest.mark.parametrize("damage", ["truncated", "changed", "foreign", "absent"])
def test_a_damaged_file_is_fetched_again(cells, replica, tmp_path, damage):
    def package(source, root):
        cells.from_debian(source, root, tmp_path / "package")

    package(replica, tmp_path)
    name = "FashionMNIST/raw/train-images-idx3-ubyte"
    victim = tmp_path / name
    good = victim.read_bytes()
    {
        "truncated": lambda: victim.write_bytes(good[:-1]),
        "changed": lambda: victim.write_bytes(good[:-1] + bytes([good[-1] ^ 1])),
        "foreign": lambda: victim.write_bytes(b"<html>not found</html>"),
        "absent": victim.unlink,
    }[damage]()
    said = {"truncated": f"{len(good) - 1} bytes, {len(good)} by its header", "changed": "MD5", "foreign": "no IDX"}
    assert said.get(damage, "absent") in cells.wrong_files(replica, tmp_path)[name]
    assert len(cells.wrong_files(replica, tmp_path)) == 1
    cells.fetch(replica, tmp_path, ways=(package,))
    assert victim.read_bytes() == good
    assert (tmp_path / f"{name}.wrong").exists() == (damage != "absent")  # the user's file is not lost


@pytest.mark.parametrize("name", ["fashion-mnist", "mnist", "cifar-10", "gtsrb", "celeba"])
def test_one_error_says_which_files_to_put_where_and_where_from(cells, tmp_path, name):
    source = cells.DATASETS[name]
    with pytest.raises(FileNotFoundError) as failed:
        cells.fetch(source, tmp_path, ways=(unreachable, unreachable))
    message = str(failed.value)
    assert str(tmp_path) in message and "no route to host" in message and source.host in message
    assert len(source.files) >= 3 and all(path in message for path in source.files)


def test_the_error_lists_what_is_missing_after_the_attempts(cells, replica, tmp_path):
    """Not what was missing before: a way may have brought a part."""

    def half(source, root):
        cells.from_debian(source, root, tmp_path / "package")
        (root / "FashionMNIST/raw/t10k-labels-idx1-ubyte").unlink()
        raise OSError("timed out")

    with pytest.raises(FileNotFoundError, match="timed out") as failed:
        cells.fetch(replica, tmp_path, ways=(half,))
    assert "t10k-labels-idx1-ubyte: absent" in str(failed.value)
    assert "train-images" not in str(failed.value)


def test_a_damaged_cache_is_removed_and_made_again(cells, album, tmp_path):
    source = cells.choose_source(f"folder:{album}", 32)
    first = cells.load_images(source, tmp_path, CPU).train.clone()
    (array,) = (tmp_path / "prepared").glob("*-train-*.npy")
    array.write_bytes(array.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"-train-.*\.npy was damaged .*Run this again"):
        cells.load_images(source, tmp_path, CPU)
    assert cells.load_images(source, tmp_path, CPU).train.equal(first)


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt-get on this machine")
def test_fallback_fetches_the_debian_package(cells, tmp_path):
    try:
        cells.from_debian(cells.source, tmp_path, installed=tmp_path / "not installed")
    except subprocess.CalledProcessError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(f"Debian's archive cannot be reached: {error.stderr}")
    assert cells.wrong_files(cells.source, tmp_path) == {}


@pytest.fixture
def album(tmp_path):
    """80 pictures in two folders, wide ones with a red left, a green middle square and a blue right."""
    for i in range(80):
        image = np.zeros((20, 40, 3), np.uint8)
        image[:, :10, 0] = image[:, 10:30, 1] = image[:, 30:, 2] = 255 - i
        (tmp_path / "album" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "album" / str(i % 2) / f"{i}.png")
    return tmp_path / "album"


def test_a_folder_is_cropped_to_its_centre_and_split_for_good(cells, album, tmp_path):
    source = cells.choose_source(f"folder:{album}", 32)
    data = cells.load_images(source, tmp_path, CPU)
    assert data.train.shape == (64, 3, 32, 32) and data.test.shape == (16, 3, 32, 32) and data.target == "rotations"
    both = torch.cat([data.train, data.test])
    assert both[:, [0, 2]].max() == 0 and both[:, 1].amin() > 150  # only the green centre
    assert sorted(both[:, 1, 0, 0].tolist()) == [255 - i for i in range(79, -1, -1)]  # each picture once
    again = cells.load_images(cells.choose_source(f"folder:{album}", 32), tmp_path / "elsewhere", CPU)
    assert again.train.equal(data.train)


def test_images_that_come_or_go_leave_the_others_in_their_part(cells):
    """No training image becomes a held-out one, but for the one that keeps the held-out part at a fifth."""
    names = [f"{i % 9}/{i}.jpg" for i in range(500)]

    def parts(chosen, folder="/album"):
        read = [cells.FolderImages(None, Path(folder), chosen, train).paths for train in (True, False)]
        return [{path.relative_to(folder) for path in paths} for paths in read]

    train, test = parts(names)
    assert (len(train), len(test)) == (400, 100) and not train & test
    for some in (names[:499], names[1:], [*names, "new.jpg"], names[::-1]):
        now_train, now_test = parts(some)
        assert len(train & now_test) + len(test & now_train) <= 1
    assert parts(names, "/moved/elsewhere") == [train, test]


def test_a_folder_of_grey_pictures_has_one_channel(cells, tmp_path):
    (tmp_path / "grey").mkdir()
    for i in range(50):
        Image.new("L", (30 + i, 40), i).save(tmp_path / "grey" / f"{i}.png")
    source = cells.choose_source(f"folder:{tmp_path / 'grey'}", 28)
    assert cells.load_images(source, tmp_path, CPU).train.shape == (40, 1, 28, 28)


def test_a_portrait_photograph_stands_upright(cells, tmp_path):
    (tmp_path / "a").mkdir()
    image = np.zeros((32, 32, 3), np.uint8)
    image[:16] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    for i in range(50):
        Image.fromarray(image).save(tmp_path / "a" / f"{i}.png", exif=exif)
    pictures = cells.load_images(cells.choose_source(f"folder:{tmp_path / 'a'}", 32), tmp_path, CPU).train
    assert pictures[:, :, :16].max() == 0 and pictures[:, :, 16:].min() == 255


def test_sixteen_bits_of_grey_keep_their_range(cells, tmp_path):
    (tmp_path / "deep").mkdir()
    for i in range(60):
        Image.fromarray(np.full((30, 30), 1000 * i, np.uint16)).save(tmp_path / "deep" / f"{i:02}.png")
    source = cells.choose_source(f"folder:{tmp_path / 'deep'}", 28)
    data = cells.load_images(source, tmp_path, CPU)
    found = sorted(torch.cat([data.train, data.test]).flatten(1).float().mean(1).round().int().tolist())
    assert source.channels == 1 and found == [round(1000 * i / 257) for i in range(60)]


@pytest.mark.parametrize(("mode", "value"), [("F", 0.7), ("I", 200_000)])
def test_pixels_of_more_than_sixteen_bits_are_refused_by_name(cells, tmp_path, mode, value):
    (tmp_path / "deep").mkdir()
    for i in range(60):
        Image.new("L", (30, 30), i).save(tmp_path / "deep" / f"{i:02}.png")
    Image.new(mode, (30, 30), value).save(tmp_path / "deep" / "scan.tif")
    source = cells.choose_source(f"folder:{tmp_path / 'deep'}", 28)
    with pytest.raises(
        ValueError, match=rf"scan\.tif \(pixels of mode {mode} up to {value:g}; allowed: 8 or 16 bits\)"
    ):
        cells.load_images(source, tmp_path, CPU)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(cells, mode):
    """Whatever colour the file has there; half transparent black is grey."""
    pixels = np.zeros((2, 2, 4), np.uint8)  # black
    pixels[0, :, 3] = (0, 255)
    pixels[1, :, 3] = 0 if mode == "P" else 128
    picture = Image.fromarray(pixels, "RGBA")
    if mode == "LA":
        picture = picture.convert("LA")
    elif mode == "P":  # one colour of the palette is the transparent one
        picture = Image.new("P", (2, 2), 1)
        picture.putpalette([0, 0, 0, 0, 0, 0])
        picture.putpixel((1, 0), 0)
        picture.info["transparency"] = 1
    source = cells.replace(cells.DATASETS["cifar-10"], side=2)
    expected = [[255, 0], [255, 255]] if mode == "P" else [[255, 0], [127, 127]]
    assert (cells.square(picture, source) == expected).all()


def test_other_images_in_a_folder_are_another_data_set(cells, album):
    """So a training does not go on with images that it did not begin with, nor a judge judge those it never saw."""
    before = cells.choose_source(f"folder:{album}", 32)
    assert cells.choose_source(f"folder:{album}", 32).name == before.name
    (album / "0" / "0.png").rename(album / "0" / "new.png")
    assert cells.choose_source(f"folder:{album}", 32).name != before.name


def test_names_that_are_not_utf_8_are_read(cells, album, tmp_path):
    try:
        (album / "0" / "0.png").rename(album / "0" / os.fsdecode(b"caf\xe9.png"))
    except OSError:
        pytest.skip("this file system allows no such names")
    assert len(cells.load_images(cells.choose_source(f"folder:{album}", 32), tmp_path, CPU).train) == 64


@pytest.mark.parametrize(("where", "said"), [("none", "no such folder"), (".", "0 images; allowed: at least 50")])
def test_a_folder_without_images_is_refused(cells, tmp_path, where, said):
    with pytest.raises(ValueError, match=rf"DATASET is 'folder:.*{said}"):
        cells.choose_source(f"folder:{tmp_path / where}", 64)


def test_images_that_cannot_be_read_are_all_named_and_nothing_is_left(cells, album, tmp_path):
    source = cells.choose_source(f"folder:{album}", 32)
    for part, places in (("train", (10, 20)), ("test", (3, 5))):
        cut, no_picture = (source.reader(tmp_path, **getattr(source, part)).paths[i] for i in places)
        whole = cut.read_bytes()
        cut.write_bytes(whole[: len(whole) // 2])
        no_picture.write_text("this is no picture")
        with pytest.raises(ValueError) as failed:
            cells.load_images(source, tmp_path, CPU)
        assert all(said in str(failed.value) for said in ("cannot read 2 of the images", f"{cut} (", f"{no_picture} ("))
        assert not [p for p in (tmp_path / "prepared").iterdir() if p.suffix == ".part"]
        for path in (cut, no_picture):
            path.write_bytes(whole)
    assert len(cells.load_images(source, tmp_path, CPU).train) == 64


def test_decoding_happens_once_for_the_same_files(cells, album, tmp_path, monkeypatch):
    source = cells.choose_source(f"folder:{album}", 32)
    first = cells.load_images(source, tmp_path, CPU)
    decoded = []
    decode = cells.decode
    monkeypatch.setattr(cells, "decode", lambda *args: decoded.append(1) or decode(*args))
    assert cells.load_images(source, tmp_path, CPU).train.equal(first.train) and not decoded
    Image.new("RGB", (50, 50), "white").save(album / "0" / "0.png")  # another picture in its place
    assert not cells.load_images(source, tmp_path, CPU).train.equal(first.train) and len(decoded) == 2


def test_two_processes_that_decode_at_once_do_not_disturb_each_other(cells, album, tmp_path, monkeypatch):
    source, decode, pid, other = cells.choose_source(f"folder:{album}", 32), cells.decode, os.getpid(), []

    def overtaken(images, *rest):
        labels = decode(images, *rest)
        if not other:  # before the first one has ended, another process begins and ends
            other.append(None)
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", lambda: pid + 1)
                other[0] = cells.open_part(source, "train", tmp_path)[0].clone()
        return labels

    monkeypatch.setattr(cells, "decode", overtaken)
    images, _ = cells.open_part(source, "train", tmp_path)
    assert images.equal(other[0]) and images.any()
    assert sorted(path.suffix for path in (tmp_path / "prepared").iterdir()) == [".npy", ".pt"]


def test_an_interrupted_decoding_leaves_nothing_half_written(cells, album, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cells, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cells.load_images(cells.choose_source(f"folder:{album}", 32), tmp_path, CPU)
    assert not list((tmp_path / "prepared").iterdir())


def own_memory():
    """Bytes of memory of this process that no file backs."""
    (line,) = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(line)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_images_larger_than_the_free_memory_stay_on_disk(cells, tmp_path, monkeypatch):
    """A quarter of CelebA, all black but the last: neither opening it nor drawing takes memory of its own."""

    def decode(images, reader, source):
        images[-1] = 255
        return [0] * len(reader)

    monkeypatch.setattr(cells, "decode", decode)
    source = cells.replace(cells.DATASETS["celeba"], reader=lambda root, split: range(40_000), files={})
    rng = torch.Generator().manual_seed(0)
    before = own_memory()
    for _ in range(2):  # made, then found
        images, labels = cells.open_part(source, "train", tmp_path)
    assert len(labels) == 40_000
    for _ in range(20):
        assert cells.draw_real(images, 64, rng).shape == (64, 3, 64, 64)
    assert own_memory() - before < 1e8  # all of it would be 5e8
    assert images[-1].min() == 255


def test_what_does_not_fit_on_the_gpu_stays_where_it_is(cells, monkeypatch):
    images, labels = torch.zeros(10, 3, 4, 4, dtype=torch.uint8), torch.zeros(10)
    monkeypatch.setattr(cells.torch.cuda, "mem_get_info", lambda device: (2 * images.nbytes - 2, 10**12))
    assert cells.place(images, labels, torch.device("cuda"))[0] is images  # no byte moved


def test_pixels_survive_the_way_to_float_and_back(cells):
    every = torch.arange(256, dtype=torch.uint8)
    assert cells.to_float(every).aminmax() == (-1, 1)
    assert cells.to_uint8(cells.to_float(every)).equal(every)


def test_drawn_images_are_real_and_follow_the_generator(cells, tiny):
    first, again = (cells.draw_real(tiny.train, 50, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.equal(again)
    flat = cells.to_float(tiny.train).flatten(1)
    assert torch.cdist(first.flatten(1), flat).min(dim=1).values.max() < 0.1


def test_rotations_are_quarter_turns(cells, tiny):
    turned, answers = cells.questions(tiny.train[:8], tiny.train_labels[:8], "rotations")
    assert answers.tolist() == [0, 1, 2, 3] * 2
    for before, after, turns in zip(tiny.train, turned, answers.tolist(), strict=False):
        assert np.array_equal(np.rot90(before[0].numpy(), turns), after[0].numpy())
    same, labels = cells.questions(tiny.train[:8], tiny.train_labels[:8], "classes")
    assert same.equal(tiny.train[:8]) and labels.equal(tiny.train_labels[:8])
