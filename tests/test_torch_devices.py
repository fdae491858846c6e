"""The path of tensors on other devices, on those at hand and on the host as one: answers, memory, no waiting."""

import contextlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from option_cases import ids  # noqa: E402
from torch_problems import OPTION_SETS, REDUCTIONS, assert_close, formula, label_kinds, ours, problem  # noqa: E402

import softmaxloss as sl  # noqa: E402
import softmaxloss.torch as slt  # noqa: E402
from softmaxloss.backends.torch import answers, blocks, doors, quick  # noqa: E402

CASES = [(names, kind) for names in OPTION_SETS for kind in label_kinds(names)]
by_cases = pytest.mark.parametrize(("names", "kind"), CASES, ids=ids)
DEVICES = ["host", *(name for name in ("cuda", "mps") if getattr(torch, name).is_available())]

# What would look at a number of a tensor, and so wait for its device.
WAITS = ["item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__", "__array__"]


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    """A device; for the host, all that tells it from another is made to say that it is one. Blocks are small."""
    monkeypatch.setattr(blocks, "_HOST_BYTES", 100)
    monkeypatch.setattr(blocks, "_DEVICE_BYTES", 100)
    if request.param != "host":
        return request.param
    monkeypatch.setattr(doors, "_is_memory", lambda tensor: False)
    monkeypatch.setattr(quick, "loss", lambda *arguments: None)
    return "cpu"


@contextlib.contextmanager
def nothing_waits(device, monkeypatch):
    def waits(self, *arguments, **options):
        raise AssertionError("a number of a tensor was looked at")

    with monkeypatch.context() as patched:
        for name in WAITS:
            patched.setattr(torch.Tensor, name, waits)
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def moved(device, logits, labels, options):
    """Return a problem on a device; float32 where it has no float64."""

    def there(value):
        if not isinstance(value, torch.Tensor):
            return value
        value = value.float() if device == "mps" and value.is_floating_point() else value
        return value.to(device)

    return there(logits), there(labels), {name: there(value) for name, value in options.items()}


def close(device, found, expected):
    found = [each.cpu().double() for each in found]
    assert_close(found, list(expected), *((1e-4, 1e-5) if device == "mps" else ()))


@by_cases
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_answers_without_waiting(device, monkeypatch, names, kind, reduction):
    """Loss, gradients by all that ask, and the Hessian: no value is looked at, options and labels included."""
    for shape in ((6, 5), (2, 5, 3)):
        given = problem(names, kind, shape, reduction=reduction)
        results = []
        for function, (logits, labels, options) in ((ours, moved(device, *given)), (formula, given)):
            leaves = [logits, *([labels] if kind == "soft" else [])]
            leaves += [options[name] for name in ("sample_weight", "logit_bias") if name in options]
            leaves = [leaf.requires_grad_() for leaf in leaves]
            with nothing_waits(device, monkeypatch) if function is ours else contextlib.nullcontext():
                loss = function(logits, labels, options)
                gradients = torch.autograd.grad(loss.sum(), leaves, create_graph=True)
                second = torch.autograd.grad(gradients[0].square().sum(), leaves, materialize_grads=True)
            for leaf in leaves:
                leaf.requires_grad_(False)
            results.append([each.detach() for each in (loss, *gradients, *second)])
        close(device, *results)


@by_cases
def test_dense_functions_without_waiting(device, monkeypatch, names, kind):
    logits, labels, options = problem(names, kind)
    as_dense = {("class_weight" if name == "weight" else name): value for name, value in options.items()}
    there = moved(device, logits, labels, as_dense)
    on_host = {name: v.numpy() if isinstance(v, torch.Tensor) else v for name, v in as_dense.items()}
    expected = sl.softmax_cross_entropy_and_grad(logits.numpy(), labels.numpy(), **on_host)
    product = sl.hessian_vector_product(logits.numpy(), labels.numpy(), np.cos(logits.numpy()), **on_host)
    with nothing_waits(device, monkeypatch):
        found = sl.softmax_cross_entropy_and_grad(*there[:2], **there[2])
        out = torch.empty_like(there[0])
        also = sl.softmax_cross_entropy_and_grad(*there[:2], out=out, **there[2])
        assert also[1] is out
        direction = sl.hessian_vector_product(*there[:2], there[0].cos(), **there[2])
    close(device, [*found, *also, direction], map(torch.as_tensor, (*expected, *expected, product)))


def test_pieces_without_waiting(device, monkeypatch):
    logits, labels, _ = problem()
    labels = labels.clamp(min=0)
    z, y, _ = moved(device, logits, labels, {})
    with nothing_waits(device, monkeypatch):
        found = [sl.softmax(z), sl.log_softmax(z, 0, temperature=2.0), sl.logsumexp(z), *sl.row_statistics(z, y)]
    z, y = logits.numpy(), labels.numpy()
    expected = [sl.softmax(z), sl.log_softmax(z, 0, temperature=2.0), sl.logsumexp(z), *sl.row_statistics(z, y)]
    assert found[-1].dtype == torch.int64
    close(device, found, [torch.as_tensor(each).double() for each in expected])


@pytest.mark.parametrize("bad", [5, -1, 2**40])
def test_an_invalid_label_is_nan(device, bad):
    logits, labels, _ = problem()
    labels[1] = bad
    logits, labels, _ = moved(device, logits, labels, {})
    logits.requires_grad_()
    for function in (lambda: slt.cross_entropy(logits, labels, reduction="none"), in_rows(logits, labels)):
        loss = function()
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.isnan().tolist() == [False, True, *[False] * 4]
        assert gradient.isnan().all(1).tolist() == gradient.isnan().any(1).tolist() == loss.isnan().tolist()


def in_rows(logits, labels):
    return lambda: sl.softmax_cross_entropy(logits, labels, reduction="none")


def test_a_row_that_is_no_distribution_is_nan(device):
    logits, labels, _ = problem((), "soft")
    labels[1] *= 2
    labels[2, 0] = -labels[2, 0]
    logits, labels, _ = moved(device, logits, labels, {})
    logits.requires_grad_()
    loss = in_rows(logits, labels)()
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isnan().tolist() == gradient.isnan().all(1).tolist() == [False, True, True, *[False] * 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(device, dtype):
    logits, labels, _ = problem(shape=(40, 9))
    z, y, _ = moved(device, logits.to(dtype), labels, {})
    z.requires_grad_()
    loss = slt.cross_entropy(z, y)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.dtype == gradient.dtype == dtype
    exact = z.detach().cpu().double().requires_grad_()
    right = formula(exact, labels, {})
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 1e-6}
    torch.testing.assert_close(loss.cpu().double(), right, **tolerance)
    torch.testing.assert_close(gradient.cpu().double(), torch.autograd.grad(right, exact)[0], **tolerance)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_in_place(device, reduction):
    given = problem(OPTION_SETS[-2], reduction=reduction)
    logits, labels, options = moved(device, *given)
    leaf, right = logits.requires_grad_(), given[0].clone().requires_grad_()
    scores = leaf * 1
    loss = ours(scores, labels, {**options, "inplace": True})
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    assert gradient.data_ptr() == scores.data_ptr()
    expected = formula(right, *given[1:])
    close(device, [loss.detach(), gradient], [expected.detach(), *torch.autograd.grad(expected.sum(), right)])


def test_memory_is_bounded(device, monkeypatch):
    """Beside the gradient only blocks are made: counted by what PyTorch allocates on the host, where it can tell."""
    if device != "cpu":
        pytest.skip("the allocator of the host is asked")
    monkeypatch.setattr(blocks, "_HOST_BYTES", 1 << 16)
    monkeypatch.setattr(blocks, "_DEVICE_BYTES", 1 << 16)
    leaf = torch.randn(1024, 1000, requires_grad=True)
    labels = torch.randint(1000, (1024,))
    size = leaf.numel() * leaf.element_size()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        (gradient,) = torch.autograd.grad(slt.cross_entropy(leaf, labels, z_loss=1e-3, softcap=20.0), leaf)
    now = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    assert size <= most < 1.5 * size
    assert gradient.shape == leaf.shape


def test_answers_are_the_kernels(device):
    """The two paths agree to rounding in float64; an empty batch included."""
    logits, labels, _ = problem(shape=(50, 7))
    z, y, _ = moved(device, logits, labels, {})
    expected = sl.softmax_cross_entropy(logits.numpy(), labels.numpy())
    close(device, [slt.cross_entropy(z, y)], [torch.as_tensor(expected)])
    assert slt.cross_entropy(z[:0], y[:0]).isnan()
    assert slt.cross_entropy(z[:0], y[:0], reduction="none").shape == (0,)


def test_nothing_of_the_host_was_asked(device, monkeypatch):
    """The fixture does what it says: the kernels are out of reach."""

    def kernel(*arguments, **options):
        raise AssertionError("the host's kernel was called")

    monkeypatch.setattr(answers.native, "loss", kernel)
    logits, labels, _ = problem()
    z, y, _ = moved(device, logits, labels, {})
    slt.cross_entropy(z, y)
