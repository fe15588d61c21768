"""Stacks of n copies of a module."""

import pytest
import torch
from esper_env.population.stack import Stack
from torch import nn

CPU = torch.device("cpu")


def build():
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))


def test_rows_are_zero_until_reset():
    stack = Stack(build, 3, CPU, torch.float32)
    assert all((value == 0).all() for value in stack.parameters.values())
    stack.reset(1, 5)
    for name, value in stack.parameters.items():
        assert (value[[0, 2]] == 0).all(), name
    assert (stack.parameters["0.weight"][1] != 0).all()
    assert (stack.buffers["1.running_var"][1] == 1).all()
    assert stack.buffers["1.num_batches_tracked"].dtype == torch.int64


def test_reset_row_equals_module_built_from_seed():
    stack = Stack(build, 2, CPU, torch.float64)
    stack.reset(1, 1234)
    with torch.random.fork_rng():
        torch.manual_seed(1234)
        expected = build()
    for name, value in expected.named_parameters():
        assert torch.equal(stack.parameters[name][1], value.double()), name


def test_reset_clears_momentum_of_its_row_only():
    stack = Stack(build, 2, CPU, torch.float32)
    for value in stack.momentum.values():
        value.fill_(3.0)
    stack.reset(0, 1)
    assert all((value[0] == 0).all() and (value[1] == 3).all() for value in stack.momentum.values())
    stack.clear_momentum([1])
    assert all((value == 0).all() for value in stack.momentum.values())


def test_stack_rejects_loss_of_shared_parameters(monkeypatch):
    def tied():
        layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        layers[1].weight = layers[0].weight
        return layers

    assert "1.weight" not in Stack(tied, 1, CPU, torch.float32).parameters
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
    Stack(build, 1, CPU, torch.float32)
    with pytest.raises(ValueError, match="a Sequential loses the parameters that its layers share"):
        Stack(tied, 1, CPU, torch.float32)
