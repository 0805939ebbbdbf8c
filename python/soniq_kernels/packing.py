"""Plans, packed weights and quantized activations: everything before a kernel runs.

plan = packing.Plan.uniform(512, w_bits=2, a_bits=4)
packed = packing.quantize_weights(w, plan, activation_scale="per_row")
packed.save("layer.safetensors")
"""

from soniq_kernels._files import from_tensors, load
from soniq_kernels.activations import Activations, quantize_activations
from soniq_kernels.plans import GRIDS, Grid, Plan, Segment
from soniq_kernels.weights import PackedWeights, pack, quantize_weights

__all__ = [
    "GRIDS",
    "Activations",
    "Grid",
    "PackedWeights",
    "Plan",
    "Segment",
    "from_tensors",
    "load",
    "pack",
    "quantize_activations",
    "quantize_weights",
]
