"""docs/agents.md lists every name that training logs."""

import csv
import re
from pathlib import Path

from esper_agent.monitoring.callback import COUNTED
from esper_agent.ppo.settings import PPOSettings
from esper_agent.settings.train import TrainSettings
from esper_agent.training.run import train
from esper_env.rules.heads import HEAD_NAMES, Op
from esper_env.seeds import offered_blueprints

PAGE = Path(__file__).resolve().parents[3] / "docs" / "agents.md"
#: What the placeholders of the page stand for, in a task of two slots.
NAMES = {
    "head": HEAD_NAMES,
    "op": [op.name.lower() for op in Op if op != Op.WAIT],
    "event": COUNTED,
    "blueprint": [entry.name for entry in offered_blueprints("cnn")],
    "slot": ["r0c0", "r0c1"],
}


def documented():
    """Names in the first column of the table, with the placeholders filled in."""
    section = PAGE.read_text(encoding="utf-8").split("### Logged values")[1].split("###")[0]
    for line in section.splitlines():
        for name in re.findall(r"`([^`]+)`", line.split("|")[1]) if line.startswith("| `") else ():
            found = re.search("<(.+)>", name)
            yield from [name.replace(found[0], word) for word in NAMES[found[1]]] if found else [name]


def test_page_lists_exactly_the_logged_names(toy_id, tmp_path):
    """Every op is likely, and every head is read and has a choice."""
    bias = {"op.WAIT": -2, "op.PRUNE": -1, "op.SET_ALPHA_TARGET": 0}
    ppo = PPOSettings(n_steps=48, batch_size=96, n_epochs=1, clip_range_vf=0.5, logit_bias=bias)
    settings = TrainSettings(
        out=tmp_path / "run",
        env=toy_id,
        total_timesteps=768,
        num_envs=8,
        eval_every=384,
        eval_episodes=1,
        telemetry=False,
        progress=False,
        seed=0,
        device="cpu",
        ppo=ppo,
    )
    train(settings)
    with (tmp_path / "run" / "progress.csv").open(newline="", encoding="utf-8") as file:
        logged = next(csv.reader(file))
    names = list(documented())
    assert len(names) == len(set(names))
    assert sorted(logged) == sorted(names)
