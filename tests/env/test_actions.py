"""``esper_env.action`` and ``esper_env.describe_action`` with and without an environment."""

import doctest

import esper_env
import gymnasium
import pytest
from esper_env import action, actions, describe_action, register_blueprint
from esper_env.rules.heads import Blueprint, Op
from plain_rules import action as build_action
from torch import nn


def mixer(channels):
    return nn.Conv2d(channels, channels, 1)


SURFACES = {"horizon": 3, "batches_per_step": 1, "batch_size": 8, "dataset": "procedural"}


def test_docstring_examples_pass():
    assert doctest.testmod(actions) == (0, 3)


def test_action_needs_no_environment_for_standard_names(make_digits):
    built = action(op="germinate", slot="r0c2", blueprint="conv_heavy")
    assert built.tolist() == build_action(Op.GERMINATE, 2, blueprint=Blueprint.CONV_HEAVY).tolist()
    env = make_digits()
    env.reset(seed=0)
    observation, *_, info = env.step(built)
    assert info["action_succeeded"]
    assert observation["blueprints"].tolist() == [13, 13, Blueprint.CONV_HEAVY]
    assert describe_action(built) == describe_action(built, env=env)


@pytest.mark.usefixtures("own_tables")
def test_action_takes_slots_and_custom_blueprints_from_the_environment(make_digits_vec):
    value = register_blueprint("mixer", "cnn", mixer).value
    envs = make_digits_vec(2, slots=["r0c0", "r0c2"])
    for env in (envs, envs.unwrapped):
        built = action("germinate", "r0c2", "Mixer", env=env)
        assert built.tolist() == build_action(Op.GERMINATE, 1, blueprint=value).tolist()
        assert describe_action(built, env=env).startswith("GERMINATE mixer in r0c2: ")
    with pytest.raises(ValueError, match="`slot` is 'r0c1'; expected one of 'r0c0' 0, 'r0c2' 1"):
        action("advance", "r0c1", env=envs)


@pytest.mark.usefixtures("own_tables")
def test_description_without_environment_gives_every_name_of_a_value():
    """A custom CNN blueprint may have the value of a standard Transformer blueprint."""
    germinate = action("germinate", "r0c0", Blueprint.FLEX_ATTENTION)
    assert describe_action(germinate).startswith("GERMINATE flex_attention in r0c0: ")
    register_blueprint("mixer", "cnn", mixer, value=Blueprint.FLEX_ATTENTION)
    assert describe_action(germinate).startswith("GERMINATE mixer/flex_attention in r0c0: ")


def test_action_knows_hosts_with_several_rows_of_slots():
    env = gymnasium.make("Esper-CIFAR-Surfaces-v0", **SURFACES)
    assert action("advance", "r1c0", env=env)[0] == 3
    assert describe_action(action("advance", 3), env=env) == "ADVANCE r1c0"
    env.close()


def test_action_rejects_other_environments():
    for call in (lambda: action("wait", env=3), lambda: describe_action([0] * 8, env=gymnasium.make("CartPole-v1"))):
        with pytest.raises(TypeError, match=r"env is .*; expected an Esper environment, single or vector"):
            call()


def test_action_rejects_unknown_arguments():
    with pytest.raises(TypeError, match="unexpected keyword argument 'speed'"):
        esper_env.action("prune", "r0c0", speed="fast")
