"""Generated tables of speed."""

import json

import pytest
import report_settings
import report_speed

SHARES = {"train": 0.6, "evaluate": 0.3, "observe": 0.05, "decide": 0.02, "rest": 0.03}
OLD = {"env": "Esper-Digits-v0", "env_settings": [], "machine": "a machine", "command": "a command"}
OLD |= {"workload": "growing", "threads_of_the_plain_loop": 2}
NEW = OLD | {"workload": "policy", "policy": "untrained", "whole_episodes": True, "threads": 2}


def result(contenders, **more):
    """Result of one number of networks; ``contenders`` has how much slower than native each is."""
    rows = {
        name: {"native_is_faster_by": ratio, "env_steps_per_second": 100 / ratio, "training_samples_per_second": 1e5}
        for name, ratio in contenders.items()
    }
    shares = {"native_time_shares": SHARES, "evaluation_over_training": 0.5, "captures": 0, "native_steps": 10}
    return {"n": 16, "contenders": rows, **shares, **more}


def recorded(**contenders):
    engine = {"native_engine": "fused", "native_parts": 16, "native_seeds": 1.875}
    return result({"native": 1.0, **contenders}, **engine)


def write(folder, content, name="throughput-a.json"):
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder / name


def test_section_shows_engines_workers_policy_and_seeds(tmp_path):
    contenders = {"engine torch": 5.0, "2 workers": 1.25}
    text = report_speed.throughput(write(tmp_path, NEW | {"results": [recorded(**contenders)]}))
    assert "### Esper-Digits-v0, workload policy, untrained\n" in text
    assert "Environments have 2 threads; the plain loop has 2 intra-op threads. A turn has whole episodes." in text
    assert "| 16 | native (engine fused) | 100.0 | 100,000 |  |  |" in text
    assert "| 16 | engine torch | 20.0 | 100,000 | 5.00 |  |" in text
    assert "| 16 | 2 workers | 80.0 | 100,000 | 1.25 |  |" in text
    assert "| 16 | 60% | 30% | 5% | 2% | 3% | 0.50 |  | 1.88 |" in text


def test_section_leaves_out_what_older_files_did_not_record(tmp_path):
    text = report_speed.throughput(write(tmp_path, OLD | {"results": [result({"native": 1.0})]}))
    assert "### Esper-Digits-v0, workload growing\n" in text
    assert "Machine: a machine. The plain loop has 2 intra-op threads. File:" in text
    assert "| 16 | native | 100.0 | 100,000 |  |  |" in text
    assert "| 16 | 60% | 30% | 5% | 2% | 3% | 0.50 |  |  |" in text


def test_settings_are_compared_with_native_and_the_fastest_is_bold(tmp_path):
    contenders = {"2 workers": 0.8, "engine torch": 5.0, "SyncVectorEnv": 0.5}
    write(tmp_path, NEW | {"env_settings": ["horizon=20"], "results": [recorded(**contenders)]})
    write(tmp_path, OLD | {"results": [recorded()]}, "throughput-other.json")
    text = report_settings.settings_tables(tmp_path)
    task = "| Esper-Digits-v0, horizon=20, untrained | 16 |"
    assert [line for line in text.splitlines() if line.startswith("| Esper")] == [
        f"{task} native (engine fused) | 100.0 | 1.00 |",
        f"{task} **2 workers** | **125.0** | **1.25** |",
        f"{task} engine torch | 20.0 | 0.20 |",
        f"{task} 10% | 3.1 | 4.7 |",  # 1 / (0.1 + 0.9 * 2/8), 1 / (0.1 + 0.9 * 1/8)
    ]
    assert "Measured with 2 threads" in text
    assert "Not measured: 8 and 64 cores" in text


def test_settings_without_measurements_have_no_tables(tmp_path):
    write(tmp_path, OLD | {"results": [recorded()]})
    assert report_settings.settings_tables(tmp_path) == report_settings.NOTHING


@pytest.mark.parametrize(
    ("shared", "parts", "cores", "limit"),
    [(0.0, 16, 64, 1.0), (1.0, 16, 8, 4.0), (1.0, 16, 64, 8.0), (0.5, 128, 64, 1 / (0.5 + 0.5 * 2 / 64))],
)
def test_speed_limit_counts_the_turns_of_the_threads(shared, parts, cores, limit):
    assert report_settings.speed_limit(shared, parts, 2, cores) == pytest.approx(limit)


def test_page_keeps_its_text_around_the_tables(tmp_path):
    begin, end = report_settings.BEGIN, report_settings.END
    page = report_settings.with_tables(f"# Speed\n\n{begin}\nold{end}\n\n## Next\n", tmp_path)
    assert page == f"# Speed\n\n{begin}\n{report_settings.NOTHING}\n{end}\n\n## Next\n"
    assert report_settings.with_tables(page, tmp_path) == page
    with pytest.raises(ValueError, match="lacks a line of its generated part"):
        report_settings.with_tables(f"# Speed\n{begin}\n", tmp_path)
