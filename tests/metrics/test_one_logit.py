"""Binary classifiers with one logit, (N, 1): the same numbers as the network with two outputs that it is."""

import captum.attr
import monai.visualize
import pytest
import pytorch_grad_cam
import torch
import torchcam
from conftest import small_net
from torch import nn

from torchmetrics_cam import ADCC, AverageDrop, CAMComparison, EvaluationProtocol, InsertionAUC, explain
from torchmetrics_cam.cams import GradCAM, RandomMap


class TwoOutputs(nn.Module):
    """The logits -z / 2 and z / 2, whose softmax is sigmoid(-z) and sigmoid(z)."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        logit = self.net(images)
        return torch.cat([-logit, logit], 1) / 2


@pytest.fixture
def binary():
    return small_net(classes=1)


@pytest.mark.parametrize("class_idx", [None, 0, [1, 0, 1, 1]])
def test_one_logit_gives_the_numbers_of_two_outputs(binary, images, class_idx):
    for metric in (AverageDrop, ADCC, InsertionAUC):
        values = []
        for model, layer in ((binary, "body"), (TwoOutputs(binary), "net.body")):
            one = metric(GradCAM(model, layer)).set_dtype(torch.float64)
            one.update(images, class_idx)
            values.append(one.compute())
        torch.testing.assert_close(values[0], values[1], rtol=1e-9, atol=1e-12)


def test_the_classes_of_one_logit(binary, images):
    logit = binary(images).detach().squeeze(1)
    top = explain(GradCAM(binary, "body"), images)
    assert torch.equal(top.class_idx, (logit > 0).long())
    assert top.num_classes == 2
    for index, sign in enumerate((-1, 1)):
        batch = explain(GradCAM(binary, "body"), images, index)
        torch.testing.assert_close(batch.scores, torch.sigmoid(sign * logit))
    # The gradient of the logit of class 0 is that of -z: it highlights what the other class does not.
    negative, positive = (explain(GradCAM(binary, "body"), images, index).maps for index in (0, 1))
    of_z = explain(GradCAM(binary, "body"), images, 0, logits_fn=torch.sigmoid).maps
    torch.testing.assert_close(positive, of_z)
    both = EvaluationProtocol.preset("paper").replace(rectify="abs")
    torch.testing.assert_close(
        negative + positive, explain(GradCAM(binary, "body"), images, 1, protocol=both).maps
    )
    with pytest.raises(ValueError, match="class_idx 2 is out of range: the model has 2 classes"):
        explain(GradCAM(binary, "body"), images, 2)


def test_libraries_explain_both_classes_of_one_logit(binary, images):
    expected = {index: explain(GradCAM(binary, "relu"), images, index).masks for index in (0, 1)}
    for make in (
        lambda: torchcam.methods.GradCAM(binary, "relu"),
        lambda: pytorch_grad_cam.GradCAM(binary, [binary.relu]),
        lambda: captum.attr.LayerGradCam(binary, binary.relu),
        lambda: monai.visualize.GradCAM(binary, "relu"),
    ):
        metric = AverageDrop(make())
        for index in (0, 1):
            masks = explain(metric.source, images, index).masks
            torch.testing.assert_close(masks, expected[index], rtol=1e-4, atol=1e-5, check_dtype=False)
        metric.source.remove_hooks()


def test_libraries_that_read_an_output_for_each_class_are_refused(binary, images):
    for cam in (
        torchcam.methods.CAM(binary, "body", "fc"),
        torchcam.methods.ScoreCAM(binary, "body"),
        monai.visualize.CAM(binary, "body", "fc"),
    ):
        metric = AverageDrop(cam)
        with pytest.raises(ValueError, match="needs an output of the model for each class"):
            metric.update(images, 0)
        assert metric.total == 0
        metric.source.remove_hooks()


def test_one_logit_in_a_comparison_for_each_class(binary, images):
    comparison = CAMComparison(
        {"grad_cam": GradCAM(binary, "body"), "random": RandomMap(binary)}, num_classes=2, average="none"
    )
    comparison.update(images, torch.tensor([0, 1, 1, 0]))
    assert comparison.compute()["grad_cam/average_drop"].shape == (2,)


def test_a_logits_fn_keeps_the_single_class(binary, images):
    metric = AverageDrop(GradCAM(binary, "body"), torch.sigmoid)
    metric.update(images)
    assert metric.total == 4
