"""The public batch of `explain`: values by hand, equality with the metrics, K sources, laziness, no trace."""

import pytest
import torch
from conftest import Calls, small_net
from restoration import Fragile, traces
from torch import nn

from torchmetrics_cam import (
    AverageDrop,
    AverageGain,
    CAMComparison,
    Coherency,
    DeletionAUC,
    DropInDeletion,
    EvaluationProtocol,
    IncreaseInConfidence,
    InsertionAUC,
    explain,
)
from torchmetrics_cam.cams import CallableSource, GradCAM, LayerCAM, PrecomputedMaps, RandomMap, UniformMap
from torchmetrics_cam.functional import area_under_curve, average_drop, average_gain, increase_in_confidence

RAW = EvaluationProtocol(scores="raw")
CURVE = EvaluationProtocol(curve_steps=5)


def channel_means() -> nn.Module:
    """Return a model whose scores are the means of the channels."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def sources_of(net):
    return {"Grad-CAM": GradCAM(net, "body"), "LayerCAM": LayerCAM(net, "body"), "half": UniformMap(net, 0.5)}


def test_fractions_of_a_curve_are_exact_in_float64(net):
    """Rounded to float32 they would limit the areas under curves of float64 scores."""
    batch = explain(GradCAM(net, "body"), torch.rand(1, 3, 7, 7, dtype=torch.float64), protocol=CURVE)
    assert batch.fractions.tolist() == [pixels / 49 for pixels in (0, 10, 20, 30, 40, 49)]


def test_values_by_hand():
    images = torch.tensor([[[[8.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 4.0]]]])
    cams = torch.tensor([[[4.0, 1.0], [0.0, -1.0]]])  # rectified and normalized: 1, 1/4, 0, 0
    batch = explain(
        PrecomputedMaps(channel_means()), images, protocol=RAW.replace(baseline=(1.0, 2.0)), cams=cams
    )
    assert batch.class_idx.tolist() == [0]
    assert batch.maps.tolist() == [[[4.0, 1.0], [0.0, 0.0]]]
    assert batch.masks.tolist() == [[[1.0, 0.25], [0.0, 0.0]]]
    assert batch.masked_images.tolist() == [[[[8.0, 1.75], [1.0, 1.0]], [[0.0, 1.5], [2.0, 2.0]]]]
    assert batch.scores.tolist() == [3.0]
    assert batch.masked_scores.tolist() == [11.75 / 4]
    assert batch.complement_scores.tolist() == [(1.0 + 3.25 + 0.0 + 0.0) / 4]
    assert batch.valid.tolist() == [True]
    assert batch.degenerate.tolist() == [False]
    assert batch.protocol.baseline == (1.0, 2.0)
    assert batch.methods == ()
    second = explain(PrecomputedMaps(channel_means()), images, 1, protocol=RAW, cams=cams)
    assert (second.scores.tolist(), second.masked_scores.tolist()) == ([1.0], [0.0])


def test_targets_are_explained_instead_of_a_class(net, images):
    batch = explain(GradCAM(net, "body"), images, targets=lambda scores: scores[1] - scores[0])
    scores = net(images).softmax(1)
    assert batch.class_idx is None
    torch.testing.assert_close(batch.scores, (scores[:, 1] - scores[:, 0]).detach())
    masked = net(batch.masked_images).softmax(1)
    torch.testing.assert_close(batch.masked_scores, (masked[:, 1] - masked[:, 0]).detach())


@pytest.mark.parametrize("protocol", ["paper", "score_cam", "grad_cam", "torchcam"])
def test_the_metrics_are_made_of_its_values(protocol, net, images):
    source, logits_fn = GradCAM(net, "body"), None if protocol != "torchcam" else nn.Softmax(dim=1)
    batch = explain(source, images, logits_fn=logits_fn, protocol=protocol)
    expected = {
        AverageDrop: average_drop(
            batch.scores,
            batch.masked_scores,
            relative=batch.protocol.drop == "relative",
            eps=batch.protocol.drop_eps,
        ),
        IncreaseInConfidence: increase_in_confidence(batch.scores, batch.masked_scores),
        AverageGain: average_gain(batch.scores, batch.masked_scores),
        DropInDeletion: ((batch.scores - batch.complement_scores) / batch.scores).mean(),
        DeletionAUC: area_under_curve(batch.deletion_scores, batch.fractions).mean(),
        InsertionAUC: area_under_curve(batch.insertion_scores, batch.fractions).mean(),
        Coherency: batch.coherency.mean(),
    }
    for metric_class, value in expected.items():
        metric = metric_class(source, logits_fn, protocol=protocol)
        metric.update(images)
        torch.testing.assert_close(metric.compute(), value.float())


def test_a_mapping_of_sources_gives_a_leading_dimension(net, images):
    sources = sources_of(net)
    batch = explain(sources, images, [0, 1, 2, 3])
    assert batch.methods == ("Grad-CAM", "LayerCAM", "half")
    assert batch.images.shape == images.shape
    assert batch.class_idx.tolist() == [0, 1, 2, 3]
    assert batch.masks.shape == (3, 4, 12, 12)
    assert batch.masked_images.shape == (3, 4, 3, 12, 12)
    assert batch.degenerate.tolist() == [[False] * 4, [False] * 4, [True] * 4]
    for index, (source, one) in enumerate(zip(sources.values(), batch, strict=True)):
        alone = explain(source, images, [0, 1, 2, 3])
        for name in ("masks", "masked_images", "scores", "masked_scores", "complement_scores", "valid"):
            wanted = getattr(alone, name)
            torch.testing.assert_close(getattr(batch, name)[index], wanted, check_dtype=False)
            torch.testing.assert_close(getattr(one, name), wanted)
        assert torch.equal(one.maps, alone.maps)


def test_a_single_batch_iterates_over_itself(net, images):
    batch = explain(GradCAM(net, "body"), images)
    assert list(batch) == [batch]


def test_maps_of_different_sizes_are_refused_with_the_way_out(net, images):
    batch = explain(sources_of(net), images)
    with pytest.raises(
        ValueError,
        match=r"the maps differ in size: Grad-CAM \(6, 6\), LayerCAM \(6, 6\), half \(12, 12\); use masks, which"
        " have the size of the images, or iterate over the batch",
    ):
        _ = batch.maps
    assert [tuple(one.maps.shape) for one in batch] == [(4, 6, 6), (4, 6, 6), (4, 12, 12)]
    assert batch.masks.shape == (3, 4, 12, 12)
    assert explain({"a": GradCAM(net, "body"), "b": LayerCAM(net, "body")}, images).maps.shape == (2, 4, 6, 6)


def test_cams_by_method_or_for_the_only_source_that_takes_maps(net, images):
    cams = torch.rand(4, 5, 5)
    sources = {"Grad-CAM": GradCAM(net, "body"), "mine": PrecomputedMaps(net)}
    for given in (cams, {"mine": cams}):
        _, mine = explain(sources, images, cams=given)
        assert torch.equal(mine.maps, cams)


def test_nothing_is_scored_unless_asked_and_all_sources_in_one_pass(net, images):
    with Calls(net) as calls:
        batch = explain(sources_of(net), images)
        assert calls.batches == [4]
        _ = batch.masks, batch.masked_images, batch.scores, batch.valid, batch.degenerate, batch.outside
        assert calls.batches == [4]
        _ = batch.masked_scores, next(iter(batch)).masked_scores, batch.masked_scores
        assert calls.batches == [4, 4, 4, 4]
        _ = batch.complement_scores
        assert calls.batches == [4] * 7
    with Calls(net) as calls:
        _ = explain(sources_of(net), images, batch_size=12).masked_scores
        assert calls.batches == [4, 12]
    with Calls(net) as calls:
        _ = next(iter(explain(sources_of(net), images, batch_size=5))).masked_scores
        assert calls.batches == [4, 5, 5, 2]


def test_a_batch_that_is_used_after_the_call_leaves_no_trace_on_the_model(images):
    model = Fragile(small_net().float()).train()
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)
    images = images.float()
    before = traces(model, images)
    batch = explain({"Grad-CAM": GradCAM(model, "net.body"), "random": RandomMap(model)}, images)
    names = (
        "masks",
        "masked_images",
        "masked_scores",
        "complement_scores",
        "deletion_scores",
        "insertion_scores",
        "road_scores",
        "coherency",
        "valid",
    )
    for name in names:
        getattr(batch, name)
        assert traces(model, images) == before, name
    model.fails_at = model.calls + 2
    again = explain(GradCAM(model, "net.body"), images)
    with pytest.raises(ArithmeticError, match="on purpose"):
        _ = again.masked_scores
    assert traces(model, images) == before
    torch.testing.assert_close(again.masked_scores, next(iter(batch)).masked_scores)


def random_noise(images):
    return torch.rand_like(images)


@pytest.mark.parametrize("name", ["masked_images", "masked_scores", "deletion_scores", "coherency"])
def test_a_batch_that_is_used_after_the_call_takes_none_of_the_users_random_numbers(name, net, images):
    protocol = EvaluationProtocol(baseline=random_noise, deletion_baseline=random_noise)
    batch = explain(GradCAM(net, "body"), images, protocol=protocol)
    before = torch.get_rng_state()
    getattr(batch, name)
    assert torch.equal(torch.get_rng_state(), before)


def test_valid_does_not_depend_on_what_was_computed_before(images):
    def scores_with_nan(images):
        means = images.flatten(2).mean(2)
        return means.masked_fill(means < 0.3, torch.nan)

    class Model(nn.Module):
        def forward(self, images):
            return scores_with_nan(images)

    batch = explain(UniformMap(Model(), 0.1), images, 0, protocol=RAW)
    before = batch.valid
    assert batch.masked_scores.isnan().all()
    assert torch.equal(batch.valid, before)
    assert batch.valid.all()
    assert not batch.counted.any()


def test_an_image_that_is_not_finite_is_not_valid(net, images):
    images[1, 0, 0, 0] = torch.nan
    batch = explain(sources_of(net), images)
    assert batch.valid.tolist() == [[True, False, True, True]] * 3
    assert (batch.masks[:, 1] == 0)[:2].all()


REFUSED = {
    "two models": (
        lambda net: dict(cam_extractor={"one": GradCAM(net, "body"), "other": GradCAM(small_net(), "body")}),
        ValueError,
        "'other' explains another model than 'one'",
    ),
    "no sources": (lambda _: dict(cam_extractor={}), TypeError, r"sources is \{\}; give each a name, as in"),
    "batch size": (
        lambda _: dict(batch_size=0),
        ValueError,
        "batch_size is 0; it must be a positive integer",
    ),
    "logits_fn": (lambda _: dict(logits_fn=3), TypeError, "logits_fn is 3; it must be a callable"),
    "scorer": (lambda _: dict(scorer="fast"), TypeError, "scorer is 'fast'; it must be a callable"),
    "method of cams": (
        lambda net: dict(cam_extractor=sources_of(net), cams={"LIME": torch.rand(4, 3, 3)}),
        ValueError,
        r"'LIME' is no method; available are \['Grad-CAM', 'LayerCAM', 'half'\]",
    ),
    "nobody takes the maps": (
        lambda net: dict(cam_extractor=sources_of(net), cams=torch.rand(4, 3, 3)),
        ValueError,
        "cams is one tensor, and 0 sources take maps; pass cams=",
    ),
    "mapping for one source": (
        lambda net: dict(cam_extractor=PrecomputedMaps(net), cams={"mine": torch.rand(4, 3, 3)}),
        TypeError,
        "cams is dict; it must be a floating point tensor",
    ),
    "no tensor": (lambda _: dict(input_tensor=[1.0]), TypeError, "input_tensor is a list; it must be"),
    "baseline": (
        lambda _: dict(protocol=EvaluationProtocol(baseline=(0.0, 1.0))),
        ValueError,
        "baseline has 2 values but the images have 3",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_are_refused_before_the_model_runs(case, net, images):
    arguments, error, message = REFUSED[case]
    net.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(error, match=message):
        explain(**{"cam_extractor": GradCAM(net, "body"), "input_tensor": images, **arguments(net)})


def test_coherency_needs_a_source_that_explains_the_masked_images(net, images):
    batch = explain(PrecomputedMaps(net), images, cams=torch.rand(4, 3, 3))
    with pytest.raises(ValueError, match="Coherency needs the maps of the masked images too"):
        _ = batch.coherency


def test_a_comparison_explains_the_same_batch(net, images):
    comparison = CAMComparison(sources_of(net), controls=False)
    with comparison.explained(images) as batch:
        scores = batch.masked_scores
    torch.testing.assert_close(scores, explain(sources_of(net), images).masked_scores)


def test_scores_by_a_scorer(net, images):
    seen = []

    def scorer(images):
        seen.append(len(images))
        return net(images)

    source = CallableSource(net, lambda model, images, class_idx: images.mean(1))
    batch = explain(source, images, scorer=scorer)
    assert seen == [4]  # the comparison with the model
    torch.testing.assert_close(batch.masked_scores, explain(source, images).masked_scores)
    assert seen == [4, 4]


def test_it_may_be_called_in_a_compiled_step(net, images):
    source = GradCAM(net, "body")

    def step(images):
        batch = explain(source, images)
        return batch.masked_scores, batch.masked_images, batch.coherency

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="eager")
    torch.testing.assert_close(compiled(images), step(images))
