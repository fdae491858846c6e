"""Tests of the benchmarks inside PyTorch and JAX, and of the training that is done with either loss."""

import json
import sys
import types

import pytest

torch = pytest.importorskip("torch")

# Below, for they import torch.
from benchmarks import contenders, tables, training, worker  # noqa: E402
from benchmarks.agreement import TOLERANCE  # noqa: E402
from benchmarks.cases import Case  # noqa: E402
from benchmarks.dense import DisagreementError  # noqa: E402
from test_benchmarks import EVERY_KIND, results, run  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc and /sys")

TINY = training.Setting("characters", rows=64, steps=6, context=4, width=8, hidden=16)


def test_torch_runs(tmp_path):
    names = ["64x10", "bfloat16:9x4+label_smoothing"]
    done = run(
        "torch", "--quick", "--cases", *names, "--contenders", "pytorch-eager", "--json", tmp_path / "torch.json"
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "torch.json").read_text())
    assert measured["contenders"] == ["softmaxloss-torch", "pytorch-eager"]
    assert [case["case"] for case in measured["cases"]] == names
    for case in measured["cases"]:
        assert case["seconds"]["softmaxloss-torch"].keys() == {"loss", "grad", "grad_in_place"}
        assert case["seconds"]["pytorch-eager"].keys() == {"loss", "grad"}
    lines = done.stdout.strip().splitlines()
    assert lines[0] == "<!-- begin: python -m benchmarks torch -->"
    assert sum(line.startswith("| 64 x 10 |") for line in lines) == 2


@pytest.mark.parametrize("name", [*contenders.IN_TORCH, *contenders.IN_JAX])
def test_contenders_agree(name, tmp_path, monkeypatch):
    """With ours of NumPy, in every kind of case; but where each would be compiled for long, in a few."""
    if contenders.EVERYONE[name].missing:
        pytest.skip(f"{name} is not installed")
    # No memory is measured, and with all of PyTorch a collection takes long.
    monkeypatch.setattr(worker, "gc", types.SimpleNamespace(collect=int))
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: compile_(function, backend="aot_eager", **how))
    quick = name in ("softmaxloss-torch", "pytorch-eager")
    reference, bench = worker._Bench("softmaxloss"), worker._Bench(name)
    for case in map(Case.parse, EVERY_KIND if quick else ["37x11", "2x7x3x5@1", "37x11+z_loss"]):
        reference.load(case, 2)
        reference.save("grad", tmp_path)
        for operation in bench.load(case, 2):
            for _ in range(3):
                assert bench.compare(operation, tmp_path) < TOLERANCE[case.dtype], (case, operation)


def test_table_divides_the_right_way():
    ours, peer, compiled = contenders.IN_TORCH
    seconds = {
        ours: {"loss": 1e-3, "grad": 2e-3, "grad_in_place": 1e-3},
        peer: {"loss": 3e-3, "grad": 8e-3},
        compiled: {"loss": 2e-3, "grad": 3e-3},
    }
    measured = results(seconds) | {"contenders": [ours, peer, compiled], "command": "torch"}
    growth = {ours: {"grad": 10**6, "grad_in_place": 0}, peer: {"grad": 3 * 10**6}, compiled: {"grad": 2 * 10**6}}
    measured["memory"] = [{"title": "8 x 3", "logits_bytes": 10**6, "growth_bytes": growth}]
    lines = tables.frameworks(measured).splitlines()
    assert "| logits | softmaxloss | in place | PyTorch | torch.compile |" in lines
    assert "| 8 x 3 | 2 ms | 1 ms | 8 ms | 3 ms |" in lines
    assert "| logits | PyTorch | PyTorch, in place | torch.compile | torch.compile, in place |" in lines
    assert "| 8 x 3 | 4.00 | 8.00 | 1.50 | 3.00 |" in lines
    assert "| 8 x 3 | 1.0 | 1.0 | 0.0 | 3.0 | 2.0 |" in lines
    assert "Memory" not in tables.frameworks(measured | {"memory": []})


@pytest.mark.parametrize("tokens", ["characters", "words"])
def test_training_goes_the_same_way(tokens):
    """One seed, one curve: to rounding in float32, and to far more digits in float64."""
    for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-12)):
        setting = training.Setting(tokens, rows=64, steps=6, context=4, width=8, hidden=16, dtype=dtype)
        expected = training.curve(setting, "pytorch")
        assert expected[-1] < expected[0]
        for loss in ("softmaxloss", "in place"):
            assert training.curve(setting, loss) == pytest.approx(expected, rel=tolerance)


def test_training_that_goes_another_way_is_an_error():
    curves = {"pytorch": [4.0, 3.0], "softmaxloss": [4.0, 3.0], "in place": [4.0, 3.1]}
    with pytest.raises(DisagreementError, match=r"characters: losses of one step differ by 0\.033"):
        training._largest_difference(TINY, curves)
    curves["in place"][1] = float("nan")
    with pytest.raises(DisagreementError):
        training._largest_difference(TINY, curves)


def test_training_is_measured(monkeypatch):
    losses = {name: training.LOSSES[name] for name in ("pytorch", "in place")}  # a process each
    monkeypatch.setattr(training, "LOSSES", losses)
    (one,) = training.measure([TINY])
    assert one["steps"] >= TINY.steps
    assert one["curves"].keys() == one["seconds_a_step"].keys() == one["growth_bytes"].keys() == losses.keys()
    assert one["difference"] < 1e-5
    measured = results({}) | {"runs": [one]}
    lines = training.table(measured).splitlines()
    assert lines[0] == "<!-- begin: python -m benchmarks training -->"
    assert sum(line.startswith(f"| characters, 64 x {one['classes']} |") for line in lines) == 2
    assert any("characters: " in line and "e-" in line for line in lines)
