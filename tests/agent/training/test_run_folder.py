"""A run folder restores the trained model, or raises an error with the reason."""

import errno
import json
import shutil
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from esper_agent.evaluation.play import run_episodes
from esper_agent.ppo.settings import PPOSettings
from esper_agent.sb3 import make_sb3_env
from esper_agent.settings.train import TrainSettings
from esper_agent.training.callbacks import evaluation_means
from esper_agent.training.run import resume, train
from esper_agent.training.run_folder import (
    RUN_FILES,
    PolicyByName,
    RunError,
    create_run,
    load_run,
    new_folder,
    save_model,
)
from stable_baselines3.common.vec_env import VecNormalize


@pytest.fixture(scope="module")
def settings(toy_id, tmp_path_factory):
    """Two rollouts of two environments on the toy."""
    return TrainSettings(
        out=tmp_path_factory.mktemp("runs") / "first",
        env=toy_id,
        total_timesteps=48,
        num_envs=2,
        seed=3,
        device="cpu",
        progress=False,
        ppo=PPOSettings(n_steps=12, batch_size=24, n_epochs=1),
    )


@pytest.fixture(scope="module")
def trained(settings):
    return train(settings)


def test_run_folder_has_all_files(trained, toy_id):
    names = {path.name for path in trained.folder.iterdir() if not path.name.startswith("events.")}
    expected = {"config.yaml", "task.json", "versions.json", "model.zip", "vecnormalize.pkl"}
    assert names == expected | {"progress.csv", "episodes.csv", "checkpoints", "events", "train.lock"}
    task = json.loads((trained.folder / "task.json").read_text())
    assert (task["env_id"], task["horizon"], task["dataset_name"]) == (toy_id, 12, "toy")
    config = yaml.safe_load((trained.folder / "config.yaml").read_text())
    assert config["env"] == toy_id
    assert config["ppo"]["n_steps"] == 12
    versions = json.loads((trained.folder / "versions.json").read_text())
    assert versions["torch"] == torch.__version__
    assert "wait_share" in (trained.folder / "progress.csv").read_text()


def test_loaded_model_acts_like_the_trained_one(trained, toy_id):
    run = load_run(trained.folder, toy_id, device="cpu")
    for key, value in trained.model.policy.state_dict().items():
        assert torch.equal(value, run.model.policy.state_dict()[key])
    assert run_episodes(run.model, toy_id, 3, seed=9) == run_episodes(trained.model, toy_id, 3, seed=9)
    assert run.config["seed"] == 3


def test_equal_settings_train_equal_models(trained, settings, tmp_path):
    again, other = train(replace(settings, out=tmp_path / "a")), train(replace(settings, out=tmp_path / "b", seed=4))
    for ours, same, another in zip(*(run.model.policy.parameters() for run in (trained, again, other)), strict=True):
        assert torch.equal(ours, same)
        assert ours.ndim < 2 or not torch.equal(ours, another)


def test_normaliser_is_saved_with_its_statistics(trained, toy_id):
    loaded = VecNormalize.load(str(trained.folder / "vecnormalize.pkl"), make_sb3_env(toy_id, 2))
    original = trained.model.get_vec_normalize_env()
    assert loaded.ret_rms.var == original.ret_rms.var
    assert loaded.ret_rms.count > 40
    assert loaded.norm_obs is False
    assert loaded.gamma == 0.98


def test_recurrent_model_is_evaluated_with_its_state(trained, toy_id):
    """Compares with calls of predict that carry the state."""
    record = run_episodes(trained.model, toy_id, 1, seed=77)[0]
    env = gymnasium.make(toy_id)
    obs, _ = env.reset(seed=77)
    state, start, total, done = None, np.array([True]), 0.0, False
    while not done:
        batched = {key: value[None] for key, value in obs.items()}
        action, state = trained.model.predict(batched, state=state, episode_start=start, deterministic=True)
        obs, reward, done, _, _ = env.step(action[0])
        total, start = total + reward, np.array([False])
    assert record.episode_return == pytest.approx(total)


@pytest.mark.parametrize(
    ("name", "said"),
    [("config.yaml", "a run without a model"), ("model.zip", "a file model.zip"), ("checkpoints", "a file checkp")],
)
def test_new_run_rejects_a_folder_with_files_of_a_run(name, said, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunError, match=f"already holds {said}"):
        new_folder(tmp_path, RUN_FILES)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(RunError, match=f"the folder .*{name} cannot be written to: it is not a folder"):
        new_folder(tmp_path / name, RUN_FILES)


def test_load_run_rejects_unusable_runs_with_the_reason(trained, tmp_path, toy_id):
    with pytest.raises(RunError, match=r"is not a run: it has no config\.yaml"):
        load_run(tmp_path)
    (tmp_path / "config.yaml").write_text(f"env: {toy_id}\n")
    with pytest.raises(RunError, match=r"has no model\.zip: training ended before"):
        load_run(tmp_path)
    whole = (trained.folder / "model.zip").read_bytes()
    (tmp_path / "model.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"model\.zip cannot be loaded .* it is damaged"):
        load_run(tmp_path)
    with pytest.raises(RunError, match=f"was trained on {toy_id}, not on Esper-Digits-v0"):
        load_run(trained.folder, "Esper-Digits-v0")


@pytest.mark.parametrize("text", ["[1]", '{"data_digest": "abc"}', '{"dataset_name": "toy", "data_digest": 3}', "{"])
def test_run_with_an_unusable_task_file_is_played_without_notes(trained, tmp_path, toy_id, text):
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    (folder / "task.json").write_text(text)
    assert load_run(folder).task == {}
    policy = PolicyByName(str(folder), toy_id, device="cpu")
    run_episodes(policy, toy_id, 1)
    assert policy.notes == []


def test_policies_are_found_by_name_or_folder(trained, toy_id):
    by_folder = run_episodes(PolicyByName(str(trained.folder), toy_id, device="cpu"), toy_id, 2, seed=9)
    assert evaluation_means(by_folder) == evaluation_means(run_episodes(trained.model, toy_id, 2, seed=9))
    assert run_episodes(PolicyByName("wait", toy_id), toy_id, 1)[0].wait_share == 1.0
    with pytest.raises(RunError, match=r"policy 'heuristc' is neither .* did you mean 'heuristic'\?"):
        PolicyByName("heuristc", toy_id)


def test_model_for_other_spaces_is_rejected(trained, toy_id):
    class Elsewhere:
        single_observation_space = trained.model.observation_space
        single_action_space = trained.model.observation_space

    policy = PolicyByName(str(trained.folder), toy_id, device="cpu")
    with pytest.raises(RunError, match="the action space of"):
        policy(Elsewhere())


def test_failed_save_keeps_the_old_model(trained, tmp_path, monkeypatch):
    path = save_model(tmp_path, trained.model)
    kept = path.read_bytes()

    def half_done(target, **_kwargs):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(trained.model, "save", half_done)
    with pytest.raises(OSError, match="disk full"):
        save_model(tmp_path, trained.model)
    assert path.read_bytes() == kept
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.zip", "vecnormalize.pkl"}


@pytest.mark.parametrize("name", ["task.json", "config.yaml"])
def test_new_run_that_is_interrupted_leaves_a_folder_that_can_be_used_again(tmp_path, monkeypatch, name):
    def interrupted(path, text):
        if path.name == name:
            raise KeyboardInterrupt
        path.write_text(text)

    monkeypatch.setattr("esper_agent.training.run_folder.write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        create_run(tmp_path, {"env": "x"}, {})
    new_folder(tmp_path, RUN_FILES)


class Killed(BaseException):
    """Stands for a kill, after which no handler runs."""


@pytest.mark.parametrize("name", ["versions.json", "task.json", "config.yaml"])
def test_creation_of_a_run_that_was_killed_can_be_repeated(settings, tmp_path, monkeypatch, name):
    def killed(path, text):
        if path.name == name:
            path.with_name(f".{path.stem}.4321{path.suffix}").write_text(text[:3])
            raise Killed
        path.write_text(text)

    own = replace(settings, out=tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("esper_agent.training.run_folder.write_text", killed)
        patch.setattr("pathlib.Path.unlink", lambda *_arguments, **_more: None)
        with pytest.raises(Killed):
            train(own)
    with pytest.raises(RunError, match=r"interrupted before its settings were saved; start it again with `.*train --o"):
        resume(own.out)
    assert train(own).model.num_timesteps == 48
    assert load_run(own.out).config["seed"] == 3
    assert [path.name for path in own.out.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["versions.json", "task.json"])
def test_new_run_rejects_a_folder_with_other_files_of_its_names(settings, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunError, match=f"already holds a file {name}"):
        train(replace(settings, out=tmp_path))
    assert (tmp_path / name).read_text() == "mine"


def test_create_run_rejects_a_run_that_another_process_has_made_meanwhile(trained, tmp_path):
    run = shutil.copytree(trained.folder, tmp_path / "run")
    (run / "config.yaml").unlink()  # the other files mark it, too
    before = (run / "task.json").read_bytes()
    with pytest.raises(RunError, match="already holds a file"):
        create_run(run, {}, {})
    assert (run / "task.json").read_bytes() == before


def test_full_disk_names_the_file_of_the_model(trained, tmp_path, monkeypatch):
    def full(_target, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trained.model, "save", full)
    with pytest.raises(OSError, match=r"No space left on device: .*model\.zip"):
        save_model(tmp_path, trained.model)
