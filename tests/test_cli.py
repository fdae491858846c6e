"""The installed command, run as a user runs it: usage, its streams and its exit status."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_runs import COMMAND, listing, run, run_here, succeed

import softmaxloss


def test_version_and_help_come_without_heavy_imports(tmp_path):
    assert succeed(tmp_path, "--version").stdout == f"softmaxloss {softmaxloss.__version__}\n"
    helped = succeed(tmp_path, "--help").stdout
    assert all(command in helped for command in ("train", "predict", "evaluate", "compare"))
    assert "report" not in helped
    heavy = "sklearn scipy pandas pyarrow skops torch jax"
    code = f"import sys, softmaxloss.cli; print([name for name in {heavy.split()} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "fit digits",
        "train",
        "train digits --epochs 3",
        "train digits --target y",
        "train a.svm --target y",
        "train a.csv",
        "train a.npz --drop x",
        "train digits --categorical x",
        "train digits --C 0",
        "train digits --C nan",
        "train digits --tol 0",
        "train digits --test-size 1",
        "train digits --max-iter 0",
        "train digits --resume",
        "train digits --label-smoothing 2",
        "train digits --class-weight even",
        "predict m.skops a.csv",
        "evaluate s.npy l.npy --kind scores",
        "evaluate s.npy l.npy --top-k 0",
        "evaluate s.npy l.npy --target y",
        "evaluate s.npy l.svm --target y",
        "evaluate s.npy digits --target y",
        "evaluate s.npy l.npy --ignore-index 9223372036854775808",
    ],
)
def test_usage(tmp_path, arguments):
    done = run_here(tmp_path, *arguments.split())

    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def run_with(folder, redirection, *arguments, **variables):
    """Run a command under a shell that redirects its standard output or error."""
    command = ["sh", "-c", f'"$@" {redirection}', "sh", COMMAND, *arguments]
    environment = {**os.environ, **variables}
    encoding = variables.get("PYTHONIOENCODING", "utf-8")
    return subprocess.run(command, cwd=folder, capture_output=True, encoding=encoding, timeout=120, env=environment)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", ["--help", "evaluate z.npy y.npy --json", "train d.npz --quiet"])
def test_standard_output_on_a_full_disk(scored, arguments):
    np.savez(scored / "d.npz", X=np.load(scored / "z.npy"), y=np.load(scored / "y.npy"))
    # Unbuffered, as in many containers, what fails is another call.
    unbuffered = {"PYTHONUNBUFFERED": "1" if arguments == "--help" else ""}
    done = run_with(scored, "> /dev/full", *arguments.split(), **unbuffered)

    assert done.returncode == 1
    assert done.stderr == "error: cannot write to standard output (No space left on device)\n"


def test_a_reader_that_leaves_is_no_problem(scored):
    done = run_with(scored, "| true", "evaluate", "z.npy", "y.npy")

    assert done.stderr == ""


def test_an_encoding_without_the_names_of_the_classes(scored):
    scores = pd.DataFrame(np.load(scored / "z.npy"), columns=["猫", "é", "dog"])
    scores.to_csv(scored / "z.csv", index=False)
    table = run_with(scored, "", "evaluate", "z.csv", "y.npy", PYTHONIOENCODING="latin-1")
    assert table.returncode == 0, table.stderr
    assert r"\u732b" in table.stdout
    found = run_with(scored, "", "evaluate", "z.csv", "y.npy", "--json", PYTHONIOENCODING="latin-1")
    assert found.returncode == 0, found.stderr
    assert found.stdout.isascii()
    assert [entry["name"] for entry in json.loads(found.stdout)["classes"]] == ["猫", "é", "dog"]


def test_closed_standard_error(scored):
    np.savez(scored / "d.npz", X=np.load(scored / "z.npy"), y=np.load(scored / "y.npy"))
    done = run_with(scored, "2>&-", "train", "d.npz", "--C", "1e6", "--tol", "1e-12")
    assert done.returncode == 0
    assert done.stdout.endswith("saved d.skops\n")
    assert run_with(scored, "2>&-", "train", "none.npz").returncode == 1


LOGITS = np.arange(12.0).reshape(4, 3)
LABELS = np.array([0, 1, 2, 0])


def test_ctrl_c_in_the_middle_of_training_leaves_nothing(tmp_path):
    rng = np.random.default_rng(0)
    # Labels without a pattern and next to no regularisation: minutes of training.
    features = rng.normal(size=(20_000, 100)).astype(np.float32)
    np.savez(tmp_path / "d.npz", X=features, y=rng.integers(0, 50, 20_000))
    before = listing(tmp_path)
    arguments = ["train", "d.npz", "--C", "1e9", "--tol", "1e-15", "--max-iter", "1000000"]
    with subprocess.Popen([COMMAND, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline().startswith("iteration 10")
        process.send_signal(signal.SIGINT)
        error = process.stderr.read()

    assert process.returncode == 130
    assert "Traceback" not in error
    assert error.endswith("interrupted\n")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("library", ["typer", "skops"])
def test_ctrl_c_while_libraries_are_imported(tmp_path, library):
    (tmp_path / f"{library}.py").write_text("raise KeyboardInterrupt")
    arguments = ["train", "digits"]
    done = run(tmp_path, *arguments, env={**os.environ, "PYTHONPATH": str(tmp_path)})

    assert done.returncode == 130
    assert done.stderr.endswith("interrupted\n")
    assert "Traceback" not in done.stderr


def test_ctrl_c_while_a_file_is_read(tmp_path):
    os.mkfifo(tmp_path / "y.txt")
    np.save(tmp_path / "z.npy", LOGITS)
    command = [COMMAND, "evaluate", "z.npy", "y.txt"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        writer = wait_for_a_reader(tmp_path / "y.txt", process)
        process.send_signal(signal.SIGINT)
        error = process.stderr.read()
        os.close(writer)

    assert process.returncode == 130
    assert error == "interrupted\n"


def wait_for_a_reader(path, process):
    """Open a pipe for writing as soon as the process has opened it for reading."""
    while process.poll() is None:
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.01)
    raise AssertionError(process.stderr.read())
