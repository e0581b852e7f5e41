"""Associations of units with labels, against the formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from recurra.config import UserError
from recurra.tracing import read_labels, trace, track
from tracing.models import TEXT, handmade, model


@pytest.fixture
def traced():
    return trace(model(), TEXT)


class TestTracking:
    def test_numbers_are_correlated(self):
        rng = np.random.default_rng(0)
        values, labels = rng.normal(size=(50, 7)), rng.normal(size=50)
        values[:, 4] = -labels + 0.1 * rng.normal(size=50)
        values[:, 2] = 1.7  # never moves
        found = track(handmade(values), labels.tolist(), count=7)
        assert found.measure == "correlation"
        assert found.best[0].unit == 4
        assert found.best[0].score < -0.9
        scores = {each.unit: each.score for each in found.best}
        for unit in {0, 1, 3, 4, 5, 6}:
            expected = np.corrcoef(values[:, unit].astype(np.float32), labels)[0, 1]
            assert scores[unit] == pytest.approx(expected, abs=1e-9)
        assert scores[2] == 0
        sizes = [abs(each.score) for each in found.best]
        assert sizes == sorted(sizes, reverse=True)

    def test_two_categories_are_point_biserial(self):
        rng = np.random.default_rng(1)
        values = rng.normal(size=(30, 3)).astype(np.float32)
        labels = ["out" if k % 3 else "in" for k in range(30)]
        found = track(handmade(values), labels, count=3)
        assert (found.measure, found.categories) == ("point-biserial", ("in", "out"))
        mask = np.array(labels) == "out"
        for each in found.best:
            x = values[:, each.unit].astype(float)
            share = mask.mean() * (1 - mask.mean())
            expected = (x[mask].mean() - x[~mask].mean()) / x.std() * math.sqrt(share)
            assert each.score == pytest.approx(expected, abs=1e-9)

    def test_more_categories_are_eta_squared(self):
        rng = np.random.default_rng(2)
        labels = [str(k) for k in rng.choice(["noun", "verb", "det"], 40)]
        values = rng.normal(size=(40, 3)).astype(np.float32)
        values[:, 1] += [{"noun": 5, "verb": -5, "det": 0}[label] for label in labels]
        found = track(handmade(values), labels, count=3)
        assert found.measure == "eta squared"
        assert found.best[0].unit == 1
        for each in found.best:
            x = values[:, each.unit].astype(float)
            between = sum(
                (np.array(labels) == c).sum() * (x[np.array(labels) == c].mean() - x.mean()) ** 2
                for c in ("noun", "verb", "det")
            )
            assert each.score == pytest.approx(between / ((x - x.mean()) ** 2).sum(), abs=1e-9)

    @pytest.mark.parametrize("categories", [2, 3])
    def test_chance_is_what_shifted_labels_find(self, categories):
        rng = np.random.default_rng(3)
        labels = [f"c{k}" for k in rng.integers(0, categories, 24)]
        values = rng.normal(size=(24, 4)).astype(np.float32)
        found = track(handmade(values), labels)
        highest = []
        for shift in range(1, 24):
            shifted = labels[-shift:] + labels[:-shift]
            highest.append(abs(track(handmade(values), shifted, count=1).best[0].score))
        assert found.chance[1, "hidden"] == pytest.approx(np.quantile(highest, 0.95), abs=1e-9)

    def test_every_layer_and_gate_has_its_own(self, traced):
        found = track(traced, list(range(len(traced.ids))), count=2)
        assert len(found.best) == 2 * 6 * 2
        assert found.units(2, "cell") == [each.unit for each in found.best if each[:2] == (2, "cell")]
        assert found.chance.keys() == {(layer, name) for layer in (1, 2) for name in traced.layers[0]}
        assert all(math.isnan(chance) for chance in found.chance.values())  # 14 tokens

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (["1"] * 13, "each of the text's 14 tokens, line ends included, got 13"),
            ([], "14 tokens, .* got 0"),
            (["x"] * 14, "all 14 are 'x'"),
            (["1", "nan"] * 7, "finite numbers or names of categories, got 'nan'"),
            ([*"1212121212121", "x"], "got 13 numbers and 1 of another kind, such as 'x'"),
            ([1.0, math.inf] * 7, "finite numbers or names of categories, got inf"),
        ],
    )
    def test_bad_labels(self, traced, labels, message):
        assert len(traced.ids) == 14
        with pytest.raises(UserError, match=message):
            track(traced, labels)

    def test_too_many_categories(self):
        with pytest.raises(UserError, match="names of at most 100 categories, got 101; 'w0' is a name"):
            track(handmade(np.ones((101, 1))), [f"w{k}" for k in range(101)])

    def test_labels_are_read_between_white_space(self, tmp_path):
        (tmp_path / "l").write_text("1 0\n\n1\t0\r\n2.5")
        assert read_labels(str(tmp_path / "l")) == ["1", "0", "1", "0", "2.5"]
        with pytest.raises(UserError, match="missing"):
            read_labels(str(tmp_path / "missing"))
