"""Data collection: every failure is one error that says what to do, decoding is right and kept."""

import os
import re
import struct

import numpy as np
import pytest
import tiny_data_sets
import torch
from conftest import CPU, DATA_DIR
from PIL import Image

ORIENTATION, BITS_PER_SAMPLE, SAMPLE_FORMAT = 0x0112, 258, 339  # tags of EXIF and TIFF


def test_the_real_data_are_all_of_fashion_mnist_in_its_own_order(fashion_mnist, cells):
    assert fashion_mnist.train.shape == (60_000, 1, 28, 28)
    assert fashion_mnist.test.shape == (10_000, 1, 28, 28)
    assert fashion_mnist.train.dtype == torch.uint8
    assert fashion_mnist.train_labels.bincount().tolist() == [6000] * 10
    for train, part in ((True, "train"), (False, "test")):
        original = cells.datasets.FashionMNIST(DATA_DIR, train=train)
        assert getattr(fashion_mnist, part)[:, 0].equal(original.data)
        assert getattr(fashion_mnist, f"{part}_labels").equal(original.targets)
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


# Your own folder


@pytest.fixture
def files(tmp_path):
    """files(n, place) -> the folder with n files of different content, which need not be images."""

    def make(n, place="files", ending="jpg"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            (tmp_path / place / f"{i}.{ending}").write_text(f"{ending} {i}")
        return tmp_path / place

    return make


@pytest.fixture
def load(cells, tmp_path):
    """load(folder, side) -> ImageData of the pictures in it."""

    def make(folder, side=32):
        return cells.load_images(cells.choose_source(f"folder:{folder}", side), tmp_path, CPU)

    return make


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
def read(cells):
    """read(path) -> the image in a file, uint8 [3, side, side], as of a folder's image."""

    def one(path, side=30):
        picture, _ = cells.FolderImages(None, [[path]], train=True)[0]
        return cells.square(picture, cells.replace(cells.choose_source("celeba", 64), side=side))

    return one


def test_a_folder_is_cropped_to_its_centre_and_split_for_good(cells, album, load, tmp_path):
    data = load(album)
    assert data.train.shape == (64, 3, 32, 32) and data.test.shape == (16, 3, 32, 32)
    assert data.target == "rotations" and len(data.names) == 4
    both = torch.cat([data.train, data.test])
    inside = both[:, :, :, 1:-1]  # at the edge, pixels blend with what was cut off
    assert inside[:, [0, 2]].max() == 0 and inside[:, 1].min() > 150  # only the green centre
    assert sorted(inside[:, 1, 0, 0].tolist()) == list(range(176, 256))  # each picture once
    (tmp_path / "elsewhere").mkdir()
    source = cells.choose_source(f"folder:{album}", 32)
    assert cells.load_images(source, tmp_path / "elsewhere", CPU).train.equal(data.train)


def test_a_folder_is_its_content(cells, files):
    """So no training goes on with images it did not begin with, no judge judges those; and of
    images that come or go none changes sides, but the one that keeps a fifth held out.
    """

    def look(folder, side=32):
        source = cells.choose_source(f"folder:{folder}", side)
        parts = (source.reader(None, **part).paths for part in (source.train, source.test))
        return source.name, *({path.read_text() for (path,) in part} for part in parts)

    folder = files(100)
    before = name, train, test = look(folder)
    assert (len(train), len(test)) == (80, 20) and not train & test
    assert look(folder, 64)[0] != name
    (folder / "0.jpg").rename(folder / "new.png")
    moved = folder.rename(folder.with_name("moved"))
    assert look(moved) == before
    for text in ("another", None, "one more"):  # in place of one, without that, with another one
        (moved / "1.jpg").unlink() if text is None else (moved / "1.jpg").write_text(text)
        now, now_train, now_test = look(moved)
        assert now != name and len(train & now_test) + len(test & now_train) <= 1


def test_hidden_names_copies_and_folders_met_before_are_left_out(cells, files, tmp_path, capsys):
    folder = files(60)
    files(60, "files/.ipynb_checkpoints")
    files(60, "files/copies")
    files(5, "elsewhere", "gif")
    (folder / "._0.jpg").write_text("of macOS")
    for link, to in (("link", tmp_path / "elsewhere"), ("again", "link"), ("back", folder)):
        (folder / link).symlink_to(to)
    source = cells.choose_source(f"folder:{folder}", 32)
    assert sorted(map(len, source.train["paths"])) == [1] * 5 + [2] * 60
    assert "65 images; left out: 60 copies, 2 hidden names" in capsys.readouterr().out


def test_every_format_that_pillow_opens_counts(cells, files, tmp_path):
    for ending in ("jfif", "gif", "webp", "tif", "PNG", "txt"):
        files(10, ending=ending)
    source = cells.choose_source(f"folder:{tmp_path / 'files'}", 32)
    assert len(source.reader(None, **source.train)) == 40  # four fifths of 50


@pytest.mark.parametrize(
    ("where", "said"), [("none", "there is no such folder"), (".", r"1 different.* \.gif .*\.png ")]
)
def test_a_folder_of_too_few_images_says_what_counts(cells, files, where, said):
    said = rf"DATASET is 'folder:.*allowed: 50 images or more.*{said}"
    with pytest.raises(ValueError, match=said):
        cells.choose_source(f"folder:{files(1) / where}", 64)


def test_a_folder_is_grey_only_if_every_image_is(tmp_path, load):
    for i in range(1000):
        image = np.full((16, 16), 100, np.uint8)
        image[0, :2] = divmod(i, 250)
        Image.fromarray(image).save(tmp_path / f"{i:03}_depth.png")
    assert load(tmp_path, 16).train.shape == (800, 1, 16, 16)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "last_rgb.png")
    data, red = load(tmp_path, 16), torch.tensor([255, 0, 0])[:, None, None]
    assert (torch.cat([data.train, data.test]) == red).flatten(1).all(1).sum() == 1


KINDS = ("png 1", "tif 1", "gif P", "jfif L", "jpg CMYK", "webp RGB", "png RGBA", "png I;16")
KINDS += ("tif I;16", "tif I;16B", "pgm I;16", "jp2 I;16")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_shows_the_same_picture(read, tmp_path, kind):
    """16 bits in their full range, too; and of an animation the first frame."""
    (ending, mode), ramp = kind.split(), np.arange(900).reshape(30, 30) * 72
    expected = picture = Image.fromarray((ramp / 257).round().astype(np.uint8))
    if mode == "1":
        expected = picture.point(lambda value: 255 * (value > 127))
    wide = ramp.astype(">u2" if mode[-1] == "B" else np.uint16)
    picture = Image.fromarray(wide) if mode[0] == "I" else expected.convert(mode)
    frames = {"save_all": True, "append_images": [Image.new("P", (30, 30))]}
    picture.save(tmp_path / f"0.{ending}", **frames if ending == "gif" else {})
    found = read(tmp_path / f"0.{ending}").astype(int)
    assert abs(found - np.asarray(expected)).max() <= 4 * (ending in ("jfif", "jpg", "webp"))


def test_other_depths_are_refused_by_name_with_their_range(album, load):
    signed = np.tile(np.int32([-1000, 3000]), (30, 15))
    for name, kind in (("int32.tif", np.int32), ("float.tif", np.float32), ("f.pfm", np.float32)):
        Image.fromarray(signed.astype(kind)).save(album / name)
    for name, kind in (("int16.tif", np.uint16), ("int8.tif", np.uint8)):
        Image.fromarray(signed.astype(kind)).save(album / name, tiffinfo={SAMPLE_FORMAT: 2})
    Image.fromarray(signed.astype(np.uint16)).save(album / "bits12.tif")
    sixteen, twelve = (struct.pack("<HHLH", BITS_PER_SAMPLE, 3, 1, bits) for bits in (16, 12))
    content = (album / "bits12.tif").read_bytes()
    (album / "bits12.tif").write_bytes(content.replace(sixteen, twelve))
    with pytest.raises(RuntimeError, match="6 images cannot be read") as refused:
        load(album)
    for name in ("int32.tif", "float.tif", "f.pfm", "int16.tif", "int8.tif", "bits12.tif"):
        low = r"\d+ to \d+" if name in ("int8.tif", "bits12.tif") else "-1000 to 3000"
        said = rf"{name} \({low}; allowed: 8 or 16 bits, unsigned\)"
        assert re.search(said, str(refused.value)), name


def test_a_portrait_photograph_stands_upright(read, tmp_path):
    image, exif = np.zeros((30, 30, 3), np.uint8), Image.Exif()
    image[:15], exif[ORIENTATION] = 255, 3  # turned by 180 degrees
    Image.fromarray(image).save(tmp_path / "0.png", exif=exif)
    assert read(tmp_path / "0.png")[:, :15].max() == 0 and read(tmp_path / "0.png").max() == 255


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


def test_images_that_cannot_be_read_are_named_in_one_error_and_nothing_is_left(
    album, load, tmp_path
):
    """A folder with an image's name is none of them; of many, ten are named."""
    cut = (album / "0" / "0.png").read_bytes()[:60]
    bad = {"bomb.pbm": b"P4\n20000 10000\n", "cut.pgm": b"P5\n2", "cut.png": cut, "empty.gif": b""}
    for name, content in (bad | dict.fromkeys(("1.jpg", "2.jpg", "3.jpg"), b"<html>")).items():
        (album / name).write_bytes(content)
    (album / "broken.jpg").symlink_to("nowhere")
    (album / "folder.jpg").mkdir()
    with pytest.raises(RuntimeError, match="8 images cannot be read; remove them:\n") as failed:
        load(album)
    lines = [line for line in str(failed.value).split("\n") if line.startswith("  ")]
    names = sorted((*bad, "1.jpg", "2.jpg", "3.jpg", "broken.jpg"))
    assert [line.split(" (")[0] for line in lines] == [f"  {album / name}" for name in names]
    assert "Get it from" not in str(failed.value) and not (tmp_path / "prepared").exists()
    for i in range(4, 34):
        (album / f"{i}.jpg").write_text(f"<html>{i}")
    with pytest.raises(RuntimeError, match=r"38 images(.*\n){11}  and 28 more\nRemove"):
        load(album)


# What is prepared


def test_decoding_happens_once_for_the_same_content(cells, album, load, tmp_path, monkeypatch):
    first = load(album).train.clone()
    album = album.rename(tmp_path / "moved")
    with monkeypatch.context() as patch:
        patch.setattr(cells, "decode", None)
        assert load(album).train.equal(first)
    (kept,) = (tmp_path / "prepared").iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.raises(RuntimeError, match=re.escape(f"Remove what is damaged in {album} or")):
        load(album)


def test_a_decoding_may_be_interrupted_and_overtaken(cells, album, load, tmp_path, monkeypatch):
    decode, others = cells.decode, []

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupted)
        load(album)
    assert not list((tmp_path / "prepared").iterdir())

    def overtaken(*args):  # before it has ended, another process begins and ends
        monkeypatch.setattr(cells, "decode", decode)
        others.append(load(album).train.clone())
        return decode(*args)

    monkeypatch.setattr(cells, "decode", overtaken)
    assert load(album).train.equal(others[0]) and others[0].any()
    assert len(list((tmp_path / "prepared").iterdir())) == 1


def test_what_is_prepared_goes_to_a_folder_that_can_be_written(
    cells, tmp_path, monkeypatch, capsys
):
    root, source = tmp_path / "data", cells.choose_source("mnist", 64)
    tiny_data_sets.mnist(root, np.random.default_rng(0))
    monkeypatch.setattr(os, "access", lambda path, mode: path != root)
    monkeypatch.setattr(cells, "MODELS_DIR", str(tmp_path / "models"))
    first, again = (cells.load_images(source, root, CPU).train for _ in range(2))
    (kept,) = (tmp_path / "models" / "prepared").iterdir()
    assert first.equal(again) and capsys.readouterr().out.count(f"decoding into {kept}\n") == 1
    assert not (root / "prepared").exists()


def test_pictures_exchanged_in_a_data_set_are_decoded_anew(cells, tmp_path):
    """In a linked folder, too."""
    tiny_data_sets.gtsrb(tmp_path, np.random.default_rng(0))
    training, source = tmp_path / "gtsrb/GTSRB/Training", cells.choose_source("gtsrb", 64)
    training.rename(tmp_path / "elsewhere").joinpath("00000").rename(tmp_path / "zero")
    training.symlink_to(tmp_path / "elsewhere")
    (training / "00000").symlink_to(tmp_path / "zero")
    before = cells.load_images(source, tmp_path, CPU).train.clone()
    with Image.open(training / "00000" / "00000_00001.ppm") as picture:
        Image.new("RGB", picture.size, "red").save(tmp_path / "zero" / "00000_00001.ppm")
    changed = (cells.load_images(source, tmp_path, CPU).train != before).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [1]


def test_every_image_is_drawn_as_often_and_follows_the_generator(cells, tiny):
    rngs = [torch.Generator().manual_seed(3) for _ in range(2)]
    first, again = (cells.draw_real(tiny.train, 4000, rng) for rng in rngs)
    assert first.equal(again) and not first.equal(cells.draw_real(tiny.train, 4000, rngs[0]))
    pairs = (torch.cdist(first.flatten(1), cells.to_float(tiny.train).flatten(1)) < 0.1).sum(0)
    assert pairs.sum() == 4000 and pairs.min() > 4 and pairs.max() < 40  # 20 each, on average
    every = torch.arange(256, dtype=torch.uint8)
    assert cells.to_float(every).aminmax() == (-1, 1)
    assert cells.to_uint8(cells.to_float(every)).equal(every)


def test_some_images_are_random_ones_always_the_same_and_only_training_images(cells, tiny):
    few, again = cells.some_images(tiny, 50), cells.some_images(tiny, 50)
    assert few.train.equal(again.train) and few.test is tiny.test and len(few.train_labels) == 50
    assert not few.train.equal(tiny.train[:50])
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
