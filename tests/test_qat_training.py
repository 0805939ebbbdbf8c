"""The whole path on real images: float, noise phase, freeze, exact phase, pack, and not one bit of difference."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
datasets = pytest.importorskip("sklearn.datasets")

import torch.nn.functional as F
from torch import nn

from soniq_kernels import qat
from soniq_kernels.qat.budget import average_bits, learned_layers

BATCH = 64


@pytest.fixture(autouse=True)
def one_thread():
    """Layers this small gain little from a second thread, and lose much where another process has the core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    """(training images, labels, test images, labels): a fixed random fifth is the test."""
    data = datasets.load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = (torch.from_numpy(data.images).float() / 16).unsqueeze(1)[order]
    labels = torch.from_numpy(data.target).long()[order]
    return images[360:], labels[360:], images[:360], labels[:360]


def network() -> nn.Sequential:
    def block(inputs, outputs, stride):
        return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()

    return nn.Sequential(*block(1, 16, 1), *block(16, 32, 2), *block(32, 32, 1),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))  # fmt: skip


def train(model, groups, digits, epochs, teacher=None):
    images, labels = digits[:2]
    optimizer = torch.optim.AdamW(groups)
    steps = len(labels) // BATCH
    rates = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=epochs * steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels))[: steps * BATCH].view(steps, BATCH):
            logits = model(images[chosen])
            loss = F.cross_entropy(logits, labels[chosen])
            if teacher is not None:
                with torch.no_grad():
                    target = teacher(images[chosen]).softmax(1)
                loss = (loss + F.cross_entropy(logits, target)) / 2 + qat.bit_penalty(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model, digits) -> float:
    return 100 * float((model(digits[2]).argmax(1) == digits[3]).float().mean())


def test_digits_at_two_precisions(digits, record_property):
    torch.manual_seed(0)
    teacher = network()
    train(teacher, [{"params": list(teacher.parameters()), "lr": 5e-3}], digits, epochs=10)
    teacher.eval()

    model = qat.prepare(copy.deepcopy(teacher), qat.Config(palette=(2, 4), target_bits=2.5), digits[0][:256])
    train(model, qat.param_groups(model, lr=3e-3, bits_lr=2e-2), digits, epochs=6, teacher=teacher)
    spread = torch.cat([layer.learned_bits() for layer in learned_layers(model)])
    assert spread.max() - spread.min() > 0.3, "the channels learned different precisions"
    qat.freeze(model)
    train(model, qat.param_groups(model, lr=3e-3), digits, epochs=6, teacher=teacher)
    qat.fix_batch_norm(model)
    train(model, qat.param_groups(model, lr=3e-4), digits, epochs=2, teacher=teacher)

    packed = qat.convert(model)
    result = qat.verify(model, packed, digits[2])
    assert result and result.outputs.values == 3600, str(result)
    inner = float(average_bits(learned_layers(model)))
    assert 2 < inner <= 2.5 and {width for layer in learned_layers(model) for width in layer.widths} == {2, 4}
    whole = qat.report(packed).average_bits
    assert inner < whole < 8, "the first and the last layer have 8 bits and count"
    reached = accuracy(packed, digits)
    record_property("accuracy", reached)
    assert reached >= 97, (
        f"{reached:.2f} % at {inner:.2f} bits ({whole:.2f} over all weights), float {accuracy(teacher, digits):.2f} %"
    )
