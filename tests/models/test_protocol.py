import pytest
import torch
from torch import nn

from recurra.models.protocol import LossSum, device_of, evaluating


def test_losses_add_up_and_are_divided_once():
    weight = torch.tensor(2.0, requires_grad=True)
    total = LossSum(3 * weight, 1) + LossSum(5 * weight, 3)
    assert (total.nats.item(), total.tokens) == (16.0, 4)
    assert total.mean.item() == 4.0
    total.mean.backward()
    assert weight.grad.item() == 2.0


def test_a_model_without_tensors_is_on_the_cpu():
    assert device_of(object()) == torch.device("cpu")
    assert device_of(nn.Identity()) == torch.device("cpu")


def test_a_module_is_where_its_tensors_are():
    assert device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")
    counts = nn.Module()
    counts.register_buffer("counts", torch.zeros(1, device="meta"))
    assert device_of(counts) == torch.device("meta")


def test_modes_return_after_an_error_too():
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())

    def fail():
        with evaluating(model):
            assert not any(part.training for part in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [part.training for part in model.modules()] == [True, True, False]
