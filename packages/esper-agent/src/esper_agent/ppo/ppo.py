"""FactoredRecurrentPPO: recurrent PPO for factored growth actions, with SB3's interface."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import torch as th
from esper_env.devices import resolve_device
from esper_env.paths import user_path
from esper_env.rules import HEAD_NAMES
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule, obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from typing_extensions import override

from esper_agent.ppo.advantages import ESTIMATORS
from esper_agent.ppo.buffers import FactoredRolloutBuffer, FactoredSamples
from esper_agent.ppo.errors import NonFiniteUpdateError
from esper_agent.ppo.losses import LossSettings, UpdateStatistics, loss_terms
from esper_agent.ppo.policy import FactoredLstmPolicy, UnknownPolicyError, check_policy
from esper_agent.ppo.settings import ARGUMENTS, PPOSettings, check_arguments, entropy_factors
from esper_agent.ppo.spaces import check_env, reject_vector

#: This many non-finite updates in a row stop the run.
NON_FINITE_LIMIT = 3


class FactoredRecurrentPPO(RecurrentPPO):
    """Recurrent PPO with a critic Q(s, op), one clipped ratio per action head, and masks in the observation.

    It has the interface of Stable-Baselines3's algorithms: ``learn``, ``predict``, ``save``, ``load``, callbacks,
    ``EvalCallback``, TensorBoard. Wrap the environment in ``VecNormalize(norm_obs=False, norm_reward=True,
    gamma=0.98)``. A schedule is a function of the remaining progress, which falls from 1 to 0.

    An update whose loss or gradient is not finite is skipped and counted in ``train/skipped_updates``. After three such
    updates in a row, or if the policy's decisions are not finite after a round of updates, the model restores its last
    good parameters, saves them as ``last_good_model.zip`` in the log folder if there is one, and raises
    :class:`NonFiniteUpdateError`. ``last_update`` holds the metrics of the latest round of updates, those of a head as
    ``HEAD_STATISTIC``.

    Args:
        policy: ``"FactoredLstmPolicy"``, or a subclass of that policy.
        env: a vector environment of Stable-Baselines3, such as ``make_sb3_env`` makes; None to set it later.
        learning_rate: learning rate of Adam, or a schedule.
        n_steps: steps of each environment in one rollout.
        batch_size: transitions in one minibatch.
        n_epochs: passes over a rollout.
        gamma: discount factor.
        gae_lambda: lambda of generalised advantage estimation.
        clip_range: clip range of the probability ratios, or a schedule.
        clip_range_vf: clip range of the value function, or a schedule; None for no clipping.
        normalize_advantage: normalise the advantages of each minibatch.
        ent_coef: entropy coefficient, or a schedule; None for a linear schedule from 0.03 to 0.
        entropy_multipliers: factors of the entropy coefficient by head; other heads keep ``ENTROPY_MULTIPLIERS``.
        vf_coef: weight of the value loss.
        max_grad_norm: maximum norm of the gradients.
        target_kl: the rest of a round of updates is skipped once the KL divergence from the behaviour policy exceeds
            1.5 times this value; None for no limit.
        advantage_estimator: ``"two_step"`` or ``"sampled_op"``, see :mod:`esper_agent.ppo.advantages`.
        stats_window_size: episodes over which the logged returns and lengths are averaged.
        tensorboard_log: folder of TensorBoard's files; None for none.
        policy_kwargs: keyword arguments of the policy, such as ``{"logit_bias": {"op": {"WAIT": -1.0}}}``.
        verbose: 0 for no output, 1 for information, 2 for debugging.
        seed: seed of the initial weights and of sampling; None for a random one.
        device: "auto", "cpu", "cuda" or "cuda:N".
        _init_setup_model: build the networks when the model is made.

    Raises:
        TypeError: ``env`` is a vector environment of Gymnasium.
        ValueError: a value outside its range, an unknown policy, estimator, head or device, or an environment whose
            wrappers change the indices, masks or shapes of the observation; ``set_env`` and ``load`` check it as well.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"FactoredLstmPolicy": FactoredLstmPolicy}
    policy: FactoredLstmPolicy
    rollout_buffer: FactoredRolloutBuffer
    _last_lstm_states: RNNStates

    def __init__(
        self,
        policy: str | type[FactoredLstmPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = PPOSettings.learning_rate,
        n_steps: int = PPOSettings.n_steps,
        batch_size: int = PPOSettings.batch_size,
        n_epochs: int = PPOSettings.n_epochs,
        gamma: float = PPOSettings.gamma,
        gae_lambda: float = PPOSettings.gae_lambda,
        clip_range: float | Schedule = PPOSettings.clip_range,
        clip_range_vf: float | Schedule | None = PPOSettings.clip_range_vf,
        normalize_advantage: bool = PPOSettings.normalize_advantage,
        ent_coef: float | Schedule | None = None,
        entropy_multipliers: Mapping[str, float] | None = None,
        vf_coef: float = PPOSettings.vf_coef,
        max_grad_norm: float = PPOSettings.max_grad_norm,
        target_kl: float | None = PPOSettings.target_kl,
        advantage_estimator: str = PPOSettings.advantage_estimator,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        if ent_coef is None:
            ent_coef = LinearSchedule(PPOSettings.ent_coef, PPOSettings.final_ent_coef, 1.0)
        arguments = dict(locals())  # the base class receives all but those that are removed here
        del arguments["self"], arguments["__class__"]
        check_arguments({name: arguments[name] for name in (*ARGUMENTS, "seed")})
        self.advantage_estimator: str = arguments.pop("advantage_estimator")
        self.entropy_multipliers = entropy_factors(arguments.pop("entropy_multipliers") or {})
        resolve_device(str(device))
        if not isinstance(policy, str):
            check_policy(policy)
        arguments["tensorboard_log"] = None if tensorboard_log is None else str(user_path(tensorboard_log))
        self.last_update: dict[str, float] = {}
        self._skipped_in_a_row = 0
        self._last_good: dict[str, Any] | None = None
        self.in_rollout = False  # True while the buffer holds part of a rollout
        self._resumes_rollout = False
        super().__init__(**arguments)

    def resume_rollout(self) -> None:
        """Continue the rollout in the buffer at the next call of ``learn``, instead of starting a new one."""
        self.in_rollout = self._resumes_rollout = True

    @classmethod
    def from_settings(cls, settings: PPOSettings, env: VecEnv, **kwargs: Any) -> Self:
        """Make a model with the settings of ``esper train``, and further arguments of the constructor."""
        given = {name: getattr(settings, name) for name in ARGUMENTS}
        given["ent_coef"] = LinearSchedule(settings.ent_coef, settings.final_ent_coef, 1.0)
        policy_kwargs = {"logit_bias": settings.biases() or None}
        return cls("FactoredLstmPolicy", env, **given, policy_kwargs=policy_kwargs, **kwargs)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """Check an environment wherever SB3 takes one: in the constructor, ``set_env`` and ``load``."""
        reject_vector(env)
        wrapped = RecurrentPPO._wrap_env(env, verbose, monitor_wrapper)
        check_env(wrapped)
        return wrapped

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        return check_policy(self.policy_aliases.get(policy_name, policy_name))

    def _setup_model(self) -> None:
        super()._setup_model()
        self.ent_coef = FloatSchedule(self.ent_coef)
        lstm = self.policy.lstm_actor
        self.rollout_buffer = FactoredRolloutBuffer(
            self.n_steps,
            self.observation_space,
            self.action_space,
            (self.n_steps, lstm.num_layers, self.n_envs, lstm.hidden_size),
            self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
        )

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """Fill the buffer with ``n_rollout_steps`` steps of every environment; return False if a callback stopped it.

        The step at which a callback stops it is in the buffer, so that a restored rollout can continue after it.
        A truncated episode is bootstrapped with the value of its final observation, with the LSTM state of its earlier
        steps. A terminated episode is not bootstrapped.
        """
        assert isinstance(rollout_buffer, FactoredRolloutBuffer)
        assert self._last_obs is not None, "No previous observation was provided"
        self.policy.set_training_mode(False)
        if not self._resumes_rollout:
            self.in_rollout = False
            rollout_buffer.reset()
            callback.on_rollout_start()
        self.in_rollout, self._resumes_rollout = True, False
        lstm_states = copy.deepcopy(self._last_lstm_states)

        for _ in range(rollout_buffer.pos, n_rollout_steps):
            with th.no_grad():
                obs_tensor = obs_as_tensor(self._last_obs, self.device)
                episode_starts = th.tensor(self._last_episode_starts, dtype=th.float32, device=self.device)
                decision, lstm_states = self.policy.decide(obs_tensor, lstm_states, episode_starts)
            actions = decision.actions.cpu().numpy()
            new_obs, rewards, dones, infos = env.step(actions)
            self.num_timesteps += env.num_envs

            callback.update_locals(locals())
            continues = callback.on_step()
            self._update_info_buffer(infos, dones)
            rollout_buffer.add_decision(
                self._last_obs,
                decision,
                rewards,
                self._last_episode_starts,
                self._last_lstm_states,
                end=dones,
                final_value=self._truncation_values(dones, infos, lstm_states),
            )
            self._last_obs = new_obs
            self._last_episode_starts = dones
            self._last_lstm_states = lstm_states
            if not continues:
                return False

        estimator = ESTIMATORS[self.advantage_estimator]
        last = self._op_values(self._last_obs, self._last_lstm_states.pi, self._last_episode_starts)
        rollout_buffer.estimate_advantages(estimator.bootstrap(*last), estimator)
        self.in_rollout = False
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _truncation_values(self, dones: np.ndarray, infos: list[dict[str, Any]], lstm_states: RNNStates) -> np.ndarray:
        """Values (N,) of the final observations of truncated episodes; 0 for other environments."""
        final_values = np.zeros(len(infos), dtype=np.float32)
        cut = [index for index, info in enumerate(infos) if dones[index] and info.get("TimeLimit.truncated", False)]
        if not cut:
            return final_values
        observations = [infos[index]["terminal_observation"] for index in cut]
        stacked = {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
        carried = (lstm_states.pi[0][:, cut], lstm_states.pi[1][:, cut])
        bootstrap = ESTIMATORS[self.advantage_estimator].bootstrap
        final_values[cut] = bootstrap(*self._op_values(stacked, carried, np.zeros(len(cut)))).cpu().numpy()
        return final_values

    def _op_values(
        self, obs: Any, lstm_states: tuple[th.Tensor, ...], episode_starts: np.ndarray
    ) -> tuple[th.Tensor, th.Tensor]:
        """Q(s, op) and pi(op|s) of observations, (B, ops) each, without a gradient."""
        with th.no_grad():
            starts = th.tensor(episode_starts, dtype=th.float32, device=self.device)
            return self.policy.op_values(obs_as_tensor(obs, self.device), lstm_states, starts)

    def train(self) -> None:
        """Update the policy with several epochs of minibatches; the class documents updates that are skipped."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        progress = self._current_progress_remaining
        settings = LossSettings(
            clip_range=FloatSchedule(self.clip_range)(progress),
            clip_range_vf=None if self.clip_range_vf is None else FloatSchedule(self.clip_range_vf)(progress),
            ent_coef=FloatSchedule(self.ent_coef)(progress),
            entropy_weights=th.tensor([float(self.entropy_multipliers[name]) for name in HEAD_NAMES]).to(self.device),
            vf_coef=self.vf_coef,
            normalize_advantage=self.normalize_advantage,
        )
        statistics = UpdateStatistics(settings.clip_range)
        for _ in range(self.n_epochs):
            within_kl = all(
                self._update(samples, settings, statistics) for samples in self.rollout_buffer.get(self.batch_size)
            )
            self._n_updates += 1
            if not within_kl:
                break
        self._log_update(settings, statistics)
        if not self._decides_next():
            self._stop_training("after an update the policy's decisions were not finite")

    def _decides_next(self) -> bool:
        """Return True if values and probabilities of the next decision are finite."""
        outputs = self._op_values(self._last_obs, self._last_lstm_states.pi, self._last_episode_starts)
        return all(bool(output.isfinite().all()) for output in outputs)

    def _update(self, samples: FactoredSamples, settings: LossSettings, statistics: UpdateStatistics) -> bool:
        """Update on one minibatch; return False without a step if the KL divergence is too large."""
        evaluation = self.policy.evaluate_heads(
            samples.observations, samples.actions, samples.lstm_states, samples.episode_starts
        )
        terms = loss_terms(samples, evaluation, settings)
        if not bool(terms.total.isfinite()):
            self._skip_update(statistics)
            return True
        statistics.add(terms, evaluation, samples.mask)
        if self.target_kl is not None and float(terms.approx_kl) > 1.5 * self.target_kl:
            return False
        self.policy.optimizer.zero_grad()
        terms.total.backward()
        norm = float(th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm))
        if not math.isfinite(norm):
            self._skip_update(statistics)
            return True
        if not statistics.gradient_norms:
            # These parameters have a finite loss and gradient, so they are worth restoring.
            self._last_good = copy.deepcopy(self.get_parameters())
        self._skipped_in_a_row = 0
        statistics.gradient_norms.append(norm)
        self.policy.optimizer.step()
        return True

    def _skip_update(self, statistics: UpdateStatistics) -> None:
        self.policy.optimizer.zero_grad()
        statistics.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row < NON_FINITE_LIMIT:
            return
        self.last_update = {"skipped_updates": float(statistics.skipped)}
        self.logger.record("train/skipped_updates", statistics.skipped)
        self.logger.dump(self.num_timesteps)
        self._skipped_in_a_row = 0
        self._stop_training(f"{NON_FINITE_LIMIT} updates in a row had a loss or gradient that is not finite")

    def _stop_training(self, why: str) -> NoReturn:
        """Restore the last good parameters, save them if there is a log folder, and raise."""
        if self._last_good is not None:  # otherwise no update has changed them
            self.set_parameters(self._last_good, device=self.device)
        saved = "is not saved, because no log folder is configured"
        if self.logger.get_dir() is not None:
            path = Path(self.logger.get_dir()) / "last_good_model.zip"
            self.save(path)
            saved = f"is saved as {path}"
        raise NonFiniteUpdateError(
            f"{why}, at timestep {self.num_timesteps}; expected finite rewards and observations and a learning rate "
            f"that does not diverge. The model holds the last good parameters; it {saved}. Check the rewards, or "
            "lower learning_rate."
        )

    def _log_update(self, settings: LossSettings, statistics: UpdateStatistics) -> None:
        """Log metrics under ``train/``; those of heads, under ``heads/``, are too many for the console."""
        totals = statistics.summary(self.max_grad_norm) | self.rollout_buffer.statistics()
        totals |= {
            "clip_range": settings.clip_range,
            "ent_coef": settings.ent_coef,
            "max_grad_norm": float(self.max_grad_norm),
        }
        if settings.clip_range_vf is not None:
            totals["clip_range_vf"] = settings.clip_range_vf
        heads = statistics.per_head()
        self.last_update = totals | {
            f"{head}_{name}": value for head, own in heads.items() for name, value in own.items()
        }
        for name, value in totals.items():
            self.logger.record(f"train/{name}", value)
        for head, own in heads.items():
            for name, value in own.items():
                self.logger.record(f"heads/{head}/{name}", value, exclude="stdout")
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    @override
    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)

    @override
    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "FactoredRecurrentPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def save(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Save the model to a file, as SB3 does."""
        super().save(user_path(path) if isinstance(path, str | PathLike) else path, *args, **kwargs)

    @classmethod
    def load(cls, path: Any, *args: Any, **kwargs: Any) -> Self:
        """Load a model from a file, as SB3 does; ``ValueError`` for a folder, which ``esper_agent.load_run`` loads."""
        path = user_path(path) if isinstance(path, str | PathLike) else path
        if isinstance(path, Path) and path.is_dir():
            inside = path / "model.zip"
            raise ValueError(f"{path} is a folder; expected a saved model: load {inside}, or use esper_agent.load_run")
        try:
            return super().load(path, *args, **kwargs)
        except (AttributeError, UnknownPolicyError) as error:  # the policy of another algorithm
            raise ValueError(f"{path} is not a model of FactoredRecurrentPPO ({error})") from error

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_last_good", "in_rollout", "_resumes_rollout"]
