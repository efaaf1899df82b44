import pytest

from torchmetrics_cam import EvaluationProtocol
from torchmetrics_cam.protocol import as_protocol


def test_presets_are_what_the_tables_say():
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


def test_it_prints_every_choice():
    printed = str(EvaluationProtocol(baseline=(0.1, 0.2, 0.3), mask="top"))
    for choice in (
        "scores=softmax",
        "baseline=(0.1, 0.2, 0.3)",
        "mask=top",
        "mask_fraction=0.5",
        "drop=relative",
    ):
        assert choice in printed


def test_a_changed_preset_says_so():
    changed = EvaluationProtocol.preset("torchcam").but(drop="absolute")
    assert changed.name == "modified torchcam"
    assert changed.but(mask="top").name == "modified torchcam"
    assert changed.but(name="ours").name == "ours"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"scores": "sigmoid"},
            r"EvaluationProtocol\(scores='sigmoid'\): it must be one of \['softmax', 'raw'\]",
        ),
        ({"normalize": "twice"}, r"normalize='twice'"),
        ({"mask_fraction": 0.0}, r"mask_fraction=0.0\): it must lie in \(0, 1\]"),
        ({"drop_eps": -1.0}, "drop_eps=-1.0.*must be a number, not negative"),
    ],
)
def test_unknown_choices_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        EvaluationProtocol(**fields)


def test_unknown_presets_are_refused():
    with pytest.raises(
        ValueError, match=r"protocol='papers' is no preset; the presets are \['grad_cam', 'paper',"
    ):
        as_protocol("papers")
    with pytest.raises(TypeError, match="protocol is a int; pass an EvaluationProtocol"):
        as_protocol(3)
