"""Networks as text and pictures."""

import numpy as np
import pytest
from esper_env.render import STAGE_COLOURS
from esper_env.rules.heads import Blueprint, Op, Style
from esper_env.rules.stages import Stage
from gymnasium.error import ResetNeeded


def test_text_shows_the_epoch_and_every_slot(make_digits, action, script):
    env = make_digits(render_mode="ansi", horizon=20)
    _, info = env.reset(seed=0)
    accuracy = f"{info['val_accuracy']:.1f}%"
    assert env.render() == f"epoch 0/20  accuracy {accuracy}\n  r0c0   dormant\n  r0c1   dormant\n  r0c2   dormant"
    for choice in script(1)[:4]:
        *_, info = env.step(choice)
    points = f"{info['contribution'][1]:+.1f} points"
    line = f"  r0c1   training   conv_light      add      alpha 0.00  prospective contribution {points}"
    assert env.render().splitlines()[2] == line
    env.step(script(1)[4])
    env.step(action(Op.GERMINATE, 0, blueprint=Blueprint.NORM, style=Style.GATED_GATE))
    assert env.render().splitlines()[1] == (
        "  r0c0   germinated norm            gate     alpha 0.00  contribution not measured"
    )
    *_, info = env.step(action(Op.PRUNE, 0))
    points = f"{info['contribution'][1]:+.1f} points"
    assert env.render().splitlines() == [
        f"epoch 7/20  accuracy {info['val_accuracy']:.1f}%",
        "  r0c0   pruned",
        f"  r0c1   blending   conv_light      add      alpha 1.00  contribution {points}",
        "  r0c2   dormant",
    ]


def test_vector_renders_every_environment_after_a_reset(make_digits, make_digits_vec, action):
    for env in (make_digits(render_mode="ansi").unwrapped, make_digits_vec(2, render_mode="rgb_array")):
        with pytest.raises(ResetNeeded):
            env.render()
    for mode in ("ansi", None):
        vector = make_digits_vec(2, render_mode=mode)
        vector.reset(seed=0)
        vector.step(np.array([action(), action(Op.GERMINATE, 0, blueprint=Blueprint.NORM)]))
        frames = vector.render()
        assert frames is None if mode is None else ["norm" in frame for frame in frames] == [False, True]


def shares(line, left):
    """Share of each colour in a picture line's bar, which starts at ``left``."""
    bar = [tuple(pixel.tolist()) for pixel in line[left:-4]]
    return {colour: bar.count(colour) / len(bar) for colour in set(bar)}


def test_picture_shows_stages_alphas_and_contributions(make_digits, script):
    env = make_digits(render_mode="rgb_array", horizon=20)
    _, info = env.reset(seed=0)
    picture = env.render()
    assert (picture.dtype, picture.shape) == (np.uint8, (24 * 5, 240, 3))
    for choice in script(1)[:5]:
        *_, info = env.step(choice)
    before, picture = picture, env.render()
    assert (before != picture).any()
    epoch, accuracy, *slots = (picture[24 * line : 24 * (line + 1)] for line in range(5))
    assert shares(epoch[12], 4)[120, 120, 120] == pytest.approx(5 / 20, abs=0.01)
    assert shares(accuracy[12], 4)[46, 125, 50] == pytest.approx(info["val_accuracy"] / 100, abs=0.01)
    boxes = [tuple(slot[12, 10].tolist()) for slot in slots]
    assert boxes == [STAGE_COLOURS[stage] for stage in (Stage.DORMANT, Stage.BLENDING, Stage.DORMANT)]
    assert shares(slots[1][6], 24)[STAGE_COLOURS[Stage.BLENDING]] == pytest.approx(1 / 3, abs=0.01)
    for sign in (1, -1):  # gains extend to the right, losses to the left
        env.unwrapped._vector._growth.table.contribution[0, 1] = sign * (np.sqrt(51) - 1)  # half of the scale
        line = env.render()[24 * 3 + 16, 24:-4]
        coloured = np.flatnonzero((line != 255).any(axis=1))
        middle = len(line) // 2
        assert len(coloured) == pytest.approx(len(line) / 4, abs=1)
        assert (coloured >= middle).all() if sign > 0 else (coloured < middle).all()


def test_render_changes_nothing(make_digits, action, assert_same):
    results = []
    for rendered in (False, True):
        env = make_digits(render_mode="rgb_array")
        env.reset(seed=0)
        if rendered:
            env.render()
        results.append(env.step(action(Op.GERMINATE, 0)))
    assert_same(*results)
