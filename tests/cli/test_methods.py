"""``--methods``."""

from pathlib import Path

import pytest
import torch
import torchvision

from torchmetrics_cam import AverageDrop
from torchmetrics_cam.cams import vit_grid
from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.cli.methods import METHODS, make_sources

OWN = ("grad_cam", "grad_cam_plus_plus", "xgrad_cam", "layer_cam", "hires_cam")


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return torchvision.models.resnet18(num_classes=5).eval()


def test_methods_of_this_package_have_their_titles(model: torch.nn.Module) -> None:
    sources = make_sources(OWN, model, "layer4")
    assert list(sources) == ["Grad-CAM", "Grad-CAM++", "XGrad-CAM", "Layer-CAM", "HiRes-CAM"]
    assert all(source.layer_names == ("layer4",) for source in sources.values())
    assert set(OWN) < set(METHODS)


@pytest.mark.parametrize(
    "name",
    [
        "torchcam:GradCAM",
        "torchcam:LayerCAM",
        "pytorch_grad_cam:EigenCAM",
        "pytorch_grad_cam:GradCAMPlusPlus",
    ],
)
def test_methods_of_other_libraries_make_maps(model: torch.nn.Module, name: str) -> None:
    sources = make_sources([name], model, ["layer4"])
    metric = AverageDrop(sources[name])
    metric.update(torch.rand(1, 3, 64, 64))
    assert 0 <= metric.compute() <= 1
    if hasattr(sources[name], "remove_hooks"):
        sources[name].remove_hooks()


def test_factory_gets_model_and_layer(
    model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_methods.py").write_text(
        "from torchmetrics_cam.cams import GradCAM\n"
        "def mine(model, layer): return GradCAM(model, layer)\n"
        "def nothing(model, layer): return 3\n"
        "def fails(model, layer): raise RuntimeError('no luck')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sources = make_sources(["my_methods:mine"], model, "layer3")
    assert sources["my_methods:mine"].layer_names == ("layer3",)
    with pytest.raises(UsageError, match="returned a int, which is not a CAM source"):
        make_sources(["my_methods:nothing"], model, "layer3")
    with pytest.raises(UsageError, match="failed \\(RuntimeError: no luck\\)"):
        make_sources(["my_methods:fails"], model, "layer3")
    with pytest.raises(UsageError, match="my_methods has no 'min'; the nearest names in it are 'mine'"):
        make_sources(["my_methods:min"], model, "layer3")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "--methods is empty"),
        (["grad_cam", "grad_cam"], "'grad_cam' twice"),
        (["gradcam"], "'gradcam' does not exist; the nearest names are 'grad_cam'"),
        (["torchcam:GradCan"], "nearest names are 'GradCAM'"),
        (["pytorch_grad_cam:Eigen"], "nearest names are 'EigenCAM'"),
        (["torchcam:FinerCAM2"], "nearest names are 'FinerCAM'"),
        (["no_such_module_here:f"], "there is no module 'no_such_module_here'"),
        (["a b:f"], "is not of the form package.module:factory"),
    ],
)
def test_wrong_names_are_reported_with_suggestions(
    model: torch.nn.Module, names: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make_sources(names, model, "layer4")


def test_torchcam_does_not_support_tokens(model: torch.nn.Module) -> None:
    with pytest.raises(UsageError, match="torchcam does not support layers whose output is tokens"):
        make_sources(["torchcam:GradCAM"], model, "layer4", reshape_transform=vit_grid)
