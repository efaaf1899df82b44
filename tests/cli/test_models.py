"""``--model`` and ``--checkpoint``."""

import pickle
import shutil
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from PIL import Image

from torchmetrics_cam.cli.checkpoint import classes_in
from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.cli.models import load_model
from torchmetrics_cam.cli.transforms import ProcessorTransform, processor_settings

PICTURE = Image.new("RGB", (300, 280), (255, 128, 0))


def check(loaded, side: int, classes: int) -> None:
    image = loaded.transform(PICTURE)
    assert image.shape == (3, side, side)
    assert loaded.image_size == side
    assert not loaded.model.training
    colors = loaded.to_colors(image[None])
    assert colors[0, :, side // 2, side // 2].tolist() == pytest.approx([1, 128 / 255, 0], abs=0.01)
    with torch.no_grad():
        output = loaded.model(image[None])
    assert getattr(output, "logits", output).shape == (1, classes)
    assert loaded.class_names is None or len(loaded.class_names) == classes


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet10t"])
def test_network_of_a_library_with_random_weights(name: str) -> None:
    torch.manual_seed(1)
    loaded = load_model(name, "random", image_size=64)
    check(loaded, 64, 1000)
    assert "tench" in loaded.class_names[0]
    torch.manual_seed(1)
    again = load_model(name, "random")
    assert all(map(torch.equal, loaded.model.state_dict().values(), again.model.state_dict().values()))


def test_transform_of_torchvision_is_used() -> None:
    loaded = load_model("torchvision:efficientnet_b1", "random")
    check(loaded, 240, 1000)


def test_vit_is_built_for_the_image_size() -> None:
    check(load_model("torchvision:vit_b_16", "random", image_size=64), 64, 1000)
    check(load_model("timm:vit_tiny_patch16_224", "random", image_size=64), 64, 1000)


@pytest.mark.parametrize("wrap", ["bare", "state_dict", "model", "lightning", "safetensors"])
def test_checkpoint_with_other_classes(tmp_path: Path, wrap: str) -> None:
    trained = torchvision.models.resnet18(num_classes=10)
    state = trained.state_dict()
    file = tmp_path / "weights.pt"
    if wrap == "safetensors":
        from safetensors.torch import save_file

        file = tmp_path / "weights.safetensors"
        save_file(state, file)
    elif wrap == "lightning":
        prefixed = {f"model.{key}": value for key, value in state.items()}
        torch.save({"state_dict": {**prefixed, "loss.weight": torch.ones(10)}, "epoch": 3}, file)
    else:
        torch.save(state if wrap == "bare" else {wrap: state}, file)
    loaded = load_model("torchvision:resnet18", str(file), image_size=64)
    check(loaded, 64, 10)
    assert loaded.class_names is None
    assert torch.equal(loaded.model.fc.weight, trained.fc.weight)


def test_timm_checkpoint_with_other_classes(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet10t", num_classes=7).state_dict(), tmp_path / "w.pt")
    check(load_model("timm:resnet10t", str(tmp_path / "w.pt"), image_size=64), 64, 7)


def test_only_the_last_layer_tells_the_number_of_classes() -> None:
    model = torch.nn.Linear(3, 2)
    model.register_parameter("scale", torch.nn.Parameter(torch.tensor(1.0)))
    state = model.state_dict()
    assert classes_in(state, model) is None
    assert classes_in(state | {"weight": torch.zeros(5, 3), "bias": torch.zeros(5)}, model) == 5
    assert classes_in(state | {"weight": torch.zeros(5, 4)}, model) is None
    assert classes_in(state | {"scale": torch.ones(1)}, model) is None


def test_checkpoint_of_another_network(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet34(num_classes=10).state_dict(), tmp_path / "w.pt")
    with pytest.raises(
        UsageError, match=r"does not match this ResNet \(.*Unexpected key.*layer1.2.conv1.weight"
    ):
        load_model("torchvision:resnet18", str(tmp_path / "w.pt"))


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_files_that_are_not_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 1}, tmp_path / "epoch.pt")
    torch.save(Evil(), tmp_path / "evil.pt")
    (tmp_path / "evil2.pt").write_bytes(pickle.dumps(Evil()))
    for name, message in {
        "text.pt": "contains more than weights, or is not a file|cannot be read",
        "empty.pt": "cannot be read",
        "text.safetensors": "cannot be read",
        "list.pt": "contains no state dict but a list",
        "epoch.pt": "contains no state dict but a dict",
        "evil.pt": "contains more than weights",
        "evil2.pt": "contains more than weights|cannot be read",
        "missing.pt": "does not exist",
        ".": "is a folder",
    }.items():
        with pytest.raises(UsageError, match=message):
            load_model("torchvision:resnet18", str(tmp_path / name))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", "does not say where the network comes from"),
        ("torchvision:resnet19", "the nearest names are 'resnet18'|'resnet"),
        ("torchvision:fasterrcnn_resnet50_fpn", "is not a classifier of torchvision"),
        ("timm:resnet1818", "the nearest names are"),
        ("no_such_module_here:build", "there is no module 'no_such_module_here'"),
        ("hf:./no/such/folder", "there is no such folder"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(name, "random")


def test_failed_download_names_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", fail)
    with pytest.raises(UsageError, match=r"cannot be loaded \(OSError: no network here\).*--checkpoint FILE"):
        load_model("torchvision:resnet18")


def test_folder_of_transformers(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        id2label={0: "cat", 1: "dog", 2: "owl"},
    )
    model = ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "vit")
    without = load_model(f"hf:{tmp_path / 'vit'}")
    assert without.transform(PICTURE).shape == (3, 32, 32)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    loaded = load_model(f"hf:{tmp_path / 'vit'}")
    check(loaded, 32, 3)
    assert loaded.class_names == ["cat", "dog", "owl"]
    assert torch.equal(loaded.model.classifier.weight, model.classifier.weight)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    again = load_model(f"hf:{tmp_path / 'vit'}", str(tmp_path / "w.pt"))
    assert torch.equal(again.model.classifier.weight, model.classifier.weight)
    (tmp_path / "vit" / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"its config.json cannot be used"):
        load_model(f"hf:{tmp_path / 'vit'}")


@pytest.fixture(scope="module")
def small_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that ``save_pretrained`` of transformers has written, without a preprocessor."""
    from transformers import ViTConfig, ViTForImageClassification

    folder = tmp_path_factory.mktemp("vit")
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        num_labels=3,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


def test_folder_of_transformers_with_a_network_of_timm(tmp_path: Path) -> None:
    import transformers

    settings = {"input_size": [3, 48, 48], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 1.0}
    config = transformers.TimmWrapperConfig.from_dict(
        {"architecture": "resnet10t", "num_classes": 3, "pretrained_cfg": settings}
    )
    transformers.TimmWrapperForImageClassification(config).save_pretrained(tmp_path)
    loaded = load_model(f"hf:{tmp_path}")
    image = loaded.transform(PICTURE)
    assert image.shape == (3, 48, 48)
    assert loaded.to_colors(image[None])[0, :, 24, 24].tolist() == pytest.approx([1, 128 / 255, 0], abs=0.01)
    assert loaded.transform_name.startswith("Compose( Resize(size=48")
    with pytest.raises(
        UsageError, match=r"--image-size has no effect on hf:.*; omit it, or give the network as"
    ):
        load_model(f"hf:{tmp_path}", image_size=64)


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize(
    "content",
    [
        '{"do_normalize": tr',
        "[]",
        '{"image_processor_type": "NoSuchImageProcessor"}',
        '{"auto_map": {"AutoImageProcessor": "mine.MyProcessor"}, "image_processor_type": "MyProcessor"}',
        '{"image_processor_type": "ViTImageProcessor", "size": "large"}',
    ],
    ids=["truncated", "list", "unknown", "custom code", "wrong size"],
)
def test_preprocessor_that_cannot_be_used_is_refused(
    small_vit: Path, tmp_path: Path, content: str, file: str
) -> None:
    shutil.copytree(small_vit, tmp_path / "vit")
    nested = content if file.startswith("pre") else f'{{"image_processor": {content}}}'
    (tmp_path / "vit" / file).write_text(nested)
    message = rf"its {file} cannot be used \(.*\); repair it, or delete it to use the ImageNet transform"
    with pytest.raises(UsageError, match=message):
        load_model(f"hf:{tmp_path / 'vit'}")


def test_transform_is_named(small_vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import ViTImageProcessor

    (tmp_path / "my_transforms.py").write_text(
        "import torch\n"
        "def build(): return torch.nn.Conv2d(3, 2, 1)\n"
        "def halve(picture): return torch.zeros(3, 8, 8)\n"
        "class Callable:\n    def __call__(self, picture): return halve(picture)\n"
        "def function(): return build(), halve\n"
        "def instance(): return build(), Callable()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    default = "ImageNet transform of torchvision at 48 px"
    names = {
        name: load_model(name, checkpoint, image_size=size).transform_name
        for name, checkpoint, size in (
            ("torchvision:resnet18", "random", 48),
            ("timm:resnet10t", "random", 48),
            (f"hf:{small_vit}", "random", 48),
            ("my_transforms:build", None, 48),
            ("my_transforms:function", None, None),
            ("my_transforms:instance", None, None),
        )
    }
    assert names.pop("torchvision:resnet18").startswith(
        "ImageClassification( crop_size=[48] resize_size=[55]"
    )
    assert names.pop("timm:resnet10t").startswith("Compose( Resize(size=")
    assert names == {
        f"hf:{small_vit}": f"{default}, because hf:{small_vit} has no preprocessor_config.json",
        "my_transforms:build": f"{default}, because 'my_transforms:build' returns no transform",
        "my_transforms:function": "my_transforms.halve",
        "my_transforms:instance": "<my_transforms.Callable object>",
    }
    shutil.copytree(small_vit, tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    assert (
        load_model(f"hf:{tmp_path / 'vit'}").transform_name == f"ViTImageProcessor of hf:{tmp_path / 'vit'}"
    )
    larger = load_model(f"hf:{tmp_path / 'vit'}", image_size=48).transform_name
    assert larger == f"ViTImageProcessor of hf:{tmp_path / 'vit'} with size={{'height': 48, 'width': 48}}"


@pytest.mark.parametrize(
    ("kind", "settings", "resized", "cropped"),
    [
        ("ViTImageProcessor", {"size": {"height": 64, "width": 64}}, {"height": 32, "width": 32}, None),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 96}}, {"shortest_edge": 32}, None),
        ("BitImageProcessor", {}, {"shortest_edge": 32}, 32),
        ("MobileNetV2ImageProcessor", {}, {"shortest_edge": 37}, 32),
        ("DeiTImageProcessor", {}, {"height": 37, "width": 37}, 32),
        ("PerceiverImageProcessor", {}, {"height": 32, "width": 32}, 32),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_image_size_is_applied_by_the_processor(kind, settings, resized, cropped) -> None:
    import transformers

    processor = getattr(transformers, kind)(**settings)
    arguments = processor_settings(processor, 32)
    assert arguments["size"] == resized
    assert arguments.get("crop_size") == (cropped and {"height": cropped, "width": cropped})
    image = ProcessorTransform(processor, arguments)(Image.new("RGB", (300, 200)))
    assert image.shape == (3, 32, 32)


def test_model_of_transformers_that_is_not_an_image_classifier(tmp_path: Path) -> None:
    import transformers

    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="is of type 'bert', for which transformers has no image classifier"):
        load_model(f"hf:{tmp_path}")


def test_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models.py").write_text(
        "import torch\nfrom torchvision.models import resnet18\n"
        "def build(): return resnet18(num_classes=4)\n"
        "def full(): return build(), (lambda picture: torch.ones(3, 64, 64)), 'abcd'\n"
        "def wrong(): return 'resnet18'\n"
        "def fails(depth): return build()\n"
        "number = 3\n"
    )
    (tmp_path / "my_import.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    check(load_model("my_models:build", image_size=64), 64, 4)
    full = load_model("my_models:full")
    assert full.class_names == list("abcd")
    assert full.transform(PICTURE).shape == (3, 64, 64)
    assert not full.model.training
    torch.save(full.model.state_dict(), tmp_path / "w.pt")
    load_model("my_models:build", str(tmp_path / "w.pt"))
    for name, message in {
        "my_models:wrong": r"returned \(str\); it must return a torch.nn.Module",
        "my_models:fails": "calling it without arguments failed \\(TypeError",
        "my_models:number": "is of type int and cannot be called",
        "my_import:build": "importing my_import failed \\(ModuleNotFoundError: No module named 'a_package",
    }.items():
        with pytest.raises(UsageError, match=message):
            load_model(name)
    with pytest.raises(UsageError, match="decides itself which weights"):
        load_model("my_models:build", "random")
    with pytest.raises(UsageError, match="--image-size 0"):
        load_model("my_models:build", image_size=0)
