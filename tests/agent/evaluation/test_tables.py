"""Tables and figures of evaluated policies."""

import csv
import io

import numpy as np
import pytest
from esper_agent.evaluation.curves import plot_training, running_mean
from esper_agent.evaluation.play import EpisodeRecord, write_csv
from esper_agent.evaluation.tables import NOTE, print_table, summarise, summarise_all, summary_table
from matplotlib.image import imread
from rich.console import Console
from rich.table import Table


def records(policy, returns, first_seed=0, test=50.0, added=10):
    return [
        EpisodeRecord(
            policy=policy,
            env_id="Esper-Digits-v0",
            dataset="digits",
            episode=index,
            seed=first_seed + index,
            episode_return=value,
            length=4,
            truncated=False,
            committed_val_accuracy=test + 1,
            test_accuracy=test + index,
            parameters_added=added,
            germinated=1,
            fossilized=1,
            pruned=0,
            invalid_actions=0,
            op_counts=(1, 1, 0, 0, 1, 1),
        )
        for index, value in enumerate(returns)
    ]


def test_summary_equals_hand_computed_numbers():
    summary = summarise(records("p", [0.1, 0.2, 0.3, 0.8]))
    assert summary.episode_return.mean == pytest.approx(0.35)
    assert summary.episode_return.std == pytest.approx(np.std([0.1, 0.2, 0.3, 0.8], ddof=1))
    assert summary.return_iqm.value == pytest.approx(0.25)
    assert summary.test_accuracy.mean == pytest.approx(51.5)
    assert summary.wait_share == 0.25


def test_differences_are_paired_by_seed():
    results = {"a": records("a", [0.1, 0.9, 0.5]), "b": records("b", [0.2, 1.0, 0.6])}
    first, second = summarise_all(results, reference="a")
    assert np.isnan(first.return_difference.value)
    assert second.return_difference.value == pytest.approx(0.1)
    assert second.return_difference.low == pytest.approx(0.1)
    with pytest.raises(ValueError, match="different seeds"):
        summarise(records("b", [0.1, 0.2], first_seed=5), reference=records("a", [0.1, 0.2]))


def rendered(table):
    console = Console(file=io.StringIO(), width=130)
    console.print(table)
    return console.file.getvalue()


def test_table_shows_each_policy_with_its_spread():
    results = {"a": records("a", [0.25, 0.75], added=1000), "b": records("b", [0.5, 1.5])}
    text = rendered(summary_table(summarise_all(results, "a"), "a title"))
    assert "a title" in text
    assert "0.50 ± 0.35" in text
    assert "50.5 ± 0.7" in text
    assert "1,000 ± 0" in text
    assert "return minus" in text
    assert "+0.50" in text


def narrow(table, width):
    console = Console(file=io.StringIO(), width=width)
    print_table(console, table)
    return console.file.getvalue()


def test_table_that_does_not_fit_becomes_a_block_per_row():
    results = {"a[b]": records("a[b]", [0.25, 0.75], added=1000), "b": records("b", [0.5, 1.5])}
    table = summary_table(summarise_all(results, "a[b]"), "on [x]")
    wide = narrow(table, 130)
    assert "0.50 ± 0.35" in next(line for line in wide.splitlines() if "a[b]" in line)
    lines = narrow(table, 60).splitlines()
    assert lines[:3] == ["on [x]", "", "a[b]"]
    assert lines[3].split() == ["return", "0.50", "±", "0.35"]
    assert [line.split()[-1] for line in lines if "parameters added" in line] == ["0", "0"]
    assert sum("return minus first policy" in line for line in lines) == 1  # the reference has none
    assert " ".join(" ".join(lines).split()).endswith(NOTE)


@pytest.mark.parametrize("width", [30, 40, 60])
def test_blocks_are_as_wide_as_the_console(width):
    results = {"a": records("a", [0.25, 0.75], added=1000), "b": records("b", [0.5, 1.5])}
    title = "a title of many words, which is longer than the console is wide"
    lines = narrow(summary_table(summarise_all(results, "a"), title), width).splitlines()
    assert max(map(len, lines)) <= width
    assert " ".join(" ".join(lines).split()).startswith(title)
    assert " ".join(" ".join(lines).split()).endswith(NOTE)


def test_table_wraps_texts_before_it_becomes_blocks():
    table = Table("name", "text")
    table.add_row("a", "many words that wrap")
    assert len(narrow(table, 20).splitlines()) > 5
    blocks = ["", "a", "  text", "    many", "    words", "    that", "    wrap"]
    assert [line.rstrip() for line in narrow(table, 9).splitlines()] == blocks


def test_summaries_are_written_without_nan(tmp_path):
    write_csv([summarise(records("a", [0.25])), summarise(records("b", [0.5]))], tmp_path / "s.csv")
    with (tmp_path / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["policy"] for row in rows] == ["a", "b"]
    assert float(rows[0]["return_mean"]) == 0.25
    assert rows[0]["return_std"] == ""
    assert rows[0]["return_difference_low"] == ""


def test_running_mean_equals_a_loop():
    values = np.random.default_rng(0).normal(size=20)
    expected = [values[max(0, end - 6) : end].mean() for end in range(1, 21)]
    np.testing.assert_allclose(running_mean(values, 6), expected)


def training_rows(count):
    rng = np.random.default_rng(0)
    return [
        {"timesteps": 640 * (i // 16 + 1), "return": 0.3 + 0.3 * i / count + rng.normal() / 20, "test_accuracy": 40.0}
        for i in range(count)
    ]


def test_figure_draws_the_baselines(tmp_path):
    plain, compared = tmp_path / "plain.png", tmp_path / "deep" / "compared.png"
    plot_training(training_rows(200), plain, title="t")
    plot_training(training_rows(200), compared, title="t", baselines={"wait": records("wait", [0.2, 0.3, 0.4])})
    without, with_line = imread(plain), imread(compared)
    assert without.shape == with_line.shape
    assert without.shape[1] > 1000
    assert not np.array_equal(without, with_line)
    assert [path.name for path in compared.parent.iterdir()] == ["compared.png"]
