"""The public functions on PyTorch tensors: answers as NumPy's, each way that a call can go, and what is refused."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import softmaxloss as sl  # noqa: E402
import softmaxloss.torch as slt  # noqa: E402
from softmaxloss.backends.torch import blocks, doors, formula, native, views  # noqa: E402
from softmaxloss.backends.torch.problem import problem_of  # noqa: E402
from softmaxloss.options import GivenOptions  # noqa: E402

# PyTorch's own batching rules for forward mode are written in what it has deprecated since.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

ROWS, CLASSES = 7, 5
INDEX = {"focal_gamma": 1.5, "poly_epsilon": 0.5}
SOFT = {"label_smoothing": 0.2}
SHARED = {"temperature": 0.7, "softcap": 9.0, "z_loss": 0.03, "reduction": "mean"}


def inputs(kind="index", dtype=torch.float64, every_option=True):
    """Return logits, labels and options, the arrays among these as tensors."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(ROWS, CLASSES, generator=generator)).to(dtype)
    logits[2, 1] = -torch.inf
    if kind == "index":
        labels = torch.randint(CLASSES, (ROWS,), generator=generator)
        labels[2], labels[4] = 0, -100
    else:
        labels = torch.softmax(torch.randn(ROWS, CLASSES, generator=generator), 1).to(dtype)
        labels[2] = torch.tensor([0.25, 0.0, 0.25, 0.25, 0.25])
    if not every_option:
        return logits, labels, {}
    options = (
        SHARED
        | (INDEX if kind == "index" else {})
        | {
            "sample_weight": torch.rand(ROWS, generator=generator).double(),
            "class_weight": torch.rand(CLASSES, generator=generator).double(),
            "logit_bias": torch.randn(CLASSES, generator=generator).double(),
        }
    )
    return logits, labels, options


def in_numpy(value):
    return value.numpy() if isinstance(value, torch.Tensor) else value


def numpys(function, *arrays, **options):
    return function(*map(in_numpy, arrays), **{name: in_numpy(value) for name, value in options.items()})


def problem(logits, labels, options):
    return problem_of(logits, labels, -1, GivenOptions(**options))


class TestSameAsNumPy:
    """The kernels behind both: the same bits."""

    @pytest.mark.parametrize("every_option", [False, True])
    @pytest.mark.parametrize("kind", ["index", "soft"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
    def test_loss_and_gradient(self, dtype, kind, every_option):
        logits, labels, options = inputs(kind, dtype, every_option)
        expected, gradient = numpys(sl.softmax_cross_entropy_and_grad, logits, labels, **options)
        loss, found = sl.softmax_cross_entropy_and_grad(logits, labels, **options)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        np.testing.assert_array_equal(loss.numpy(), expected)
        np.testing.assert_array_equal(found.numpy(), gradient)
        leaf = logits.clone().requires_grad_()
        loss = sl.softmax_cross_entropy(leaf, labels, **options)
        np.testing.assert_array_equal(loss.detach().numpy(), expected)
        loss.backward()
        np.testing.assert_array_equal(leaf.grad.numpy(), gradient)
        product = sl.hessian_vector_product(logits, labels, logits.isfinite().double(), **options)
        assert product.dtype == dtype
        np.testing.assert_array_equal(
            product.numpy(),
            numpys(sl.hessian_vector_product, logits, labels, logits.isfinite().double(), **options),
        )

    def test_bfloat16(self):
        pytest.importorskip("ml_dtypes")
        logits, labels, options = inputs(dtype=torch.bfloat16)
        leaf = logits.requires_grad_()
        loss = sl.softmax_cross_entropy(leaf, labels, **options)
        loss.backward()
        expected, gradient = numpys(
            sl.softmax_cross_entropy_and_grad, torch.tensor(views.view(logits).astype(np.float32)), labels, **options
        )
        assert loss.dtype == torch.float32
        assert loss.item() == expected
        assert (leaf.grad == torch.from_numpy(gradient).bfloat16()).all()

    @pytest.mark.parametrize("upstream", [1.0, -0.25, 8.0, 3.0, 1 / 7, 0.0, 2.0**100])
    def test_bfloat16_is_rounded_once(self, upstream):
        """After the upstream is multiplied in: what the forward pass has rounded serves for an upstream of 1 alone."""
        pytest.importorskip("ml_dtypes")
        logits, labels, options = inputs(dtype=torch.bfloat16)
        leaf, wide = logits.requires_grad_(), logits.detach().float().requires_grad_()
        loss = sl.softmax_cross_entropy(leaf, labels, **options)
        given = torch.tensor(upstream)
        for _ in range(2):  # the second pass computes the gradient anew
            (found,) = torch.autograd.grad(loss, leaf, given, retain_graph=True)
            (expected,) = torch.autograd.grad(sl.softmax_cross_entropy(wide, labels, **options), wide, given)
            assert (found == expected.bfloat16()).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("classes", [3, 10, 100])
    def test_ignored_rows_have_no_gradient_however_small_the_upstream(self, classes, dtype):
        pytest.importorskip("ml_dtypes")
        leaf, labels = torch.zeros(64, classes, dtype=dtype, requires_grad=True), torch.arange(64) % classes
        labels[5] = -100
        loss = sl.softmax_cross_entropy(leaf, labels)
        for _ in range(2):
            (found,) = torch.autograd.grad(loss, leaf, torch.tensor(1e-13), retain_graph=True)
            assert (found[5] == 0).all()
            assert found.isfinite().all()

    @pytest.mark.parametrize("axis", [0, 1, -1])
    def test_pieces(self, axis):
        logits = torch.randn(4, 4, 4)
        for name in ("softmax", "log_softmax", "logsumexp"):
            function = getattr(sl, name)
            found = function(logits, axis)
            assert found.dtype == logits.dtype
            np.testing.assert_array_equal(found.numpy(), numpys(function, logits, axis))
        kept = sl.logsumexp(logits, axis, keepdims=True)
        np.testing.assert_array_equal(kept.numpy(), sl.logsumexp(logits.numpy(), axis, keepdims=True))
        labels = torch.randint(4, (4, 4))
        for one, other in zip(
            sl.row_statistics(logits, labels, axis=axis, softcap=4.0, logit_bias=torch.arange(4.0)),
            numpys(sl.row_statistics, logits, labels, axis=axis, softcap=4.0, logit_bias=torch.arange(4.0)),
            strict=True,
        ):
            np.testing.assert_array_equal(one.numpy(), other)
        probabilities = sl.softmax(logits.double(), axis)
        np.testing.assert_allclose(
            sl.cross_entropy(probabilities, labels, axis=axis).numpy(),
            numpys(sl.cross_entropy, probabilities, labels, axis=axis),
            rtol=1e-15,
        )
        np.testing.assert_array_equal(
            sl.one_hot(labels, 5, axis=axis).numpy(), numpys(sl.one_hot, labels, num_classes=5, axis=axis)
        )

    def test_one_hot_dtypes(self):
        for dtype in (torch.int64, torch.bfloat16, np.float64, "int32"):
            found = sl.one_hot(torch.tensor([1, 0]), 3, dtype=dtype)
            assert found.tolist() == [[0, 1, 0], [1, 0, 0]]
            assert str(np.dtype(dtype) if not isinstance(dtype, torch.dtype) else dtype) in str(found.dtype)

    def test_integer_logits_are_the_default_dtype(self):
        logits = torch.tensor([[1, 2, 3]])
        for result in (sl.softmax(logits), sl.softmax_cross_entropy(logits, torch.tensor([0]))):
            assert result.dtype == torch.float32

    def test_lists_beside_tensors(self):
        logits = torch.tensor([[1.0, 2.0, 3.0], [3.0, 0.0, -1.0]])
        loss = sl.softmax_cross_entropy(logits, [1, 0], sample_weight=[1.0, 2.0], class_weight=np.ones(3))
        assert loss == sl.softmax_cross_entropy(logits, torch.tensor([1, 0]), sample_weight=torch.tensor([1.0, 2.0]))


class TestWays:
    """The formula in PyTorch's operations, whole and in blocks, against the kernels."""

    @pytest.mark.parametrize("kind", ["index", "soft"])
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_formula_and_blocks(self, kind, reduction, monkeypatch):
        logits, labels, options = inputs(kind)
        options = {**options, "reduction": reduction}
        if kind == "soft":
            options |= SOFT
        leaf = logits.requires_grad_()
        asked = problem(leaf, labels, options)
        assert native.kernel_serves(asked)
        expected = sl.softmax_cross_entropy(leaf, labels, **options)
        upstream = torch.linspace(-1, 2, expected.numel()).double().reshape(expected.shape)
        (gradient,) = torch.autograd.grad(expected, leaf, upstream)
        direction = torch.randn_like(logits).masked_fill(logits == -torch.inf, 0.0)
        product = sl.hessian_vector_product(logits.detach(), labels, direction, **options)
        monkeypatch.setattr(blocks, "_HOST_BYTES", 2 * CLASSES * 8)
        for way in (formula.loss, blocks.loss):
            loss = way(asked)
            torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-14)
            torch.testing.assert_close(torch.autograd.grad(loss, leaf, upstream)[0], gradient, rtol=1e-12, atol=1e-14)
        out = torch.empty_like(logits)
        torch.testing.assert_close(blocks.loss_and_gradient(asked, out), expected.detach(), rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(
            out, sl.softmax_cross_entropy_and_grad(logits.detach(), labels, **options)[1], rtol=1e-12, atol=1e-14
        )
        torch.testing.assert_close(blocks.hessian_vector_product(asked, direction), product, rtol=1e-11, atol=1e-13)
        differentiable = sl.hessian_vector_product(leaf, labels, direction, **options)
        torch.testing.assert_close(differentiable.detach(), product, rtol=1e-11, atol=1e-13)
        assert differentiable.requires_grad
        mapped = torch.func.vmap(lambda v: sl.hessian_vector_product(logits.detach(), labels, v, **options))
        torch.testing.assert_close(mapped(torch.stack([direction] * 2))[1], product, rtol=1e-11, atol=1e-13)

    @pytest.mark.parametrize("kind", ["index", "soft"])
    def test_blocks_differentiate_by_everything(self, kind, monkeypatch):
        logits, labels, options = inputs(kind)
        logits[2, 1] = 0.5
        monkeypatch.setattr(blocks, "_HOST_BYTES", 2 * CLASSES * 8)
        names = ["sample_weight", "logit_bias"]
        leaves = [t.requires_grad_() for t in (logits, *([labels] if kind == "soft" else []), *map(options.get, names))]

        def loss(*values):
            target = values[1] if kind == "soft" else labels
            return sl.softmax_cross_entropy(
                values[0], target, **{**options, **dict(zip(names, values[-2:], strict=True))}
            )

        if kind == "index":  # a distribution's entries cannot be moved one by one
            assert torch.autograd.gradcheck(loss, leaves, fast_mode=True)
            assert torch.autograd.gradgradcheck(loss, leaves, fast_mode=True)
        found = torch.autograd.grad(loss(*leaves), leaves)
        whole = torch.autograd.grad(formula.loss(problem(logits, labels, options)), leaves)
        torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-14)

    def test_a_certain_class_keeps_its_digits(self):
        logits = torch.tensor([[20.0, 0.0, 0.0]], requires_grad=True)
        labels = torch.tensor([0])
        for way in (formula.loss, lambda p: sl.softmax_cross_entropy(p.logits, labels)):
            loss = way(problem(logits, labels, {}))
            (gradient,) = torch.autograd.grad(loss, logits)
            torch.testing.assert_close(loss.item(), 4.1223072e-09, rtol=1e-6, atol=0)
            torch.testing.assert_close(gradient[0, 0].item(), -4.1223072e-09, rtol=1e-6, atol=0)

    def test_focal_limits(self):
        """Where p is 1, and where it is 0: no NaN, in any derivative."""
        logits = torch.tensor([[200.0, 0.0], [0.0, 200.0], [0.0, -torch.inf], [1e4, 0.0]]).double().requires_grad_()
        labels = torch.tensor([0, 0, 0, 1])
        for gamma, poly in ((0.5, 0.0), (2.0, 1.0), (0.0, 1.0)):
            options = {"reduction": "none", "focal_gamma": gamma, "poly_epsilon": poly}
            losses = formula.loss(problem(logits, labels, options)), sl.softmax_cross_entropy(logits, labels, **options)
            torch.testing.assert_close(*losses, rtol=1e-13, atol=1e-300)
            gradients = [torch.autograd.grad(one.sum(), logits, create_graph=True)[0] for one in losses]
            torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-300)
            assert torch.autograd.grad(gradients[0].sum(), logits)[0].isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_without_ml_dtypes(self, dtype, monkeypatch):
        """As where there is no name for bfloat16 in NumPy."""
        logits, labels, options = inputs(dtype=dtype)
        expected, gradient = sl.softmax_cross_entropy_and_grad(logits, labels, **options)
        monkeypatch.setattr(views, "_KERNELS_TAKE", {torch.float64})
        leaf = logits.clone().requires_grad_()
        loss = sl.softmax_cross_entropy(leaf, labels, **options)
        loss.backward()
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(leaf.grad, gradient)

    def test_pieces_differentiate(self):
        logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
        checks = {"check_forward_ad": True, "check_batched_grad": True}
        for function in (
            lambda z: sl.softmax(z, 0, temperature=0.5),
            lambda z: sl.log_softmax(z, temperature=2.0),
            lambda z: sl.logsumexp(z, keepdims=True),
            lambda z: sl.row_statistics(z, torch.tensor([1, 0, 3]), softcap=3.0)[:3],
            lambda z: sl.cross_entropy(torch.softmax(z, 1), torch.tensor([1, 0, 3]), class_weight=torch.arange(4.0)),
        ):
            assert torch.autograd.gradcheck(function, logits, **checks)
            assert torch.autograd.gradgradcheck(function, logits)

    def test_nothing_watches_in_plain_eager_mode_alone(self):
        seen = [doors.nothing_watches()]
        with torch.autograd.forward_ad.dual_level():
            seen.append(doors.nothing_watches())
        torch.func.grad(lambda x: (seen.append(doors.nothing_watches()), x.sum())[1])(torch.zeros(2))
        with FlopCounterMode(display=False):
            seen.append(doors.nothing_watches())
        assert seen == [True, False, False, False]

    def test_operations_are_seen_by_tracers(self):
        """A kernel's answer would be a constant of the graph."""
        logits, labels, options = inputs()
        traced = make_fx(lambda z: sl.softmax_cross_entropy(z, labels, **options))
        graph = traced(logits)
        torch.testing.assert_close(graph(2 * logits), sl.softmax_cross_entropy(2 * logits, labels, **options))


class TestInvalid:
    """An error where values can be looked at; elsewhere such rows are NaN."""

    BAD = {  # noqa: RUF012
        "label": (torch.tensor([0, 5, 1]), {}),
        "label below 0": (torch.tensor([0, -1, 1]), {}),
        "distribution": (torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.2, 0.1], [0.0, 1.0, 0.0]]), {}),
        "negative": (torch.tensor([[1.0, 0.0, 0.0], [1.5, -0.5, 0.0], [0.0, 1.0, 0.0]]), {}),
        "sample_weight": (torch.tensor([0, 0, 1]), {"sample_weight": torch.tensor([1.0, -1.0, 1.0])}),
        "class_weight": (torch.tensor([0, 2, 1]), {"class_weight": torch.tensor([1.0, 1.0, -1.0])}),
    }

    @pytest.mark.parametrize("name", BAD)
    def test_rows(self, name):
        labels, options = self.BAD[name]
        logits = torch.randn(3, 3)
        for asks in (False, True):
            with pytest.raises(ValueError, match=r"labels|row|weight"):
                sl.softmax_cross_entropy(logits.requires_grad_(asks), labels, **options)

        def loss(z):
            return sl.softmax_cross_entropy(z, labels, reduction="none", **options)

        rows, pull = torch.func.vjp(loss, logits.detach())
        for found in (rows.isnan(), pull(torch.ones(3))[0].isnan().all(1)):
            assert found.tolist() == [False, True, False]

    def test_labels_that_bias_or_weights_asking_for_gradients_do_not_hide(self):
        logits, weight = torch.randn(3, 3), torch.ones(3, requires_grad=True)
        with pytest.raises(sl.LabelError, match=r"labels\[1\] is 5"):
            sl.softmax_cross_entropy(logits, torch.tensor([0, 5, 1]), sample_weight=weight)
        with pytest.raises(ValueError, match=r"row \[0\] sums to 0.8"):
            sl.softmax_cross_entropy(logits[:1], torch.tensor([[0.5, 0.2, 0.1]]), sample_weight=weight[:1])

    def test_an_unsigned_label_never_wraps(self):
        labels = torch.tensor([2**64 - 100, 1], dtype=torch.uint64)
        with pytest.raises(sl.LabelError, match="18446744073709551516"):
            sl.softmax_cross_entropy(torch.randn(2, 3), labels)
        loss = torch.func.vmap(lambda z: sl.softmax_cross_entropy(z, labels, reduction="none"))(torch.randn(1, 2, 3))
        assert loss.isnan().tolist() == [[True, False]]

    def test_ignored_rows_may_hold_anything(self):
        logits = torch.tensor([[torch.nan, 1.0], [0.0, 1.0]], requires_grad=True)
        labels = torch.tensor([-100, 0])
        for way in (formula.loss, lambda p: sl.softmax_cross_entropy(p.logits, labels)):
            loss = way(problem(logits, labels, {}))
            (gradient,) = torch.autograd.grad(loss, logits)
            assert loss.isfinite()
            assert gradient[0].tolist() == [0.0, 0.0]

    def test_refusals(self):
        logits, labels = torch.randn(2, 3), torch.tensor([0, 1])
        with pytest.raises(TypeError, match="complex64"):
            sl.softmax_cross_entropy(logits.to(torch.complex64), labels)
        with pytest.raises(TypeError, match="index labels have dtype"):
            sl.softmax_cross_entropy(logits, labels.float())
        with pytest.raises(ValueError, match=r"labels have shape \(3,\)"):
            sl.softmax_cross_entropy(logits, torch.tensor([0, 1, 2]))
        with pytest.raises(ValueError, match="class axis has length 0"):
            sl.softmax_cross_entropy(logits[:, :0], labels)
        with pytest.raises(ValueError, match="meta"):
            sl.softmax_cross_entropy(logits, labels.to("meta"))
        with pytest.raises(ValueError, match="distributions"):
            sl.row_statistics(logits, torch.softmax(logits, 1))
        with pytest.raises(sl.LabelError):
            sl.one_hot(labels, 1)
        with pytest.raises(ValueError, match="use softmax_cross_entropy"):
            sl.cross_entropy(logits, labels)
        with pytest.raises(ValueError, match="vector has shape"):
            sl.hessian_vector_product(logits, labels, logits[:1])


class TestOut:
    def test_in_place_and_apart(self):
        logits, labels, options = inputs()
        loss, gradient = sl.softmax_cross_entropy_and_grad(logits, labels, **options)
        out = torch.full_like(logits, torch.nan)
        again, returned = sl.softmax_cross_entropy_and_grad(logits, labels, out=out, **options)
        assert returned is out
        assert again == loss
        assert (out == gradient).all()
        version = logits._version
        same = sl.softmax_cross_entropy_and_grad(logits, labels, out=logits, **options)[1]
        assert same is logits
        assert (logits == gradient).all()
        assert logits._version > version

    def test_refused(self):
        logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
        for out, error in (
            (np.empty((4, 3), np.float32), TypeError),
            (torch.empty(4, 2), ValueError),
            (torch.empty(4, 3).double(), TypeError),
            (torch.empty(4, 3, device="meta"), ValueError),
            (torch.empty(4, 3, requires_grad=True), ValueError),
            (torch.empty(1, 3).expand(4, 3), ValueError),
            (logits.flip(1).T.reshape(4, 3).as_strided((4, 3), (0, 1)), ValueError),
        ):
            with pytest.raises(error, match="out"):
                sl.softmax_cross_entropy_and_grad(logits, labels, out=out)
        memory = torch.randn(5, 3)
        with pytest.raises(ValueError, match="overlaps"):
            sl.softmax_cross_entropy_and_grad(memory[:4], labels, out=memory[1:])


class TestDropIn:
    def test_targets_of_any_sign_take_the_formula_as_it_stands(self):
        logits, target = torch.randn(4, 3).double(), torch.randn(4, 3).double()
        for reduction in ("mean", "sum", "none"):
            found, expected = (
                torch.func.vjp(lambda z, f=f, r=reduction: f(z, target, reduction=r, label_smoothing=0.1), logits)[0]
                for f in (slt.cross_entropy, torch.nn.functional.cross_entropy)
            )
            torch.testing.assert_close(found, expected)
        given = logits.clone().requires_grad_() * 1
        slt.cross_entropy(given, target, inplace=True).backward()

    def test_errors_are_both_kinds(self):
        logits = torch.randn(2, 3)
        with pytest.raises(slt.ArgumentError, match="ignore_index is 1"):
            slt.cross_entropy(logits, torch.softmax(logits, 1), ignore_index=1)
        for kind in (ValueError, RuntimeError, IndexError):
            assert issubclass(slt.ArgumentError, kind)
        for kind in (TypeError, RuntimeError, NotImplementedError):
            assert issubclass(slt.DtypeError, kind)

    def test_no_classes_and_no_rows(self):
        nothing = torch.empty(0, 0), torch.empty(0, dtype=torch.long)
        assert slt.cross_entropy(*nothing).isnan()

    def test_a_second_call_of_backward_is_formed_anew(self):
        logits = torch.randn(4, 3, requires_grad=True)
        loss = slt.cross_entropy(logits, torch.tensor([0, 1, 2, 0]))
        first = torch.autograd.grad(loss, logits, retain_graph=True)[0].clone()
        second = torch.autograd.grad(loss, logits, torch.tensor(-2.0))[0]
        torch.testing.assert_close(second, -2.0 * first)
