"""softmaxloss.torch.linear_cross_entropy by PyTorch's own samples (OpInfo), beside PyTorch's function and its errors.

PyTorch's function in float64 with ``options=None``, the one that makes all logits, says what is right. Our answers may
differ from it by what rounding in the logits' dtype makes of products of these lengths; 16-bit answers by one rounding
more.
"""

import inspect
import itertools
import warnings

import pytest

torch = pytest.importorskip("torch")

import softmaxloss.torch as slt  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PyTorch's own tests warn as they are imported, of what is not installed
    pytest.importorskip("expecttest", reason="PyTorch's samples import it")
    from torch.testing._internal.common_methods_invocations import op_db

theirs = getattr(torch.nn.functional, "linear_cross_entropy", None)
if theirs is None:
    pytest.skip("this version of PyTorch has none", allow_module_level=True)

# PyTorch's own batching rules for forward mode are written in what it has deprecated since.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

OPS = {op.variant_test_name or "plain": op for op in op_db if op.name == "nn.functional.linear_cross_entropy"}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)]
REDUCTIONS = ["mean", "sum", "none"]


def samples(dtype, variant="plain"):
    torch.manual_seed(0)
    return [(s.input, *s.args, s.kwargs) for s in OPS[variant].sample_inputs("cpu", dtype, requires_grad=True)]


def in_double(value):
    """Return a leaf of its own: a floating tensor's numbers in float64."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    return value.detach().double().requires_grad_(value.requires_grad)


def leaves_of(hidden, weight, target, options):
    found = [hidden, weight, target, options.get("linear_bias")]
    return [leaf for leaf in found if leaf is not None and leaf.requires_grad]


def allowed(dtype, hidden, weight):
    """Return tolerances: the logits' rounding moves probabilities by as much, relatively."""
    unit = max(torch.finfo(dtype).eps, 0.0 if dtype == torch.float64 else torch.finfo(torch.float32).eps)
    columns = weight.shape[:-1].numel()
    magnitudes = hidden.detach().double().abs() @ weight.detach().double().abs().reshape(columns, weight.shape[-1]).T
    largest = float(magnitudes.max()) if magnitudes.numel() else 0.0
    computed = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    spread = (16 + 4 * largest) * computed
    return {"rtol": unit + spread, "atol": (unit + spread) * max(1.0, largest) + torch.finfo(dtype).tiny}


def compare(hidden, weight, target, options):
    """Compare loss and gradients with PyTorch's, of leaves that ask for them."""
    given = hidden, weight, target, options
    exact = (*map(in_double, given[:3]), {name: in_double(value) for name, value in options.items()})
    loss = slt.linear_cross_entropy(*given[:3], **options)
    right = theirs(*exact[:3], **(exact[3] | {"options": None}))
    assert loss.dtype == hidden.dtype
    tolerance = allowed(hidden.dtype, hidden, weight)
    torch.testing.assert_close(loss.double(), right, equal_nan=True, **tolerance)
    cotangent = torch.linspace(0.5, 2.0, loss.numel()).reshape(loss.shape).to(loss.dtype)
    found = torch.autograd.grad(loss, leaves_of(*given), cotangent)
    expected = torch.autograd.grad(right, leaves_of(*exact), cotangent.double())
    for one, other, leaf in zip(found, expected, leaves_of(*given), strict=True):
        assert one.dtype == leaf.dtype
        assert one.shape == leaf.shape
        scale = max(1.0, float(other.abs().nan_to_num(0.0).max())) if other.numel() else 1.0
        atol = tolerance["atol"] * scale
        torch.testing.assert_close(one.double(), other, equal_nan=True, rtol=tolerance["rtol"], atol=atol)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", OPS)
def test_samples(variant, dtype):
    """PyTorch's samples, with those of its chunked form: K-dimensional weights and biases, both kinds of targets."""
    checked = samples(dtype, variant)
    assert len(checked) >= 20
    for hidden, weight, target, options in checked:
        compare(hidden, weight, target, options)


def distinct_samples():
    """Return the samples in float64, one of each kind of shapes and options."""
    seen = {}
    for sample in samples(torch.float64):
        hidden, weight, target, options = sample
        key = hidden.ndim, weight.ndim, target.dtype, tuple(sorted(options)), options.get("reduction")
        seen.setdefault(key, sample)
    return list(seen.values())


def of_every_way():
    """Return each distinct sample: with options only that of rows and that of most dimensions are quick."""
    for sample in distinct_samples():
        hidden, weight, _, options = sample
        is_quick = not options or (hidden.ndim, weight.ndim) in ((2, 2), (2, 5))
        yield pytest.param(*sample, marks=() if is_quick else pytest.mark.slow)


@pytest.mark.parametrize(("hidden", "weight", "target", "options"), list(of_every_way()))
def test_samples_differentiate_every_way(hidden, weight, target, options):
    """As PyTorch tests its own: backward, forward mode, batches of either, and backward of backward."""
    leaves = leaves_of(hidden, weight, target, options)
    soft, biased = target.requires_grad, "linear_bias" in options

    def loss(h, w, *rest):
        rest = list(rest)
        q = rest.pop(0) if soft else target
        more = {"linear_bias": rest.pop(0)} if biased else {}
        return slt.linear_cross_entropy(h, w, q, **(options | more))

    assert torch.autograd.gradcheck(
        loss, leaves, fast_mode=True, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(loss, leaves, fast_mode=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(
        loss, leaves, fast_mode=True, check_fwd_over_rev=True, check_rev_over_rev=False, check_undefined_grad=False
    )


def test_error_samples():
    """PyTorch's own inputs that must raise; ours names the shapes too."""
    for sample in OPS["plain"].error_inputs("cpu"):
        given = sample.sample_input
        with pytest.raises(sample.error_type):
            slt.linear_cross_entropy(given.input, *given.args, **given.kwargs)


SHAPES = {  # of input, linear_weight
    "one row": ((3,), (5, 3)),
    "rows": ((6, 3), (5, 3)),
    "one class": ((6, 3), (1, 3)),
    "no features": ((6, 0), (5, 0)),
    "no rows": ((0, 3), (5, 3)),
    "positions": ((6, 3), (5, 4, 3)),
    "positions in two dimensions": ((6, 3), (5, 4, 2, 3)),
    "one position": ((6, 3), (5, 1, 3)),
    "no positions": ((6, 3), (5, 0, 3)),
    "many classes": ((4, 3), (1000, 3)),
}


@pytest.mark.parametrize(
    "dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16], ids=str
)
@pytest.mark.parametrize(("rows", "shape"), SHAPES.values(), ids=SHAPES)
def test_beyond_the_samples(rows, shape, dtype):
    """Every kind of shapes that PyTorch takes, with its options in product, in one block and in many."""
    generator = torch.Generator().manual_seed(len(shape))
    hidden, weight = (torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in (rows, shape))
    logits_shape = (*rows[:-1], *shape[:-1])
    losses_shape = (*rows[:-1], *shape[1:-1])
    bias = torch.randn(shape[:-1], generator=generator).to(dtype).requires_grad_()
    indices = torch.randint(shape[0], losses_shape, generator=generator)
    probabilities = torch.rand(logits_shape, generator=generator).to(dtype)
    class_weight = (torch.rand(shape[0], generator=generator) + 0.1).to(dtype)
    ignored = int(indices.max()) if indices.numel() and shape[0] > 1 else 0
    for reduction, smoothing, more in itertools.product(
        REDUCTIONS, (0.0, 0.3), ({}, {"weight": class_weight}, {"linear_bias": bias})
    ):
        options = {"reduction": reduction, "label_smoothing": smoothing, **more}
        compare(hidden, weight, indices, options)
        compare(hidden, weight, indices, {**options, "ignore_index": ignored})
        if indices.shape != logits_shape:
            compare(hidden, weight, probabilities, options)


def test_signature_is_pytorchs():
    """Positions, names and defaults; our own options follow as keywords alone."""
    pairs = (slt.linear_cross_entropy, theirs), (slt.LinearCrossEntropyLoss, torch.nn.LinearCrossEntropyLoss)
    for ours, right in pairs:
        expected = inspect.signature(right).parameters
        found = inspect.signature(ours).parameters
        assert list(found)[: len(expected)] == list(expected)
        for name, parameter in expected.items():
            assert found[name].default == parameter.default
            assert found[name].kind == parameter.kind
        for name in found.keys() - expected.keys():
            assert found[name].kind is inspect.Parameter.KEYWORD_ONLY


H, W, Y = torch.randn(4, 3), torch.randn(5, 3), torch.tensor([0, 1, 4, 0])
Q = torch.softmax(torch.randn(4, 5), 1)
LCEO = torch.nn.LinearCrossEntropyOptions
ERRORS = {
    "fewer labels": (H, W, Y[:3]),
    "labels with a dimension more": (H, W, Y[:, None]),
    "a label too large": (H, W, torch.tensor([0, 1, 5, 0])),
    "a label below 0": (H, W, torch.tensor([0, -1, 2, 0])),
    "floating index labels": (H, W, Y.float()),
    "bool labels": (H, W, Y.bool()),
    "probabilities of too few classes": (H, W, Q[:, :2]),
    "probabilities of too few rows": (H, W, Q[:3]),
    "other features": (H, torch.randn(5, 2), Y),
    "no rows of weights": (H, torch.randn(3), Y),
    "three dimensions": (H[None], W, Y[None]),
    "no dimensions": (torch.tensor(1.0), W, torch.tensor(0)),
    "one row with positions": (H[0], torch.randn(5, 2, 3), torch.zeros(2, dtype=torch.long)),
    "positions of another shape": (H, torch.randn(5, 2, 3), torch.zeros(4, 3, dtype=torch.long)),
    "a scalar label for a batch": (H[:1], W, Y[0]),
    "a weight of another dtype": (H, W.double(), Y),
    "integers": (H.long(), W.long(), Y),
    "integer weights": (H, W.long(), Y),
    "complex numbers": (H.to(torch.complex64), W.to(torch.complex64), Y),
    "hidden in a list": (H.tolist(), W, Y),
    "weights in a list": (H, W.tolist(), Y),
    "labels in a list": (H, W, Y.tolist()),
    "no labels": (H, W, None),
    "labels on another device": (H, W, Y.to("meta")),
    "no classes": (H, torch.randn(0, 3), Y),
}
OPTION_ERRORS = [
    {"linear_bias": torch.randn(4)},
    {"linear_bias": torch.randn(1, 5)},
    {"linear_bias": torch.randn(5).double()},
    {"linear_bias": torch.zeros(5, dtype=torch.long)},
    {"linear_bias": [0.0] * 5},
    {"weight": torch.ones(4)},
    {"weight": torch.ones(5).double()},
    {"weight": [1.0] * 5},
    {"label_smoothing": 1.5},
    {"label_smoothing": "a"},
    {"reduction": "average"},
    {"reduction": None},
    {"ignore_index": 1.5},
    {"ignore_index": "a"},
    {"options": LCEO(batch_chunk_size=3, chunking_method="aspect_ratio")},
    {"options": {"batch_chunk_size": 2}},
    {"no_such_option": 1},
]


def assert_same_error(*arguments, **options):
    try:
        theirs(*arguments, **options)
    except Exception as error:
        expected = type(error)
    if expected is AttributeError:
        expected = TypeError  # of what has no attribute that PyTorch asks for, ours says that it is none
    with pytest.raises(expected) as ours:
        slt.linear_cross_entropy(*arguments, **options)
    assert len(str(ours.value)) > 10


@pytest.mark.parametrize("arguments", ERRORS.values(), ids=ERRORS)
def test_errors_of_arguments(arguments):
    assert_same_error(*arguments)


@pytest.mark.parametrize("options", OPTION_ERRORS, ids=str)
def test_errors_of_options(options):
    assert_same_error(H, W, Y, **options)


@pytest.mark.parametrize("ignore_index", [0, -100])
def test_probabilities_have_no_ignore_index(ignore_index):
    assert_same_error(H, W, Q, ignore_index=ignore_index)


OPTIONS = [LCEO(), LCEO(batch_chunk_size=2), LCEO(acc_policy="accurate"), LCEO(allow_retain_graph=True)]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_change_nothing(options, reduction):
    """Nor do they warn, where PyTorch's chunked form does not serve."""
    for target in (Y, Q):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = slt.linear_cross_entropy(H, W, target, reduction=reduction, label_smoothing=0.1, options=options)
        expected = slt.linear_cross_entropy(H, W, target, reduction=reduction, label_smoothing=0.1)
        assert (found == expected).all()


def test_no_classes_without_rows_is_pytorchs():
    for reduction in REDUCTIONS:
        found, right = (
            f(H[:0], torch.randn(0, 3), Y[:0], reduction=reduction) for f in (slt.linear_cross_entropy, theirs)
        )
        torch.testing.assert_close(found, right, equal_nan=True)
