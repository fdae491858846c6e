"""The cases of tests/test_torch_parallel.py, and the processes that hold slices of their classes.

``python tests/parallel_cases.py STORE RANK PROCESSES WHAT`` is one process; what it finds is in STORE.RANK.
"""

import contextlib
import os
import subprocess
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch_problems import OPTION_SETS, REDUCTIONS, label_kinds, problem

CLASSES = 7
SIZES = {1: (7,), 2: (6, 1), 3: (2, 1, 4)}
TIMEOUT = 120.0
SHORT_TIMEOUT = 2.0

WAYS = ["kernel", "formula"]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FEATURES = 4
BLOCK_BYTES = 2 * CLASSES * 8  # blocks of two or three rows


def option_cases():
    """Return the problems that differ in options: (options, kind of labels, reduction)."""
    return [
        (names, kind, reduction) for names in OPTION_SETS for kind in label_kinds(names) for reduction in REDUCTIONS
    ]


def linear_cases():
    """Return some of these, each combination of options with one reduction: more would take long for nothing."""
    return [case for number, case in enumerate(option_cases()) if number % len(REDUCTIONS) == number // 3 % 3]


def option_problem(case, dtype=torch.float64):
    names, kind, reduction = case
    logits, labels, options = problem(names, kind, (6, CLASSES), dtype, reduction)
    if "weight" in options:
        options["class_weight"] = options.pop("weight")
    return logits, labels, options


def special_problems():
    """Return problems of other shapes, dtypes and values, by name."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, CLASSES, generator=generator, dtype=torch.float64) * 3
    labels = torch.tensor([6, 0, 3, 5])
    rows = {"reduction": "none"}
    one_hot = torch.nn.functional.one_hot(labels, CLASSES).double()
    certain = logits + 40 * one_hot
    everything = {
        "softcap": 5.0,
        "temperature": 0.7,
        "class_weight": torch.linspace(0.5, 2.0, CLASSES, dtype=torch.float64),
        "z_loss": 1e-3,
    }

    def with_rows(values):
        changed = logits.clone()
        for row, columns, value in values:
            changed[row, columns] = value
        return changed

    inf, nan = torch.inf, torch.nan
    masked = with_rows([(0, slice(0, 2), -inf), (1, slice(1, 6), -inf), (2, slice(0, 6), -inf), (3, 6, -inf)])
    broken = with_rows([(0, 1, nan), (1, 6, inf), (2, slice(None), -inf)])
    half = {
        f"{name}, {kind}": (z.to(dtype), labels, rows)
        for name, dtype in DTYPES.items()
        for kind, z in (("ordinary", logits), ("certain", logits + 8 * one_hot))
    }
    return half | {
        "three dimensions": (logits.reshape(2, 2, CLASSES), labels.reshape(2, 2), rows),
        "one row": (logits[0], labels[0], {}),
        "no rows": (logits[:0], labels[:0], {"reduction": "sum"}),
        "mean of no rows": (logits[:0], labels[:0], {}),
        "all rows ignored": (logits, torch.full((4,), -100), {"z_loss": 0.1}),
        "rows in another order of axes": (logits.T.contiguous().T, labels, {}),
        "uint8 labels": (logits, labels.to(torch.uint8), {"ignore_index": 3}),
        "ties between slices": (torch.zeros_like(logits), labels, rows),
        "certain": (certain, labels, rows),
        "certain, with options": (certain, labels, rows | everything | {"focal_gamma": 2.0, "poly_epsilon": 0.5}),
        "certain, one-hot": (certain, one_hot, rows),
        "certain of another class": (certain, labels.flip(0), rows),
        "far from 0": (logits + 1e4, labels, rows),
        "masked": (masked, torch.tensor([6, 0, 6, 5]), rows),
        "masked, with options": (masked, torch.tensor([6, 0, 6, 5]), rows | everything),
        "masked labels": (masked, torch.tensor([0, 3, 0, 6]), rows),
        "masked, smoothed": (masked, labels, rows | {"label_smoothing": 0.1}),
        "masked, one-hot": (masked, one_hot.flip(0), rows),
        "masked by the bias": (logits, labels, {"logit_bias": masked[1].clamp(max=0.0)}),
        "rows without an answer": (broken, labels, rows),
        "rows without an answer, smoothed": (broken, labels, rows | {"label_smoothing": 0.1}),
        "rows without an answer, ignored": (broken, torch.tensor([-100, -100, -100, 5]), {}),
        "no weight": (logits, labels, {"sample_weight": torch.zeros(4, dtype=torch.float64)}),
        "a weight of 0": (logits, labels, {"class_weight": everything["class_weight"] * (torch.arange(7) != 6)}),
    }


LEARNED = ("logit_bias", "sample_weight")  # options that gradients go to
BY_CLASS = ("logit_bias", "class_weight")


def sliced(tensor, rank, processes):
    """Return this process's part of the last axis, a copy."""
    return torch.split(tensor, SIZES[processes], -1)[rank].clone()


def leaves_of(logits, labels, options, part=torch.clone, *, learned=True):
    """Return the arguments with gradients wanted wherever they may be, `part` taken of what has a class axis."""
    logits = part(logits).requires_grad_()
    if labels.is_floating_point():
        labels = part(labels).requires_grad_(learned)
    options = {name: part(value) if name in BY_CLASS else value for name, value in options.items()}
    for name in LEARNED:
        if name in options:
            options[name] = options[name].clone().requires_grad_(learned)
    return logits, labels, options


def linear_leaves(case, dtype=torch.float64):
    """Return hidden states, weight and bias for a problem, with gradients wanted."""
    generator = torch.Generator().manual_seed(1)
    rows_shape = case[0].shape[:-1]
    shapes = ((*rows_shape, FEATURES), (CLASSES, FEATURES), (CLASSES,))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def answer_of(loss, **leaves):
    """Return the loss and the gradients of what asks for one, by name."""
    upstream = torch.linspace(-1.0, 2.0, loss.numel(), dtype=loss.dtype).reshape(loss.shape) if loss.ndim else None
    (1.5 * loss).backward(upstream)
    return {"loss": loss.detach()} | {name: leaf.grad for name, leaf in leaves.items() if leaf.requires_grad}


def learned_of(labels, options):
    return {"labels": labels} | {name: options[name] for name in LEARNED if name in options}


def run(directory, processes, what):
    """Return what each process finds, None for one that has not lived to say it."""
    store = Path(directory) / "store"
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "FATAL"}
    started = []
    with contextlib.ExitStack() as stack:
        for rank in range(processes):
            errors = stack.enter_context(Path(f"{store}.errors.{rank}").open("w+"))
            command = [sys.executable, "-W", "error", __file__, str(store), str(rank), str(processes), what]
            process = stack.enter_context(subprocess.Popen(command, env=environment, stderr=errors))
            stack.callback(process.kill)
            started.append((process, errors))
        _wait(started)
    paths = [Path(f"{store}.{rank}") for rank in range(processes)]
    return [torch.load(path, weights_only=False) if path.exists() else None for path in paths]


def _wait(started):
    """Return once all processes have ended well; raise as soon as one has not."""
    end = time.monotonic() + TIMEOUT
    while not all(process.poll() == 0 for process, _ in started):
        time.sleep(0.05)
        failed = [errors for process, errors in started if process.poll()]
        if failed or time.monotonic() > end:
            told = []
            for errors in failed or [errors for _, errors in started]:
                errors.seek(0)
                told.append(errors.read())
            raise AssertionError("\n".join(["a process failed" if failed else "the processes took too long", *told]))


def caught(call):
    """Return the error that a call raises, by type, bases and message, and how long it took."""
    begin = time.monotonic()
    try:
        call()
    except Exception as error:
        return [cls.__name__ for cls in type(error).__mro__], str(error), time.monotonic() - begin
    return [], "no error", time.monotonic() - begin


class Cases:
    """What a process finds, one method for each kind of case."""

    def __init__(self, rank, processes):
        from softmaxloss.backends.torch import linear_parallel, linear_problem, parallel, problem, ranks, slices
        from softmaxloss.options import GivenOptions

        self.rank, self.processes, self.slices, self.ranks = rank, processes, slices, ranks
        self.loss, self.linear_loss = parallel.vocab_parallel_cross_entropy, linear_parallel.loss
        self.linear_problem_of, self.any_numbers = linear_problem.linear_problem_of, problem.AS_THEY_ARE
        self.options = GivenOptions

    def part(self, tensor):
        return sliced(tensor, self.rank, self.processes)

    def part_of_rows(self, tensor):
        return self.part(tensor.detach().movedim(0, -1)).movedim(-1, 0).requires_grad_()

    def linear(self, hidden, weight, labels, bias, options, sizes=None, group=None, **blocks):
        """Return the loss of a layer, by default with blocks of a few rows."""
        given, blocks = self.options(**options), {"max_block_bytes": BLOCK_BYTES} | blocks

        def make():
            return self.linear_problem_of(hidden, weight, labels, bias, given, **blocks, tolerance=self.any_numbers)

        return self.linear_loss(hidden, weight, make, group, sizes)

    def answer(self, case, *, learned, **more):
        logits, labels, options = leaves_of(*case, self.part, learned=learned)
        loss = self.loss(logits, labels, **options, **more)
        return answer_of(loss, logits=logits, **learned_of(labels, options))

    def linear_answer(self, case, *, learned):
        hidden, weight, bias = linear_leaves(case)
        weight, bias = self.part_of_rows(weight), self.part_of_rows(bias)
        _, labels, options = leaves_of(*case, self.part, learned=learned)
        loss = self.linear(hidden, weight, labels, bias, options)
        return answer_of(loss, hidden=hidden, weight=weight, bias=bias, **learned_of(labels, options))

    def all(self):
        by_kernel, found = self.slices._kernel_serves, {}
        for way in WAYS:
            self.slices._kernel_serves = by_kernel if way == "kernel" else lambda part: False
            found[way] = {
                "options": [self.answer(option_problem(case), learned=True) for case in option_cases()],
                "linear": [
                    self.linear_answer(option_problem(case), learned=way == "formula") for case in linear_cases()
                ],
                "special": {name: self.answer(case, learned=False) for name, case in special_problems().items()},
            }
        self.slices._kernel_serves = by_kernel
        return found | {name: getattr(self, name)() for name in ("errors", "uses")}

    def errors(self):
        """Return the errors of calls that at least one process must refuse."""
        logits, labels, _ = option_problem(((), "index", "mean"))
        mine = self.part(logits)
        wrong, only_here = labels.clone(), labels.clone()
        wrong[2] = CLASSES
        only_here[2] = CLASSES if self.rank == 0 else 0
        sizes, (hidden, weight, bias) = SIZES[self.processes], linear_leaves((logits,))
        weight, bias = self.part_of_rows(weight), self.part_of_rows(bias)
        mixed = {"class_weight": torch.ones(CLASSES)}
        calls = {
            "label": lambda: self.loss(mine, wrong),
            "label, sizes given": lambda: self.loss(mine, wrong, sizes=sizes),
            "label of one process": lambda: self.loss(mine, only_here),
            "label of one process, sizes given": lambda: self.loss(mine, only_here, sizes=sizes),
            "option of one process": lambda: self.loss(mine, labels, temperature=float(self.rank)),
            "rows": lambda: self.loss(mine[self.rank :], labels[self.rank :]),
            "sizes": lambda: self.loss(mine, labels, sizes=[9] * self.processes),
            "class weights of all classes": lambda: self.loss(mine, labels, **mixed),
            "labels' shape": lambda: self.loss(mine, labels[1:]),
            "linear, label": lambda: self.linear(hidden, weight, wrong, bias, {}),
            "linear, label of one process": lambda: self.linear(hidden, weight, only_here, bias, {}, sizes),
            "linear, features": lambda: self.linear(hidden[:, 1:], weight, labels, bias, {}),
            "linear, filter": lambda: self.linear(hidden, weight, labels, bias, {}, sizes, gradient_filter=0.5),
            "second derivative": lambda: self.loss(mine.clone().requires_grad_(), labels).backward(create_graph=True),
            "linear, second derivative": lambda: torch.autograd.grad(
                self.linear(hidden, weight, labels, bias, {}), hidden, create_graph=True
            ),
            "torch.func": lambda: torch.func.grad(self.loss)(mine, labels),
        }
        found = {name: caught(call) for name, call in calls.items()}
        self.loss(mine, labels)  # the group is in step all the same
        return found

    def uses(self):
        """Return answers of calls of other kinds."""
        logits, labels, _ = option_problem(((), "index", "mean"))
        sizes = self.ranks.class_slices(self.part(logits).shape[-1])
        mine = self.part(logits).requires_grad_()
        hidden, weight, bias = linear_leaves((logits,))
        weight, bias = self.part_of_rows(weight), self.part_of_rows(bias)
        found = {"sizes": sizes, "given sizes": self.loss(mine, labels, sizes=sizes).detach()}
        loss = self.loss(mine, labels)
        found["twice"] = [torch.autograd.grad(loss, mine, retain_graph=True)[0] for _ in range(2)]
        loss = self.linear(hidden, weight, labels, bias, {})
        found["linear, twice"] = [torch.autograd.grad(loss, (hidden, weight), retain_graph=True) for _ in range(2)]
        with torch.no_grad():
            found["no gradient"] = self.linear(hidden, weight, labels, bias, {})
        frozen = self.linear(hidden, weight.detach(), labels, None, {})
        found["frozen weight"] = torch.autograd.grad(frozen, hidden)[0]
        frozen = self.linear(hidden.detach(), weight, labels, None, {"reduction": "none"})
        found["frozen hidden"] = torch.autograd.grad(frozen.sum(), weight)[0]
        compiled = torch.compile(lambda z: self.loss(z * 2.0, labels), backend="eager")
        with warnings.catch_warnings(action="ignore"):  # PyTorch's own, of what it meets at the end of a graph
            found["compiled"] = torch.autograd.grad(compiled(mine), mine)[0]
        some = dist.new_group([0, 1])
        if self.rank < 2:
            part = torch.split(logits, [3, 4], -1)[self.rank]
            found["group"] = self.loss(part, labels, some)
        else:
            found["group"] = caught(lambda: self.loss(mine, labels, some))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            operands = [each.detach().float().requires_grad_() for each in (hidden, weight, bias)]
            loss = self.linear(operands[0], operands[1], labels, operands[2], {})
        found["autocast"] = (loss.detach(), *torch.autograd.grad(loss, operands))
        operands = [each.detach().bfloat16().requires_grad_() for each in (hidden, weight, bias)]
        loss = self.linear(operands[0], operands[1], labels, operands[2], {})
        found["bfloat16"] = (loss.detach(), *torch.autograd.grad(loss, operands))
        import softmaxloss.torch as slt

        tokens = torch.arange(6).reshape(2, 3)
        loss = slt.linear_cross_entropy(
            hidden.reshape(2, 3, -1), weight, tokens, linear_bias=bias, group=dist.group.WORLD, shift=1, sizes=sizes
        )
        found["shifted"] = (loss.detach(), torch.autograd.grad(loss, weight)[0])
        return found

    def lost(self):
        """Return the errors where one of the processes, the last, first is late and then gone."""
        groups = [dist.new_group(timeout=timedelta(seconds=SHORT_TIMEOUT)) for _ in range(3)]
        logits, labels, _ = option_problem(((), "index", "mean"))
        hidden, weight, _ = linear_leaves((logits,))
        mine, weight, sizes = self.part(logits), self.part_of_rows(weight), SIZES[self.processes]
        for group in groups:
            self.loss(mine, labels, group)
        if self.rank == self.processes - 1:
            dist.barrier()
            os._exit(0)
        late = caught(lambda: self.loss(mine, labels, groups[0], sizes=sizes))
        dist.barrier()
        return {
            "late": late,
            "gone": caught(lambda: self.loss(mine, labels, groups[1], sizes=sizes)),
            "gone, linear": caught(lambda: self.linear(hidden, weight, labels, None, {}, group=groups[2])),
        }


def main(store, rank, processes, what):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=processes, timeout=timedelta(seconds=TIMEOUT)
    )
    cases = Cases(rank, processes)
    dist.barrier()
    torch.save(getattr(cases, what)(), f"{store}.{rank}")
    if what == "lost":
        os._exit(0)  # there is no orderly end of a group that has lost a member
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
