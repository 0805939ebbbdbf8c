"""The float model as a teacher."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from qat_nets import images, small_cnn
from soniq_kernels import qat


def test_the_teacher_stays_what_the_model_was():
    model = small_cnn()
    expected = model.eval()(images())
    teacher = qat.teacher(model.train())
    qat.prepare(model, qat.Config(), images())
    assert torch.equal(teacher(images()), expected) and not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    with pytest.raises(ValueError, match=r"prepared already; call qat.teacher\(model\) before"):
        qat.teacher(model)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_the_divergence_and_pulls_the_student(temperature):
    torch.manual_seed(0)
    student, target = torch.randn(3, 7, requires_grad=True), torch.randn(3, 7, requires_grad=True)
    p, q = ((x / temperature).softmax(-1) for x in (target, student))
    expected = temperature**2 * (p * (p / q).log()).sum(-1).mean()
    loss = qat.distill(student, target, temperature)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert student.grad.abs().sum() > 0 and target.grad is None
    assert qat.distill(target, target).item() == 0


def test_positions_of_a_sequence_and_maps_of_pixels_count_alike():
    torch.manual_seed(0)
    x, y = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    assert torch.allclose(qat.distill(x, y), qat.distill(x.transpose(1, 2), y.transpose(1, 2), dim=1))
    assert torch.allclose(qat.distill(x, y), qat.distill(x.flatten(0, 1), y.flatten(0, 1)))


def test_shapes_and_temperatures_are_checked():
    with pytest.raises(ValueError, match="give the teacher the student's batch"):
        qat.distill(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="expected a positive number"):
        qat.distill(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0)
