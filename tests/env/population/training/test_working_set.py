"""The flat working set takes the same steps as torch.optim.SGD with clip_grad_norm_ per unit."""

import numpy as np
import pytest
import torch
from esper_env.population.stack import Stack
from esper_env.population.training.working_set import Member, WorkingSet
from torch import nn

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
RATES = (0.1, 0.03)


@pytest.fixture
def stacks():
    """Two kinds of module, three initialised copies each."""
    made = [
        Stack(lambda: nn.Linear(3, 2), 3, CPU, torch.float64),
        Stack(lambda: nn.Linear(2, 1), 3, CPU, torch.float64),
    ]
    for stack in made:
        for row in range(3):
            stack.reset(row, row)
    return made


def loaded(members, *arguments):
    """A working set of (stack, rows, units, rate)."""
    made = []
    for stack, rows, units, rate in members:
        trainable = torch.ones(len(rows), dtype=torch.bool)
        made.append(Member(stack, None, np.array(rows), torch.tensor(rows), torch.tensor(units), rate, trainable, {}))
    working = WorkingSet(made, *arguments)
    working.load()
    return working


def loss_of(linear, other):
    """A loss per copy, of very different sizes, so that some are clipped and some are not."""
    x = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    hidden = torch.tanh(linear["weight"] @ x + linear["bias"])
    return 3.0 * hidden.pow(2).sum() + 0.01 * (other["weight"] @ hidden + other["bias"]).pow(2).sum()


def row_of(tensors, row):
    return {name: value[row] for name, value in tensors.items()}


@pytest.mark.parametrize("clip_norm", [0.05, 1.0, 1e6])
def test_steps_equal_plain_sgd_per_unit(stacks, clip_norm):
    first, second = stacks
    rows = [0, 2]  # copy 1 of either stack does not train
    plain = [
        [{name: v.clone().requires_grad_() for name, v in row_of(stack.parameters, row).items()} for stack in stacks]
        for row in rows
    ]
    groups = [(list(own.values()), rate) for pair in plain for own, rate in zip(pair, RATES, strict=True)]
    optimizers = [torch.optim.SGD(own, lr=rate, momentum=0.9) for own, rate in groups]
    untouched = {name: value[1].clone() for name, value in first.parameters.items()}
    for _ in range(2):  # the stacks keep the momentum between working sets
        working = loaded([(first, rows, [0, 1], RATES[0]), (second, rows, [2, 3], RATES[1])], 4, clip_norm, 0.9)
        for _ in range(3):
            views = working.views
            sum(loss_of(row_of(views[0], k), row_of(views[1], k)) for k in range(2)).backward()
            working.step()
            for pair in plain:
                for own in pair:
                    for value in own.values():
                        value.grad = None
                loss_of(*pair).backward()
            for (own, _), optimizer in zip(groups, optimizers, strict=True):
                torch.nn.utils.clip_grad_norm_(own, clip_norm)
                optimizer.step()
        working.write_back()
    for row, pair in zip(rows, plain, strict=True):
        for stack, own in zip(stacks, pair, strict=True):
            for name, value in own.items():
                torch.testing.assert_close(stack.parameters[name][row], value.detach(), atol=1e-12, rtol=0)
    for name, value in first.parameters.items():
        assert torch.equal(value[1], untouched[name])


@pytest.mark.parametrize(("factor", "share"), [(9.9, 0.0), (10.1, 0.5), (float("nan"), 0.5), (float("inf"), 0.5)])
def test_tensor_explodes_above_ten_times_clip_norm_or_if_not_finite(stacks, factor, share):
    working = loaded([(stacks[0], [0], [0], 1e-9)], 1, 1.0, 0.0)
    working.gradient[0] = factor
    working.step()
    assert working.statistics(steps=1)[2].item() == share
