"""Transformer blueprints: sizes, formulas, causality and learning."""

import pytest
import torch
from blueprints import TRANSFORMER_BLUEPRINTS
from esper_env.rules.heads import Blueprint, Operator
from esper_env.rules.stages import Stage
from esper_env.seeds import blueprint_entry, offered_blueprints
from esper_env.seeds.blend import CausalBlendGate
from plain_seeds import scrambled
from plain_transformer import CONTEXT, made_text, small_transformer
from small_networks import LAYOUTS, everyone
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.numeric

ENTRIES = offered_blueprints("transformer")
EVERY_BLUEPRINT = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
TEXT = made_text()


def features(width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(width)
    return torch.rand(5, CONTEXT, width, generator=generator, dtype=dtype) * 3 - 1


def test_transformers_offer_the_standard_blueprints():
    assert {entry.value for entry in ENTRIES} == set(TRANSFORMER_BLUEPRINTS)
    assert all(Blueprint(entry.value).name.lower() == entry.name for entry in ENTRIES)


@pytest.mark.parametrize(
    ("name", "at_8"),
    [
        ("norm", 2 * 8 + 8),
        ("lora", 2 * 8 * 8),
        ("lora_large", 2 * 32 * 8),
        ("attention", 3 * 8 * 8 + 3 * 8 + 8 * 8 + 8 + 2 * 8 + 8),
        ("flex_attention", 3 * 8 * 8 + 3 * 8 + 8 * 8 + 8 + 2 * 8 + 8),
        ("mlp_small", 8 * 16 + 16 + 16 * 8 + 8 + 2 * 8 + 8),
        ("mlp", 8 * 32 + 32 + 32 * 8 + 8 + 2 * 8 + 8),
    ],
)
def test_parameter_counts_equal_documented_numbers(name, at_8):
    module = blueprint_entry(name, "transformer").factory(8)
    assert sum(parameter.numel() for parameter in module.parameters()) == at_8


@EVERY_BLUEPRINT
@pytest.mark.parametrize("width", [4, 24])
def test_newborn_seed_is_close_to_the_identity(entry, width):
    x = features(width, dtype=torch.float32)
    out = entry.factory(width)(x)
    assert out.dtype == x.dtype
    assert (out - x).abs().max() < 0.02
    assert not torch.equal(out, x)


@EVERY_BLUEPRINT
@pytest.mark.parametrize("place", range(CONTEXT))
def test_seeds_are_causal(entry, place):
    seed, x = scrambled(entry.name, "transformer", 8), features(8)
    changed = x.clone()
    changed[:, place] += 1.0
    before, after = seed(x), seed(changed)
    torch.testing.assert_close(before[:, :place], after[:, :place], rtol=0, atol=1e-12)
    assert not torch.equal(before[:, place], after[:, place])


def layer_norm(x, weight, bias):
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def attended(p, x, heads=4):
    """Causal attention, position by position and head by head."""
    width = x.shape[-1]
    query, key, value = (x @ p["branch.1.inputs.weight"].T + p["branch.1.inputs.bias"]).split(width, dim=-1)
    size, out = width // heads, torch.zeros_like(x)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        for place in range(x.shape[1]):
            scores = (key[:, : place + 1, own] @ query[:, place, own, None]).squeeze(-1) / size**0.5
            out[:, place, own] = (scores.softmax(dim=1)[:, :, None] * value[:, : place + 1, own]).sum(dim=1)
    return out @ p["branch.1.output.weight"].T + p["branch.1.output.bias"]


def perceptron(p, x):
    inner = F.gelu(
        layer_norm(x, p["branch.0.weight"], p["branch.0.bias"]) @ p["branch.1.weight"].T + p["branch.1.bias"]
    )
    return x + p["scale"] * (inner @ p["branch.3.weight"].T + p["branch.3.bias"])


FORMULAS = {
    "norm": lambda p, x: x + torch.tanh(p["gate"]) * (layer_norm(x, p["norm.weight"], p["norm.bias"]) - x),
    "lora": lambda p, x: x + x @ p["down.weight"].T @ p["up.weight"].T,
    "lora_large": lambda p, x: x + x @ p["down.weight"].T @ p["up.weight"].T,
    "attention": lambda p, x: x + p["scale"] * attended(p, layer_norm(x, p["branch.0.weight"], p["branch.0.bias"])),
    "mlp_small": perceptron,
    "mlp": perceptron,
}
FORMULAS["flex_attention"] = FORMULAS["attention"]


@EVERY_BLUEPRINT
def test_seed_equals_its_formula_and_keeps_samples_apart(entry):
    seed, x = scrambled(entry.name, "transformer", 8), features(8)
    torch.testing.assert_close(seed(x), FORMULAS[entry.name](dict(seed.named_parameters()), x))
    torch.testing.assert_close(seed(x)[2:3], seed(x[2:3]))


@pytest.mark.parametrize(("width", "heads"), [(8, 4), (12, 4), (6, 2), (5, 1), (1, 1)])
@pytest.mark.parametrize("name", ["attention", "flex_attention"])
def test_attention_has_as_many_of_four_heads_as_divide_the_width(name, width, heads):
    seed = blueprint_entry(name, "transformer").build(width)
    assert [layer.heads for layer in seed.modules() if hasattr(layer, "heads")] == [heads]


def test_causal_gate_pools_up_to_its_position():
    gate, x = CausalBlendGate(8).double(), features(8)
    out = gate(x)
    assert out.shape == (5, CONTEXT, 1)
    for place in range(CONTEXT):
        hidden = F.silu(gate.squeeze(x[:, : place + 1].mean(dim=1)))
        torch.testing.assert_close(out[:, place], torch.sigmoid(gate.excite(hidden)))


# In networks

KINDS = [(entry.name, operator) for entry in ENTRIES for operator in Operator]


@LAYOUTS
def test_newborn_seeds_change_nothing(make_population, grow, batched):
    """They change nothing at alpha 0 and in isolation, and almost nothing at alpha 1."""
    count = len(KINDS)
    population = make_population(count, host=small_transformer(), data=TEXT, batched=batched, batch_size=8)
    bare = population.measure(grow(population, count), everyone(count)).loss

    def losses(stage, *alpha, attach=False):
        seeds = [(row, 0, *kind, stage, *alpha) for row, kind in enumerate(KINDS)]
        return population.measure(grow(population, count, *seeds, attach=attach), everyone(count)).loss

    assert losses(Stage.BLENDING, 0.0, attach=True) == pytest.approx(bare, abs=1e-6)  # in a pass of more rows
    assert losses(Stage.TRAINING) == pytest.approx(bare, abs=1e-6)
    assert losses(Stage.HOLDING) == pytest.approx(bare, abs=0.02)


class OwnTokenSeed(nn.Module):
    """Module without a batching rule."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.full((width, width), 1e-3))

    def forward(self, x):
        return x + torch.tanh(x) @ self.weight


def test_custom_seed_trains_equally_in_both_layouts(make_population, grow, own_blueprints):
    own_blueprints("own", OwnTokenSeed, "transformer")
    value, weights = blueprint_entry("own", "transformer").value, []
    for batched in (True, False):
        population = make_population(
            3, host=small_transformer(), data=TEXT, batched=batched, batch_size=8, dtype=torch.float64
        )
        population.train(grow(population, 3, *[(row, 0, "own", Operator.ADD, Stage.HOLDING) for row in range(3)]))
        weights.append(torch.cat([shard.seed_stack(0, value).parameters["weight"] for shard in population.shards]))
    torch.testing.assert_close(*weights)
