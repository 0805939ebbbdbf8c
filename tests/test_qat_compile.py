"""torch.compile around the emulation and around a converted model: nothing is fused into other bits."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from qat_nets import frozen_cnn, images, prepared_cnn
from soniq_kernels import qat

pytestmark = pytest.mark.filterwarnings("ignore")  # of the compiler, about its own imports


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@torch.no_grad()
def test_inductor_gives_the_same_bits():
    """The real compiler, on the emulation and on the packed network, in one graph each."""
    model = frozen_cnn().eval()
    packed = qat.convert(model)
    x = images(5, seed=3)
    expected = model(x)
    assert torch.equal(torch.compile(model, fullgraph=True)(x), expected)
    assert torch.equal(torch.compile(packed, fullgraph=True)(x), expected)


def test_gradients_through_a_compiled_model():
    model = qat.fix_batch_norm(frozen_cnn()).train()
    x = images()
    expected, got = (
        gradients(model, run(x)) for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager"))
    )
    assert expected.keys() == got.keys()
    for name, gradient in expected.items():
        assert torch.equal(gradient, got[name]), name


def gradients(model, y) -> dict[str, torch.Tensor]:
    model.zero_grad()
    y.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_noise_phase_compiles():
    model = prepared_cnn()
    torch.compile(model, fullgraph=True, backend="aot_eager")(images()).sum().backward()
    assert model[3].precision.grad is not None


def test_opcheck_of_the_emulation():
    """Schema, fake and autograd registration of the training ops."""
    from soniq_kernels.qat import emulation, folding, nested, quantizer

    x, w = torch.randn(2, 4, 5, 5, requires_grad=True), torch.randn(6, 2, 3, 3, requires_grad=True)
    scale, bias = torch.rand(6, requires_grad=True), torch.randn(6, requires_grad=True)
    factor = torch.tensor(0.5, requires_grad=True)
    geometry = [2, 1, 1, 0, 1, 2, 1, 1, 2]
    torch.library.opcheck(emulation.emulate, (x, w, factor, scale, bias, geometry, False))
    torch.library.opcheck(emulation.emulate, (x, w, factor, scale, None, geometry, True))
    torch.library.opcheck(emulation.emulate, (x, x[0, 0], factor, scale[:5], bias[:5], [], False))
    table = quantizer.Table.of("bipolar", torch.tensor([2, 4, 2, 4]), (4, 1, 1))
    for surrogate in ("clipped", "identity", "tanh"):
        torch.library.opcheck(quantizer._levels, (x, factor, *table, surrogate))
    torch.library.opcheck(nested.mixture, (scale, bias, torch.rand(6, dtype=torch.float64)))
    statistics = (torch.randn(6), torch.rand(6), 1e-5)
    torch.library.opcheck(folding.fold_batch_norm, (scale, bias, bias.detach(), scale.detach(), *statistics))
