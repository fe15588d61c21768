"""Modes of a thread that replace the default generators and the default dtype of the process."""

import threading

import pytest
import torch
from esper_env.extension_checks.construction import seeded_construction
from esper_env.extension_checks.modes import OwnDraws
from torch import nn
from torch.nn import functional as F

SHAPE = (5, 7)
DRAWS = {
    "rand": lambda: torch.rand(SHAPE),
    "randn": lambda: torch.randn(20),
    "randint": lambda: torch.randint(9, SHAPE),
    "randint from": lambda: torch.randint(3, 9, SHAPE),
    "randperm": lambda: torch.randperm(30),
    "rand_like": lambda: torch.rand_like(torch.ones(SHAPE)),
    "randn_like": lambda: torch.randn_like(torch.ones(SHAPE)),
    "randint_like": lambda: torch.randint_like(torch.ones(SHAPE), 2, 9),
    "random_": lambda: torch.empty(SHAPE, dtype=torch.int64).random_(),
    "bernoulli": lambda: torch.bernoulli(torch.full(SHAPE, 0.5)),
    "bernoulli_": lambda: torch.empty(SHAPE).bernoulli_(0.3),
    "multinomial": lambda: torch.multinomial(torch.arange(1.0, 9.0), 5),
    "normal": lambda: torch.normal(torch.zeros(9), 2.0),
    "normal sized": lambda: torch.normal(1.0, 2.0, SHAPE),
    "poisson": lambda: torch.poisson(torch.full(SHAPE, 3.0)),
    "exponential_": lambda: torch.empty(SHAPE).exponential_(),
    "gamma": lambda: torch.distributions.Gamma(2.0, 1.0).sample(SHAPE),
    "gumbel": lambda: F.gumbel_softmax(torch.zeros(SHAPE)),
    "dropout": lambda: F.dropout(torch.ones(SHAPE)),
    "trunc_normal_": lambda: nn.init.trunc_normal_(torch.empty(SHAPE)),
    "xavier": lambda: nn.init.xavier_normal_(torch.empty(SHAPE)),
    "sparse_": lambda: nn.init.sparse_(torch.empty(SHAPE), 0.4),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)).weight.detach(),
    "attention": lambda: nn.MultiheadAttention(8, 2).in_proj_weight.detach(),
    "lstm": lambda: nn.LSTM(3, 4, 2, dropout=0.5)(torch.randn(6, 2, 3))[0].detach(),
}


@pytest.fixture(autouse=True)
def default_generator_stays():
    state = torch.default_generator.get_state()
    yield
    assert torch.equal(torch.default_generator.get_state(), state)


def drawn_by_default_generator(draw, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [draw(), torch.rand(3)]


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_those_of_the_seeded_default_generator(name):
    with OwnDraws(11) as draws:
        own = [DRAWS[name](), torch.rand(3)]
    assert draws.drawn
    for ours, theirs in zip(own, drawn_by_default_generator(DRAWS[name], 11), strict=True):
        assert torch.equal(ours, theirs)


def test_given_generators_are_used():
    with OwnDraws(11) as draws:
        own = torch.rand(3, generator=torch.Generator().manual_seed(5))
        torch.empty(2).uniform_(generator=torch.Generator())
        torch.multinomial(torch.ones(3), 2, generator=torch.Generator())
    assert torch.equal(own, torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert not draws.drawn


def test_layers_that_drop_nothing_do_not_draw():
    x = torch.ones(2, 3, 4, 8)
    with OwnDraws(0) as draws:
        F.scaled_dot_product_attention(x, x, x, is_causal=True)
        F.dropout(x, 0.5, training=False)
    assert not draws.drawn


def test_draws_without_form_that_takes_generator_are_rejected():
    x = torch.ones(2, 3)
    with OwnDraws(0) as draws, pytest.raises(ValueError, match=r"native_dropout.* accepts no other; draw with torch"):
        torch.native_dropout(x, 0.5, True)
    assert draws.drawn


def test_draws_without_values_need_no_generator():
    with OwnDraws(0):
        assert torch.rand(3, device="meta").device.type == "meta"


def test_other_threads_draw_from_the_default_generator():
    seen = []
    with OwnDraws(0):
        own = torch.rand(3)
        other = threading.Thread(target=lambda: seen.append(drawn_by_default_generator(lambda: torch.rand(3), 4)[0]))
        other.start()
        other.join()
    assert torch.equal(seen[0], drawn_by_default_generator(lambda: torch.rand(3), 4)[0])
    assert not torch.equal(seen[0], own)


class Everything(nn.Module):
    """Tensors of most kinds that a constructor makes."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear, self.norm = nn.Conv2d(2, 3, 3), nn.Linear(3, 3), nn.BatchNorm2d(3)
        self.old = nn.Parameter(torch.Tensor(4, 4).uniform_(-1, 1))
        self.scale = nn.Parameter(torch.full((3,), 0.1) * torch.tensor([0.1, 0.2, 0.3]) + torch.tensor(0.7))
        self.draws = nn.Parameter(torch.randn(20) + torch.rand(20) + torch.zeros(20).normal_())
        self.register_buffer("steps", torch.linspace(0, 1, 7) + torch.arange(0.0, 0.7, 0.1) + torch.eye(7)[0])
        self.register_buffer("whole", torch.arange(3) + torch.full((3,), 2) + torch.randint(5, (3,)))
        self.register_buffer("wide", torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_construction_does_not_depend_on_the_default_dtype(dtype):
    with seeded_construction(3):
        expected = Everything().state_dict()
    torch.set_default_dtype(dtype)
    try:
        with seeded_construction(3):
            found = Everything().state_dict()
        assert torch.get_default_dtype() is dtype
    finally:
        torch.set_default_dtype(torch.float32)
    for name, value in expected.items():
        assert value.dtype is found[name].dtype or name == "wide", name
        assert torch.equal(value, found[name].to(value.dtype)), name
