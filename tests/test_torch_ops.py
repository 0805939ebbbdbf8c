"""The torch custom ops: the same bits as the numpy functions, in eager mode, compiled and exported."""

from __future__ import annotations

import gc

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from soniq_kernels import conv, gemm, packing, torch_ops

CHANNELS, OUTPUTS = 12, 6


@pytest.fixture
def dense(rng):
    """(packed weights [6, 12], float32 input [3, 12])."""
    return pack(rng, (OUTPUTS, CHANNELS)), floats(rng, (3, CHANNELS))


@pytest.fixture
def filters(rng):
    """(packed weights of a 3x2 convolution with two groups, float32 input NCHW)."""
    return pack(rng, (OUTPUTS, 3, 2, CHANNELS // 2)), floats(rng, (2, CHANNELS, 7, 6))


def pack(rng, shape):
    plan = packing.Plan.mixed(rng.permutation([2] * 7 + [4] * 5), a_grid="unsigned")
    codes = rng.integers(0, 4, shape).astype(np.uint8)
    scale, bias = rng.normal(size=(2, OUTPUTS)).astype(np.float32)
    return packing.pack(codes, plan, scale, bias=bias, activation_scale=0.7)


def floats(rng, shape):
    return torch.from_numpy(rng.normal(size=shape).astype(np.float32))


def run_conv2d(x, weights, stride=(2, 1), padding=(1, 0, 2, 1), dilation=(1, 1)):
    return torch.ops.soniq.conv2d(x, weights, OUTPUTS, [3, 2], stride, padding, dilation)


def nhwc(x):
    return x.permute(0, 2, 3, 1).contiguous().numpy()


def same_bits(got: torch.Tensor, expected: np.ndarray) -> bool:
    return np.array_equal(got.contiguous().numpy().view(np.uint32), np.ascontiguousarray(expected).view(np.uint32))


# --- the same bits as numpy --------------------------------------------------------------------------------------


def test_linear(dense):
    packed, x = dense
    weights = torch_ops.weights_to_tensor(packed)
    assert same_bits(torch.ops.soniq.linear(x, weights, OUTPUTS), gemm.linear(x.numpy(), packed))
    assert torch.ops.soniq.linear(x.view(3, 1, 1, CHANNELS), weights, OUTPUTS).shape == (3, 1, 1, OUTPUTS)
    assert torch.ops.soniq.linear(x[:0], weights, OUTPUTS).shape == (0, OUTPUTS)


def test_conv2d(filters):
    packed, x = filters
    y = run_conv2d(x, torch_ops.weights_to_tensor(packed))
    expected = conv.conv2d(nhwc(x), packed, stride=(2, 1), padding=(1, 0, 2, 1))
    assert same_bits(y, expected.transpose(0, 3, 1, 2))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("form", ["transposed", "channels last", "strided"])
def test_layout_of_the_input_does_not_matter(dense, filters, form):
    packed, x = dense
    weights = torch_ops.weights_to_tensor(packed)
    expected = torch.ops.soniq.linear(x, weights, OUTPUTS)
    if form == "transposed":
        assert torch.equal(torch.ops.soniq.linear(x.T.contiguous().T, weights, OUTPUTS), expected)
    if form == "strided":
        assert torch.equal(torch.ops.soniq.linear(x.repeat_interleave(2, 1)[:, ::2], weights, OUTPUTS), expected)
    if form == "channels last":
        packed, x = filters
        weights = torch_ops.weights_to_tensor(packed)
        assert torch.equal(run_conv2d(x.contiguous(memory_format=torch.channels_last), weights), run_conv2d(x, weights))


def test_quantize_gives_codes_the_other_ops_take(dense, filters):
    packed, x = dense
    weights = torch_ops.weights_to_tensor(packed)
    codes = torch.ops.soniq.quantize(x, weights)
    assert np.array_equal(codes.numpy(), packing.quantize_activations(x.numpy(), packed.plan, 0.7).codes())
    assert torch.equal(torch.ops.soniq.linear(codes, weights, OUTPUTS), torch.ops.soniq.linear(x, weights, OUTPUTS))
    packed, x = filters
    weights = torch_ops.weights_to_tensor(packed)
    assert torch.equal(run_conv2d(torch.ops.soniq.quantize(x, weights), weights), run_conv2d(x, weights))


# --- what torch asks of an op ------------------------------------------------------------------------------------


def test_opcheck(dense, filters):
    packed, x = dense
    weights = torch_ops.weights_to_tensor(packed)
    torch.library.opcheck(torch.ops.soniq.linear, (x, weights, OUTPUTS))
    torch.library.opcheck(torch.ops.soniq.quantize, (x, weights))
    packed, x = filters
    weights = torch_ops.weights_to_tensor(packed)
    arguments = (x, weights, OUTPUTS, [3, 2], [2, 1], [1, 0, 2, 1], [1, 2])
    torch.library.opcheck(torch.ops.soniq.conv2d, arguments)
    torch.library.opcheck(torch.ops.soniq.quantize, (x, weights))


class Net(torch.nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, x):
        return torch.ops.soniq.linear(x.relu() + 0.25, self.weights, OUTPUTS) * 2


def test_export_and_reload(dense, tmp_path):
    packed, x = dense
    net = Net(torch_ops.weights_to_tensor(packed))
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    more = torch.cat([x, x])
    assert torch.equal(loaded(more), net(more))


def test_compiled_whole(dense):
    packed, x = dense
    net = Net(torch_ops.weights_to_tensor(packed))
    assert torch.equal(torch.compile(net, fullgraph=True, backend="aot_eager")(x), net(x))


def test_backward_is_a_clear_error(dense):
    packed, x = dense
    y = torch.ops.soniq.linear(x.requires_grad_(), torch_ops.weights_to_tensor(packed), OUTPUTS)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        y.sum().backward()


# --- weights as a tensor -----------------------------------------------------------------------------------------


def test_weights_survive_the_round_trip(filters):
    packed, _ = filters
    again = torch_ops.weights_from_tensor(torch_ops.weights_to_tensor(packed))
    assert np.array_equal(again.codes(), packed.codes())
    assert again.plan.segment_of().tolist() == packed.plan.segment_of().tolist()
    assert again.activation_scale == packed.activation_scale


def test_kernel_weights_follow_the_tensor(rng):
    first, second = (torch_ops.weights_to_tensor(pack(rng, (OUTPUTS, CHANNELS))) for _ in range(2))
    x = floats(rng, (3, CHANNELS))
    before, wanted = (torch.ops.soniq.linear(x, w, OUTPUTS) for w in (first, second))
    assert not torch.equal(before, wanted)
    alias = first.detach()
    assert torch.equal(torch.ops.soniq.linear(x, alias, OUTPUTS), before)
    first.copy_(second)  # what load_state_dict does
    assert torch.equal(torch.ops.soniq.linear(x, first, OUTPUTS), wanted)
    assert torch.equal(torch.ops.soniq.linear(x, alias, OUTPUTS), wanted)


def test_kernel_weights_do_not_outlive_their_tensor(dense):
    packed, x = dense
    for _ in range(5):
        weights = torch_ops.weights_to_tensor(packed)
        torch.ops.soniq.linear(x, weights, OUTPUTS)
        del weights
    gc.collect()
    weights = torch_ops.weights_to_tensor(packed)
    torch.ops.soniq.linear(x, weights, OUTPUTS)
    alive = [reference for reference, _, _ in torch_ops._built.values() if not reference.expired()]
    assert len(torch_ops._built) == len(alive)


def test_inference_mode(dense):
    packed, x = dense
    expected = gemm.linear(x.numpy(), packed)
    with torch.inference_mode():
        assert same_bits(torch.ops.soniq.linear(x.clone(), torch_ops.weights_to_tensor(packed), OUTPUTS), expected)


# --- wrong input -------------------------------------------------------------------------------------------------


def test_wrong_input_is_named(dense, filters):
    packed, x = dense
    weights = torch_ops.weights_to_tensor(packed)
    with pytest.raises(ValueError, match=r"shape \(6, 12\), expected 2 dimensions and 7 outputs"):
        torch.ops.soniq.linear(x, weights, 7)
    with pytest.raises(ValueError, match=r"shape \(6, 12\), expected 4 dimensions"):
        run_conv2d(x, weights)
    with pytest.raises(TypeError, match="x is torch.float64, expected torch.float32"):
        torch.ops.soniq.linear(x.double(), weights, OUTPUTS)
    with pytest.raises(ValueError, match="are not packed weights"):
        torch.ops.soniq.linear(x, torch.zeros(100, dtype=torch.uint8), OUTPUTS)
    with pytest.raises(ValueError, match="finite"):
        torch.ops.soniq.linear(x * torch.nan, weights, OUTPUTS)
    packed, x = filters
    weights = torch_ops.weights_to_tensor(packed)
    with pytest.raises(ValueError, match=r"expected 4 dimensions, NCHW; x.unsqueeze\(0\)"):
        run_conv2d(x[0], weights)
    with pytest.raises(ValueError, match=r"kernel_size is \(2, 2\), the packed weights have \(3, 2\)"):
        torch.ops.soniq.conv2d(x, weights, OUTPUTS, [2, 2], [1, 1], [0, 0, 0, 0], [1, 1])


@pytest.mark.parametrize("dilation", [1, 2])
def test_convolution_builds_what_its_geometry_needs(dilation):
    """One weights tensor serves dilated and other calls, one position and many: panels are built from it as they are needed."""
    plan = packing.Plan.uniform(32, 2, 4, a_grid="bipolar")
    w = np.random.default_rng(0).standard_normal((8, 3, 3, 32), dtype=np.float32)
    packed = packing.quantize_weights(w, plan, activation_scale=1.0)
    weights = torch_ops.weights_to_tensor(packed)
    for size in (2 * dilation + 1, 9):
        x = torch.randn(1, size, size, 32)
        for turn in (dilation, 3 - dilation):
            if size <= 2 * turn:
                continue
            got = torch.ops.soniq.conv2d(x.permute(0, 3, 1, 2), weights, 8, [3, 3], [1, 1], [0] * 4, [turn] * 2)
            assert np.array_equal(got.permute(0, 2, 3, 1).numpy(), conv.conv2d(x.numpy(), packed, dilation=turn))
