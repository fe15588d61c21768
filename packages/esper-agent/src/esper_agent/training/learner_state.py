"""What a learner consists of between two rollouts, part by part: how each is read, checked and put back.

Between the updates of one rollout and the first step of the next there is no rollout buffer to keep, and the rest is
here, but for the environment and the callbacks, which keep their own state. Hyperparameters and schedules are not
state: whoever goes on makes the model from the same settings, and the schedules follow from the timesteps.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from esper_env.persistence.checkpoint import CheckpointError
from esper_env.persistence.tree import Tree
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.logger import Logger

from esper_agent.ppo.ppo import FactoredRecurrentPPO

Model = FactoredRecurrentPPO


class Part(NamedTuple):
    """One part of a learner. ``check`` raises ``CheckpointError`` for what ``put`` could not take."""

    read: Callable[[Model], Tree]
    check: Callable[[Model, Tree], None]
    put: Callable[[Model, Tree], None]


def expect_like(found: Any, expected: Any, place: str) -> None:
    """``CheckpointError`` unless both trees have the same keys, shapes, dtypes and kinds of values."""
    if isinstance(expected, Mapping):
        expect_keys(found, expected, place)
        for key, value in expected.items():
            expect_like(found[key], value, f"{place}/{key}")
        return
    if _described(found) != _described(expected):
        raise CheckpointError(
            f"{place} is {_described(found)}; this learner has {_described(expected)}: the checkpoint is of another "
            "task or of other settings"
        )


def expect_keys(found: Any, expected: Mapping[str, Any], place: str) -> None:
    """``CheckpointError`` unless ``found`` is a dict with the keys of ``expected``."""
    if not isinstance(found, dict):
        raise CheckpointError(f"{place} is {_described(found)}; expected {sorted(expected)}")
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{place} lacks {missing} and has {unknown} besides what is expected: the checkpoint is of another task, "
            "of other settings or of other callbacks"
        )


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array {value.shape} of {value.dtype}"
    return f"a {type(value).__name__}"


def _like_its_own(read: Callable[[Model], Tree], place: str) -> Callable[[Model, Tree], None]:
    """A check for parts that have the same form at every moment."""
    return lambda model, tree: expect_like(tree, read(model), place)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return np.array(tensor.detach().cpu().numpy())


def _tensor(array: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    return torch.from_numpy(array.copy()).to(device)


# The policy and its optimizer


def _policy(model: Model) -> Tree:
    return {name: _array(tensor) for name, tensor in model.policy.state_dict().items()}


def _put_policy(model: Model, tree: Tree) -> None:
    model.policy.load_state_dict({name: _tensor(array, model.device) for name, array in tree.items()})


def _optimizer(model: Model) -> Tree:
    """Adam's moments and counts by the position of the parameter; one that has not been updated yet has none."""
    state = model.policy.optimizer.state_dict()["state"]
    return {str(index): {name: _array(value) for name, value in values.items()} for index, values in state.items()}


def _check_optimizer(model: Model, tree: Tree) -> None:
    shapes = {str(index): tuple(value.shape) for index, value in enumerate(model.policy.parameters())}
    for index, values in tree.items():
        for name, array in values.items():
            expected = () if name == "step" else shapes.get(index)
            if index not in shapes or np.shape(array) != expected:
                raise CheckpointError(
                    f"optimizer/{index}/{name} is {_described(array)}; the parameter's shape is {shapes.get(index)}: "
                    "the checkpoint is of another task or of other settings"
                )


def _put_optimizer(model: Model, tree: Tree) -> None:
    optimizer = model.policy.optimizer
    moments = {int(index): {name: _tensor(value) for name, value in values.items()} for index, values in tree.items()}
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    # Parameters that a checkpoint holds have decided finitely: what a diverging update falls back to.
    model._last_good = copy.deepcopy(model.get_parameters())


# Counters, and what the next decision is made from


def _counters(model: Model) -> Tree:
    return {
        "num_timesteps": int(model.num_timesteps),
        "n_updates": int(model._n_updates),
        "skipped_in_a_row": int(model._skipped_in_a_row),
        "progress_remaining": float(model._current_progress_remaining),
    }


def _put_counters(model: Model, tree: Tree) -> None:
    model.num_timesteps = tree["num_timesteps"]
    model._n_updates = tree["n_updates"]
    model._skipped_in_a_row = tree["skipped_in_a_row"]
    model._current_progress_remaining = tree["progress_remaining"]


def _last_update(model: Model) -> Tree:
    return dict(model.last_update)


def _check_last_update(_: Model, tree: Tree) -> None:
    for name, value in tree.items():
        if type(value) not in (int, float):
            raise CheckpointError(f"last_update/{name} is {value!r}; expected a number")


def _put_last_update(model: Model, tree: Tree) -> None:
    model.last_update = {name: float(value) for name, value in tree.items()}


def _decision(model: Model) -> Tree:
    assert isinstance(model._last_obs, dict)
    pi, vf = model._last_lstm_states
    return {
        "observation": {name: value.copy() for name, value in model._last_obs.items()},
        "episode_starts": np.array(model._last_episode_starts, dtype=np.bool_),
        "lstm": {
            name: _array(state)
            for name, state in zip(("pi_hidden", "pi_cell", "vf_hidden", "vf_cell"), (*pi, *vf), strict=True)
        },
    }


def _check_decision(model: Model, tree: Tree) -> None:
    spaces: Any = model.observation_space
    states = model.policy.lstm_actor.num_layers, model.n_envs, model.policy.lstm_actor.hidden_size
    template = {
        "observation": {
            name: np.zeros((model.n_envs, *space.shape), space.dtype) for name, space in spaces.spaces.items()
        },
        "episode_starts": np.zeros(model.n_envs, dtype=np.bool_),
        "lstm": {name: np.zeros(states, np.float32) for name in ("pi_hidden", "pi_cell", "vf_hidden", "vf_cell")},
    }
    expect_like(tree, template, "decision")


def _put_decision(model: Model, tree: Tree) -> None:
    model._last_obs = {name: value.copy() for name, value in tree["observation"].items()}
    model._last_episode_starts = tree["episode_starts"].copy()
    states = {name: _tensor(value, model.device) for name, value in tree["lstm"].items()}
    model._last_lstm_states = RNNStates(
        (states["pi_hidden"], states["pi_cell"]), (states["vf_hidden"], states["vf_cell"])
    )


# Finished episodes that means are taken over


def _episodes(model: Model) -> Tree:
    finished = list(model.ep_info_buffer or ())
    return {
        # Of the monitor's dtypes: the mean of float32 numbers is one of float32.
        "columns": {name: np.array([info[name] for info in finished]) for name in (finished or [{}])[0]},
        "successes": [bool(success) for success in model.ep_success_buffer or ()],
    }


def _check_episodes(_model: Model, tree: Tree) -> None:
    expect_keys(tree, {"columns": None, "successes": None}, "episodes")


def _put_episodes(model: Model, tree: Tree) -> None:
    columns = tree["columns"]
    rows = zip(*columns.values(), strict=True)
    model.ep_info_buffer = deque((dict(zip(columns, row, strict=True)) for row in rows), model._stats_window_size)
    model.ep_success_buffer = deque(tree["successes"], model._stats_window_size)


# The global generators: Stable-Baselines3 draws actions and minibatches from them


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


def _check_generators(model: Model, tree: Tree) -> None:
    """A GPU's generator is asked for by nobody who goes on without one, and one that joins starts from the seed."""
    expected = _generators(model)
    optional = {"cuda"} & (tree.keys() ^ expected.keys())
    found, wanted = ({key: part[key] for key in part.keys() - optional} for part in (tree, expected))
    expect_like(found, wanted, "generators")


def _put_generators(model: Model, tree: Tree) -> None:
    python, numpy = tree["python"], tree["numpy"]
    gauss = python["gauss"][0] if python["gauss"] else None
    random.setstate((python["version"], tuple(python["words"].tolist()), gauss))
    state = (numpy["kind"], numpy["keys"], numpy["position"], numpy["has_gauss"], numpy["cached"])
    np.random.set_state(state)  # noqa: NPY002
    torch.set_rng_state(_tensor(tree["torch"]))
    if model.device.type == "cuda" and "cuda" in tree:
        torch.cuda.set_rng_state(_tensor(tree["cuda"]), model.device)


# The logger: what is recorded and not yet written, and how far its files go


def _outputs(logger: Logger) -> dict[str, Any]:
    """The outputs that keep a state, by name."""
    return {type(output).__name__: output for output in logger.output_formats if hasattr(output, "get_state")}


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
        "outputs": {name: output.get_state() for name, output in _outputs(logger).items()},
    }


def _check_logger(model: Model, tree: Tree) -> None:
    expect_keys(tree, _logger(model), "logger")
    expect_keys(tree["outputs"], _outputs(model.logger), "logger/outputs")


def _put_logger(model: Model, tree: Tree) -> None:
    logger: Any = model.logger  # values of any kind, whatever its annotations say
    for index, name in enumerate(tree["names"]):
        value = tree["text"][index] if tree["text"][index] is not None else tree["values"][str(index)]
        logger.name_to_value[name] = value[()] if isinstance(value, np.ndarray) else value
        if tree["counts"][index]:
            logger.name_to_count[name] = tree["counts"][index]
        logger.name_to_excluded[name] = tuple(tree["excluded"][index])
    for name, output in _outputs(logger).items():
        output.set_state(tree["outputs"][name])


#: Part of a checkpoint -> how it is read, checked and put back, in the order of putting back.
PARTS: dict[str, Part] = {
    "policy": Part(_policy, _like_its_own(_policy, "policy"), _put_policy),
    "optimizer": Part(_optimizer, _check_optimizer, _put_optimizer),
    "counters": Part(_counters, _like_its_own(_counters, "counters"), _put_counters),
    "last_update": Part(_last_update, _check_last_update, _put_last_update),
    "decision": Part(_decision, _check_decision, _put_decision),
    "episodes": Part(_episodes, _check_episodes, _put_episodes),
    "generators": Part(_generators, _check_generators, _put_generators),
    "logger": Part(_logger, _check_logger, _put_logger),
}
