"""Images for the demo: scikit-learn's digits, or Fashion-MNIST from a folder or a Debian package."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("usr/share/datasets/fashion-mnist")
CACHE = Path(__file__).resolve().parent.parent / ".cache" / PACKAGE
FILES = {
    "train_images": "train-images-idx3-ubyte.gz",
    "train_labels": "train-labels-idx1-ubyte.gz",
    "test_images": "t10k-images-idx3-ubyte.gz",
    "test_labels": "t10k-labels-idx1-ubyte.gz",
}


@dataclass(frozen=True)
class Images:
    """Images float32 [N, 1, H, W] in 0..1 and labels int64 [N], for training and for the test."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load(name: str, path: Path | None = None) -> Images:
    """The data set of that name; `path` is a folder with the four Fashion-MNIST files."""
    return digits() if name == "digits" else fashion_mnist(path)


def digits() -> Images:
    """1,797 images of 8 x 8 that come with scikit-learn: a fixed random fifth is the test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = (torch.from_numpy(data.images).float() / 16).unsqueeze(1)[order]
    labels = torch.from_numpy(data.target).long()[order]
    cut = len(labels) * 4 // 5
    return Images("digits", images[:cut], labels[:cut], images[cut:], labels[cut:])


def fashion_mnist(path: Path | None = None) -> Images:
    """60,000 + 10,000 images of 28 x 28."""
    folder = _fashion_folder(path)
    parts = {part: _idx(folder / file) for part, file in FILES.items()}
    images = {k: torch.from_numpy(v).float().div(255).unsqueeze(1) for k, v in parts.items() if k.endswith("images")}
    labels = {k: torch.from_numpy(v).long() for k, v in parts.items() if k.endswith("labels")}
    return Images("Fashion-MNIST", **images, **labels)


def _idx(path: Path) -> np.ndarray:
    """A gzipped IDX file of bytes: a big-endian header of 4 + 4 * dimensions bytes, then the data."""
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape).copy()


def _fashion_folder(path: Path | None) -> Path:
    if path is not None:
        return _complete(path) or _stop(f"{path} lacks one of {', '.join(FILES.values())}")
    found = _complete(Path("/") / INSTALLED) or _complete(CACHE / INSTALLED) or _unpack_debian_package()
    return found or _stop(
        f"Fashion-MNIST was not found and could not be fetched; either run 'apt-get install {PACKAGE}', or put "
        f"{', '.join(FILES.values())} into a folder and pass it with --data-path"
    )


def _complete(folder: Path) -> Path | None:
    return folder if all((folder / file).is_file() for file in FILES.values()) else None


def _unpack_debian_package() -> Path | None:
    """Fetch the Debian package and unpack it beside the repository; needs no root. None where that is not possible."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        return None
    CACHE.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["apt-get", "download", PACKAGE], cwd=CACHE, capture_output=True).returncode:
        return None
    for package in CACHE.glob(f"{PACKAGE}_*.deb"):
        subprocess.run(["dpkg", "-x", package, CACHE], check=True)
    return _complete(CACHE / INSTALLED)


def _stop(message: str) -> Path:
    raise SystemExit(f"demo: {message}")
