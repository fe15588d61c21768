"""The whole state of training as one tree, the content of a run's checkpoints.

    tree = training_state(model, callbacks)
    write_checkpoint("training.safetensors", tree, kind=KIND)
    ...
    # Later, with a model and callbacks made from the same settings:
    restore_training(model, callbacks, read_checkpoint("training.safetensors", kind=KIND))
    model.learn(remaining, callbacks, reset_num_timesteps=False)

A resumed run equals an uninterrupted one, within the limits of "Reproducibility" in docs/environment.md.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

from esper_env.persistence import (
    Accessors,
    Attributes,
    CheckpointError,
    Stateful,
    Tree,
    get_states,
    restore,
    set_states,
)
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize

from esper_agent.ppo.ppo import FactoredRecurrentPPO
from esper_agent.sb3 import GymVecEnv
from esper_agent.training.learner_state import learner_parts

#: Kind of the checkpoints of a run.
KIND = "esper training"
#: Version of the tree, which includes the state of the environment. Other versions cannot be restored.
LAYOUT = 5


def training_state(model: FactoredRecurrentPPO, callbacks: Sequence[BaseCallback] = ()) -> Tree:
    """Return everything that further training depends on.

    Call it between two rollouts, after the updates, or within a rollout that a callback has stopped.

    The state of a callback with ``get_state`` and ``set_state`` (``esper_env.persistence.Stateful``) is included.
    ``get_state`` is called on new callbacks too. ``set_state`` must not write files: a failed restore calls it with the
    old state.

    Raises:
        CheckpointError: the state of the environment cannot be saved.
    """
    return {"layout": LAYOUT, **get_states(_parts(model, callbacks))}


def restore_training(model: FactoredRecurrentPPO, callbacks: Sequence[BaseCallback], tree: Tree) -> None:
    """Continue from a state, in a model and callbacks made from the same settings.

    Raises:
        CheckpointError: the state has another layout, or belongs to another task, size or set of callbacks. Nothing
            has changed.
    """
    check_layout(tree, "the checkpoint")
    parts = _parts(model, callbacks)
    content = {name: part for name, part in tree.items() if name != "layout"}
    try:
        restore(partial(get_states, parts), partial(set_states, parts), content)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"the checkpoint does not fit this run: {error}. It belongs to another task, other settings or other "
            "callbacks; use the ones that it was saved with"
        ) from error
    env: Any = model.get_env()
    env.unwrapped._reset_options()
    # A diverging update falls back to parameters that have been used successfully, as these have.
    model._last_good = copy.deepcopy(model.get_parameters())


def check_layout(tree: Tree, place: str) -> None:
    """Raise ``CheckpointError`` for a state that another version saved."""
    if tree.get("layout") != LAYOUT:
        raise CheckpointError(
            f"{place} has layout {tree.get('layout')}; this version of esper-agent reads layout {LAYOUT}. Resume with "
            "the version that saved it"
        )


def environment_parts(env: VecEnv | None) -> dict[str, Stateful]:
    """Wrappers with their state, from the outside in, and the vector environment inside.

    Raises:
        CheckpointError: a wrapper or the vector environment has a state that cannot be saved, so a resumed run would
            not be exact.
    """
    parts: dict[str, Stateful] = {}
    outer: Any = env
    while not isinstance(outer, GymVecEnv):
        if type(outer) is VecNormalize and not outer.norm_obs:
            parts["VecNormalize"] = Attributes(outer, ("returns",))
            parts["statistics"] = Attributes(outer.ret_rms, ("mean", "var", "count"))
        elif type(outer) is VecMonitor:
            parts["VecMonitor"] = Attributes(outer, ("episode_returns", "episode_lengths", "episode_count"))
        else:
            raise _unsaved(outer, "make_sb3_env, VecMonitor, and VecNormalize with norm_obs=False")
        outer = outer.venv
    vector = outer.vec_env
    if vector.unwrapped is not vector or not isinstance(vector, Stateful):
        raise _unsaved(vector, "an environment with get_state and set_state")
    return {**parts, "vector": vector, "seeds": Attributes(outer, ("_seeds",))}


def _unsaved(env: Any, expected: str) -> CheckpointError:
    return CheckpointError(
        f"the state of {type(env).__name__} cannot be saved; use {expected}, or train without checkpoints "
        "(checkpoint_every=0)"
    )


def _parts(model: FactoredRecurrentPPO, callbacks: Sequence[BaseCallback]) -> dict[str, Stateful]:
    stateful = [callback for callback in callbacks if isinstance(callback, Stateful)]
    groups: dict[str, dict[str, Stateful]] = {
        "environment": environment_parts(model.get_env()),
        "callbacks": {f"{type(each).__name__}.{number}": each for number, each in enumerate(stateful)},
    }
    grouped = {
        name: Accessors(partial(get_states, parts), partial(set_states, parts)) for name, parts in groups.items()
    }
    return {**grouped, **learner_parts(model)}
