"""The examples of pretrained networks, on weights of chance: their parts, and one whole run of CREPE."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module", autouse=True)
def _examples_are_importable():
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


def test_pitch_of_tones_is_what_they_sound_like():
    import crepe_model

    frames, pitch = crepe_model.tones(6, seed=0)
    assert frames.shape == (6, 1, 1024, 1) and torch.equal(frames, crepe_model.tones(6, seed=0)[0])
    bins = (1200 * (pitch / 10).log2() - crepe_model.FIRST_BIN) / crepe_model.CENTS_A_BIN
    peak = torch.exp(-((torch.arange(crepe_model.BINS) - bins.unsqueeze(1)) ** 2))
    logits = torch.logit(peak.clamp(1e-9, 1 - 1e-9)).float()
    assert crepe_model.accuracy(logits, pitch) == 100
    assert crepe_model.accuracy(logits, pitch * 2 ** (60 / 1200)) == 0, "60 cents off"


def test_crepe_reads_the_package_files_layout(tmp_path):
    import crepe_model

    torch.manual_seed(0)
    ours = crepe_model.tiny().eval()
    theirs = {}
    for i in range(6):
        theirs |= {f"conv{i + 1}.{name}": value for name, value in ours[4 * i].state_dict().items()}
        theirs |= {f"conv{i + 1}_BN.{name}": value for name, value in ours[4 * i + 2].state_dict().items()}
    weight = ours[-1].weight.detach().unflatten(1, (-1, 4)).transpose(1, 2).flatten(1)
    torch.save(theirs | {"classifier.weight": weight, "classifier.bias": ours[-1].bias.detach()}, tmp_path / "tiny.pth")
    loaded = crepe_model.load("tiny", tmp_path / "tiny.pth")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in ours.state_dict().items())
    with pytest.raises(FileNotFoundError, match="expected assets/full.pth of the package"):
        crepe_model.load("full", tmp_path / "full.pth")


def test_minilm_reads_the_package_files_layout(tmp_path):
    import minilm_model
    from safetensors.torch import save_file

    model = minilm_model.MiniLM()
    theirs = {minilm_model._their_name(name): value for name, value in model.state_dict().items() if name != "types"}
    save_file(theirs | {"embeddings.token_type_embeddings.weight": torch.ones(2, 384)}, tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json"):
        minilm_model.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    loaded = minilm_model.load(tmp_path)
    assert "encoder.layer.5.attention.self.value.bias" in theirs and torch.equal(
        loaded.words.weight, model.words.weight
    )
    with torch.no_grad():
        assert loaded(torch.tensor([[101, 2023, 102], [101, 102, 0]])).shape == (2, 384)


def test_sentences_of_the_test_are_of_other_works(tmp_path):
    import minilm

    shared = "This very sentence stands in both of the works. "
    (tmp_path / "hamlet_gut.txt").write_text(shared + "A sentence for the test alone is this one.")
    (tmp_path / "tempest_gut_f.txt").write_text(shared + "A sentence for the calibration alone is this one. Short.")
    known, unknown = minilm.sentences(tmp_path)
    assert known == ["A sentence for the calibration alone is this one."]
    assert unknown == ["A sentence for the test alone is this one."]
    with pytest.raises(FileNotFoundError, match="shakespeare"):
        minilm.sentences(tmp_path / "nothing")


def test_evidence_counts_and_finds(tmp_path, monkeypatch):
    """A small network of the examples' own kind: no difference, here and in a new process; a planted one is counted."""
    import pretrained
    from torch import nn

    from soniq_kernels import qat

    (tmp_path / "net_of_a_test.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    batches = [torch.randn(5, 6), torch.randn(4, 6)]
    qat.quantize_model(model, batches, qat.PostTraining(palette=(4, 4), steps=0))
    found = pretrained.evidence(model, "net_of_a_test:net", batches, tmp_path / "net.safetensors")
    assert found == {
        "values": 9 * (8 + 3 + 3),
        "different": 0,
        "new_process_digests": 8,
        "new_process_different": 0,
    }
    right = pretrained.digests(model, batches)
    with torch.no_grad():
        model[2].bias += 1
    assert sum(a != b for a, b in zip(right["2"], pretrained.digests(model, batches)["2"], strict=True)) == 2


def test_sizes_name_both_widths(tmp_path):
    """Channels of W4A8 beside those of 8: the shares have names and whole numbers."""
    import pretrained
    from torch import nn

    from soniq_kernels import qat

    model = nn.Sequential(nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 3)).eval()
    how = dict(palette=(4, 8), a_palette=(8, 8), target=6.0, first_bits=None, last_bits=None, steps=0, block=4)
    qat.quantize_model(model, [torch.randn(9, 64)], qat.PostTraining(**how))
    (tmp_path / "file").write_bytes(bytes(100))
    sizes = pretrained.sizes(model, 400, tmp_path / "file")
    assert sizes["compression"] == 4 and sizes["layer_bits"] <= 6
    assert set(sizes["shares"]) == {8, "W4A8"} and sum(sizes["shares"].values()) == 1


def test_results_are_written_at_once(tmp_path, monkeypatch):
    import pretrained

    monkeypatch.setattr(pretrained, "RESULTS", tmp_path)
    results = pretrained.Results("net")
    results.keep("a", {"accuracy": 1.5})
    results.keep("a", {"milliseconds": 2.0})
    assert json.loads((tmp_path / "net.json").read_text())["runs"] == {"a": {"accuracy": 1.5, "milliseconds": 2.0}}
    pretrained.page(pretrained.Results("net"), "Net", {"accuracy, %": "accuracy", "bytes": "bytes"}, "A note.")
    assert "| a | 1.5 |  |" in (tmp_path / "net.md").read_text()
