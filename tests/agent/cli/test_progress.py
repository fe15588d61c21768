"""Progress where there is no terminal: lines of trainings and of evaluated policies."""

import io

import pytest
from command_line import SMALL, text_of
from esper_agent.cli.main import OK, main
from esper_agent.cli.progress import episode_progress
from esper_agent.cli.train import RolloutLines, training_progress
from esper_agent.training.run import resume, train
from resuming import ROLLOUT, Crash, small_settings
from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback


def printed(console):
    return console.file.getvalue().splitlines()


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=110)


class Clock(BaseCallback):
    """A clock that advances with every step of training."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.now = seconds, 0.0

    def __call__(self):
        return self.now

    def _on_step(self):
        self.now += self.seconds
        return True


def test_rollouts_print_their_timesteps_rate_time_and_return(toy_id, tmp_path, console):
    clock = Clock(2.0)
    settings = small_settings(tmp_path / "run", toy_id, total_timesteps=4 * ROLLOUT, env_settings=("horizon=5",))
    train(settings, [clock, RolloutLines(console, clock)])
    start, first, second, _, last = printed(console)
    assert start == "Training for 48 timesteps, in rollouts of 12; Ctrl-C stops and saves."
    assert first == "12 of 48 timesteps (25%), 2 timesteps/s, 0:18 left, no episode finished"
    assert second.startswith("24 of 48 timesteps (50%), 2 timesteps/s, 0:12 left, mean return ")
    assert last.startswith("48 of 48 timesteps (100%), 2 timesteps/s, 0:00 left, mean return ")


def test_resumed_run_prints_the_rate_of_its_own_steps(toy_id, tmp_path, console):
    folder, clock = tmp_path / "run", Clock(1.0)
    with pytest.raises(Crash.Killed):
        train(small_settings(folder, toy_id), [Crash(5 * ROLLOUT + 1)])
    resume(folder, False, callbacks=[clock, RolloutLines(console, clock)])
    assert printed(console)[0].startswith("Training for 72 timesteps, 60 of them done, in rollouts of 12;")
    assert printed(console)[1].startswith("72 of 72 timesteps (100%), 4 timesteps/s, 0:00 left, ")


def test_slow_rollout_prints_a_line_a_minute(toy_id, tmp_path, console):
    clock = Clock(3600.0)
    train(small_settings(tmp_path / "run", toy_id, total_timesteps=ROLLOUT), [clock, RolloutLines(console, clock)])
    _, first, second, third = printed(console)
    assert first == "4 of 12 timesteps (33%), 0.0011 timesteps/s, 2:00:00 left, no episode finished"
    assert (second[:7], third[:8]) == ("8 of 12", "12 of 12")


@pytest.mark.parametrize(("episodes", "lines"), [(1, 1), (3, 3), (50, 10)])
def test_policy_prints_at_most_ten_lines(console, episodes, lines):
    with episode_progress("heuristic", episodes, console, clock=lambda: 0.0) as advance:
        for _ in range(episodes):
            advance(1)
            advance(0)
    assert len(printed(console)) == lines
    assert printed(console)[0] == f"Playing heuristic: {episodes} episode{'s' if episodes > 1 else ''}"
    assert episodes < 50 or printed(console)[1] == "heuristic: 5 of 50 episodes, after 9 steps"


def test_slow_policy_prints_a_line_a_minute(console):
    now = [0.0]
    with episode_progress("random", 2, console, clock=lambda: now[0]) as advance:
        for _ in range(7):
            now[0] += 25
            advance(0)
    assert printed(console)[1:] == [f"random: 0 of 2 episodes, after {steps} steps" for steps in (3, 6)]


def test_terminal_shows_a_bar(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True)
    assert training_progress(console, True)[0]
    assert not training_progress(console, False)[0]
    with episode_progress("wait", 2, console) as advance:
        advance(2)
    assert "2/2" in console.file.getvalue()
    assert "Playing" not in console.file.getvalue()
    monkeypatch.undo()


def test_no_progress_silences_every_command(toy_id, run_folder, tmp_path, capsys):
    commands = {
        "train": ["train", "--env", toy_id, "--out", str(tmp_path / "r"), *SMALL[:-1]],
        "evaluate": ["evaluate", "--policy", "wait", "--env", toy_id, "--episodes", "2"],
        "benchmark": ["benchmark", "--policies", "wait", str(run_folder), "--episodes", "2", "--out"],
    }
    for name, arguments in commands.items():
        for shown, more in ((True, []), (False, ["--no-progress"])):
            out = [str(tmp_path / f"{name} {shown}")] if arguments[-1] == "--out" else []
            if name == "train":
                arguments[arguments.index("--out") + 1] = str(tmp_path / f"{name} {shown}")
            assert main([*arguments, *out, *more]) == OK
            said = text_of(capsys)[0]
            assert (" timesteps/s, " in said) == (shown and name == "train")
            assert ("Playing wait: 2 episodes\n" in said) == (shown and name != "train")
