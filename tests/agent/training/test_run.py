"""Training runs: every setting takes effect, and interruptions leave a usable run."""

from pathlib import Path

import pytest
from esper_agent.ppo.ppo import FactoredRecurrentPPO, NonFiniteUpdateError
from esper_agent.ppo.settings import PPOSettings
from esper_agent.sb3 import make_sb3_env
from esper_agent.settings.train import TrainSettings
from esper_agent.training.callbacks import PeriodicEvaluation
from esper_agent.training.run import HELD_OUT_SEED, make_model, train
from esper_agent.training.run_folder import load_run
from esper_env.rules.reward_config import GAMMA
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import FloatSchedule

#: A value other than the default for each setting, and its place in the model.
OTHERS = {
    "learning_rate": (3e-3, lambda model: model.lr_schedule(1.0)),
    "n_steps": (6, lambda model: model.rollout_buffer.buffer_size),
    "batch_size": (12, lambda model: model.batch_size),
    "n_epochs": (3, lambda model: model.n_epochs),
    "gamma": (0.9, lambda model: model.rollout_buffer.gamma),
    "gae_lambda": (0.8, lambda model: model.rollout_buffer.gae_lambda),
    "clip_range": (0.1, lambda model: FloatSchedule(model.clip_range)(1.0)),
    "clip_range_vf": (0.1, lambda model: FloatSchedule(model.clip_range_vf)(1.0)),
    "normalize_advantage": (False, lambda model: model.normalize_advantage),
    "ent_coef": (0.5, lambda model: model.ent_coef(1.0)),
    "final_ent_coef": (0.25, lambda model: model.ent_coef(0.0)),
    "vf_coef": (0.3, lambda model: model.vf_coef),
    "max_grad_norm": (2.0, lambda model: model.max_grad_norm),
    "target_kl": (None, lambda model: model.target_kl),
    "advantage_estimator": ("sampled_op", lambda model: model.advantage_estimator),
}


def settings_for(toy_id, out, **ppo):
    small = {"n_steps": 12, "batch_size": 24, "n_epochs": 1} | ppo
    return TrainSettings(
        out=out, env=toy_id, total_timesteps=48, num_envs=2, device="cpu", progress=False, ppo=PPOSettings(**small)
    )


@pytest.mark.parametrize("name", OTHERS)
def test_setting_reaches_the_model(toy_id, tmp_path, name):
    value, read = OTHERS[name]
    assert getattr(PPOSettings(), name) != value
    settings = settings_for(toy_id, tmp_path, **{name: value})
    assert read(make_model(settings, make_sb3_env(toy_id, 2))) == value


def test_settings_are_all_covered():
    elsewhere = {"logit_bias", "normalize_returns"}
    assert set(vars(PPOSettings())) == set(OTHERS) | elsewhere


def test_evaluation_uses_held_out_episodes_of_the_same_environment(toy_id, tmp_path, monkeypatch):
    played = []
    monkeypatch.setattr(PeriodicEvaluation, "_on_training_end", lambda self: played.extend(self.records))
    settings = settings_for(toy_id, tmp_path / "r")
    train(TrainSettings(**vars(settings) | {"eval_every": 24, "eval_episodes": 2, "env_settings": ("horizon=5",)}))
    assert [(record.seed, record.length) for record in played] == [(HELD_OUT_SEED, 5), (HELD_OUT_SEED + 1, 5)]


@pytest.mark.parametrize(
    ("gamma", "given", "weights"),
    [
        (GAMMA, (), None),
        (0.9, (), {"gamma": 0.9}),
        (0.9, ("reward_weights={scale: 2.0}",), {"scale": 2.0, "gamma": 0.9}),
    ],
)
def test_discount_and_normalisation_reach_the_environment(toy_id, tmp_path, gamma, given, weights):
    ppo = {"gamma": gamma, "normalize_returns": gamma != GAMMA}
    settings = TrainSettings(**vars(settings_for(toy_id, tmp_path / "r", **ppo)) | {"env_settings": given})
    trained = train(settings)
    assert trained.model.get_vec_normalize_env().norm_reward is (gamma != GAMMA)
    assert trained.model.get_env().get_attr("reward_weights")[0] == weights
    assert trained.model.get_vec_normalize_env().gamma == trained.model.gamma == gamma
    assert load_run(trained.folder).env_kwargs == trained.env_kwargs == ({"reward_weights": weights} if weights else {})


class FailAt(BaseCallback):
    def __init__(self, timesteps, error):
        super().__init__()
        self.timesteps, self.error = timesteps, error

    def _on_step(self):
        if self.num_timesteps == self.timesteps:
            raise self.error
        return True


def test_crash_saves_the_model_of_the_last_timestep(toy_id, tmp_path):
    with pytest.raises(OSError, match="disk") as caught:
        train(settings_for(toy_id, tmp_path / "r"), [FailAt(26, OSError("disk"))])
    assert caught.value.__notes__ == [f"the model of timestep 26 is saved as {tmp_path / 'r' / 'model.zip'}"]
    assert load_run(tmp_path / "r", toy_id).model.num_timesteps == 26


def test_run_stopped_before_a_checkpoint_has_no_model(toy_id, tmp_path):
    with pytest.raises(KeyboardInterrupt, match=r"no checkpoint: start .* with `.*esper train --resume"):
        train(settings_for(toy_id, tmp_path / "r"), [FailAt(26, KeyboardInterrupt())])
    assert not (tmp_path / "r" / "model.zip").exists()


def test_destructive_learning_rate_stops_with_the_last_good_model(toy_id, tmp_path):
    with pytest.raises(NonFiniteUpdateError, match="holds the last good parameters"):
        train(settings_for(toy_id, tmp_path / "r", learning_rate=1e30, target_kl=None))
    model = FactoredRecurrentPPO.load(tmp_path / "r" / "last_good_model.zip", device="cpu")
    assert all(bool(parameter.isfinite().all()) for parameter in model.policy.parameters())


def test_evaluation_interval_spans_several_calls(toy_id):
    settings = TrainSettings(out=Path("unused"), ppo=PPOSettings(n_steps=6, batch_size=12, n_epochs=1), device="cpu")
    model = make_model(settings, make_sb3_env(toy_id, 2, seed=0))
    model.set_logger(Logger(folder=None, output_formats=[]))
    evaluation = PeriodicEvaluation(toy_id, every=24, episodes=1, seed=0)
    at = []
    evaluation._schedule = lambda plan=evaluation._schedule: (at.append(model.num_timesteps), plan())
    model.learn(48, callback=evaluation)
    model.learn(48, callback=evaluation, reset_num_timesteps=False)
    model.learn(48, callback=evaluation)
    assert at == [0, 24, 48, 48, 72, 96, 0, 24, 48]


def test_gymnasium_vector_is_rejected_with_the_remedy(toy_id):
    env = make_sb3_env(toy_id, 2).venv.vec_env
    with pytest.raises(TypeError, match="make_sb3_env"):
        FactoredRecurrentPPO("FactoredLstmPolicy", env)


@pytest.mark.parametrize(
    ("more", "said"),
    [({"sinks": [3]}, "3 is not a sink"), ({"callbacks": [print]}, "is not a callback; expected a BaseCallback")],
)
def test_object_that_is_no_sink_or_callback_is_rejected_before_writing(toy_id, tmp_path, more, said):
    with pytest.raises(TypeError, match=said):
        train(settings_for(toy_id, tmp_path / "r"), **more)
    assert not (tmp_path / "r").exists()
