"""Calls that stay whole until they are differentiated, by the rule of the function called.

`jax.custom_jvp` alone does not promise that: where JAX splits a loop's body into what changes and what does not, it
drops the rules of the calls inside, for good where these have no derivative but the rule, such as calls of a kernel. A
primitive of our own is not taken apart. It holds the function as a jaxpr, in which the rules are kept.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

_whole = Primitive("softmaxloss")
_whole.multiple_results = True


class _Rules(NamedTuple):
    """What is known of a function beside its values, in terms of leaves."""

    linear: int = 0  # in how many of its last arguments it is linear
    transposed: Callable[..., Any] | None = None  # of the other arguments and cotangents; None: a symmetric matrix
    one_by_one: bool = False
    in_batch: Callable[..., Any] | None = None


def whole(
    function: Callable[..., Any],
    *arguments: Any,
    linear: bool = False,
    transposed: Callable[..., Any] | None = None,
    one_by_one: bool = False,
    in_batch: Callable[..., Any] | None = None,
) -> Any:
    """Return function(*arguments).

    Parameters
    ----------
    linear : bool
        Whether the function is linear in its last argument, by a matrix that is symmetric unless `transposed` is given.
    transposed : callable, optional
        Takes cotangents of what `function` returns in place of the last argument, and returns those of that argument.
    one_by_one : bool
        Whether `jax.vmap` takes the elements of a batch one after another, in the memory that one of them needs.
    in_batch : callable, optional
        Takes a batch at once, or returns None for a kind of batch that it cannot take: called with the arguments, in
        which the axis of the batch comes first, the same with True in place of those that have this axis and False of
        others, and the axis's length. What it returns has that axis first as well.
    """
    leaves, structure = jax.tree.flatten(arguments)

    def of_leaves(*leaves: Any) -> Any:
        return function(*jax.tree.unflatten(structure, leaves))

    jaxpr, shapes = jax.make_jaxpr(of_leaves, return_shape=True)(*leaves)
    result_structure = jax.tree.structure(shapes)

    def transposed_leaves(others: list[Any], cotangents: list[Any]) -> list[Any]:
        *given, _ = jax.tree.unflatten(structure, others + [None] * last)
        of_result = jax.tree.unflatten(result_structure, cotangents)
        assert transposed is not None
        return jax.tree.leaves(
            whole(transposed, *given, of_result, linear=True, transposed=function, one_by_one=one_by_one)
        )

    def batch_of_leaves(leaves: list[Any], mapped: list[bool], size: int) -> Any:
        assert in_batch is not None
        answer = in_batch(*(jax.tree.unflatten(structure, x) for x in (leaves, mapped)), size)
        return None if answer is None else jax.tree.leaves(answer)

    last = len(jax.tree.leaves(arguments[-1])) if linear else 0
    rules = _Rules(
        last,
        None if transposed is None else transposed_leaves,
        one_by_one,
        None if in_batch is None else batch_of_leaves,
    )
    return jax.tree.unflatten(result_structure, _whole.bind(*leaves, jaxpr=jaxpr, rules=rules))


@_whole.def_impl
def _evaluated(*arguments: Any, jaxpr: ClosedJaxpr, rules: _Rules) -> Any:
    return jaxpr_as_fun(jaxpr)(*arguments)


@_whole.def_abstract_eval
def _abstract(*arguments: Any, jaxpr: ClosedJaxpr, rules: _Rules) -> Any:
    return jaxpr.out_avals


def _jvp(primals: Any, tangents: Any, *, jaxpr: ClosedJaxpr, rules: _Rules) -> Any:
    moving = [type(tangent) is not ad.Zero for tangent in tangents]
    if rules.linear and not any(moving[: -rules.linear]):
        changes = [ad.instantiate_zeros(tangent) for tangent in tangents[-rules.linear :]]
        others, vectors = primals[: -rules.linear], primals[-rules.linear :]
        value, change = (_whole.bind(*others, *last, jaxpr=jaxpr, rules=rules) for last in (vectors, changes))
        return value, change

    def of_moving(*changed: Any) -> Any:
        remaining = iter(changed)
        return jaxpr_as_fun(jaxpr)(*(next(remaining) if m else x for x, m in zip(primals, moving, strict=True)))

    values, changes = jax.jvp(
        of_moving,
        tuple(x for x, m in zip(primals, moving, strict=True) if m),
        tuple(t for t, m in zip(tangents, moving, strict=True) if m),
    )
    return values, [
        ad.Zero(jax.typeof(value).to_tangent_aval()) if change.dtype == jax.dtypes.float0 else change
        for value, change in zip(values, changes, strict=True)
    ]


def _transposed(cotangents: Any, *arguments: Any, jaxpr: ClosedJaxpr, rules: _Rules) -> Any:
    assert rules.linear
    others, vectors = list(arguments[: -rules.linear]), arguments[-rules.linear :]
    none = [None] * len(others)
    if all(type(cotangent) is ad.Zero for cotangent in cotangents):
        return none + [ad.Zero(x.aval) if ad.is_undefined_primal(x) else None for x in vectors]
    cotangents = [ad.instantiate_zeros(cotangent) for cotangent in cotangents]
    if rules.transposed is None:
        answers = _whole.bind(*others, *cotangents, jaxpr=jaxpr, rules=rules)
    else:
        answers = rules.transposed(others, cotangents)
    # Vectors that are known are the zeros of `_jvp`.
    return none + [y if ad.is_undefined_primal(x) else None for x, y in zip(vectors, answers, strict=True)]


def _batched(arguments: Any, axes: Any, *, jaxpr: ClosedJaxpr, rules: _Rules) -> Any:
    (size,) = {x.shape[axis] for x, axis in zip(arguments, axes, strict=True) if axis is not None}
    moved = [x if axis is None else jax.numpy.moveaxis(x, axis, 0) for x, axis in zip(arguments, axes, strict=True)]
    is_mapped = [axis is not None for axis in axes]
    if rules.in_batch is not None:
        results = rules.in_batch(moved, is_mapped, size)
        if results is not None:
            return results, [0] * len(results)
    if rules.one_by_one:
        results = _one_by_one(moved, is_mapped, jaxpr, rules)
        return results, [0] * len(results)
    mapped = [0 if is_mapped_here else None for is_mapped_here in is_mapped]
    if (
        rules.linear and mapped[-1] is None
    ):  # as many vectors in as products out: the matrix of all of them is symmetric
        moved[-1], mapped[-1] = jax.numpy.broadcast_to(moved[-1], (size, *moved[-1].shape)), 0
    of_batch = jax.make_jaxpr(jax.vmap(jaxpr_as_fun(jaxpr), mapped, axis_size=size))(*moved)
    results = _whole.bind(*moved, jaxpr=of_batch, rules=rules)
    return results, [0] * len(results)


def _one_by_one(arguments: list[Any], is_mapped: list[bool], jaxpr: ClosedJaxpr, rules: _Rules) -> Any:
    def of_one(mapped: list[Any]) -> Any:
        remaining = iter(mapped)
        given = [next(remaining) if m else x for x, m in zip(arguments, is_mapped, strict=True)]
        return _whole.bind(*given, jaxpr=jaxpr, rules=rules)

    return lax.map(of_one, [x for x, m in zip(arguments, is_mapped, strict=True) if m])


ad.primitive_jvps[_whole] = _jvp
ad.primitive_transposes[_whole] = _transposed
batching.primitive_batchers[_whole] = _batched
mlir.register_lowering(_whole, mlir.lower_fun(_evaluated, multiple_results=True))
