"""Rows kept decoded in a temporary file: the same bits, no name, no need of it where the disk lacks room or time."""

import copy
import errno
import gc
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import softmaxloss as sl
from softmaxloss import file_rows
from softmaxloss.data import row_files, spool
from softmaxloss.data.files import DataError
from softmaxloss.data.row_files import open_parquet

ROWS, FEATURES = 1500, 7


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Give a folder for temporary files that is looked at afterwards: nothing may stay in it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(row_files, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(row_files, "_FEWEST_ROWS", 64)
    yield folder
    assert list(folder.iterdir()) == []


def write(folder, *, kind="columns", dtype=np.float64):
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(ROWS, FEATURES)) * np.logspace(-2, 2, FEATURES)).astype(dtype)
    y = (X @ rng.normal(size=(FEATURES, 3)) + rng.gumbel(size=(ROWS, 3))).argmax(axis=1)
    for part, rows in enumerate(np.array_split(np.arange(ROWS), 2)):
        columns = {f"x{k}": X[rows, k] for k in range(FEATURES)}
        if kind == "lists":
            columns = {"e": pa.FixedSizeListArray.from_arrays(pa.array(X[rows].ravel()), FEATURES)}
        pq.write_table(pa.table({**columns, "y": y[rows]}), folder / f"{part}.parquet", row_group_size=200)
    return folder


def learned(folder, *, spool, only=None, tol=1e-8, **options):
    files, labels = open_parquet(folder, target="y", spool=spool)
    if only is not None:
        files, labels = files.only(only), labels[only]
    classifier = sl.SoftmaxClassifier(tol=tol, **options).fit(files, labels)
    return [classifier.coef_, classifier.intercept_, np.array(classifier.loss_curve_)]


def assert_the_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def passes(monkeypatch):
    """Give a list that grows with each row group that is decoded."""
    decoded = []
    original = row_files.ParquetRows.batches

    def batches(self, group, rows):
        decoded.append(group.start)
        return original(self, group, rows)

    monkeypatch.setattr(row_files.ParquetRows, "batches", batches)
    return decoded


@pytest.fixture
def written_at_once(monkeypatch):
    """Have blocks written by the thread that reads them."""

    class AtOnce:
        def __init__(self, *_):
            pass

        def submit(self, function, *arguments):
            function(*arguments)

        def shutdown(self, *, wait):
            pass

    monkeypatch.setattr(spool, "ThreadPoolExecutor", AtOnce)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["columns", "lists"])
@pytest.mark.usefixtures("written_at_once")
def test_a_fit_is_the_same_to_the_bit(tmp_path, temporary, passes, keep_num_threads, kind, dtype, threads):
    sl.set_num_threads(threads)
    folder = write(tmp_path, kind=kind, dtype=dtype)
    for only in (None, np.flatnonzero(np.arange(ROWS) % 7 > 1)):
        spooled = learned(folder, spool=True, only=only, tol=1e-3)
        assert len(passes) == 8  # each group once
        assert_the_same(spooled, learned(folder, spool=False, only=only, tol=1e-3))
        assert len(passes) > 40
        passes.clear()


@pytest.mark.usefixtures("written_at_once")
def test_what_is_kept_serves_other_fits_and_predictions(tmp_path, temporary, passes):
    folder = write(tmp_path)
    expected = learned(folder, spool=False, C=0.1)
    files, labels = open_parquet(folder, target="y")
    classifier = sl.SoftmaxClassifier(tol=1e-8, C=10.0).fit(files, labels)
    passes.clear()
    classifier.set_params(C=0.1).fit(files, labels)
    assert_the_same([classifier.coef_, classifier.intercept_, np.array(classifier.loss_curve_)], expected)
    found = classifier.predict_proba(files)
    assert passes == []
    np.testing.assert_array_equal(found, classifier.predict_proba(open_parquet(folder, target="y")[0]))
    assert len(passes) == 8
    for other in (copy.copy(files), files.only(np.arange(ROWS))):  # other files, for all that is known
        passes.clear()
        sl.SoftmaxClassifier().fit(other, labels)
        assert len(passes) == 8


def changed(path):
    """Return the bytes of another file of the same size."""
    table = pq.read_table(path)
    table = table.set_column(0, "x0", pa.array(table["x0"].to_numpy()[::-1]))
    pq.write_table(table, path.with_suffix(".new"), row_group_size=200)
    content = path.with_suffix(".new").read_bytes()
    path.with_suffix(".new").unlink()
    assert len(content) == path.stat().st_size
    return content


def replace(path):
    content = changed(path)
    path.rename(path.with_suffix(".old"))
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "said"), [(Path.unlink, "No such file"), (replace, "has changed since it was opened")]
)
@pytest.mark.usefixtures("written_at_once")
def test_files_that_have_changed_are_refused(tmp_path, temporary, change, said):
    folder = write(tmp_path)
    files, labels = open_parquet(folder, target="y")
    classifier = sl.SoftmaxClassifier().fit(files, labels)
    change(folder / "1.parquet")
    for X in (files, files.only(np.arange(ROWS))):
        for call in (classifier.predict_proba, lambda X: classifier.fit(X, labels)):
            with pytest.raises(DataError, match=rf"1\.parquet: .*{said}"):
                call(X)
            assert X not in spool._known
    sl.SoftmaxClassifier().fit(*open_parquet(folder / "0.parquet", target="y"))


@pytest.mark.parametrize("is_changed", [True, False])
@pytest.mark.usefixtures("written_at_once")
def test_what_is_kept_is_of_the_files_as_they_are(tmp_path, temporary, passes, is_changed):
    """Whoever says that a file is as old as before: its own clock tells."""
    folder = write(tmp_path)
    files, labels = open_parquet(folder, target="y")
    sl.SoftmaxClassifier().fit(files, labels)
    path = folder / "1.parquet"
    before = path.stat()
    if is_changed:
        path.write_bytes(changed(path))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        path.chmod(0o400)
    passes.clear()
    found = sl.SoftmaxClassifier().fit(files, labels).coef_
    assert len(passes) >= 8
    np.testing.assert_array_equal(found, sl.SoftmaxClassifier().fit(*open_parquet(folder, target="y")).coef_)


@pytest.mark.usefixtures("written_at_once")
def test_what_is_kept_is_given_up_where_it_is_asked_not_to_be(tmp_path, temporary, passes):
    files, labels = open_parquet(write(tmp_path), target="y")
    classifier = sl.SoftmaxClassifier().fit(files, labels)
    before = classifier.predict_proba(files)
    files.spool = False
    passes.clear()
    np.testing.assert_array_equal(classifier.predict_proba(files), before)
    assert len(passes) == 8
    assert files not in spool._known


@pytest.mark.usefixtures("written_at_once")
def test_a_disk_that_was_full_is_tried_again(tmp_path, temporary, passes, monkeypatch):
    files, labels = open_parquet(write(tmp_path), target="y")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(spool.os, "pwrite", full)
        sl.SoftmaxClassifier().fit(files, labels)
    assert files not in spool._known
    for expected in (8, 0):
        passes.clear()
        sl.SoftmaxClassifier().fit(files, labels)
        assert len(passes) == expected


def test_fits_of_several_threads_share_one_copy(tmp_path, temporary, keep_num_threads):
    sl.set_num_threads(2)
    files, labels = open_parquet(write(tmp_path), target="y")
    expected = learned(tmp_path, spool=False)
    begin = threading.Barrier(4)

    def fit(_):
        begin.wait(60)
        copy = spool.kept(files)
        classifier = sl.SoftmaxClassifier(tol=1e-8).fit(files, labels)
        return copy, [classifier.coef_, classifier.intercept_, np.array(classifier.loss_curve_)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fit, range(4)))
    assert len({id(copy) for copy, _ in found}) == 1
    for _, one in found:
        assert_the_same(one, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork")  # of Python's, and of JAX's where it has been imported
def test_a_forked_process_has_a_copy_of_its_own(tmp_path, temporary, keep_num_threads):
    """The thread that writes is the parent's."""
    files, labels = open_parquet(write(tmp_path), target="y")
    expected = sl.SoftmaxClassifier().fit(files, labels).coef_
    child = os.fork()
    if child == 0:
        status = 1
        try:
            first = files not in spool._known
            found = sl.SoftmaxClassifier().fit(files, labels).coef_
            spool._known[files]._writer.shutdown()
            sl.SoftmaxClassifier().fit(files, labels)
            spool._known[files]._writer.shutdown()
            status = 0 if first and np.allclose(found, expected) and spool._known[files]._is_there.all() else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(sl.SoftmaxClassifier().fit(files, labels).coef_, expected)


def test_a_fit_does_not_wait_for_the_disk(tmp_path, temporary, passes, keep_num_threads, monkeypatch):
    """Blocks that come while others wait to be written are decoded again, and kept by a later pass."""
    sl.set_num_threads(1)
    folder = write(tmp_path)
    expected = learned(folder, spool=False)
    of_all = len(passes)
    passes.clear()
    is_free = threading.Event()
    pwrite = spool.os.pwrite

    def write_late(*arguments):
        assert is_free.wait(60)
        return pwrite(*arguments)

    def read(self, group, rows):
        if len(passes) == 20:
            is_free.set()
        return batches(self, group, rows)

    batches = row_files.ParquetRows.batches
    monkeypatch.setattr(row_files.ParquetRows, "batches", read)
    monkeypatch.setattr(spool.os, "pwrite", write_late)
    assert_the_same(learned(folder, spool=True), expected)
    assert 20 < len(passes) < of_all


def test_rows_are_read_from_where_they_are(tmp_path, temporary, written_at_once):
    files, _ = open_parquet(write(tmp_path), target="y")
    rows = np.random.default_rng(0).permutation(ROWS)[:100]
    expected = files.read(rows)
    kept = spool.SpooledRows(files)
    for group in [None, *kept.groups[::2], None]:
        np.testing.assert_array_equal(kept.read(rows), expected)
        if group is not None:
            for start, block in kept.blocks(group):
                np.testing.assert_array_equal(block, files[start : start + len(block)])
    list(kept.blocks())
    np.testing.assert_array_equal(kept.read(rows), expected)
    assert all(not block.flags.writeable for _, block in kept.blocks())


def test_a_checkpoint_of_either_kind_is_one_of_the_other(tmp_path, temporary):
    folder = write(tmp_path)
    whole = learned(folder, spool=False)
    with pytest.warns(match="stopped at max_iter"):
        learned(folder, spool=False, checkpoint=tmp_path / "state.npz", max_iter=5)
    assert_the_same(learned(folder, spool=True, checkpoint=tmp_path / "state.npz"), whole)


def test_without_room_each_pass_decodes(tmp_path, temporary, passes, monkeypatch):
    folder = write(tmp_path)
    spooled = learned(folder, spool=True)
    full = OSError(errno.ENOSPC, "No space left on device")
    pwrite, written = spool.os.pwrite, []

    def fails(*_, **__):
        raise full

    def fails_soon(*arguments):
        if len(written) > 5:
            raise full
        written.append(pwrite(*arguments))
        return written[-1]

    usage = spool.shutil.disk_usage(temporary)
    for where, name, what in (
        (spool.shutil, "disk_usage", lambda _: usage._replace(free=ROWS * FEATURES * 8)),
        (spool.os, "pwrite", fails),
        (spool.os, "pwrite", fails_soon),
        (spool.tempfile, "TemporaryFile", fails),
        (spool.mmap, "mmap", fails),
        (spool, "_is_in_memory", lambda _: True),
    ):
        passes.clear()
        with monkeypatch.context() as patch:
            patch.setattr(where, name, what)
            assert_the_same(learned(folder, spool=True), spooled)
        assert len(passes) > 80, name


def test_a_file_that_may_not_grow_so_large(tmp_path, temporary, passes):
    """The kernel's own refusal."""
    folder = write(tmp_path)
    spooled = learned(folder, spool=True)
    passes.clear()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROWS * FEATURES * 4, limits[1]))
    try:
        assert_the_same(learned(folder, spool=True), spooled)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(passes) > 80


def test_what_is_damaged_while_it_is_written_is_told(tmp_path, temporary):
    folder = write(tmp_path)
    files, labels = open_parquet(folder, target="y")
    path = folder / "1.parquet"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"1\.parquet: "):
        sl.SoftmaxClassifier().fit(files, labels)


def test_many_damaged_groups_leave_nothing_waiting(tmp_path, temporary, keep_num_threads):
    """A group that is read takes no room before it has something to write: others would wait for it for ever."""
    sl.set_num_threads(2)
    files, labels = open_parquet(write(tmp_path), target="y")
    (tmp_path / "1.parquet").unlink()
    kept = spool.SpooledRows(files)
    for _ in range(3):
        for group in kept.groups[4:]:
            with pytest.raises(DataError):
                list(kept.blocks(group))
    kept._writer.shutdown()
    assert kept._room._value == spool._MOST_WAITING
    with pytest.raises(DataError):
        sl.SoftmaxClassifier().fit(files, labels)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_what_could_not_be_written_is_not_there(tmp_path, temporary, keep_num_threads, monkeypatch, error):
    """A thread that does not start, and one that fails."""
    folder = write(tmp_path)
    expected = learned(folder, spool=False)

    def fails(*_):
        raise error

    if error is MemoryError:
        monkeypatch.setattr(spool.os, "pwrite", fails)
    else:
        monkeypatch.setattr(threading.Thread, "start", fails)
        sl.set_num_threads(1)
    assert_the_same(learned(folder, spool=True), expected)


@pytest.mark.parametrize("is_fitted_again", [False, True])
def test_the_room_is_given_back_with_the_files_by_interrupted_fits_too(
    tmp_path, temporary, monkeypatch, is_fitted_again
):
    folder = write(tmp_path)
    files, labels = open_parquet(folder, target="y")
    opened = []
    original = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda *a, **k: opened.append(original(*a, **k)) or opened[-1])

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(file_rows, "_count_missing", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sl.SoftmaxClassifier().fit(files, labels)
    if is_fitted_again:
        sl.SoftmaxClassifier().fit(files, labels)
    assert len(opened) == 1
    file = weakref.ref(opened.pop())
    del files
    gc.collect()
    assert file() is None


KILLED = """
import os, sys
from softmaxloss import SoftmaxClassifier
from softmaxloss.data.row_files import open_parquet

def stop(iteration):
    maps = open("/proc/self/maps").read()
    assert sys.argv[2] in maps and "(deleted)" in maps
    os.kill(os.getpid(), 9)

from softmaxloss import classifier
classifier.ProgressReport.__call__ = lambda self, iteration: stop(iteration)
X, y = open_parquet(sys.argv[1], target="y")
SoftmaxClassifier().fit(X, y)
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into Linux's /proc")
def test_a_killed_process_leaves_nothing(tmp_path, temporary):
    folder = write(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, folder, temporary],
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_folders_in_memory_are_told_from_others(tmp_path, monkeypatch):
    shared = Path("/dev/shm")
    if not os.path.ismount(shared):
        pytest.skip("no folder in memory here")
    assert spool._is_in_memory(str(shared))
    device = os.stat_result((0, 0, 2**40 + 1, *([0] * 7)))
    monkeypatch.setattr(Path, "stat", lambda self: device)
    assert not spool._is_in_memory("elsewhere")
