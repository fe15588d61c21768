"""The environments of a vector one by one: masks, observation and picture of a single network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from esper_env.growth import Observation
from esper_env.render import Picture, check_render_mode
from esper_env.rules.masks import MaskArray
from esper_env.suggestions import shown

if TYPE_CHECKING:
    from esper_env.vector_env import EsperVectorEnv

#: Attributes of a single environment that a vector has under another name.
_SINGLE_SPACES = {"observation_space": "single_observation_space", "action_space": "single_action_space"}
#: Attributes of a vector with an entry for each environment.
_BY_ENVIRONMENT = ("np_random", "np_random_seed")
#: Attributes of an environment that can be set; the others describe it.
_SETTABLE = ("np_random", "render_mode")


class NetworkView:
    """Methods of one environment that do not change it. Subclasses set the vector and the index."""

    _vector: EsperVectorEnv
    _index: int = 0

    def observe(self) -> Observation:
        """Return the last observation of reset or step. Raises ``ResetNeeded`` before the first reset."""
        return row_of(self._vector.observe(), self._index)

    def action_masks(self) -> NDArray[np.bool_]:
        """Marginal mask (sum of the head sizes,), under the name that sb3-contrib expects."""
        masks: NDArray[np.bool_] = self._vector.action_masks()[self._index]
        return masks

    def sample_valid_actions(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Sample a legal action (8,): a uniform op, then the slot, then the heads that the op reads."""
        actions: NDArray[np.int64] = self._vector.sample_valid_actions(rng)[self._index]
        return actions

    def split_mask(self) -> tuple[MaskArray, ...]:
        """Marginal mask by head, for ``action_space.sample(mask=...)``."""
        return self._vector.split_mask(self._index)

    def conditional_masks(self, op: int) -> tuple[MaskArray, ...]:
        """Masks by head given an op: every combination they allow is legal. Raises ``ValueError`` for an illegal op."""
        return self._vector.conditional_masks(op, self._index)

    def render(self) -> str | Picture | None:
        """Return the network as text or picture, or None without a render mode."""
        frames = self._vector.render()
        return frames[self._index] if frames is not None else None


def row_of(observations: Observation, index: int) -> Observation:
    """Return a copy of the observation of one environment."""
    return {key: value[index].copy() for key, value in observations.items()}


class _Member(NetworkView):
    """One environment as ``EsperVectorEnv.call`` sees it: its methods, and the attributes of the vector."""

    def __init__(self, vector: EsperVectorEnv, index: int) -> None:
        self._vector, self._index = vector, index

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._vector, _SINGLE_SPACES.get(name, name))
        if callable(value):
            raise AttributeError(
                f"{name!r} cannot be called for each environment of a native vector; call it on the vector, or make "
                'the vector with vectorization_mode="sync"'
            )
        return value[self._index] if name in _BY_ENVIRONMENT else value


class ByEnvironment:
    """Access to the environments of a native vector one by one, as Gymnasium's ``SyncVectorEnv`` has it."""

    num_envs: int
    render_mode: str | None

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every environment, or read an attribute, as ``gymnasium.vector.SyncVectorEnv.call``.

        Args:
            name: a method of a single environment that does not change it, such as "action_masks", or an attribute.
            *args: arguments of the method.
            **kwargs: keyword arguments of the method.

        Returns:
            One result per environment.

        Raises:
            AttributeError: there is no such attribute, or the method is one of the whole vector.
        """
        vector: Any = self
        found = [getattr(_Member(vector, index), name) for index in range(self.num_envs)]
        return tuple(value(*args, **kwargs) if callable(value) else value for value in found)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of every environment; raise ``AttributeError`` if there is none."""
        return self.call(name)

    def set_attr(self, name: str, values: list[Any] | tuple[Any, ...] | Any) -> None:
        """Set ``np_random`` or ``render_mode``: one value, or a list or tuple with one value per environment.

        Raises:
            AttributeError: the attribute cannot be set.
            ValueError: a wrong number of values, an unknown render mode, or different ones, because the environments
                share it.
        """
        if name not in _SETTABLE:
            known = "cannot be set" if hasattr(self, name) else "is not an attribute of the environment"
            raise AttributeError(
                f"{name!r} {known}; {' and '.join(_SETTABLE)} can be set, and settings of the task are keyword "
                "arguments of make_vec"
            )
        each = list(values) if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(each) != self.num_envs:
            raise ValueError(f"{name} received {len(each)} values; expected {self.num_envs}, one per environment")
        if name == "np_random":
            self.np_random = each
        elif all(value == each[0] for value in each):
            check_render_mode(each[0])
            self.render_mode = each[0]
        else:
            raise ValueError(
                f"{name} received {shown(values)}; the environments of a native vector share it, so the values must "
                "be equal"
            )
