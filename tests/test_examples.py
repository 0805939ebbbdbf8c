"""The experiments of examples/: runs are resumed and not repeated, every output is compared, tables say what is missing."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for package in ("sklearn", "matplotlib", "rich", "typer"):
    pytest.importorskip(package)

from soniq_kernels import qat

EXAMPLES = Path(__file__).parent.parent / "examples"
IMAGES = 640  # five steps of 128


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)


def idx(path: Path, values: np.ndarray) -> None:
    head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(gzip.compress(head + values.tobytes()))


@pytest.fixture
def fashion_folder(tmp_path) -> Path:
    """Noise in the files of Fashion-MNIST."""
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        idx(tmp_path / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (IMAGES, 28, 28), np.uint8))
        idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", rng.integers(0, 10, IMAGES, np.uint8))
    return tmp_path


def small(experiment, folder: Path):
    """The same with one epoch of everything and results of its own."""
    store = dataclasses.replace(experiment.store, results=folder / "results", scratch=folder / "out")
    return dataclasses.replace(experiment, store=store, teacher_epochs=1, epochs=(1, 1, 1))


def identical(result: dict) -> bool:
    checks = [result["layers"], result["network"], result["new_process"]]
    compared = result["layers"]["values"] and result["network"]["values"] and result["new_process"]["layer_batches"]
    return bool(compared) and not any(each["different"] + each.get("layer_batches_different", 0) for each in checks)


def test_images_from_recipe_to_table(fashion_folder, capsys):
    import fashion_mnist as example

    experiment = small(example.EXPERIMENT, fashion_folder)
    data = example.Images(fashion_folder)
    page, picture = experiment.command(lambda: data, ["teacher", "fp32", "soniq-1.5"], [0], True, 1, True)
    result = experiment.store.read("soniq-1.5", 0)
    assert identical(result)
    assert result["inner_bits"] <= 1.5 < result["network_bits"] and result["epochs"] == 3
    assert experiment.store.times().keys() == {"soniq-1.5"} and experiment.store.times()["soniq-1.5"] > 0
    assert "uniform-2 | missing" in page.read_text() and picture.stat().st_size > 10_000
    experiment.command(lambda: pytest.fail("everything is there"), ["soniq-1.5"], [0], False, 1)
    assert "run 1 of" in capsys.readouterr().out


def test_text(tmp_path):
    import char_gpt as example

    (tmp_path / "play_gut.txt").write_text("To be, or not to be: that is the question.\n" * 100)
    experiment = small(example.EXPERIMENT, tmp_path)
    data = example.Text(tmp_path, steps=5, windows=5)
    experiment.command(lambda: data, ["magnitude-2.5"], [0], False, 1)
    result = experiment.store.read("magnitude-2.5", 0)
    assert identical(result)
    assert result["inner_bits"] < 2.6 and 2.4 < result["network_bits"] <= 2.5


def test_stages_that_join_share_one_cycle_of_the_rate():
    import runs

    stages = [runs.Stage(name, 1 + i, qat.param_groups, joins=i in (1, 2)) for i, name in enumerate("abcd")]
    assert [runs._epochs_of_cycle(stages, i) for i in range(4)] == [6, 6, 6, 4]


@pytest.mark.parametrize("joins", [False, True])
@pytest.mark.parametrize("broken", [1, 2, 3])
def test_an_interrupted_run_ends_like_one_that_was_not(tmp_path, broken, joins):
    import runs

    class Points:
        steps, epochs, stops = 5, 0, False

        def epoch(self):
            for step in range(self.steps):
                if self.stops and self.epochs == broken and step == 2:
                    raise KeyboardInterrupt
                yield torch.randn(16, 8)
            self.epochs += 1

        def loss(self, model, x):
            return (model(x) - x).square().mean()

    def trained(points: Points, file: str):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8))
        qat.prepare(model, qat.Config(palette=(2, 4), first_bits=None, last_bits=None), torch.randn(64, 8))
        exact = runs.Stage("exact", 2, qat.param_groups, qat.freeze, joins)
        stages = [runs.Stage("noise", 2, qat.param_groups), exact]
        done = runs.train(model, stages, points, tmp_path / file, "test")
        return model.state_dict(), [line["loss"] for line in done.log]

    expected, losses = trained(Points(), "whole")
    interrupted = Points()
    interrupted.stops = True
    with pytest.raises(KeyboardInterrupt):
        trained(interrupted, "interrupted")
    got, others = trained(Points(), "interrupted")
    assert losses == others and len(losses) == 4
    assert all(torch.equal(value, got[name]) for name, value in expected.items())


def test_tables_have_means_errors_and_what_is_missing(tmp_path):
    import comparison
    import runs

    store = runs.Store("made_up", tmp_path, tmp_path)
    for seed, (base, low) in enumerate([(90.0, 88.0), (91.0, 90.0), (92.0, 89.0)]):
        for recipe, bits, score in (("fp32", 32, base), ("uniform-2", 2, low)):
            store.write({"recipe": recipe, "seed": seed, "inner_bits": bits, "accuracy": score})
    rows = comparison.by_recipe(store.all(), ["fp32", "uniform-2", "soniq-2"])
    lines = comparison.table(rows, "accuracy").splitlines()
    assert "89.000 ± 0.577" in lines[3] and "-2.000 ± 0.577" in lines[3] and "0, 1, 2" in lines[3]
    assert "missing" in lines[4]
    assert json.loads(store.file("fp32", 1).read_text())["accuracy"] == 91
