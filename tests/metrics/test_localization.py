"""Localization against masks and boxes: by hand, against NumPy, on real photos, and what is refused."""

import numpy as np
import pytest
import torch
from conftest import Calls
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from torchmetrics_cam import (
    CAMComparison,
    EnergyPointingGame,
    EvaluationProtocol,
    LocalizationAUC,
    MaskIoU,
    PointingGame,
    RelevanceRankAccuracy,
    TopKIntersection,
)
from torchmetrics_cam.cams import GradCAM, PrecomputedMaps
from torchmetrics_cam.functional import boxes_to_objects, energy_pointing_game, mask_iou, pointing_game

METRICS = {
    "energy_pointing_game": EnergyPointingGame,
    "pointing_game": PointingGame,
    "mask_iou": MaskIoU,
    "relevance_rank_accuracy": RelevanceRankAccuracy,
    "localization_auc": LocalizationAUC,
    "top_k_intersection": TopKIntersection,
}
MEASURES = list(METRICS)
EXACT = EvaluationProtocol.preset("paper").replace(pointing_tolerance=0.0)
DTYPE = torch.float32  # of the fixtures net and images


def test_by_hand():
    maps = torch.tensor([[0.0, 0.25, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    objects = torch.tensor([[False, True, True, False], [True, False, False, False]])
    assert energy_pointing_game(maps, objects, reduction="none").tolist() == pytest.approx([1.25 / 2.25, 0])
    assert pointing_game(maps, objects, reduction="none").tolist() == [0.5, 0.25]
    assert pointing_game(maps, objects, tolerance=1, reduction="none").tolist() == [1, 0.5]
    assert mask_iou(maps, objects, reduction="none").tolist() == pytest.approx([1 / 3, 0])
    assert mask_iou(maps, objects, threshold=0.2, reduction="none").tolist() == pytest.approx([2 / 3, 0])
    assert mask_iou(maps[1:], ~objects[1:] & objects[1:]) == 0


def test_boxes_are_left_top_right_bottom():
    mask = boxes_to_objects(torch.tensor([[1, 0, 3, 2], [0, 3, 5, 4]]), (4, 5))
    assert mask[0].nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    assert mask[1].nonzero().tolist() == [[3, column] for column in range(5)]
    assert boxes_to_objects(torch.tensor([[1, 3]]), (4,)).tolist() == [[False, True, True, False]]
    assert boxes_to_objects(torch.tensor([[0, 1, 2, 1, 2, 3]]), (4, 4, 4)).nonzero().tolist() == [
        [0, 2, 1, 0]
    ]
    with pytest.raises(ValueError, match=r"pass a tensor of shape \(N, 4\), one box per image"):
        boxes_to_objects(torch.tensor([[0, 1]]), (4, 4))


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.5])
def test_against_numpy(tolerance, net):
    generator = np.random.default_rng(0)
    maps = generator.uniform(size=(6, 12, 12)).astype(np.float32)
    maps = np.minimum(maps, 0.98)  # several pixels share the highest value
    objects = generator.uniform(size=(6, 12, 12)) < 0.1
    images = torch.rand(6, 3, 12, 12)
    expected = {measure: [] for measure in MEASURES}
    for saliency, there in zip(maps, objects, strict=True):
        scaled = (saliency - saliency.min()) / (saliency.max() - saliency.min())
        near = ndimage.distance_transform_edt(~there) <= tolerance
        expected["energy_pointing_game"].append((scaled * there).sum() / scaled.sum())
        expected["pointing_game"].append(near[scaled == scaled.max()].mean())
        expected["mask_iou"].append(((scaled >= 0.7) & there).sum() / ((scaled >= 0.7) | there).sum())
        first = there.ravel()[np.argsort(-saliency.ravel())]
        expected["relevance_rank_accuracy"].append(first[: there.sum()].mean())
        expected["localization_auc"].append(roc_auc_score(there.ravel(), saliency.ravel()))
        expected["top_k_intersection"].append(first[:20].mean())
    protocol = EXACT.replace(pointing_tolerance=tolerance, iou_threshold=0.7, top_k=20)
    comparison = CAMComparison(
        {"maps": PrecomputedMaps(net)}, measures=MEASURES, protocol=protocol, per_sample=True, controls=False
    )
    with Calls(net) as calls:
        comparison.update(images, cams=torch.tensor(maps), objects=torch.tensor(objects))
    assert calls.batches == [6]
    for measure, values in expected.items():
        np.testing.assert_allclose(comparison.samples()[measure][:, 0], values, rtol=1e-5, atol=1e-6)
        assert np.std(values) > 1e-3
    for measure, metric in METRICS.items():
        single = metric(PrecomputedMaps(net), protocol=protocol)
        for part in (slice(2), slice(2, 6)):
            cams, marked = torch.tensor(maps[part]), torch.tensor(objects[part]).int()
            with Calls(net) as calls:
                single.update(images[part], cams=cams, objects=marked)
            assert calls.batches == [len(marked)]
        assert single.compute().item() == pytest.approx(np.mean(expected[measure]), rel=1e-5)


def test_a_pretrained_network_looks_at_the_cat_and_at_the_cup(lite0, photos):
    """Boxes drawn by hand on two photos; the controls do not find them."""
    boxes = boxes_to_objects(torch.tensor([[20, 5, 180, 215], [45, 55, 185, 205]]), (224, 224))
    comparison = CAMComparison({"Grad-CAM": GradCAM(lite0, "_blocks.15")}, measures=MEASURES, protocol=EXACT)
    comparison.update(photos[[2, 4]], class_idx=[282, 967], objects=boxes)
    values = comparison.compute()
    assert values["Grad-CAM/pointing_game"] == 1
    covered = boxes.float().mean()
    for measure in ("energy_pointing_game", "relevance_rank_accuracy", "top_k_intersection"):
        assert values[f"uniform map/{measure}"].item() == pytest.approx(covered.item(), rel=1e-5)
        assert values[f"Grad-CAM/{measure}"] > values[f"uniform map/{measure}"]
    assert values["uniform map/localization_auc"] == 0.5
    assert values["Grad-CAM/localization_auc"] > 0.7


def test_images_whose_object_is_empty_or_covers_them_are_excluded_and_counted(net):
    images, maps = torch.rand(4, 3, 12, 12), torch.rand(4, 12, 12)
    objects = torch.zeros(4, 12, 12, dtype=torch.bool)
    objects[0, :4], objects[1] = True, True
    protocol = EXACT.replace(top_k=20)
    for metric, counted in ((RelevanceRankAccuracy, 2), (LocalizationAUC, 1), (TopKIntersection, 2)):
        single = metric(PrecomputedMaps(net), protocol=protocol)
        single.update(images, cams=maps, objects=objects)
        assert (single.total, single.nan_count) == (counted, 4 - counted)
        alone = metric(PrecomputedMaps(net), protocol=protocol)
        alone.update(images[:counted], cams=maps[:counted], objects=objects[:counted])
        assert single.compute().item() == pytest.approx(alone.compute().item())


def test_one_value_for_each_class(net):
    images, maps, objects = torch.rand(4, 3, 12, 12), torch.rand(4, 12, 12), torch.rand(4, 12, 12) < 0.3
    protocol = EXACT.replace(top_k=20)
    for metric in METRICS.values():
        by_class = metric(PrecomputedMaps(net), protocol=protocol, num_classes=5, average="none")
        by_class.update(images, class_idx=[1, 3, 1, 1], cams=maps, objects=objects)
        values = by_class.compute()
        assert values[[0, 2, 4]].isnan().all()
        for index, images_of_class in ((1, [0, 2, 3]), (3, [1])):
            alone = metric(PrecomputedMaps(net), protocol=protocol)
            alone.update(
                images[images_of_class], cams=maps[images_of_class], objects=objects[images_of_class]
            )
            assert values[index].item() == pytest.approx(alone.compute().item(), rel=1e-6)


def test_more_highest_pixels_than_an_image_has_are_refused_and_nothing_changes(net):
    images, objects = torch.rand(4, 3, 12, 12), torch.ones(4, 12, 12)
    for metric in (
        TopKIntersection(GradCAM(net, "body")),
        CAMComparison({"one": GradCAM(net, "body")}, measures=MEASURES),
    ):
        before = metric.metric_state
        with (
            Calls(net) as calls,
            pytest.raises(
                ValueError, match=r"choose a number from 1 to 143, in a protocol with Eval.*top_k=..."
            ),
        ):
            metric.update(images, objects=objects)
        assert calls.batches == []
        assert metric.update_count == 0
        torch.testing.assert_close(metric.metric_state, before)
    with pytest.raises(ValueError, match=r"top_k=0\): it must be a positive integer"):
        EvaluationProtocol(top_k=0)


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        (
            None,
            ValueError,
            r"the objects are missing; pass update\(images, objects=...\), a tensor \(4, 12, 12\)",
        ),
        ([1], TypeError, "objects is a list; it must be a tensor"),
        (
            torch.ones(4, 6, 6),
            ValueError,
            r"objects has shape \(4, 6, 6\); one object mask of the image's size for each image is \(4, 12, 12\)",
        ),
    ],
    ids=["none", "a list", "another size"],
)
def test_masks_that_do_not_fit_are_refused_before_the_model_runs(masks, error, message, net):
    images = torch.rand(4, 3, 12, 12)
    for metric in (
        MaskIoU(GradCAM(net, "body")),
        CAMComparison({"one": GradCAM(net, "body")}, measures=MEASURES),
    ):
        with Calls(net) as calls, pytest.raises(error, match=message):
            metric.update(images, objects=masks)
        assert calls.batches == []
        assert metric.update_count == 0
