"""softmaxloss.torch under what PyTorch does around a function: compile, export, autocast, checkpoints, copies."""

import copy
import io
import pickle
import warnings

import pytest

torch = pytest.importorskip("torch")

from option_cases import ids  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch_problems import OPTION_SETS, REDUCTIONS, assert_close, formula, label_kinds, ours, problem  # noqa: E402

import softmaxloss.torch as slt  # noqa: E402

theirs = torch.nn.functional.cross_entropy
MOST = [
    ((), "index"),
    ((), "soft"),
    *((names, kind) for names in OPTION_SETS[-2:] for kind in label_kinds(names)),
]
by_most = pytest.mark.parametrize(("names", "kind"), MOST, ids=ids)
# What PyTorch 2.13 itself warns of as it compiles and exports.
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def compiled():
    """Compile without a graph break, and forget it all at the end."""
    torch._dynamo.reset()

    def compile_(function, backend="aot_eager", **how):
        return torch.compile(function, fullgraph=True, backend=backend, **how)

    yield compile_
    torch._dynamo.reset()


def loss_and_gradients(loss, *leaves):
    """Return a loss and its gradients by those leaves that are floating."""
    leaves = [leaf.clone().requires_grad_() if leaf.is_floating_point() else leaf for leaf in leaves]
    value = loss(*leaves)
    asking = [leaf for leaf in leaves if leaf.requires_grad]
    return value.detach(), *torch.autograd.grad(value, asking, torch.linspace(1, 2, value.numel()).reshape(value.shape))


class TestCompile:
    @by_most
    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_answers(self, names, kind, reduction, compiled):
        logits, labels, options = problem(names, kind, (6, 5, 2), reduction=reduction)
        found = loss_and_gradients(compiled(lambda z, q: ours(z, q, options)), logits, labels)
        assert_close(found, loss_and_gradients(lambda z, q: formula(z, q, options), logits, labels))

    def test_gradients_of_tensor_options(self, compiled):
        logits, labels, options = problem(("sample_weight", "logit_bias", "z_loss"))
        learnt = options.pop("sample_weight"), options.pop("logit_bias")

        def with_options(function):
            return lambda z, s, b: function(z, labels, {**options, "sample_weight": s, "logit_bias": b})

        found = loss_and_gradients(compiled(with_options(ours)), logits, *learnt)
        assert_close(found, loss_and_gradients(with_options(formula), logits, *learnt))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_other_dtypes_are_as_eager(self, dtype, compiled):
        logits, labels, options = problem(dtype=dtype)
        found = loss_and_gradients(compiled(lambda z: ours(z, labels, options)), logits)
        expected = loss_and_gradients(lambda z: ours(z, labels, options), logits)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype == dtype
            torch.testing.assert_close(one, other)

    def test_shapes_that_change(self, compiled):
        loss = compiled(slt.cross_entropy, dynamic=True)
        for shape in ((6, 5), (7, 5), (9, 11), (3, 4)):
            logits, labels, _ = problem(shape=shape)
            assert_close(loss_and_gradients(loss, logits, labels), loss_and_gradients(theirs, logits, labels))

    def test_a_training_step_in_one_graph(self, compiled):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 4).double()
        criterion = slt.CrossEntropyLoss(weight=torch.rand(4).double(), label_smoothing=0.1)
        reference = torch.nn.CrossEntropyLoss(weight=criterion.weight, label_smoothing=0.1)
        x, y = torch.randn(8, 3).double(), torch.arange(8) % 4
        gradients = []
        for step in (compiled(lambda: criterion(model(x), y)), lambda: reference(model(x), y)):
            gradients.append(torch.autograd.grad(step(), model.parameters()))
        assert_close(*gradients)

    def test_transforms_inside(self, compiled):
        logits, labels, _ = problem()
        for function in (
            lambda z: torch.func.grad(slt.cross_entropy)(z, labels),
            lambda z: torch.func.vmap(torch.func.grad(slt.cross_entropy))(z, labels),
        ):
            assert_close(compiled(function)(logits), function(logits))

    def test_an_invalid_label_is_no_number(self, compiled):
        """NaN, loss and gradient, or an error: PyTorch raises one too."""
        logits, labels, _ = problem()
        labels[1] = 5
        try:
            loss, gradient = loss_and_gradients(
                compiled(lambda z: slt.cross_entropy(z, labels, reduction="none")), logits
            )
        except IndexError as error:
            assert "labels[1] is 5" in str(error)  # noqa: PT017
            return
        assert loss.isnan().tolist() == [False, True, *[False] * 4]
        assert gradient.isnan().all(1).tolist() == gradient.isnan().any(1).tolist() == loss.isnan().tolist()

    @quiet
    def test_inductor(self, compiled):
        """The compiler that users get; it needs a C++ compiler at run time."""
        logits, labels, options = problem(OPTION_SETS[-2])
        loss = compiled(lambda z: ours(z.sin(), labels, options), backend="inductor")
        assert_close(
            loss_and_gradients(loss, logits), loss_and_gradients(lambda z: formula(z.sin(), labels, options), logits)
        )


@quiet
class TestExport:
    class Model(torch.nn.Module):
        def __init__(self, **options):
            super().__init__()
            self.linear = torch.nn.Linear(3, 5).double()
            self.criterion = slt.CrossEntropyLoss(**options)

        def forward(self, x, y):
            return self.criterion(self.linear(x), y)

    @pytest.mark.parametrize("strict", [False, True])
    def test_saved_and_loaded(self, strict):
        model = self.Model(label_smoothing=0.1, z_loss=1e-2, logit_bias=torch.randn(5).double())
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
    def test_the_loss_is_float32(self, dtype):
        logits, labels = torch.randn(7, 9), torch.arange(7) % 9
        gradients = []
        for function in (slt.cross_entropy, theirs):
            leaf = logits.to(dtype).requires_grad_()
            with torch.autocast("cpu", dtype=dtype):
                loss = function(leaf, labels)
            assert loss.dtype == torch.float32
            gradients.append((loss, *torch.autograd.grad(loss, leaf)))
        assert gradients[0][1].dtype == dtype
        torch.testing.assert_close(*gradients, rtol=2.0**-7, atol=1e-6)
        torch.testing.assert_close(gradients[0][0], gradients[1][0], rtol=1e-5, atol=0)

    def test_a_layer_in_16_bits(self):
        torch.manual_seed(0)
        x, y = torch.randn(16, 8), torch.arange(16) % 4
        layer = torch.nn.Linear(8, 4)
        gradients = []
        for function in (slt.cross_entropy, theirs):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = function(layer(x), y, label_smoothing=0.1)
            gradients.append(torch.autograd.grad(loss, layer.parameters()))
        torch.testing.assert_close(*gradients, rtol=2.0**-6, atol=1e-4)

    def test_float64_stays(self):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, labels, _ = problem()
            assert slt.cross_entropy(logits, labels).dtype == theirs(logits, labels).dtype

    def test_grad_scaler_keeps_small_gradients(self):
        """A float16 gradient rounded before it is multiplied by the scaler's 2^16 would be 0 nearly everywhere here."""
        torch.manual_seed(0)
        logits = (3 * torch.randn(4096, 50)).half()
        labels = torch.randint(50, (4096,))
        exact = logits.double().requires_grad_()
        (right,) = torch.autograd.grad(2.0**16 * theirs(exact, labels), exact)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        leaf = logits.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.float16):
            scaler.scale(slt.cross_entropy(leaf, labels)).backward()
        assert (right.half() != 0).double().mean() > 0.999
        assert ((right / 2**16).half() == 0).double().mean() > 0.2
        torch.testing.assert_close(leaf.grad.double(), right, rtol=2.0**-10, atol=2.0**-24)


class TestModes:
    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    @by_most
    def test_without_gradients(self, mode, names, kind):
        logits, labels, options = problem(names, kind)
        logits.requires_grad_()
        with mode():
            loss = ours(logits, labels, options)
        assert not loss.requires_grad
        assert_close(loss, formula(logits, labels, options).detach())

    def test_inference_tensors_later(self):
        with torch.inference_mode():
            logits, labels, _ = problem()
        assert_close(slt.cross_entropy(logits, labels), theirs(logits, labels))

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpoint(self, reentrant):
        logits, labels, _ = problem()
        gradients = []
        for function in (slt.cross_entropy, theirs):
            leaf = logits.clone().requires_grad_()
            loss = checkpoint(lambda z, f=function: f(z.sin(), labels), leaf, use_reentrant=reentrant)
            loss.backward()
            gradients.append(leaf.grad)
        assert_close(*gradients)

    def test_saved_tensors_may_be_packed(self):
        """As in torch.autograd.graph.save_on_cpu."""
        logits, labels, _ = problem()
        leaf, packed = logits.clone().requires_grad_(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(1) or t.clone(), lambda t: t):
            loss = slt.cross_entropy(leaf, labels)
        assert packed
        assert_close(torch.autograd.grad(loss, leaf), torch.autograd.grad(theirs(leaf, labels), leaf))

    def test_anomaly_detection(self):
        logits, labels, _ = problem()
        with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly():
            loss_and_gradients(slt.cross_entropy, logits, labels)

    def test_tensors_kept_from_a_transform_that_has_ended(self):
        logits, labels, _ = problem()
        kept = []

        def keep(z):
            kept.extend((z, 2 * z))
            return z.sum()

        torch.func.grad(keep)(logits.clone())
        for tensor in kept:
            assert_close(slt.cross_entropy(tensor, labels), theirs(tensor, labels))
        torch.func.grad(lambda z, y: (kept.append(y), z.sum())[1])(logits.clone(), labels)
        assert_close(slt.cross_entropy(logits, kept[-1]), theirs(logits, labels))

    def test_a_subclass_of_tensors_is_asked(self):
        class Noted(torch.Tensor):
            calls = 0

            @classmethod
            def __torch_function__(cls, function, types, arguments=(), options=None):
                cls.calls += 1
                return super().__torch_function__(function, types, arguments, options or {})

        logits, labels, _ = problem()
        loss = slt.cross_entropy(logits.as_subclass(Noted), labels)
        assert Noted.calls
        assert_close(loss.as_subclass(torch.Tensor), theirs(logits, labels))


@pytest.mark.parametrize("kind", ["index", "soft"])
@pytest.mark.parametrize("names", [(), OPTION_SETS[-1]], ids=ids)
def test_meta_tensors(names, kind):
    """What would look at a number, and so wait for a device, raises here."""
    logits, labels, options = problem(names, kind)

    def to_meta(value):
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    leaf = logits.to("meta").requires_grad_()
    for reduction in REDUCTIONS:
        on_meta = {name: to_meta(value) for name, value in options.items()} | {"reduction": reduction}
        loss = ours(leaf, labels.to("meta"), on_meta)
        assert loss.shape == (logits.shape[:1] if reduction == "none" else ())
        assert (loss.device.type, loss.dtype) == ("meta", logits.dtype)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf, create_graph=True)
        assert (gradient.shape, gradient.device.type) == (logits.shape, "meta")
        gradient.square().sum().backward()


class TestModule:
    OPTIONS = {  # noqa: RUF012
        "weight": torch.rand(5).double(),
        "reduction": "sum",
        "ignore_index": -1,
        "label_smoothing": 0.2,
        "temperature": 2.0,
        "softcap": 10.0,
        "logit_bias": torch.randn(5).double(),
        "z_loss": 0.1,
    }

    @staticmethod
    def inputs():
        logits, labels, _ = problem()
        return logits, torch.where(labels < 0, -1, labels)

    def test_is_the_function(self):
        logits, labels = self.inputs()
        module = slt.CrossEntropyLoss(**self.OPTIONS)
        assert isinstance(module, torch.nn.Module)
        assert_close(module(logits, labels), slt.cross_entropy(logits, labels, **self.OPTIONS), 0, 0)

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
    def test_copies(self, copied):
        logits, labels = self.inputs()
        module = slt.CrossEntropyLoss(**self.OPTIONS)
        other = copied(module)
        assert_close(other(logits, labels), module(logits, labels), 0, 0)
        assert repr(other) == repr(module)

    def test_state_is_pytorchs(self):
        """A checkpoint of a model with PyTorch's module loads into one with ours, and the other way round."""
        weight = torch.rand(5).double()
        right, module = torch.nn.CrossEntropyLoss(weight), slt.CrossEntropyLoss(torch.ones(5).double())
        assert module.state_dict().keys() == right.state_dict().keys()
        module.load_state_dict(right.state_dict())
        assert (module.weight == weight).all()
        right.load_state_dict(module.state_dict())
        assert slt.CrossEntropyLoss().state_dict().keys() == torch.nn.CrossEntropyLoss().state_dict().keys()

    def test_moves_with_its_model(self):
        model = torch.nn.ModuleList([slt.CrossEntropyLoss(torch.rand(5), logit_bias=torch.rand(5))]).double()
        logits, labels, _ = problem()
        assert model[0].weight.dtype == torch.float64
        assert model[0](logits, labels).dtype == torch.float64
        assert model.to("meta")[0](logits.to("meta"), labels.to("meta")).device.type == "meta"

    def test_deprecated_names(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert slt.CrossEntropyLoss(size_average=False).reduction == "sum"
            assert slt.CrossEntropyLoss(None, None, -100, False).reduction == "none"
