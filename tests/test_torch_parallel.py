"""Losses whose classes are spread over processes, against the same loss in one process."""

import pytest

torch = pytest.importorskip("torch")

import parallel_cases as cases  # noqa: E402
from torch_problems import assert_close  # noqa: E402

import softmaxloss as sl  # noqa: E402

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="this PyTorch has no gloo"
)


@pytest.fixture(scope="module", params=[2, 3], ids=lambda processes: f"{processes} processes")
def found(request, tmp_path_factory):
    """What each process finds of all cases; the processes are started once."""
    return cases.run(tmp_path_factory.mktemp("parallel"), request.param, "all")


def numbered(option_cases):
    """Return parameters for a test: each case with its number."""
    return [
        pytest.param(number, case, id=f"{'+'.join(case[0]) or 'plain'}-{case[1]}-{case[2]}")
        for number, case in enumerate(option_cases)
    ]


def whole(answers, name):
    """Return one of the answers of all processes as that of one: slices put together, the rest the same in all."""
    parts = [answer[name] for answer in answers]
    if name in ("logits", "labels", "logit_bias"):
        return torch.cat(parts, -1)
    if name in ("weight", "bias"):
        return torch.cat(parts)
    for part in parts[1:]:
        assert torch.equal(part.nan_to_num(-1.0), parts[0].nan_to_num(-1.0))
    return parts[0]


def assert_answers(answers, expected, **tolerance):
    assert all(answer.keys() == expected.keys() for answer in answers)
    for name, value in expected.items():
        assert_close(whole(answers, name), value, **tolerance)


@pytest.mark.parametrize("way", cases.WAYS)
@pytest.mark.parametrize(("number", "case"), numbered(cases.option_cases()))
def test_is_the_loss_of_one_process(found, number, case, way):
    logits, labels, options = cases.leaves_of(*cases.option_problem(case))
    loss = sl.softmax_cross_entropy(logits, labels, **options)
    expected = cases.answer_of(loss, logits=logits, **cases.learned_of(labels, options))
    assert_answers([theirs[way]["options"][number] for theirs in found], expected)


@pytest.mark.parametrize("way", cases.WAYS)
@pytest.mark.parametrize(("number", "case"), numbered(cases.linear_cases()))
def test_linear_is_the_loss_of_one_process(found, number, case, way):
    case = cases.option_problem(case)
    hidden, weight, bias = cases.linear_leaves(case)
    _, labels, options = cases.leaves_of(*case, learned=way == "formula")
    loss = sl.softmax_cross_entropy(torch.nn.functional.linear(hidden, weight, bias), labels, **options)
    expected = cases.answer_of(loss, hidden=hidden, weight=weight, bias=bias, **cases.learned_of(labels, options))
    assert_answers([theirs[way]["linear"][number] for theirs in found], expected)


@pytest.mark.parametrize("way", cases.WAYS)
@pytest.mark.parametrize("name", cases.special_problems())
def test_special_problems(found, name, way):
    logits, labels, options = cases.leaves_of(*cases.special_problems()[name], learned=False)
    loss = sl.softmax_cross_entropy(logits, labels, **options)
    expected = cases.answer_of(loss, logits=logits, **cases.learned_of(labels, options))
    # Every digit of what is tiny, too.
    rounding = {torch.float64: 1e-11, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[logits.dtype]
    assert_answers([theirs[way]["special"][name] for theirs in found], expected, rtol=rounding, atol=1e-30)


FAULTS = {
    "label": ("LabelError", r"labels[2] is 7; with 7 classes a label is from 0 to 6"),
    "label, sizes given": ("LabelError", r"labels[2] is 7"),
    "label of one process": ("LabelError", r"labels[2] is 7"),
    "label of one process, sizes given": ("LabelError", r"labels[2] is 7"),
    "option of one process": ("ValueError", "temperature is 0.0"),
    "rows": ("ValueError", "[6, 5"),
    "sizes": ("ValueError", "sizes are (9, 9"),
    "class weights of all classes": ("ValueError", "class_weight has shape (7,)"),
    "labels' shape": ("ValueError", "labels have shape (5,)"),
    "linear, label": ("LabelError", r"labels[2] is 7"),
    "linear, label of one process": ("LabelError", r"labels[2] is 7"),
    "linear, features": ("ValueError", "the same number of features"),
    "linear, filter": ("ValueError", "gradient_filter is 0.5"),
    "second derivative": ("RuntimeError", "first derivatives alone"),
    "linear, second derivative": ("RuntimeError", "first derivatives alone"),
    "torch.func": ("RuntimeError", "in plain eager mode"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_an_error_in_every_process(found, name):
    for rank, theirs in enumerate(found):
        kinds, message, _ = theirs["errors"][name]
        if "one process" in name and rank:
            assert kinds[0] == "ValueError"
            assert "another process" in message
        else:
            kind, part = FAULTS[name]
            assert kind in kinds, message
            assert part in message
    assert found[0]["errors"].keys() == FAULTS.keys()


def test_uses(found):
    uses, processes = [theirs["uses"] for theirs in found], len(found)
    logits, labels, _ = cases.leaves_of(*cases.option_problem(((), "index", "mean")))
    loss = sl.softmax_cross_entropy(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    (of_double,) = torch.autograd.grad(sl.softmax_cross_entropy(logits * 2.0, labels), logits)
    for theirs in uses:
        assert theirs["sizes"] == cases.SIZES[processes]
        assert_close(theirs["given sizes"], loss.detach())
    for time in range(2):
        assert_close(torch.cat([theirs["twice"][time] for theirs in uses], -1), gradient)
    assert_close(torch.cat([theirs["compiled"] for theirs in uses], -1), of_double)
    for rank, theirs in enumerate(uses):
        if rank < 2:
            assert_close(theirs["group"], loss.detach())
        else:
            assert "not in the group" in theirs["group"][1]


def test_uses_of_linear(found):
    uses = [theirs["uses"] for theirs in found]
    logits, labels, _ = cases.option_problem(((), "index", "mean"))
    hidden, weight, bias = cases.linear_leaves((logits,))
    linear = torch.nn.functional.linear
    loss = sl.softmax_cross_entropy(linear(hidden, weight, bias), labels)
    by_hidden, by_weight, by_bias = torch.autograd.grad(loss, (hidden, weight, bias))
    for time in range(2):
        assert_close(torch.cat([theirs["linear, twice"][time][1] for theirs in uses]), by_weight)
        for theirs in uses:
            assert_close(theirs["linear, twice"][time][0], by_hidden)
            assert_close(theirs["no gradient"], loss.detach())
    without_bias = sl.softmax_cross_entropy(linear(hidden, weight), labels)
    frozen_weight = torch.autograd.grad(without_bias, hidden)[0]
    by_sum = torch.autograd.grad(sl.softmax_cross_entropy(linear(hidden, weight), labels, reduction="sum"), weight)[0]
    assert all(torch.equal(theirs["frozen weight"], uses[0]["frozen weight"]) for theirs in uses)
    assert_close(uses[0]["frozen weight"], frozen_weight)
    assert_close(torch.cat([theirs["frozen hidden"] for theirs in uses]), by_sum)
    tokens = torch.arange(6).reshape(2, 3)
    shifted = linear(hidden.reshape(2, 3, -1)[:, :-1], weight, bias)
    shifted = sl.softmax_cross_entropy(shifted, tokens[:, 1:])
    assert all(torch.equal(theirs["shifted"][0], uses[0]["shifted"][0]) for theirs in uses)
    assert_close(uses[0]["shifted"][0], shifted.detach())
    by_shifted = torch.autograd.grad(shifted, weight)[0]
    assert_close(torch.cat([theirs["shifted"][1] for theirs in uses]), by_shifted)
    for name, dtype in (("autocast", torch.float32), ("bfloat16", torch.bfloat16)):
        assert all(theirs[name][0].dtype == torch.float32 for theirs in uses)
        assert all(theirs[name][1].dtype == dtype for theirs in uses)
        for number, expected in enumerate((by_weight, by_bias), 2):
            together = torch.cat([theirs[name][number] for theirs in uses])
            assert_close(together.double(), expected, rtol=2e-2, atol=1e-2)
        assert_close(uses[0][name][0].double(), loss.detach(), rtol=2e-2, atol=0)
        assert_close(uses[0][name][1].double(), by_hidden, rtol=2e-2, atol=1e-2)


def test_a_process_that_is_late_or_gone_is_an_error_for_the_others(tmp_path):
    *others, last = cases.run(tmp_path, 3, "lost")
    assert last is None
    for theirs in others:
        for kinds, message, seconds in theirs.values():
            assert "RuntimeError" in kinds, message
            assert seconds < cases.SHORT_TIMEOUT + 15
        assert theirs["late"][2] > cases.SHORT_TIMEOUT / 2


def test_without_a_group():
    with pytest.raises(RuntimeError, match="init_process_group"):
        cases.Cases(0, 1).loss(torch.zeros(2, 3), torch.tensor([0, 1]))
