"""Growing networks are equal in every layout and equal to a plain loop, for any sequence of actions."""

from collections import Counter
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from blueprints import CNN_BLUEPRINTS, TRANSFORMER_BLUEPRINTS
from esper_env.population import Structure
from esper_env.rules.heads import Operator
from esper_env.rules.slot_table import DOWN
from esper_env.rules.stages import Stage
from growing import (
    FIRST_SEED,
    SEEDS,
    SEQUENCES,
    STRIPES,
    SURFACES,
    assert_close,
    begin,
    choose,
    examples,
    in_shards,
    lives,
    lower_limits,
    make_growth,
    play,
    unbatched,
)
from hypothesis import example, given
from plain_transformer import made_text

pytestmark = pytest.mark.numeric

COUNT, STEPS = 5, 12
EVENTFUL = 21  # seed of lives in which everything occurs
TASKS = {
    "shadow": STRIPES,
    "surfaces": replace(SURFACES, reward_mode="contribution", max_seeds=3),
    "straight through": replace(SURFACES, isolation="straight_through"),
    "sequences": SEQUENCES,
}


def seen_in(run):
    """Counts of stages, blended (blueprint, operator) pairs, and legal and illegal actions in a run."""
    seen = Counter()
    for step in range(STEPS):
        there = {name: run.record[f"step {step}: {name}"] for name in ("action_valid", "table stage", "table alpha")}
        blended = there["table alpha"] > 0
        pairs = (run.record[f"step {step}: table {name}"][blended] for name in ("blueprint", "operator"))
        seen.update(Stage(stage) for stage in there["table stage"].flatten())
        seen.update("legal" if valid else "illegal" for valid in there["action_valid"])
        seen.update(zip(*(column.tolist() for column in pairs), strict=True))
        seen["frozen"] += int((run.record[f"step {step}: table alpha_mode"] == DOWN).sum())
    committed = [(run.record[f"step {step}: table stage"] == Stage.FOSSILIZED).sum() for step in (0, STEPS - 1)]
    seen["grown up"] = int(committed[1] - committed[0])
    return seen


def assert_everything_occurred(seen):
    assert set(Stage) - set(seen) == {Stage.UNKNOWN}
    assert min(seen["legal"], seen["illegal"]) > 0
    assert min(seen["frozen"], seen["grown up"]) > 0
    assert {pair[1] for pair in seen if isinstance(pair, tuple)} == set(Operator)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_networks_are_equal_in_every_layout(make_data, monkeypatch, name):
    """The layouts are one shard, shards of two and of one, and the single layout.

    Compares every measured or observed number, and finally every weight, momentum and buffer. The networks are
    float64, so a difference above 1e-6 is not rounding. Accuracies are equal unless two logits tie.
    """
    lower_limits(monkeypatch)
    task, seen = TASKS[name], Counter()
    reads_text = task is SEQUENCES
    data = made_text() if reads_text else make_data(val=80, pad=1, flip=True)
    offered, slots = (TRANSFORMER_BLUEPRINTS, 2) if reads_text else (CNN_BLUEPRINTS, 3 if task is STRIPES else 6)

    @examples(2)
    @example(EVENTFUL)
    @given(SEEDS)
    def agree(seed):
        plan = lives(seed, COUNT, STEPS, slots, offered)
        first = play(make_growth(in_shards(task, COUNT), COUNT, data), plan)
        seen.update(seen_in(first))
        for other in (in_shards(task, 2), unbatched(task)):
            run = play(make_growth(other, COUNT, data), plan, first.actions)
            assert_close(first.record, run.record)

    agree()
    assert_everything_occurred(seen)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shadow", "surfaces"])
def test_shard_equals_plain_loops_through_any_growth(make_data, twin, batches_of, name):
    """Each network has a twin in ordinary PyTorch that follows the structure."""
    data, task = make_data(val=20), TASKS[name]

    @examples(3)
    @example(EVENTFUL)
    @given(SEEDS)
    def keep_up(seed):
        plan = lives(seed, COUNT, STEPS, 3 if task is STRIPES else 6)
        growth = make_growth(replace(in_shards(task, COUNT), batches_per_step=4), COUNT, data)
        population = growth._population
        begin(growth, plan)
        plain = [twin(population, row, Structure.of(growth.table)) for row in range(COUNT)]
        for norm in (norm for network in plain for norm in network.norms):
            norm.momentum = task.host.norm_momentum
        batches = [batches_of(FIRST_SEED + row, torch.float64, data=data) for row in range(COUNT)]
        train = population.train

        def train_both(structure, _inspect=False):
            for network in plain:
                network.follow(structure)
            stats = train(structure)
            losses = [network.train_epoch(draw()) for network, draw in zip(plain, batches, strict=True)]
            np.testing.assert_allclose(stats.loss, losses, rtol=0, atol=1e-6)
            for network in plain:
                assert network.distance() < 1e-6, network.distances()
            return stats

        with patch.object(population, "train", train_both):
            for step in range(STEPS):
                growth.advance(
                    growth.rules.decode(choose(growth, plan, step), growth.table), np.zeros(growth.count, dtype=bool)
                )

    keep_up()
