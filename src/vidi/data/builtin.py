"""Data sets that go by a name: found on this machine, or downloaded, checked and kept.

Looked for in $VIDI_DATA, then `data` and `datasets` in the current folder (where torchvision and
others keep theirs), then where Debian's packages put them, then in vidi's cache. What is downloaded
must have the SHA-256 that stands here; what lies on the machine is the owner's, and is only checked
to be whole. Sizes and digests: the lists of tensorflow/datasets, and for sets that torchvision
knows, MD5s there agree with the same files.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidi.config import DataConfig
from vidi.data import split as splits
from vidi.data.arrays import from_parts
from vidi.data.cache import cache_folder, cache_trouble
from vidi.data.cifar import open_cifar
from vidi.data.dataset import Dataset
from vidi.data.folder import open_folder
from vidi.data.idx import open_idx
from vidi.download import Watch, download, verify
from vidi.errors import DamagedError, DataError
from vidi.image import Pixels
from vidi.storage import make_folder

Say = Callable[[str], None]


class Published(NamedTuple):
    """One file on a server."""

    url: str
    size_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


class BuiltIn(NamedTuple):
    """files: what is published. folders: what the set is called where it may lie. inside: one of
    these shows that a folder holds it. unpack: the folder inside an archive, "" for plain files."""

    files: tuple[Published, ...]
    folders: tuple[str, ...]
    inside: tuple[str, ...]
    unpack: str
    open: Callable[[Path, DataConfig], Dataset]
    # Where it is kept, if it is not called like the set: several sets may come in one archive.
    kept: str = ""


def _idx_files(root: str, *published: tuple[str, int, str]) -> tuple[Published, ...]:
    return tuple(Published(root + name, size, digest) for name, size, digest in published)


def _idx(classes: tuple[str, ...] = ()) -> Callable[[Path, DataConfig], Dataset]:
    def open_(folder: Path, asked: DataConfig) -> Dataset:
        dataset = open_idx(folder, asked)
        return replace(dataset, classes=classes) if classes else dataset

    return open_


_TRAIN_IMAGES, _TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
_TEST_IMAGES, _TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
_IDX_INSIDE: Final = (_TRAIN_IMAGES, _TRAIN_IMAGES.removesuffix(".gz"))

_WORDS: Final = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


def _open_imagenette(folder: Path, asked: DataConfig) -> Dataset:
    """Classes in the order of their WordNet numbers, by their English names."""
    dataset = open_folder(folder, asked)
    return replace(dataset, classes=tuple(_WORDS.get(name, name) for name in dataset.classes))


def _open_emnist(part: str) -> Callable[[Path, DataConfig], Dataset]:
    """One of the six sets of Cohen et al. 2017; its classes by the characters that they show."""

    def open_(folder: Path, asked: DataConfig) -> Dataset:
        stem = f"emnist-{part}-train-images-idx3-ubyte"
        packed = folder / f"{stem}.gz"
        dataset = open_idx(packed if packed.exists() else folder / stem, asked)
        characters = _characters(folder / f"emnist-{part}-mapping.txt")
        first = int(dataset.labels.min())
        # Letters are counted from 1; a class 0 without images would be asked for in every report.
        return replace(
            dataset,
            labels=dataset.labels - first,
            classes=tuple(
                characters.get(number, str(number)) for number in range(first, len(dataset.classes))
            ),
        )

    return open_


def _characters(path: Path) -> dict[int, str]:
    """{label: character} from lines of a label and one or two codes; {} where there are none."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        found = {int(line.split()[0]): chr(int(line.split()[1])) for line in lines if line.strip()}
    except (OSError, ValueError, IndexError, OverflowError):
        return {}
    return found if len(set(found.values())) == len(found) else {}


def _open_svhn(folder: Path, asked: DataConfig) -> Dataset:
    """Street View house numbers, format 2: cropped digits in two MATLAB files."""
    parts = {
        splits.TRAIN: _read_svhn(folder / "train_32x32.mat"),
        splits.TEST: _read_svhn(folder / "test_32x32.mat"),
    }
    return from_parts("svhn", parts, tuple("0123456789"), asked)


def _read_svhn(path: Path) -> tuple[Pixels, NDArray[np.int64]]:
    """X (32, 32, 3, N) uint8, y (N, 1) where 10 stands for the digit 0."""
    # A third of a second, which nobody else should wait for.
    from scipy.io import loadmat  # noqa: PLC0415 (lazy)

    try:
        arrays = loadmat(path, variable_names=["X", "y"])
        images, labels = arrays["X"], arrays["y"].ravel().astype(np.int64)
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise DamagedError(f"{path} is no MATLAB file of SVHN: {error}", fix=_AGAIN) from error
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
        raise DamagedError(f"{path} holds images of shape {images.shape}", fix=_AGAIN)
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels % 10


_AGAIN: Final = "delete it and give the command again: it is downloaded anew"

# fmt: off
BUILT_IN: Final[dict[str, BuiltIn]] = {
    "mnist": BuiltIn(
        _idx_files(
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            (_TRAIN_IMAGES, 9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),  # noqa: E501
            (_TRAIN_LABELS, 28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),  # noqa: E501
            (_TEST_IMAGES, 1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),  # noqa: E501
            (_TEST_LABELS, 4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),  # noqa: E501
        ),
        ("mnist", "MNIST/raw", "MNIST"), _IDX_INSIDE, "", _idx(),
    ),
    "fashion-mnist": BuiltIn(
        _idx_files(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            (_TRAIN_IMAGES, 26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),  # noqa: E501
            (_TRAIN_LABELS, 29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),  # noqa: E501
            (_TEST_IMAGES, 4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),  # noqa: E501
            (_TEST_LABELS, 5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),  # noqa: E501
        ),
        ("fashion-mnist", "FashionMNIST/raw", "FashionMNIST"), _IDX_INSIDE, "",
        _idx(("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker",
              "bag", "ankle boot")),
    ),
    "kmnist": BuiltIn(
        _idx_files(
            "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
            (_TRAIN_IMAGES, 18165135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"),  # noqa: E501
            (_TRAIN_LABELS, 29497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"),  # noqa: E501
            (_TEST_IMAGES, 3041136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"),  # noqa: E501
            (_TEST_LABELS, 5120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"),  # noqa: E501
        ),
        ("kmnist", "KMNIST/raw", "KMNIST"), _IDX_INSIDE, "",
        _idx(("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")),
    ),
    **{
        f"emnist-{part}": BuiltIn(
            (Published("https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip", 561753746, "fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e"),),  # noqa: E501
            ("emnist", "EMNIST/raw/gzip", "EMNIST/raw", "EMNIST/gzip", "EMNIST", "gzip"),
            (f"emnist-{part}-train-images-idx3-ubyte.gz", f"emnist-{part}-train-images-idx3-ubyte"),
            "gzip", _open_emnist(part), "emnist",
        )
        for part in ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
    },
    "cifar10": BuiltIn(
        (Published("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", 170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),),  # noqa: E501
        ("cifar10", "cifar-10-batches-bin"), ("data_batch_1.bin",), "cifar-10-batches-bin",
        open_cifar,
    ),
    "cifar100": BuiltIn(
        (Published("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", 168513733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),),  # noqa: E501
        ("cifar100", "cifar-100-binary"), ("fine_label_names.txt",), "cifar-100-binary",
        open_cifar,
    ),
    "svhn": BuiltIn(
        (
            Published("http://ufldl.stanford.edu/housenumbers/train_32x32.mat", 182040794, "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),  # noqa: E501
            Published("http://ufldl.stanford.edu/housenumbers/test_32x32.mat", 64275384, "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),  # noqa: E501
        ),
        ("svhn", "SVHN"), ("train_32x32.mat",), "", _open_svhn,
    ),
    "imagenette": BuiltIn(
        (Published("https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz", 341553947, "5020a9130cea0348272823cb12d2db7e981c6f2afa3dce71ccd5b8013005c55e"),),  # noqa: E501
        ("imagenette", "imagenette2-320", "imagenette2-160", "imagenette2"), ("train",),
        "imagenette2-320", _open_imagenette,
    ),
}
# fmt: on


def open_built_in(name: str, asked: DataConfig, *, say: Say | None = None) -> Dataset:
    """Raises UsageError, DamagedError, StorageError: it is not here and cannot be fetched."""
    known = BUILT_IN[name]
    kept = cache_folder(asked.cache_dir) / "datasets" / (known.kept or name)
    folder = found(known) or (kept if _holds(kept, known) else None)
    if folder is None:
        _fetch(name, known, kept, say or (lambda _: None))
        folder = kept
    return replace(known.open(folder, asked), name=name)


def places() -> list[Path]:
    """Where data sets may lie, in the order in which they are looked for."""
    given = os.environ.get("VIDI_DATA", "")
    return [
        *(Path(part).expanduser() for part in given.split(os.pathsep) if part),
        Path("data"),
        Path("datasets"),
        Path("/usr/share/datasets"),
    ]


def found(known: BuiltIn) -> Path | None:
    for place in places():
        for name in known.folders:
            if _holds(place / name, known):
                return place / name
    return None


def _holds(folder: Path, known: BuiltIn) -> bool:
    return any((folder / name).exists() for name in known.inside)


def _fetch(name: str, known: BuiltIn, kept: Path, say: Say) -> None:
    """Download all files beside `kept`, and let it appear whole."""
    beside = kept.parent / f"{name}.downloads"
    make_folder(beside)
    for file in known.files:
        path = beside / file.name
        if path.is_file():
            verify(path, file.sha256)
            continue
        say(f"downloading {file.url} ({file.size_bytes / 1e6:,.0f} MB) to {beside}")
        download(
            file.url,
            path,
            sha256=file.sha256,
            size_bytes=file.size_bytes,
            watch=_tenths(file.name, say),
            instead=f"put an unpacked '{known.folders[0]}' into a folder that VIDI_DATA names",
        )
    try:
        with _appearing(kept) as folder:
            for file in known.files:
                if known.unpack:
                    _unpack(beside / file.name, known.unpack, folder)
                else:
                    (beside / file.name).replace(folder / file.name)
    except OSError as error:
        raise cache_trouble(kept, error) from error
    shutil.rmtree(beside, ignore_errors=True)


def _tenths(name: str, say: Say) -> Watch:
    said = 0

    def watch(done: int, total: int | None) -> None:
        nonlocal said
        tenths = 10 * done // total if total else 0
        if tenths > said and total is not None and total > 20_000_000:
            said = tenths
            say(f"{name}: {10 * tenths} %")

    return watch


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A folder to fill, which is then called `path`; nothing where it could not be filled."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=".unpacking-"))
    try:
        yield beside
        if path.exists():
            shutil.rmtree(path)
        beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _unpack(archive: Path, inner: str, folder: Path) -> None:
    """The regular files below `inner`, into `folder`."""
    if archive.suffix == ".zip":
        _unpack_zip(archive, inner, folder)
        return
    count = 0
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if not member.isreg() or not name.startswith(f"{inner}/"):
                    continue
                rest = Path(name).relative_to(inner)
                source = tar.extractfile(member)
                if ".." in rest.parts or rest.is_absolute() or source is None:
                    raise DataError(f"{archive} has a member {name}")
                (folder / rest).parent.mkdir(parents=True, exist_ok=True)
                with (folder / rest).open("xb") as file:
                    shutil.copyfileobj(source, file)
                count += 1
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DamagedError(f"{archive} cannot be unpacked: {error}", fix=_AGAIN) from error
    if not count:
        raise DamagedError(f"{archive} has no folder {inner}", fix=_AGAIN)


def _unpack_zip(archive: Path, inner: str, folder: Path) -> None:
    """`_unpack` for a zip file; only files that lie in `inner` itself."""
    count = 0
    try:
        with zipfile.ZipFile(archive) as packed:
            for member in packed.infolist():
                place, _, name = member.filename.rpartition("/")
                if place != inner or member.is_dir() or not _PLAIN_NAME.fullmatch(name):
                    continue
                with packed.open(member) as source, (folder / name).open("xb") as file:
                    shutil.copyfileobj(source, file)
                count += 1
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise DamagedError(f"{archive} cannot be unpacked: {error}", fix=_AGAIN) from error
    if not count:
        raise DamagedError(f"{archive} has no folder {inner}", fix=_AGAIN)


_PLAIN_NAME: Final = re.compile(r"\w[\w.-]*")
