"""``--layer auto`` over the families of timm: one network of each kind of architecture."""

import pytest
import timm
import torch
from timm.models import mlp_mixer
from timm.models.focalnet import FocalNet
from timm.models.levit import Levit
from timm.models.metaformer import MetaFormer
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from timm.models.nest import Nest
from timm.models.tiny_vit import TinyVit
from timm.models.tnt import TNT
from timm.models.volo import VOLO
from torch import Tensor, nn

from torchmetrics_cam import EvaluationProtocol, explain
from torchmetrics_cam.cams import GradCAM
from torchmetrics_cam.cli.layers import choose_layer

WIDE = (64, 128)
SQUARE = (64, 64)
PLAIN = {"img_size": WIDE, "embed_dim": 32, "depth": 2, "num_heads": 2}
CLASS_TOKEN = "; of the tokens after it, only the class token is used"
PREFIX = "; of the tokens after it, only those before the grid are used"


def mixer(block, mlp=mlp_mixer.Mlp, norm=nn.LayerNorm, ratio=(0.5, 4.0)):
    return mlp_mixer.MlpMixer(
        img_size=64,
        embed_dim=64,
        num_blocks=2,
        mlp_ratio=ratio,
        block_layer=block,
        mlp_layer=mlp,
        norm_layer=norm,
    )


def mvit(token):
    config = MultiScaleVitCfg(
        depths=(1, 1, 2), embed_dim=16, stride_q=((1, 1), (2, 2), (2, 2)), use_cls_token=token
    )
    return MultiScaleVit(config, img_size=SQUARE)


# fmt: off
# The network, its arguments, the size of the image, the chosen layer, its grid and the end of the reason.
CONVOLUTIONAL = {
    "resnet": ("resnet10t", {}, WIDE, "layer4", (2, 4)),
    "resnet with attention pooling": ("resnet50_clip", {"img_size": 64}, SQUARE, "final_conv", (2, 2)),
    "resnetv2": ("resnetv2_18", {}, WIDE, "norm", (2, 4)),
    "densenet": ("densenet121", {"block_config": (1, 1, 1, 1)}, WIDE, "features", (2, 4)),
    "efficientnet": ("test_efficientnet", {}, WIDE, "bn2", (2, 4)),
    "mobilenetv3": ("mobilenetv3_small_050", {}, WIDE, "blocks", (2, 4)),
    "convnext": ("test_convnext", {}, WIDE, "norm_pre", (2, 4)),
    "nfnet": ("test_nfnet", {}, WIDE, "final_act", (2, 4)),
    "byobnet": ("test_byobnet", {}, WIDE, "final_conv", (2, 4)),
    "mambaout": ("test_mambaout", {}, WIDE, "stages", (2, 4)),
    "edgenext": ("edgenext_xx_small", {}, WIDE, "norm_pre", (2, 4)),
    "efficientvit": ("efficientvit_b0", {}, WIDE, "head.in_conv", (2, 4)),
    "ghostnet": ("ghostnet_050", {}, WIDE, "blocks", (2, 4)),
    "starnet": ("starnet_s050", {}, WIDE, "norm", (2, 4)),
    "focalnet": (lambda: FocalNet(embed_dim=16, depths=(1, 1, 1, 1)), {}, WIDE, "norm", (2, 4)),
    "poolformer": (lambda: MetaFormer(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)), {}, WIDE, "stages", (2, 4)),
}
POOLED = {
    "vit, average": ("vit_tiny_patch16_224", {**PLAIN, "global_pool": "avg"}, WIDE, "norm", (4, 8)),
    "vit, no class token": ("vit_tiny_patch16_224", {**PLAIN, "global_pool": "avg", "class_token": False}, WIDE, "norm", (4, 8)),
    "vit, attention pooling": ("vit_tiny_patch16_224", {**PLAIN, "global_pool": "map"}, WIDE, "norm", (4, 8)),
    "perception encoder": ("vit_pe_core_tiny_patch16_384", PLAIN, WIDE, "norm", (4, 8)),
    "parallel blocks": ("vit_pwee_patch16_reg1_gap_256", PLAIN, WIDE, "norm", (4, 8)),
    "relative positions": ("vit_relpos_small_patch16_224", PLAIN, WIDE, "norm", (4, 8)),
    "beit": ("beit_base_patch16_224", PLAIN, WIDE, "norm", (4, 8)),
    "eva": ("eva02_tiny_patch14_224", {**PLAIN, "img_size": (56, 112)}, (56, 112), "norm", (4, 8)),
    "sam": ("samvit_base_patch16_224", {**PLAIN, "img_size": 64, "neck_chans": 16, "window_size": 2, "global_attn_indexes": (1,)}, SQUARE, "neck", (4, 4)),
    "naflexvit": ("naflexvit_base_patch16_gap", {"embed_dim": 32, "depth": 2, "num_heads": 2}, WIDE, "norm", (4, 8)),
    "swin": ("swin_tiny_patch4_window7_224", {"img_size": (32, 64), "window_size": 2, "embed_dim": 24, "depths": (1, 1, 2), "num_heads": (1, 2, 4)}, (32, 64), "norm", (2, 4)),
    "swinv2": ("swinv2_tiny_window8_256", {"img_size": (32, 64), "window_size": 2, "embed_dim": 24, "depths": (1, 1, 2), "num_heads": (1, 2, 4)}, (32, 64), "norm", (2, 4)),
    "swinv2, channels first": ("swinv2_cr_tiny_224", {"img_size": SQUARE, "window_size": 4, "embed_dim": 24, "depths": (1, 1, 2), "num_heads": (1, 2, 4)}, SQUARE, "stages", (4, 4)),
    "maxvit": ("test_maxvit", {"img_size": SQUARE}, SQUARE, "norm", (2, 2)),
    "coatnet": ("test_coatnet", {}, (160, 160), "norm", (5, 5)),
    "davit": ("davit_tiny", {"depths": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32), "num_heads": (2, 2, 2, 2)}, WIDE, "norm_pre", (2, 4)),
    "tiny_vit": (lambda: TinyVit(embed_dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_sizes=(2, 2, 2, 2)), {}, WIDE, "stages", (2, 4)),
    "twins svt": ("twins_svt_small", {"img_size": WIDE, "embed_dims": [16, 16, 32, 32], "depths": [1, 1, 1, 2], "num_heads": [1, 1, 2, 2], "wss": [2, 2, 2, 2]}, WIDE, "norm", (2, 4)),
    "twins pcpvt": ("twins_pcpvt_small", {"img_size": WIDE, "embed_dims": [16, 16, 32, 32], "depths": [1, 1, 1, 2], "num_heads": [1, 1, 2, 2]}, WIDE, "norm", (2, 4)),
    "pvt_v2": ("pvt_v2_b0", {}, WIDE, "stages", (2, 4)),
    "nest": (lambda: Nest(img_size=64, embed_dims=(16, 32, 32), num_heads=(1, 2, 2), depths=(1, 1, 1)), {}, SQUARE, "norm", (4, 4)),
    "efficientformer": ("efficientformer_l1", {}, (224, 224), "norm", (7, 7)),
    "mvitv2": (lambda: mvit(False), {}, SQUARE, "norm", (4, 4)),
    "levit": (lambda: Levit(img_size=224, embed_dim=(16, 24, 32), key_dim=16, depth=(1, 1, 1), num_heads=(1, 2, 2)), {}, (224, 224), "stages", (4, 4)),
    "hiera": ("hiera_tiny_224", {"img_size": SQUARE, "embed_dim": 16, "stages": (1, 1, 1, 1)}, SQUARE, "blocks.3", (2, 2)),
    "visformer": ("visformer_tiny", {"img_size": 64, "embed_dim": 32, "depth": (1, 1, 1), "num_heads": 2}, SQUARE, "norm", (2, 2)),
    "sequencer": ("sequencer2d_s", {"embed_dims": (16, 32, 32, 32), "layers": (1, 1, 1, 1), "hidden_sizes": (4, 4, 4, 4)}, (224, 224), "norm", (16, 16)),
    "mixer": (lambda: mixer(mlp_mixer.MixerBlock), {}, SQUARE, "norm", (4, 4)),
    "gmixer": (lambda: mixer(mlp_mixer.MixerBlock, mlp_mixer.GluMlp), {}, SQUARE, "norm", (4, 4)),
    "gmlp": (lambda: mixer(mlp_mixer.SpatialGatingBlock, mlp_mixer.GatedMlp, ratio=6), {}, SQUARE, "norm", (4, 4)),
    "resmlp": (lambda: mixer(mlp_mixer.ResBlock, norm=mlp_mixer.Affine, ratio=4), {}, SQUARE, "norm", (4, 4)),
}
WITH_CLASS_TOKEN = {
    "vit": ("vit_tiny_patch16_224", PLAIN, WIDE, "blocks.1.norm1", (4, 8), CLASS_TOKEN),
    "vit of 4 x 16 patches": ("vit_tiny_patch16_224", {**PLAIN, "img_size": (64, 256)}, (64, 256), "blocks.1.norm1", (4, 16), CLASS_TOKEN),
    "registers": ("vit_tiny_patch16_224", {**PLAIN, "reg_tokens": 4}, WIDE, "blocks.1.norm1", (4, 8), PREFIX),
    "parallel blocks": ("vit_pwee_patch16_reg1_gap_256", {**PLAIN, "global_pool": "token", "class_token": True}, WIDE, "blocks.1.in_norm", (4, 8), PREFIX),
    "hybrid": ("vit_tiny_r_s16_p8_224", {**PLAIN, "img_size": 128}, (128, 128), "blocks.1.norm1", (4, 4), CLASS_TOKEN),
    "deit": ("deit_tiny_patch16_224", PLAIN, WIDE, "blocks.1.norm1", (4, 8), CLASS_TOKEN),
    "deit, distilled": ("deit_tiny_distilled_patch16_224", PLAIN, WIDE, "blocks.1.norm1", (4, 8), PREFIX),
    "mvitv2": (lambda: mvit(True), {}, SQUARE, "stages.2.blocks.1.norm1", (4, 4), CLASS_TOKEN),
    "cait": ("cait_xxs24_224", PLAIN, WIDE, "blocks", (4, 8), CLASS_TOKEN),
    "convit": ("convit_tiny", {"img_size": 64, "embed_dim": 16, "depth": 3, "num_heads": 2, "local_up_to_layer": 2}, SQUARE, "blocks.2.norm1", (4, 4), CLASS_TOKEN),
    "crossvit": ("crossvit_tiny_240", {"embed_dim": (16, 32), "depth": ((1, 2, 0),), "num_heads": (2, 2)}, (240, 240), "blocks.0.blocks.1", (14, 14), CLASS_TOKEN),
    "coat": ("coat_lite_tiny", {"img_size": 64, "embed_dims": (16, 16, 32, 32), "serial_depths": (1, 1, 1, 1)}, SQUARE, "serial_blocks4.0.norm1", (2, 2), CLASS_TOKEN),
    "coat, parallel": ("coat_tiny", {"img_size": 128, "embed_dims": (16, 16, 16, 16), "serial_depths": (1, 1, 1, 1)}, (128, 128), "parallel_blocks.5.norm14", (4, 4), CLASS_TOKEN),
    "pit": ("pit_ti_224", {"img_size": 64, "base_dims": [16, 16, 16], "depth": [1, 1, 2], "heads": [1, 2, 2]}, SQUARE, "transformers.2.blocks.1.norm1", (2, 2), CLASS_TOKEN),
    "pit, distilled": ("pit_ti_distilled_224", {"img_size": 64, "base_dims": [16, 16, 16], "depth": [1, 1, 2], "heads": [1, 2, 2]}, SQUARE, "transformers.2.blocks.1.norm1", (2, 2), PREFIX),
    "tnt": (lambda: TNT(img_size=64, embed_dim=32, inner_dim=8, depth=2, num_heads_inner=2, num_heads_outer=2), {}, SQUARE, "blocks.1.norm_out", (4, 4), CLASS_TOKEN),
    "volo": (lambda: VOLO([1, 1, 1, 1], img_size=64, embed_dims=[16, 32, 32, 32], num_heads=[1, 2, 2, 2], use_aux_head=False), {}, SQUARE, "post_network.1.norm1", (4, 4), CLASS_TOKEN),
    "xcit": ("xcit_nano_12_p16_224", {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}, SQUARE, "cls_attn_blocks.0", (4, 4), CLASS_TOKEN),
}
# fmt: on
FAMILIES = {
    **{name: (*row, "") for name, row in {**CONVOLUTIONAL, **POOLED}.items()},
    **{f"{name}, class token": row for name, row in WITH_CLASS_TOKEN.items()},
}


def network(build, arguments) -> nn.Module:
    if isinstance(build, str) and build not in timm.list_models():
        pytest.skip(f"this version of timm has no {build}")
    torch.manual_seed(0)
    model = (timm.create_model(build, **arguments) if isinstance(build, str) else build()).eval()
    for module in model.modules():
        # Heads and branches that start at 0, where maps would be constant.
        if isinstance(getattr(module, "weight", None), Tensor) and not module.weight.any():
            nn.init.normal_(module.weight)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_over_the_families_of_timm(family):
    build, arguments, size, layer, grid, end = FAMILIES[family]
    model = network(build, arguments)
    images = torch.rand(1, 3, *size)
    choice = choose_layer(model, images)
    assert choice.names == (layer,)
    assert choice.reason.startswith(f"{layer} is the last layer with a spatial grid")
    assert f", {grid[0]} x {grid[1]} (" in choice.reason
    assert choice.reason.partition("))")[2] == end or choice.reason.endswith("channels last)")
    source = GradCAM(model, choice.names, reshape_transform=choice.reshape_transform)
    maps = explain(source, images, protocol=EvaluationProtocol(rectify="abs")).maps
    assert maps.shape == (1, *grid)
    assert maps.isfinite().all()
    if family not in CONVOLUTIONAL and family != "levit":
        assert_local(model, images, choice)


def assert_local(model, images, choice):
    """Where the image changes, the positions of the grid change most."""
    outputs = []
    layer = model.get_submodule(choice.names[0])
    layer.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    half = [side // 2 for side in images.shape[2:]]
    centers = []
    with torch.no_grad():
        for rows, columns in (
            (slice(half[0]), slice(None)),
            (slice(half[0], None), slice(None)),
            (slice(None), slice(half[1])),
            (slice(None), slice(half[1], None)),
        ):
            changed = images.clone()
            changed[..., rows, columns] += 2
            model(torch.cat([images, changed]))
            output = outputs.pop()
            output = output[0] if isinstance(output, tuple | list) else output
            before, after = output if choice.reshape_transform is None else choice.reshape_transform(output)
            change = (after - before).abs().sum(0)
            centers.append(
                [
                    (change.sum(axis) * torch.arange(change.shape[1 - axis])).sum() / change.sum()
                    for axis in (1, 0)
                ]
            )
    top, bottom, left, right = centers
    assert top[0] < bottom[0]
    assert left[1] < right[1]
