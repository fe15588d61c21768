"""Networks that grow under the rules through any sequence of actions, and records of all their values."""

from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from blueprints import CNN_BLUEPRINTS
from esper_env import growth as growth_module
from esper_env.growth import Growth
from esper_env.population import Measurement, build, splits
from esper_env.population.engine import images as batched
from esper_env.rules.heads import AlphaSpeed, AlphaTarget, Blueprint, Curve, Op, Style, Tempo
from esper_env.rules.slot_table import HOLD, SlotTable
from esper_env.rules.stages import Stage
from esper_env.tasks import CNNSpec, TaskConfig, TransformerSpec
from hypothesis import Phase, settings
from hypothesis import strategies as st

#: A task on the stripes of the networks' tests; the caller passes the data.
STRIPES = TaskConfig(
    "stripes",
    CNNSpec(3, 4, 2, 1, in_channels=1, image_size=8, classes=4),
    family="digits",
    batch_size=12,
    batches_per_step=2,
    horizon=12,
    host_lr=0.05,
    seed_lr=0.05,
    param_budget=5000,
    auto_shard_size=32,
)
#: Both surfaces: six slots, which run in another order than their action indices.
SURFACES = replace(STRIPES, host=replace(STRIPES.host, kernel=3, surfaces="both"))

#: A Transformer on the text of the networks' tests, with two slots.
SEQUENCES = replace(
    STRIPES,
    host=TransformerSpec(width=8, heads=2, layers=4, context=6, segments=2, expansion=2),
    family="text",
    batch_size=5,
)

#: Columns that a population's methods return.
MEASURED = {
    "train": ("loss", "gradient_norm", "vanishing", "exploding", "sizes"),
    "measure": Measurement._fields,
}

FIRST_SEED = 100  # of the first network
SEEDS = st.integers(0, 2**32 - 1)  # of lives


def examples(count):
    """Settings for slow examples, without shrinking."""
    return settings(max_examples=count, phases=[Phase.explicit, Phase.generate])


def in_shards(task, size):
    """The task with ``size`` networks in a shard, batched."""
    return replace(task, shard_size=size)


def unbatched(task):
    """The task with every network in the single layout."""
    return replace(task, shard_size=1, auto_shard_size=1)


@contextmanager
def built_with(dtype, data=None):
    """Environments made inside have networks of ``dtype`` on ``data`` (None: the task's data)."""
    with patch.object(growth_module, "build_population", partial(build.build_population, dtype=dtype)):
        if data is None:
            yield
        else:
            with patch.object(build, "load_data", lambda *_, **__: data):
                yield


def make_growth(task, count, data, dtype=torch.float64):
    with built_with(dtype, data):
        return Growth(replace(task, device="cpu"), count)


def lower_limits(monkeypatch):
    """Make small shards use the code paths of large ones."""
    monkeypatch.setattr(batched, "GREY_MIN_VALUES", 2 * 4 * 12 * 8 * 8)  # two networks of STRIPES
    # Five networks evaluate 12 images at a time, and two networks with the same seed pass it at a time.
    monkeypatch.setattr(splits, "CPU_GRAIN", splits.Grain(chunk=1 << 12, block=1 << 11))


# Actions


class Move(NamedTuple):
    """The intent of a network in one step; its state determines the action."""

    intent: str
    op: int  # for the intent "anything"
    slot: int
    heads: tuple[int, ...]  # from blueprint to alpha_curve


class Life(NamedTuple):
    """The plan of one network from its first seeds to its last step."""

    planted: dict[int, int]  # blueprint by slot
    favourite: int  # the slot that advances first
    moves: list[Move]


def lives(seed, count, steps, slots, offered=CNN_BLUEPRINTS):
    """Lives of ``count`` networks with most stages within a dozen steps, and with many illegal actions.

    Most seeds have one of two blueprints and styles, so networks share groups.
    """
    rng = np.random.default_rng(seed)
    blueprints, styles = rng.choice(offered, 2, replace=False), rng.choice(Style, 2, replace=False)
    intents = [*["grow"] * 8, "SET_ALPHA_TARGET", "SET_ALPHA_TARGET", "PRUNE", "anything"]

    def move():
        intent = rng.choice(intents)
        any_value = rng.random() < 0.2 or intent != "grow"
        heads = (
            rng.choice(Blueprint if any_value else blueprints),
            rng.choice(Style if any_value else styles),
            rng.choice([Tempo.FAST, Tempo.FAST, *Tempo]),
            rng.choice([AlphaTarget.FULL, AlphaTarget.FULL, *AlphaTarget]),
            rng.choice(AlphaSpeed),
            rng.choice(Curve),
        )
        return Move(str(intent), int(rng.choice(Op)), int(rng.integers(slots)), tuple(int(value) for value in heads))

    def life():
        planted = {int(rng.integers(slots)): Blueprint(rng.choice(blueprints))} if rng.random() < 0.4 else {}
        return Life(planted, int(rng.integers(slots)), [move() for _ in range(steps)])

    return [life() for _ in range(count)]


def action_of(life, step, table, legal):
    """The action of the network in the first row of ``table``, where ``legal`` (6, S) ops are legal.

    The intent to grow advances the first seed that can advance, starting at the favourite slot. The intents to prune or
    retarget take the first legal slot, starting at the move's slot.
    """
    move, slots = life.moves[step], table.shape[1]
    if move.intent == "grow":
        order = [(life.favourite + k) % slots for k in range(slots)]
        options = [(next_op(table, slot), slot) for slot in order]
        op, slot = next((option for option in options if option[0] is not None), (Op.WAIT, 0))
    elif move.intent == "anything":
        op, slot = move.op, move.slot
    else:
        op = Op[move.intent]
        order = [(move.slot + k) % slots for k in range(slots)]
        slot = next((slot for slot in order if legal[op, slot]), move.slot)
    return [slot, *move.heads, op]


def next_op(table, slot):
    """The op that advances a slot; None if it must wait."""
    stage, settled = Stage(table.stage[0, slot]), table.alpha_mode[0, slot] == HOLD
    if stage == Stage.TRAINING and table.epochs_in_stage[0, slot] < 3:
        return None
    if stage == Stage.BLENDING:
        return None if not settled else Op.ADVANCE if table.alpha[0, slot] == 1.0 else Op.SET_ALPHA_TARGET
    growing = {Stage.DORMANT: Op.GERMINATE, Stage.HOLDING: Op.FOSSILIZE}
    return growing.get(stage, Op.ADVANCE if stage in (Stage.GERMINATED, Stage.TRAINING) else None)


# Records


class Run(NamedTuple):
    """Actions (T, N, 8), and every recorded array by name, each with a leading N."""

    actions: list
    record: dict[str, np.ndarray]


def play(growth, plan, actions=None, before=None):
    """Play the lives of networks, or ``actions``; ``before(growth, step)`` may modify the networks."""
    record, done = begin(growth, plan), []
    for step in range(len(plan[0].moves)):
        done.append(choose(growth, plan, step) if actions is None else actions[step])
        if before is not None:
            before(growth, step)
        record |= {f"step {step}: {name}": value for name, value in advance(growth, done[-1]).items()}
    return Run(done, record | {f"at the end: {name}": value for name, value in tensors(growth).items()})


def choose(growth, plan, step):
    """(N, 8) actions of the networks."""
    legal = growth.rules.legal(growth.table)
    return [action_of(life, step, row_of(growth.table, row), legal[row]) for row, life in enumerate(plan)]


def row_of(table, row):
    """One network's row of a slot table, as a table."""
    return SlotTable(**{field.name: getattr(table, field.name)[row : row + 1] for field in fields(SlotTable)})


def begin(growth, plan):
    """Start network i from seed ``FIRST_SEED`` + i with the planted seeds of its life."""
    seeds = np.arange(FIRST_SEED, FIRST_SEED + len(plan))
    growth.begin(np.ones(len(plan), dtype=np.bool_), seeds, {})
    for row, life in enumerate(plan):
        if life.planted:
            growth.begin(np.arange(len(plan)) == row, seeds, life.planted)
    return {f"start: {name}": value for name, value in growth.observe().items()}


def advance(growth, actions):
    """Play one step; return observations, infos, measurements and the slot table."""
    population, heard = growth._population, {}

    def listen(name):
        method = getattr(population, name)

        def call(*args):
            result = method(*args)
            for column in MEASURED[name]:  # networks that are rolled back are measured again, without the others
                heard.setdefault(f"{name} {column}", getattr(result, column))
            return result

        return patch.object(population, name, call)

    with listen("train"), listen("measure"):
        outcome = growth.advance(growth.rules.decode(actions, growth.table), np.zeros(growth.count, dtype=bool))
    values = {name: value for name, value in outcome.values.items() if isinstance(value, np.ndarray)}
    table = {f"table {field.name}": getattr(growth.table, field.name).copy() for field in fields(SlotTable)}
    seen = {"rewards": outcome.rewards, **values, **growth.observe(), **heard, **table}
    return {name: np.array(value) for name, value in seen.items() if np.asarray(value).dtype != object}


def tensors(growth):
    """Every tensor of every network that holds it, as (N, ...); zeros for the other networks."""
    population, found = growth._population, {}
    for shard, own in zip(population.shards, population._slices, strict=True):
        for place, stack, rows in shard.stacks(growth.table.blueprint[own]):
            for kind, named in stack.tensors().items():
                for name, value in named.items():
                    zeros = np.zeros((growth.count, *value.shape[1:]), dtype=value.numpy().dtype)
                    found.setdefault(f"{place} {kind} {name}", zeros)[own.start + rows] = value.numpy()[rows]
    return found


def assert_close(left, right, tolerance=1e-6):
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_allclose(value, right[name], rtol=0, atol=tolerance, err_msg=name)
