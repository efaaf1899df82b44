"""What is refused, when, and in which sentence."""

import numpy as np
import pytest
import torch
from conftest import Calls

from torchmetrics_cam import AverageDrop
from torchmetrics_cam.cams import CallableSource, GradCAM

INVALID = {
    "no tensor": (dict(input_tensor=[[1.0]]), TypeError, "input_tensor is a list; it must be a tensor"),
    "array": (
        dict(input_tensor=np.zeros((2, 8, 8, 3))),
        TypeError,
        r"input_tensor is a ndarray; it must be a tensor .*, \(N, C, H, W\) for photos.*"
        r"torch.from_numpy\(array\); if its channels come last, add .permute\(0, 3, 1, 2\)",
    ),
    "list of images": (
        dict(input_tensor=[torch.rand(3, 8, 8)] * 2),
        TypeError,
        r"input_tensor is a list; it must be a tensor .*stack a list of images with torch.stack",
    ),
    "integers": (
        dict(input_tensor=torch.zeros(2, 3, 8, 8, dtype=torch.uint8)),
        TypeError,
        "torch.uint8.*images.float",
    ),
    "two dimensions": (dict(input_tensor=torch.rand(2, 3)), ValueError, r"shape \(2, 3\); images are \(N, C"),
    "six dimensions": (dict(input_tensor=torch.rand(2, 3, 2, 2, 2, 2)), ValueError, "one to three spatial"),
    "no image": (dict(input_tensor=torch.rand(0, 3, 8, 8)), ValueError, "holds no image; skip empty batches"),
    "no pixel": (dict(input_tensor=torch.rand(2, 3, 0, 8)), ValueError, "holds no image"),
    "device": (
        dict(input_tensor=torch.rand(2, 3, 8, 8, device="meta")),
        ValueError,
        "on meta but the model is on cpu",
    ),
    "negative": (
        dict(class_idx=-1),
        ValueError,
        "class_idx -1 is out of range: a class index is not negative",
    ),
    "negative tensor": (
        dict(class_idx=torch.tensor([0, 0, -2, 0])),
        ValueError,
        "class_idx -2 is out of range",
    ),
    "bool": (dict(class_idx=True), TypeError, "class_idx is True; pass an int, a list of ints"),
    "list of bools": (dict(class_idx=[True] * 4), TypeError, "class_idx is .True, True"),
    "bool tensor": (
        dict(class_idx=torch.ones(4, dtype=torch.bool)),
        TypeError,
        "class_idx is a tensor of torch.bool",
    ),
    "float": (dict(class_idx=1.0), TypeError, "class_idx is 1.0"),
    "float tensor": (dict(class_idx=torch.rand(4)), TypeError, "class_idx is a tensor of torch.float32"),
    "short list": (
        dict(class_idx=[1, 2]),
        ValueError,
        "class_idx has 2 entries but input_tensor holds 4 images",
    ),
    "wrong shape": (
        dict(class_idx=torch.zeros(4, 1).long()),
        ValueError,
        r"class_idx has shape \(4, 1\) but",
    ),
    "both": (
        dict(class_idx=1, targets=len),
        ValueError,
        "class_idx and targets were both given; pass one of them",
    ),
    "no callable": (dict(targets=3), TypeError, "targets is 3; it must be a callable"),
    "short targets": (
        dict(targets=[len]),
        ValueError,
        "targets has 1 entries but input_tensor holds 4 images",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_refused_before_the_model_runs_and_nothing_is_lost(net, images, case):
    arguments, error, message = INVALID[case]
    metric = AverageDrop(GradCAM(net, "body"))
    metric.update(images)
    before = {name: getattr(metric, name).clone() for name in metric._defaults}
    net.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(error, match=message):
        metric.update(**{"input_tensor": images, **arguments})
    assert all(torch.equal(getattr(metric, name), state) for name, state in before.items())
    assert metric.update_count == 1


REFUSED_AFTER = {
    "out of range": (
        {},
        dict(class_idx=5),
        ValueError,
        "class_idx 5 is out of range: the model has 5 classes",
    ),
    "out of range list": ({}, dict(class_idx=[0, 1, 9, 0]), ValueError, "class_idx 9 is out of range"),
    "out of range tensor": (
        {},
        dict(class_idx=torch.tensor([0, 1, 9, 0])),
        ValueError,
        "class_idx 9 is out of range",
    ),
    "scores of one sample": (
        dict(logits_fn=lambda z: z[0]),
        {},
        ValueError,
        r"the scores have shape \(5,\) for 4 images",
    ),
    "scores of too many dimensions": (
        dict(logits_fn=lambda z: z[:, :, None]),
        {},
        ValueError,
        r"\(4, 5, 1\).*not \(N, K\)",
    ),
    "no scores": (
        dict(logits_fn=lambda z: z.tolist()),
        {},
        TypeError,
        "the scores are a list.*pass a logits_fn",
    ),
    "other logits": (
        dict(logits_fn=lambda z: z[:, :2]),
        {},
        ValueError,
        r"takes the CAM of the logit.*\(4, 5\)",
    ),
    "target of two": (
        {},
        dict(targets=lambda s: s[:2]),
        ValueError,
        r"a target returned a tensor of shape \(2,\)",
    ),
    "target of none": (
        {},
        dict(targets=lambda s: 1.0),
        TypeError,
        "a target returned 1.0; it must return a scalar",
    ),
}


@pytest.mark.parametrize("case", REFUSED_AFTER)
def test_refused_before_the_masked_pass_where_only_the_output_can_tell(net, images, case):
    settings_, arguments, error, message = REFUSED_AFTER[case]
    metric = AverageDrop(GradCAM(net, "body"), **settings_)
    with Calls(net) as calls, pytest.raises(error, match=message):
        metric.update(images, **arguments)
    assert calls.batches == [4]
    assert metric.total == metric.update_count == 0


@pytest.mark.parametrize(
    ("maps", "error", "message"),
    [
        (lambda x: [[1.0]], TypeError, r"the maps are a list; return a tensor \(N, \*spatial\)"),
        (
            lambda x: x[:2, 0],
            ValueError,
            "cam has 2 maps but input_tensor holds 4 images; return one map per",
        ),
        (lambda x: x[:, :1], ValueError, r"cam has shape \(4, 1, 12, 12\).*without a channel dimension"),
    ],
)
def test_maps_of_the_wrong_form_are_refused(net, images, maps, error, message):
    metric = AverageDrop(CallableSource(net, lambda model, x, class_idx: maps(x)))
    with pytest.raises(error, match=message):
        metric.update(images)
    assert metric.total == 0


def test_sources_that_cannot_be_explained_for_a_target_say_so(net, images):
    metric = AverageDrop(CallableSource(net, lambda *_: images))
    with pytest.raises(ValueError, match="explains a class, not an arbitrary target; pass class_idx"):
        metric.update(images, targets=lambda scores: scores[0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(logits_fn="softmax"), TypeError, "logits_fn is 'softmax'; it must be a callable"),
        (dict(batch_size=0), ValueError, "batch_size is 0; it must be a positive integer"),
        (dict(batch_size=True), ValueError, "batch_size is True"),
        (dict(protocol="torchcm"), ValueError, "protocol='torchcm' is not a preset"),
    ],
)
def test_constructor_messages(net, arguments, error, message):
    with pytest.raises(error, match=message):
        AverageDrop(GradCAM(net, "body"), **arguments)
