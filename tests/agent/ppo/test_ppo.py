"""FactoredRecurrentPPO through SB3's interface: rollouts, updates, bootstraps, logs, faults, save and load."""

from __future__ import annotations

import numpy as np
import pytest
import torch as th
from esper_agent.advantages import Rollout, two_step
from esper_agent.policy import FactoredLstmPolicy
from esper_agent.ppo import FactoredRecurrentPPO, NonFiniteUpdateError
from esper_env.rules.heads import HEAD_NAMES, HEAD_RELEVANCE, Blueprint, Head, Op
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

SMALL = {"features_dim": 32, "lstm_hidden_size": 32, "head_dim": 32, "op_logit_bias": {}}


def make_model(env, **kwargs):
    settings = {"n_steps": 16, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu", "policy_kwargs": SMALL}
    return FactoredRecurrentPPO("FactoredLstmPolicy", env, **(settings | kwargs))


class Tape(BaseCallback):
    """Keeps what each step handed to the callbacks."""

    def __init__(self):
        super().__init__()
        self.actions, self.decisions = [], []

    def _on_step(self):
        self.actions.append(self.locals["actions"].copy())
        self.decisions.append(self.locals["decision"])
        return True


def collect(model, callback=None):
    """One rollout, no update."""
    _, callback = model._setup_learn(10**6, callback)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model.rollout_buffer


def roughen(model, scale=0.1):
    """Random last layers, so that probabilities are not uniform; every op keeps a fair share."""
    generator = th.Generator().manual_seed(3)
    with th.no_grad():
        for head in Head:
            weight = model.policy.action_net.output_layer(head).weight
            weight.copy_(th.randn(weight.shape, generator=generator) * scale)
        model.policy.value_net.output.weight.mul_(10)
    return model


def parameters_of(model):
    return [parameter.detach().clone() for parameter in model.policy.parameters()]


def same(left, right):
    return all(th.equal(a, b) for a, b in zip(left, right, strict=True))


def test_stored_valued_and_executed_op_are_one(mask_world):
    env = mask_world(num_envs=4)
    tape = Tape()
    model = roughen(make_model(env, n_steps=32))
    buffer = collect(model, tape)
    executed = np.stack([single.unwrapped.executed for single in env.envs], axis=1)
    np.testing.assert_array_equal(buffer.actions, executed)
    np.testing.assert_array_equal(buffer.actions, np.stack(tape.actions))
    assert set(buffer.actions[..., Head.OP].ravel()) == set(Op)
    for step, decision in enumerate(tape.decisions):
        lstm = tuple(th.tensor(part[step]) for part in (buffer.hidden_states_pi, buffer.cell_states_pi))
        obs = {key: th.tensor(value[step]) for key, value in buffer.observations.items()}
        with th.no_grad():
            q, probabilities = model.policy.op_values(obs, lstm, th.tensor(buffer.episode_starts[step]))
        taken = q[th.arange(4), th.tensor(executed[step, :, Head.OP])]
        np.testing.assert_allclose(buffer.values[step], taken, atol=1e-6)
        np.testing.assert_allclose(buffer.state_values[step], (q * probabilities).sum(dim=1), atol=1e-6)
        np.testing.assert_array_equal(buffer.values[step], decision.op_values)


def test_ratios_of_the_first_epoch_are_one_for_every_head(mask_world):
    """Over a rollout with every op, in shuffled padded minibatches that cut across episodes and environments."""
    model = roughen(make_model(mask_world(num_envs=5, horizon=7), n_steps=24, batch_size=23))
    model.learn(240)
    buffer = collect(model)
    assert set(buffer.actions[..., Head.OP].ravel()) == set(Op)
    relevant, real = np.zeros(len(Head)), 0
    for samples in buffer.get(model.batch_size):
        evaluation = model.policy.evaluate_heads(
            samples.observations, samples.actions, samples.lstm_states, samples.episode_starts
        )
        rows = samples.mask > 0.5
        ratio = (evaluation.head_log_probs - samples.head_log_probs)[rows].exp()
        assert (ratio - 1).abs().max().item() < 1e-5
        assert (evaluation.op_values - samples.old_values)[rows].abs().max().item() < 1e-5
        relevant += evaluation.relevance[rows].sum(dim=0).numpy()
        real += int(rows.sum())
    assert real == 5 * 24, "every transition once"
    assert (relevant > 0).all()


@pytest.mark.parametrize("estimator", ["two_step", "sampled_op"])
def test_truncation_bootstraps_under_the_carried_state_and_termination_does_not(mask_world, estimator):
    cut = collect(make_model(mask_world(num_envs=2, horizon=8, cut=5), advantage_estimator=estimator))
    assert cut.ends.sum() == 6
    assert (cut.final_values[cut.ends] != 0).all()
    assert (cut.final_values[~cut.ends] == 0).all()
    whole = collect(make_model(mask_world(num_envs=2, horizon=5), advantage_estimator=estimator))
    assert whole.ends.sum() == 6
    assert (whole.final_values == 0).all()


def test_advantages_of_a_cut_rollout_equal_a_recomputation(mask_world):
    """Final observations, states and values are read back from outside the algorithm."""
    seen = []

    class Ends(Tape):
        def _on_step(self):
            for env in np.flatnonzero(self.locals["dones"]):
                state = tuple(part[:, env : env + 1].clone() for part in self.locals["lstm_states"].pi)
                seen.append((len(self.actions), env, self.locals["infos"][env]["terminal_observation"], state))
            self.last = self.locals["new_obs"], self.locals["lstm_states"].pi, self.locals["dones"].copy()
            return super()._on_step()

    tape = Ends()
    model = make_model(mask_world(num_envs=3, horizon=8, cut=5), n_steps=14)
    buffer = collect(model, tape)

    def value(obs, state, start):
        with th.no_grad():
            tensors = {key: th.as_tensor(part) for key, part in obs.items()}
            return model.policy.predict_values(tensors, state, th.as_tensor(start, dtype=th.float32)).numpy()[:, 0]

    final_values = np.zeros((14, 3), dtype=np.float32)
    for step, env, obs, state in seen:
        final_values[step, env] = value({key: part[None] for key, part in obs.items()}, state, [0.0])[0]
    assert len(seen) == 6
    rollout = Rollout(buffer.rewards, buffer.values, buffer.state_values, buffer.ends, final_values, value(*tape.last))
    expected = two_step(rollout, 0.995, 0.95)
    np.testing.assert_allclose(buffer.op_advantages, expected.op, atol=1e-5)
    np.testing.assert_allclose(buffer.advantages, expected.arguments, atol=1e-5)
    np.testing.assert_allclose(buffer.returns, expected.returns, atol=1e-5)


def test_rewards_in_the_buffer_are_the_environments(mask_world):
    buffer = collect(make_model(mask_world(num_envs=2, horizon=8, cut=3)))
    hits = (buffer.actions[..., Head.OP] == Op.GERMINATE) & (
        buffer.actions[..., Head.BLUEPRINT] == Blueprint.CONV_LIGHT
    )
    np.testing.assert_array_equal(buffer.rewards, hits)


def test_it_learns_which_blueprint_pays(mask_world):
    env = mask_world(num_envs=8, horizon=8, always_germinate=True)
    model = make_model(env, n_steps=16, batch_size=64, n_epochs=4, learning_rate=3e-3, target_kl=0.05)
    before, _ = evaluate_policy(model, env, n_eval_episodes=16, deterministic=False)
    model.learn(8 * 16 * 25)
    after, _ = evaluate_policy(model, env, n_eval_episodes=16, deterministic=True)
    assert before < 1.5
    assert after > 6.5


def test_equal_seeds_train_to_equal_bits(mask_world):
    first, second = (make_model(mask_world()).learn(192) for _ in range(2))
    assert same(parameters_of(first), parameters_of(second))
    assert not same(parameters_of(first), parameters_of(make_model(mask_world(), seed=1).learn(192)))


def test_defaults():
    model = FactoredRecurrentPPO("FactoredLstmPolicy", None, _init_setup_model=False)
    assert (model.gamma, model.gae_lambda, model.learning_rate, model.clip_range) == (0.995, 0.95, 3e-4, 0.2)
    assert (model.target_kl, model.vf_coef, model.advantage_estimator) == (0.015, 1.0, "two_step")
    assert [model.ent_coef(1.0), model.ent_coef(0.5), model.ent_coef(0.0)] == pytest.approx([0.05, 0.03, 0.01])
    assert model.entropy_multipliers == {
        "op": 1.0,
        "slot": 1.0,
        "blueprint": 1.5,
        "style": 1.2,
        "tempo": 1.5,
        "alpha_target": 1.2,
        "alpha_speed": 1.3,
        "alpha_curve": 1.3,
    }


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="advantage_estimator is 'three_step'"):
        FactoredRecurrentPPO("FactoredLstmPolicy", None, advantage_estimator="three_step")
    with pytest.raises(ValueError, match=r"names \['colour'\]"):
        FactoredRecurrentPPO("FactoredLstmPolicy", None, entropy_multipliers={"colour": 1.0})
    with pytest.raises(ValueError, match="batch_size is 1"):
        FactoredRecurrentPPO("FactoredLstmPolicy", None, batch_size=1)


def test_a_trained_model_saves_loads_and_goes_on(mask_world, tmp_path):
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
    assert loaded.rollout_buffer.estimator == "sampled_op"
    loaded.learn(128, reset_num_timesteps=False)
    assert loaded.num_timesteps == 256
    alone = FactoredRecurrentPPO.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(alone.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    alone.set_parameters(model.get_parameters())
    assert same(parameters_of(alone), parameters_of(model))


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_sb3s_callbacks_normalisation_progress_and_tensorboard_work(mask_world, tmp_path):
    env = VecNormalize(mask_world(horizon=8, cut=6), norm_obs=False, norm_reward=True, gamma=0.995)
    held_out = VecNormalize(mask_world(num_envs=2), norm_obs=False, norm_reward=False, training=False)
    evaluation = EvalCallback(held_out, eval_freq=16, n_eval_episodes=2, best_model_save_path=str(tmp_path), verbose=0)
    model = make_model(env, tensorboard_log=str(tmp_path))
    model.learn(192, callback=CallbackList([evaluation]), progress_bar=True)
    assert evaluation.last_mean_reward > -np.inf
    assert (tmp_path / "best_model.zip").exists()
    assert list((tmp_path / "FactoredRecurrentPPO_1").glob("events.out.tfevents.*"))
    assert model.get_vec_normalize_env() is env


def test_the_log_has_sb3s_names_and_the_heads(mask_world, tmp_path):
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
    }
    statistics = ("ratio_mean", "ratio_max", "ratio_min", "approx_kl", "clip_fraction", "entropy")
    assert header >= shared | {f"train/{head}_{name}" for head in HEAD_NAMES for name in statistics}
    assert model.last_update["op_entropy"] == model.logger.name_to_value["train/op_entropy"]


def test_a_head_no_row_read_is_not_logged(mask_world):
    model = make_model(mask_world(density=0.0)).learn(64)
    assert "op_entropy" in model.last_update
    assert not [name for name in model.last_update if name.startswith(("slot_", "blueprint_", "alpha_curve_"))]
    assert model.last_update["op_wait_probability"] == pytest.approx(1.0)


def test_lstm_statistics_are_the_rollouts(mask_world):
    model = make_model(mask_world()).learn(64)
    hidden = model.rollout_buffer.hidden_states_pi
    assert model.last_update["lstm_hidden_rms"] == pytest.approx(float(np.sqrt((hidden**2).mean())))
    assert 0 < model.last_update["lstm_hidden_rms"] < model.last_update["lstm_cell_rms"] < 2


def test_too_large_a_kl_stops_before_the_step(mask_world):
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


def count_steps(model):
    steps = []
    model.policy.optimizer.register_step_pre_hook(lambda *_: steps.append(gradient_norm(model)))
    return steps


def gradient_norm(model):
    return th.stack([parameter.grad.norm() for parameter in model.policy.parameters()]).norm().item()


def test_gradients_are_clipped_and_their_norm_before_clipping_is_logged(mask_world):
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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_single_non_finite_updates_are_skipped_and_counted(mask_world, value):
    model = make_model(mask_world(), batch_size=16, n_epochs=2, target_kl=None)
    collect(model)
    poison(model, {0, 1, 4, 6}, value)
    steps = count_steps(model)
    model.train()
    assert len(steps) == 4
    assert model.last_update["skipped_updates"] == 4
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
    assert all(np.isfinite(list(model.last_update.values())))


def test_three_non_finite_updates_in_a_row_stop_with_the_last_good_model(mask_world, tmp_path):
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


def test_two_bad_updates_and_a_later_third_do_not_stop(mask_world):
    model = make_model(mask_world(), batch_size=16, n_epochs=3, target_kl=None)
    poison(model, {0, 1, 3, 4, 6, 7, 9, 10, 12, 13})
    model.learn(128)
    assert model.num_timesteps == 128


def test_a_non_finite_gradient_is_no_update_either(mask_world):
    model = make_model(mask_world(), batch_size=16, n_epochs=1)
    collect(model)
    before = parameters_of(model)
    model.policy.value_net.hidden.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(NonFiniteUpdateError, match="it is saved as"):
        model.train()
    assert same(parameters_of(model), before)


def test_one_non_finite_target_costs_the_minibatches_that_hold_it(mask_world):
    model = make_model(mask_world(), target_kl=None, n_epochs=3)
    collect(model).returns[3, 1] = np.nan
    model.train()
    assert model.last_update["skipped_updates"] == 3
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_rewards_that_stay_non_finite_stop_the_run(mask_world):
    env = mask_world()
    env.step_wait = lambda step=env.step_wait: (lambda obs, reward, *rest: (obs, reward * np.nan, *rest))(*step())
    model = make_model(env)
    before = parameters_of(model)
    with pytest.raises(NonFiniteUpdateError):
        model.learn(256)
    assert same(parameters_of(model), before)


def test_a_callback_can_stop_the_run(mask_world):
    class Stop(BaseCallback):
        def _on_step(self):
            return self.n_calls < 5

    assert make_model(mask_world()).learn(1000, callback=Stop()).num_timesteps == 20


def test_unread_heads_of_stored_actions_do_not_enter_the_update(mask_world):
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


def test_the_alias_names_the_policy():
    assert FactoredRecurrentPPO.policy_aliases == {"FactoredLstmPolicy": FactoredLstmPolicy}
