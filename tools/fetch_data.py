"""python tools/fetch_data.py [DATASETS] [DATA_DIR]: make sure that Fashion-MNIST's files are there.

Does nothing if it is not among these, with commas between them: the notebook fetches the others.
"""

import gzip
import subprocess
import sys
import tempfile
from hashlib import md5
from pathlib import Path

FILES = {  # under DATA_DIR/FashionMNIST/raw, unpacked: name -> MD5 sum
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}


def wrong_files(raw):
    """{name: what is wrong} for each of FILES that is not in the folder `raw` as it should be."""
    wrong = {name: "absent" for name in FILES if not (raw / name).is_file()}
    for name in FILES.keys() - wrong.keys():
        if md5((raw / name).read_bytes()).hexdigest() != FILES[name]:
            wrong[name] = "not the original (its MD5 sum differs)"
    return wrong


def from_torchvision(raw):
    """Download from the hosts that torchvision knows. Raises what it raises."""
    from torchvision import datasets  # takes seconds

    datasets.FashionMNIST(raw.parent.parent, download=True)


def from_debian(raw):
    """Unpack Debian's package: the installed one, or one fetched with private lists (no root)."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path("/usr/share/datasets/fashion-mnist")
        if not place.is_dir():
            (Path(folder) / "lists/partial").mkdir(parents=True)
            private = f"-oDir::State::Lists={folder}/lists", f"-oDir::Cache={folder}/cache"
            apt, unpack = ["apt-get", "-qq", *private], ["sh", "-c", "dpkg-deb -x *.deb ."]
            for command in ([*apt, "update"], [*apt, "download", "dataset-fashion-mnist"], unpack):
                subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=600)
            place = Path(folder, "usr/share/datasets/fashion-mnist")
        for name in FILES:
            (raw / name).write_bytes(gzip.decompress((place / f"{name}.gz").read_bytes()))


def fetch(root, ways=(from_torchvision, from_debian)):
    """Make sure that FILES stand under `root`. Raises RuntimeError that lists what does not."""
    raw, tried = Path(root).expanduser() / "FashionMNIST" / "raw", []
    for way in ways:
        if not (wrong := wrong_files(raw)):
            return
        print(f"fashion-mnist: fetching it {way.__name__.replace('_', ' ')}", flush=True)
        try:
            raw.mkdir(parents=True, exist_ok=True)
            for path in filter(Path.exists, map(raw.__truediv__, wrong)):
                path.replace(f"{path}.wrong")  # torchvision takes any file of that name
            way(raw)
        except Exception as error:  # whatever a way fails with, the next one is tried
            tried.append(f"  {way.__name__}: {error!r:.200}")
    if wrong := wrong_files(raw):
        listing = "\n".join([*tried, *(f"  {name}: {reason}" for name, reason in wrong.items())])
        where = f"github.com/zalandoresearch/fashion-mnist and put it, unpacked, in {raw}"
        raise RuntimeError(f"fashion-mnist could not be fetched. Get it from {where}:\n{listing}")


if __name__ == "__main__":
    datasets, data_dir = sys.argv[1:] + ["fashion-mnist", "data"][len(sys.argv) - 1 :]
    if "fashion-mnist" in map(str.strip, datasets.split(",")):
        try:
            fetch(data_dir)
        except RuntimeError as error:
            sys.exit(str(error))
