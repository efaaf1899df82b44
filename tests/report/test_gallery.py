"""Explained images: their selection, their colors, and the figure of them."""

import sys
from dataclasses import replace

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

from torchmetrics_cam import CAMComparison, EvaluationProtocol, explain
from torchmetrics_cam.cams import GradCAM, HiResCAM, LayerCAM, UniformMap
from torchmetrics_cam.functional import average_drop
from torchmetrics_cam.report.gallery import (
    ExplainedImage,
    explained_images,
    explanation_figure,
    gallery,
    worst_explained,
)


def explained(label="a", score=1.0, masked_score=0.5, methods=1):
    return ExplainedImage(
        image=torch.rand(3, 4, 6),
        label=label,
        score=score,
        methods=[f"Method {number}" for number in range(methods)],
        masks=torch.rand(methods, 4, 6),
        masked_images=torch.rand(methods, 3, 4, 6),
        masked_scores=[masked_score] * methods,
        drops=[0.5] * methods,
    )


# Selection


def test_an_explained_image_holds_the_values_of_its_batch(net, images):
    sources = {"Grad-CAM": GradCAM(net, "body"), "Layer-CAM": LayerCAM(net, "body")}
    other = {"HiRes-CAM": HiResCAM(net, "body")}
    batches = [explain(sources, images), explain(other, images)]
    first, second = explained_images(batches, [2, 0])
    for one, index in ((first, 2), (second, 0)):
        assert one.methods == ["Grad-CAM", "Layer-CAM", "HiRes-CAM"]
        assert one.label == f"class {int(batches[0].class_idx[index])}"
        torch.testing.assert_close(one.image, images[index].float(), rtol=0, atol=0)
        assert one.score == batches[0].scores[0, index].item()
        for position, source in enumerate([*sources.values(), *other.values()]):
            alone = explain(source, images)
            torch.testing.assert_close(one.masks[position], alone.masks[index].float(), rtol=1e-6, atol=0)
            torch.testing.assert_close(
                one.masked_images[position], alone.masked_images[index].float(), rtol=1e-6, atol=0
            )
            assert one.masked_scores[position] == pytest.approx(alone.masked_scores[index].item(), rel=1e-6)
            drop = average_drop(alone.scores, alone.masked_scores, reduction="none")[index].item()
            assert one.drops[position] == pytest.approx(drop, rel=1e-5, abs=1e-7)
        assert one.drop == pytest.approx(sum(one.drops) / 3)


def test_targets_have_a_label_too(net, images):
    batch = explain({"Grad-CAM": GradCAM(net, "body")}, images, targets=lambda output: output[1])
    assert [one.label for one in explained_images([batch], [0])] == ["target"]


def test_the_worst_explained_images_have_the_highest_mean_drop(net, images):
    sources = {"Grad-CAM": GradCAM(net, "body"), "Layer-CAM": LayerCAM(net, "stem")}
    images[1, 0, 0, 0] = float("nan")
    batch = explain(sources, images)
    drops = torch.stack(
        [average_drop(one.scores, one.masked_scores, reduction="none") for one in batch]
    ).mean(0)
    expected = sorted((index for index in (0, 2, 3)), key=lambda index: -drops[index])
    worst = worst_explained([batch], 2)
    assert len(worst) == 2
    for one, index in zip(worst, expected, strict=False):
        assert one.drop == pytest.approx(drops[index].item(), rel=1e-6)
        torch.testing.assert_close(one.image, images[index].float(), rtol=0, atol=0)
    assert len(worst_explained([batch], 9)) == 3


def test_a_class_without_a_name_is_labeled_by_its_number(net, images):
    batch = explain({"Grad-CAM": GradCAM(net, "body")}, images, class_idx=[0, 1, 2, 0])
    found = explained_images([batch], range(4), class_names=["cat", "dog"])
    assert [one.label for one in found] == ["cat", "dog", "class 2", "cat"]


def test_only_the_selected_images_are_masked(net, images):
    masked = []

    def gray(batch):
        masked.append(len(batch))
        return torch.full_like(batch, 0.5)

    sources = {"Grad-CAM": GradCAM(net, "body"), "Layer-CAM": LayerCAM(net, "stem")}
    batch = explain(sources, images, protocol=EvaluationProtocol(baseline=gray))
    assert batch.masked_scores.isfinite().all()
    masked.clear()
    assert len(worst_explained([batch], 1)) == 1
    assert masked == [1, 1]


def test_an_image_whose_masked_score_is_not_finite_is_not_among_the_worst(images):
    class Means(nn.Module):
        """Scores the mean of each channel, or NaN below 0.1."""

        def forward(self, images):
            means = images.flatten(2).mean(2)
            return means.masked_fill(means < 0.1, torch.nan)

    images[2] /= 3
    batch = explain({"half": UniformMap(Means(), 0.5)}, images, 0, protocol="torchcam")
    worst = worst_explained([batch], 4)
    assert len(worst) == 3
    assert batch.valid.all()
    assert batch.counted.tolist() == [[True, True, False, True]]


@pytest.mark.parametrize("measures", [["average_drop"], ["average_gain"]])
def test_the_gallery_has_the_best_and_the_worst_images_of_the_first_measure(net, images, measures):
    comparison = CAMComparison({"Grad-CAM": GradCAM(net, "body")}, measures=measures, per_sample=True)
    comparison.update(images, index=[10, 11, 12, 13])
    values = comparison.samples()[measures[0]][:, 0]
    order = values.argsort(descending=measures == ["average_gain"], stable=True).tolist()
    settings = {
        "image_of": lambda index: images[index - 10],
        "file_of": lambda index: f"{index}.jpg",
        "class_names": None,
        "to_colors": lambda batch: batch / 2,
    }
    found = gallery(comparison, **settings, count=3)
    assert [one.index for one in found["best"]] == [10 + row for row in order[:3]]
    assert [one.index for one in found["worst"]] == [10 + order[3]]
    best = found["best"][0]
    assert best.file == f"{10 + order[0]}.jpg"
    assert best.methods == list(comparison.methods)
    torch.testing.assert_close(best.image, images[order[0]].float() / 2)
    assert best.score == pytest.approx(comparison.samples()["score"][order[0]].item(), rel=1e-6)
    assert gallery(comparison, **settings, count=0) == {"best": [], "worst": []}
    comparison.reset()
    comparison.update(images, index=[-1] * 4)
    with pytest.raises(ValueError, match="the index of an image in its dataset is not known, so the image"):
        gallery(comparison, **settings, count=1)


def test_the_object_of_an_image_is_enclosed_by_a_box(net, images):
    comparison = CAMComparison({"Grad-CAM": GradCAM(net, "body")}, per_sample=True)
    comparison.update(images)
    objects = torch.zeros(4, 12, 12, dtype=torch.bool)
    objects[:, 3:6, 6:] = True
    found = gallery(
        comparison,
        image_of=lambda index: images[index],
        file_of=str,
        class_names=None,
        to_colors=lambda batch: batch,
        count=1,
        objects_of=lambda index: objects[index],
    )
    assert found["best"][0].box == {"left": 0.5, "top": 0.25, "width": 0.5, "height": 0.25}
    assert replace(found["best"][0], objects=None).box is None
    assert replace(found["best"][0], objects=torch.zeros(4, 4).bool()).box is None


# Colors


def test_without_a_function_the_range_of_the_image_becomes_the_range_of_the_colors():
    one = ExplainedImage(
        image=torch.tensor([[[-1.0, 3.0]]]),
        label="a",
        score=1.0,
        methods=["uniform"],
        masks=torch.ones(1, 1, 2),
        masked_images=torch.tensor([[[[1.0, 7.0]]]]),
        masked_scores=[1.0],
        drops=[0.0],
    )
    colors = one.in_colors()
    assert colors.image.tolist() == [[[0.0, 1.0]]] * 3
    assert colors.masked_images.tolist() == [[[[0.5, 1.0]]] * 3]
    shifted = one.in_colors(lambda images: images / 4 + 0.25)
    assert shifted.image.tolist() == [[[0.0, 1.0]]] * 3


# The figure


def test_the_figure_has_a_pair_of_pictures_for_each_image_and_method():
    images = [explained("a", 0.9, 0.0, 2), explained("b", 0.8, 0.5, 2), explained("c", 0.7, 1.0, 2)]
    figure = explanation_figure(images)
    assert len([axes for axes in figure.axes if axes.images]) == 3 * (1 + 2 * 2)
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["a  0.90", "b  0.80", "c  0.70"]
    changes = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert changes == [change for change in ("0.90 → 0.00", "0.80 → 0.50", "0.70 → 1.00") for _ in range(2)]


def test_dollar_signs_in_names_are_not_read_as_mathematics():
    one = replace(explained("$5_ or $_"), methods=["pay $^$"])
    figure = explanation_figure([one])
    FigureCanvasAgg(figure).draw()
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == [r"\$5_ or \$_  1.00"]
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == [r"pay \$^\$"]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_narrow_figure_is_not_cut_off(count):
    figure = explanation_figure([explained()] * count)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    inside, whole = figure.get_tightbbox(canvas.get_renderer()), figure.get_size_inches()
    assert inside.x0 >= 0
    assert inside.y0 >= 0
    assert inside.x1 <= whole[0]
    assert inside.y1 <= whole[1]


def test_a_missing_matplotlib_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        ModuleNotFoundError, match=r'needs matplotlib: pip install "torchmetrics-cam\[plot\]"'
    ):
        explanation_figure([explained()])
