"""A fit that goes on where it was killed: the solver's state in a file, and what tells whose it is."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from softmaxloss.data.files import replacing
from softmaxloss.lbfgs import Pairs
from softmaxloss.line_search import Point
from softmaxloss.solver import State

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]

_EVERY = 5  # iterations between two writes
_FORMAT = 5

_POINTS = ("current", "lowest")
_VECTORS = ("u", "x", "gradient")
_NUMBERS = ("value", "gradient_norm")


class Checkpoint:
    """The state of one fit in a file; `CheckpointError` where the file is of another fit, or no such file.

    Parameters
    ----------
    path : str or os.PathLike
        The file, NPZ without pickles. It is replaced as a whole: whenever the process ends, one state or the next
        is there.
    identity : dict
        What the fit depends on, as JSON holds it: `RowSource.identity` and the parameters.
    """

    def __init__(self, path: str | os.PathLike[str], identity: dict[str, Any]) -> None:
        self.path = Path(path)
        self.identity = identity

    def load(self) -> State | None:
        """Return the state in the file; None without one."""
        try:
            with self.path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                facts = json.loads(str(file["facts"]))
                arrays = {name: file[name] for name in file.files}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"{self.path} is no checkpoint of SoftmaxClassifier ({type(error).__name__}): "
                "give checkpoint another path, or delete the file"
            ) from None
        self._check(facts)
        return _state(facts, arrays)

    def save(self, state: State) -> None:
        """Write the state, every few iterations."""
        if len(state.values) % _EVERY:
            return
        facts: dict[str, Any] = {"format": _FORMAT, "identity": self.identity, "found_at": state.found_at}
        facts |= {name: getattr(state, name) for name in ("preconditioner", "preconditioned", "length")}
        arrays: dict[str, Any] = {
            "steps": _stacked(state.pairs.steps, state),
            "changes": _stacked(state.pairs.changes, state),
            "began_at": np.array(state.pairs.values),
            "values": np.array(state.values),
            "renewed_at": state.renewed_at,
            "limits": np.array([state.lowest_value, state.progress]),
        }
        for name in _POINTS:
            point = getattr(state, name)
            arrays |= {f"{name}_{part}": getattr(point, part) for part in _VECTORS}
            arrays[name] = np.array([getattr(point, number) for number in _NUMBERS])
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, facts=np.array(json.dumps(facts)), **arrays)

    def _check(self, facts: dict[str, Any]) -> None:
        """Refuse the state of another fit."""
        if facts.get("format") != _FORMAT:
            raise CheckpointError(f"{self.path} was written by another version of softmaxloss: delete it")
        theirs = facts["identity"]
        for name, ours in self.identity.items():
            if theirs.get(name) != ours:
                raise CheckpointError(
                    f"{self.path} is the checkpoint of another fit, with {name} {theirs.get(name)!r} where this one "
                    f"has {ours!r}: give checkpoint another path, or delete the file"
                )


class CheckpointError(ValueError):
    """A checkpoint that is not of this fit."""


def _state(facts: dict[str, Any], arrays: dict[str, Any]) -> State:
    lowest_value, progress = arrays["limits"].tolist()
    return State(
        current=_point("current", arrays),
        lowest=_point("lowest", arrays),
        lowest_value=lowest_value,
        progress=progress,
        renewed_at=arrays["renewed_at"],
        found_at=facts["found_at"],
        preconditioner=facts["preconditioner"],
        preconditioned=facts["preconditioned"],
        length=facts["length"],
        pairs=Pairs(
            [*map(np.copy, arrays["steps"])],  # each may be forgotten
            [*map(np.copy, arrays["changes"])],
            arrays["began_at"].tolist(),
        ),
        values=arrays["values"].tolist(),
    )


def _stacked(vectors: list[Vector], state: State) -> Matrix:
    """Return vectors in u as rows, of which there may be none."""
    return np.array(vectors).reshape(len(vectors), state.current.u.size)


def _point(name: str, arrays: dict[str, Any]) -> Point:
    u, x, gradient = (arrays[f"{name}_{part}"] for part in _VECTORS)
    value, norm = arrays[name].tolist()
    return Point(u, x, value, gradient, norm)
