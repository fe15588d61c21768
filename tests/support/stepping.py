"""Environments that play plans of lives, and states with one changed leaf."""

import copy
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
from esper_env.env import EsperEnv
from esper_env.vector_env import EsperVectorEnv
from growing import choose, lives

ENV = "Esper-Digits-v0"
TINY = {"horizon": 9, "batches_per_step": 2, "batch_size": 8, "device": "cpu"}


def new_env(num_envs=3, **kwargs):
    """Make a tiny vector with SAME_STEP, or a single environment for ``num_envs=None``."""
    settings = TINY | kwargs
    if num_envs is None:
        return EsperEnv(ENV, **settings)
    return EsperVectorEnv(ENV, num_envs, **({"autoreset_mode": "SameStep"} | settings))


def reward_components(info):
    """Return the components of the reward in an info, by name."""
    return {key.removeprefix("reward_"): value for key, value in info.items() if key.startswith("reward_")}


def growth_of(env):
    return env._growth if isinstance(env, EsperVectorEnv) else env._vector._growth


@contextmanager
def measured_by_script(env):
    """Replace measured accuracies, contributions and interactions with a script; losses and gradients stay real.

    The script depends on epoch, network and slot only. On every CPU, contributions pass strict gates, seeds have
    positive interactions, and committed networks gain.
    """
    growth = growth_of(env)
    population = growth._population
    measure, appraise = population.measure, population.appraise
    count, slots = growth.count, len(growth.slot_ids)

    def scripted(structure, rows):
        real = measure(structure, rows)
        of_rows = [np.random.default_rng([row, int(growth.epoch[row])]) for row in range(count)]
        draws = np.stack([rng.random((1 + slots, 1 + slots)) for rng in of_rows])
        pairs = 0.5 + draws[:, 1:, 1:] + draws[:, 1:, 1:].swapaxes(1, 2)
        return real._replace(
            accuracy=np.where(rows, 20.0 + np.rint(np.minimum(growth.epoch, 1) * 60.0 * draws[:, 0, 0]), 0.0),
            contribution=np.where(real.measured, 3.0 + draws[:, 0, 1:], 0.0),
            interaction=np.where(real.interaction_measured, pairs, 0.0),
        )

    def committed(structure, rows):
        real = appraise(structure, rows)
        return real._replace(val_accuracy=22.0 + 4.0 * rows, test_accuracy=24.0 + rows)

    with (
        patch.object(population, "measure", scripted),
        patch.object(population, "appraise", committed),
    ):
        yield env


def drive(env, plan, steps):
    """Play steps of a plan and return the results; finished episodes are reset without a seed."""
    results = []
    for step in steps:
        actions = np.array(choose(growth_of(env), plan, step % len(plan[0].moves)))
        if isinstance(env, EsperEnv):
            results.append(env.step(actions[0]))
            if results[-1][2] or results[-1][3]:
                results.append(env.reset())
            continue
        results.append(env.step(actions))
        ended = results[-1][2] | results[-1][3]
        if env.autoreset_mode.value == "Disabled" and ended.any():
            results.append(env.reset(options={"reset_mask": ended}))
    return results


def begun(env, plan, steps):
    env.reset(seed=4)
    drive(env, plan, range(steps))
    return env


def plan_for(env, seed=0, steps=30):
    count = env.num_envs if isinstance(env, EsperVectorEnv) else 1
    return lives(seed, count, steps, len(env.slot_ids))


def leaves(tree, path=()):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def changed(state, path, change):
    """Copy the state with ``change(leaf)`` at ``path``, or without that leaf if it is None."""
    result = copy.deepcopy(state)
    node = result
    for key in path[:-1]:
        node = node[key]
    value = change(node[path[-1]])
    if value is None:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return result
