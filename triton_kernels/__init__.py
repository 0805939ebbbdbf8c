"""GPU kernels of soniq_kernels: the same layers on CUDA tensors, the same bits as the CPU. Import as `soniq_kernels.triton_kernels`.

    from soniq_kernels import triton_kernels as gpu
    weights = gpu.to_device(packed)                  # or packed.to("cuda")
    y = gpu.linear(x, weights, activation="relu")    # x: float16, bfloat16 or float32 on the GPU, or DeviceActivations

Importing this starts no CUDA context. What is named here needs torch and triton: pip install soniq_kernels[gpu]. The one-bit kernels
by themselves, `soniq_kernels.triton_kernels.b1` on `cuda.CudaDevice()`, need CuPy alone.
"""

if __name__ == "triton_kernels":
    # Another published package has this import name, and other projects probe for it: never answer in its place.
    raise ModuleNotFoundError(
        "triton_kernels here is part of soniq_kernels; import soniq_kernels.triton_kernels", name=__name__
    )

import importlib

_WHERE = {
    "conv": ("conv2d", "conv2d_int32"),
    "device_activations": ("DeviceActivations", "from_codes", "from_host"),
    "device_weights": ("DeviceWeights", "to_device"),
    "gemm": ("explain", "linear", "matmul"),
    "choice": ("use",),
    "network": ("DeviceNetwork",),
    "quantize": ("quantize_activations",),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    """The function or class, from its module, at its first use: `b1` and `cuda` need neither torch nor triton."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from soniq_kernels._optional import require

    for module in ("torch", "triton"):
        require(module, extra="gpu")
    found = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
