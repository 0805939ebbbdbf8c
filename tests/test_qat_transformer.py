"""Transformers: attention of separate projections as Hugging Face has it, torch's own attention, embeddings."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch import nn

from qat_nets import quant_layers
from soniq_kernels import packing, qat

WIDTH, HEADS, TOKENS, WORDS = 16, 2, 6, 30


class Attention(nn.Module):
    """Separate query, key and value projections, a mask, keyword arguments."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, hidden_states, attention_mask=None):
        def heads(x):
            return x.view(*x.shape[:-1], HEADS, WIDTH // HEADS).transpose(1, 2)

        q, k, v = heads(self.query(hidden_states)), heads(self.key(hidden_states)), heads(self.value(hidden_states))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        return self.output(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.norm, self.last_norm = Attention(), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, hidden_states, attention_mask=None):
        x = self.norm(hidden_states + self.attention(hidden_states, attention_mask=attention_mask))
        return self.last_norm(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """Embedding, two blocks, a head tied to the embedding; branches on whether there is a mask, returns a dict."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, input_ids, attention_mask=None):
        if attention_mask is not None:
            attention_mask = attention_mask[:, None, None, :].bool()
        x = self.words(input_ids)
        for block in self.blocks:
            x = block(x, attention_mask)
        return {"logits": self.head(x)}


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(WORDS, (3, TOKENS), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.arange(TOKENS) < torch.tensor([[6], [4], [5]])}


def test_an_encoder_through_every_phase(tmp_path):
    torch.manual_seed(0)
    model = qat.prepare(Encoder(), qat.Config(palette=(2, 4), target_bits=2.5, last_bits=None), batch())
    projections = ["query", "key", "value", "output"]
    names = {
        f"blocks.{i}.{name}" for i in range(2) for name in [f"attention.{p}" for p in projections] + ["up", "down"]
    }
    quantized = {name for name, module in model.named_modules() if isinstance(module, qat.QuantLinear)}
    assert quantized == names | {"head"}
    assert model.head.weight is model.words.weight, "tied weights stay tied"
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(qat.param_groups(model.train(), lr=1e-2))
    for phase in range(2):
        for step in range(2):
            y = model(**batch(step))["logits"]
            loss = F.cross_entropy(y.flatten(0, 1), batch(step)["input_ids"].flatten()) + qat.bit_penalty(model)
            qat.check_finite(loss, model, batch(step)).backward()
            optimizer.step()
            optimizer.zero_grad()
        if not phase:
            qat.freeze(model)
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert still == {
        f"blocks.0.attention.{name}.input.{what}" for name, what in [("query", "gain"), ("query", "precision")]
    }
    packed = qat.convert(model)
    result = qat.verify(model, packed, batch(7))
    assert result and len(result.layers) == 13, str(result)
    qat.save(packed, tmp_path / "encoder.safetensors")
    again = qat.load(tmp_path / "encoder.safetensors", Encoder())
    assert torch.equal(again(**batch(8))["logits"], packed(**batch(8))["logits"])
    floats = {row.name: row.kernel for row in qat.report(model).layers if row.kernel.startswith("float")}
    assert floats == {"words": "float: Config(embedding_bits=8) would pack its rows"}


@pytest.mark.parametrize("bits", [4, 8])
def test_embeddings_of_codes(bits, tmp_path):
    """Rows are looked up: values are those of the packed bytes, bit for bit, and the codes stay what the weights were."""
    torch.manual_seed(0)
    model = Encoder()
    with torch.no_grad():
        model.words.weight[0] = 0.0
    exact = model.words.weight.detach().clone()
    qat.prepare(model, qat.Config(embedding_bits=bits, last_bits=None), batch())
    optimizer = torch.optim.SGD(qat.param_groups(model.train(), lr=0.05))
    model(**batch())["logits"].square().mean().backward()
    optimizer.step()
    assert model.head.weight is model.words.weight and not torch.equal(model.words.weight, exact)
    qat.freeze(model).eval()
    packed = qat.convert(model)
    assert qat.verify(model, packed, batch(3))
    rows = packed.words.packed_weights()
    ids = torch.arange(WORDS).view(5, 6)
    assert torch.equal(packed.words(ids), torch.from_numpy(rows.dequantize())[ids])
    assert torch.equal(model.words(ids), packed.words(ids))
    expected = packing.quantize_weights(model.words.weight.detach().numpy(), rows.plan, rows.scale)
    assert (rows.codes() == expected.codes()).all(), "the quantizer of the kernels"
    qat.save(packed, tmp_path / "encoder.safetensors")
    again = qat.load(tmp_path / "encoder.safetensors", Encoder())
    assert torch.equal(again(**batch(8))["logits"], packed(**batch(8))["logits"])
    fresh = qat.prepare(Encoder(), qat.Config(embedding_bits=bits, last_bits=None), batch())
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(**batch(8))["logits"], model(**batch(8))["logits"])
    (row,) = [row for row in qat.report(packed).layers if row.name == "words"]
    assert row.average_bits == bits and row.bytes == WORDS * WIDTH * bits // 8 + 4 * WORDS


def test_a_row_of_zeros_stays_as_good_as_zero():
    model = nn.Sequential(nn.Embedding(4, WIDTH, padding_idx=0), nn.Linear(WIDTH, 4), nn.Linear(4, 4))
    qat.prepare(model, qat.Config(embedding_bits=8), torch.tensor([[0, 1]]))
    assert model[0](torch.tensor(0)).abs().max() < 1e-29


def test_embeddings_that_cannot_be_codes_say_why():
    model = nn.Sequential(nn.Embedding(4, WIDTH, max_norm=1.0), nn.Linear(WIDTH, 4), nn.Linear(4, 4))
    qat.prepare(model, qat.Config(embedding_bits=8), torch.tensor([[0, 1]]))
    assert qat.report(model).layers[0].kernel == "float: max_norm changes the weights at every call"


class OwnAttention(nn.Module):
    """torch's encoder layers, whose fast path reads weights past the layers that hold them."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(WIDTH, 4)

    def forward(self, x, mask=None):
        return self.head(self.encoder(x, src_key_padding_mask=mask))


@torch.no_grad()
def test_torchs_own_attention_stays_float_with_a_reason(tmp_path):
    torch.manual_seed(0)
    model, x = OwnAttention(), torch.randn(2, TOKENS, WIDTH)
    qat.prepare(model, qat.Config(first_bits=None, last_bits=None), x)
    assert len(quant_layers(model)) == 5, "the feed-forward layers and the head"
    reasons = {row.name: row.kernel for row in qat.report(model).layers if row.kernel.startswith("float")}
    assert len(reasons) == 4 and all("use an attention of separate nn.Linear layers" in why for why in reasons.values())
    qat.freeze(model)
    packed = qat.convert(model)
    for arguments in (x, (x, torch.arange(TOKENS) >= torch.tensor([[6], [4]]))):
        result = qat.verify(model, packed, arguments)
        assert result and len(result.layers) == 5, f"no layer is passed by: {result}"
    qat.save(packed, tmp_path / "net.safetensors")
    assert torch.equal(qat.load(tmp_path / "net.safetensors", OwnAttention())(x), packed(x))
