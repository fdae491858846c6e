"""softmaxloss.torch.cross_entropy by PyTorch's own samples (OpInfo), and beside PyTorch's own function and its errors.

PyTorch's function in float64, on the same inputs, says what is right: in float32 and 16 bits PyTorch's own answer is
the worse of the two. A difference may be as large as docs/accuracy.md promises, (16 + M) units of 2^-24 (float64:
2^-53) times the sum of the magnitudes of the answer's terms, M the largest |logit|; in float64, where PyTorch errs as
well, eight times that. Answers of 16 bits are such a value, rounded once.
"""

import itertools
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import softmaxloss.torch as slt  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PyTorch's own tests warn as they are imported, of what is not installed
    pytest.importorskip("expecttest", reason="PyTorch's samples import it")
    from torch.testing._internal.common_methods_invocations import op_db

# PyTorch's own batching rules for forward mode are written in what it has deprecated since.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

theirs = torch.nn.functional.cross_entropy
OP = next(op for op in op_db if op.name == "nn.functional.cross_entropy")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
REDUCTIONS = ["mean", "sum", "none"]


def samples(dtype):
    torch.manual_seed(0)
    return [(s.input, *s.args, s.kwargs) for s in OP.sample_inputs("cpu", dtype, requires_grad=True)]


def in_double(value):
    """Return a leaf of its own: a floating tensor's numbers in float64."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    return value.detach().double().requires_grad_(value.requires_grad)


def scales(z, target, weight=None, *, double, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """Return the sums of magnitudes behind the loss, and behind the gradients by logits and target, in float64."""
    axis = min(1, z.ndim - 1)
    classes = z.shape[axis]
    shape = [classes if d == axis else 1 for d in range(z.ndim)]
    w = torch.ones(classes).double() if weight is None else weight.detach()
    log_p = torch.log_softmax(z.detach(), axis)
    if target.is_floating_point():
        q, divisor = target.detach(), torch.tensor(z.numel() / classes)
    else:
        target = target.reshape(z.shape[:axis] + z.shape[axis + 1 :]).long()
        kept = target != ignore_index
        y = torch.where(kept, target, 0)
        q = torch.nn.functional.one_hot(y, classes).movedim(-1, axis) * kept.unsqueeze(axis).double()
        divisor = (w[y] * kept).sum()
        # Rounding of a sum of signed weights is part of the bargain.
        divisor = divisor * divisor.abs() / (w[y].abs() * kept).sum() if (w < 0).any() else divisor
    q = (1 - label_smoothing) * q.abs() + label_smoothing / classes * (q.abs().sum(axis, keepdim=True) > 0)
    q = q * w.abs().reshape(shape)
    share = 1 / divisor.abs() if reduction == "mean" else 1.0
    # In float64 it is PyTorch's log p that errs, by a unit of the logits, where ours does by one of its own.
    terms = z.detach().abs().amax(axis, keepdim=True) - log_p if double and z.numel() else -log_p
    rows = (q * terms).nan_to_num(0.0, posinf=0.0, neginf=0.0).sum(axis)
    loss = rows if reduction == "none" else rows.sum() * share
    return loss, (q.sum(axis, keepdim=True) * log_p.exp() + q) * share, w.abs().reshape(shape) * terms * share


def assert_close(ours, right, scale, dtype, largest):
    """Assert the module's bound; shapes and NaN are the same."""
    assert ours.dtype == dtype
    assert ours.shape == right.shape
    unit = 2.0**-50 if dtype == torch.float64 else 2.0**-24
    allowance = (16 + largest) * unit * scale + torch.finfo(torch.float32).tiny
    if torch.finfo(dtype).bits == 16:
        # Half of the last place, and below the normal numbers half of the least one.
        allowance = allowance + torch.finfo(dtype).eps / 2 * right.abs() + torch.finfo(dtype).smallest_normal * 2.0**-8
    error = (ours.detach().double() - right).abs()
    right_there = (error <= allowance) | (ours == right) | (ours.isnan() & right.isnan())
    # What is finite may be too large for float16.
    right_there |= ours.isinf() & (right.abs() > torch.finfo(dtype).max) & (ours.sign() == right.sign())
    assert right_there.all(), (error / allowance).max()


def compare(logits, target, weight=None, **options):
    """Compare loss and gradients with PyTorch's, of leaves that ask for them."""
    dtype = logits.dtype
    exact_logits, exact_target, exact_weight = map(in_double, (logits, target, weight))
    loss = slt.cross_entropy(logits, target, weight, **options)
    if not exact_target.is_floating_point():
        exact_target = exact_target.long()  # PyTorch takes uint8 here and there only
    right = theirs(exact_logits, exact_target, exact_weight, **options)
    loss_scale, *gradient_scales = scales(
        exact_logits, exact_target, exact_weight, double=dtype == torch.float64, **options
    )
    largest = float(exact_logits.detach().nan_to_num(0.0, 0.0, 0.0).abs().max()) if logits.numel() else 0.0
    assert_close(loss, right.detach(), loss_scale.reshape(right.shape), dtype, largest)
    cotangent = torch.linspace(0.5, 2.0, loss.numel()).reshape(loss.shape).to(dtype)
    asking = [i for i, leaf in enumerate((logits, target)) if leaf.requires_grad]
    found = torch.autograd.grad(loss, [(logits, target)[i] for i in asking], cotangent)
    expected = torch.autograd.grad(right, [(exact_logits, exact_target)[i] for i in asking], cotangent.double())
    axis = min(1, logits.ndim - 1)
    for i, one, other in zip(asking, found, expected, strict=True):
        upstream = cotangent.double().unsqueeze(axis) if options.get("reduction") == "none" else cotangent.double()
        assert_close(one, other, gradient_scales[i] * upstream, dtype, largest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_samples(dtype):
    """PyTorch's samples: class weights of either sign and distributions that are none among them."""
    checked = samples(dtype)
    assert len(checked) >= 21
    for logits, target, options in checked:
        compare(logits, target, **options)


@pytest.mark.parametrize("number", range(21))
def test_samples_differentiate_every_way(number):
    """As PyTorch tests its own: backward, forward mode, batches of either, and backward of backward."""
    logits, target, options = samples(torch.float64)[number]
    weight = options.pop("weight", None)
    leaves = [leaf for leaf in (logits, target) if leaf.requires_grad]

    def loss(*values):
        return slt.cross_entropy(*values, *(target,) * (2 - len(values)), weight, **options)

    assert torch.autograd.gradcheck(
        loss,
        leaves,
        fast_mode=True,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert torch.autograd.gradgradcheck(loss, leaves, fast_mode=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(
        loss, leaves, fast_mode=True, check_fwd_over_rev=True, check_rev_over_rev=False, check_undefined_grad=False
    )


SHAPES = [(5,), (1, 1), (4, 3), (7, 64), (3, 1000), (2, 5, 3), (2, 3, 4, 5), (2, 3, 1, 2, 2), (0, 3), (2, 4, 0)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_beyond_the_samples(shape, dtype):
    """Every shape that PyTorch takes, no rows among them, with its options in product."""
    generator = torch.Generator().manual_seed(len(shape))
    axis = min(1, len(shape) - 1)
    rows = shape[:axis] + shape[axis + 1 :]
    logits = (4 * torch.randn(shape, generator=generator)).to(dtype).requires_grad_()
    classes = shape[axis]
    indices = torch.randint(classes, rows, generator=generator)
    distribution = torch.rand(shape, generator=generator).to(dtype).requires_grad_()
    weight = (torch.rand(classes, generator=generator) + 0.1).to(dtype)
    for reduction, smoothing, weights in itertools.product(REDUCTIONS, (0.0, 0.3, 1.0), (None, weight)):
        options = {"reduction": reduction, "label_smoothing": smoothing}
        compare(logits, indices, weights, ignore_index=int(indices.max()) if indices.numel() else 0, **options)
        compare(logits, indices.to(torch.uint8) if classes < 256 else indices, weights, **options)
        compare(logits, distribution, weights, **options)


def test_all_rows_ignored_is_nan_with_a_zero_gradient():
    logits = torch.randn(4, 3, requires_grad=True)
    target = torch.full((4,), 7)
    for function in (theirs, slt.cross_entropy):
        loss = function(logits, target, ignore_index=7)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isnan()
        assert (gradient == 0).all()
        assert function(logits, target, ignore_index=7, reduction="sum") == 0


def test_rows_with_nan_or_infinities_are_as_pytorchs():
    logits = torch.randn(6, 4, dtype=torch.float64)
    logits[0, 1], logits[1, 2], logits[2], logits[3, 0] = torch.nan, torch.inf, -torch.inf, -torch.inf
    target = torch.tensor([0, 2, 1, 1, 0, 3])
    ours, right = (f(logits, target, reduction="none") for f in (slt.cross_entropy, theirs))
    torch.testing.assert_close(ours, right, rtol=1e-14, atol=0, equal_nan=True)
    masked = theirs(logits[3:4], torch.tensor([0]))
    assert masked == slt.cross_entropy(logits[3:4], torch.tensor([0])) == torch.inf
    # PyTorch makes 0 * inf a NaN for distributions; the formula's 0 * -inf counts as 0.
    one_hot = torch.nn.functional.one_hot(target, 4).double()
    assert slt.cross_entropy(logits[3:], one_hot[3:]).isfinite()


def test_shapes_of_a_single_row():
    logits = torch.randn(5)
    for target in (torch.tensor(2), torch.tensor([2]), torch.rand(5)):
        for reduction in REDUCTIONS:
            ours, right = (f(logits, target, reduction=reduction) for f in (slt.cross_entropy, theirs))
            torch.testing.assert_close(ours, right, rtol=1e-6, atol=0)


def test_signature_is_pytorchs():
    """Positions, names and defaults; our own options follow as keywords alone."""
    import inspect

    for ours, right in ((slt.cross_entropy, theirs), (slt.CrossEntropyLoss, torch.nn.CrossEntropyLoss)):
        expected = inspect.signature(right).parameters
        found = inspect.signature(ours).parameters
        assert list(found)[: len(expected)] == list(expected)
        for name, parameter in expected.items():
            assert found[name].default == parameter.default
            assert found[name].kind == parameter.kind
        for name in found.keys() - expected.keys():
            assert found[name].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize(
    "deprecated",
    [
        {"size_average": True},
        {"size_average": False},
        {"reduce": False},
        {"reduce": True, "size_average": False},
        {"reduction": "elementwise_mean"},
    ],
    ids=str,
)
def test_deprecated_names_of_reductions(deprecated):
    logits, target = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    with pytest.warns(UserWarning, match="deprecated"):
        right = theirs(logits, target, **deprecated)
    with pytest.warns(UserWarning, match="deprecated"):
        ours = slt.cross_entropy(logits, target, **deprecated)
    torch.testing.assert_close(ours, right)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32])
def test_labels_of_any_integer_dtype(dtype):
    """PyTorch takes int64 and uint8; the others are compared by value too."""
    logits, target = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    assert slt.cross_entropy(logits, target.to(dtype)) == slt.cross_entropy(logits, target)
    one_hot = torch.nn.functional.one_hot(target, 3)
    torch.testing.assert_close(slt.cross_entropy(logits, one_hot), theirs(logits, one_hot.float()))


Z, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
Q = torch.softmax(torch.randn(4, 3), 1)
ERRORS = {
    "fewer labels": (Z, Y[:3]),
    "more labels": (Z, torch.zeros(5, dtype=torch.long)),
    "labels with a dimension more": (Z, Y[:, None]),
    "index labels of another shape": (Z, torch.zeros(4, 2, dtype=torch.long)),
    "a label too large": (Z, torch.tensor([0, 1, 3, 0])),
    "a label below 0": (Z, torch.tensor([0, -1, 2, 0])),
    "a label of 41 bits": (Z, torch.tensor([0, 2**40, 2, 0])),
    "a label too large, 8 bits": (Z, torch.tensor([0, 200, 2, 0], dtype=torch.uint8)),
    "floating index labels": (Z, Y.float()),
    "bool labels": (Z, Y.bool()),
    "complex target": (Z, Q.to(torch.complex64)),
    "probabilities of too few classes": (Z, Q[:, :2]),
    "probabilities of too few rows": (Z, Q[:3]),
    "probabilities for one row of other length": (Z[0], Q[0, :2]),
    "spatial labels of another shape": (torch.randn(2, 3, 4), torch.zeros(2, 5, dtype=torch.long)),
    "spatial labels of another batch": (torch.randn(2, 3, 4), torch.zeros(3, 4, dtype=torch.long)),
    "spatial labels without their dimension": (torch.randn(2, 3, 4), torch.zeros(2, dtype=torch.long)),
    "a scalar label for a batch": (Z[:1], Y[0]),
    "a weight too many": (Z, Y, torch.ones(4)),
    "weights with two dimensions": (Z, Y, torch.ones(1, 3)),
    "a weight for all": (Z, Y, torch.tensor(1.0)),
    "a weight too many, probabilities": (Z, Q, torch.ones(4)),
    "weights of another dtype": (Z, Y, torch.ones(3, dtype=torch.float64)),
    "integer weights": (Z, Y, torch.ones(3, dtype=torch.long)),
    "weights in a list": (Z, Y, [1.0, 1.0, 1.0]),
    "no dimensions": (torch.tensor(1.0), torch.tensor(0)),
    "no dimensions, probabilities": (torch.tensor(1.0), torch.tensor(1.0)),
    "no classes": (torch.randn(4, 0), Y),
    "integer logits": (Z.long(), Y),
    "bool logits": (Z > 0, Y),
    "complex logits": (Z.to(torch.complex64), Y),
    "logits in a list": (Z.tolist(), Y),
    "labels in a list": (Z, Y.tolist()),
    "NumPy labels": (Z, Y.numpy()),
    "no labels": (Z, None),
    "labels on another device": (Z, Y.to("meta")),
}
OPTION_ERRORS = [
    {"label_smoothing": 1.5},
    {"label_smoothing": "a"},
    {"label_smoothing": None},
    {"reduction": "average"},
    {"reduction": None},
    {"reduction": 1},
    {"ignore_index": 1.5},
    {"ignore_index": None},
    {"ignore_index": "a"},
    {"ignore_index": True},
    {"ignore_index": 2**70},
    {"no_such_option": 1},
]


def assert_same_error(*arguments, **options):
    try:
        theirs(*arguments, **options)
    except Exception as error:
        expected = type(error)
    with pytest.raises(expected) as ours:
        slt.cross_entropy(*arguments, **options)
    assert len(str(ours.value)) > 10


@pytest.mark.parametrize("arguments", ERRORS.values(), ids=ERRORS)
def test_errors_of_arguments(arguments):
    assert_same_error(*arguments)


@pytest.mark.parametrize("options", OPTION_ERRORS, ids=str)
def test_errors_of_options(options):
    assert_same_error(Z, Y, **options)
    assert_same_error(Z, Q, **options)


def test_ignore_index_is_not_for_probabilities():
    for index in (0, 1, 100):
        assert_same_error(Z, Q, ignore_index=index)
    for index in (-1, -100):
        assert slt.cross_entropy(Z, Q, ignore_index=index) == slt.cross_entropy(Z, Q)


def test_pytorch_takes_smoothing_below_zero_for_none_and_we_do_not():
    with pytest.raises(ValueError, match="label_smoothing"):
        slt.cross_entropy(Z, Y, label_smoothing=-0.1)


def test_numbers_of_other_kinds_are_options():
    expected = slt.cross_entropy(Z, Y, label_smoothing=1.0, ignore_index=1)
    assert slt.cross_entropy(Z, Y, label_smoothing=1, ignore_index=np.int64(1)) == expected
