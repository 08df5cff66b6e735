"""Fashion-MNIST's files for make: fetched one way or the other, and only what is wrong."""

import hashlib

import fetch_data
import pytest


@pytest.fixture
def files(monkeypatch):
    """{name: content} of two small files in place of the real ones."""
    contents = {"images": b"pixels", "labels": b"classes"}
    sums = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(fetch_data, "FILES", sums)
    return contents


def test_the_next_way_is_taken_where_one_fails_and_none_where_all_is_there(files, tmp_path, capsys):
    """What was wrong there is kept beside it."""
    raw, asked = tmp_path / "FashionMNIST" / "raw", []

    def from_nowhere(folder):
        asked.append(sorted(path.name for path in folder.iterdir()))
        raise OSError("no network")

    def from_memory(folder):
        for name, content in files.items():
            (folder / name).write_bytes(content)

    raw.mkdir(parents=True)
    (raw / "labels").write_bytes(b"an error page")
    ways = from_nowhere, from_memory
    fetch_data.fetch(tmp_path, ways)
    assert {name: (raw / name).read_bytes() for name in files} == files
    assert (raw / "labels.wrong").read_bytes() == b"an error page" and asked == [["labels.wrong"]]
    assert capsys.readouterr().out.count("fashion-mnist: fetching it from") == 2
    fetch_data.fetch(tmp_path, ways)
    assert len(asked) == 1 and not capsys.readouterr().out


def test_where_no_way_leads_it_says_which_files_are_wrong_and_what_to_do(files, tmp_path):
    def from_afar(folder):
        (folder / "labels").write_bytes(b"an error page")
        raise OSError("cut off")

    with pytest.raises(RuntimeError) as refused:
        fetch_data.fetch(tmp_path, [from_afar])
    said = str(refused.value)
    assert f"put it, unpacked, in {tmp_path / 'FashionMNIST' / 'raw'}" in said
    assert "from_afar: OSError('cut off')" in said and "images: absent" in said
    assert "labels: not the original (its MD5 sum differs)" in said
