"""Mosaics: by hand, against NumPy, the same everywhere, the labels, what is refused, and a trained network."""

import pickle
import random
from collections import Counter

import digits
import numpy as np
import pytest
import torch
from processes import START_METHOD
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchmetrics import MetricCollection, MinMaxMetric
from torchvision.datasets import FakeData, VisionDataset

from torchmetrics_cam import AverageDrop, CAMComparison, EnergyPointingGame, EvaluationProtocol, MosaicDataset
from torchmetrics_cam.cams import CallableSource, GradCAM, PrecomputedMaps, UniformMap
from torchmetrics_cam.lightning import evaluate
from torchmetrics_cam.lightning.data import update_arguments

CPU = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
SHAPES = pytest.mark.parametrize("spatial", [(8,), (8, 12), (8, 4, 6)], ids=["signals", "images", "volumes"])


def numbered(labels, spatial=(4, 4)):
    """Images whose pixels are the index of the image, with their labels."""
    return [(torch.full((2, *spatial), float(index)), label) for index, label in enumerate(labels)]


def indices_in(item):
    """The indices of the images in a mosaic of `numbered` images, by whether their tile is the explained one."""
    channel, objects = item["input_tensor"][0], item["objects"]
    return set(channel[objects].tolist()), set(channel[~objects].tolist())


# One mosaic


def test_by_hand():
    """2 x 2 pixels become one, their mean, and the mask covers the tile of the explained image."""
    first = torch.tensor([[[1.0, 3, 0, 0], [5, 7, 0, 0], [0, 0, 2, 2], [0, 0, 2, 4]]])
    images = [(first, 4), *((torch.full((1, 4, 4), 10.0 * label), label) for label in (1, 2, 3))]
    item = MosaicDataset(images)[0]
    assert item["class_idx"] == 4
    assert item["input_tensor"].shape == (1, 4, 4)
    assert item["objects"].dtype == torch.bool
    assert item["objects"].sum() == 4
    assert item["input_tensor"][0][item["objects"]].tolist() == [4, 0, 0, 2.5]
    others = item["input_tensor"][0][~item["objects"]].tolist()
    assert sorted(others) == [10] * 4 + [20] * 4 + [30] * 4
    whole = MosaicDataset(images, keep_size=False)[0]
    assert whole["input_tensor"].shape == (1, 8, 8)
    assert torch.equal(whole["input_tensor"][0][whole["objects"]].view(4, 4), first[0])
    rows, columns = (indices.unique().tolist() for indices in whole["objects"].nonzero(as_tuple=True))
    assert rows in ([0, 1, 2, 3], [4, 5, 6, 7])
    assert columns in ([0, 1, 2, 3], [4, 5, 6, 7])


@SHAPES
@pytest.mark.parametrize("keep_size", [True, False])
def test_every_image_is_explained_once_among_other_classes(spatial, keep_size):
    labels = [index % 9 for index in range(30)]
    mosaics = MosaicDataset(numbered(labels, spatial), keep_size=keep_size)
    assert len(mosaics) == 30
    tiles = 2 ** len(spatial)
    for index, item in enumerate(mosaics):
        side = 1 if keep_size else 2
        assert item["input_tensor"].shape == (2, *(length * side for length in spatial))
        assert item["objects"].sum() * tiles == item["objects"].numel()
        assert item["class_idx"] == labels[index]
        explained, others = indices_in(item)
        assert explained == {index}
        assert len({labels[int(other)] for other in others} - {labels[index]}) == tiles - 1


def test_tiles_of_a_side_that_they_do_not_divide_differ_by_a_pixel():
    sizes = Counter()
    for item in MosaicDataset(numbered(range(9), (8, 8)), 3):
        sizes[int(item["objects"].sum())] += 1
        assert item["input_tensor"][0].unique().numel() == 9
    assert set(sizes) <= {4, 6, 9}


def test_the_energy_in_the_tile_against_numpy():
    """The tile is found anew by its pixels, and energy and mask IoU are computed from the map and the tile."""
    images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = [index % 6 for index in range(12)]
    maps = np.random.default_rng(0).uniform(size=(12, 8, 8)).astype(np.float32)
    measures = ["energy_pointing_game", "mask_iou"]
    comparison = CAMComparison(
        {"maps": PrecomputedMaps(nn.Sequential(nn.Flatten(), nn.Linear(192, 6)))},
        measures=measures,
        controls=False,
        per_sample=True,
    )
    (batch,) = DataLoader(MosaicDataset(TensorDataset(images, torch.tensor(labels))), batch_size=12)
    comparison.update(**batch, cams=torch.tensor(maps))
    expected = []
    for image, mosaic, saliency in zip(images.numpy(), batch["input_tensor"].numpy(), maps, strict=True):
        small = image.reshape(3, 4, 2, 4, 2).mean((2, 4))
        tile = np.zeros((8, 8), bool)
        for top in (0, 4):
            for left in (0, 4):
                found = mosaic[:, top : top + 4, left : left + 4]
                tile[top : top + 4, left : left + 4] = np.allclose(found, small, atol=1e-6)
        assert tile.sum() == 16
        scaled = (saliency - saliency.min()) / (saliency.max() - saliency.min())
        high = scaled >= 0.5
        expected.append([(scaled * tile).sum() / scaled.sum(), (high & tile).sum() / (high | tile).sum()])
    values = torch.stack([comparison.samples()[name][:, 0] for name in measures], 1)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


# Draws


def test_a_partner_is_of_any_other_class_with_the_same_probability():
    labels = [0, 0, 1, 1, 1, 1, 1, 2, 3, 3]
    images = numbered(labels, (4,))
    partners, positions = Counter(), Counter()
    for seed in range(2000):
        item = MosaicDataset(images, seed=seed)[0]
        (partner,) = indices_in(item)[1]
        partners[int(partner)] += 1
        positions[item["objects"].tolist().index(True)] += 1
    assert set(partners) == set(range(2, 10))
    of_classes = Counter(labels[partner] for partner in partners.elements())
    assert stats.chisquare(list(of_classes.values())).pvalue > 0.01
    assert stats.chisquare([partners[index] for index in range(2, 7)]).pvalue > 0.01
    assert set(positions) == {0, 2}
    assert stats.chisquare(list(positions.values())).pvalue > 0.01


def test_a_map_that_ignores_the_class_has_the_tiles_share_over_the_classes_however_frequent_they_are():
    """It highlights the image of the lowest class that the mosaic shows, whichever is explained."""
    labels = [0] * 600 + [1] * 60 + [2] * 60 + [3] * 60 + [4] * 60 + [5] * 60
    mosaics = MosaicDataset([(torch.full((1, 2, 2), float(label)), label) for label in labels])
    hits = {label: [] for label in range(6)}
    for item in mosaics:
        image, objects = item["input_tensor"][0], item["objects"]
        hits[item["class_idx"]].append(float(objects[image == image.min()].all()))
    over_images = np.mean([hit for of_class in hits.values() for hit in of_class])
    over_classes = np.mean([np.mean(of_class) for of_class in hits.values()])
    assert over_images > 0.5
    assert over_classes == pytest.approx(0.25, abs=0.04)


def test_mosaics_depend_only_on_the_seed_and_the_index():
    images = numbered([index % 5 for index in range(20)])
    mosaics, other = MosaicDataset(images, seed=3), MosaicDataset(images, seed=4)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    items = list(mosaics)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    expected = torch.stack([item["input_tensor"] for item in items])
    assert any(not torch.equal(other[index]["input_tensor"], expected[index]) for index in range(20))
    assert torch.equal(mosaics[-1]["input_tensor"], expected[19])
    order = list(range(19, -1, -1))
    for workers, batch_size in ((0, 7), (2, 3)):
        loader = DataLoader(
            pickle.loads(pickle.dumps(mosaics)),
            batch_size,
            sampler=order,
            num_workers=workers,
            multiprocessing_context=START_METHOD if workers else None,
        )
        batches = list(loader)
        assert torch.equal(torch.cat([batch["input_tensor"] for batch in batches]), expected[order])
        objects = torch.stack([item["objects"] for item in items])
        assert torch.equal(torch.cat([batch["objects"] for batch in batches]), objects[order])


def test_an_image_that_cannot_be_read_is_replaced_and_is_not_explained():
    images = numbered([index % 4 for index in range(12)])
    before = indices_in(MosaicDataset(images)[0])[1]
    broken = int(min(before))
    images[broken] = None
    for labels in ([index % 4 for index in range(12)], None):
        mosaics = MosaicDataset(images, labels=labels)
        assert mosaics[broken] is None
        after = indices_in(mosaics[0])[1]
        assert broken not in after
        assert {int(index) % 4 for index in after} == {1, 2, 3}


def test_too_few_images_that_can_be_read_are_refused():
    mosaics = MosaicDataset([*numbered([0, 1, 2]), None], labels=[0, 1, 2, 3])
    with pytest.raises(ValueError, match="only 3 classes have images that can be read, and a mosaic needs 4"):
        mosaics[0]


# Labels


class Counted(Dataset):
    """Labeled images that count how often each is read."""

    def __init__(self, of_items, **attributes):
        self.items, self.read = numbered(of_items), Counter()
        vars(self).update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.read[index] += 1
        return self.items[index]


@pytest.mark.parametrize("name", ["targets", "labels"])
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_labels_that_the_dataset_stores_are_not_read_again(name, kind):
    dataset = Counted([0, 1, 2, 3, 0, 1], **{name: kind([0, 1, 2, 3, 0, 1])})
    mosaics = MosaicDataset(dataset)
    assert sum(dataset.read.values()) == 1
    assert mosaics[5]["class_idx"] == 1
    dataset.read.clear()
    assert MosaicDataset(Subset(dataset, [5, 0, 2, 3]))[0]["class_idx"] == 1
    assert sum(dataset.read.values()) == 1 + 4


@pytest.mark.parametrize("attributes", [{}, {"labels": ["a", "b", "c", "d"]}, {"targets": [0, 1]}])
def test_labels_that_it_does_not_store_are_read_once(attributes):
    dataset = Counted([0, 1, 2, 3], **attributes)
    mosaics = MosaicDataset(dataset)
    assert dataset.read == dict.fromkeys(range(4), 1)
    assert mosaics[2]["class_idx"] == 2
    assert dataset.read == dict.fromkeys(range(4), 2)


def test_labels_given_replace_those_of_the_items():
    dataset = Counted([0, 0, 0, 0])
    mosaics = MosaicDataset(dataset, labels=torch.tensor([5, 6, 7, 8]))
    assert [item["class_idx"] for item in mosaics] == [5, 6, 7, 8]
    assert MosaicDataset([image for image, _ in dataset.items], labels=range(4))[3]["class_idx"] == 3


def test_items_may_be_mappings_with_the_usual_names():
    images = numbered([0, 1, 2, 3])
    expected = MosaicDataset(images)[1]["input_tensor"]
    for image_name, label_name in (("image", "label"), ("pixel_values", "labels"), ("img", "y")):
        mappings = [{"id": "a", image_name: image, label_name: torch.tensor(y)} for image, y in images]
        item = MosaicDataset(mappings)[1]
        assert torch.equal(item["input_tensor"], expected)
        assert item["class_idx"] == 1


def test_labels_of_a_torchvision_dataset_are_those_after_its_transform():
    class Vision(VisionDataset):
        """Two classes of each of four pairs."""

        targets = tuple(range(8))

        def __len__(self):
            return 8

        def __getitem__(self, index):
            label = self.targets[index]
            return torch.full((1, 4, 4), float(index)), self.target_transform(label)

    mosaics = MosaicDataset(Vision("", target_transform=lambda label: label // 2))
    for index, item in enumerate(mosaics):
        assert item["class_idx"] == index // 2
        assert {int(other) // 2 for other in indices_in(item)[1]} == {0, 1, 2, 3} - {index // 2}


def test_stored_labels_that_are_not_those_of_the_items_are_refused():
    dataset = Counted([0, 1, 2, 4], targets=[0, 1, 2, 3])
    with pytest.raises(
        ValueError, match="item 3 has the label 4, and the dataset's targets have 3 for it; pass labels="
    ):
        MosaicDataset(dataset)[3]


# Refusals


@pytest.mark.parametrize(
    ("dataset", "settings", "error", "message"),
    [
        (
            numbered([0, 1, 2]),
            {},
            ValueError,
            "have 3 classes, and a mosaic of 2 x 2 tiles shows 4 different",
        ),
        (numbered([0, 1, 2, 3, 3], (4, 4, 4)), {}, ValueError, "a mosaic of 2 x 2 x 2 tiles shows 8 differ"),
        (numbered(range(9)), {"tiles": 1}, ValueError, "tiles is 1; it must be an integer of at least 2"),
        (
            numbered(range(9)),
            {"tiles": 2.0},
            ValueError,
            r"tiles is 2\.0; it must be an integer of at least 2",
        ),
        (numbered(range(50), (6, 6)), {"tiles": 7}, ValueError, r"\(6, 6\) pixels have no room for 7 tiles"),
        (numbered([0, 1, 2, 3.0]), {}, TypeError, r"item 3 has the label 3\.0; a label must be an integer"),
        (numbered([0, 1, "a"]), {}, TypeError, "item 2 has the label 'a'; a label must be an integer"),
        (
            numbered([0, torch.ones(2)]),
            {},
            TypeError,
            r"item 1 has the label tensor\(\[1\., 1\.\]\); a label",
        ),
        (numbered([0, -1, 2, 3]), {}, ValueError, "item 1 has the label -1, which is no class"),
        ([torch.rand(1, 4, 4)] * 4, {}, ValueError, r"item 0 has no label.*return \(image, label\)"),
        (numbered(range(4)), {"labels": [0, 1]}, ValueError, "there are 2 labels and 4 items"),
        (FakeData(4, (1, 4, 4), 4), {}, TypeError, "image of item 0 is a Image; it must be a floating-point"),
        ([(torch.ones(1, 4, 4).byte(), 0)], {}, TypeError, r"is a torch\.uint8 tensor \(1, 4, 4\); it must"),
        ([(torch.ones(4), 0)], {}, TypeError, r"is a torch\.float32 tensor \(4,\); it must be"),
        (iter(numbered(range(4))), {}, TypeError, "dataset is a list_iterator without a length"),
        ([None, None], {"labels": [0, 1]}, ValueError, "has 2 items, and none of them is an image"),
        ([], {}, ValueError, "has 0 items, and none of them is an image"),
    ],
)
def test_unusable_data_is_refused_when_the_mosaics_are_made(dataset, settings, error, message):
    with pytest.raises(error, match=message):
        MosaicDataset(dataset, **settings)


def test_images_of_different_shapes_are_refused():
    images = [*numbered(range(4)), *numbered(range(4, 5), (4, 5))]
    message = r"item 4 has an image of the shape \(2, 4, 5\), and an earlier one has \(2, 4, 4\)"
    with pytest.raises(ValueError, match=message):
        MosaicDataset(images)
    with pytest.raises(ValueError, match=message):
        MosaicDataset(images, labels=range(5))[4]


# Trained network


@pytest.fixture(scope="module")
def trained():
    """A network of any input size trained on real digits, and 100 of them that it has not seen."""
    return digits.trained_on_large_digits(), digits.large(0, 100)


@pytest.mark.parametrize("keep_size", [True, False])
def test_grad_cam_finds_the_tile_and_a_map_that_ignores_the_class_does_not(trained, keep_size):
    """The activation is high on every digit. On one tile only is it evidence for the explained class."""
    model, images = trained
    source = CallableSource(model, lambda model, images, class_idx: model[:6](images).mean(1))
    comparison = CAMComparison(
        {"Grad-CAM": GradCAM(model, "5"), "activation": source},
        measures=["energy_pointing_game", "pointing_game"],
        protocol=EvaluationProtocol(pointing_tolerance=0),
    )
    for batch in DataLoader(MosaicDataset(images, keep_size=keep_size), 50):
        comparison.update(**batch)
    values = comparison.compute()
    assert values["Grad-CAM/energy_pointing_game"] > 0.4
    assert values["Grad-CAM/energy_pointing_game_lower"] > values["activation/energy_pointing_game_upper"]
    assert values["activation/energy_pointing_game"] == pytest.approx(0.25, abs=0.02)
    assert values["uniform map/energy_pointing_game"] == 0.25
    assert values["center map/energy_pointing_game"] == pytest.approx(0.25, abs=1e-6)
    assert values["Grad-CAM/pointing_game"] > 0.4
    assert values["uniform map/pointing_game"] == values["center map/pointing_game"] == 0.25


def test_evaluate_takes_mosaics_as_they_are(trained):
    model, images = trained
    mosaics = MosaicDataset(images)
    by_hand = EnergyPointingGame(GradCAM(model, "5"))
    for batch in DataLoader(mosaics, batch_size=30):
        by_hand.update(**batch)
    metric = EnergyPointingGame(GradCAM(model, "5"))
    value = evaluate(metric, mosaics, batch_size=40, **CPU)
    assert value.item() == pytest.approx(by_hand.compute().item(), abs=1e-6)
    assert metric.total == 100
    assert evaluate(EnergyPointingGame(UniformMap(model)), mosaics, **CPU) == 0.25


def test_other_metrics_are_evaluated_on_mosaics_without_the_objects(trained):
    model, images = trained
    mosaics = MosaicDataset(Subset(images, range(40)))
    (batch,) = DataLoader(mosaics, batch_size=40)
    drop, energy = AverageDrop(GradCAM(model, "5")), EnergyPointingGame(GradCAM(model, "5"))
    drop.update(batch["input_tensor"], batch["class_idx"])
    energy.update(**batch)
    for metric in (AverageDrop(GradCAM(model, "5")), MinMaxMetric(AverageDrop(GradCAM(model, "5")))):
        value = evaluate(metric, mosaics, **CPU)
        value = value["raw"] if isinstance(value, dict) else value
        assert value.item() == pytest.approx(drop.compute().item(), abs=1e-6)
    both = {"drop": AverageDrop(GradCAM(model, "5")), "energy": EnergyPointingGame(GradCAM(model, "5"))}
    values = evaluate(MetricCollection(both), mosaics, **CPU)
    assert values["drop"].item() == pytest.approx(drop.compute().item(), abs=1e-6)
    assert values["energy"].item() == pytest.approx(energy.compute().item(), abs=1e-6)


def test_only_a_batch_with_all_three_names_is_taken_as_it_is():
    images, labels, objects = torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), torch.ones(2, 4, 4).bool()
    batch = {"input_tensor": images, "class_idx": labels, "objects": objects}
    assert update_arguments(batch, None) == batch
    for names in (["input_tensor", "class_idx"], ["input_tensor", "objects"], ["input_tensor"]):
        assert update_arguments({name: batch[name] for name in names}, None) == {"input_tensor": images}
    assert update_arguments({**batch, "file": "a.png"}, None) == {"input_tensor": images}


def test_the_protocol_without_normalization_is_the_value_of_the_paper(trained):
    """The share of the positive attribution; min-max normalization would subtract the lowest value first."""
    model, images = trained
    (batch,) = DataLoader(MosaicDataset(Subset(images, range(40)), keep_size=False), batch_size=40)
    maps = torch.randn(40, 32, 32, generator=torch.Generator().manual_seed(0)) + 1
    metric = EnergyPointingGame(PrecomputedMaps(model), protocol=EvaluationProtocol(normalize="none"))
    metric.update(**batch, cams=maps)
    positive, tiles = maps.clamp(min=0).numpy(), batch["objects"].numpy()
    expected = (positive * tiles).sum((1, 2)) / positive.sum((1, 2))
    assert metric.compute().item() == pytest.approx(expected.mean(), rel=1e-5)
