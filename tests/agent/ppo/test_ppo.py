"""FactoredRecurrentPPO: SB3's interface (arguments, learning, logs, callbacks, save and load) and its updates."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch as th
from docstrings import documented
from esper_agent.ppo.ppo import FactoredRecurrentPPO, NonFiniteUpdateError
from esper_env.rules.heads import HEAD_NAMES
from sb3_contrib.ppo_recurrent import MultiInputLstmPolicy
from stable_baselines3.common.callbacks import CallbackList, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

pytestmark = pytest.mark.numeric


def parameters_of(model):
    return [parameter.detach().clone() for parameter in model.policy.parameters()]


def same(left, right):
    return all(th.equal(a, b) for a, b in zip(left, right, strict=True))


def test_learn_finds_the_rewarded_blueprint(mask_world, make_model):
    env = mask_world(num_envs=8, horizon=8, always_germinate=True)
    model = make_model(env, n_steps=16, batch_size=64, n_epochs=4, learning_rate=3e-3, target_kl=0.05)
    before, _ = evaluate_policy(model, env, n_eval_episodes=16, deterministic=False)
    model.learn(8 * 16 * 25)
    after, _ = evaluate_policy(model, env, n_eval_episodes=16, deterministic=True)
    assert before < 1.5
    assert after > 6.5


def test_equal_seeds_train_to_equal_bits(mask_world, make_model):
    first, second = (make_model(mask_world()).learn(192) for _ in range(2))
    assert same(parameters_of(first), parameters_of(second))
    assert not same(parameters_of(first), parameters_of(make_model(mask_world(), seed=1).learn(192)))


def test_every_argument_is_documented():
    assert documented(FactoredRecurrentPPO) == set(inspect.signature(FactoredRecurrentPPO).parameters)


def test_arguments_may_be_positional_and_numpy_scalars():
    arguments = {"gamma": np.float32(0.5), "_init_setup_model": False}
    model = FactoredRecurrentPPO("FactoredLstmPolicy", None, 1e-3, np.int64(8), 32, **arguments)
    assert (model.learning_rate, model.n_steps, model.batch_size, model.gamma) == (1e-3, 8, 32, 0.5)
    assert [model.ent_coef(1.0), model.ent_coef(0.5), model.ent_coef(0.0)] == pytest.approx([0.03, 0.015, 0.0])
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'learning_rat'"):
        FactoredRecurrentPPO("FactoredLstmPolicy", None, learning_rat=1e-3)


@pytest.mark.parametrize(
    ("policy", "shown"),
    [
        ("MlpPolicy", "'MlpPolicy'"),
        ("MlpLstmPolicy", "'MlpLstmPolicy'"),
        ("MultiInputPolicy", "'MultiInputPolicy'"),
        (MultiInputLstmPolicy, MultiInputLstmPolicy.__name__),
        (None, "None"),
    ],
)
def test_other_policies_are_rejected_with_the_name_that_works(mask_world, policy, shown):
    expected = f"`policy` is {shown}; expected 'FactoredLstmPolicy', or a subclass of esper_agent.FactoredLstmPolicy"
    with pytest.raises(ValueError, match=f"^{expected}$"):
        FactoredRecurrentPPO(policy, mask_world(1), device="cpu")


def test_saved_model_loads_and_trains_further(mask_world, tmp_path, make_model):
    env = mask_world()
    model = make_model(env, ent_coef=0.02, entropy_multipliers={"op": 2.0}, advantage_estimator="sampled_op").learn(128)
    model.save(tmp_path / "model")
    loaded = FactoredRecurrentPPO.load(tmp_path / "model", env=mask_world(), device="cpu")
    obs = env.reset()
    for deterministic in (True, False):
        th.manual_seed(0)
        action, state = model.predict(obs, deterministic=deterministic)
        th.manual_seed(0)
        again, state_again = loaded.predict(obs, deterministic=deterministic)
        np.testing.assert_array_equal(action, again)
        np.testing.assert_array_equal(state[0], state_again[0])
    assert loaded.ent_coef(0.3) == 0.02
    assert loaded.entropy_multipliers["op"] == 2.0
    assert loaded.advantage_estimator == "sampled_op"
    loaded.learn(128, reset_num_timesteps=False)
    assert loaded.num_timesteps == 256
    alone = FactoredRecurrentPPO.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(alone.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    alone.set_parameters(model.get_parameters())
    assert same(parameters_of(alone), parameters_of(model))


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_callbacks_normalisation_progress_and_tensorboard_of_sb3_work(mask_world, tmp_path, make_model):
    env = VecNormalize(mask_world(horizon=8, cut=6), norm_obs=False, norm_reward=True, gamma=0.98)
    held_out = VecNormalize(mask_world(num_envs=2), norm_obs=False, norm_reward=False, training=False)
    evaluation = EvalCallback(held_out, eval_freq=16, n_eval_episodes=2, best_model_save_path=str(tmp_path), verbose=0)
    model = make_model(env, tensorboard_log=str(tmp_path))
    model.learn(192, callback=CallbackList([evaluation]), progress_bar=True)
    assert evaluation.last_mean_reward > -np.inf
    assert (tmp_path / "best_model.zip").exists()
    assert list((tmp_path / "FactoredRecurrentPPO_1").glob("events.out.tfevents.*"))
    assert model.get_vec_normalize_env() is env


def test_log_has_the_names_of_sb3_and_of_the_heads(mask_world, tmp_path, make_model, roughen):
    model = roughen(make_model(mask_world()))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(192)
    model.logger.close()
    header = set((tmp_path / "progress.csv").read_text().splitlines()[0].split(","))
    shared = {
        *("rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "time/total_timesteps", "train/learning_rate"),
        *("train/entropy_loss", "train/policy_gradient_loss", "train/value_loss", "train/approx_kl", "train/loss"),
        *("train/clip_fraction", "train/explained_variance", "train/n_updates", "train/clip_range"),
        *("train/ent_coef", "train/grad_norm", "train/grad_norm_max", "train/clipped_update_fraction"),
        *("train/op_wait_probability", "train/lstm_hidden_rms", "train/lstm_cell_rms", "train/skipped_updates"),
        "train/max_grad_norm",
    }
    statistics = ("ratio_mean", "ratio_max", "ratio_min", "approx_kl", "clip_fraction", "entropy")
    statistics += ("ratio_low", "ratio_high", "choice_entropy")
    heads = {f"heads/{head}/{name}" for head in HEAD_NAMES for name in statistics}
    assert header >= shared | heads
    assert {name for name in header if name.startswith("heads/")} == heads
    assert not [name for name in header if name.startswith(tuple(f"train/{head}_r" for head in HEAD_NAMES))]
    assert model.last_update["op_entropy"] == model.logger.name_to_value["heads/op/entropy"]


def test_log_folder_of_a_model_without_a_logger_is_temporary(mask_world, make_model, tmp_path_factory):
    model = make_model(mask_world()).learn(64)
    assert Path(model.logger.get_dir()).is_relative_to(tmp_path_factory.getbasetemp())


def test_head_without_rows_is_not_logged(mask_world, make_model):
    model = make_model(mask_world(density=0.0)).learn(64)
    assert "op_entropy" in model.last_update
    assert not [name for name in model.last_update if name.startswith(("slot_", "blueprint_", "alpha_curve_"))]
    assert model.last_update["op_wait_probability"] == pytest.approx(1.0)


def test_lstm_statistics_are_those_of_the_rollout(mask_world, make_model):
    model = make_model(mask_world()).learn(64)
    hidden = model.rollout_buffer.hidden_states_pi.astype(np.float64)
    assert model.last_update["lstm_hidden_rms"] == pytest.approx(float(np.sqrt((hidden**2).mean())), rel=1e-5)
    assert 0 < model.last_update["lstm_hidden_rms"] < model.last_update["lstm_cell_rms"] < 2


# Updates


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


def test_gradients_are_clipped_and_their_norm_before_clipping_is_logged(mask_world, make_model, collect):
    model = make_model(mask_world(), max_grad_norm=1e-3, n_epochs=1)
    collect(model)
    applied = count_steps(model)
    model.train()
    assert applied == pytest.approx([1e-3] * len(applied), rel=1e-3)
    assert model.last_update["grad_norm_max"] >= model.last_update["grad_norm"] > 1e-2
    assert model.last_update["clipped_update_fraction"] == 1.0


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
