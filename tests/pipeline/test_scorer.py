"""A scorer runs the masked images in place of the model, and must say what the model says."""

import copy
from contextlib import nullcontext

import pytest
import torch
from conftest import Calls, small_net
from torch import nn
from torchmetrics import MetricCollection

from torchmetrics_cam import AverageDrop, CAMComparison, ClassificationMetric
from torchmetrics_cam.cams import GradCAM, LayerCAM, UniformMap
from torchmetrics_cam.pipeline.pipeline import SCORER_TOLERANCE

DTYPE = torch.float32  # of the fixtures net and images
IMAGES = (6, 3, 12, 12)  # the shape of the fixture images


class Scorer:
    def __init__(self, model):
        self.model = model
        self.batches = []

    def __call__(self, images):
        self.batches.append(len(images))
        return self.model(images)


def test_it_runs_the_masked_images_and_the_model_the_others(net, images):
    scorer = Scorer(copy.deepcopy(net))
    metric, plain = AverageDrop(GradCAM(net, "body"), scorer=scorer), AverageDrop(GradCAM(net, "body"))
    with Calls(net) as calls:
        metric.update(images)
        metric.update(images)
    assert calls.batches == [6, 6]
    assert scorer.batches == [6, 6, 6]  # the comparison with the model, and two masked batches
    plain.update(images)
    assert metric.compute().item() == pytest.approx(plain.compute().item(), rel=1e-6)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_compiled_model_runs_compiled(mode, net, images):
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    getattr(net, mode)()
    scorer = torch.compile(net, backend=backend)
    sources = {"Grad-CAM": GradCAM(net, "body"), "Layer-CAM": LayerCAM(net, "stem")}
    comparison, plain = CAMComparison(sources, scorer=scorer), CAMComparison(sources)
    for _ in range(2):
        comparison.update(images)
        plain.update(images)
    assert len(graphs) == 1
    torch.testing.assert_close(comparison.compute(), plain.compute(), rtol=1e-5, atol=1e-6)
    assert net.training is (mode == "train")
    torch._dynamo.reset()


def test_a_frozen_model_of_the_default_compiler(net, images):
    torch._dynamo.reset()
    with torch._inductor.config.patch(freezing=True):
        metric = AverageDrop(GradCAM(net, "body"), scorer=torch.compile(net))
        metric.update(images)
    plain = AverageDrop(GradCAM(net, "body"))
    plain.update(images)
    assert metric.compute().item() == pytest.approx(plain.compute().item(), rel=1e-5)
    torch._dynamo.reset()


OTHER_FORMS = {
    "exported": lambda net, images: torch.export.export(net, (images,)).module(),
    "channels last": lambda net, images: (
        lambda given: copy.deepcopy(net).to(memory_format=torch.channels_last)(
            given.to(memory_format=torch.channels_last)
        )
    ),
    "traced": lambda net, images: torch.jit.trace(net, images),
}


@pytest.mark.parametrize("form", OTHER_FORMS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_any_form_of_the_model_serves(form, net, images):
    metric = AverageDrop(GradCAM(net, "body"), scorer=OTHER_FORMS[form](net, images))
    metric.update(images)
    plain = AverageDrop(GradCAM(net, "body"))
    plain.update(images)
    assert metric.compute().item() == pytest.approx(plain.compute().item(), rel=1e-5)


DISAGREE = {
    "other weights": lambda net: small_net(seed=3).float(),
    "a softmax more": lambda net: nn.Sequential(net, nn.Softmax(1)),
    "not a number": lambda net: lambda images: net(images) * torch.nan,
}


@pytest.mark.parametrize("case", DISAGREE)
def test_one_that_says_something_else_is_refused_and_nothing_counted(case, net, images):
    metric = AverageDrop(GradCAM(net, "body"), scorer=DISAGREE[case](net))
    with pytest.raises(
        ValueError, match=f"scorer and model disagree.*{SCORER_TOLERANCE} is allowed; make the"
    ):
        metric.update(images)
    assert metric.total == metric.update_count == 0


def test_the_tolerance_is_the_one_that_is_named(net, images):
    """Raw scores, so that a factor on them is a difference of that share."""
    for factor, refused in ((1 + 0.9 * SCORER_TOLERANCE, False), (1 + 1.1 * SCORER_TOLERANCE, True)):
        metric = ClassificationMetric(
            UniformMap(net), scorer=lambda images, factor=factor: net(images) * factor
        )
        with pytest.raises(ValueError, match="disagree") if refused else nullcontext():
            metric.update(images)


def test_it_is_compared_again_after_a_reset_and_never_without_validation(net, images):
    scorer = Scorer(copy.deepcopy(net))
    metric = AverageDrop(GradCAM(net, "body"), scorer=scorer)
    metric.update(images)
    with torch.no_grad():
        net.fc.weight.mul_(0.5)
    metric.update(images)
    metric.reset()
    with pytest.raises(ValueError, match="make the scorer from the model as it is now"):
        metric.update(images)
    AverageDrop(GradCAM(net, "body"), scorer=scorer, validate_args=False).update(images)


def test_a_copy_of_the_module_that_holds_both_scores_with_the_copied_model(net, images):
    holder = nn.ModuleDict({"net": net})
    holder["metric"] = AverageDrop(GradCAM(net, "body"), scorer=Scorer(net))
    copied = copy.deepcopy(holder)
    assert copied["metric"]._pipeline.scorer.model is copied["net"]
    assert holder["metric"].clone()._pipeline.scorer is holder["metric"]._pipeline.scorer
    copied["metric"].update(images)


def test_metrics_with_other_scorers_do_not_merge(net, images):
    metrics = {
        "model": AverageDrop(GradCAM(net, "body")),
        "scorer": AverageDrop(GradCAM(net, "body"), scorer=Scorer(net)),
    }
    collection = MetricCollection(metrics)
    collection.update(images)
    assert len(collection.compute_groups) == 2
