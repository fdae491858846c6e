"""Calls that stay whole until they are differentiated, by the rule of the function called.

`jax.custom_jvp` alone does not promise that: where JAX splits a loop's body into what changes and what does not, it
drops the rules of the calls inside, for good where these have no derivative but the rule, such as calls of a kernel. A
primitive of our own is not taken apart. It holds the function as a jaxpr, in which the rules are kept.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

_whole = Primitive("softmaxloss")
_whole.multiple_results = True


def whole(function: Callable[..., Any], *arguments: Any, linear: bool = False) -> Any:
    """Return function(*arguments); `linear` says that it is linear in the last one, by a matrix that is symmetric."""
    leaves, structure = jax.tree.flatten(arguments)

    def of_leaves(*leaves: Any) -> Any:
        return function(*jax.tree.unflatten(structure, leaves))

    jaxpr, shapes = jax.make_jaxpr(of_leaves, return_shape=True)(*leaves)
    return jax.tree.unflatten(jax.tree.structure(shapes), _whole.bind(*leaves, jaxpr=jaxpr, linear=linear))


@_whole.def_impl
def _evaluated(*arguments: Any, jaxpr: ClosedJaxpr, linear: bool) -> Any:
    return jaxpr_as_fun(jaxpr)(*arguments)


@_whole.def_abstract_eval
def _abstract(*arguments: Any, jaxpr: ClosedJaxpr, linear: bool) -> Any:
    return jaxpr.out_avals


def _jvp(primals: Any, tangents: Any, *, jaxpr: ClosedJaxpr, linear: bool) -> Any:
    moving = [type(tangent) is not ad.Zero for tangent in tangents]
    if linear and not any(moving[:-1]):
        value, change = (
            _whole.bind(*primals[:-1], last, jaxpr=jaxpr, linear=True) for last in (primals[-1], tangents[-1])
        )
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


def _transposed(cotangents: Any, *arguments: Any, jaxpr: ClosedJaxpr, linear: bool) -> Any:
    *others, vector = arguments
    assert linear
    assert ad.is_undefined_primal(vector)
    (cotangent,) = cotangents
    if type(cotangent) is ad.Zero:
        return [None] * len(others) + [ad.Zero(vector.aval)]
    return [None] * len(others) + _whole.bind(*others, cotangent, jaxpr=jaxpr, linear=True)


def _batched(arguments: Any, axes: Any, *, jaxpr: ClosedJaxpr, linear: bool) -> Any:
    (size,) = {x.shape[axis] for x, axis in zip(arguments, axes, strict=True) if axis is not None}
    moved = [x if axis is None else jax.numpy.moveaxis(x, axis, 0) for x, axis in zip(arguments, axes, strict=True)]
    mapped = [None if axis is None else 0 for axis in axes]
    if linear and mapped[-1] is None:  # as many vectors in as products out: the matrix of all of them is symmetric
        moved[-1], mapped[-1] = jax.numpy.broadcast_to(moved[-1], (size, *moved[-1].shape)), 0
    of_batch = jax.make_jaxpr(jax.vmap(jaxpr_as_fun(jaxpr), mapped, axis_size=size))(*moved)
    results = _whole.bind(*moved, jaxpr=of_batch, linear=linear)
    return results, [0] * len(results)


ad.primitive_jvps[_whole] = _jvp
ad.primitive_transposes[_whole] = _transposed
batching.primitive_batchers[_whole] = _batched
mlir.register_lowering(_whole, mlir.lower_fun(_evaluated, multiple_results=True))
