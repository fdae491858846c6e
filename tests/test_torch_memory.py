"""The memory of softmaxloss.torch.cross_entropy: what it takes, what it writes over, and when it refuses to."""

import json
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from option_cases import ids  # noqa: E402
from torch_problems import OPTION_SETS, REDUCTIONS, assert_close, formula, label_kinds, ours, problem  # noqa: E402

import softmaxloss.torch as slt  # noqa: E402

# PyTorch's own batching rules for forward mode are written in what it has deprecated since.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

CASES = [(names, kind) for names in OPTION_SETS for kind in label_kinds(names)]
by_cases = pytest.mark.parametrize(("names", "kind"), CASES, ids=ids)

# A program: by how many sizes of the logits forward and backward raise the peak of resident memory. Writing 5 sets the
# peak back: proc(5), /proc/pid/clear_refs. A small problem first imports and starts what is needed once.
MEASURE = """
import gc, json, sys
from pathlib import Path
import torch
import softmaxloss.torch as slt

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

def growth(shape, dtype, inplace, options, function):
    torch.manual_seed(0)
    leaf = torch.randn(shape).to(dtype).requires_grad_()
    labels = torch.randint(shape[1], (shape[0], *shape[2:]))
    logits = leaf * 1 if inplace else leaf
    options = {"inplace": True, **options} if inplace else options
    gc.collect()
    slt.empty_cache()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    loss = function(logits, labels, **options)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient.data_ptr() == logits.data_ptr()) == inplace, (shape, dtype, inplace)
    return (status("VmHWM") - before) / (leaf.numel() * leaf.element_size())

def measure(shape, dtype="float32", inplace=False, options={}, pytorch=False):
    function = torch.nn.functional.cross_entropy if pytorch else slt.cross_entropy
    growth((8, 4, *shape[2:]), getattr(torch, dtype), inplace, options, function)
    return growth(tuple(shape), getattr(torch, dtype), inplace, options, function)

print(json.dumps([measure(**case) for case in json.loads(sys.argv[1])]))
"""
EVERYTHING = {"softcap": 20.0, "temperature": 2.0, "z_loss": 1e-3, "focal_gamma": 2.0, "reduction": "sum"}


def test_the_memory_of_a_large_gradient_serves_the_next():
    slt.empty_cache()
    labels = torch.arange(2048) % 1000

    def gradient(rows, dtype=torch.float32):
        logits = torch.zeros(rows, 1000, dtype=dtype, requires_grad=True)
        slt.cross_entropy(logits, labels[:rows]).backward()
        return logits.grad

    first, second = gradient(2048), gradient(2048)
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, second)
    part, where = first[7:9], first.data_ptr()
    kept = part.clone()
    del first
    assert gradient(2048).data_ptr() != where  # a view of the gradient keeps its memory from others
    assert torch.equal(part, kept)
    del part
    assert gradient(1500).data_ptr() == where
    assert gradient(1500, torch.float64).shape == (1500, 1000)
    slt.empty_cache()
    gradient(1100)
    slt.empty_cache()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_at_most_one_array_of_the_logits_size():
    cases = [
        {"shape": (2048, 4096)},
        {"shape": (2048, 4096), "options": EVERYTHING},
        {"shape": (2048, 4096), "options": {"label_smoothing": 0.1}},
        {"shape": (4, 64, 181, 181)},
        {"shape": (4096, 4096), "dtype": "bfloat16"},
        {"shape": (4096, 4096), "dtype": "float16"},
        {"shape": (1024, 4096), "dtype": "float64"},
        {"shape": (2048, 4096), "inplace": True},
        {"shape": (2048, 4096), "inplace": True, "options": EVERYTHING},
        {"shape": (4, 64, 181, 181), "inplace": True},
        {"shape": (4096, 4096), "dtype": "bfloat16", "inplace": True},
        {"shape": (2048, 4096), "pytorch": True},
    ]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(cases)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    *found, pytorchs = json.loads(done.stdout)
    assert pytorchs > 1.9  # which shows that the measurement sees arrays
    for case, sizes in zip(cases, found, strict=False):
        assert sizes < (0.1 if case.get("inplace") else 1.1), (case, sizes)
        assert case.get("inplace") or sizes > 0.9, (case, sizes)


class TestLayouts:
    """Any strides, and what shares memory, gives the same as a contiguous copy."""

    VIEWS = {  # noqa: RUF012
        "transposed": lambda z: z.T.contiguous().T,
        "every other": lambda z: z.repeat_interleave(2, 0).repeat_interleave(2, 1)[::2, ::2],
        "a part": lambda z: torch.cat([z, z], 1)[:, : z.shape[1]],
        "expanded": lambda z: z[:1].expand_as(z),
        "broadcast classes": lambda z: z[:, :1].expand_as(z),
        "negated by a bit": lambda z: torch.complex(z, -z).conj().imag,
        "sparse rows": lambda z: torch.as_strided(torch.cat([z.flatten(), z.flatten()]), z.shape, (z.shape[1] * 2, 1)),
    }

    @pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
    @by_cases
    def test_logits(self, view, names, kind):
        logits, labels, options = problem(names, kind)
        given = view(logits).detach()
        leaf, copied = given.requires_grad_(), given.detach().clone().contiguous().requires_grad_()
        losses = ours(leaf, labels, options), formula(copied, labels, options)
        assert_close(*losses)
        assert_close(torch.autograd.grad(losses[0], leaf), torch.autograd.grad(losses[1], copied))

    @pytest.mark.parametrize("kind", ["index", "soft"])
    def test_channels_last(self, kind):
        logits, labels, options = problem((), kind, (2, 5, 4, 3))
        leaf = logits.to(memory_format=torch.channels_last).requires_grad_()
        loss = ours(leaf, labels, options)
        loss.backward()
        copied = logits.clone().requires_grad_()
        formula(copied, labels, options).backward()
        assert_close(leaf.grad, copied.grad)
        assert leaf.grad.stride() == leaf.stride()

    def test_other_inputs(self):
        names = OPTION_SETS[-1]
        logits, labels, options = problem(names, "soft")

        def spread(value):
            return torch.stack([value, value], -1)[..., 1] if isinstance(value, torch.Tensor) else value

        expected = ours(logits, labels, options)
        found = ours(logits, spread(labels), {name: spread(value) for name, value in options.items()})
        assert_close(found, expected, 0, 0)
        weight = torch.ones(()).double().expand(6)
        assert_close(
            slt.cross_entropy(logits, labels, sample_weight=weight), slt.cross_entropy(logits, labels), 1e-15, 0
        )

    def test_upstream_gradients_of_any_strides(self):
        logits, labels, options = problem(reduction="none")
        leaf = logits.requires_grad_()
        for upstream in (
            torch.ones(()).double().expand(6),
            torch.arange(12).double()[::2],
            torch.randn(6).double().flip(0),
        ):
            found, expected = (torch.autograd.grad(f(leaf, labels, options), leaf, upstream) for f in (ours, formula))
            assert_close(found, expected)


class TestGraph:
    """A graph that is kept, used again, or whose tensors change."""

    @by_cases
    def test_a_retained_graph(self, names, kind):
        logits, labels, options = problem(names, kind)
        leaf = logits.clone().requires_grad_()
        loss = ours(leaf, labels, options)
        (expected,) = torch.autograd.grad(formula(leaf, labels, options), leaf)
        first = torch.autograd.grad(loss, leaf, retain_graph=True)[0]
        kept = first.clone()
        second = torch.autograd.grad(loss, leaf, torch.tensor(3.0).double(), retain_graph=True)[0]
        third = torch.autograd.grad(loss, leaf)[0]
        assert_close(first, kept, 0, 0)  # nothing wrote over what was given away
        for found, times in ((first, 1), (second, 3), (third, 1)):
            assert_close(found, times * expected)

    def test_a_second_backward_needs_the_graph(self):
        logits, labels, options = problem()
        leaf = logits.clone().requires_grad_()
        loss = ours(leaf, labels, options)
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()

    def test_gradients_add_up(self):
        logits, labels, options = problem()
        leaf, right = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        for _ in range(3):
            ours(leaf, labels, options).backward()
            formula(right, labels, options).backward()
        assert_close(leaf.grad, right.grad)

    def test_the_logits_are_not_written(self):
        logits, labels, options = problem()
        leaf = logits.clone().requires_grad_()
        version = leaf._version
        ours(leaf, labels, options).backward()
        assert leaf._version == version
        assert_close(leaf.detach(), logits, 0, 0)

    @pytest.mark.parametrize("changed", ["logits", "labels", "sample_weight", "soft labels"])
    def test_what_changes_before_backward_is_no_wrong_gradient(self, changed):
        logits, labels, options = problem(("sample_weight",), "soft" if changed == "soft labels" else "index")
        leaf = logits.clone().requires_grad_()
        given = leaf * 1
        expected = torch.autograd.grad(formula(leaf, labels, options), leaf)
        loss = ours(given, labels, options)
        with torch.no_grad():
            {"logits": given, "sample_weight": options["sample_weight"]}.get(changed, labels).mul_(0)
        try:
            found = torch.autograd.grad(loss, leaf)
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)  # noqa: PT017
        else:
            assert_close(found, expected)

    def test_a_graph_that_is_dropped_frees_its_memory(self):
        import weakref

        logits, labels, options = problem()
        given = logits.clone().requires_grad_() * 1
        watched = weakref.ref(given)
        loss = ours(given, labels, options)
        del given
        loss.backward()
        del loss
        assert watched() is None


class TestInPlace:
    """The gradient takes the logits' place."""

    @by_cases
    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_answers(self, names, kind, reduction):
        logits, labels, options = problem(names, kind, (6, 5, 2), reduction=reduction)
        leaf, right = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        given = leaf * 1
        loss, expected = ours(given, labels, {**options, "inplace": True}), formula(right, labels, options)
        assert_close(loss, expected)
        upstream = torch.linspace(0.5, 2, loss.numel(), dtype=torch.float64).reshape(loss.shape)
        loss.backward(upstream)
        expected.backward(upstream)
        assert_close(leaf.grad, right.grad)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_other_dtypes(self, dtype):
        logits, labels, options = problem(dtype=dtype)
        gradients = []
        for more in ({}, {"inplace": True}):
            leaf = logits.clone().requires_grad_()
            loss = ours(leaf * 1, labels, {**options, **more})
            loss.backward(torch.tensor(1024.0, dtype=loss.dtype))
            gradients.append((loss, leaf.grad))
        torch.testing.assert_close(*gradients)

    @pytest.mark.parametrize("shape", [(6, 5), (2, 5, 3), (2, 3, 4, 2)], ids=str)
    @pytest.mark.parametrize("names", [(), OPTION_SETS[-2]], ids=ids)
    def test_the_gradient_is_the_logits_memory(self, names, shape):
        logits, labels, options = problem(names, shape=shape)
        given = logits.clone().requires_grad_() * 1
        before = given._version
        loss = ours(given, labels, {**options, "inplace": True})
        (gradient,) = torch.autograd.grad(loss, given)
        assert gradient.data_ptr() == given.data_ptr()
        assert given._version > before

    def test_who_else_needs_the_logits_is_told(self):
        logits, labels, options = problem()
        leaf = logits.clone().requires_grad_()
        given = leaf * 1
        total = given.sin().sum() + ours(given, labels, {**options, "inplace": True})
        try:
            total.backward()
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)  # noqa: PT017
        else:
            right = logits.clone().requires_grad_()
            (right.sin().sum() + formula(right, labels, options)).backward()
            assert_close(leaf.grad, right.grad)

    def test_a_second_backward_is_refused(self):
        logits, labels, options = problem()
        leaf = logits.clone().requires_grad_()
        loss = ours(leaf * 1, labels, {**options, "inplace": True})
        loss.backward(retain_graph=True)
        before = leaf.grad.clone()
        with pytest.raises(RuntimeError, match="inplace"):
            loss.backward()
        assert_close(leaf.grad, before, 0, 0)

    def test_double_backward_is_refused(self):
        logits, labels, options = problem()
        leaf = logits.clone().requires_grad_()
        with pytest.raises(RuntimeError, match="inplace"):  # noqa: PT012
            loss = ours(leaf * 1, labels, {**options, "inplace": True})
            (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
            gradient.square().sum().backward()

    def test_forward_mode_is_refused(self):
        logits, labels, options = problem()
        with pytest.raises(RuntimeError, match="inplace"):
            torch.func.jvp(lambda z: ours(z * 1, labels, {**options, "inplace": True}), (logits,), (logits,))

    def test_memory_that_is_no_ones_own_is_refused(self):
        logits, labels, options = problem()
        expanded = (logits[:1].clone().requires_grad_() * 1).expand_as(logits)
        with pytest.raises(RuntimeError):
            ours(expanded, labels, {**options, "inplace": True}).backward()

    def test_without_gradients_nothing_is_written(self):
        logits, labels, options = problem()
        before = logits.clone()
        loss = ours(logits, labels, {**options, "inplace": True})
        assert_close(loss, formula(before, labels, options))
        assert_close(logits, before, 0, 0)
