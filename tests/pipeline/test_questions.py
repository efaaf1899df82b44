"""One clean pass answers for several protocols and for another class: the same as explaining apart."""

import pytest
import torch
from conftest import Calls, small_net
from torch import nn

from torchmetrics_cam import EvaluationProtocol, explain
from torchmetrics_cam.cams import CallableSource, GradCAM, LayerCAM, RandomMap, as_source
from torchmetrics_cam.model.scores import ScoreFunction
from torchmetrics_cam.pipeline.batch import Batch
from torchmetrics_cam.pipeline.pipeline import Pipeline
from torchmetrics_cam.protocol import PRESETS, as_protocol

OF_SCORES = EvaluationProtocol(name="of scores", cam_of="scores")
# The first explains the top class, which xplique, where the class must be given, does not.
PROTOCOLS = [*(PRESETS[name] for name in ("paper", "torchcam", "grad_cam", "score_cam")), OF_SCORES]


def brightness(model, images, class_idx):
    return (images * model(images).detach()[:, 0].view(-1, 1, 1, 1)).mean(1)


def sources_of(net):
    import pytorch_grad_cam
    import torchcam

    return [
        GradCAM(net, "body"),
        LayerCAM(net, "body"),
        RandomMap(net),
        CallableSource(net, brightness),
        as_source(torchcam.methods.GradCAM(net, "body")),
        as_source(pytorch_grad_cam.GradCAM(net, [net.body])),
    ]


def batch_of(sources, images, protocols, logits_fn=None, **settings):
    first, *further = protocols
    pipeline = Pipeline(
        sources, ScoreFunction(logits_fn, as_protocol(first)), further_protocols=further, **settings
    )
    return Batch.of(pipeline, images, methods=[f"{index}" for index in range(len(sources))])


@pytest.mark.parametrize("logits_fn", [None, lambda output: (output * 2).softmax(1)])
def test_each_protocol_gives_what_it_gives_alone(net, images, logits_fn):
    sources = sources_of(net)
    together = batch_of(sources, images, PROTOCOLS, logits_fn)
    for protocol, batch in zip(PROTOCOLS, (together, *together.under_further_protocols), strict=True):
        alone = batch_of(sources, images, [protocol], logits_fn)
        assert batch.protocol is protocol
        for name in ("scores", "masks", "masked_scores", "valid", "degenerate", "class_idx"):
            torch.testing.assert_close(getattr(batch, name), getattr(alone, name), rtol=0, atol=1e-6)


def test_protocols_share_the_clean_pass(net, images):
    with Calls(net) as calls:
        batch = batch_of([GradCAM(net, "body"), LayerCAM(net, "body"), RandomMap(net)], images, PROTOCOLS)
        assert len(calls.batches) == 1
        for one in (batch, *batch.under_further_protocols):
            assert one.masked_scores.shape == (3, len(images))
    assert len(calls.batches) == 1 + 3 * len(PROTOCOLS)


def test_another_class_shares_the_clean_pass(net, images):
    sources = [GradCAM(net, "body"), LayerCAM(net, "body")]
    with Calls(net) as calls:
        batch = batch_of(sources, images, ["paper"], explains_other_class=True)
    assert len(calls.batches) == 1
    ranked = net(images).argsort(1, descending=True)
    assert batch.class_idx.tolist() == ranked[:, 0].tolist()
    alone = batch_of(sources, images, ["paper"])
    assert torch.equal(batch.maps, alone.maps)
    for index, source in enumerate(sources):
        expected = explain(source, images, ranked[:, 1])
        other = batch._perturbed.explanations[index].of_other_class
        torch.testing.assert_close(other.maps, expected.maps, rtol=0, atol=1e-6)
        assert torch.equal(other.scores, expected.scores)


def test_objects_of_other_libraries_explain_the_other_class_in_a_pass_of_their_own(net, images):
    source = sources_of(net)[4]
    with Calls(net) as calls:
        batch = batch_of([source], images, ["paper"], explains_other_class=True)
    assert len(calls.batches) == 2
    second = net(images).argsort(1, descending=True)[:, 1]
    other = batch._perturbed.explanations[0].of_other_class
    torch.testing.assert_close(other.maps, explain(source, images, second).maps, rtol=0, atol=1e-6)


def test_a_given_other_class(net, images):
    protocol = EvaluationProtocol(other_class=2)
    batch = batch_of([GradCAM(net, "body")], images, [protocol], explains_other_class=True)
    other = batch._perturbed.explanations[0].of_other_class
    assert other.selector.class_idx.tolist() == [2] * len(images)
    with pytest.raises(
        ValueError, match="other_class is 5, and the number of classes that the model scores is 5"
    ):
        batch_of(
            [GradCAM(net, "body")], images, [EvaluationProtocol(other_class=5)], explains_other_class=True
        )


def test_a_single_class_has_no_other(images):
    net = small_net(classes=1)
    with pytest.raises(ValueError, match="the number of classes that the model scores is 1"):
        batch_of([GradCAM(net, "body")], images, ["torchcam"], explains_other_class=True)


def test_protocols_that_score_one_logit_differently_are_refused(images):
    net = nn.Sequential(small_net(classes=1))
    protocols = [PRESETS["paper"], PRESETS["torchcam"]]
    with pytest.raises(ValueError, match="under the protocol 'torchcam' the model scores 1 classes"):
        batch_of([GradCAM(net, "0.body")], images, protocols)


def test_another_class_is_that_of_each_protocol(net, images):
    protocols = [EvaluationProtocol(name=f"{index}", other_class=index) for index in (1, 2)]
    sources = [GradCAM(net, "body"), LayerCAM(net, "body")]
    together = batch_of(sources, images, protocols, explains_other_class=True)
    for protocol, batch in zip(protocols, (together, *together.under_further_protocols), strict=True):
        alone = batch_of(sources, images, [protocol], explains_other_class=True)
        torch.testing.assert_close(batch.other_class_maps, alone.other_class_maps, equal_nan=True)
    assert not torch.equal(together.other_class_maps, batch.other_class_maps)


def test_the_next_best_class_is_that_of_the_logits_where_the_softmax_is_0(net, images):
    certain = nn.Sequential(net, Certain())
    batch = batch_of([GradCAM(certain, "0.body")], images, ["paper"], explains_other_class=True)
    assert (batch.scores == 1).all()
    other = batch._perturbed.explanations[0].of_other_class
    assert other.selector.class_idx.tolist() == certain(images).argsort(1)[:, -2].tolist()


class Certain(nn.Module):
    """Logits so far apart that the softmax is 1 and 0."""

    def forward(self, logits):
        return logits * 1e6
