"""Measures of localization by rank: by hand, against NumPy and scikit-learn, and against Quantus 0.6."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import quantus
import torch
from conftest import HostSyncs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import roc_auc_score

from torchmetrics_cam.functional import (
    energy_pointing_game,
    localization_auc,
    mask_iou,
    pointing_game,
    relevance_rank_accuracy,
    top_k_intersection,
)


def each_of(maps, objects, k=3):
    """Return the three measures of each image, ``(3, N)``."""
    return torch.stack(
        [
            relevance_rank_accuracy(maps, objects, reduction="none"),
            localization_auc(maps, objects, reduction="none"),
            top_k_intersection(maps, objects, k=k, reduction="none"),
        ]
    )


def test_by_hand():
    maps = torch.tensor([[0.9, 0.8, 0.4, 0.3, 0.1]])
    objects = torch.tensor([[True, False, True, False, False]])
    # Of the two highest one, of six pairs five, of the three highest two.
    assert each_of(maps, objects).flatten().tolist() == pytest.approx([1 / 2, 5 / 6, 2 / 3])
    assert each_of(-maps, objects).flatten().tolist() == pytest.approx([0, 1 / 6, 1 / 3])
    both = torch.cat([maps, -maps]), objects.expand(2, -1)
    assert relevance_rank_accuracy(*both).item() == pytest.approx(1 / 4)
    assert localization_auc(*both).item() == pytest.approx(1 / 2)
    assert top_k_intersection(*both, k=3).item() == pytest.approx(1 / 2)


def test_ties_by_hand():
    maps = torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.1], [0.2] * 5, [0.0, 0.0, 0.0, 1.0, 1.0]])
    objects = torch.tensor([[True, False, True, False, False]] * 3)
    found = each_of(maps, objects)
    assert found[0].tolist() == pytest.approx([(1 + 1 / 3) / 2, 2 / 5, 0])
    assert found[1].tolist() == pytest.approx([(3 + 2) / 6, 1 / 2, (2 * 1 / 2) / 6])
    assert found[2].tolist() == pytest.approx([(1 + 2 / 3) / 3, 2 / 5, 2 / 3 / 3])


def test_pixels_that_tie_share_the_last_places_over_all_their_orders():
    values, inside = np.array([2, 1, 1, 1, 0, 1]), np.array([True, True, False, False, True, False])
    orders = [
        order for order in itertools.permutations(range(6)) if (np.diff(values[list(order)]) <= 0).all()
    ]
    assert len(orders) == math.factorial(4)
    for k in (1, 2, 3, 4, 5):
        mean = np.mean([inside[list(order[:k])].mean() for order in orders])
        found = top_k_intersection(torch.tensor(values)[None] / 2, torch.tensor(inside)[None], k=k)
        assert found.item() == pytest.approx(mean)


def test_an_object_that_is_empty_or_covers_the_image_is_not_defined():
    objects = torch.tensor([[False] * 4, [True] * 4, [True, False, False, False]])
    found = each_of(torch.rand(3, 4), objects)
    assert found.isnan().tolist() == [[True, False, False], [True, True, False], [True, False, False]]
    assert (found[0, 1], found[2, 1]) == (1, 1)
    assert relevance_rank_accuracy(torch.rand(3, 4), objects).isnan()


@pytest.mark.parametrize("shape", [(8, 30), (8, 6, 7), (8, 3, 4, 5)], ids=["1d", "2d", "3d"])
def test_against_numpy_and_scikit_learn(shape):
    generator = np.random.default_rng(0)
    maps, objects = generator.uniform(size=shape), generator.uniform(size=shape) < 0.3
    tied = maps.round(1)
    found = each_of(torch.tensor(maps), torch.tensor(objects), k=10)
    found_auc = localization_auc(torch.tensor(tied), torch.tensor(objects), reduction="none")
    for index in range(8):
        values, inside = maps[index].ravel(), objects[index].ravel()
        first = inside[np.argsort(-values)]
        expected = first[: inside.sum()].mean(), roc_auc_score(inside, values), first[:10].mean()
        assert found[:, index].tolist() == pytest.approx(expected, rel=1e-12)
        assert found_auc[index].item() == pytest.approx(roc_auc_score(inside, tied[index].ravel()), rel=1e-12)


@pytest.mark.parametrize("shape", [(8, 30), (8, 6, 7)], ids=["1d", "2d"])  # Quantus takes no volumes
def test_against_quantus(shape):
    """Without ties, whose order is arbitrary in Quantus, but for the ROC curve."""
    generator = np.random.default_rng(1)
    maps, objects = generator.uniform(size=shape), generator.uniform(size=shape) < 0.3
    data = {"x_batch": np.zeros((8, 1, *shape[1:])), "y_batch": np.zeros(8, int), "s_batch": objects[:, None]}
    metrics = (
        quantus.RelevanceRankAccuracy(disable_warnings=True),
        quantus.AUC(disable_warnings=True),
        quantus.TopKIntersection(k=10, disable_warnings=True),
    )
    theirs = [metric(model=None, **data, a_batch=maps[:, None].copy()) for metric in metrics]
    np.testing.assert_allclose(each_of(torch.tensor(maps), torch.tensor(objects), k=10), theirs, rtol=1e-12)
    tied = maps.round(1)
    theirs = metrics[1](model=None, **data, a_batch=tied[:, None].copy())
    ours = localization_auc(torch.tensor(tied), torch.tensor(objects), reduction="none")
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("k", [0, 12, 1000])
def test_message_of_a_number_of_pixels_that_says_nothing(k):
    with pytest.raises(
        ValueError,
        match=f"the {k} highest pixels of maps with 12 pixels say nothing about the maps; choose a number from 1 to 11",
    ):
        top_k_intersection(torch.rand(2, 3, 4), torch.ones(2, 3, 4, dtype=torch.bool), k=k)


def test_no_formula_synchronizes_a_gpu_with_the_host():
    maps, objects = torch.rand(3, 8, 8), torch.rand(3, 8, 8) < 0.3
    with HostSyncs() as syncs:
        each_of(maps, objects)
        pointing_game(maps, objects, tolerance=2)
    assert (syncs.seen, syncs.copies) == ([], 0)


def test_ranks_of_large_images_are_exact():
    """The sum of the ranks of a million pixels is beyond what float32 counts."""
    side = 1000
    maps = torch.arange(side * side, dtype=torch.float32).view(1, side, side) / side**2
    objects = torch.zeros(1, side, side, dtype=torch.bool)
    objects[:, side // 2 :] = True
    assert localization_auc(maps, objects) == localization_auc(-maps, ~objects) == 1
    assert localization_auc(-maps, objects) == 0


few_values = hnp.arrays(np.float64, (3, 9), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0]))


@given(few_values, hnp.arrays(bool, (3, 9)), st.integers(1, 8), st.permutations(range(9)))
@settings(deadline=None)
def test_values_are_in_range_and_depend_on_no_order_of_the_pixels(maps, objects, k, order):
    maps, objects = torch.tensor(maps), torch.tensor(objects)
    found = each_of(maps, objects, k)
    assert ((found >= 0) & (found <= 1 + 1e-12) | found.isnan()).all()
    torch.testing.assert_close(each_of(maps[:, order], objects[:, order], k), found, equal_nan=True)
    torch.testing.assert_close(each_of(maps.square() * 3 + 1, objects, k), found, equal_nan=True)
    torch.testing.assert_close(
        localization_auc(-maps, objects, reduction="none"), 1 - found[1], equal_nan=True
    )


@pytest.mark.parametrize(
    "formula",
    [
        energy_pointing_game,
        pointing_game,
        mask_iou,
        relevance_rank_accuracy,
        localization_auc,
        partial(top_k_intersection, k=1),
    ],
    ids=["energy", "pointing game", "iou", "rank accuracy", "auc", "top-k"],
)
def test_a_map_that_is_not_finite_has_no_value(formula):
    maps = torch.tensor([[0.0, 1.0], [math.nan, 1.0], [math.inf, 1.0], [-math.inf, 1.0]])
    objects = torch.tensor([[False, True]]).expand(4, -1)
    found = formula(maps, objects, reduction="none")
    assert found[0] == 1
    assert found[1:].isnan().all()
    with HostSyncs() as syncs:
        formula(maps, objects, reduction="none")
    assert (syncs.seen, syncs.copies) == ([], 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_energy_of_a_large_map_in_half_precision_is_exact(dtype):
    objects = torch.zeros(1, 512, 512, dtype=torch.bool)
    objects[:, :200, :200] = True
    found = energy_pointing_game(torch.ones(1, 512, 512, dtype=dtype), objects)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx((200 / 512) ** 2)
