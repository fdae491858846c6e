"""linear_cross_entropy under what PyTorch does around a function: torch.func, compile, export, autocast, and more."""

import io
import json
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from option_cases import ids  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch_linear_problems import formula, linear_problem, ours  # noqa: E402
from torch_problems import OPTION_SETS, REDUCTIONS, assert_close, label_kinds  # noqa: E402

import softmaxloss as sl  # noqa: E402
import softmaxloss.torch as slt  # noqa: E402

# PyTorch's own batching rules for forward mode are written in what it has deprecated since.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

MOST = [
    ((), "index", ()),
    ((), "soft", ()),
    ((), "index", (2,)),
    *((names, kind, ()) for names in OPTION_SETS[-2:] for kind in label_kinds(names)),
]
by_most = pytest.mark.parametrize(("names", "kind", "positions"), MOST, ids=lambda value: str(value).replace("'", ""))
by_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def functions(names=(), kind="index", positions=(), reduction="mean"):
    """Return operands, and the loss as a function of them, ours and the formula's."""
    operands, labels, options = linear_problem(names, kind, positions=positions, reduction=reduction)
    return operands, *(lambda *values, f=f: f(values, labels, options) for f in (ours, formula))


@by_most
@by_reduction
def test_functional_transforms(names, kind, positions, reduction):
    operands, found, expected = functions(names, kind, positions, reduction)
    everything = (0, 1, 2)
    tangents = tuple(torch.randn_like(operand) for operand in operands)

    def transformed(loss):
        def total(*values):
            return loss(*values).sum()

        value, pullback = vjp(loss, *operands)
        return {
            "grad": grad(total, argnums=everything)(*operands),
            "vjp": pullback(torch.ones_like(value)),
            "jvp": jvp(loss, tuple(operands), tangents),
            "jacfwd": jacfwd(loss, argnums=everything)(*operands),
            "jacrev": jacrev(loss, argnums=everything)(*operands),
            "hessian": hessian(total, argnums=(0, 1))(*operands),
            "jvp of grad": jvp(grad(total, argnums=everything), tuple(operands), tangents),
        }

    found, expected = transformed(found), transformed(expected)
    for name in expected:
        assert_close(found[name], expected[name], rtol=1e-10, atol=1e-11)


@by_most
def test_gradcheck(names, kind, positions):
    operands, found, _ = functions(names, kind, positions)
    leaves = [operand.requires_grad_() for operand in operands]
    check = {"fast_mode": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(found, leaves, check_forward_ad=True, check_batched_forward_grad=True, **check)
    assert torch.autograd.gradgradcheck(found, leaves, **check)


def test_forward_mode():
    (hidden, weight, bias), found, expected = functions()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(hidden, torch.ones_like(hidden))
        tangents = [forward_ad.unpack_dual(f(dual, weight, bias)).tangent for f in (found, expected)]
    assert_close(*tangents)


def test_vmap():
    """Gradients for each row, over batches of hidden states, of weights (an ensemble), and of labels."""
    (hidden, weight, bias), labels, _ = linear_problem()
    weights = torch.stack([weight, -weight, 2 * weight])
    many = torch.stack([hidden, hidden.flip(0)])
    many_labels = torch.stack([labels, labels.flip(0)])

    def transformed(function):
        def loss(h, w, y):
            return function([h, w, bias], y, {"reduction": "sum"})

        return {
            "rows": vmap(grad(loss), in_dims=(0, None, 0))(hidden, weight, labels.clamp(min=0)),
            "ensemble": vmap(grad(loss, argnums=1), in_dims=(None, 0, None))(hidden, weights, labels),
            "batches": vmap(grad(loss, argnums=(0, 1)), in_dims=(0, None, 0))(many, weight, many_labels),
            "labels alone": vmap(loss, in_dims=(None, None, 0))(hidden, weight, many_labels),
            "grad of vmap": grad(lambda w: vmap(loss, in_dims=(0, None, 0))(many, w, many_labels).square().sum())(
                weight
            ),
        }

    found, expected = transformed(ours), transformed(formula)
    for name in expected:
        assert_close(found[name], expected[name])


def test_batched_gradients():
    """The vmap of torch.autograd itself."""
    operands, found, expected = functions(reduction="none")
    leaves = [operand.requires_grad_() for operand in operands]
    upstreams = torch.randn(4, 6).double()
    gradients = [torch.autograd.grad(f(*leaves), leaves, upstreams, is_grads_batched=True) for f in (found, expected)]
    assert_close(*gradients)


def test_and_grad_under_transforms():
    (hidden, weight, bias), labels, _ = linear_problem()

    def both(h):
        return sl.linear_cross_entropy_and_grad(h, weight, labels, bias=bias)

    stacked = torch.stack([hidden, -hidden])
    loss, gradients = vmap(both)(stacked)
    for i in range(2):
        expected_loss, expected = both(stacked[i])
        assert_close(loss[i], expected_loss)
        assert_close([g[i] for g in gradients], list(expected))


def test_a_modules_gradients_of_each_sample():
    module = slt.LinearCrossEntropyLoss(3, 5).double()
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    x, y = torch.randn(4, 3).double(), torch.tensor([0, 4, 1, 1])
    found = vmap(grad(lambda p, a, b: functional_call(module, p, (a, b))), in_dims=(None, 0, 0))(parameters, x, y)
    for i in range(4):
        expected = grad(lambda p: functional_call(module, p, (x[i], y[i])))(parameters)  # noqa: B023
        assert_close(found["linear.weight"][i], expected["linear.weight"])


@quiet
class TestCompile:
    @pytest.fixture(autouse=True)
    def fresh(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @by_most
    @by_reduction
    def test_one_graph(self, names, kind, positions, reduction):
        operands, found, expected = functions(names, kind, positions, reduction)
        leaves = [operand.requires_grad_() for operand in operands]
        losses = torch.compile(found, fullgraph=True, backend="aot_eager")(*leaves), expected(*leaves)
        assert_close(*losses)
        upstream = torch.linspace(0.5, 2, losses[1].numel(), dtype=torch.float64).reshape(losses[1].shape)
        assert_close(*(torch.autograd.grad(loss, leaves, upstream) for loss in losses))

    @pytest.mark.parametrize("asked", [(1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=str)
    @by_reduction
    def test_gradients_of_some(self, asked, reduction):
        operands, found, expected = functions(reduction=reduction)
        leaves = [operand.requires_grad_(bool(wanted)) for operand, wanted in zip(operands, asked, strict=True)]
        asking = [leaf for leaf in leaves if leaf.requires_grad]
        losses = torch.compile(found, fullgraph=True, backend="aot_eager")(*leaves), expected(*leaves)
        assert_close(*(torch.autograd.grad(loss.sum(), asking) for loss in losses))

    def test_sequences_with_a_shift(self):
        hidden, weight, tokens = torch.randn(2, 6, 3), torch.randn(5, 3), torch.randint(5, (2, 6))
        leaves = hidden.requires_grad_(), weight.requires_grad_()

        def loss(h, w):
            return slt.linear_cross_entropy(h.sin(), w, tokens, shift=1)

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*leaves), loss(*leaves))
        torch.testing.assert_close(
            torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(loss(*leaves), leaves)
        )

    def test_shapes_that_change(self):
        compiled = torch.compile(slt.linear_cross_entropy, fullgraph=True, backend="aot_eager", dynamic=True)
        weight = torch.randn(5, 3, requires_grad=True)
        for rows in (4, 7, 9):
            hidden, labels = torch.randn(rows, 3), torch.randint(5, (rows,))
            losses = compiled(hidden, weight, labels), slt.linear_cross_entropy(hidden, weight, labels)
            torch.testing.assert_close(*(torch.autograd.grad(loss, weight) for loss in losses))

    def test_all_logits_where_others_learn(self):
        """Gradients by a bias after the softcap: the plain way, in the graph too."""
        operands, labels, options = linear_problem(("logit_bias",))
        bias = options["logit_bias"].requires_grad_()
        compiled = torch.compile(
            lambda h, w, b: ours([h, w], labels, {"logit_bias": b}), fullgraph=True, backend="eager"
        )
        expected = formula(operands[:2], labels, {"logit_bias": bias})
        assert_close(*(torch.autograd.grad(x, bias) for x in (compiled(*operands[:2], bias), expected)))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_sixteen_bits(self, dtype):
        hidden, weight, labels = torch.randn(8, 3).to(dtype), torch.randn(5, 3).to(dtype), torch.randint(5, (8,))
        leaves = hidden.requires_grad_(), weight.requires_grad_()
        compiled = torch.compile(slt.linear_cross_entropy, fullgraph=True, backend="aot_eager")
        losses = [function(*leaves, labels) for function in (compiled, slt.linear_cross_entropy)]
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*(torch.autograd.grad(loss, leaves) for loss in losses))

    def test_inductor(self):
        """The compiler that users get; it needs a C++ compiler at run time."""
        operands, found, expected = functions()
        leaves = [operand.requires_grad_() for operand in operands]
        compiled = torch.compile(lambda h, w, b: found(h.sin(), w, b), fullgraph=True)
        losses = compiled(*leaves), expected(leaves[0].sin(), *leaves[1:])
        assert_close(*losses)
        assert_close(*(torch.autograd.grad(loss, leaves) for loss in losses))

    def test_under_autocast(self):
        hidden, weight, labels = torch.randn(8, 3), torch.randn(5, 3, requires_grad=True), torch.randint(5, (8,))

        @torch.compile(fullgraph=True, backend="aot_eager")
        def loss(h, w):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return slt.linear_cross_entropy(h, w, labels)

        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = slt.linear_cross_entropy(hidden, weight, labels)
        found = loss(hidden, weight)
        assert found.dtype == expected.dtype == torch.float32
        torch.testing.assert_close(*(torch.autograd.grad(x, weight)[0] for x in (found, expected)))


@quiet
@pytest.mark.parametrize("strict", [False, True])
def test_exported_saved_and_loaded(strict):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.criterion = slt.LinearCrossEntropyLoss(3, 5, bias=True, label_smoothing=0.1, z_loss=1e-2).double()

        def forward(self, x, y):
            return self.criterion(x.sin(), y)

    model = Model()
    x, y = torch.randn(6, 3).double(), torch.arange(6) % 5
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(model, (x, y), dynamic_shapes=({0: rows}, {0: rows}), strict=strict)
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    loaded = torch.export.load(stored).module()
    for rows in (6, 9):
        x, y = torch.randn(rows, 3).double(), torch.arange(rows) % 5
        assert_close(loaded(x, y), model(x, y))


class TestAutocast:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=str)
    @by_reduction
    def test_products_in_16_bits_and_a_loss_in_float32(self, given, dtype, reduction):
        torch.manual_seed(0)
        hidden, weight, bias = torch.randn(16, 8).to(given), torch.randn(4, 8), torch.randn(4)
        labels, gradients = torch.arange(16) % 4, []

        def theirs(h, w, y, linear_bias, reduction):
            return torch.nn.functional.cross_entropy(
                torch.nn.functional.linear(h, w, linear_bias), y, reduction=reduction
            )

        for function in (slt.linear_cross_entropy, theirs):
            leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
            with torch.autocast("cpu", dtype=dtype):
                loss = function(*leaves[:2], labels, linear_bias=leaves[2], reduction=reduction)
            assert loss.dtype == torch.float32
            gradients.append((loss, *torch.autograd.grad(loss.sum(), leaves)))
        assert [g.dtype for g in gradients[0][1:]] == [given, torch.float32, torch.float32]
        torch.testing.assert_close(*gradients, rtol=2.0**-5, atol=2.0**-5)

    def test_float64_stays(self):
        operands, found, expected = functions()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_close(found(*operands), expected(*operands))

    def test_of_the_general_function(self):
        hidden, weight, labels = torch.randn(16, 8), torch.randn(4, 8), torch.arange(16) % 4
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = sl.linear_cross_entropy(hidden, weight, labels)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, sl.linear_cross_entropy(hidden, weight, labels), rtol=2.0**-6, atol=0)

    def test_grad_scaler(self):
        """A whole step in float16: the gradients are those of float64, scaled before anything is rounded."""
        torch.manual_seed(0)
        hidden, labels = torch.randn(2048, 8), torch.randint(50, (2048,))
        layer = torch.nn.Linear(8, 50)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        before = layer.weight.detach().double().clone()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = slt.linear_cross_entropy(hidden, layer.weight, labels, linear_bias=layer.bias)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        exact = before.requires_grad_()
        logits = hidden.double() @ exact.T + layer.bias.detach().double() + layer.bias.grad.double()
        (right,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, labels), exact)
        torch.testing.assert_close((exact - layer.weight.double()).detach(), right, rtol=1e-2, atol=1e-5)


class TestModes:
    @pytest.mark.parametrize("reentrant", [False, True])
    @by_reduction
    def test_checkpoint(self, reentrant, reduction):
        operands, found, expected = functions(reduction=reduction)
        gradients = []
        for function in (found, expected):
            leaves = [operand.clone().requires_grad_() for operand in operands]
            loss = checkpoint(lambda h, w, b, f=function: f(h.sin(), w, b), *leaves, use_reentrant=reentrant)
            loss.sum().backward()
            gradients.append([leaf.grad for leaf in leaves])
        assert_close(*gradients)

    def test_inference_tensors_later(self):
        with torch.inference_mode():
            operands, labels, options = linear_problem()
        assert_close(ours(operands, labels, options), formula(operands, labels, options))

    def test_anomaly_detection(self):
        operands, found, _ = functions()
        leaves = [operand.requires_grad_() for operand in operands]
        with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly():
            found(*leaves).backward()

    def test_a_subclass_of_tensors_is_asked(self):
        class Noted(torch.Tensor):
            calls = 0

            @classmethod
            def __torch_function__(cls, function, types, arguments=(), options=None):
                cls.calls += 1
                return super().__torch_function__(function, types, arguments, options or {})

        (hidden, weight, _), labels, _ = linear_problem()
        loss = slt.linear_cross_entropy(hidden, weight.as_subclass(Noted), labels)
        assert Noted.calls
        assert_close(loss.as_subclass(torch.Tensor), slt.linear_cross_entropy(hidden, weight, labels))

    def test_a_hook_on_the_layers_gradient(self):
        """As data parallelism takes it: the gradient that arrives is the whole one."""
        operands, found, _ = functions()
        leaves = [operand.requires_grad_() for operand in operands]
        seen = []
        leaves[1].register_hook(lambda g: seen.append(g.clone()))
        found(*leaves).backward()
        assert_close(seen, [leaves[1].grad])


@by_reduction
@pytest.mark.parametrize("names", [(), OPTION_SETS[-1]], ids=ids)
def test_meta_tensors(names, reduction):
    """What would look at a number, and so wait for a device, raises here."""
    for kind in ("index", "soft"):
        operands, labels, options = linear_problem(names, kind, reduction=reduction)

        def to_meta(value):
            return value.to("meta") if isinstance(value, torch.Tensor) else value

        leaves = [operand.to("meta").requires_grad_() for operand in operands]
        loss = ours(leaves, labels.to("meta"), {name: to_meta(value) for name, value in options.items()})
        assert loss.shape == ((6,) if reduction == "none" else ())
        gradients = torch.autograd.grad(loss.sum(), leaves, create_graph=True)
        assert [g.shape for g in gradients] == [leaf.shape for leaf in leaves]
        gradients[1].square().sum().backward()


# A program: by how much forward and backward raise the peak of resident memory, beside the gradients. Writing 5 sets
# the peak back: proc(5), /proc/pid/clear_refs. A small problem first imports and starts what is needed once.
MEASURE = """
import gc, json, sys
from pathlib import Path
import torch
import softmaxloss.torch as slt

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

def growth(rows, features, classes, dtype, asked, reduction, plain):
    torch.manual_seed(0)
    hidden = torch.randn(rows, features).to(dtype).requires_grad_(asked[0])
    weight = torch.randn(classes, features).to(dtype).requires_grad_(asked[1])
    labels = torch.randint(classes, (rows,))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    function = torch.nn.functional.cross_entropy if plain else None
    loss = (function(hidden @ weight.T, labels) if plain
            else slt.linear_cross_entropy(hidden, weight, labels, reduction=reduction))
    leaves = [leaf for leaf in (hidden, weight) if leaf.requires_grad]
    gradients = torch.autograd.grad(loss.sum(), leaves) if leaves else ()
    grown = status("VmHWM") - before
    return grown - sum(g.numel() * g.element_size() for g in gradients)

def measure(rows, features, classes, dtype="float32", asked=(True, True), reduction="mean", plain=False):
    growth(64, features, 100, getattr(torch, dtype), (True, True), "mean", False)
    return growth(rows, features, classes, getattr(torch, dtype), asked, reduction, plain)

print(json.dumps([measure(**case) for case in json.loads(sys.argv[1])]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_memory_beside_the_gradients():
    size = {"rows": 4096, "features": 16, "classes": 16384}  # 256 MiB of logits
    cases = [
        size,
        {**size, "reduction": "none"},
        {**size, "asked": [False, False]},
        {**size, "asked": [True, False]},
        {**size, "dtype": "bfloat16"},
        {**size, "plain": True},
    ]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(cases)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    *found, plain = json.loads(done.stdout)
    assert plain > 400 << 20  # which shows that the measurement sees arrays
    for case, grown in zip(cases, found, strict=False):
        assert grown < 64 << 20, (case, grown / 2**20)
