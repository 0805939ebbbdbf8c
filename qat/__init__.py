"""Quantization-aware training whose forward is the kernels' arithmetic, bit for bit.

qat.prepare(model, qat.Config(palette=(2, 4), target_bits=2.5), example_input)
...train with loss + qat.bit_penalty(model)...
qat.freeze(model)
...train...
packed = qat.convert(model)
assert qat.verify(model, packed, batch)
"""

from soniq_kernels._optional import require

require("torch", extra="torch")

from .any_bits import at_bits, fit_widths, set_width, widths  # noqa: E402
from .between import float_tensors  # noqa: E402
from .budget import bit_penalty, param_groups, penalize  # noqa: E402
from .config import Config  # noqa: E402
from .convert import convert  # noqa: E402
from .cost import machine  # noqa: E402
from .distill import distill, teacher  # noqa: E402
from .finite import check_finite  # noqa: E402
from .freeze import fix_batch_norm, freeze  # noqa: E402
from .layers import QuantConv1d, QuantConv2d, QuantLayer, QuantLinear  # noqa: E402
from .packed_layers import PackedConv1d, PackedConv2d, PackedLayer, PackedLinear  # noqa: E402
from .post_training import PostTraining, quantize_model  # noqa: E402
from .prepare import prepare  # noqa: E402
from .progress import Progress  # noqa: E402
from .report import report  # noqa: E402
from .storage import load, save  # noqa: E402
from .verify import verify  # noqa: E402

__all__ = [
    "Config",
    "PackedConv1d",
    "PackedConv2d",
    "PackedLayer",
    "PackedLinear",
    "PostTraining",
    "Progress",
    "QuantConv1d",
    "QuantConv2d",
    "QuantLayer",
    "QuantLinear",
    "at_bits",
    "bit_penalty",
    "check_finite",
    "convert",
    "distill",
    "fit_widths",
    "fix_batch_norm",
    "float_tensors",
    "freeze",
    "load",
    "machine",
    "param_groups",
    "penalize",
    "prepare",
    "quantize_model",
    "report",
    "save",
    "set_width",
    "teacher",
    "verify",
    "widths",
]
