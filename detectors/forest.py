"""Forest: a second opinion on joint shapes, where several channels are mildly odd and none decides.

One isolation forest over the channels of all units together: a cohort of everything, since the
channels are strengths and so mean the same for every task, large or small. It learns from past clean
windows (which of them, engine.py says) plus *anchors*: such windows with one to three channels
raised, without which no split lies beyond normal and one extreme channel looks ordinary. It is
fitted at most daily, never in a window's path, and it raises only what exceeds every past clean
window.

The artefact is the training rows, not the trees: small, without pickle, and refitted to the same
trees by the same seed.

Source: Liu, Ting and Zhou, "Isolation-Based Anomaly Detection", ACM TKDD 6(1), 2012.
"""

from __future__ import annotations

import hashlib
import io
from datetime import UTC, datetime

import numpy as np
from sklearn import config_context
from sklearn.ensemble import IsolationForest

from detectors.base import CHANNELS
from detectors.windows import BoolArray, FloatArray, IntArray

_TREES = 100
_MAX_SAMPLES = 4096
_LEAST_ROWS = 100
_ANCHOR_SHARE = 0.1
_CEILING = 2.0
_OF_ERRORS = [CHANNELS.index(name) for name in ("errors", "template", "customer", "trend")]
_OTHERS = [index for index in range(len(CHANNELS)) if index not in _OF_ERRORS]
_MARGIN = 0.07
"""Simulated tasks that wobble reach about .07 beyond what was learned of them; their tickets were all false."""


class Forest:
    """A fitted forest with its cut.

    The seed is the hour since 1970 in which it was fitted; ``version`` is that day and a hash of rows and seed.
    """

    def __init__(self, rows: FloatArray, seed: int) -> None:
        self._rows = rows.astype(np.float16)
        self._seed = seed
        digest = hashlib.blake2b(self._rows.tobytes() + str(seed).encode(), digest_size=4).hexdigest()
        self.version = f"{datetime.fromtimestamp(3600 * seed, UTC):%Y-%m-%d}.{digest}"
        clean = self._rows.astype(np.float64)
        rng = np.random.default_rng(seed)
        anchors = clean[rng.integers(len(clean), size=max(1, int(_ANCHOR_SHARE * len(clean))))].copy()
        for row in anchors:
            raised = rng.choice(len(CHANNELS), size=int(rng.integers(1, 4)), replace=False)
            row[raised] = np.maximum(row[raised], rng.uniform(0.3, _CEILING, size=len(raised)))
        data = np.concatenate([clean, anchors])
        # Of each tree all parameters would be looked at again, which takes as long as growing it.
        with config_context(assume_finite=True, skip_parameter_validation=True):
            self._trees = IsolationForest(
                n_estimators=_TREES, max_samples=min(_MAX_SAMPLES, len(data)), random_state=seed, n_jobs=1
            ).fit(data)
        self._cut = max(float(self._oddness(clean).max()), 0.5) + _MARGIN

    @classmethod
    def fit(cls, rows: FloatArray, *, seed: int) -> Forest | None:
        """Return a forest over ``rows``, shape (windows, channels) of strengths, or None with too few of them."""
        if len(rows) < _LEAST_ROWS:
            return None
        if len(rows) > _MAX_SAMPLES:
            rows = rows[np.sort(np.random.default_rng(seed).choice(len(rows), _MAX_SAMPLES, replace=False))]
        return cls(np.minimum(rows, _CEILING), seed)

    @staticmethod
    def may_raise(strengths: FloatArray) -> BoolArray:
        """Return which windows, ``strengths`` being (channels, windows), stir in two ways; errors are one way."""
        ways = np.sort(np.vstack([strengths[_OF_ERRORS].max(axis=0), strengths[_OTHERS]]), axis=0)
        may: BoolArray = (ways[-1] >= 0.6) & (ways[-2] >= 0.4)
        return may

    def strengths(self, rows: FloatArray) -> FloatArray:
        """Return the strength of each row; from 1 on it is odder than anything clean that was learned."""
        oddness: FloatArray = self._oddness(np.minimum(rows, _CEILING)) / self._cut
        return oddness

    def shares(self, row: FloatArray) -> FloatArray:
        """Return how much each channel has to do with a row's oddness, shape (channels,); they add up to 1.

        What lengthened the path counts as nothing.
        """
        out = np.maximum(self.shortened(row), 0)
        return out / max(float(out.sum()), 1e-9)

    def shortened(self, row: FloatArray) -> FloatArray:
        """Return by how many nodes each channel shortened a row's path through a tree, shape (channels,).

        A split on a channel takes ``c(n) - 1 - c(m)`` off the path that is still to be expected, ``n`` and ``m``
        being the training rows above and below it and ``c`` the mean path among so many (equation 1 of the
        source). So they add up to ``c(N)`` minus the path's length, of which the score is a function.
        """
        odd = np.minimum(row, _CEILING).astype(np.float32)
        out = np.zeros(len(CHANNELS))
        for tree in (grown.tree_ for grown in self._trees.estimators_):
            expected = _mean_path(tree.n_node_samples)
            node = 0
            while (left := tree.children_left[node]) >= 0:
                channel = tree.feature[node]
                child = left if odd[channel] <= tree.threshold[node] else tree.children_right[node]
                out[channel] += expected[node] - 1 - expected[child]
                node = child
        return out / _TREES

    def _oddness(self, rows: FloatArray) -> FloatArray:
        # Lower is stranger in scikit-learn; the sign is turned here and nowhere else.
        oddness: FloatArray = -self._trees.score_samples(rows)
        return oddness

    def encode(self) -> bytes:
        """Return the artefact."""
        out = io.BytesIO()
        np.savez_compressed(out, rows=self._rows, seed=np.array(self._seed))
        return out.getvalue()

    @classmethod
    def decode(cls, artefact: bytes) -> Forest | None:
        """Return the forest of an artefact; None if its channels are not today's."""
        with np.load(io.BytesIO(artefact), allow_pickle=False) as kept:
            rows = kept["rows"].astype(np.float64)
            return cls(rows, int(kept["seed"])) if rows.shape[1] == len(CHANNELS) else None


def _mean_path(n: IntArray) -> FloatArray:
    """Return the mean path to a leaf in a tree over ``n`` rows, that of an unsuccessful search in a binary tree."""
    many = np.maximum(n, 3).astype(np.float64)
    return np.where(n > 2, 2 * (np.log(many - 1) + np.euler_gamma) - 2 * (many - 1) / many, np.maximum(n - 1.0, 0))
