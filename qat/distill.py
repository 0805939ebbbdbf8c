"""Distillation: the float model as the teacher of its own low-precision form (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def teacher(model: nn.Module) -> nn.Module:
    """A copy of a float model that only teaches: eval mode, no gradients. Make it before `prepare`.

    Raises ValueError if the model is prepared already.
    """
    if any(hasattr(module, "soniq_left_float") for module in model.modules()):
        raise ValueError("this model is prepared already; call qat.teacher(model) before qat.prepare")
    return copy.deepcopy(model).eval().requires_grad_(False)


def distill(outputs: Tensor, targets: Tensor, temperature: float = 1.0, dim: int = -1) -> Tensor:
    """How far a student's logits are from its teacher's: temperature^2 * KL(teacher || student), a scalar.

    outputs, targets: logits of one shape, classes in dimension `dim`; the mean is over everything else. No gradient goes
    to `targets`. Computed in float32. Raises ValueError if the shapes differ or the temperature is not positive.
    """
    if outputs.shape != targets.shape:
        raise ValueError(f"outputs have shape {tuple(outputs.shape)}, targets {tuple(targets.shape)}; "
                         "give the teacher the student's batch")  # fmt: skip
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected a positive number")
    student, expected = (F.log_softmax(x.float() / temperature, dim) for x in (outputs, targets.detach()))
    return temperature**2 * torch.sum(expected.exp() * (expected - student), dim).mean()
