"""A regularisation path: the minima of one objective for many penalties, each sought where the last ones point."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from softmaxloss import row_space
from softmaxloss.checkpoint import Checkpoint, CheckpointError
from softmaxloss.data.files import replacing
from softmaxloss.objective import Objective
from softmaxloss.rows import blas
from softmaxloss.solver import Iteration, Solution
from softmaxloss.training import Preconditioning, solve

Vector = npt.NDArray[np.float64]

# How far beyond the last two minima the next is looked for, in multiples of the way between them.
_FARTHEST = 2.0

_POINTS_OF_A_LINE = 2

_FORMAT = 4  # of the file of solutions
_FACTS = ("value", "gradient_norm", "n_iter", "converged", "values", "preconditioner")


def solve_path(
    objective: Objective,
    penalties: Sequence[float],
    *,
    tol: float,
    max_iter: int,
    start: Vector | None = None,
    on_iteration: Callable[[Iteration], None] | None = None,
    checkpoint: "PathCheckpoint | None" = None,
) -> list[Solution]:
    """Minimise the objective for each of the penalties, best in descending order, and return the solutions.

    The first is sought from `start`, or as `solve` does without one; each further one where the straight line through
    the two minima before it, as a function of the penalty's logarithm, has got to, with the preconditioner that served
    last. In the space of the rows, see `row_space`, the line is one of combinations, and the first is sought from 0.

    Parameters
    ----------
    objective : Objective
        Its own penalty does not matter. The moments of its features are computed once.
    penalties : sequence of float
        The strengths of the regularisation, >= 0.
    tol, max_iter, on_iteration
        As in `softmaxloss.solver.minimize`, for each of them.
    start : float64 ndarray, optional
        Where to seek the first.
    checkpoint : PathCheckpoint, optional
        Where the solutions are kept as they are found, and the state of the fit under way.

    Returns
    -------
    list of Solution
        One for each penalty. With a checkpoint they are, to the bit, those of a path that was never interrupted.
    """
    objective.centred_and_scaled()  # before it is copied: the moments are not computed again
    preconditioning = Preconditioning(objective, penalties)
    solutions = [] if checkpoint is None else checkpoint.load()
    with blas.on_one_thread():  # to tell the libraries so for each takes longer than an iteration of small data
        for penalty in penalties[len(solutions) :]:
            number, here = len(solutions), objective.with_penalty(penalty)
            # The space of the rows takes its own points alone, and from 0 it is the quicker way all the same.
            of_rows = row_space.suits(here)
            found = [solution.combination if of_rows else solution.x for solution in solutions[-_POINTS_OF_A_LINE:]]
            begin = _next_start(found, penalties[: number + 1])
            solution = solve(
                here,
                None if of_rows else begin if solutions else start,
                tol=tol,
                max_iter=max_iter,
                on_iteration=on_iteration,
                checkpoint=None if checkpoint is None else checkpoint.of_fit(number),
                preconditioning=preconditioning,
                nearby=solutions[-1].preconditioner if solutions else None,
                combination=begin if of_rows else None,
            )
            solutions.append(solution)
            if number >= _POINTS_OF_A_LINE:
                solutions[-1 - _POINTS_OF_A_LINE] = replace(solutions[-1 - _POINTS_OF_A_LINE], combination=None)
            if checkpoint is not None:
                checkpoint.save(solutions)
    return solutions


def _next_start(found: list[Vector | None], penalties: Sequence[float]) -> Vector | None:
    """Return where the line through the last two points is at the last of the penalties; the last point without two."""
    if not found:
        return None
    last = found[-1]
    if last is None or len(found) < 2 or found[-2] is None or not penalties[-1] > 0:
        return last
    before, here, there = np.log(penalties[-3:])
    if before == here:
        return last
    share = float(np.clip((there - here) / (here - before), -_FARTHEST, _FARTHEST))
    start: Vector = last + share * (last - found[-2])
    return start


class PathCheckpoint:
    """The solutions of a path, in a file of a folder, and the state of the fit under way in another beside it.

    Both are named by a fingerprint of what they depend on, so that paths of other rows or parameters find files of
    their own in the same folder.

    Parameters
    ----------
    folder : Path
        Where the files are; it is made if there is none.
    identity : dict
        What the path depends on, as JSON holds it: `RowSource.identity`, the penalties, the parameters.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        self.identity = identity
        self._name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def path(self) -> Path:
        """The file of the solutions."""
        return self.folder / f"{self._name}.npz"

    def of_fit(self, number: int) -> Checkpoint:
        """Return the checkpoint of the fit of that number, from 0."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return Checkpoint(self.folder / f"{self._name}-{number}.npz", self.identity)

    def load(self) -> list[Solution]:
        """Return the solutions found so far; none without a file."""
        try:
            with self.path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                facts = json.loads(str(file["facts"]))
                points, version = file["points"], int(file["format"])
                combinations = [file.get(_combination_of(number)) for number in range(len(points))]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"{self.path} is no checkpoint of SoftmaxClassifierCV ({type(error).__name__}): delete the file"
            ) from None
        if version != _FORMAT:
            raise CheckpointError(f"{self.path} was written by another version of softmaxloss: delete it")
        return [
            Solution(x=x, combination=combination, **rest)
            for x, combination, rest in zip(points, combinations, facts, strict=True)
        ]

    def save(self, solutions: list[Solution]) -> None:
        """Write the solutions, as a whole, and remove the state that led to the last."""
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = [{name: getattr(solution, name) for name in _FACTS} for solution in solutions]
        arrays = {"points": np.array([solution.x for solution in solutions])}
        for number, solution in enumerate(solutions):
            if solution.combination is not None:
                arrays[_combination_of(number)] = solution.combination
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, facts=np.array(json.dumps(facts)), format=_FORMAT, **arrays)
        for number in range(len(solutions)):  # of the last, or of an earlier one if the process ended right here
            self.of_fit(number).path.unlink(missing_ok=True)


def _combination_of(number: int) -> str:
    """Return the name of a solution's combination in the file."""
    return f"combination of {number}"
