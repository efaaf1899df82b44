import pytest
import torch
from torch import nn

from torchmetrics_cam import CAMComparison, EvaluationProtocol
from torchmetrics_cam.cams import GradCAM
from torchmetrics_cam.metrics.measures import MEASURES
from torchmetrics_cam.protocol import as_protocol, reads


def test_fields_of_the_paper_and_torchcam_presets():
    paper, torchcam = EvaluationProtocol.preset("paper"), EvaluationProtocol.preset("torchcam")
    assert paper == EvaluationProtocol()
    assert (paper.scores, paper.cam_of, paper.rectify, paper.normalize) == (
        "softmax",
        "logit",
        "relu",
        "after_resize",
    )
    assert (torchcam.scores, torchcam.cam_of, torchcam.rectify) == ("raw", "scores", "source")
    assert (torchcam.normalize, torchcam.normalize_eps, torchcam.drop_eps) == ("before_resize", 1e-8, 1e-7)


def test_text_has_every_setting():
    text = str(EvaluationProtocol(baseline=(0.1, 0.2, 0.3), mask="top"))
    for setting in (
        "scores=softmax",
        "baseline=(0.1, 0.2, 0.3)",
        "mask=top",
        "mask_fraction=0.5",
        "drop=relative",
    ):
        assert setting in text


def test_a_changed_preset_is_named_modified():
    changed = EvaluationProtocol.preset("torchcam").replace(drop="absolute")
    assert changed.name == "modified torchcam"
    assert changed.replace(mask="top").name == "modified torchcam"
    assert changed.replace(name="ours").name == "ours"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"scores": "sigmoid"},
            r"EvaluationProtocol\(scores='sigmoid'\): it must be one of \['softmax', 'raw'\]",
        ),
        ({"normalize": "twice"}, r"normalize='twice'"),
        ({"mask_fraction": 0.0}, r"mask_fraction=0.0\): it must lie in \(0, 1\]"),
        ({"drop_eps": -1.0}, "drop_eps=-1.0.*it must be a finite number of at least 0"),
    ],
)
def test_invalid_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        EvaluationProtocol(**fields)


def test_unknown_presets_are_refused():
    with pytest.raises(
        ValueError, match=r"protocol='papers' is not a preset; the presets are \['grad_cam', 'paper',"
    ):
        as_protocol("papers")
    with pytest.raises(
        TypeError, match="protocol is of type int; pass an EvaluationProtocol or the name of a preset"
    ):
        as_protocol(3)


def test_a_caption_has_only_settings_that_the_measures_read():
    protocol = EvaluationProtocol(mask="top", mask_fraction=0.3, drop_eps=1e-7)
    assert protocol.caption(["complexity", "pointing_game"]) == (
        "modified paper: scores=softmax, cam_of=logit, rectify=relu, normalize=after_resize, normalize_eps=0.0,"
        " mask=top, mask_fraction=0.3, baseline=0.0, pointing_tolerance=15.0, class_selection=argmax"
    )
    assert "drop_eps=1e-07" in protocol.caption(["average_drop"])
    assert protocol.caption() == str(protocol)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("drop", "absolute"),
        ("drop_eps", 0.5),
        ("gain_eps", 0.5),
        ("curve_steps", 3),
        ("deletion_baseline", 0.7),
        ("insertion_baseline", 0.7),
        ("road_fractions", (0.3,)),
        ("road_noise", 0.5),
        ("pointing_tolerance", 0.0),
        ("iou_threshold", 0.9),
        ("top_k", 4),
    ],
)
def test_a_setting_is_left_out_of_captions_if_it_changes_no_value(setting, value):
    """Compute every measure with two values of the setting: those that differ must be those that read it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).eval()
    nn.init.normal_(model[3].weight)
    images, masks = torch.rand(24, 1, 8, 8), torch.zeros(24, 8, 8, dtype=torch.bool)
    masks[:, :3, :3] = True

    def values(protocol):
        source = GradCAM(model, "0")
        settings = {"measures": list(MEASURES), "protocol": protocol, "controls": False}
        comparison = CAMComparison({"Grad-CAM": source}, **settings)
        comparison.update(images, objects=masks)
        return {name: comparison.compute()[f"Grad-CAM/{name}"].item() for name in MEASURES}

    protocol = EvaluationProtocol(pointing_tolerance=2.0, top_k=20)
    one, other = values(protocol), values(protocol.replace(**{setting: value}))
    changed = {name for name in MEASURES if one[name] != other[name]}
    assert changed
    assert changed == {name for name in MEASURES if reads([name], setting)}
