"""Updates: when they stop, what clips or skips them, and what never enters them."""

from __future__ import annotations

import numpy as np
import pytest
import torch as th
from esper_agent.ppo.ppo import FactoredRecurrentPPO, NonFiniteUpdateError
from esper_env.rules.heads import HEAD_RELEVANCE, Head

pytestmark = pytest.mark.numeric


def parameters_of(model):
    return [parameter.detach().clone() for parameter in model.policy.parameters()]


def same(left, right):
    return all(th.equal(a, b) for a, b in zip(left, right, strict=True))


def count_steps(model):
    steps = []
    model.policy.optimizer.register_step_pre_hook(lambda *_: steps.append(gradient_norm(model)))
    return steps


def gradient_norm(model):
    return th.stack([parameter.grad.norm() for parameter in model.policy.parameters()]).norm().item()


def poison(model, updates, value=float("nan")):
    """Make the critic's output non-finite in the given calls of the update, counted from now."""
    calls = iter(range(10**9))
    evaluate = model.policy.evaluate_heads

    def faulty(*args):
        evaluation = evaluate(*args)
        if next(calls) in updates:
            evaluation = evaluation._replace(op_values=evaluation.op_values * value)
        return evaluation

    model.policy.evaluate_heads = faulty


def test_large_kl_stops_before_the_step(mask_world, make_model, collect):
    model = make_model(mask_world(), target_kl=1e-9, learning_rate=1e-2, batch_size=64, n_epochs=5)
    collect(model)
    steps = count_steps(model)
    model.train()
    assert len(steps) == 1, "the first minibatch is at KL 0, the second is already too far"
    unlimited = make_model(mask_world(), target_kl=None, learning_rate=1e-2, batch_size=64, n_epochs=5)
    collect(unlimited)
    steps = count_steps(unlimited)
    unlimited.train()
    assert len(steps) == 5


def test_gradients_are_clipped_and_their_norm_before_clipping_is_logged(mask_world, make_model, collect):
    model = make_model(mask_world(), max_grad_norm=1e-3, n_epochs=1)
    collect(model)
    applied = count_steps(model)
    model.train()
    assert applied == pytest.approx([1e-3] * len(applied), rel=1e-3)
    assert model.last_update["grad_norm"] > 1e-2
    assert model.last_update["clipped_update_fraction"] == 1.0
    model = make_model(mask_world(), max_grad_norm=1e3, n_epochs=1)
    collect(model)
    applied = count_steps(model)
    model.train()
    assert model.last_update["grad_norm"] == pytest.approx(np.mean(applied), rel=1e-4)
    assert model.last_update["grad_norm_max"] == pytest.approx(max(applied), rel=1e-4)
    assert model.last_update["clipped_update_fraction"] == 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_single_non_finite_updates_are_skipped_and_counted(mask_world, value, make_model, collect):
    model = make_model(mask_world(), batch_size=16, n_epochs=2, target_kl=None)
    collect(model)
    poison(model, {0, 1, 4, 6}, value)
    steps = count_steps(model)
    model.train()
    assert len(steps) == 4
    assert model.last_update["skipped_updates"] == 4
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
    assert all(np.isfinite(list(model.last_update.values())))


def test_three_non_finite_updates_in_a_row_stop_with_the_last_good_model(mask_world, tmp_path, make_model):
    model = make_model(mask_world(), batch_size=16, n_epochs=4, target_kl=None, tensorboard_log=str(tmp_path))
    model.learn(64)
    good = parameters_of(model)
    poison(model, {2, 3, 4})
    with pytest.raises(NonFiniteUpdateError, match="3 updates in a row") as error:
        model.learn(64, reset_num_timesteps=False)
    assert same(parameters_of(model), good), "back to what the round of updates started from"
    saved = next(tmp_path.rglob("last_good_model.zip"))
    assert str(saved) in str(error.value)
    assert same(parameters_of(FactoredRecurrentPPO.load(saved, device="cpu")), good)


def test_two_bad_updates_and_a_later_third_do_not_stop(mask_world, make_model):
    model = make_model(mask_world(), batch_size=16, n_epochs=3, target_kl=None)
    poison(model, {0, 1, 3, 4, 6, 7, 9, 10, 12, 13})
    model.learn(128)
    assert model.num_timesteps == 128


def test_non_finite_gradient_is_skipped(mask_world, make_model, collect):
    model = make_model(mask_world(), batch_size=16, n_epochs=1, target_kl=None)
    collect(model)
    factors = iter([1.0, float("nan"), 1.0, float("inf")])
    model.policy.value_net.hidden.weight.register_hook(lambda gradient: gradient * next(factors))
    steps = count_steps(model)
    model.train()
    assert len(steps) == 2
    assert model.last_update["skipped_updates"] == 2
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_non_finite_target_skips_its_minibatches(mask_world, make_model, collect):
    model = make_model(mask_world(), target_kl=None, n_epochs=3)
    collect(model).returns[3, 1] = np.nan
    model.train()
    assert model.last_update["skipped_updates"] == 3
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_persistent_non_finite_rewards_stop_the_run(mask_world, make_model):
    env = mask_world()
    env.step_wait = lambda step=env.step_wait: (lambda obs, reward, *rest: (obs, reward * np.nan, *rest))(*step())
    model = make_model(env)
    before = parameters_of(model)
    with pytest.raises(NonFiniteUpdateError):
        model.learn(256)
    assert same(parameters_of(model), before)


def test_unread_heads_of_stored_actions_do_not_enter_the_update(mask_world, make_model, collect, roughen):
    plain, scrambled = (roughen(make_model(mask_world())) for _ in range(2))
    for model in (plain, scrambled):
        model.set_random_seed(0)
        collect(model)
    actions = scrambled.rollout_buffer.actions
    noise = np.stack(
        [np.random.default_rng(0).integers(0, size, actions.shape[:2]) for size in (3, 13, 4, 3, 3, 4, 5, 6)], -1
    )
    relevance = HEAD_RELEVANCE[actions[..., Head.OP]]
    scrambled.rollout_buffer.actions = np.where(relevance, actions, noise)
    assert not np.array_equal(scrambled.rollout_buffer.actions, plain.rollout_buffer.actions)
    for model in (plain, scrambled):
        model.set_random_seed(1)  # minibatches are drawn from NumPy's global generator
        model.train()
    assert same(parameters_of(plain), parameters_of(scrambled))
    assert plain.last_update == scrambled.last_update
