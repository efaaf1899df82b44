"""``--layer``: the choice of `auto` on real networks, and the messages for wrong names."""

from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn

from torchmetrics_cam import AverageDrop, explain
from torchmetrics_cam.cams import GradCAM, vit_grid
from torchmetrics_cam.cli.demo import load_model
from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.cli.layers import check_layer, choose_layer


def hf_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
    )
    return ViTForImageClassification(config).eval()


def hf_swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        embed_dim=8, depths=[1, 2], num_heads=[1, 2], image_size=32, patch_size=2, window_size=4
    )
    return SwinForImageClassification(config).eval()


def hf_swinv2() -> nn.Module:
    from transformers import Swinv2Config, Swinv2ForImageClassification

    config = Swinv2Config(
        embed_dim=8, depths=[1, 2], num_heads=[1, 2], image_size=32, patch_size=2, window_size=4
    )
    return Swinv2ForImageClassification(config).eval()


def registers() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=64, depth=2, reg_tokens=4, embed_dim=24, num_heads=2
    ).eval()


NETWORKS = {
    "resnet18": (lambda: torchvision.models.resnet18(), 64, "layer4", (1, 512, 2, 2)),
    "vgg11": (lambda: torchvision.models.vgg11_bn(init_weights=False), 64, "features", (1, 512, 2, 2)),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(), 64, "features", (1, 1280, 2, 2)),
    "convnext_tiny": (lambda: torchvision.models.convnext_tiny(), 64, "features", (1, 768, 2, 2)),
    "swin_t": (lambda: torchvision.models.swin_t(), 64, "permute", (1, 768, 2, 2)),
    "vit_b_16": (
        lambda: torchvision.models.vit_b_16(image_size=64),
        64,
        "encoder.layers.encoder_layer_11.ln_1",
        (1, 768, 4, 4),
    ),
    "timm vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=64),
        64,
        "blocks.11.norm1",
        (1, 192, 4, 4),
    ),
    "timm registers": (registers, 64, "blocks.1.norm1", (1, 24, 4, 4)),
    "timm resnet": (lambda: timm.create_model("resnet10t"), 64, "layer4", (1, 512, 2, 2)),
    "timm swin": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=2),
        64,
        "norm",
        (1, 768, 2, 2),
    ),
    "hf vit": (hf_vit, 32, "1.layernorm_before", (1, 16, 4, 4)),
    "hf swin": (hf_swin, 32, "swin.layernorm", (1, 16, 8, 8)),
    "hf swinv2": (hf_swinv2, 32, "swinv2.layernorm", (1, 16, 8, 8)),
    "efficientnet_lite0": (load_model, 64, None, (1, 1280, 2, 2)),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_auto_chooses_the_last_layer_with_a_spatial_grid(network: str) -> None:
    build, side, name, shape = NETWORKS[network]
    model = build().eval()
    images = torch.rand(2, 3, side, side)
    choice = choose_layer(model, images)
    if name is not None:
        # Only the end of the name: its beginning differs between versions of a library.
        assert len(choice.names) == 1
        assert choice.names[0].endswith(name)
    assert choice.names[0] in choice.reason
    caught = []
    layer = model.get_submodule(choice.names[0])
    handle = layer.register_forward_hook(lambda module, arguments, result: caught.append(result))
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight)  # torchvision's ViT starts with a head of zeros.
    output = model(images[:1])
    handle.remove()
    grid = caught[-1] if choice.reshape_transform is None else choice.reshape_transform(caught[-1])
    assert tuple(grid.shape) == shape
    assert str(tuple(caught[-1].shape))[1:-1] in choice.reason
    checked = check_layer(model, images, choice.names)
    assert (checked is None) == (choice.reshape_transform is None)
    metric = AverageDrop(GradCAM(model, choice.names, reshape_transform=choice.reshape_transform))
    metric.update(images)
    assert 0 <= metric.compute() <= 1
    # The class score depends on the patch tokens, and not only on the class token.
    (gradient,) = torch.autograd.grad(getattr(output, "logits", output)[0, 1], caught[-1])
    if choice.reshape_transform is not None:
        gradient = choice.reshape_transform(gradient)
    assert gradient.any()


def test_grid_that_is_not_square_is_kept() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=(32, 64), depth=2).eval()
    choice = choose_layer(model, torch.rand(1, 3, 32, 64))
    assert choice.reshape_transform is not None
    assert choice.reshape_transform(torch.rand(1, 9, 192)).shape == (1, 192, 2, 4)


class PatchTransformer(nn.Module):
    """A transformer whose patches are embedded without a convolution, and which may run sequence first."""

    def __init__(self, pool: str, batch_first: bool) -> None:
        super().__init__()
        self.pool, self.batch_first = pool, batch_first
        self.embed, self.token = nn.Linear(192, 16), nn.Parameter(torch.randn(1, 1, 16))
        blocks = [
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first, norm_first=True) for _ in range(2)
        ]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = nn.functional.unfold(x, 8, stride=8).mT
        tokens = [self.token.expand(len(x), -1, -1), self.embed(patches)]
        tokens = torch.cat(tokens[::-1] if self.pool == "last token" else tokens, 1)
        if not self.batch_first:
            tokens = tokens.transpose(0, 1)
        tokens = self.blocks(tokens)
        if not self.batch_first:
            tokens = tokens.transpose(0, 1)
        if self.pool == "mean":
            return self.head(tokens.mean(1))
        return self.head(tokens[:, -1 if self.pool == "last token" else 0])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(("pool", "name"), [("token", "blocks.1.norm1"), ("mean", "blocks")])
def test_tokens_without_a_convolution_and_sequence_first(pool: str, name: str, batch_first: bool) -> None:
    torch.manual_seed(0)
    model = PatchTransformer(pool, batch_first).eval()
    images = torch.rand(2, 3, 16, 32)
    choice = choose_layer(model, images)
    assert choice.names == (name,)
    metric = AverageDrop(GradCAM(model, name, reshape_transform=choice.reshape_transform))
    metric.update(images)
    assert metric.total == 2
    reference = PatchTransformer(pool, True).eval()
    reference.load_state_dict(model.state_dict())
    expected = GradCAM(reference, name, reshape_transform=partial(vit_grid, grid=(2, 4)))
    source = GradCAM(model, name, reshape_transform=choice.reshape_transform)
    torch.testing.assert_close(explain(source, images).maps, explain(expected, images).maps)


def test_checkpointed_layers_are_counted_once() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=24, num_heads=2).eval()
    model.set_grad_checkpointing()
    assert choose_layer(model, torch.rand(1, 3, 64, 64)).names == ("blocks.1.norm1",)


def test_a_class_token_after_the_patches_is_refused() -> None:
    with pytest.raises(
        UsageError,
        match=r"class token of this PatchTransformer is not the first of its tokens \(1, 9, 16\)",
    ):
        choose_layer(PatchTransformer("last token", True).eval(), torch.rand(1, 3, 16, 32))


def test_a_shared_activation_is_not_chosen() -> None:
    relu = nn.ReLU()
    convolutions = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)]
    model = nn.Sequential(convolutions[0], relu, convolutions[1], relu, nn.AdaptiveMaxPool2d(2), nn.Flatten())
    choice = choose_layer(model, torch.rand(1, 3, 8, 8))
    assert (
        choice.reason == "2 is the last layer with a spatial grid that runs once, 4 x 4 (shape (1, 4, 4, 4))"
    )


def test_strides_that_differ_between_the_axes_are_kept() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, (2, 1), 1),
        nn.Conv2d(4, 4, 3, (2, 1), 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    choice = choose_layer(model, torch.rand(1, 3, 32, 64))
    assert choice.names == ("2",)
    assert "8 x 64 (shape (1, 4, 8, 64))" in choice.reason
    assert choice.reshape_transform is None


def test_keys_and_attention_weights_have_no_spatial_grid() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=32, num_heads=2, qk_norm=True
    )
    model.blocks[0].attn.fused_attn = False
    for layer, shape in (("k_norm", "1, 2, 17, 16"), ("attn_drop", "1, 2, 17, 17")):
        with pytest.raises(UsageError, match=rf"has output of shape \({shape}\), which has no spatial grid"):
            check_layer(model, torch.rand(1, 3, 64, 64), [f"blocks.0.attn.{layer}"])


class Backbone(nn.Module):
    """A network with a frozen backbone."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode, self.backbone, self.head = (
            mode,
            timm.create_model("resnet10t", num_classes=0),
            nn.Linear(512, 5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.mode == "detach":
            return self.head(self.backbone(x).detach())
        if self.mode == "twice":
            return self.head(self.backbone(x) + self.backbone(x.flip(-1)))
        with torch.no_grad() if self.mode == "no_grad" else torch.inference_mode():
            features = self.backbone(x)
        return self.head(features.clone())


@pytest.mark.parametrize(
    ("mode", "note"),
    [("no_grad", ""), ("inference_mode", ""), ("detach", "; no gradient of the score reaches it")],
)
def test_a_backbone_without_autograd_has_a_layer(mode: str, note: str) -> None:
    choice = choose_layer(Backbone(mode), torch.rand(1, 3, 64, 64))
    assert choice.reason == (
        f"backbone.layer4 is the last layer with a spatial grid, 2 x 2 (shape (1, 512, 2, 2)){note}"
    )


def test_layers_that_run_several_times_are_refused() -> None:
    model, images = Backbone("twice"), torch.rand(1, 3, 64, 64)
    with pytest.raises(
        UsageError, match="in this Backbone every layer with a spatial grid runs several times"
    ):
        choose_layer(model, images)
    with pytest.raises(
        UsageError, match=r"runs 2 times when.*No layer of the model has a spatial grid and runs"
    ):
        check_layer(model, images, ["backbone.layer4"])


def test_choosing_a_layer_does_not_change_the_model() -> None:
    model = torchvision.models.resnet18().train()
    model.bn1.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    choose_layer(model, torch.rand(2, 3, 64, 64))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.training
    assert not model.bn1.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_unknown_layer_is_reported_with_candidates() -> None:
    model = torchvision.models.resnet18().eval()
    with pytest.raises(
        UsageError, match=r"--layer 'layer5' is not in the model; the nearest names are \['layer"
    ) as error:
        check_layer(model, torch.rand(1, 3, 64, 64), ["layer5"])
    assert "layer4 (1, 512, 2, 2)" in str(error.value)
    assert str(error.value).count("(1, ") == 12


def test_layer_without_a_spatial_grid_is_refused() -> None:
    model = torchvision.models.resnet18().eval()
    with pytest.raises(UsageError, match=r"'fc' has output of shape \(1, 1000\), which has no spatial grid"):
        check_layer(model, torch.rand(1, 3, 64, 64), ["fc"])
    with pytest.raises(
        UsageError, match=r"'avgpool' has output of shape \(1, 512, 1, 1\), which has no spatial grid"
    ):
        check_layer(model, torch.rand(1, 3, 64, 64), ["avgpool"])


def test_layer_that_does_not_run_is_refused() -> None:
    model = torchvision.models.resnet18().eval()
    model.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises(UsageError, match="'unused' does not run"):
        check_layer(model, torch.rand(1, 3, 64, 64), ["unused"])


def test_layers_of_different_formats_are_refused() -> None:
    model = torchvision.models.swin_t().eval()
    with pytest.raises(UsageError, match="outputs have different formats"):
        check_layer(model, torch.rand(1, 3, 64, 64), ["norm", "permute"])


def test_model_without_a_spatial_grid_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).eval()
    with pytest.raises(UsageError, match="layer with a spatial grid, but this Sequential has no such layer"):
        choose_layer(model, torch.rand(1, 3, 4, 4))


def test_image_size_that_the_model_does_not_accept_is_reported() -> None:
    model = torchvision.models.vit_b_16(image_size=64).eval()
    with pytest.raises(
        UsageError, match=r"does not accept images of shape \(3, 96, 96\) \(AssertionError.*--image-size"
    ):
        choose_layer(model, torch.rand(1, 3, 96, 96))
    assert not any(module._forward_hooks for module in model.modules())
