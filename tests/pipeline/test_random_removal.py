"""Capped, random removal: the values of F-Fidelity by NumPy, its fractions, and what it leaves alone."""

import numpy as np
import pytest
import torch
from conftest import small_net
from torch import nn

from torchmetrics_cam import CAMComparison, EvaluationProtocol, explain
from torchmetrics_cam.cams import GradCAM, LayerCAM, PrecomputedMaps, RandomMap, UniformMap
from torchmetrics_cam.functional._noise import hashed_noise
from torchmetrics_cam.pipeline.perturb import _REMOVAL_SEED, removed_at_random

SAMPLES = 3
CAPPED = EvaluationProtocol(
    name="capped",
    scores="raw",
    removal_probability=0.5,
    removal_limit=0.1,
    removal_samples=SAMPLES,
    curve_steps=4,
    insertion_baseline=0.0,
)


def linear():
    """Return a network whose two classes score weighted sums of the 36 pixels, and its weights."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.rand(2, 36, generator=generator, dtype=torch.float64) / 36)
    return model, model[1].weight.detach().numpy()


@pytest.fixture
def given():
    """Five images of 6 x 6 pixels and a map of different values for each."""
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(5, 1, 6, 6, generator=generator, dtype=torch.float64)
    maps = torch.stack([torch.randperm(36, generator=generator) for _ in range(5)]).view(5, 6, 6).double()
    return images, maps


def scores_by_numpy(images, removed):
    """Return the mean scores of class 0 after the random removal of a part of the pixels ``(N, 36)``."""
    _, weights = linear()
    pixels, scores = images.flatten(1).numpy(), np.zeros(len(images))
    for sample in range(SAMPLES):
        draws = hashed_noise(images, 36, _REMOVAL_SEED + sample).numpy()
        for image in range(len(images)):
            expected = 0.5 * removed[image].sum()
            probability = 0.5 if expected <= 0.1 * 36 else 0.1 * 36 / removed[image].sum()
            kept = 1 - removed[image] * (draws[image] < probability)
            scores[image] += (weights[0] * pixels[image] * kept).sum() / SAMPLES
    return scores


def test_soft_masks_and_their_complements_are_removed_as_numpy_says(given):
    images, maps = given
    batch = explain(PrecomputedMaps(linear()[0]), images, 0, cams=maps, protocol=CAPPED)
    masks = (maps / 35).flatten(1).numpy()
    np.testing.assert_allclose(batch.masked_scores, scores_by_numpy(images, 1 - masks), rtol=1e-6)
    np.testing.assert_allclose(batch.complement_scores, scores_by_numpy(images, masks), rtol=1e-6)


def test_the_curves_remove_most_and_least_relevant_pixels_as_numpy_says(given):
    images, maps = given
    batch = explain(PrecomputedMaps(linear()[0]), images, 0, cams=maps, protocol=CAPPED)
    values = maps.flatten(1).numpy()
    # The most relevant of all 36 pixels, and for the insertion all others.
    for scores, removed in (
        (batch.deletion_scores, lambda count: values >= 36 - count),
        (batch.insertion_scores, lambda count: values < 36 - count),
    ):
        expected = [scores_by_numpy(images, removed(count).astype(float)) for count in (0, 9, 18, 27, 36)]
        np.testing.assert_allclose(scores, np.stack(expected), rtol=1e-6)


def test_no_more_than_the_limit_is_removed_on_average_and_less_where_the_explanation_is_small():
    images = torch.rand(4000, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    for size, expected in ((10, 0.05), (20, 0.1), (60, 0.1), (100, 0.1)):
        removed = (torch.arange(100) < size).view(1, 10, 10).expand(len(images), -1, -1)
        drawn = removed_at_random(removed, images, CAPPED, 0)
        assert not (drawn & ~removed).any()
        # Each of 400,000 pixels is drawn by itself: five standard deviations.
        assert drawn.double().mean().item() == pytest.approx(expected, abs=5 * (0.1 / 400_000) ** 0.5)


def test_without_a_limit_below_one_everything_is_as_before_and_scored_once(net, images):
    plain, sampled = (
        explain(GradCAM(net, "body"), images, protocol=EvaluationProtocol(removal_samples=samples))
        for samples in (1, 5)
    )
    assert torch.equal(plain.masked_scores, sampled.masked_scores)
    assert plain.deletion_scores.equal(sampled.deletion_scores)


def test_an_image_has_the_same_value_in_any_batch_and_beside_any_other_method(net, images):
    protocol = EvaluationProtocol(removal_limit=0.2, removal_samples=4)
    sources = {"Grad-CAM": GradCAM(net, "body"), "Layer-CAM": LayerCAM(net, "stem"), "random": RandomMap(net)}
    together = explain(sources, images, protocol=protocol, batch_size=3)
    for index, source in enumerate(sources.values()):
        alone = torch.cat(
            [explain(source, image, protocol=protocol).masked_scores for image in images.split(1)]
        )
        torch.testing.assert_close(together.masked_scores[index], alone, rtol=1e-6, atol=0)


def test_a_uniform_map_that_hides_nothing_keeps_the_score_exactly():
    # A mean of equal float32 numbers can differ from them by a rounding error, which would count as an increase.
    net, images = small_net().float(), torch.rand(64, 3, 12, 12)
    batch = explain(
        UniformMap(net), images, protocol=EvaluationProtocol(removal_limit=0.1, removal_samples=5)
    )
    assert torch.equal(batch.masked_scores, batch.scores)


def test_the_forward_passes_multiply_by_the_samples_and_those_of_other_measures_do_not(net, images):
    counted = []
    handle = net.register_forward_pre_hook(lambda _module, args: counted.append(len(args[0])))
    protocol = EvaluationProtocol(removal_limit=0.1, removal_samples=5)
    comparison = CAMComparison(
        {"Grad-CAM": GradCAM(net, "body")}, measures=["average_drop", "single_deletion"], controls=False,
        protocol=protocol,
    )  # fmt: skip
    comparison.update(images)
    handle.remove()
    assert sum(counted) == len(images) * (1 + 5 + 16)


def test_the_caption_has_the_settings_where_they_change_a_value():
    caption = CAPPED.caption(["average_drop"])
    assert "removal_probability=0.5, removal_limit=0.1, removal_samples=3" in caption
    assert "removal" not in CAPPED.caption(["single_deletion", "road"])
    assert "removal" not in EvaluationProtocol().caption(["average_drop"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"removal_limit": 0}, r"removal_limit=0\): it must lie in \(0, 1\]"),
        ({"removal_probability": 1.1}, r"removal_probability=1.1\): it must lie in \(0, 1\]"),
        ({"removal_samples": 0}, r"removal_samples=0\): it must be a positive integer"),
    ],
)
def test_invalid_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        EvaluationProtocol(**fields)
