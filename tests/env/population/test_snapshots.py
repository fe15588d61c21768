"""Snapshots give a network back bit for bit and at rest, and touch no other; what is not finite is found anywhere."""

import numpy as np
import pytest
import torch
from esper_env.population.snapshots import Snapshots
from esper_env.rules.heads import Operator
from esper_env.rules.stages import Stage
from esper_env.seeds import blueprint_entry
from torch import nn

pytestmark = pytest.mark.numeric

COUNT = 4
ADD, MULTIPLY, GATE = Operator.ADD, Operator.MULTIPLY, Operator.GATE
#: Fossils of equal and of different blueprints in the same slot, and live seeds in every stage beside them.
SEEDS = [
    (0, 0, "conv_light", ADD, Stage.FOSSILIZED),
    (0, 1, "norm", ADD, Stage.TRAINING),
    (1, 0, "conv_light", GATE, Stage.FOSSILIZED),
    (1, 2, "depthwise", MULTIPLY, Stage.FOSSILIZED),
    (2, 0, "attention", GATE, Stage.FOSSILIZED),
    (2, 1, "conv_small", GATE, Stage.FOSSILIZED),
    (2, 2, "conv_light", ADD, Stage.BLENDING, 0.5),
    (3, 1, "conv_small", ADD, Stage.HOLDING),
    (3, 2, "bottleneck", ADD, Stage.GERMINATED),
]
#: What training moves of what is kept: no ADD trains a gate.
MOVING = {0: {"host", "seed"}, 2: {"host", "seed", "gate"}, 3: {"host"}}
LAYOUTS = {"alone": {"together": False}, "three": {"shard_size": 3}, "all": {}, "one": {"shard_size": 1}}


def mask(*rows):
    return np.isin(np.arange(COUNT), rows)


def stacks(population, row, structure, only_fossils):
    """(name, stack, place of the row) of a network's host and of its seeds with their gates."""
    shard, local = population._locate(row)
    yield "host", shard.host, local
    held = structure.fossilized[row] if only_fossils else structure.blueprint[row] != 13
    for slot in np.flatnonzero(held).tolist():
        yield f"seed {slot}", shard.seed_stack(slot, int(structure.blueprint[row, slot])), local
        yield f"gate {slot}", shard.gate_stack(slot), local


def copies(population, row, structure, only_fossils=True, momentum=False):
    """One network's tensors by name."""
    found = {}
    for place, stack, local in stacks(population, row, structure, only_fossils):
        found |= {f"{place} {name}": value[local].clone() for name, value in stack.values().items()}
        if momentum:
            found |= {f"{place} momentum {name}": value[local].clone() for name, value in stack.momentum.items()}
    return found


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_network_comes_back_bit_for_bit_and_at_rest(make_population, grow, layout, precision):
    population = make_population(COUNT, precision=precision, **LAYOUTS[layout])
    structure = grow(population, COUNT, *SEEDS)
    population.train(structure)
    aside = {row: copies(population, row, structure) for row in (0, 2, 3)}
    population.take_snapshots(structure, mask(0, 2, 3))
    for _ in range(2):
        population.train(structure)
    for row, kept in aside.items():
        now = copies(population, row, structure)
        moved = [name for name in kept if not torch.equal(now[name], kept[name])]
        assert {name.split()[0] for name in moved} == MOVING[row]
        others = [copies(population, other, structure, False, True) for other in range(COUNT) if other != row]
        assert population.restore_snapshot(structure, row) == ((), ())
        assert_equal(copies(population, row, structure), kept)
        for _, stack, local in stacks(population, row, structure, only_fossils=True):
            assert not any(value[local].any() for value in stack.momentum.values())
        left = [copies(population, other, structure, False, True) for other in range(COUNT) if other != row]
        for before, after in zip(others, left, strict=True):
            assert_equal(before, after)


def test_what_comes_back_are_parameters_statistics_and_gates(make_population, grow):
    population = make_population(COUNT)
    structure = grow(population, COUNT, *SEEDS)
    names = copies(population, 2, structure)
    for part in ("host segments.0.1.running_mean", "host segments.2.1.running_var", "host segments.0.0.weight"):
        assert part in names
    assert {name.split()[0] + " " + name.split()[1] for name in names if name[0] != "h"} == {
        "seed 0", "seed 1", "gate 0", "gate 1",
    }  # fmt: skip


def test_momentum_is_there_before_it_is_cleared(make_population, grow):
    population = make_population(COUNT)
    structure = grow(population, COUNT, *SEEDS)
    population.take_snapshots(structure, mask(1))
    population.train(structure)
    moving = [stack for _, stack, _ in stacks(population, 1, structure, only_fossils=True)]
    assert all(any(value[1].any() for value in stack.momentum.values()) for stack in moving[:2])
    population.restore_snapshot(structure, 1)
    assert not any(value[1].any() for stack in moving for value in stack.momentum.values())


def test_live_seeds_are_neither_kept_nor_put_back(make_population, grow):
    population = make_population(COUNT)
    structure = grow(population, COUNT, *SEEDS)
    population.take_snapshots(structure, mask(3))
    assert set(population._snapshots[0]._shelves) == {"host"}
    population.train(structure)
    shard, _ = population._locate(3)
    seed = shard.seed_stack(1, blueprint_entry("conv_small", "cnn").value)
    before = {name: value.clone() for name, value in seed.values().items()}
    population.restore_snapshot(structure, 3)
    assert_equal(before, seed.values())


def test_the_last_snapshot_counts_and_replaces_no_other_network_s(make_population, grow):
    population = make_population(COUNT, shard_size=3)
    structure = grow(population, COUNT, *SEEDS)
    population.take_snapshots(structure, mask(*range(COUNT)))
    first = [copies(population, row, structure) for row in range(COUNT)]
    population.train(structure)
    population.take_snapshots(structure, mask(1, 3))
    second = [copies(population, row, structure) for row in range(COUNT)]
    population.train(structure)
    for row in range(COUNT):
        population.restore_snapshot(structure, row)
        assert_equal(copies(population, row, structure), (second if row in (1, 3) else first)[row])


def test_snapshots_share_no_memory_with_the_networks(make_population, grow):
    population = make_population(COUNT)
    structure = grow(population, COUNT, *SEEDS)
    population.take_snapshots(structure, mask(0, 1, 2))
    shelves = population._snapshots[0]._shelves
    kept = {
        (name, kind, key): value.clone()
        for name, shelf in shelves.items()
        for kind, own in shelf.tensors().items()
        for key, value in own.items()
    }
    population.train(structure)
    for stack in [stack for row in range(3) for _, stack, _ in stacks(population, row, structure, only_fossils=True)]:
        for value in stack.values().values():
            value.fill_(7)
    for (name, kind, key), value in kept.items():
        assert torch.equal(shelves[name].tensors()[kind][key], value)
        assert shelves[name].tensors()[kind][key].device.type == "cpu"


def test_training_goes_on_from_a_snapshot_as_from_the_network_it_was_taken_of(make_population, grow):
    """Two populations with the same data order, of which one went astray in between."""
    losses = []
    for astray in (False, True):
        population = make_population(1)
        structure = grow(population, 1, *SEEDS[:1])
        population.train(structure)
        population.take_snapshots(structure, np.array([True]))
        if astray:
            for value in population.shards[0].host.values().values():
                value.fill_(3)
        population.restore_snapshot(structure, 0)
        losses.append(population.train(structure).loss.tolist())
    assert losses[0] == losses[1]


def test_a_mismatch_names_the_tensors(make_population, grow):
    population = make_population(COUNT)
    structure = grow(population, COUNT, *SEEDS)
    shard = population.shards[0]
    snapshots = Snapshots(shard)
    bare = structure._replace(fossilized=np.zeros_like(structure.fossilized))
    snapshots.take(bare, np.arange(COUNT))
    value = blueprint_entry("conv_light", "cnn").value
    missing, unexpected = snapshots.restore(structure, 0)
    seed, gate = shard.seed_stack(0, value), shard.gate_stack(0)
    assert missing == (
        *(f"seeds/0/{value}/parameters/{key}" for key in seed.parameters),
        *(f"seeds/0/{value}/buffers/{key}" for key in seed.buffers),
        *(f"gates/0/parameters/{key}" for key in gate.parameters),
        *(f"gates/0/buffers/{key}" for key in gate.buffers),
    )
    assert unexpected == ()
    kept = snapshots._shelves["host"].tensors()["parameters"]
    kept["ghost"] = kept.pop("segments.0.0.weight")
    wanted = (("host/parameters/segments.0.0.weight",), ("host/parameters/ghost",))
    assert snapshots.restore(bare, 0) == wanted


# What is finite


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_bad_number_anywhere_is_found_in_its_network_alone(make_population, grow, layout, value):
    population = make_population(COUNT, **LAYOUTS[layout])
    structure = grow(population, COUNT, *SEEDS)
    size = population.shards[0].rows

    def finite():
        shards = zip(population.shards, population._slices, strict=True)
        return torch.cat([shard.finite(structure.rows(own)) for shard, own in shards]).tolist()

    assert finite() == [True] * COUNT
    for row in range(COUNT):
        for name, stack, local in list(stacks(population, row, structure, only_fossils=False)):
            for key, tensor in stack.values().items():
                if tensor.is_floating_point():
                    last = tensor[local].view(-1)[-1]
                    before = last.clone()
                    last.fill_(value)
                    assert finite() == [other != row for other in range(COUNT)], (row, name, key, size)
                    last.copy_(before)


def test_what_a_network_no_longer_holds_does_not_count(make_population, grow):
    population = make_population(COUNT)
    structure = grow(population, COUNT, *SEEDS)
    shard = population.shards[0]
    value = blueprint_entry("conv_light", "cnn").value
    for tensor in shard.seed_stack(0, value).parameters.values():
        tensor[2] = torch.nan  # network 2 has attention there, network 3 nothing
        tensor[3] = torch.nan
    for tensor in shard.gate_stack(0).parameters.values():
        tensor[3] = torch.nan
    assert shard.finite(structure).tolist() == [True] * COUNT


@pytest.mark.parametrize("stage", [Stage.GERMINATED, Stage.TRAINING, Stage.HOLDING, Stage.FOSSILIZED])
def test_training_reports_what_is_not_finite(make_population, grow, stage):
    population = make_population(2, shard_size=1)
    structure = grow(population, 2, (1, 0, "conv_light", ADD, stage))
    assert population.train(structure).finite.tolist() == [True, True]
    next(iter(population.shards[1].gate_stack(0).parameters.values()))[0] = torch.nan
    stats = population.train(structure)
    assert stats.finite.tolist() == [True, False]
    assert np.isfinite(stats.loss).all()  # no ADD reads a gate


class Half(nn.Module):
    """Nothing to train, nothing to keep."""

    def forward(self, x):
        return 0.5 * x
