"""Wrong input: each a ValueError or TypeError that says what came, what was expected and what to do; never garbage."""

from __future__ import annotations

import numpy as np
import pytest

import cases
import oracle
from oracle import Grid
from soniq_kernels import conv, gemm, packing

F32 = np.float32
REFUSED = (ValueError, TypeError)
K, N = 12, 5
PLAN = packing.Plan.uniform(K, w_bits=2, a_bits=4)
CODES = np.random.default_rng(0).integers(0, 4, (N, K)).astype(np.uint8)
CONV_CODES = np.random.default_rng(1).integers(0, 4, (N, 3, 3, K)).astype(np.uint8)
ONES = np.ones(N, F32)


@pytest.fixture
def packed():
    """A linear layer with a static activation scale."""
    return packing.pack(CODES, PLAN, ONES, activation_scale=0.5)


@pytest.fixture
def packed_conv():
    """A convolution with a static activation scale."""
    return packing.pack(CONV_CODES, PLAN, ONES, activation_scale=0.5)


def refused(call, *needles, errors=REFUSED) -> str:
    """The message of the refusal, which must hold every needle."""
    with pytest.raises(errors) as refusal:
        call()
    message = str(refusal.value)
    for needle in needles:
        assert str(needle).lower() in message.lower(), f"{needle!r} is not in: {message}"
    return message


def right_or_refused(call, expected: np.ndarray) -> None:
    """Accepted with the right answer, or refused; nothing in between."""
    try:
        got = np.asarray(call())
    except REFUSED:
        return
    assert np.array_equal(got, expected)


# ---- grids and plans ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [0, 9, -1, 2.5, "2", None, 2**40, True], ids=str)
def test_bits_outside_1_to_8(bits):
    """Bits are integers in 1..8, wherever they are given."""
    refused(lambda: packing.Grid("bipolar", bits))
    refused(lambda: packing.Plan.uniform(4, w_bits=bits, a_bits=2))
    refused(lambda: packing.Plan.uniform(4, w_bits=2, a_bits=bits))


def test_bits_message_names_the_range():
    """Got and expected."""
    refused(lambda: packing.Grid("bipolar", 9), 9, 1, 8)
    refused(lambda: packing.Plan.mixed(np.array([2, 9, 2])), 9, 8)
    refused(lambda: packing.Plan.mixed(np.array([2, 0, 2])), 0, 8)


@pytest.mark.parametrize(
    "arguments",
    [("int", 4), ("BIPOLAR", 4), (None, 4), ("signed", 1), ("ternary", 1), ("ternary", 3), ("ternary", 8)],
    ids=str,
)
def test_grids_that_do_not_exist(arguments):
    """Unknown kinds, and widths that a kind does not have."""
    refused(lambda: packing.Grid(*arguments))


def test_unknown_kind_lists_the_kinds():
    """The message is enough to correct the call."""
    refused(lambda: packing.Grid("int", 4), "int", "bipolar", "unsigned", "signed", "ternary")


@pytest.mark.parametrize(
    "knob",
    [{"offset": 1024}, {"offset": -1024}, {"shift": 7}, {"shift": -7}, {"offset": 0.5}, {"shift": None}],
    ids=str,
)
def test_knobs_out_of_range(knob):
    """|offset| <= 1023, |shift| <= 6, integers."""
    refused(lambda: packing.Grid("bipolar", 4, **knob), *knob)
    refused(lambda: packing.Plan.uniform(4, w_bits=2, a_bits=2, **knob))


@pytest.mark.parametrize("channels", [0, -3, 2.0, "4", None, 2**62], ids=str)
def test_channel_counts(channels):
    """A plan has at least one channel; a count that cannot be allocated is refused before it is tried."""
    refused(lambda: packing.Plan.uniform(channels, w_bits=2, a_bits=2))


@pytest.mark.parametrize(
    "bits", [np.array([[2, 4]]), np.array(2), np.array([]), np.array([2.0, 4.0]), "24", None], ids=str
)
def test_mixed_wants_a_vector_of_integers(bits):
    """Rank, size and dtype of the bits."""
    refused(lambda: packing.Plan.mixed(bits))


def test_three_precisions():
    """Two levels a layer; the message names what it found."""
    refused(lambda: packing.Plan.mixed(np.array([2, 4, 8])), 2, 4, 8)
    refused(lambda: packing.Plan.mixed(w_bits=np.array([2, 2, 4]), a_bits=np.array([2, 4, 4])))


def test_mixed_wants_bits_once():
    """bits, or both w_bits and a_bits of one length."""
    both = np.array([2, 4])
    refused(lambda: packing.Plan.mixed())
    refused(lambda: packing.Plan.mixed(both, w_bits=both, a_bits=both))
    refused(lambda: packing.Plan.mixed(w_bits=both, a_bits=np.array([2, 4, 4])))


PAIR = (packing.Grid("bipolar", 2), packing.Grid("unsigned", 2))
WIDE = (packing.Grid("bipolar", 4), packing.Grid("unsigned", 4))


@pytest.mark.parametrize("index", [[0, 1, 2], [0, -1], [[0, 1]], [], [0.0, 1.0], None, "01"], ids=str)
def test_segment_indices(index):
    """0 or 1 for every channel, in one dimension."""
    refused(lambda: packing.Plan.of_segments(np.array(index), [PAIR, WIDE]))


@pytest.mark.parametrize(
    "grids",
    [[], [PAIR] * 3, [PAIR[0]], [(PAIR[0],)], ["bipolar"], None],
    ids=["none", "three", "no pair", "half", "text", "None"],
)
def test_segment_grids(grids):
    """One or two pairs of grids."""
    refused(lambda: packing.Plan.of_segments(np.array([0, 0]), grids))


def test_index_beyond_the_grids():
    """Channel on a segment that was not given."""
    refused(lambda: packing.Plan.of_segments(np.array([0, 1]), [PAIR]))


# ---- pack ---------------------------------------------------------------------------------------------------------------


def test_codes_above_the_largest():
    """Named with the code and the largest allowed; also the one that ternary does not have."""
    for grid, bad in [(Grid("bipolar", 2), 4), (Grid("unsigned", 7), 128), (Grid("ternary", 2), 3)]:
        plan = cases.package_plan(oracle.uniform(K, grid, Grid("unsigned", 4)))
        codes = np.zeros((N, K), np.uint8)
        codes[-1, -1] = bad
        refused(lambda codes=codes, plan=plan: packing.pack(codes, plan, ONES), bad, oracle.cmax(grid))


def test_codes_above_the_largest_of_their_segment():
    """Each segment has its own largest code."""
    plan = packing.Plan.mixed(np.array([2, 4]))
    refused(lambda: packing.pack(np.array([[4, 4]], np.uint8), plan, ONES[:1]), 4, 3)
    refused(lambda: packing.Activations.from_codes(np.array([[4, 4]], np.uint8), plan, 1.0), 4, 3)
    packing.pack(np.array([[3, 15]], np.uint8), plan, ONES[:1])


@pytest.mark.parametrize("dtype", [np.float32, bool, object, "S1", np.complex64], ids=str)
def test_codes_are_integers(dtype):
    """No silent conversion of other types."""
    refused(lambda: packing.pack(CODES.astype(dtype), PLAN, ONES), "uint8")
    refused(lambda: packing.Activations.from_codes(CODES.astype(dtype), PLAN, 1.0), "uint8")


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint16, np.uint64], ids=str)
def test_codes_of_other_integer_types(dtype):
    """Taken for what they are or refused; a value that uint8 cannot hold must not wrap into one that it can."""
    right_or_refused(lambda: packing.pack(CODES.astype(dtype), PLAN, ONES).codes(), CODES)
    right_or_refused(lambda: packing.Activations.from_codes(CODES.astype(dtype), PLAN, 1.0).codes(), CODES)
    ends = np.iinfo(dtype)
    for bad in (n for n in (256, 257, 2**32, -1, -128, 2**63) if ends.min <= n <= ends.max):
        codes = CODES.astype(dtype)
        codes[0, 0] = bad
        refused(lambda codes=codes: packing.pack(codes, PLAN, ONES))
        refused(lambda codes=codes: packing.Activations.from_codes(codes, PLAN, 1.0))


@pytest.mark.parametrize("shape", [(K,), (N, 3, K), (1, N, 3, 3, K), (), (0, K), (N, 0), (N, 0, 3, K)], ids=str)
def test_rank_and_size_of_weights(shape):
    """[N, K] or OHWI, nothing empty."""
    refused(lambda: packing.pack(np.zeros(shape, np.uint8), PLAN, ONES))


def test_channels_of_weights():
    """A matrix has the plan's channels; a convolution divides them into groups that divide the outputs."""
    refused(lambda: packing.pack(np.zeros((N, K + 1), np.uint8), PLAN, ONES), K, K + 1)
    refused(lambda: packing.pack(np.zeros((N, 3, 3, 5), np.uint8), PLAN, ONES), K, 5)
    refused(lambda: packing.pack(np.zeros((N, 3, 3, 6), np.uint8), PLAN, ONES), N, 2)


VECTORS = ["scale", "bias", "post_scale", "post_bias"]


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize(
    "bad",
    [
        np.ones(N + 1, F32),
        np.ones((N, 1), F32),
        np.full(N, np.nan, F32),
        np.full(N, np.inf, F32),
        "x",
        np.ones(N, complex),
    ],
    ids=["length", "rank", "nan", "inf", "text", "complex"],
)
def test_vectors_of_a_layer(name, bad):
    """float32 [N], finite."""
    refused(lambda: packing.pack(CODES, PLAN, **({"scale": ONES} | {name: bad})), name.split("_")[-1])


@pytest.mark.parametrize("name", VECTORS)
def test_one_number_for_a_vector(name):
    """The same for all outputs, or refused."""
    right_or_refused(
        lambda: getattr(packing.pack(CODES, PLAN, **({"scale": ONES} | {name: 0.3})), name), np.full(N, 0.3, F32)
    )


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 2.0**101, 2.0**-101, "per_tensor", [0.5] * 3], ids=str)
def test_activation_scale(scale):
    """A positive number within 2^-100 .. 2^100, or "per_row"."""
    refused(lambda: packing.pack(CODES, PLAN, ONES, activation_scale=scale), "scale")
    refused(lambda: packing.quantize_activations(np.zeros((2, K), F32), PLAN, scale), "scale")


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 2.0**101, 2.0**-101, "per_row", None], ids=str)
def test_scale_of_given_codes(scale):
    """Codes have a number for a scale."""
    refused(lambda: packing.Activations.from_codes(np.zeros((2, K), np.uint8), PLAN, scale), "scale")


def test_plan_must_be_a_plan():
    """Not a number of bits, not a grid."""
    for wrong in (4, PAIR, None, "bipolar"):
        refused(lambda wrong=wrong: packing.pack(CODES, wrong, ONES))
        refused(lambda wrong=wrong: packing.quantize_activations(np.zeros((2, K), F32), wrong, 1.0))


def test_sums_beyond_int32():
    """K over the bound names K, the bits and the largest K allowed."""
    plan = packing.Plan.uniform(33_026, w_bits=8, a_bits=8, a_grid="bipolar")
    message = refused(lambda: packing.pack(np.zeros((1, 33_026), np.uint8), plan, ONES[:1]), 8).replace(",", "")
    assert "33026" in message
    assert "33025" in message


def test_sums_beyond_int32_between_segments():
    """A segment so much coarser than the other that its shifted sums leave int32."""
    coarse = (packing.Grid("bipolar", 1, shift=6), packing.Grid("bipolar", 1, shift=6))
    fine = (packing.Grid("bipolar", 8, shift=-6), packing.Grid("bipolar", 8, shift=-6))
    plan = packing.Plan.of_segments(np.array([0, 1]), [coarse, fine])
    refused(lambda: packing.pack(np.zeros((1, 2), np.uint8), plan, ONES[:1]))


@pytest.mark.parametrize("q", [0, 9, -1, 1.5, None, "2"], ids=str)
def test_at_bits(packed, q):
    """1..8."""
    refused(lambda: packed.at_bits(q))


@pytest.mark.parametrize(
    "scales",
    [{0: ONES}, {9: ONES}, {2: np.ones(N + 1, F32)}, {2: np.full(N, np.nan, F32)}, {"2": ONES}, [ONES]],
    ids=["0", "9", "length", "nan", "key", "list"],
)
def test_scales_at_bits(scales):
    """{q: float32 [N]} with q in 1..8."""
    refused(lambda: packing.pack(CODES, PLAN, ONES, scales_at_bits=scales))
    refused(lambda: packing.pack(CODES, PLAN, ONES, bias=ONES, biases_at_bits=scales))


def test_biases_at_bits_without_bias():
    refused(lambda: packing.pack(CODES, PLAN, ONES, biases_at_bits={2: ONES}))


@pytest.mark.parametrize("low", [[True], np.ones(3, bool), np.arange(1000), 0.5, "all"], ids=str)
def test_at_bits_of_some_channels(packed, low):
    """bool [channels]."""
    refused(lambda: packed.at_bits(2, low))


def test_at_bits_of_some_channels_at_three_precisions():
    """2 and 8 bits, some of the 8 read at 4."""
    plan = packing.Plan.mixed(w_bits=[2, 8, 8], a_bits=[4, 4, 4])
    packed = packing.pack(np.zeros((2, 3), np.uint8), plan, np.ones(2, F32))
    refused(lambda: packed.at_bits(4, np.array([False, True, False])))


# ---- float weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_non_finite_weights(bad):
    """Refused with a word that says so."""
    w = np.ones((N, K), F32)
    w[2, 3] = bad
    refused(lambda: packing.quantize_weights(w, PLAN), "finite")


@pytest.mark.parametrize(
    "scale", [0.0, -1.0, np.nan, np.inf, np.ones(N + 1, F32), np.zeros(N, F32), -ONES, ONES * 2.0**101], ids=str
)
def test_scales_that_cannot_quantize(scale):
    """Positive and in range: the quantizer divides by it."""
    refused(lambda: packing.quantize_weights(np.ones((N, K), F32), PLAN, scale), "scale")


@pytest.mark.parametrize("dtype", [np.int32, np.complex64, object, bool], ids=str)
def test_float_weights_are_float(dtype):
    """Integers and stranger types are no float weights."""
    refused(lambda: packing.quantize_weights(np.ones((N, K), dtype), PLAN), "float32")


# ---- activations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_non_finite_activations(tier, packed, packed_conv, bad):
    """An error at the border, wherever the value sits, also in the last lane of a tail."""
    for at in (0, 7, K - 1):
        x = np.ones((3, K), F32)
        x[-1, at] = bad
        for scale in (1.0, "per_row"):
            refused(lambda x=x, scale=scale: packing.quantize_activations(x, PLAN, scale), "finite")
        refused(lambda x=x: gemm.linear(x, packed), "finite")
        refused(lambda x=x: gemm.matmul(x, packed), "finite")
        refused(lambda x=x: conv.conv2d(x.reshape(1, 1, 3, K), packed_conv, padding=1), "finite")


def test_non_finite_residual(tier, packed):
    """The residual is input too."""
    residual = np.zeros((3, N), F32)
    residual[2, N - 1] = np.nan
    refused(lambda: gemm.linear(np.ones((3, K), F32), packed, residual=residual), "finite")


def test_largest_floats_are_finite(tier, packed):
    """The check must not reject by overflow in itself."""
    x = np.full((3, K), 3.4e38, F32)
    packing.quantize_activations(x, PLAN, 1.0)
    packing.quantize_activations(-x, PLAN, "per_row")


@pytest.mark.parametrize("channels", [K - 1, K + 1, 0, 1], ids=str)
def test_channels_of_activations(packed, channels):
    """Got and expected, in numbers."""
    x = np.ones((2, channels), F32)
    for call in (
        lambda: gemm.linear(x, packed),
        lambda: gemm.matmul(x, packed),
        lambda: packing.quantize_activations(x, PLAN, 1.0),
    ):
        refused(call, channels, K)
    refused(lambda: packing.Activations.from_codes(np.zeros((2, channels), np.uint8), PLAN, 1.0), channels, K)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.complex64, object, bool, "U1"], ids=str)
def test_dtype_of_activations(packed, dtype):
    """Integers are no float activations: codes go through from_codes."""
    x = np.ones((2, K)).astype(dtype)
    refused(lambda: gemm.linear(x, packed), "float32")
    refused(lambda: packing.quantize_activations(x, PLAN, 1.0), "float32")


@pytest.mark.parametrize("dtype", [np.float64, np.float16], ids=str)
def test_other_floats_are_converted_or_refused(packed, dtype):
    """float32 is the type of the contract."""
    x = np.linspace(-2, 2, 2 * K).reshape(2, K).astype(dtype)
    right_or_refused(lambda: gemm.linear(x, packed), gemm.linear(x.astype(F32), packed))


@pytest.mark.parametrize(
    "x", [None, "text", 1.0, np.float32(1), [], object()], ids=["None", "text", "float", "scalar", "list", "object"]
)
def test_things_that_are_no_activations(packed, packed_conv, x):
    """No array, or an array without a channel dimension."""
    for call in (gemm.linear, gemm.matmul):
        refused(lambda call=call: call(x, packed))
    refused(lambda: conv.conv2d(x, packed_conv))
    refused(lambda: packing.quantize_activations(x, PLAN, 1.0))


def test_things_that_are_no_packed_weights():
    """Plain arrays must be packed first."""
    x = np.ones((2, K), F32)
    for wrong in (CODES, None, PLAN):
        refused(lambda wrong=wrong: gemm.linear(x, wrong), "pack")
        refused(lambda wrong=wrong: conv.conv2d(x.reshape(1, 1, 2, K), wrong), "pack")


def test_float_input_needs_an_activation_scale():
    """The message names the argument that was left out."""
    bare, bare_conv = packing.pack(CODES, PLAN, ONES), packing.pack(CONV_CODES, PLAN, ONES)
    refused(lambda: gemm.linear(np.ones((2, K), F32), bare), "activation_scale")
    refused(lambda: gemm.matmul(np.ones((2, K), F32), bare), "activation_scale")
    refused(lambda: conv.conv2d(np.ones((1, 3, 3, K), F32), bare_conv), "activation_scale")


@pytest.mark.parametrize(
    "other",
    [
        packing.Plan.uniform(K, w_bits=2, a_bits=3),
        packing.Plan.uniform(K, w_bits=2, a_bits=4, a_grid="bipolar"),
        packing.Plan.uniform(K, w_bits=2, a_bits=4, offset=1),
        packing.Plan.uniform(K, w_bits=2, a_bits=4, shift=1),
        packing.Plan.mixed(w_bits=np.array([2] * 11 + [4]), a_bits=np.array([4] * 12)),
        packing.Plan.mixed(np.array([4] * 11 + [2])),
    ],
    ids=["bits", "kind", "offset", "shift", "segments", "mixed"],
)
def test_activations_of_another_plan(packed, packed_conv, other):
    """Codes mean nothing on the wrong grid. (Segments that differ in the weight half alone: right, or refused.)"""
    codes = np.zeros((2, K), np.uint8)
    acts = packing.Activations.from_codes(codes, other, 1.0)
    images = packing.Activations.from_codes(codes.reshape(1, 1, 2, K), other, 1.0)
    layout = oracle.uniform(K, Grid("bipolar", 2), Grid("unsigned", 4))
    if {segment.a for segment in other.segments} == {PLAN.segments[0].a}:
        right_or_refused(lambda: gemm.matmul(acts, packed), oracle.matmul(codes, CODES, layout))
    else:
        refused(lambda: gemm.matmul(acts, packed))
        refused(lambda: conv.conv2d(images, packed_conv, padding=1))


def test_per_row_needs_a_positive_value():
    """A grid whose values are all zero or less has no amax rule."""
    plan = packing.Plan.uniform(K, w_bits=2, a_bits=2, offset=-3)
    refused(lambda: packing.quantize_activations(np.ones((2, K), F32), plan, "per_row"), "per_row")


# ---- layouts in memory --------------------------------------------------------------------------------------------------


def unusual_layouts(array: np.ndarray) -> dict[str, np.ndarray]:
    """The same values in other memory layouts."""
    spread = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    spread[..., ::2] = array
    frozen = array.copy()
    frozen.flags.writeable = False
    raw = np.zeros(array.nbytes + 1, np.uint8)
    odd = raw[1:].view(array.dtype).reshape(array.shape)
    odd[...] = array
    return {
        "Fortran order": np.asfortranarray(array),
        "strided": spread[..., ::2],
        "reversed": np.ascontiguousarray(array[..., ::-1])[..., ::-1],
        "read-only": frozen,
        "unaligned": odd,
        "other byte order": array.astype(array.dtype.newbyteorder()),
    }


def test_layouts_of_floats(tier, packed, rng):
    """Accepted with the right answer or refused; never garbage."""
    x = rng.normal(size=(4, K)).astype(F32)
    expected, residual = gemm.linear(x, packed), rng.normal(size=(4, N)).astype(F32)
    added = gemm.linear(x, packed, residual=residual)
    for name, same in unusual_layouts(x).items():
        right_or_refused(lambda same=same: gemm.linear(same, packed), expected)
        right_or_refused(
            lambda same=same: packing.quantize_activations(same, PLAN, 0.5).codes(),
            oracle.quantize(x, Grid("unsigned", 4), 0.5),
        )
        assert name
    for same in unusual_layouts(residual).values():
        right_or_refused(lambda same=same: gemm.linear(x, packed, residual=same), added)


def test_layouts_of_codes(tier, rng):
    """Weights and activation codes too."""
    for same in unusual_layouts(CODES).values():
        right_or_refused(lambda same=same: cases.pack_unit(same, PLAN).codes(), CODES)
        right_or_refused(lambda same=same: packing.Activations.from_codes(same, PLAN, 1.0).codes(), CODES)
    for same in unusual_layouts(CONV_CODES).values():
        right_or_refused(lambda same=same: cases.pack_unit(same, PLAN).codes(), CONV_CODES)


def test_layouts_of_vectors():
    """Scales from a slice or a column."""
    scale = np.arange(1, N + 1, dtype=F32)
    for same in unusual_layouts(scale).values():
        right_or_refused(lambda same=same: packing.pack(CODES, PLAN, same).scale, scale)


def test_read_only_input_is_accepted(packed):
    """Reading needs no write access: memory maps and broadcasts are ordinary input."""
    x = np.broadcast_to(np.float32(0.5), (3, K))
    cases.assert_same_bits(gemm.linear(x, packed), gemm.linear(np.full((3, K), 0.5, F32), packed))


class OnCuda:
    """An array of another device, as DLPack presents it."""

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **_):
        raise BufferError("device memory")


class CudaInterface:
    """An array of another device, as numba and CuPy present it."""

    @property
    def __cuda_array_interface__(self):
        return {"shape": (2, K), "typestr": "<f4", "data": (4096, False), "version": 3}


@pytest.mark.parametrize("kind", [OnCuda, CudaInterface])
def test_cuda_arrays(packed, packed_conv, kind):
    """Refused with the place where GPU functions live, before anything is read."""
    for call in (
        lambda: gemm.linear(kind(), packed),
        lambda: gemm.matmul(kind(), packed),
        lambda: conv.conv2d(kind(), packed_conv),
        lambda: packing.quantize_activations(kind(), PLAN, 1.0),
        lambda: packing.pack(kind(), PLAN, ONES),
        lambda: gemm.linear(np.ones((2, K), F32), packed, residual=kind()),
    ):
        refused(call, "CUDA", "triton_kernels")


# ---- epilogue and convolution arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "activation",
    [
        "gelu",
        "ReLU",
        "",
        6,
        ("hardtanh",),
        ("hardtanh", 1.0, -1.0),
        ("hardtanh", np.nan, 1.0),
        ("hardtanh", 0.0, "x"),
        ("relu", 0, 1),
        ["relu"],
    ],
    ids=str,
)
def test_unknown_activation(packed, activation):
    """The message lists what there is."""
    refused(lambda: gemm.linear(np.ones((2, K), F32), packed, activation=activation), "hardtanh")


def test_unknown_activation_lists_all(packed):
    """relu, relu6, hardtanh."""
    refused(lambda: gemm.linear(np.ones((2, K), F32), packed, activation="gelu"), "gelu", "relu", "relu6", "hardtanh")


@pytest.mark.parametrize("shape", [(2, N + 1), (3, N), (N,), (2, 1), (1, 2, N)], ids=str)
def test_shape_of_residual(packed, shape):
    """No broadcasting: the shape of the output, named in the message."""
    x = np.ones((2, K), F32)
    refused(lambda: gemm.linear(x, packed, residual=np.zeros(shape, F32)), "residual", N)
    plan = packing.Plan.uniform(shape[-1], w_bits=1, a_bits=2)
    codes = packing.Activations.from_codes(np.zeros(shape, np.uint8), plan, 1.0)
    refused(lambda: gemm.linear(x, packed, residual=codes), "residual", N)


def test_dtype_of_residual(packed):
    """float32 or Activations."""
    refused(
        lambda: gemm.linear(np.ones((2, K), F32), packed, residual=np.zeros((2, N), np.int32)), "residual", "float32"
    )


OUT_PLAN = packing.Plan.uniform(N, w_bits=2, a_bits=4)


@pytest.mark.parametrize(
    "out",
    [
        OUT_PLAN,
        (OUT_PLAN,),
        (OUT_PLAN, "per_row"),
        (OUT_PLAN, 0.0),
        (OUT_PLAN, -1.0),
        (OUT_PLAN, np.nan),
        (OUT_PLAN, 2.0**101),
        (PLAN, 1.0),
        (4, 1.0),
        "codes",
    ],
    ids=["plan", "short", "per_row", "zero", "negative", "nan", "large", "channels", "bits", "text"],
)
def test_out(packed, out):
    """(plan of the output's channels, positive scale)."""
    refused(lambda: gemm.linear(np.ones((2, K), F32), packed, out=out))


def test_matrix_and_convolution_are_not_mixed_up(packed, packed_conv):
    """linear refuses OHWI weights by the name of conv; a matrix may serve conv2d as its 1x1 convolution."""
    refused(lambda: gemm.linear(np.ones((2, K), F32), packed_conv), "conv")
    refused(lambda: gemm.matmul(np.ones((2, K), F32), packed_conv), "conv")
    images = np.ones((1, 3, 3, K), F32)
    right_or_refused(lambda: conv.conv2d(images, packed), gemm.linear(images, packed))
    right_or_refused(lambda: conv.conv2d_int32(images, packed), gemm.matmul(images, packed))


@pytest.mark.parametrize("shape", [(K,), (3, K), (3, 3, K), (1, 1, 3, 3, K)], ids=str)
def test_rank_of_images(packed_conv, shape):
    """NHWC only."""
    refused(lambda: conv.conv2d(np.ones(shape, F32), packed_conv, padding=1), "NHWC")


@pytest.mark.parametrize(
    "wrong",
    [
        {"stride": 0},
        {"stride": -1},
        {"stride": (1, 2, 3)},
        {"stride": 1.5},
        {"stride": None},
        {"dilation": 0},
        {"dilation": (1, -1)},
        {"padding": -1},
        {"padding": (1, 2, 3)},
        {"padding": (0, 0, 0, -1)},
        {"padding": 0.5},
        {"padding": "same"},
        {"padding": 2**62},
        {"stride": 2**70},
        {"dilation": 2**62},
    ],
    ids=str,
)
def test_geometry(packed_conv, wrong):
    """Named by argument."""
    x = np.ones((1, 5, 5, K), F32)
    (name,) = wrong
    refused(lambda: conv.conv2d(x, packed_conv, **wrong), name)
    refused(lambda: conv.conv2d_int32(x, packed_conv, **wrong), name)


@pytest.mark.parametrize("size", [(2, 5), (5, 2), (1, 1)], ids=str)
def test_input_smaller_than_the_kernel(packed_conv, size):
    """No output position: refused with the sizes and the way out."""
    refused(lambda: conv.conv2d(np.ones((1, *size, K), F32), packed_conv), "3", "pad")


def test_nothing_was_changed_by_refusals(packed):
    """After all of these the layer still computes."""
    x = np.ones((2, K), F32)
    refused(lambda: gemm.linear(x[:, 1:], packed))
    layout = oracle.uniform(K, Grid("bipolar", 2), Grid("unsigned", 4))
    codes = oracle.quantize(x, Grid("unsigned", 4), 0.5)
    cases.assert_same(gemm.matmul(x, packed), oracle.matmul(codes, CODES, layout))
