"""Transformer blueprints: sizes, formulas, causality and learning."""

import numpy as np
import pytest
import torch
from blueprints import TRANSFORMER_BLUEPRINTS
from esper_env.extension_checks.seeds import check_seed
from esper_env.population.slot_plan import plan_slot
from esper_env.rules.heads import Blueprint, Operator
from esper_env.rules.stages import Stage
from esper_env.seeds import blueprint_entry, offered_blueprints
from esper_env.seeds.blend import CausalBlendGate
from plain_seeds import scrambled
from plain_transformer import CONTEXT, made_text, small_transformer
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.numeric

ENTRIES = offered_blueprints("transformer")
EVERY_BLUEPRINT = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
EVERY_OPERATOR = pytest.mark.parametrize("operator", Operator, ids=lambda operator: operator.name)
BOTH_LAYOUTS = pytest.mark.parametrize("batched", [True, False], ids=["batched", "single"])
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
def test_samples_are_independent(entry):
    seed, x = scrambled(entry.name, "transformer", 8), features(8)
    torch.testing.assert_close(seed(x)[2:3], seed(x[2:3]))


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
def test_seed_equals_its_formula(entry):
    seed, x = scrambled(entry.name, "transformer", 8), features(8)
    torch.testing.assert_close(seed(x), FORMULAS[entry.name](dict(seed.named_parameters()), x))


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


def logits_of(population, structure, tokens):
    """(n, B, T, 256) what networks say to the same tokens (B, T)."""
    shard = population.shards[0]
    host, count = {**shard.host.parameters, **shard.host.buffers}, shard.rows
    x = shard.infer_segment(0, shard.inference_tensors(0, host), tokens.expand(count, *tokens.shape))
    for position, slot in enumerate(shard.execution_order):
        on = structure.blended[:, slot] | structure.training[:, slot]
        plan = plan_slot(structure, slot, np.arange(count), on, shard.device, shard.dtype)
        x = shard.pass_slot(slot, plan, x, [shard.gather_seeds(slot, group) for group in plan.groups] if plan else [])
        x = shard.infer_segment(position + 1, shard.inference_tensors(position + 1, host), x)
    return x


@pytest.fixture
def networks(make_population):
    def make(count=1, batched=True, **options):
        host = small_transformer()
        return make_population(count, host=host, data=TEXT, batched=batched, batch_size=8, **options)

    return make


@BOTH_LAYOUTS
@EVERY_OPERATOR
@EVERY_BLUEPRINT
@pytest.mark.parametrize("stage", [Stage.TRAINING, Stage.BLENDING, Stage.FOSSILIZED], ids=lambda stage: stage.name)
def test_networks_with_any_seed_never_look_ahead(networks, grow, batched, operator, entry, stage):
    count = 3 if batched else 1
    population = networks(count, batched, dtype=torch.float64)
    structure = grow(population, count, *((row, 0, entry.name, operator, stage, 0.5) for row in range(count)))
    population.train(structure)
    tokens = torch.from_numpy(TEXT.val[: 4 * CONTEXT].astype(np.int64)).view(4, CONTEXT)
    before = logits_of(population, structure, tokens)
    for place in range(CONTEXT):
        changed = tokens.clone()
        changed[:, place] = 97 + (changed[:, place] - 96) % 6
        after = logits_of(population, structure, changed)
        torch.testing.assert_close(after[:, :, :place], before[:, :, :place], rtol=0, atol=1e-12)
        assert not torch.equal(after[:, :, place], before[:, :, place])


@BOTH_LAYOUTS
@EVERY_OPERATOR
@EVERY_BLUEPRINT
def test_newborn_seed_changes_nothing(networks, grow, batched, operator, entry):
    """It changes nothing at alpha 0 and in isolation, and almost nothing at alpha 1."""
    population = networks(1, batched)
    tokens = torch.from_numpy(TEXT.val[: 4 * CONTEXT].astype(np.int64)).view(4, CONTEXT)
    alone = logits_of(population, grow(population, 1), tokens)
    off = grow(population, 1, (0, 0, entry.name, operator, Stage.BLENDING, 0.0))
    assert torch.equal(logits_of(population, off, tokens), alone)
    on = grow(population, 1, (0, 0, entry.name, operator, Stage.HOLDING), attach=False)
    torch.testing.assert_close(logits_of(population, on, tokens), alone, rtol=0, atol=0.02)
    isolated = grow(population, 1, (0, 0, entry.name, operator, Stage.TRAINING), attach=False)
    losses = [population.measure(structure, np.ones(1, dtype=bool)).loss[0] for structure in (isolated, off)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)  # measured in a pass of more rows


@BOTH_LAYOUTS
@EVERY_OPERATOR
@EVERY_BLUEPRINT
@pytest.mark.parametrize("stage", [Stage.TRAINING, Stage.BLENDING], ids=lambda stage: stage.name)
def test_every_parameter_learns_within_three_steps(networks, grow, batched, operator, entry, stage):
    population = networks(1, batched, batches=3)
    structure = grow(population, 1, (0, 0, entry.name, operator, stage, 0.5))
    population.train(structure)
    shard = population.shards[0]
    stacks = [shard.seed_stack(0, entry.value)] + ([shard.gate_stack(0)] if operator == Operator.GATE else [])
    for stack in stacks:
        for name, momentum in stack.momentum.items():
            assert momentum.abs().max() > 0, name


class OwnTokenSeed(nn.Module):
    """Module without a batching rule."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.full((width, width), 1e-3))

    def forward(self, x):
        return x + torch.tanh(x) @ self.weight


def test_custom_seed_trains_like_the_plain_module(networks, grow, own_blueprints):
    own_blueprints("own", OwnTokenSeed, "transformer")
    rows = [(row, 0, "own", Operator.ADD, Stage.BLENDING, 0.5) for row in range(3)]
    many = networks(3, dtype=torch.float64)
    many.train(grow(many, 3, *rows))
    single = networks(1, batched=False, dtype=torch.float64, first_seed=102)
    single.train(grow(single, 1, (0, *rows[0][1:])))
    value = blueprint_entry("own", "transformer").value
    torch.testing.assert_close(
        many.shards[0].seed_stack(0, value).parameters["weight"][2],
        single.shards[0].seed_stack(0, value).parameters["weight"][0],
    )


def tied(width):
    first, second = nn.Linear(width, width), nn.Linear(width, width)
    second.weight = first.weight
    return nn.Sequential(first, nn.GELU(), second)


def repeated(width):
    layer = nn.Linear(width, width)
    return nn.Sequential(layer, layer)


@pytest.mark.parametrize("factory", [tied, repeated])
def test_seed_with_shared_weights_is_rejected(factory):
    with pytest.raises(ValueError, match="blueprint 'mine' uses a parameter in two places"):
        check_seed(factory(4), "mine", torch.linspace(-1, 1, 2 * CONTEXT * 4).view(2, CONTEXT, 4))
