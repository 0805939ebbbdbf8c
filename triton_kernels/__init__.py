"""GPU kernels of soniq_kernels. Import as `soniq_kernels.triton_kernels`; the kernels themselves are still to come."""

if __name__ == "triton_kernels":
    # Another published package has this import name, and other projects probe for it: never answer in its place.
    raise ModuleNotFoundError(
        "triton_kernels here is part of soniq_kernels; import soniq_kernels.triton_kernels", name=__name__
    )
