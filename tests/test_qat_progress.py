"""Live figures while training, and the picture of a report."""

from __future__ import annotations

import io

import pytest

torch = pytest.importorskip("torch")

from rich.console import Console

from qat_nets import frozen_cnn, images, prepared_cnn
from soniq_kernels import isa, qat
from soniq_kernels.qat import progress as module
from soniq_kernels.qat.budget import average_bits, learned_layers


class Writer:
    """What TensorBoard's SummaryWriter is to its users."""

    def __init__(self):
        self.seen: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.seen.append((tag, scalar_value, global_step))


def test_progress_shows_and_logs_the_figures():
    model, writer, text = prepared_cnn(), Writer(), io.StringIO()
    console = Console(file=text, force_terminal=True, width=150)
    with qat.Progress(model, steps=4, log=writer, every=2, first=10, console=console) as progress:
        for _ in range(4):
            progress.step(loss=torch.tensor(1.5, requires_grad=True), accuracy=0.25)
    bits = float(average_bits(learned_layers(model)).detach())
    expected = [("bits", bits), ("target", 2.5), ("loss", 1.5), ("accuracy", 0.25)]
    assert writer.seen == [(name, value, step) for step in (12, 14) for name, value in expected]
    assert (
        f"noise  bits {bits:.4g}  target 2.5  loss 1.5  accuracy 0.25" in text.getvalue() and "14/14" in text.getvalue()
    )
    assert qat.Progress(frozen_cnn(), 1).phase == "exact"


def test_values_are_not_read_at_every_step(monkeypatch):
    """Each reading would wait for a GPU."""
    monkeypatch.setattr(module, "SECONDS", 1e9)
    reads = []

    class Loss:
        def __float__(self):
            reads.append(1)
            return 0.0

    with qat.Progress(prepared_cnn(), steps=100, console=Console(file=io.StringIO())) as progress:
        for _ in range(100):
            progress.step(loss=Loss())
    assert len(reads) <= 2, "the first look, and the last step"


@pytest.mark.parametrize("packed", [False, True])
def test_the_picture_of_a_report(packed, tmp_path):
    pytest.importorskip("matplotlib")
    model = frozen_cnn()
    report = qat.report(qat.convert(model) if packed else model, accuracy="91.2 % of the test")
    for name in ("report.png", "report.svg"):
        report.plot(tmp_path / name)
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"
    drawn = (tmp_path / "report.svg").read_text()
    assert "<!-- 2 bits -->" in drawn and f"<!-- {report.headline} -->" in drawn
    assert report.headline.endswith("91.2 % of the test") and report.headline in str(report).replace("\n", " ")


def test_time_of_layers_is_that_of_the_table():
    from soniq_kernels.qat.cost import relative_time

    with isa.use("reference"):
        assert {row.time for row in qat.report(frozen_cnn()).layers} == {None}
    with qat.machine("avx2"):
        rows = qat.report(qat.freeze(qat.prepare(prepared_linears(), qat.Config.uniform(2), torch.rand(4, 32)))).layers
        assert [row.time for row in rows] == [1.0, relative_time(2, 2, 64, 1), 1.0]
    qat.convert(frozen_cnn())(images())


def prepared_linears() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Linear(64, 64), torch.nn.Linear(64, 4))
