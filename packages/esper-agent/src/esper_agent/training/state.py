"""The whole state of training between two rollouts as one tree: what a checkpoint of a run holds.

tree = training_state(model, callbacks)
write_checkpoint("checkpoint", tree, kind=KIND)
...
restore_training(model, callbacks, read_checkpoint("checkpoint", kind=KIND))  # made anew from the same settings
model.learn(remaining, callbacks, reset_num_timesteps=False)

A resumed run equals an uninterrupted one, within the limits of docs/environment.md, "Reproducibility".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from esper_env.persistence.checkpoint import CheckpointError
from esper_env.persistence.tree import Tree
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from esper_agent.ppo.ppo import FactoredRecurrentPPO
from esper_agent.training.environment_state import check_environment, environment_state, put_environment
from esper_agent.training.learner_state import PARTS, expect_keys

#: What a checkpoint folder says it is of.
KIND = "esper training"
#: Version of the tree; another one cannot be restored.
LAYOUT = 1


@runtime_checkable
class StatefulCallback(Protocol):
    """A callback whose state is part of a checkpoint; one without these methods starts anew when training goes on.

    ``get_state`` is called between two rollouts. ``set_state`` is called on a new callback, before the training starts,
    with an equal tree; like all that checks its input it raises before it changes anything.
    """

    def get_state(self) -> Tree:
        """Arrays and JSON values (``esper_env.persistence.tree``)."""
        ...

    def set_state(self, state: Tree) -> None:
        """Go on from there."""
        ...


def training_state(model: FactoredRecurrentPPO, callbacks: Sequence[BaseCallback] = ()) -> Tree:
    """All that further training depends on, between two rollouts: after the updates, before the next step.

    Raises ``CheckpointError`` for an environment whose state cannot be saved.
    """
    return {
        "layout": LAYOUT,
        **{name: part.read(model) for name, part in PARTS.items()},
        "environment": environment_state(_environment(model)),
        "callbacks": {name: callback.get_state() for name, callback in stateful(callbacks).items()},
    }


def restore_training(model: FactoredRecurrentPPO, callbacks: Sequence[BaseCallback], tree: Tree) -> None:
    """Put a state back into a model and callbacks that were made from the settings that it was saved under.

    Raises ``CheckpointError`` for a state of another layout, task, size or set of callbacks, before anything changes.
    """
    check_layout(tree, "the checkpoint")
    watchers = stateful(callbacks)
    expect_keys(tree, {"layout": None, **PARTS, "environment": None, "callbacks": None}, "the checkpoint")
    expect_keys(tree["callbacks"], watchers, "callbacks")
    for name, part in PARTS.items():
        part.check(model, tree[name])
    env = _environment(model)
    check_environment(env, tree["environment"])
    put_environment(env, tree["environment"])
    for name, part in PARTS.items():
        part.put(model, tree[name])
    for name, callback in watchers.items():
        callback.set_state(tree["callbacks"][name])


def check_layout(tree: Tree, place: str) -> None:
    """``CheckpointError`` for a state that another version wrote."""
    if tree.get("layout") != LAYOUT:
        raise CheckpointError(
            f"{place} has layout {tree.get('layout')}, this version of esper-agent reads {LAYOUT}; go on with the "
            "version that wrote it"
        )


def stateful(callbacks: Sequence[BaseCallback]) -> dict[str, StatefulCallback]:
    """The callbacks that keep a state, by class name; the second one of a class gets a number."""
    found: dict[str, StatefulCallback] = {}
    for callback in callbacks:
        if isinstance(callback, StatefulCallback):
            name = type(callback).__name__
            count = sum(known.partition(".")[0] == name for known in found)
            found[f"{name}.{count + 1}" if count else name] = callback
    return found


def _environment(model: FactoredRecurrentPPO) -> VecEnv:
    env = model.get_env()
    if env is None:
        raise CheckpointError("the model has no environment; give it the one that it learns in")
    return env
