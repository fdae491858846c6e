"""The benchmark of files larger than memory, at a size that is none."""

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from benchmarks import streaming


def test_both_kinds_of_file_hold_the_same_rows_and_give_the_same_fit(tmp_path):
    effort = streaming.Effort(gigabytes=2e-4, features=20, classes=3, files=2)
    streaming.write(tmp_path, effort)
    fits = {kind: streaming.fit(tmp_path, kind, max_iter=50) for kind in streaming.KINDS}

    assert effort.rows == 2500
    objectives = [fit["objective"] for fit in fits.values()]
    np.testing.assert_allclose(objectives, objectives[0], rtol=1e-5)
    assert all(fit["anonymous_bytes"] > 0 for fit in fits.values())
    results = {"streaming": {"rows": 2500, "features": 20, "classes": 3, "bytes": 200_000, "fits": fits}}
    assert streaming.table(results).count("\n| ") == 1 + len(streaming.KINDS)
    del fits["memory"]
    assert "nothing to compare" in streaming.table(results)


def test_too_little_and_too_much_are_refused(tmp_path):
    with pytest.raises(ValueError, match="give more with --gigabytes"):
        streaming.measure(streaming.Effort(gigabytes=1e-9, folder=tmp_path))
    with pytest.raises(ValueError, match="GB free, and the files take"):
        streaming.measure(streaming.Effort(gigabytes=1e9, folder=tmp_path))


def test_anonymous_memory_is_seen_at_its_peak():
    with streaming.peak_of_anonymous_memory() as peak:
        before = peak[0]
        array = np.ones(1 << 23)
        streaming.time.sleep(0.1)
        del array
    assert peak[0] - before > 1 << 25
