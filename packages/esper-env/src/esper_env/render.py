"""Networks as text and as small pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from esper_env.rules.heads import NO_BLUEPRINT, Operator
from esper_env.rules.observation import CONTRIBUTION
from esper_env.rules.signals import Signals
from esper_env.rules.slot_table import SlotTable
from esper_env.rules.stages import Stage
from esper_env.suggestions import shown

Picture = NDArray[np.uint8]  # (height, width, 3) RGB

RENDER_MODES = ("ansi", "rgb_array")

WIDTH, LINE, MARGIN = 240, 24, 4  # pixels
_BACKGROUND, _TRACK = (255, 255, 255), (230, 230, 230)
_EPOCH, _ACCURACY, _GAIN, _LOSS = (120, 120, 120), (46, 125, 50), (21, 101, 192), (198, 40, 40)
#: Colour of a slot's box and alpha bar, by stage.
STAGE_COLOURS: dict[Stage, tuple[int, int, int]] = {
    Stage.DORMANT: (230, 230, 230),
    Stage.GERMINATED: (197, 225, 165),
    Stage.TRAINING: (255, 213, 79),
    Stage.BLENDING: (255, 152, 0),
    Stage.HOLDING: (156, 39, 176),
    Stage.FOSSILIZED: (93, 64, 55),
    Stage.PRUNED: (158, 158, 158),
    Stage.EMBARGOED: (176, 190, 197),
    Stage.RESETTING: (207, 216, 220),
}


def check_render_mode(mode: object) -> None:
    """Raise ``ValueError`` for a render mode that an environment does not have; None stands for no rendering."""
    if mode not in (None, *RENDER_MODES):
        raise ValueError(
            f"render_mode is {shown(mode)}; expected None or one of {list(RENDER_MODES)}. Gymnasium has wrappers "
            'for single environments that offer "rgb_array_list" and "human": use gymnasium.make, or make_vec with '
            'vectorization_mode="sync"'
        )


def describe_networks(
    table: SlotTable, signals: Signals, slot_ids: Sequence[str], blueprint_names: Mapping[int, str], horizon: int
) -> tuple[str, ...]:
    """Return one text per environment: epoch, validation accuracy, and a line for every slot."""
    texts = []
    for row in range(table.shape[0]):
        head = f"epoch {signals.epoch[row]}/{horizon}  accuracy {signals.val_accuracy[row]:.1f}%"
        lines = [_slot_line(row, slot, table, name, blueprint_names) for slot, name in enumerate(slot_ids)]
        texts.append("\n".join([head, *lines]))
    return tuple(texts)


def draw_networks(table: SlotTable, signals: Signals, horizon: int) -> tuple[Picture, ...]:
    """Return one RGB picture (24 (2 + S), 240, 3) per environment.

    The first two lines are bars for the share of the episode that has passed, and for the validation accuracy (full
    width: 100%). Each slot has a box in the colour of its stage, a bar for alpha, and below it the measured
    contribution on the logarithmic scale of the observation. Gains extend to the right in blue, losses to the left in
    red. The contribution of a TRAINING seed is the prospective one.
    """
    return tuple(_draw(row, table, signals, horizon) for row in range(table.shape[0]))


def _slot_line(row: int, slot: int, table: SlotTable, name: str, blueprint_names: Mapping[int, str]) -> str:
    stage = Stage(table.stage[row, slot]).name.lower()
    if table.blueprint[row, slot] == NO_BLUEPRINT:
        return f"  {name:6s} {stage}"
    blueprint = blueprint_names[int(table.blueprint[row, slot])]
    operator = Operator(table.operator[row, slot]).name.lower()
    alpha, points = table.alpha[row, slot], table.contribution[row, slot]
    # A TRAINING seed has alpha 0 and is measured at alpha 1.
    kind = "prospective contribution" if table.stage[row, slot] == Stage.TRAINING else "contribution"
    measured = f"{points:+.1f} points" if table.contribution_age[row, slot] >= 0 else "not measured"
    return f"  {name:6s} {stage:10s} {blueprint:15s} {operator:8s} alpha {alpha:.2f}  {kind} {measured}"


def _draw(row: int, table: SlotTable, signals: Signals, horizon: int) -> Picture:
    slots = table.shape[1]
    picture = np.full((LINE * (2 + slots), WIDTH, 3), _BACKGROUND, dtype=np.uint8)
    whole = slice(MARGIN, LINE - MARGIN)
    _bar(picture[whole], MARGIN, signals.epoch[row] / horizon, _EPOCH)
    _bar(picture[LINE:][whole], MARGIN, signals.val_accuracy[row] / 100.0, _ACCURACY)
    for slot in range(slots):
        line = picture[LINE * (2 + slot) :]
        colour = STAGE_COLOURS[Stage(table.stage[row, slot])]
        line[whole, MARGIN : LINE - MARGIN] = colour
        _bar(line[MARGIN : LINE // 2], LINE, table.alpha[row, slot], colour)
        if table.contribution_age[row, slot] >= 0:
            share = np.clip(CONTRIBUTION.encode(table.contribution[row, slot]), -1.0, 1.0)
            _needle(line[LINE // 2 + 1 : LINE - MARGIN], LINE, float(np.nan_to_num(share)))
    return picture


def _bar(line: Picture, left: int, share: float, colour: tuple[int, int, int]) -> None:
    """Fill a share 0..1 of the line, from ``left`` to the right."""
    line[:, left : WIDTH - MARGIN] = _TRACK
    line[:, left : left + round(share * (WIDTH - MARGIN - left))] = colour


def _needle(line: Picture, left: int, share: float) -> None:
    """Draw a share -1..1 from the middle of the line."""
    middle = (left + WIDTH - MARGIN) // 2
    end = middle + round(share * (WIDTH - MARGIN - middle))
    line[:, min(middle, end) : max(middle, end)] = _GAIN if share >= 0 else _LOSS
