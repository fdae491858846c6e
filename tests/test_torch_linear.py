"""linear_cross_entropy on tensors in plain eager mode: answers, gradients, what is computed, and what is refused.

Float64 beside the formula in plain operations, so that a difference is wrong and not rounding.
"""

import copy
import gc
import pickle
import weakref

import pytest

torch = pytest.importorskip("torch")

from option_cases import ids  # noqa: E402
from torch_linear_problems import BLOCK_BYTES, formula, linear_problem, ours  # noqa: E402
from torch_problems import OPTION_SETS, REDUCTIONS, assert_close, label_kinds  # noqa: E402

import softmaxloss as sl  # noqa: E402
import softmaxloss.torch as slt  # noqa: E402
from softmaxloss.backends.torch import linear_composed, linear_products, linear_sweep  # noqa: E402

CASES = [(names, kind) for names in OPTION_SETS for kind in label_kinds(names)]
by_cases = pytest.mark.parametrize(("names", "kind"), CASES, ids=ids)
by_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
by_blocks = pytest.mark.parametrize("block_bytes", BLOCK_BYTES.values(), ids=BLOCK_BYTES)


def leaves_of(operands):
    return [operand.clone().requires_grad_() for operand in operands]


def compare(operands, labels, options, **blocks):
    """Compare loss and gradients with the formula's."""
    leaves = leaves_of(operands)
    found, expected = ours(leaves, labels, options | blocks), formula(leaves, labels, options)
    assert_close(found, expected)
    upstream = torch.linspace(-0.5, 2, expected.numel(), dtype=torch.float64).reshape(expected.shape)
    assert_close(*(torch.autograd.grad(loss, leaves, upstream) for loss in (found, expected)))


class TestAnswers:
    @by_cases
    @by_reduction
    @by_blocks
    def test_every_option(self, names, kind, reduction, block_bytes):
        operands, labels, options = linear_problem(names, kind, reduction=reduction)
        compare(operands, labels, options, max_block_bytes=block_bytes)

    @pytest.mark.parametrize("positions", [(2,), (3, 2), (1,)], ids=str)
    @by_reduction
    @by_blocks
    def test_every_option_with_positions(self, positions, reduction, block_bytes):
        for names in ((), *OPTION_SETS[-2:]):
            for kind in label_kinds(names):
                operands, labels, options = linear_problem(names, kind, positions=positions, reduction=reduction)
                compare(operands, labels, options, max_block_bytes=block_bytes)

    @pytest.mark.parametrize("names", [(), *OPTION_SETS[-2:]], ids=ids)
    @by_reduction
    def test_more_rows_and_classes_than_products_take_at_a_time(self, names, reduction):
        rows, classes = linear_products._PRODUCT_ROWS + 1, linear_products._SUM_ROWS + 3
        for block_bytes in (None, 8 * classes * rows - 8):
            operands, labels, options = linear_problem(names, rows=rows, classes=classes, reduction=reduction)
            compare(operands, labels, options, max_block_bytes=block_bytes)
            with torch.no_grad():
                loss = ours(operands, labels, options | {"max_block_bytes": block_bytes})
            assert_close(loss, formula(operands, labels, options))

    @by_reduction
    def test_one_row(self, reduction):
        (hidden, weight, bias), labels, options = linear_problem(reduction=reduction)
        for label in (labels[0], torch.softmax(torch.randn(5).double(), 0)):
            compare([hidden[0], weight, bias], label, options)
        loss = slt.linear_cross_entropy(hidden[0], weight, labels[:1], reduction=reduction)
        assert_close(loss, formula([hidden[0], weight], labels[0], options))

    def test_any_leading_dimensions(self):
        (hidden, weight, bias), labels, _ = linear_problem(rows=12)
        hidden, labels = hidden.reshape(2, 3, 2, 3), labels.reshape(2, 3, 2)
        for reduction in REDUCTIONS:
            found = sl.linear_cross_entropy(hidden, weight, labels, bias=bias, reduction=reduction)
            expected = sl.softmax_cross_entropy(hidden @ weight.T + bias, labels, reduction=reduction)
            assert_close(found, expected)

    def test_operands_of_any_strides(self):
        (hidden, weight, bias), labels, options = linear_problem()
        views = {
            "transposed": lambda x: x.T.contiguous().T if x.ndim == 2 else x,
            "every other": lambda x: x.repeat_interleave(2, 0)[::2],
            "expanded": lambda x: x[:1].expand_as(x),
            "negated by a bit": lambda x: torch.complex(x, -x).conj().imag,
        }
        for view in views.values():
            compare_views([view(operand) for operand in (hidden, weight, bias)], labels, options)

    def test_the_same_bits_as_the_dense_loss_of_the_block(self):
        """The loss of a row is, to the last bit, that of the logits computed."""
        hidden, weight = torch.randn(40, 8), torch.randn(300, 8)
        labels = torch.randint(300, (40,))
        found = sl.linear_cross_entropy(hidden, weight, labels, reduction="none")
        assert (found == sl.softmax_cross_entropy(hidden @ weight.T, labels, reduction="none")).all()

    def test_confident_rows_keep_their_digits(self):
        hidden, weight = torch.tensor([[1.0]]), torch.tensor([[20.0], [0.0], [0.0]])
        assert slt.linear_cross_entropy(hidden, weight, torch.tensor([0])).item() == pytest.approx(4.1223072e-09)

    @by_cases
    def test_and_grad(self, names, kind):
        (hidden, weight, bias), labels, options = linear_problem(names, kind)
        class_weight = options.pop("weight", None)
        for given in (None, bias):
            leaves = leaves_of([hidden, weight] if given is None else [hidden, weight, bias])
            loss, found = sl.linear_cross_entropy_and_grad(
                hidden, weight, labels, bias=given, class_weight=class_weight, **options
            )
            expected = formula(leaves, labels, {"weight": class_weight} | options)
            assert_close(loss, expected.detach())
            gradients = torch.autograd.grad(expected, leaves)
            assert_close((found.hidden, found.weight), gradients[:2])
            assert_close(found.bias, gradients[2]) if given is not None else None
            assert found.bias is not None or given is None
            assert not loss.requires_grad

    @by_reduction
    @pytest.mark.parametrize("names", [(), *((n,) for n in ("sample_weight", "class_weight", "z_loss", "focal_gamma"))])
    def test_few_rows_of_many_classes(self, names, reduction, monkeypatch):
        """Their logits are kept in the memory of the weight's gradient."""
        taken = []
        inner = linear_products.Products.taken_out
        monkeypatch.setattr(linear_products.Products, "taken_out", lambda *a: taken.append(1) or inner(*a))
        operands, labels, options = linear_problem(names, rows=9, features=9, classes=50, reduction=reduction)
        compare(operands, labels, options, max_block_bytes=50 * 8 * 4)
        assert len(taken) == 2
        compare([operands[0], operands[1].T.contiguous().T], labels, options, max_block_bytes=50 * 8 * 2)
        labels[:] = -100
        compare(operands, labels, {"reduction": "sum"}, max_block_bytes=50 * 8 * 2)

    def test_masked_classes_among_few_rows(self):
        operands, labels, _ = linear_problem(rows=9, features=9, classes=50)
        operands[2][10:] = -torch.inf
        labels[:] = 3
        leaves, right = leaves_of(operands), leaves_of(operands)
        found = ours(leaves, labels, {"max_block_bytes": 50 * 8 * 4})
        expected = torch.nn.functional.cross_entropy(torch.nn.functional.linear(*right), labels)
        assert_close(found, expected)
        assert_close(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, right))

    def test_mixed_dtypes_are_promoted(self):
        (hidden, weight, bias), labels, _ = linear_problem()
        leaves = hidden.float().requires_grad_(), weight.requires_grad_()
        loss = sl.linear_cross_entropy(*leaves, labels)
        assert loss.dtype == torch.float64
        assert [g.dtype for g in torch.autograd.grad(loss, leaves)] == [torch.float32, torch.float64]
        found = sl.linear_cross_entropy_and_grad(hidden.float(), weight, labels, bias=bias.half())[1]
        assert [g.dtype for g in found] == [torch.float32, torch.float64, torch.float16]
        integers = sl.linear_cross_entropy(torch.ones(6, 3, dtype=torch.long), weight, labels)
        assert_close(integers, sl.linear_cross_entropy(torch.ones(6, 3).double(), weight, labels))


def compare_views(operands, labels, options):
    leaves = [operand.detach().requires_grad_() for operand in operands]
    copies = [operand.detach().clone().contiguous().requires_grad_() for operand in operands]
    found, expected = ours(leaves, labels, options), formula(copies, labels, options)
    assert_close(found, expected)
    assert_close(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, copies))


class TestWhatIsAsked:
    """Gradients for what asks for them, in so many products; each complaint about others' losses is a test."""

    @pytest.fixture
    def products(self, monkeypatch):
        """Count the products that are as large as the logits' own, by what comes out of them."""
        counts = []

        def counted(method, weight):
            inner = getattr(linear_products.Products, method)

            def call(self, *arguments):
                counts.append(weight(self))
                return inner(self, *arguments)

            monkeypatch.setattr(linear_products.Products, method, call)

        counted("tensor_of_logits", lambda _: 1)
        counted("add", lambda self: sum(self._asked[:2]))
        return counts

    @pytest.mark.parametrize("asked", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1)], ids=str)
    @by_reduction
    def test_gradients_of_some(self, asked, reduction, products):
        operands, labels, options = linear_problem(reduction=reduction)
        leaves = [operand.clone().requires_grad_(bool(wanted)) for operand, wanted in zip(operands, asked, strict=True)]
        found, expected = ours(leaves, labels, options), formula(leaves, labels, options)
        assert_close(found, expected)
        asking = [leaf for leaf in leaves if leaf.requires_grad]
        assert found.requires_grad == bool(asking)
        if asking:
            upstream = torch.linspace(0.5, 2, expected.numel(), dtype=torch.float64).reshape(expected.shape)
            assert_close(*(torch.autograd.grad(loss, asking, upstream) for loss in (found, expected)))
        again = 1 if reduction == "none" and asking else 0  # the logits, when the rows' upstream is known
        assert sum(products) == 1 + sum(asked[:2]) + again

    def test_no_gradients_without_grad_mode(self, products):
        operands, labels, options = linear_problem()
        leaves = leaves_of(operands)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert not ours(leaves, labels, options).requires_grad
        assert sum(products) == 2

    def test_a_mask_times_the_rows_losses(self):
        """Rows weighted after the loss, some ignored: gradients are not zero, nor by the first row's weight."""
        torch.manual_seed(0)
        hidden, weight = torch.randn(2, 4, 10).double(), torch.randn(15, 10).double()
        labels = torch.randint(15, (2, 4))
        labels[0, :2] = labels[1, 0] = -100
        mask = torch.tensor([[0, 1, 1, 0.5], [0, 0, 1, 2]]).double()
        leaves = leaves_of([hidden.flatten(0, 1), weight])
        gradients = []
        for function in (ours, formula):
            loss = (function(leaves, labels.flatten(), {"reduction": "none"}) * mask.flatten()).sum() / mask.sum()
            gradients.append(torch.autograd.grad(loss, leaves))
        assert_close(*gradients)
        assert all((g != 0).any() for g in gradients[0])

    def test_many_ignored_labels_do_not_zero_the_gradient(self):
        operands, labels, _ = linear_problem(rows=64)
        labels[:] = -100
        labels[37] = 2
        compare(operands, labels, {"reduction": "none"})
        compare(operands, labels, {"reduction": "mean"})
        leaves = leaves_of(operands)
        ours(leaves, labels, {"reduction": "none"}).sum().backward()
        assert leaves[1].grad.abs().sum() > 0

    def test_none_keeps_the_rows(self):
        operands, labels, _ = linear_problem(rows=20)
        assert ours(operands, labels, {"reduction": "none"}).shape == (20,)

    def test_weights_of_tokens_in_the_loss(self):
        """A weighted mean over tokens, in three products: the weights and their sum are known beforehand."""
        operands, labels, options = linear_problem(("sample_weight",))
        compare(operands, labels, options)

    def test_weights_of_tokens_and_classes(self):
        operands, labels, options = linear_problem(("sample_weight", "class_weight"))
        compare(operands, labels, options)

    def test_ignored_rows_cost_nothing_and_reach_nothing(self, products):
        """What padding holds is nobody's business: NaN there is in no gradient."""
        (hidden, weight, bias), labels, _ = linear_problem(rows=12)
        labels[::2] = -100
        broken = hidden.clone()
        broken[::2] = torch.nan
        for reduction in REDUCTIONS:
            leaves, clean = leaves_of([broken, weight, bias]), leaves_of([hidden, weight, bias])
            losses = [ours(each, labels, {"reduction": reduction}) for each in (leaves, clean)]
            assert_close(*losses)
            found, expected = (
                torch.autograd.grad(loss.sum(), each) for loss, each in zip(losses, (leaves, clean), strict=True)
            )
            assert_close(found, expected)
            assert (found[0][::2] == 0).all()

    def test_all_rows_ignored(self):
        operands, labels, _ = linear_problem()
        labels[:] = -100
        for reduction in REDUCTIONS:
            leaves = leaves_of(operands)
            loss = ours(leaves, labels, {"reduction": reduction})
            assert loss.isnan() if reduction == "mean" else (loss == 0).all()
            assert all((g == 0).all() for g in torch.autograd.grad(loss.sum(), leaves))

    def test_a_rank_without_labels_stays_finite_by_sum(self):
        """As in training over several processes, where one batch may hold nothing but padding."""
        operands, labels, _ = linear_problem(("sample_weight",))
        labels[:] = -100
        assert ours(operands, labels, {"reduction": "sum"}) == 0

    def test_tied_weights(self):
        """One matrix is the embedding of tokens and the last layer: its gradient is the sum of both ways."""
        table = torch.randn(7, 4).double()
        tokens, labels = torch.tensor([0, 3, 3, 6]), torch.tensor([1, 2, 0, 5])
        gradients = []
        for function in (ours, formula):
            leaf = table.clone().requires_grad_()
            function([torch.tanh(leaf[tokens]), leaf], labels, {}).backward()
            gradients.append(leaf.grad)
        assert_close(*gradients)

    def test_gradients_of_what_stands_beside_the_product(self):
        """Probabilities, weights of rows and a bias after the softcap learn as well."""
        operands, labels, options = linear_problem(("logit_bias", "sample_weight", "softcap"), "soft")
        for name in ("logit_bias", "sample_weight"):
            options[name] = options[name].requires_grad_()
        labels.requires_grad_()
        leaves = [*leaves_of(operands), labels, options["logit_bias"], options["sample_weight"]]
        losses = [function(leaves[:3], labels, options) for function in (ours, formula)]
        assert_close(*(torch.autograd.grad(loss, leaves) for loss in losses))

    def test_negative_probabilities_are_pytorchs(self):
        """No kernel takes them."""
        operands, _, _ = linear_problem()
        target = torch.randn(6, 5).double()
        for reduction in REDUCTIONS:
            compare(operands, target, {"reduction": reduction}, max_block_bytes=400)


class TestGraph:
    @by_reduction
    def test_a_retained_graph(self, reduction):
        operands, labels, options = linear_problem(reduction=reduction)
        leaves = leaves_of(operands)
        loss = ours(leaves, labels, options).sum()
        expected = torch.autograd.grad(formula(leaves, labels, options).sum(), leaves)
        first = torch.autograd.grad(loss, leaves, retain_graph=True)
        kept = [g.clone() for g in first]
        second = torch.autograd.grad(loss, leaves, torch.tensor(3.0).double(), retain_graph=True)
        assert_close(list(first), kept, 0, 0)  # nothing wrote over what was given away
        assert_close(kept, list(expected))
        assert_close(list(second), [3 * g for g in expected])

    def test_gradients_add_up(self):
        operands, labels, options = linear_problem()
        leaves, right = leaves_of(operands), leaves_of(operands)
        for _ in range(3):
            ours(leaves, labels, options).backward()
            formula(right, labels, options).backward()
        assert_close([leaf.grad for leaf in leaves], [leaf.grad for leaf in right])

    @pytest.mark.parametrize("changed", range(3))
    def test_what_changes_before_backward_is_no_wrong_gradient(self, changed):
        operands, labels, options = linear_problem(reduction="none")
        leaves = leaves_of(operands)
        given = [leaf * 1 for leaf in leaves]
        loss = ours(given, labels, options).sum()
        with torch.no_grad():
            given[changed].mul_(0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(loss, leaves)

    def test_a_graph_that_is_dropped_frees_its_memory(self):
        operands, labels, options = linear_problem()
        leaves = leaves_of(operands)
        given = leaves[0] * 1
        watched = weakref.ref(given)
        loss = ours([given, *leaves[1:]], labels, options)
        del given
        loss.backward()
        del loss
        gc.collect()
        assert watched() is None

    def test_double_backward(self):
        for names, kind in CASES[:2] + CASES[-2:]:
            for reduction in REDUCTIONS:
                operands, labels, options = linear_problem(names, kind, reduction=reduction)
                leaves = leaves_of(operands)
                products = []
                for function in (ours, formula):
                    loss = function(leaves, labels, options)
                    upstream = torch.linspace(0.5, 2, loss.numel(), dtype=torch.float64).reshape(loss.shape)
                    upstream.requires_grad_()
                    first = torch.autograd.grad(loss, leaves, upstream, create_graph=True)
                    product = sum((g * torch.arange(1, g.numel() + 1).reshape(g.shape)).sum() for g in first)
                    products.append(torch.autograd.grad(product, [*leaves, upstream]))
                assert_close(*products, rtol=1e-10, atol=1e-10)

    def test_saved_tensors_may_be_packed(self):
        operands, labels, options = linear_problem(reduction="none")
        leaves, packed = leaves_of(operands), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(1) or t.clone(), lambda t: t):
            loss = ours(leaves, labels, options).sum()
        assert packed
        expected = torch.autograd.grad(formula(leaves, labels, options).sum(), leaves)
        assert_close(torch.autograd.grad(loss, leaves), expected)


class TestShift:
    """Each position predicts a token after it."""

    @staticmethod
    def problem(batch=(3,), length=7):
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn((*batch, length, 4), generator=generator, dtype=torch.float64)
        weight = torch.randn((5, 4), generator=generator, dtype=torch.float64)
        tokens = torch.randint(5, (*batch, length), generator=generator)
        tokens.view(-1)[3] = -100
        return hidden, weight, tokens

    @pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
    @pytest.mark.parametrize("shift", [1, 2, 6])
    @by_reduction
    def test_pairs(self, batch, shift, reduction):
        hidden, weight, tokens = self.problem(batch)
        token_weight = torch.rand(tokens.shape, dtype=torch.float64)
        for given in (None, token_weight):
            leaves = leaves_of([hidden, weight])
            options = {"reduction": reduction, "sample_weight": given}
            found = slt.linear_cross_entropy(*leaves, tokens, shift=shift, **options)
            logits = leaves[0][..., :-shift, :] @ leaves[1].T
            options["sample_weight"] = None if given is None else given[..., shift:]
            expected = sl.softmax_cross_entropy(logits, tokens[..., shift:], **options)
            assert_close(found, expected)
            upstream = torch.rand(found.shape, dtype=torch.float64)
            assert_close(*(torch.autograd.grad(loss, leaves, upstream) for loss in (found, expected)))

    def test_further_than_there_are_tokens(self):
        hidden, weight, tokens = self.problem()
        for shift in (7, 9):
            assert slt.linear_cross_entropy(hidden, weight, tokens, shift=shift, reduction="sum") == 0
            assert slt.linear_cross_entropy(hidden, weight, tokens, shift=shift).isnan()
            rows = slt.linear_cross_entropy(hidden, weight, tokens, shift=shift, reduction="none")
            assert rows.shape == (3, 0)

    def test_unsigned_tokens_and_an_ignored_class(self):
        hidden, weight, tokens = self.problem()
        tokens = tokens.clamp(min=0)
        expected = slt.linear_cross_entropy(hidden, weight, tokens, shift=1)
        assert_close(slt.linear_cross_entropy(hidden, weight, tokens.to(torch.uint8), shift=1), expected)
        found = slt.linear_cross_entropy(hidden, weight, tokens, shift=1, ignore_index=2)
        logits, labels = (hidden[:, :-1] @ weight.T).flatten(0, 1), tokens[:, 1:].flatten()
        assert_close(found, torch.nn.functional.cross_entropy(logits, labels, ignore_index=2))

    def test_the_last_positions_are_in_no_product(self):
        hidden, weight, tokens = self.problem()
        hidden[:, -1] = torch.nan
        leaves = leaves_of([hidden, weight])
        loss = slt.linear_cross_entropy(*leaves, tokens, shift=1)
        gradients = torch.autograd.grad(loss, leaves)
        assert loss.isfinite()
        assert all(g.isfinite().all() for g in gradients)

    def test_refusals(self):
        hidden, weight, tokens = self.problem()
        soft = torch.softmax(torch.randn(3, 7, 5).double(), -1)
        wrong = {
            "distributions": (hidden, weight, soft, 1),
            "labels shifted already": (hidden, weight, tokens[:, 1:], 1),
            "one row": (hidden[0, 0], weight, tokens[0, 0], 1),
            "positions": (hidden, weight[:, None], tokens, 1),
            "backwards": (hidden, weight, tokens, -1),
            "no number": (hidden, weight, tokens, True),
            "half a token": (hidden, weight, tokens, 0.5),
        }
        for name, (h, w, y, shift) in wrong.items():
            with pytest.raises((ValueError, TypeError)) as error:
                slt.linear_cross_entropy(h, w, y, shift=shift)
            assert isinstance(error.value, RuntimeError), name
            assert "shift" in str(error.value) or "index labels" in str(error.value), name


class TestDtypes:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @by_reduction
    def test_sixteen_bits_are_the_float32_answer_rounded_once(self, dtype, reduction):
        torch.manual_seed(0)
        hidden, weight, bias = torch.randn(50, 24).to(dtype), torch.randn(40, 24).to(dtype), torch.randn(40).to(dtype)
        labels = torch.randint(40, (50,))
        labels[3] = -100
        leaves = leaves_of([hidden, weight, bias])
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        loss = slt.linear_cross_entropy(*leaves[:2], labels, linear_bias=leaves[2], reduction=reduction)
        right = formula(exact, labels, {"reduction": reduction})
        upstream = torch.rand(right.shape).to(dtype)
        found = torch.autograd.grad(loss, leaves, upstream)
        expected = torch.autograd.grad(right, exact, upstream.double())
        half = torch.finfo(dtype).eps / 2
        assert loss.dtype == dtype
        torch.testing.assert_close(loss.double(), right, rtol=half + 1e-5, atol=1e-6)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == dtype
            tiny = torch.finfo(dtype).smallest_normal * half
            torch.testing.assert_close(one.double(), other, rtol=half, atol=2e-6 * float(other.abs().max()) + tiny)

    def test_the_loss_of_sixteen_bits_is_float32(self):
        hidden, weight = torch.randn(8, 4).bfloat16(), torch.randn(5, 4).bfloat16()
        assert sl.linear_cross_entropy(hidden, weight, torch.arange(8) % 5).dtype == torch.float32

    def test_weight_gradients_add_up_in_float32(self):
        """Rows by the thousand, each of which gives less than the last place of what has been added up before."""
        hidden = torch.ones(8192, 1).bfloat16()
        weight = torch.zeros(2, 1).bfloat16().requires_grad_()
        loss = slt.linear_cross_entropy(hidden, weight, torch.zeros(8192).long(), reduction="sum", max_block_bytes=64)
        assert torch.autograd.grad(loss, weight)[0].flatten().tolist() == [-4096.0, 4096.0]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_small_gradients_survive_until_they_are_scaled(self, dtype):
        """As a GradScaler does: what a mean makes too small for 16 bits is multiplied before it is rounded."""
        torch.manual_seed(0)
        hidden, weight = torch.randn(4096, 8).to(dtype), torch.randn(50, 8).to(dtype)
        labels = torch.randint(50, (4096,))
        leaves = leaves_of([hidden, weight])
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        scale = torch.tensor(2.0**14)
        found = torch.autograd.grad(sl.linear_cross_entropy(*leaves, labels) * scale, leaves)
        expected = torch.autograd.grad(formula(exact, labels, {}) * scale, exact)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=2 * torch.finfo(dtype).eps, atol=2.0**-14)


class TestFilter:
    """gradient_filter: what may be left out, and no more."""

    @staticmethod
    def peaked(rows=64, classes=400, features=16):
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn((classes, features), generator=generator)
        labels = torch.randint(20, (rows,), generator=generator)
        hidden = 3 * weight[labels] + torch.randn((rows, features), generator=generator)
        return hidden.double(), weight.double(), labels

    def test_zero_is_exact(self):
        hidden, weight, labels = self.peaked()
        compare([hidden, weight], labels, {}, gradient_filter=0.0)

    @by_reduction
    @pytest.mark.parametrize("block_bytes", [None, 16 * 400 * 8, 100 * 16 * 8])
    def test_the_error_is_bounded(self, reduction, block_bytes):
        """Each entry left out of a row's gradient by the logits is below t, before weights and denominators."""
        hidden, weight, labels = self.peaked()
        threshold = 2.0**-12
        weights = torch.rand(len(labels), dtype=torch.float64)
        leaves = leaves_of([hidden, weight])
        options = {"reduction": reduction, "sample_weight": weights}
        found = ours(leaves, labels, {**options, "gradient_filter": threshold, "max_block_bytes": block_bytes})
        expected = formula(leaves, labels, options)
        assert_close(found, expected)
        by_hidden, by_weight = (
            one - other
            for one, other in zip(
                torch.autograd.grad(found.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
            )
        )
        share = weights / weights.sum() if reduction == "mean" else weights
        assert by_weight.abs().max() > 0  # something was left out
        assert (by_hidden.abs() <= threshold * share[:, None] * weight.abs().sum(0) + 1e-12).all()
        assert (by_weight.abs() <= threshold * (share[:, None] * hidden.abs()).sum(0) + 1e-12).all()

    def test_refusals(self):
        hidden, weight, labels = self.peaked()
        for wrong in (-1.0, float("nan"), float("inf"), "a"):
            with pytest.raises((ValueError, TypeError), match="gradient_filter"):
                slt.linear_cross_entropy(hidden, weight, labels, gradient_filter=wrong)


class TestRefusals:
    @by_blocks
    def test_a_label_error_names_the_place(self, block_bytes):
        (hidden, weight, _), labels, _ = linear_problem()
        labels[4] = 5
        with pytest.raises(sl.LabelError, match=r"labels\[4\] is 5"):
            slt.linear_cross_entropy(hidden, weight, labels, max_block_bytes=block_bytes)
        with pytest.raises(sl.LabelError, match=r"labels\[1, 1\] is 5"):
            sl.linear_cross_entropy(hidden.reshape(2, 3, 3), weight, labels.reshape(2, 3))

    def test_a_label_error_with_positions(self):
        (hidden, weight, _), labels, _ = linear_problem(positions=(4,))
        labels[2, 3] = -7
        with pytest.raises(sl.LabelError, match=r"labels\[2, 3\] is -7"):
            slt.linear_cross_entropy(hidden, weight, labels)

    @by_blocks
    def test_rows_that_are_no_distributions(self, block_bytes):
        (hidden, weight, _), labels, _ = linear_problem(kind="soft")
        labels[4] *= 2
        with pytest.raises(ValueError, match=r"row \[4\] sums to 2"):
            sl.linear_cross_entropy(hidden, weight, labels, max_block_bytes=block_bytes)

    @pytest.mark.parametrize("wrong", [0, -5, 1.5, "a", True])
    def test_block_bytes(self, wrong):
        (hidden, weight, _), labels, _ = linear_problem()
        with pytest.raises((ValueError, TypeError), match="max_block_bytes"):
            slt.linear_cross_entropy(hidden, weight, labels, max_block_bytes=wrong)

    def test_mixed_dtypes_are_pytorchs_error(self):
        (hidden, weight, bias), labels, _ = linear_problem()
        with pytest.raises(RuntimeError, match="weight has dtype"):
            slt.linear_cross_entropy(hidden.float(), weight, labels)
        with pytest.raises(RuntimeError, match="bias has dtype"):
            slt.linear_cross_entropy(hidden, weight, labels, linear_bias=bias.float())

    def test_other_kinds_of_arrays(self):
        (hidden, weight, _), labels, _ = linear_problem()
        with pytest.raises(TypeError, match="weight is a ndarray"):
            sl.linear_cross_entropy(hidden, weight.numpy(), labels)


class TestModule:
    OPTIONS = {  # noqa: RUF012
        "weight": torch.rand(5),
        "reduction": "sum",
        "ignore_index": -1,
        "label_smoothing": 0.2,
        "temperature": 2.0,
        "softcap": 10.0,
        "logit_bias": torch.randn(5),
        "z_loss": 0.1,
        "max_block_bytes": 1 << 20,
        "gradient_filter": 0.0,
    }

    @staticmethod
    def module(**options):
        torch.manual_seed(0)
        return slt.LinearCrossEntropyLoss(3, 5, bias=True, **options)

    def test_is_the_function(self):
        module = self.module(**self.OPTIONS)
        hidden, labels = torch.randn(6, 3), torch.tensor([0, 1, -1, 4, 2, 2])
        layer = module.linear
        expected = slt.linear_cross_entropy(hidden, layer.weight, labels, linear_bias=layer.bias, **self.OPTIONS)
        assert_close(module(hidden, labels), expected, 0, 0)
        module(hidden, labels).backward()
        assert layer.weight.grad.shape == (5, 3)

    def test_is_pytorchs(self):
        if not hasattr(torch.nn, "LinearCrossEntropyLoss"):
            pytest.skip("this version of PyTorch has none")
        for options in ({}, {"bias": True}, {"out_features": (4, 2), "bias": True, "weight": torch.rand(5)}):
            torch.manual_seed(0)
            right = torch.nn.LinearCrossEntropyLoss(3, 5, **options)
            module = slt.LinearCrossEntropyLoss(3, 5, **options)
            assert isinstance(module, torch.nn.LinearCrossEntropyLoss)
            assert module.state_dict().keys() == right.state_dict().keys()
            module.load_state_dict(right.state_dict())
            assert repr(module) == repr(right)
            hidden, labels = torch.randn(6, 3), torch.randint(5, (6, *options.get("out_features", ())))
            losses = module(hidden, labels), right(hidden, labels)
            torch.testing.assert_close(*losses)
            gradients = [torch.autograd.grad(x, m.parameters()) for x, m in zip(losses, (module, right), strict=True)]
            torch.testing.assert_close(*gradients)

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
    def test_copies(self, copied):
        module = self.module(**self.OPTIONS)
        hidden, labels = torch.randn(6, 3), torch.tensor([0, 1, -1, 4, 2, 2])
        other = copied(module)
        assert_close(other(hidden, labels), module(hidden, labels), 0, 0)
        assert repr(other) == repr(module)

    def test_moves_with_its_model(self):
        module = torch.nn.ModuleList([self.module(logit_bias=torch.rand(5))]).double()[0]
        assert module(torch.randn(6, 3).double(), torch.arange(6) % 5).dtype == torch.float64
        assert (
            module.to("meta")(torch.randn(6, 3).double().to("meta"), torch.arange(6).to("meta")).device.type == "meta"
        )

    def test_its_layer_may_be_tied(self):
        embedding, module = torch.nn.Embedding(5, 3), self.module(shift=1)
        module.linear.weight = embedding.weight
        tokens = torch.randint(5, (2, 6))
        module(embedding(tokens), tokens).backward()
        assert embedding.weight.grad is module.linear.weight.grad
        assert len({id(p) for p in [*embedding.parameters(), *module.parameters()]}) == 2

    def test_refusals(self):
        for wrong in ({"weight": torch.rand(4)}, {"label_smoothing": 1.5}, {"label_smoothing": -0.1}):
            with pytest.raises(RuntimeError):
                self.module(**wrong)

    def test_trains(self):
        """Steps on the loss lower it as much as PyTorch's own do."""
        torch.manual_seed(0)
        inputs, labels = torch.randn(64, 3).double(), torch.randint(5, (64,))
        losses = []
        for function in (ours, formula):
            weight = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
            optimizer = torch.optim.Adam([weight], lr=0.1)
            for _ in range(20):
                optimizer.zero_grad()
                loss = function([inputs, weight], labels, {})
                loss.backward()
                optimizer.step()
            losses.append(loss.detach())
        assert_close(*losses)


class TestOtherDevices:
    """The sweep in PyTorch's operations, with the host taken for a device of another kind."""

    @pytest.fixture(autouse=True)
    def device(self, monkeypatch):
        monkeypatch.setattr(linear_sweep, "_by_kernels", lambda *_: pytest.fail("the host's kernels were asked"))
        for module in (linear_composed, sl.backends.torch.linear_problem, sl.backends.torch.problem):
            monkeypatch.setattr(module, "is_plain", lambda *_: False)

    @by_cases
    @by_reduction
    def test_every_option(self, names, kind, reduction):
        for positions in ((), (2,)):
            operands, labels, options = linear_problem(names, kind, positions=positions, reduction=reduction)
            compare(operands, labels, options, max_block_bytes=1000)

    def test_an_invalid_label_is_nan(self):
        operands, labels, _ = linear_problem(rows=8)
        labels[2] = 9
        leaves = leaves_of(operands)
        loss = ours(leaves, labels, {"reduction": "none"})
        assert loss.isnan().tolist() == [i == 2 for i in range(8)]
        assert torch.autograd.grad(loss.sum(), leaves)[0].isnan().all(1).tolist() == loss.isnan().tolist()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
    def test_other_dtypes(self, dtype):
        operands, labels, _ = linear_problem(rows=40)
        leaves = [operand.to(dtype).requires_grad_() for operand in operands]
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        loss, right = ours(leaves, labels, {}), formula(exact, labels, {})
        tolerance = {"rtol": 16 * torch.finfo(dtype).eps, "atol": 2 * torch.finfo(dtype).eps}
        torch.testing.assert_close(loss.double(), right, **tolerance)
        found, expected = torch.autograd.grad(loss, leaves), torch.autograd.grad(right, exact)
        torch.testing.assert_close([g.double() for g in found], list(expected), **tolerance)
