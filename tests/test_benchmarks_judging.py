"""The benchmark of evaluation."""

import json
import sys

import numpy as np
import pytest
from benchmarks import __main__, judging


def test_each_contender_is_timed_and_agrees(capsys, tmp_path):
    assert __main__.main(["judging", "--quick", "--json", str(tmp_path / "found.json")]) == 0
    printed = capsys.readouterr().out
    cases = json.loads((tmp_path / "found.json").read_text())["judging"]["cases"]
    assert printed.count("\n| ") == len(cases) == len(judging.CASES)
    assert [set(case["seconds"]) == set(judging.CONTENDERS) for case in cases] == [True, True] + [False] * 5
    assert all(seconds > 0 for case in cases for seconds in case["seconds"].values())


def test_a_file_is_evaluated_by_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "BLOCK_BYTES", 30_000)  # several blocks
    effort = judging.Effort(rounds=1, classes=20, folder=tmp_path)
    found = judging.measure_file(effort, 1e-4)
    assert found["rows"] == 1250
    assert 1.0 < found["loss"] < np.log(20)
    assert found["anonymous_bytes"] > 1 << 22
    assert not list(tmp_path.iterdir())
    told = judging.table({"judging": {"cases": [], "file": found}})
    assert "1250 rows x 20 float32 logits" in told
    with pytest.raises(ValueError, match="GB free"):
        judging.measure_file(effort, 1e9)


def test_a_watched_command_may_print_more_than_a_pipe_holds(tmp_path):
    told, peak = judging._watched([sys.executable, "-c", "print('x' * 300_000)"], tmp_path)
    assert told == "x" * 300_000 + "\n"
    assert peak > 0
