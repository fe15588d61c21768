"""Trial of a blueprint when it is registered."""

from __future__ import annotations

import torch

from esper_env.extension_checks.trial import try_blueprint
from esper_env.seeds.registry import BlueprintEntry
from esper_env.threads import undisturbed


@undisturbed
def check_blueprint(entry: BlueprintEntry, shape: tuple[int, ...]) -> None:
    """Try a blueprint on features of a shape, (C, H, W) or (T, C), in every layout that would run it.

    Raises ``ValueError``, as :func:`~esper_env.extension_checks.trial.try_blueprint` does.
    """
    for batched in (False, True) if entry.batched else (False,):
        try_blueprint(entry, shape, torch.float32, batched)
