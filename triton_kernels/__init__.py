"""GPU kernels of soniq_kernels: the same layers on CUDA tensors, the same bits as the CPU. Import as `soniq_kernels.triton_kernels`.

    from soniq_kernels import triton_kernels as gpu
    weights = gpu.to_device(packed)                  # or packed.to("cuda")
    y = gpu.linear(x, weights, activation="relu")    # x: float16, bfloat16 or float32 on the GPU, or DeviceActivations

Importing this starts no CUDA context. It needs torch and triton: pip install soniq_kernels[gpu].
"""

if __name__ == "triton_kernels":
    # Another published package has this import name, and other projects probe for it: never answer in its place.
    raise ModuleNotFoundError(
        "triton_kernels here is part of soniq_kernels; import soniq_kernels.triton_kernels", name=__name__
    )

from soniq_kernels._optional import require

for _module in ("torch", "triton"):
    require(_module, extra="gpu")

from soniq_kernels.triton_kernels.conv import conv2d, conv2d_int32  # noqa: E402
from soniq_kernels.triton_kernels.device_activations import DeviceActivations, from_codes, from_host  # noqa: E402
from soniq_kernels.triton_kernels.device_weights import DeviceWeights, to_device  # noqa: E402
from soniq_kernels.triton_kernels.gemm import explain, linear, matmul  # noqa: E402
from soniq_kernels.triton_kernels.quantize import quantize_activations  # noqa: E402

__all__ = [
    "DeviceActivations", "DeviceWeights", "conv2d", "conv2d_int32", "explain", "from_codes", "from_host", "linear", "matmul",
    "quantize_activations", "to_device",
]  # fmt: skip
