"""The metrics: values by hand, what they accept, what they refuse, what they cost."""

from collections import OrderedDict, namedtuple
from functools import partial

import numpy as np
import pytest
import torch
from conftest import Calls, HostSyncs, Returning, small_net
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from torchmetrics_cam import (
    AverageDrop,
    AverageGain,
    ClassificationMetric,
    EvaluationProtocol,
    IncreaseInConfidence,
)
from torchmetrics_cam.cams import (
    CenterMap,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    PrecomputedMaps,
    RandomMap,
    UniformMap,
    XGradCAM,
)
from torchmetrics_cam.functional import average_drop
from torchmetrics_cam.model.scores import logits_of

THREE = [AverageDrop, IncreaseInConfidence, AverageGain]
ALL = [*THREE, ClassificationMetric]


def linear_probe() -> nn.Sequential:
    """Class 0 scores 0.1 a + 0.2 b + 0.3 c + 0.4 d, class 1 scores 0, of a 2x2 image [[a, b], [c, d]]."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(4, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[2].weight.copy_(torch.tensor([[0.1, 0.2, 0.3, 0.4], [0, 0, 0, 0]]))
    return model


IMAGE = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=torch.float64)


def quarter(logits):
    return logits / 4


def value(metric, *args, **kwargs):
    metric.update(*args, **kwargs)
    return metric.compute()


def test_drop_by_hand_hires_cam():
    # The map is [.1, .4, .9, 1.6], as a mask [0, .2, 8/15, 1]; p = 3/4, the masked image scores 2.16/4.
    assert value(AverageDrop(HiResCAM(linear_probe(), "0"), quarter), IMAGE).item() == pytest.approx(0.28)


def test_drop_by_hand_grad_cam_and_softmax():
    # The mean gradient is .25, so the mask is [0, 1/3, 2/3, 1], and the logit 3 becomes 2/15 + .6 + 1.6.
    sigmoid = torch.tensor([3.0, 7 / 3], dtype=torch.float64).sigmoid()
    expected = 1 - sigmoid[1] / sigmoid[0]
    assert value(AverageDrop(GradCAM(linear_probe(), "0")), IMAGE).item() == pytest.approx(expected.item())


def test_increase_and_gain_by_hand():
    # Class 1 scores 1/(1 + e^3) on the image and 1/(1 + e^2.16) on the masked one.
    p, o = (1 / (1 + np.exp(logit)) for logit in (3, 2.16))
    cams = torch.tensor([[[0.1, 0.4], [0.9, 1.6]]], dtype=torch.float64)
    source = PrecomputedMaps(linear_probe())
    assert value(IncreaseInConfidence(source), IMAGE, 1, cams=cams) == 1
    assert value(AverageGain(source), IMAGE, 1, cams=cams).item() == pytest.approx((o - p) / (1 - p))
    assert value(AverageDrop(source), IMAGE, 1, cams=cams) == 0


def protocol_drop(cams, **fields):
    protocol = EvaluationProtocol(**fields)
    metric = AverageDrop(PrecomputedMaps(linear_probe()), quarter, protocol=protocol)
    return value(metric, IMAGE, 0, cams=torch.tensor([cams], dtype=torch.float64)).item()


@pytest.mark.parametrize(
    ("fields", "masked"),
    [
        ({"rectify": "relu"}, [0, 0, 0, 1]),
        ({"rectify": "abs"}, [1 / 3, 0, 0, 1]),
        ({"rectify": "source"}, [0, 1 / 3, 1 / 3, 1]),
        ({"rectify": "abs", "normalize": "none"}, [2, 1, 1, 4]),
        ({"rectify": "abs", "normalize": "before_resize", "normalize_eps": 1.0}, [0.25, 0, 0, 0.75]),
        (
            {"rectify": "abs", "normalize": "before_and_after_resize", "normalize_eps": 1.0},
            [1 / 7, 0, 0, 3 / 7],
        ),
        ({"rectify": "abs", "mask": "top"}, [1, 0, 0, 1]),
        ({"rectify": "abs", "mask": "top", "mask_fraction": 0.75}, [1, 1, 0, 1]),
    ],
    ids=lambda item: " ".join(map(str, item.values())) if isinstance(item, dict) else "",
)
def test_each_field_of_the_protocol_changes_the_mask_as_it_says(fields, masked):
    cams = [[-2.0, -1.0], [-1.0, 4.0]] if fields["rectify"] != "source" else [[-2.0, 0.0], [0.0, 4.0]]
    weights, pixels = np.array([0.1, 0.2, 0.3, 0.4]), np.array([1, 2, 3, 4])
    score = (weights * pixels * masked).sum() / 4
    assert protocol_drop(cams, **fields) == pytest.approx(max(0, 0.75 - score) / 0.75)


def test_normalization_before_and_after_the_resize_differ_as_numpy_says():
    cam = torch.tensor([[[0.2, 1.0]]], dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 2)).double()
    image = torch.rand(1, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    resized = np.array([[0.2, 0.6, 1.0]] * 2)  # bilinear, half-pixel centers, from 2 to 3 columns
    resized[:, 0], resized[:, 2] = 0.2, 1.0
    shifted = (resized - 0.2) / 0.8
    for normalize, mask in (("after_resize", shifted), ("before_resize", shifted), ("none", resized)):
        metric = AverageDrop(PrecomputedMaps(model), protocol=EvaluationProtocol(normalize=normalize))
        metric.update(image, 0, cams=cam)
        p, o = (model(x).softmax(1)[:, 0].detach() for x in (image, image * torch.tensor(mask)))
        assert metric.drop.item() == pytest.approx(average_drop(p, o).item(), abs=1e-12)


def test_baseline_drop_and_class_fields():
    cams = [[0.0, 0.0], [0.0, 1.0]]
    assert protocol_drop(cams, drop="absolute") == pytest.approx(0.75 - 0.4)
    assert protocol_drop(cams, drop_eps=0.25) == pytest.approx(0.35)
    # Hidden positions show 2: 0.2 + 0.4 + 0.6 + 1.6 of 3.
    assert protocol_drop(cams, baseline=2.0) == pytest.approx((3 - 2.8) / 3)
    assert protocol_drop(cams, baseline=(2.0,)) == pytest.approx((3 - 2.8) / 3)
    with pytest.raises(ValueError, match="baseline has 3 values but the images have 1 channels"):
        protocol_drop(cams, baseline=(0.0, 1.0, 2.0))
    metric = AverageDrop(UniformMap(linear_probe()), protocol=EvaluationProtocol(class_selection="given"))
    with pytest.raises(ValueError, match="explains a given class; pass class_idx or targets"):
        metric.update(IMAGE)


def test_cam_of_the_logit_and_of_the_scores_are_different_maps(digits):
    model, images, _ = digits
    logit, scores = (
        value(AverageDrop(GradCAM(model, "3"), protocol=EvaluationProtocol(cam_of=cam_of)), images)
        for cam_of in ("logit", "scores")
    )
    assert (logit - scores).abs() > 1e-3


def test_the_class_can_be_given_in_every_form(net, images):
    top = net(images).argmax(1)
    forms = [None, top, top.int(), top.tolist(), tuple(top.tolist()), [np.int64(index) for index in top]]
    values = [value(AverageDrop(GradCAM(net, "body")), images, form).item() for form in forms]
    assert values[0] > 0
    assert values == [values[0]] * len(forms)
    one = [
        value(AverageDrop(GradCAM(net, "body")), images, form).item() for form in (2, [2] * 4, np.int64(2))
    ]
    assert one == [one[0]] * 3


def test_targets_that_pick_a_class_are_that_class(net, images):
    by_class = value(AverageDrop(GradCAM(net, "body")), images, [0, 1, 2, 3])
    targets = [lambda scores, index=index: scores[index] for index in range(4)]
    assert torch.equal(value(AverageDrop(GradCAM(net, "body")), images, targets=targets), by_class)
    assert torch.equal(
        value(AverageDrop(GradCAM(net, "body")), images, targets=lambda scores: scores[2]),
        value(AverageDrop(GradCAM(net, "body")), images, 2),
    )


def test_targets_reach_outputs_that_are_no_class_scores(images):
    class Segmentation(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return self.head(self.conv(x).relu())

    class Lists(Segmentation):
        def forward(self, x):
            return list(super().forward(x))

    torch.manual_seed(0)
    model = Segmentation().double()
    target = lambda scores: scores[1, 2:6, 2:6].mean()  # noqa: E731
    drop = value(AverageDrop(GradCAM(model, "conv")), images, targets=target)
    assert 0 < drop < 1
    listed = Lists().double()
    listed.load_state_dict(model.state_dict())
    drop = value(
        AverageDrop(GradCAM(listed, "conv"), protocol="torchcam"),
        images,
        targets=lambda s: s[1].mean().sigmoid(),
    )
    assert drop > 0


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("cls", [GradCAM, GradCAMPlusPlus, XGradCAM, LayerCAM, HiResCAM])
def test_signals_images_and_volumes(dims, cls):
    model = small_net(channels=2, dims=dims)
    images = torch.rand(3, 2, *(8,) * dims, dtype=torch.float64)
    metric = AverageDrop(cls(model, ["stem", "body"]))
    assert 0 <= value(metric, images) <= 1
    assert metric.total == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_models_of_any_precision(dtype, images):
    exact = AverageDrop(LayerCAM(small_net(), "body"))
    exact.update(images)
    model = small_net().to(dtype)
    for batch in (images.to(dtype), images):  # images are given to the model in its own dtype
        metric = AverageDrop(LayerCAM(model, "body"))
        drop = value(metric, batch)
        assert (drop.dtype, metric.drop.dtype) == (torch.float32, torch.float64)
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.01}[dtype]
        assert metric.drop.item() / 4 == pytest.approx(exact.drop.item() / 4, abs=tolerance)


def test_autocast(images):
    model = small_net().float()
    expected = value(AverageDrop(LayerCAM(model, "body")), images.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        drop = value(AverageDrop(LayerCAM(model, "body")), images.float())
    assert drop.item() == pytest.approx(expected.item(), abs=0.01)


@pytest.mark.parametrize(
    "form",
    [
        lambda logits: (logits, logits * 2),
        lambda logits: {"logits": logits, "loss": 0},
        lambda logits: OrderedDict(out=logits, aux=logits * 2),
        lambda logits: ImageClassifierOutput(logits=logits),
    ],
    ids=["tuple", "dict", "torchvision", "transformers"],
)
def test_class_scores_are_found_in_what_a_model_returns(form, net, images):
    expected = value(AverageDrop(GradCAM(net, "body")), images)
    model = Returning(net, form)
    assert torch.equal(value(AverageDrop(GradCAM(model, "net.body")), images), expected)
    first = lambda output: logits_of(output).softmax(1)  # noqa: E731
    assert torch.equal(value(AverageDrop(GradCAM(model, "net.body"), first), images), expected)


def test_a_target_sees_every_part_of_an_output(net, images):
    """A model with two heads: the second one is explained."""
    plain = Returning(net, lambda logits: (logits * 0, logits.sigmoid()))
    named = Returning(net, lambda logits: {"zero": logits * 0, "second": logits.sigmoid()})
    alone = Returning(net, lambda logits: logits.sigmoid())
    expected = value(
        AverageDrop(GradCAM(alone, "net.body"), protocol="torchcam"), images, targets=lambda scores: scores[3]
    )
    assert expected > 0
    for model, target in ((plain, lambda parts: parts[1][3]), (named, lambda parts: parts["second"][3])):
        metric = AverageDrop(GradCAM(model, "net.body"), protocol="torchcam")
        assert torch.equal(value(metric, images, targets=target), expected)


def test_a_huggingface_output_needs_no_logits_fn(net, images):
    Output = namedtuple("Output", ["logits"])

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return Output(logits=self.net(x))

    wrapped = value(AverageDrop(GradCAM(Wrapped(), "net.body")), images)
    assert torch.equal(wrapped, value(AverageDrop(GradCAM(net, "body")), images))


def test_samples_that_are_not_finite_leave_the_metric_and_are_counted(net, images):
    clean = ClassificationMetric(GradCAM(net, "body"), partial(torch.softmax, dim=-1))
    clean.update(images[[0, 2]])
    for bad in (float("nan"), float("inf"), -float("inf")):
        spoiled = images.clone()
        spoiled[1, 0, 3, 3] = bad
        spoiled[3, 2, 0, 0] = bad
        metric = ClassificationMetric(GradCAM(net, "body"), partial(torch.softmax, dim=-1))
        metric.update(spoiled, None)
        assert metric.nan_count == 2
        assert metric.total == 2
        assert metric.compute()["avg_drop"].item() == pytest.approx(
            clean.compute()["avg_drop"].item(), abs=1e-12
        )
    cams = torch.rand(4, 3, 3)
    cams[2, 1, 1] = float("inf")
    metric = AverageDrop(PrecomputedMaps(net))
    metric.update(images, cams=cams)
    assert (metric.nan_count, metric.total) == (1, 3)


def test_a_batch_of_nothing_but_nan_maps_moves_nothing(net, images):
    metric = AverageDrop(PrecomputedMaps(net))
    metric.update(images, cams=torch.full((4, 3, 3), float("nan")))
    assert metric.nan_count == 4
    assert metric.compute().isnan()
    metric.update(images, cams=torch.rand(4, 3, 3))
    before = metric.compute()
    metric.update(images, cams=torch.full((4, 3, 3), float("nan")))
    assert torch.equal(metric.compute(), before)
    assert metric.nan_count == 8


def test_constant_maps_are_kept_and_counted(net, images):
    cams = torch.rand(4, 3, 3)
    cams[1], cams[3] = 0.5, -torch.rand(3, 3)  # rectified, the last one is constant too
    metric = AverageDrop(PrecomputedMaps(net))
    metric.update(images, cams=cams)
    assert (metric.degenerate_count, metric.total) == (2, 4)
    # They hide everything.
    expected = AverageDrop(PrecomputedMaps(net), protocol=EvaluationProtocol(normalize="none"))
    hidden = images.clone()
    expected.update(hidden[[1, 3]], net(images)[[1, 3]].argmax(1), cams=torch.zeros(2, 3, 3))
    alone = AverageDrop(PrecomputedMaps(net))
    alone.update(images[[1, 3]], cams=cams[[1, 3]])
    assert torch.equal(alone.compute(), expected.compute())


def test_edges_of_the_scores():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0, 0, 0], 1 - x[:, 0, 0, 0]], 1)

    images = torch.tensor([0.0, 1.0, 0.5]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    cams = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).expand(3, 2, 2)
    model = Constant()
    for cls in THREE:
        metric = cls(PrecomputedMaps(model), nn.Identity())
        assert value(metric, images, 0, cams=cams).isfinite()
        # p = 0 has nothing to lose, p = 1 nothing to gain, and nothing here changes.
        assert metric.compute() == 0


def test_scores_that_are_no_fractions_are_named_once_they_are_read(net, images):
    metric = AverageDrop(GradCAM(net, "body"), lambda logits: logits)
    metric.update(images, 1)
    with pytest.warns(UserWarning, match=r"scores lie outside of \[0, 1\].*pass logits_fn"):
        metric.compute()
    metric = AverageDrop(
        GradCAM(net, "body"), lambda logits: logits, protocol=EvaluationProtocol(drop="absolute")
    )
    metric.update(images, 1)
    metric.compute()


@pytest.mark.parametrize("source", [GradCAM, LayerCAM, GradCAMPlusPlus, XGradCAM, HiResCAM])
def test_two_forward_passes_and_no_host_sync(net, images, source):
    metric = AverageDrop(source(net, ["stem", "body"]))
    with Calls(net) as calls, HostSyncs() as syncs:
        metric.update(images)
        metric.update(images, 2)
        metric.update(images, [0, 1, 2, 3])
    assert calls.batches == [4] * 6
    assert syncs.seen == []


@pytest.mark.parametrize("source", [UniformMap, RandomMap, CenterMap, PrecomputedMaps])
def test_two_forward_passes_and_no_host_sync_without_gradients(net, images, source):
    metric = AverageDrop(
        source(net), validate_args=False, protocol=EvaluationProtocol(mask="top", baseline=0.5)
    )
    cams = torch.rand(4, 3, 3) if source is PrecomputedMaps else None
    with Calls(net) as calls, HostSyncs() as syncs:
        metric.update(images, torch.tensor([0, 1, 2, 3]), cams=cams)
    assert calls.batches == [4] * 2
    assert syncs.seen == []


def test_host_syncs_would_be_noticed(images):
    with HostSyncs() as syncs:
        images.sum().item()
        images[images > 0.5].sum()
        (images > 0.5).nonzero()
        images.cpu()
        images.tolist()
        torch.tensor([0.1, 0.2])
    assert syncs.copies == 1
    assert syncs.seen == ["_local_scalar_dense", "index", "nonzero", "cpu", "tolist"]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 9])
def test_chunks_give_the_same_number(net, images, batch_size):
    whole = value(AverageDrop(GradCAM(net, "body")), images)
    with Calls(net) as calls:
        chunked = value(AverageDrop(GradCAM(net, "body"), batch_size=batch_size), images)
    assert chunked.item() == pytest.approx(whole.item(), abs=1e-12)
    assert calls.batches[0] == 4
    assert sum(calls.batches[1:]) == 4
    assert max(calls.batches[1:]) <= batch_size


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(6)), st.integers(1, 6))
def test_any_order_and_split_gives_the_same_number(order, size):
    model = small_net()
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    whole, split = (
        ClassificationMetric(LayerCAM(model, "body"), partial(torch.softmax, dim=-1)) for _ in "ab"
    )
    whole.update(images)
    for batch in images[list(order)].split(size):
        split.update(batch)
    assert split.drop.item() == pytest.approx(whole.drop.item(), rel=1e-12)
    for count in ("increase", "total", "nan_count", "degenerate_count"):
        assert torch.equal(getattr(split, count), getattr(whole, count))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_map_of_ones_changes_nothing_and_values_stay_in_range(data):
    model = small_net()
    seed = data.draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 3, 8, 8, generator=generator, dtype=torch.float64)
    cams = torch.randn(3, *data.draw(st.sampled_from([(2, 2), (8, 8), (5, 11)])), generator=generator)
    scale, offset = data.draw(st.floats(0.1, 10)), data.draw(st.floats(-5, 5))
    for cls in THREE:
        assert value(cls(UniformMap(model)), images) == 0
        assert 0 <= value(cls(PrecomputedMaps(model)), images, cams=cams) <= 1
        unrectified = EvaluationProtocol(rectify="source")
        first = value(cls(PrecomputedMaps(model), protocol=unrectified), images, cams=cams)
        second = value(cls(PrecomputedMaps(model), protocol=unrectified), images, cams=cams * scale + offset)
        assert first.item() == pytest.approx(second.item(), abs=1e-4)


@pytest.mark.parametrize("cls", THREE)
def test_forward_gives_the_batch_and_accumulates(net, images, cls):
    metric, batch, whole = (cls(GradCAM(net, "body")) for _ in range(3))
    metric(images[:2])
    assert torch.equal(metric(images[2:]), value(batch, images[2:]))
    assert metric.compute().item() == pytest.approx(value(whole, images).item(), abs=1e-12)


def test_forward_of_the_drop_in_gives_both_values(net, images):
    metric = ClassificationMetric(GradCAM(net, "body"), partial(torch.softmax, dim=-1))
    assert {name: tensor.item() for name, tensor in metric(images).items()} == metric.summary()


@pytest.mark.parametrize("cls", ALL)
def test_plot(net, images, cls):
    metric = cls(GradCAM(net, "body"), partial(torch.softmax, dim=-1))
    metric.update(images)
    for values in (None, [metric.compute(), metric.compute()]):
        figure, axis = metric.plot(values)
        assert axis.get_figure() is figure
