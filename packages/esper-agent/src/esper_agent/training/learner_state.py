"""The state of a learner between two rollouts, part by part.

Between the updates of one rollout and the first step of the next, the rollout buffer is not needed. Hyperparameters are
not state: a resumed run makes its model from the same settings, and schedules follow from the timesteps.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from esper_env.persistence import Accessors, Stateful, Tree, check_keys, check_like, describe, get_states, set_states
from sb3_contrib.common.recurrent.type_aliases import RNNStates

from esper_agent.ppo.ppo import FactoredRecurrentPPO

Model = FactoredRecurrentPPO


def learner_parts(model: Model) -> dict[str, Stateful]:
    """Everything about a learner that has a state, except its environment and callbacks."""
    accessors: dict[str, tuple[Callable[[Model], Tree], Callable[[Model, Tree], None]]] = {
        "policy": (_policy, _set_policy),
        "optimizer": (_optimizer, _set_optimizer),
        "counters": (_counters, _set_counters),
        "last_update": (_last_update, _set_last_update),
        "decision": (_decision, _set_decision),
        "episodes": (_episodes, _set_episodes),
        "generators": (_generators, _set_generators),
        "logger": (_logger, _set_logger),
    }
    return {name: Accessors(partial(get, model), partial(put, model)) for name, (get, put) in accessors.items()}


def _array(tensor: torch.Tensor) -> np.ndarray:
    return np.array(tensor.detach().cpu().numpy())


def _tensor(array: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    return torch.from_numpy(array.copy()).to(device)


# The policy and its optimizer


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
    shapes = {str(index): tuple(value.shape) for index, value in enumerate(model.policy.parameters())}
    for index, values in tree.items():
        for name, array in values.items():
            expected = () if name == "step" else shapes.get(index)
            if index not in shapes or not isinstance(array, np.ndarray) or array.shape != expected:
                raise ValueError(f"{index}/{name} is {describe(array)}; the parameter's shape is {shapes.get(index)}")
    optimizer = model.policy.optimizer
    moments = {int(index): {name: _tensor(value) for name, value in values.items()} for index, values in tree.items()}
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})


# Counters, and the inputs of the next decision


def _counters(model: Model) -> Tree:
    return {
        "num_timesteps": int(model.num_timesteps),
        "n_updates": int(model._n_updates),
        "skipped_in_a_row": int(model._skipped_in_a_row),
        "progress_remaining": float(model._current_progress_remaining),
    }


def _set_counters(model: Model, tree: Tree) -> None:
    check_like(tree, _counters(model))
    model.num_timesteps = tree["num_timesteps"]
    model._n_updates = tree["n_updates"]
    model._skipped_in_a_row = tree["skipped_in_a_row"]
    model._current_progress_remaining = tree["progress_remaining"]


def _last_update(model: Model) -> Tree:
    return dict(model.last_update)


def _set_last_update(model: Model, tree: Tree) -> None:
    for name, value in tree.items():
        if type(value) not in (int, float):
            raise ValueError(f"{name} is {value!r}; expected a number")
    model.last_update = {name: float(value) for name, value in tree.items()}


_LSTM = ("pi_hidden", "pi_cell", "vf_hidden", "vf_cell")


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


# Finished episodes, whose means are logged


def _episodes(model: Model) -> Tree:
    finished = list(model.ep_info_buffer or ())
    return {
        # Columns keep the monitor's dtypes: the mean of float32 numbers is a float32 number.
        "columns": {name: np.array([info[name] for info in finished]) for name in (finished or [{}])[0]},
        "successes": [bool(success) for success in model.ep_success_buffer or ()],
    }


def _set_episodes(model: Model, tree: Tree) -> None:
    check_keys(tree, ("columns", "successes"))
    columns = tree["columns"]
    rows = zip(*columns.values(), strict=True)
    model.ep_info_buffer = deque((dict(zip(columns, row, strict=True)) for row in rows), model._stats_window_size)
    model.ep_success_buffer = deque(tree["successes"], model._stats_window_size)


# The global generators, from which Stable-Baselines3 draws actions and minibatches


def _generators(model: Model) -> Tree:
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    tree = {
        "python": {
            "version": version,
            "words": np.array(words, dtype=np.uint32),
            "gauss": [] if gauss is None else [gauss],
        },
        "numpy": {
            "kind": str(kind),
            "keys": np.array(keys),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": _array(torch.get_rng_state()),
    }
    if model.device.type == "cuda":
        tree["cuda"] = _array(torch.cuda.get_rng_state(model.device))
    return tree


def _set_generators(model: Model, tree: Tree) -> None:
    """CUDA RNG state is optional: it is ignored on a CPU, and a GPU that joins starts from the seed."""
    own = _generators(model)
    optional = {"cuda"} & (tree.keys() ^ own.keys())
    found, expected = ({key: part[key] for key in part.keys() - optional} for part in (tree, own))
    check_like(found, expected)
    python, numpy = tree["python"], tree["numpy"]
    gauss = python["gauss"][0] if python["gauss"] else None
    random.setstate((python["version"], tuple(python["words"].tolist()), gauss))
    state = (numpy["kind"], numpy["keys"], numpy["position"], numpy["has_gauss"], numpy["cached"])
    np.random.set_state(state)  # noqa: NPY002
    torch.set_rng_state(_tensor(tree["torch"]))
    if model.device.type == "cuda" and "cuda" in tree:
        torch.cuda.set_rng_state(_tensor(tree["cuda"]), model.device)


# The logger: recorded values that have not been written, and the outputs that have a state


def _outputs(model: Model) -> dict[str, Any]:
    return {type(output).__name__: output for output in model.logger.output_formats if hasattr(output, "get_state")}


def _logger(model: Model) -> Tree:
    logger = model.logger
    names = sorted(logger.name_to_value)
    text = {name: value for name, value in logger.name_to_value.items() if isinstance(value, str)}
    pending = {str(index): np.asarray(logger.name_to_value[name]) for index, name in enumerate(names)}
    return {
        # Names have slashes in them, which keys of a tree cannot have.
        "names": names,
        "counts": [int(logger.name_to_count.get(name, 0)) for name in names],
        "excluded": [list(logger.name_to_excluded.get(name, ("",))) for name in names],
        "text": [text.get(name) for name in names],
        "values": {index: value for index, value in pending.items() if names[int(index)] not in text},
        "outputs": get_states(_outputs(model)),
    }


def _set_logger(model: Model, tree: Tree) -> None:
    check_keys(tree, ("names", "counts", "excluded", "text", "values", "outputs"))
    logger: Any = model.logger  # holds values of any kind, whatever its annotations say
    for recorded in (logger.name_to_value, logger.name_to_count, logger.name_to_excluded):
        recorded.clear()
    for index, name in enumerate(tree["names"]):
        value = tree["text"][index] if tree["text"][index] is not None else tree["values"][str(index)]
        logger.name_to_value[name] = value[()] if isinstance(value, np.ndarray) else value
        if tree["counts"][index]:
            logger.name_to_count[name] = tree["counts"][index]
        logger.name_to_excluded[name] = tuple(tree["excluded"][index])
    try:
        set_states(_outputs(model), tree["outputs"])
    except ValueError as error:
        raise ValueError(f"outputs: {error}") from error
