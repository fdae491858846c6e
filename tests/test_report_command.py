"""--report and --lang of the commands: what is written, what is said, what is refused before any work."""

import json

import numpy as np
import pytest
from cli_runs import refuse, run_here
from report_cases import drawn

pytest.importorskip("plotly", reason="plotly is not installed")


@pytest.fixture
def folder(tmp_path):
    logits, labels = drawn(300, 3)
    np.save(tmp_path / "a.npy", 2 * logits)
    np.save(tmp_path / "b.npy", logits)
    np.save(tmp_path / "y.npy", labels)
    return tmp_path


def page_of(folder, *arguments):
    done = run_here(folder, *arguments, "--report", "out.html")
    assert done.returncode in (0, None), done.stderr
    return done, (folder / "out.html").read_text(encoding="utf-8")


def test_evaluate(folder):
    done, page = page_of(folder, "evaluate", "a.npy", "y.npy")
    assert done.stdout.endswith("saved out.html\n")
    assert "<h1>a.npy</h1>" in page
    assert '<html lang="en">' in page
    assert 'id="reliability"' in page


def test_evaluate_prints_only_json_where_asked_for(folder):
    done, page = page_of(folder, "evaluate", "a.npy", "y.npy", "--json", "--lang", "zh")
    assert json.loads(done.stdout)["n_rows"] == 300
    assert '<html lang="zh">' in page


def test_compare_shows_both(folder):
    done, page = page_of(folder, "compare", "a.npy", "b.npy", "y.npy", "--lang", "zh")
    assert done.stdout.endswith("saved out.html\n")
    assert "A is a.npy; B is b.npy." in page
    for figure in ("interval", "reliability", "histogram", "differences", "rows"):
        assert f'id="{figure}"' in page


@pytest.mark.parametrize(("test_size", "part"), [("0.2", "test"), ("0", "train")])
def test_train_shows_the_curve(folder, test_size, part):
    done, page = page_of(folder, "train", "digits", "--test-size", test_size, "--max-iter", "30", "--quiet")
    assert "saved digits.skops\nsaved out.html\n" in done.stdout
    assert 'id="curve"' in page
    assert f"· {part}</h1>" in page


def test_train_calls_the_classes_by_name(folder):
    rows = [f"{x},{'cat' if x > 5 else '<dog>'}" for x in range(12)] * 3
    (folder / "t.csv").write_text("x,kind\n" + "\n".join(rows))
    _, page = page_of(folder, "train", "t.csv", "--target", "kind", "--quiet")
    assert "<bdi>&lt;dog&gt;</bdi>" in page


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("out.pdf", "the suffix '.pdf' is not known"),
        ("none/out.html", "there is no folder"),
    ],
)
@pytest.mark.parametrize("command", [["evaluate", "a.npy", "y.npy"], ["train", "digits"]])
def test_a_report_that_cannot_be_written(folder, command, report, message):
    assert message in refuse(folder, *command, "--report", report)


@pytest.mark.parametrize("command", ["evaluate a.npy y.npy", "compare a.npy b.npy y.npy", "train digits"])
def test_a_language_without_a_report(folder, command):
    done = run_here(folder, *command.split(), "--lang", "zh")
    assert done.returncode == 2
    assert "there is no report" in done.stderr


def test_a_report_in_the_place_of_the_checkpoint(folder):
    done = run_here(folder, "train", "digits", "--checkpoint", "c.html", "--report", "c.html")
    assert done.returncode == 2
    assert "is written already" in done.stderr
