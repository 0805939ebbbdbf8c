"""Shapes that people use, as GEMM (M, N, K): rows of activations, output channels, input channels."""

from __future__ import annotations

# One batch of a language model's layer, two of an encoder's, and the 28x28 stage of a ResNet as a GEMM.
GEMM = [(128, 4096, 4096), (512, 1024, 1024), (128, 768, 3072), (784, 128, 1152)]
GEMV = [(1, 4096, 4096)]

# (w_bits, a_bits); both operands on the bipolar grid.
WIDTHS = [(1, 1), (1, 4), (2, 2), (4, 4), (8, 8)]
