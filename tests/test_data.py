"""Data collection: every failure is one error that says what to do, decoding is right and kept."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CPU, DATA_DIR
from PIL import Image

ORIENTATION = 0x0112  # in EXIF


def test_the_real_data(fashion_mnist, cells):
    assert fashion_mnist.train.shape == (60_000, 1, 28, 28)
    assert fashion_mnist.test.shape == (10_000, 1, 28, 28)
    assert fashion_mnist.train.dtype == torch.uint8
    assert fashion_mnist.train_labels.bincount().tolist() == [6000] * 10
    original = cells.datasets.FashionMNIST(DATA_DIR, train=False)
    assert fashion_mnist.test[:, 0].equal(original.data)
    assert fashion_mnist.test_labels.equal(original.targets)
    assert fashion_mnist.names == original.classes


@pytest.mark.parametrize("name", ["fashion-mnist", "mnist", "cifar-10", "gtsrb", "celeba"])
def test_one_error_says_what_went_wrong_and_what_to_put_where(cells, tmp_path, name):
    def unreachable(root, download, **part):
        assert download
        raise OSError("no route to host")

    source = cells.replace(cells.choose_source(name, 64), reader=unreachable)
    with pytest.raises(RuntimeError) as failed:
        cells.load_images(source, tmp_path, CPU)
    said = [name, "no route to host", source.host, str(tmp_path / source.files)]
    assert all(part in str(failed.value) for part in said)
    assert not list(tmp_path.rglob("*"))


@pytest.fixture
def album(tmp_path):
    """80 pictures in two folders, each with a red left, a green middle square and a blue right."""
    for i in range(80):
        image = np.zeros((20, 40, 3), np.uint8)
        image[:, :10, 0] = image[:, 10:30, 1] = image[:, 30:, 2] = 255 - i
        (tmp_path / "album" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "album" / str(i % 2) / f"{i}.png")
    return tmp_path / "album"


@pytest.fixture
def load(cells, tmp_path):
    """load(folder, side) -> ImageData of the pictures in it."""

    def make(folder, side=32):
        return cells.load_images(cells.choose_source(f"folder:{folder}", side), tmp_path, CPU)

    return make


@pytest.fixture
def pictures(tmp_path, load):
    """pictures(make) -> (folder, ImageData) of 60 pictures make(i)."""

    def build(make, **options):
        folder = tmp_path / "pictures"
        folder.mkdir()
        for i in range(60):
            make(i).save(folder / f"{i:02}.png", **options)
        return folder, load(folder)

    return build


def test_a_folder_is_cropped_to_its_centre_and_split_for_good(cells, album, load, tmp_path):
    data = load(album)
    assert data.train.shape == (64, 3, 32, 32) and data.test.shape == (16, 3, 32, 32)
    assert data.target == "rotations" and len(data.names) == 4
    both = torch.cat([data.train, data.test])
    inside = both[:, :, :, 1:-1]  # at the edge, pixels blend with what was cut off
    assert inside[:, [0, 2]].max() == 0 and inside[:, 1].min() > 150  # only the green centre
    assert sorted(inside[:, 1, 0, 0].tolist()) == list(range(176, 256))  # each picture once
    source = cells.choose_source(f"folder:{album}", 32)
    assert cells.load_images(source, tmp_path / "elsewhere", CPU).train.equal(data.train)


def test_images_that_come_or_go_leave_the_others_in_their_part(cells):
    """But for the one that keeps the held-out part at a fifth, none changes sides."""
    names = [f"{i % 9}/{i}.jpg" for i in range(500)]

    def parts(chosen, folder="/album"):
        read = [cells.FolderImages(None, Path(folder), chosen, train) for train in (True, False)]
        return [{path.relative_to(folder) for path in part.paths} for part in read]

    train, test = parts(names)
    assert (len(train), len(test)) == (400, 100) and not train & test
    for some in (names[:499], names[1:], [*names, "new.jpg"], names[::-1]):
        now_train, now_test = parts(some)
        assert len(train & now_test) + len(test & now_train) <= 1
    assert parts(names, "/moved/elsewhere") == [train, test]


def test_a_portrait_photograph_stands_upright(pictures):
    image, exif = np.zeros((32, 32, 3), np.uint8), Image.Exif()
    image[:16], exif[ORIENTATION] = 255, 3  # turned by 180 degrees
    _, data = pictures(lambda i: Image.fromarray(image), exif=exif)
    assert data.train[:, :, :16].max() == 0 and data.train[:, :, 16:].min() == 255


def test_sixteen_bits_of_grey_keep_their_range_and_one_channel(pictures, load):
    """More bits, whose range nobody knows, are refused by name."""
    folder, data = pictures(lambda i: Image.fromarray(np.full((30, 40), 1000 * i, np.uint16)))
    both = torch.cat([data.train, data.test])
    found = sorted(both.flatten(1).float().mean(1).round().int().tolist())
    assert both.shape[1:] == (1, 32, 32) and found == [round(1000 * i / 257) for i in range(60)]
    for mode, value in (("F", 0.7), ("I", 200_000)):
        Image.new(mode, (30, 30), value).save(folder / "scan.tif")
        said = rf"scan\.tif \(mode {mode}, up to {value:g}; allowed: 8 or 16 bits\)"
        with pytest.raises(RuntimeError, match=said):
            load(folder)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(cells, mode):
    """Whatever colour the file has there; half transparent black is grey."""
    pixels = np.zeros((2, 2, 4), np.uint8)  # black
    pixels[:, :, 3], expected = [[0, 255], [128, 128]], [[255, 0], [127, 127]]
    picture = Image.fromarray(pixels, "RGBA")
    if mode == "LA":
        picture = picture.convert("LA")
    elif mode == "P":  # one colour of the palette is the transparent one
        picture, expected = Image.new("P", (2, 2), 1), [[255, 0], [255, 255]]
        picture.putpalette([0, 0, 0, 0, 0, 0])
        picture.putpixel((1, 0), 0)
        picture.info["transparency"] = 1
    source = cells.replace(cells.choose_source("cifar-10", 32), side=2)
    assert (cells.square(picture, source) == expected).all()


def test_other_images_or_another_size_are_another_data_set(cells, album):
    """So no training goes on with images it did not begin with, no judge judges those."""
    before = cells.choose_source(f"folder:{album}", 32)
    assert before.name.startswith("folder-album-32px-")
    assert cells.choose_source(f"folder:{album}", 32).name == before.name
    assert cells.choose_source(f"folder:{album}", 64).name != before.name
    (album / "0" / "0.png").rename(album / "0" / "new.png")
    assert cells.choose_source(f"folder:{album}", 32).name != before.name
    moved = album.rename(album.with_name("moved"))
    assert cells.choose_source(f"folder:{moved}", 32).name != before.name


@pytest.mark.parametrize(
    ("where", "said"), [("none", "there is no such folder"), (".", "0 images;")]
)
def test_a_folder_without_images_is_refused(cells, tmp_path, where, said):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match=rf"DATASET is 'folder:.*{said}.*allowed: 50 or more"):
        cells.choose_source(f"folder:{tmp_path / where}", 64)


def test_images_that_cannot_be_read_are_all_named_and_nothing_is_left(cells, album, load, tmp_path):
    source = cells.choose_source(f"folder:{album}", 32)
    for part, places in (("train", (10, 20)), ("test", (3, 5))):
        paths = source.reader(tmp_path, **getattr(source, part)).paths
        cut, no_picture = (paths[i] for i in places)
        whole = cut.read_bytes()
        cut.write_bytes(whole[: len(whole) // 2])
        no_picture.write_text("this is no picture")
        with pytest.raises(RuntimeError) as failed:
            load(album)
        said = ("2 images cannot be read", f"{cut} (", f"{no_picture} (", source.name)
        assert all(part in str(failed.value) for part in said)
        assert not list((tmp_path / "prepared").iterdir())
        for path in (cut, no_picture):
            path.write_bytes(whole)
    assert len(load(album).train) == 64


def test_decoding_happens_once_for_the_same_files(cells, album, load, tmp_path, monkeypatch):
    first, decode, decoded = load(album).train.clone(), cells.decode, []
    monkeypatch.setattr(cells, "decode", lambda *args: decoded.append(1) or decode(*args))
    assert load(album).train.equal(first) and not decoded
    (array,) = (tmp_path / "prepared").rglob("train.npy")
    array.write_bytes(array.read_bytes()[:1000])
    with pytest.raises(RuntimeError, match=re.escape(str(tmp_path / "prepared"))):
        load(album)
    Image.new("RGB", (50, 50), "white").save(album / "0" / "0.png")  # another picture in its place
    assert not load(album).train.equal(first) and len(decoded) == 2


def test_two_processes_that_decode_at_once_do_not_disturb_each_other(
    cells, album, load, tmp_path, monkeypatch
):
    decode, pid, other = cells.decode, os.getpid(), []

    def overtaken(images, *rest):
        labels = decode(images, *rest)
        if not other:  # before the first one has ended, another process begins and ends
            other.append(None)
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", lambda: pid + 1)
                other[0] = load(album).train.clone()
        return labels

    monkeypatch.setattr(cells, "decode", overtaken)
    images = load(album).train
    assert images.equal(other[0]) and images.any()
    assert len(list((tmp_path / "prepared").iterdir())) == 1


def test_an_interrupted_decoding_leaves_nothing_half_written(
    cells, album, load, tmp_path, monkeypatch
):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cells, "decode", interrupted)
        load(album)
    assert not list((tmp_path / "prepared").iterdir())
    source = cells.choose_source(f"folder:{album}", 32)  # killed: nothing could be removed
    left = f"{os.getpid()}-{cells.prepared(source, tmp_path).name}"
    (tmp_path / "prepared" / left).mkdir()
    assert len(load(album).train) == 64


def test_drawn_images_are_real_and_follow_the_generator(cells, tiny):
    rngs = [torch.Generator().manual_seed(3) for _ in range(2)]
    first, again = (cells.draw_real(tiny.train, 50, rng) for rng in rngs)
    assert first.equal(again) and not first.equal(cells.draw_real(tiny.train, 50, rngs[0]))
    pairs = (cells.to_uint8(first)[:, None] == tiny.train).flatten(2).all(2)
    assert pairs.any(1).all() and pairs.any(0).sum() > 30  # of 200, without an order
    every = torch.arange(256, dtype=torch.uint8)
    assert cells.to_float(every).aminmax() == (-1, 1)
    assert cells.to_uint8(cells.to_float(every)).equal(every)


def test_some_images_are_always_the_same_and_only_training_images(cells, tiny):
    few, again = cells.some_images(tiny, 50), cells.some_images(tiny, 50)
    assert few.train.equal(again.train) and few.test is tiny.test and len(few.train_labels) == 50
    pairs = (few.train[:, None] == tiny.train).flatten(2).all(2)  # [50, 200]
    assert (pairs.sum(1) == 1).all() and (pairs.sum(0) <= 1).all()
    assert few.train_labels.equal(tiny.train_labels[pairs.int().argmax(1)])
    assert len(cells.some_images(tiny, 10**6).train) == 200


def test_rotations_are_quarter_turns(cells, tiny):
    turned, answers = cells.questions(tiny.train[:8], tiny.train_labels[:8], "rotations")
    assert answers.tolist() == [0, 1, 2, 3] * 2
    for before, after, turns in zip(tiny.train, turned, answers.tolist(), strict=False):
        assert np.array_equal(np.rot90(before[0].numpy(), turns), after[0].numpy())
    same, labels = cells.questions(tiny.train[:8], tiny.train_labels[:8], "classes")
    assert same.equal(tiny.train[:8]) and labels.equal(tiny.train_labels[:8])
