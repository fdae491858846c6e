"""What is told while a fit runs: a bar on a terminal, plain lines elsewhere."""

import contextlib
import os
import pty
import re
import sys
import threading

import numpy as np
import pytest

import softmaxloss as sl
from softmaxloss import progress
from softmaxloss.progress import ProgressReport, _left, _short, _Way, counted
from softmaxloss.solver import Iteration


class Terminal:
    """A terminal that is stderr inside the block, and keeps what it showed."""

    def __init__(self, monkeypatch):
        self._monkeypatch = monkeypatch
        self._bytes = []

    def __enter__(self):
        self._controller, terminal = pty.openpty()
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()
        self._stream = os.fdopen(terminal, "w")
        self._monkeypatch.setattr(sys, "stderr", self._stream)
        return self

    def __exit__(self, *_):
        self._monkeypatch.undo()
        self._stream.close()
        self._listener.join()
        os.close(self._controller)

    def _listen(self):
        # Linux says that the other end is closed by an error.
        with contextlib.suppress(OSError):
            while data := os.read(self._controller, 4096):
                self._bytes.append(data)

    @property
    def text(self):
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", b"".join(self._bytes).decode())


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal(monkeypatch)


def data():
    X = np.random.default_rng(0).normal(size=(200, 3))
    return X, (X[:, 0] > 0).astype(int)


def test_a_terminal_shows_a_bar(terminal):
    pytest.importorskip("rich")
    with terminal:
        fitted = sl.SoftmaxClassifier(verbose=1).fit(*data())
    shown = terminal.text

    assert f"iteration {fitted.n_iter_}" in shown
    assert f"loss {fitted.loss_curve_[-1]:.6g}, max |gradient|" in shown
    assert "rows/s" in shown
    assert "0:00:0" in shown


def test_a_terminal_without_rich_has_one_line_rewritten(terminal, monkeypatch):
    monkeypatch.setattr(progress, "_bar", lambda *_: None)
    with terminal:
        fitted = sl.SoftmaxClassifier(verbose=1).fit(*data())
    shown = terminal.text

    assert shown.count("\r\n") <= 2
    assert f"\riteration {fitted.n_iter_}: loss " in shown


def test_elsewhere_there_are_lines(capsys):
    with ProgressReport(tol=1e-3, rows=10) as report:
        for number in range(1, 24):
            report(Iteration(number, np.zeros(1), 1.0 / number, 0.1 / number))
    lines = capsys.readouterr().err.splitlines()

    assert [line.split(":")[0] for line in lines] == ["iteration 10", "iteration 20", "iteration 23"]
    assert "\r" not in "".join(lines)


def test_blocks_are_counted_on_a_terminal_and_pass_as_they_are(terminal):
    pytest.importorskip("rich")
    blocks = [np.zeros(300), (300, np.zeros(700))]
    with terminal:
        passed = list(counted(blocks, 1000, "evaluating"))
    shown = terminal.text
    assert all(one is other for one, other in zip(passed, blocks, strict=True))
    assert "evaluating" in shown
    assert "1000 of 1000 rows" in shown


def test_blocks_are_not_counted_elsewhere(capsys):
    assert [len(block) for block in counted([np.zeros(3)], 3)] == [3]
    assert capsys.readouterr().err == ""


def test_the_way_is_by_logarithms_and_never_back():
    way = _Way(1e-4)
    shares = [way.share(norm) for norm in (1.0, 1e-2, 0.5, np.nan, 1e-3, 1e-5)]
    assert shares == pytest.approx([0, 0.5, 0.5, 0, 0.75, 1])
    assert _Way(0.0).share(1.0) == 0
    assert _Way(1e-4).share(0.0) == 1


def test_the_time_left_is_told_only_where_it_can_be():
    assert _left(0.05, 10) == ""
    assert _left(1.0, 10) == ""
    assert _left(0.5, 3725) == "about 1:02:05 left"
    assert [_short(n) for n in (3, 4321, 5.6e6, 7e9)] == ["3", "4.32k", "5.6M", "7G"]
