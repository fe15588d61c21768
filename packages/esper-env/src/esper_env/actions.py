"""Actions by name: ``esper_env.action`` builds one, and ``esper_env.describe_action`` describes one in words."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esper_env.rules.actions import ActionNames
from esper_env.suggestions import shown

__all__ = ["action", "describe_action"]


def action(
    op: str | int,
    slot: str | int | None = None,
    blueprint: str | int | None = None,
    style: str | int | None = None,
    tempo: str | int | None = None,
    alpha_target: str | int | None = None,
    alpha_speed: str | int | None = None,
    alpha_curve: str | int | None = None,
    *,
    env: Any = None,
) -> NDArray[np.int64]:
    """Return the action (8,) of an op and its arguments.

    Each value is a name in any case, the integer of the head, or a member of the head's enum in ``esper_env.rules``.

    >>> action(op="germinate", slot="r0c0", blueprint="conv_heavy")
    array([0, 7, 2, 1, 2, 0, 0, 1])
    >>> action("wait")
    array([0, 3, 2, 1, 2, 0, 0, 0])

    Args:
        op: the op.
        slot: id or number of the slot.
        blueprint: blueprint to germinate.
        style: for GERMINATE "sigmoid_add" by default. SET_ALPHA_TARGET has no default, because it replaces the seed's
            operator with the style's.
        tempo: length of the first ramp, by default "standard".
        alpha_target: alpha at the end of the ramp, for GERMINATE "full" by default.
        alpha_speed: length of the ramp, by default "instant".
        alpha_curve: curve of the ramp, by default "linear".
        env: the environment, single or vector, that defines the names of slots and blueprints. Without it, slots are
            "r0c0", "r0c1", ... and blueprints the standard ones.

    Raises:
        TypeError: an argument that the op does not read, a missing one that it needs, or an ``env`` that is not an
            Esper environment.
        ValueError: a value that the head does not have.
    """
    arguments = {
        "slot": slot,
        "blueprint": blueprint,
        "style": style,
        "tempo": tempo,
        "alpha_target": alpha_target,
        "alpha_speed": alpha_speed,
        "alpha_curve": alpha_curve,
    }
    return _names(env).action(op, **arguments)


def describe_action(action: ArrayLike, *, env: Any = None) -> str:
    """Return an action (8,) in words; heads that its op does not read are left out.

    >>> describe_action([0, 7, 2, 1, 2, 0, 0, 1])
    'GERMINATE conv_heavy in r0c0: style SIGMOID_ADD, tempo STANDARD (5 epochs), alpha_target FULL (1)'

    Args:
        action: integers of the eight heads.
        env: as for :func:`action`. Without it, a blueprint whose value has several names, one for each topology, is
            described by all of them ("flex_attention/mixer").

    Raises:
        ValueError: ``action`` does not have eight integers, or one is not a value of its head.
        TypeError: ``env`` is not an Esper environment.
    """
    if env is not None:
        return _names(env).describe(action)
    from esper_env.seeds.registry import registered_names  # loads PyTorch

    return ActionNames(blueprints=registered_names()).describe(action)


def _names(env: Any) -> ActionNames:
    if env is None:
        return ActionNames()
    base = getattr(env, "unwrapped", env)
    if not hasattr(base, "slot_ids") or not hasattr(base, "blueprint_names"):
        raise TypeError(f"env is {shown(env)}; expected an Esper environment, single or vector")
    return ActionNames(base.slot_ids, base.blueprint_names)
