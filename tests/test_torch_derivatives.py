"""softmaxloss.torch.cross_entropy differentiated every way that PyTorch knows, beside the formula in its operations.

All in float64, so that a difference is a wrong derivative and not rounding.
"""

import pytest

torch = pytest.importorskip("torch")

from option_cases import ids  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap  # noqa: E402
from torch_problems import (  # noqa: E402
    OPTION_SETS,
    REDUCTIONS,
    assert_close,
    formula,
    label_kinds,
    ours,
    problem,
)

import softmaxloss.torch as slt  # noqa: E402

# PyTorch's own batching rules for forward mode are written in what it has deprecated since.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

CASES = [(names, kind) for names in OPTION_SETS for kind in label_kinds(names)]
MOST = [
    ((), "index"),
    ((), "soft"),
    *((names, kind) for names in OPTION_SETS[-2:] for kind in label_kinds(names)),
]
LEARNT = ("sample_weight", "logit_bias")  # the options that gradients go through

by_cases = pytest.mark.parametrize(("names", "kind"), CASES, ids=ids)
by_most = pytest.mark.parametrize(("names", "kind"), MOST, ids=ids)
by_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def leaves_of(logits, labels, options):
    """Return what may ask for a gradient, and the loss as a function of it, with either function."""
    names = [name for name in LEARNT if name in options]
    soft = labels.is_floating_point()
    leaves = [logits, *([labels] if soft else []), *(options[name] for name in names)]

    def with_leaves(function):
        def loss(*values):
            z, q, rest = values[0], values[1] if soft else labels, values[1 + soft :]
            return function(z, q, {**options, **dict(zip(names, rest, strict=True))})

        return loss

    return [leaf.clone().requires_grad_() for leaf in leaves], with_leaves(ours), with_leaves(formula)


@by_cases
@by_reduction
def test_backward_and_double_backward(names, kind, reduction):
    for shape in ((6, 5), (2, 5, 3), (2, 3, 2, 2)):
        leaves, found, expected = leaves_of(*problem(names, kind, shape, reduction=reduction))
        losses = found(*leaves), expected(*leaves)
        assert_close(*losses)
        upstream = torch.linspace(0.5, 2, losses[0].numel(), dtype=torch.float64).reshape(losses[0].shape)
        upstream.requires_grad_()
        first = [torch.autograd.grad(one, leaves, upstream, create_graph=True) for one in losses]
        assert_close(*first)
        directions = [torch.randn_like(leaf) for leaf in leaves]
        product = [sum((d * g).sum() for d, g in zip(directions, one, strict=True)) for one in first]
        assert_close(*(torch.autograd.grad(one, [*leaves, upstream]) for one in product))


@by_most
def test_third_derivatives(names, kind):
    logits, labels, options = problem(names, kind, (6, 4), reduction="sum")

    def third(function):
        z = logits.clone().requires_grad_()
        value = function(z, labels, options)
        for power in (1, 2, 3):
            (value,) = torch.autograd.grad(value.pow(power).sum(), z, create_graph=True)
        return value

    assert_close(third(ours), third(formula))


@by_cases
@by_reduction
def test_gradcheck(names, kind, reduction):
    logits, labels, options = problem(names, kind, (6, 4), reduction=reduction)
    if "sample_weight" in options:
        options["sample_weight"] += 0.1  # a step below 0 would be refused
    leaves, found, _ = leaves_of(logits, labels, options)
    check = {"fast_mode": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(found, leaves, check_forward_ad=True, check_batched_forward_grad=True, **check)
    assert torch.autograd.gradgradcheck(found, leaves, **check)
    assert torch.autograd.gradgradcheck(
        found, leaves, fast_mode=True, check_fwd_over_rev=True, check_rev_over_rev=False, check_undefined_grad=False
    )


@by_most
@by_reduction
def test_functional_transforms(names, kind, reduction):
    """Each of torch.func's, and some on others, by the logits and by all that gradients go through."""
    leaves, found, expected = leaves_of(*problem(names, kind, (6, 4), reduction=reduction))
    leaves = [leaf.detach() for leaf in leaves]
    everything = tuple(range(len(leaves)))
    tangents = tuple(torch.randn_like(leaf) for leaf in leaves)

    def transformed(loss):
        def total(*values):
            return loss(*values).sum()

        value, pullback = vjp(loss, *leaves)
        return {
            "grad": grad(total, argnums=everything)(*leaves),
            "vjp": pullback(torch.ones_like(value)),
            "jvp": jvp(loss, tuple(leaves), tangents),
            "jacfwd": jacfwd(loss, argnums=everything)(*leaves),
            "jacrev": jacrev(loss, argnums=everything)(*leaves),
            "hessian": hessian(total, argnums=everything)(*leaves),
            "jacrev of jacfwd": jacrev(jacfwd(total))(*leaves),
            "jvp of grad": jvp(grad(total, argnums=everything), tuple(leaves), tangents),
            "grad of grad": grad(lambda *values: grad(total)(*values).square().sum())(*leaves),
        }

    found, expected = transformed(found), transformed(expected)
    for name in expected:
        assert_close(found[name], expected[name])


@by_most
def test_vmap(names, kind):
    """Gradients for each sample, over batches of logits, of labels, of both, and of batches."""
    logits, labels, options = problem(names, kind, (6, 5), reduction="none")
    weight = options.pop("sample_weight", torch.ones(6).double())

    def transformed(function):
        def row(z, y, s):
            return function(z[None], y[None], {**options, "sample_weight": s[None]}).sum()

        def rows(z, y):
            return function(z, y, {**options, "sample_weight": weight}).sum()

        def batch(z, y, s):
            return function(z, y, {**options, "sample_weight": s})

        many = torch.stack([logits, -logits, 2 * logits])
        return {
            "rows": vmap(row)(logits, labels, weight),
            "gradient of each row": vmap(grad(row, argnums=(0, 2)))(logits, labels, weight),
            "Hessian of each row": vmap(hessian(row))(logits, labels, weight),
            "logits alone": vmap(grad(rows), in_dims=(0, None))(many, labels),
            "another dimension": vmap(grad(rows), in_dims=(2, None))(many.movedim(0, 2), labels),
            "labels alone": vmap(grad(rows), in_dims=(None, 0))(logits, torch.stack([labels, labels.flip(0)])),
            "nested": vmap(vmap(grad(row), in_dims=(0, 0, None)), in_dims=(0, None, None))(many, labels, weight[0]),
            "outputs elsewhere": vmap(batch, in_dims=(0, None, None), out_dims=1)(many, labels, weight),
            "grad of vmap": grad(lambda m: vmap(rows, in_dims=(0, None))(m, labels).square().sum())(many),
            "jacrev of vmap": jacrev(lambda m: vmap(rows, in_dims=(0, None))(m, labels))(many),
        }

    found, expected = transformed(ours), transformed(formula)
    for name in expected:
        assert_close(found[name], expected[name])


def test_vmap_over_single_rows():
    """A model's usual code for the gradient of each sample: one row, one scalar label, no batch dimension."""
    logits, labels, _ = problem(shape=(6, 5))
    theirs = torch.nn.functional.cross_entropy
    for transform in (grad, hessian, jacfwd):
        found, expected = (vmap(transform(f))(logits, labels) for f in (slt.cross_entropy, theirs))
        assert_close(found, expected)


def test_gradients_of_each_sample_through_a_module():
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)).double()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    x, y = torch.randn(5, 3).double(), torch.tensor([0, 3, 1, 2, 2])

    def by_sample(criterion):
        def loss(p, x, y):
            return criterion(functional_call(model, p, (x[None],)), y[None])

        return vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)

    assert_close(by_sample(slt.CrossEntropyLoss()), by_sample(torch.nn.CrossEntropyLoss()))


@by_most
def test_forward_mode_by_hand(names, kind):
    """Dual numbers, with and without a graph behind them: a tangent that is left out would be 0."""
    leaves, found, expected = leaves_of(*problem(names, kind, (6, 4)))
    tangents = [torch.randn_like(leaf) for leaf in leaves]
    for asks in (False, True):
        results = []
        for loss in (found, expected):
            with forward_ad.dual_level():
                duals = [
                    forward_ad.make_dual(leaf.detach().requires_grad_(asks), tangent)
                    for leaf, tangent in zip(leaves, tangents, strict=True)
                ]
                results.append(forward_ad.unpack_dual(loss(*duals)))
        assert results[0].tangent.abs().max() > 0
        assert_close(tuple(results[0]), tuple(results[1]))


@by_most
def test_autograd_functional(names, kind):
    logits, labels, options = problem(names, kind, (6, 4))
    direction = torch.randn_like(logits)
    functional = torch.autograd.functional

    def transformed(function):
        def loss(z):
            return function(z, labels, options)

        return {
            "jacobian": functional.jacobian(loss, logits),
            "jacobian, forward": functional.jacobian(loss, logits, strategy="forward-mode", vectorize=True),
            "hessian": functional.hessian(loss, logits),
            "hessian, vectorised": functional.hessian(loss, logits, vectorize=True),
            "hessian, forward": functional.hessian(
                loss, logits, vectorize=True, outer_jacobian_strategy="forward-mode"
            ),
            "hvp": functional.hvp(loss, logits, direction),
            "vhp": functional.vhp(loss, logits, direction),
            "jvp": functional.jvp(loss, logits, direction),
            "vjp": functional.vjp(loss, logits),
        }

    found, expected = transformed(ours), transformed(formula)
    for name in expected:
        assert_close(found[name], expected[name])


def test_a_gradient_that_is_not_asked_for_is_not_there():
    logits, labels, options = problem(("sample_weight", "logit_bias"), "soft")
    for asking in (logits, labels, *(options[name] for name in LEARNT)):
        asking.requires_grad_()
        loss, right = ours(logits, labels, options), formula(logits, labels, options)
        assert_close(torch.autograd.grad(loss, asking), torch.autograd.grad(right, asking))
        asking.requires_grad_(False)
    assert not ours(logits, labels, options).requires_grad
