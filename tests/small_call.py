"""One small call for the tests of what is checked at the door: its logits, its labels of both kinds, its options."""

import numpy as np

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((4, 3))
INDEX = np.array([0, 2, 1, 1])
SOFT = RNG.dirichlet(np.ones(3), 4)

OPTIONS = {
    "axis": -1,
    "reduction": "mean",
    "sample_weight": None,
    "class_weight": None,
    "ignore_index": -100,
    "label_smoothing": 0.0,
    "temperature": 1.0,
    "softcap": None,
    "logit_bias": None,
    "z_loss": 0.0,
    "focal_gamma": 0.0,
    "poly_epsilon": 0.0,
}


def unaligned(array):
    """The same values, one byte off."""
    view = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view
