"""What ``model.save`` leaves out and an exact continuation of training needs.

``capture`` between two rollouts (in a callback's ``_on_rollout_start``, or after ``learn``), beside ``model.save`` and
the state of the environment and its normaliser. Later::

    model = FactoredRecurrentPPO.load(path, env=env)
    restore(model, state)
    model.learn(remaining_timesteps, reset_num_timesteps=False)

trains on to the same bits as a run that was never interrupted.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch as th
from numpy.typing import NDArray
from sb3_contrib.common.recurrent.type_aliases import RNNStates

from esper_agent.ppo import FactoredRecurrentPPO

_OBSERVATION = "observation."


def capture(model: FactoredRecurrentPPO) -> dict[str, NDArray]:
    """The LSTM states, the observation to act on next, and the generators SB3 draws from, as plain arrays.

    :raises ValueError: if the model has not collected anything yet
    """
    if model._last_obs is None:
        raise ValueError("the model holds no observation; capture its state after training has begun")
    hidden, cell = model._last_lstm_states.pi
    observation = {_OBSERVATION + key: value.copy() for key, value in model._last_obs.items()}
    return observation | {
        "episode_starts": np.array(model._last_episode_starts, dtype=np.bool_),
        "lstm_hidden": hidden.cpu().numpy().copy(),
        "lstm_cell": cell.cpu().numpy().copy(),
        **_generators(model.device),
    }


def restore(model: FactoredRecurrentPPO, state: Mapping[str, NDArray]) -> None:
    """Put a captured state into a model that was loaded with its environment.

    :raises ValueError: if the state is of another number of environments or another LSTM; nothing has changed then
    """
    expected = tuple(model._last_lstm_states.pi[0].shape)
    if state["lstm_hidden"].shape != expected:
        raise ValueError(
            f"the state's LSTM has shape {state['lstm_hidden'].shape} (layers, environments, width) and the model's "
            f"{expected}; load the model with the environments it was saved with"
        )
    prefix = len(_OBSERVATION)
    model._last_obs = {key[prefix:]: value.copy() for key, value in state.items() if key.startswith(_OBSERVATION)}
    model._last_episode_starts = state["episode_starts"].copy()
    lstm = tuple(th.tensor(state[name], device=model.device) for name in ("lstm_hidden", "lstm_cell"))
    model._last_lstm_states = RNNStates(lstm, lstm)
    _set_generators(state, model.device)


def _generators(device: th.device) -> dict[str, NDArray]:
    """SB3 samples actions with PyTorch's global generator and minibatches with NumPy's."""
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, words, next_gauss = random.getstate()
    result = {
        "rng.torch": th.get_rng_state().numpy().copy(),
        "rng.numpy": keys.copy(),
        "rng.numpy_position": np.array([position, has_gauss]),
        "rng.numpy_gauss": np.array(gauss),
        "rng.python": np.array([version, *words]),
        "rng.python_gauss": np.array(np.nan if next_gauss is None else next_gauss),
    }
    if device.type == "cuda":
        result["rng.cuda"] = th.cuda.get_rng_state(device).numpy().copy()
    return result


def _set_generators(state: Mapping[str, NDArray], device: th.device) -> None:
    th.set_rng_state(th.tensor(state["rng.torch"]))
    position, has_gauss = (int(value) for value in state["rng.numpy_position"])
    legacy = ("MT19937", state["rng.numpy"], position, has_gauss, float(state["rng.numpy_gauss"]))
    np.random.set_state(legacy)  # noqa: NPY002
    version, *words = (int(word) for word in state["rng.python"])
    gauss = float(state["rng.python_gauss"])
    random.setstate((version, tuple(words), None if np.isnan(gauss) else gauss))
    if device.type == "cuda" and "rng.cuda" in state:
        th.cuda.set_rng_state(th.tensor(state["rng.cuda"]), device)
