"""The state of a learner, part by part: between two rollouts, or within one that a callback has stopped.

Between the updates of one rollout and the first step of the next, the rollout buffer is not needed. Hyperparameters are
not state: a resumed run makes its model from the same settings, and schedules follow from the timesteps.
"""

from __future__ import annotations

import random
from collections import deque
from functools import partial
from typing import Any

import numpy as np
import torch
from esper_env.persistence import (
    Accessors,
    Attributes,
    Stateful,
    Tree,
    check_keys,
    check_like,
    describe,
    get_states,
    set_states,
)
from sb3_contrib.common.recurrent.type_aliases import RNNStates

from esper_agent.ppo.ppo import FactoredRecurrentPPO

Model = FactoredRecurrentPPO
_COUNTERS = ("num_timesteps", "_n_updates", "_skipped_in_a_row", "_current_progress_remaining")
_LSTM = ("pi_hidden", "pi_cell", "vf_hidden", "vf_cell")


def learner_parts(model: Model) -> dict[str, Stateful]:
    """Everything about a learner that has a state, except its environment and callbacks."""
    accessors = {
        "policy": (_policy, _set_policy),
        "optimizer": (_optimizer, _set_optimizer),
        "decision": (_decision, _set_decision),
        "rollout": (_rollout, _set_rollout),
        "episodes": (_episodes, _set_episodes),
        "generators": (_generators, _set_generators),
        "last_update": (_last_update, _set_last_update),
        "logger": (_logger, _set_logger),
    }
    parts = {name: Accessors(partial(get, model), partial(put, model)) for name, (get, put) in accessors.items()}
    return {"counters": Attributes(model, _COUNTERS), **parts}


def _array(tensor: torch.Tensor) -> np.ndarray:
    return np.array(tensor.detach().cpu().numpy())


def _tensor(array: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    return torch.from_numpy(array.copy()).to(device)


def _policy(model: Model) -> Tree:
    return {name: _array(tensor) for name, tensor in model.policy.state_dict().items()}


def _set_policy(model: Model, tree: Tree) -> None:
    check_like(tree, _policy(model))
    model.policy.load_state_dict({name: _tensor(array, model.device) for name, array in tree.items()})


def _optimizer(model: Model) -> Tree:
    """Adam's moments and step counts by parameter index; a parameter that was never updated has none."""
    state = model.policy.optimizer.state_dict()["state"]
    return {str(index): {name: _array(value) for name, value in values.items()} for index, values in state.items()}


def _set_optimizer(model: Model, tree: Tree) -> None:
    parameters = [_array(parameter) for parameter in model.policy.parameters()]
    for index, values in tree.items():
        like = {name: np.zeros((), np.float32) if name == "step" else parameters[int(index)] for name in values}
        check_like(values, like, index)
    optimizer = model.policy.optimizer
    moments = {int(index): {name: _tensor(value) for name, value in values.items()} for index, values in tree.items()}
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})


def _decision(model: Model) -> Tree:
    """Observation, episode starts and recurrent states; empty before the first rollout."""
    if model._last_obs is None:
        return {}
    assert isinstance(model._last_obs, dict)
    pi, vf = model._last_lstm_states
    return {
        "observation": {name: value.copy() for name, value in model._last_obs.items()},
        "episode_starts": np.array(model._last_episode_starts, dtype=np.bool_),
        "lstm": {name: _array(state) for name, state in zip(_LSTM, (*pi, *vf), strict=True)},
    }


def _set_decision(model: Model, tree: Tree) -> None:
    states = model.policy.lstm_actor.num_layers, model.n_envs, model.policy.lstm_actor.hidden_size
    if tree == {}:
        model._last_obs = model._last_episode_starts = None
        zeros = torch.zeros(states, device=model.device)
        model._last_lstm_states = RNNStates((zeros, zeros), (zeros, zeros))
        return
    spaces: Any = model.observation_space
    template = {
        "observation": {
            name: np.zeros((model.n_envs, *space.shape), space.dtype) for name, space in spaces.spaces.items()
        },
        "episode_starts": np.zeros(model.n_envs, dtype=np.bool_),
        "lstm": {name: np.zeros(states, np.float32) for name in _LSTM},
    }
    check_like(tree, template)
    model._last_obs = {name: value.copy() for name, value in tree["observation"].items()}
    model._last_episode_starts = tree["episode_starts"].copy()
    pi_hidden, pi_cell, vf_hidden, vf_cell = (_tensor(tree["lstm"][name], model.device) for name in _LSTM)
    model._last_lstm_states = RNNStates((pi_hidden, pi_cell), (vf_hidden, vf_cell))


def _rollout(model: Model) -> Tree:
    """The steps of a rollout that a callback has stopped; empty between two rollouts."""
    return model.rollout_buffer.get_state() if model.in_rollout else {}


def _set_rollout(model: Model, tree: Tree) -> None:
    if tree == {}:
        model.in_rollout = False
        return
    model.rollout_buffer.set_state(tree)
    model.resume_rollout()


def _episodes(model: Model) -> Tree:
    """Finished episodes, whose means are logged."""
    finished = list(model.ep_info_buffer or ())
    return {
        # Columns keep the monitor's dtypes: the mean of float32 numbers is a float32 number.
        "columns": {name: np.array([info[name] for info in finished]) for name in (finished or [{}])[0]},
        "successes": [bool(success) for success in model.ep_success_buffer or ()],
    }


def _set_episodes(model: Model, tree: Tree) -> None:
    check_keys(tree, ("columns", "successes"))
    columns, successes = tree["columns"], tree["successes"]
    check_keys(columns, columns if not columns else {*columns, "r", "l"}, "columns")  # which Stable-Baselines3 reads
    for name, column in columns.items():
        if not isinstance(column, np.ndarray) or column.ndim != 1:
            raise ValueError(f"columns/{name} is {describe(column)}; expected an array with one axis")
    if type(successes) is not list or not all(type(success) is bool for success in successes):
        raise ValueError(f"successes is {describe(successes)}; expected a list of booleans")
    rows = zip(*columns.values(), strict=True)
    model.ep_info_buffer = deque((dict(zip(columns, row, strict=True)) for row in rows), model._stats_window_size)
    model.ep_success_buffer = deque(successes, model._stats_window_size)


def _last_update(model: Model) -> Tree:
    """Metrics of the latest round of updates by name."""
    return dict(model.last_update)


def _set_last_update(model: Model, tree: Tree) -> None:
    check_like(tree, dict.fromkeys(tree, 0.0) if type(tree) is dict else {})
    model.last_update = dict(tree)


def _generators(model: Model) -> Tree:
    """The global generators, from which Stable-Baselines3 draws actions and minibatches."""
    version, words, gauss = random.getstate()
    tree = {
        "python": [version, list(words), gauss],
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002
        "torch": _array(torch.get_rng_state()),
    }
    if model.device.type == "cuda":
        tree["cuda"] = _array(torch.cuda.get_rng_state(model.device))
    return tree


def _set_generators(model: Model, tree: Tree) -> None:
    """CUDA RNG state is optional: it is ignored on a CPU, and a GPU that joins starts from the seed."""
    version, words, gauss = tree["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(tree["numpy"])  # noqa: NPY002
    torch.set_rng_state(_tensor(tree["torch"]))
    if model.device.type == "cuda" and "cuda" in tree:
        torch.cuda.set_rng_state(_tensor(tree["cuda"]), model.device)


def _outputs(model: Model) -> dict[str, Any]:
    return {type(output).__name__: output for output in model.logger.output_formats if isinstance(output, Stateful)}


def _logger(model: Model) -> Tree:
    """Recorded values that have not been written, and the outputs that have a state."""
    logger = model.logger
    pending = {
        str(index): {
            "name": name,  # has slashes in it, which keys of a tree cannot have
            "value": value if isinstance(value, str) else np.asarray(value),
            "count": logger.name_to_count[name],
            "excluded": list(logger.name_to_excluded[name]),
        }
        for index, (name, value) in enumerate(sorted(logger.name_to_value.items()))
    }
    return {"pending": pending, "outputs": get_states(_outputs(model))}


def _set_logger(model: Model, tree: Tree) -> None:
    check_keys(tree, ("pending", "outputs"))
    pending = tree["pending"]
    check_keys(pending, pending, "pending")
    for index, each in pending.items():
        kept = each if isinstance(each, dict) else {}
        value = kept["value"] if isinstance(kept.get("value"), np.ndarray) else ""
        check_like(each, {"name": "", "value": value, "count": 0, "excluded": []}, f"pending/{index}")
    logger: Any = model.logger  # holds values of any kind, whatever its annotations say
    for recorded in (logger.name_to_value, logger.name_to_count, logger.name_to_excluded):
        recorded.clear()
    for each in pending.values():
        name, value = each["name"], each["value"]
        logger.name_to_value[name] = value[()] if isinstance(value, np.ndarray) else value
        logger.name_to_count[name] = each["count"]
        logger.name_to_excluded[name] = tuple(each["excluded"])
    set_states(_outputs(model), tree["outputs"])
