"""The training emulation, the packed layers and the oracle: the same bits."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

import oracle
from cases import assert_same, assert_same_bits
from oracle import Grid, Layout
from qat_nets import draw_bits, frozen_layer
from soniq_kernels import qat
from soniq_kernels.qat import exactness
from soniq_kernels.qat.quantizer import Table, codes, levels

WIDTHS = [(1,), (3,), (8,), (2, 4), (1, 8), (3, 5), (4, 8)]
KINDS = ["bipolar", "unsigned"]
CONVOLUTIONS = {
    "3x3": dict(in_channels=5, out_channels=7, kernel_size=3, padding=1),
    "1x1": dict(in_channels=12, out_channels=4, kernel_size=1, bias=False),
    "strided": dict(in_channels=6, out_channels=8, kernel_size=3, stride=2, padding=(1, 0)),
    "dilated": dict(in_channels=6, out_channels=5, kernel_size=3, dilation=2, padding=2),
    "groups": dict(in_channels=12, out_channels=6, kernel_size=3, groups=3, padding=1),
    "depthwise": dict(in_channels=10, out_channels=20, kernel_size=3, groups=10, padding=1),
    "same, even": dict(in_channels=4, out_channels=6, kernel_size=(2, 4), padding="same"),
}


def oracle_layout(layer: qat.QuantLayer) -> Layout:
    pairs = tuple((Grid("bipolar", w), Grid(layer.kind, a)) for w, a in layer.pairs)
    channels = zip(layer.bits.tolist(), layer.a_bits.tolist(), strict=True)
    return Layout(tuple(map(layer.pairs.index, channels)), pairs)


def oracle_output(model: nn.Module, x: torch.Tensor) -> np.ndarray:
    """What the contract says the frozen layer computes: codes, int64 sums, float32 steps; NCHW or [..., N]."""
    layer, layout = model[0], oracle_layout(model[0])
    scale, bias = (None if t is None else t.detach().numpy() for t in layer.shipped())
    image = isinstance(layer, qat.QuantConv2d)
    data, weight = x.numpy(), layer.weight.detach().numpy()
    if image:
        data, weight = data.transpose(0, 2, 3, 1), weight.transpose(0, 2, 3, 1)
    input_scale = layer.input.scale().detach().numpy()
    x_codes = oracle.quantize_channels(data, layout.segment, oracle.a_grids(layout), input_scale)
    w_codes = oracle.quantize_weights(weight, layout, layer.weight_scale().detach().numpy())
    if image:
        acc = oracle.conv2d(x_codes, w_codes, layout, layer.place.stride, layer.place.padding, layer.place.dilation)
    else:
        acc = oracle.matmul(x_codes, w_codes, layout)
    y = oracle.epilogue(acc, input_scale, oracle.total_exponent(layout), oracle.Epilogue(scale, bias))
    return y.transpose(0, 3, 1, 2) if image else y


def assert_all_agree(model: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        emulated = model(x)
    assert_same_bits(emulated.numpy(), oracle_output(model, x), "emulation against oracle")
    result = qat.verify(model, qat.convert(model), x)
    assert result, str(result)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_linear(widths, kind):
    torch.manual_seed(1)
    x = torch.randn(3, 5, 37)
    assert_all_agree(frozen_layer(nn.Linear(37, 9), draw_bits(37, widths), kind, x), x)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("widths", [(2, 4), (8,), (1, 8)], ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name, widths, kind):
    torch.manual_seed(2)
    layer = nn.Conv2d(**CONVOLUTIONS[name])
    x = torch.randn(2, layer.in_channels, 9, 8)
    assert_all_agree(frozen_layer(layer, draw_bits(layer.in_channels, widths), kind, x), x)


@pytest.mark.parametrize("name", ["3x3", "depthwise"])
def test_one_image(name):
    torch.manual_seed(3)
    layer = nn.Conv2d(**CONVOLUTIONS[name])
    x = torch.randn(1, layer.in_channels, 9, 9)
    model = frozen_layer(layer, draw_bits(layer.in_channels, (2, 4)), "unsigned", x)
    assert_all_agree(model, x)
    assert torch.equal(model(x[0]), model(x)[0]), "an image without a batch dimension"
    assert torch.equal(qat.convert(model)(x[0]), model(x)[0])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_folded_batch_norm(bias, affine):
    torch.manual_seed(4)
    x = torch.randn(3, 6, 7, 7)
    norm = nn.BatchNorm2d(8, affine=affine)
    model = frozen_layer(nn.Conv2d(6, 8, 3, bias=bias), draw_bits(6, (2, 4)), "bipolar", x, norm if affine else None)
    if not affine:
        model[0].norm = norm.eval()
        nn.init.uniform_(norm.running_var, 0.1, 3.0)
    assert model[0].norm is norm
    assert_all_agree(model, x)


def test_linear_with_batch_norm():
    torch.manual_seed(5)
    x = torch.randn(6, 10)
    assert_all_agree(frozen_layer(nn.Linear(10, 4), draw_bits(10, (1, 4)), "bipolar", x, nn.BatchNorm1d(4)), x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("widths", [(8,), (4, 8), (1, 8), (2, 4)], ids=str)
def test_extreme_inputs_where_float32_is_too_narrow(widths, sign, kind):
    """All-max codes at a K where sums pass 2^24; one odd product must not get lost among them."""
    channels = 130_000 if widths == (2, 4) else 3000
    layer = nn.Linear(channels, 2)
    nn.init.constant_(layer.weight, 1.0)
    with torch.no_grad():
        layer.weight[1, ::2] = -1.0
        layer.weight[1, 0] = 0.013
    x = torch.full((2, channels), float(sign))
    x[1, ::3] = 0.011
    model = frozen_layer(layer, draw_bits(channels, widths), kind, x)
    assert model[0].bound >= exactness.FLOAT32_EXACT
    assert_all_agree(model, x)


def test_wide_convolution():
    torch.manual_seed(6)
    x = torch.rand(1, 64, 6, 6) * 100
    layer = nn.Conv2d(64, 3, 3, padding=1)
    nn.init.constant_(layer.weight, 0.7)
    model = frozen_layer(layer, draw_bits(64, (4, 8)), "unsigned", x)
    assert model[0].bound >= exactness.FLOAT32_EXACT
    assert_all_agree(model, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("widths", [(8,), (2, 4), (1, 8), (3,)], ids=str)
def test_bound_is_the_oracles(widths, kind):
    bits = draw_bits(24, widths)
    layer = frozen_layer(nn.Conv2d(24, 6, 3, groups=3), bits, kind, torch.randn(1, 24, 5, 5))[0]
    assert layer.bound == oracle.bound(oracle_layout(layer), taps=9, groups=3)


def test_reduced_precision_products_are_not_used():
    torch.manual_seed(7)
    x = torch.randn(4, 300)
    model = frozen_layer(nn.Linear(300, 8), draw_bits(300, (8,)), "bipolar", x)
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        assert not exactness.float32_is_exact(x.device)
        assert_all_agree(model, x)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def test_autocast_changes_nothing():
    torch.manual_seed(8)
    x = torch.randn(2, 6, 5, 5)
    model = frozen_layer(nn.Conv2d(6, 4, 3), draw_bits(6, (2, 4)), "bipolar", x)
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(x), expected)


def test_nonzero_flush_denormal_setting_changes_nothing():
    torch.manual_seed(9)
    x = torch.randn(4, 20) * 1e-38
    model = frozen_layer(nn.Linear(20, 4), draw_bits(20, (2, 4)), "bipolar", x)
    with torch.no_grad():
        expected = model(x)
        if torch.set_flush_denormal(True):
            try:
                assert torch.equal(model(x), expected)
            finally:
                torch.set_flush_denormal(False)


# --- the quantizer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_quantizer_is_the_oracles(bits, kind):
    generator = torch.Generator().manual_seed(bits)
    scale = torch.tensor(0.37)
    ties = torch.arange(-600, 600) * scale * 2.0 ** (-bits)
    specials = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, 3e38])
    x = torch.cat([torch.randn(4000, generator=generator), ties, specials])
    table = Table.of(kind, torch.tensor([bits]), (1,))
    expected = oracle.quantize(x.numpy(), Grid(kind, bits), scale.numpy())
    assert_same(codes(x, scale, table).numpy(), expected)
    assert_same(levels(x, scale, table).numpy().astype(np.int64), oracle.levels(Grid(kind, bits))[expected])


def test_straight_through_inside_zero_outside():
    x = torch.tensor([-2.5, -1.9, -0.3, 0.0, 1.9, 2.5], requires_grad=True)
    table = Table.of("bipolar", torch.tensor([2]), (1,))
    levels(x, torch.tensor(1.0), table).sum().backward()
    assert x.grad.tolist() == [0, 2, 2, 2, 2, 0], "levels are odd numbers in steps of 2 for a step of 1 in x"


def test_scale_gradient_is_that_of_lsq():
    """d(scale * value)/d scale = value - x / scale inside the range, value outside."""
    x = torch.tensor([-5.0, -0.75, 0.25, 0.5, 5.0])
    scale = torch.tensor(2.0, requires_grad=True)
    table = Table.of("bipolar", torch.tensor([2]), (1,))
    for value, expected in zip(x, [-1.5, -0.5 + 0.375, 0.5 - 0.125, 0.5 - 0.25, 1.5], strict=True):
        scale.grad = None
        (levels(value.view(1), scale, table) * 0.5 * scale).sum().backward()
        assert scale.grad.item() == expected


@pytest.mark.parametrize("padding", [1, "same", (0, 2)])
def test_gradients_of_a_convolution(padding):
    """Whole-number operands make float32 gradients exact, so they must equal autograd's own."""
    from soniq_kernels.qat.emulation import emulate
    from soniq_kernels.qat.geometry import Geometry

    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(4, 6, (3, 2), padding=padding, groups=2)
    place = Geometry.of(layer)
    shapes = [(2, 4, 6, 5), (6, 2, 3, 2), (), (6,), (6,)]
    values = [torch.randint(-4, 5, shape, generator=generator).float() for shape in shapes]
    mine = [v.clone().requires_grad_() for v in values]
    theirs = [v.clone().requires_grad_() for v in values]
    y, _ = emulate(*mine, place.ints(), False)
    x, w, factor, scale, bias = theirs
    top, bottom, left, right = place.padding
    padded = nn.functional.pad(x, (left, right, top, bottom))
    expected = nn.functional.conv2d(padded, w, groups=2) * factor * scale.view(-1, 1, 1) + bias.view(-1, 1, 1)
    weights = torch.randint(-2, 3, y.shape, generator=generator).float()
    assert torch.equal(y, expected)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)], ids=str)
def test_gradients_of_a_linear(shape):
    from soniq_kernels.qat.emulation import emulate

    generator = torch.Generator().manual_seed(1)
    values = [torch.randint(-4, 5, s, generator=generator).float() for s in [shape, (4, 5), (), (4,), (4,)]]
    mine = [v.clone().requires_grad_() for v in values]
    theirs = [v.clone().requires_grad_() for v in values]
    emulate(*mine, [], False)[0].square().sum().backward()
    x, w, factor, scale, bias = theirs
    (nn.functional.linear(x, w) * factor * scale + bias).square().sum().backward()
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a.grad, b.grad)


def test_gradients_of_folding():
    """A variance of 4 and small whole numbers: every step is exact, so == is fair."""
    from soniq_kernels.qat.folding import fold_batch_norm

    generator = torch.Generator().manual_seed(2)
    drawn = [torch.randint(-8, 9, (5,), generator=generator).float() for _ in range(7)]
    mine = [v.clone().requires_grad_() for v in drawn[:4]]
    theirs = [v.clone().requires_grad_() for v in drawn[:4]]
    mean, variance = drawn[4], torch.full((5,), 4.0)
    folded = fold_batch_norm(*mine, mean, variance, 0.0)
    scale, bias, weight, shift = theirs
    gain = weight / variance.sqrt()
    expected = (scale * gain, (bias - mean) * gain + shift)
    for got, want in zip(folded, expected, strict=True):
        assert torch.equal(got, want)
    torch.autograd.backward(folded, drawn[5:])
    torch.autograd.backward(expected, drawn[5:])
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_gpu_form_of_a_convolution(name):
    """Unfold and multiply, which a GPU uses, on this machine's processor: the same whole numbers."""
    from soniq_kernels.qat import emulation
    from soniq_kernels.qat.geometry import Geometry

    layer = nn.Conv2d(**CONVOLUTIONS[name])
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(-15, 16, (2, layer.in_channels, 9, 8), generator=generator).float()
    w = torch.randint(-15, 16, layer.weight.shape, generator=generator).float()
    place = Geometry.of(layer)
    assert torch.equal(emulation._unfolded(x, w, place), emulation.convolve(x, w, place))
