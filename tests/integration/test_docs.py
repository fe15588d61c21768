"""Docs: every Python example runs, names are complete, and links resolve."""

import doctest
import re
from dataclasses import replace
from pathlib import Path

import pytest
from esper_agent.policies.baselines import POLICIES
from esper_env import ENV_IDS, env
from esper_env.rules.gates import Gate
from esper_env.rules.heads import HEAD_NAMES, Head, Op, describe_head
from esper_env.tasks import TASK_KWARGS, TASKS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md")), *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S))
]


@pytest.mark.usefixtures("own_tables")
@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs(code, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    digits = replace(TASKS["Esper-Digits-v0"], batches_per_step=1)
    monkeypatch.setitem(TASKS, "Esper-Digits-v0", digits)
    short = code
    for long, quick in (
        ("20_000, progress_bar=True", "64"),
        ("total_timesteps=20_000", "total_timesteps=64, progress=False"),
        ("num_envs=16", "num_envs=2"),
        ("n_steps=40", "n_steps=32"),
        ("seed=0))", "seed=0), n_steps=32, batch_size=32, n_epochs=1)"),
        ('"FactoredLstmPolicy", env)', '"FactoredLstmPolicy", env, n_steps=32, batch_size=32, n_epochs=1)'),
    ):
        short = short.replace(long, quick)
    imports = "from esper_agent import make_sb3_env\n"
    exec(compile(imports + short, "<example>", "exec"), {})


def test_docstring_examples_pass():
    results = doctest.testmod(env)
    assert results.attempted > 0
    assert results.failed == 0


def test_pages_name_every_task_keyword_head_op_gate_and_policy():
    named = (*TASK_KWARGS, *HEAD_NAMES, *(op.name for op in Op), *(gate.name for gate in Gate))
    for words, page in ((ENV_IDS, "README.md"), (named, "docs/environment.md"), (POLICIES, "docs/agents.md")):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert [word for word in words if not re.search(rf"\b{re.escape(word)}\b", text)] == [], page


@pytest.mark.parametrize("head", Head)
def test_page_documents_the_integers_of_each_head(head):
    """The words are those of `esper info`, which come from the declarations of the heads."""
    section = (ROOT / "docs/environment.md").read_text(encoding="utf-8").split("## Action")[1].split("### ")[0]
    row = re.findall(rf"^\| {HEAD_NAMES[head]} \| (.*) \|$", section, re.M)[0]
    assert re.match(rf"{re.escape(describe_head(head))}($|[.:])", row)


def test_links_between_pages_resolve():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"
