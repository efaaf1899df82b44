"""``torchmetrics-cam protocols``: the presets of ``--protocol``, and the evaluations of papers."""

import shlex
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A preset of ``--protocol``.

    Args:
        name: its name.
        origin: the paper or the library, with its address.
        effect: what it does, in one line.
    """

    name: str
    origin: str
    effect: str


@dataclass(frozen=True)
class Paper:
    """The evaluation of a paper, as far as its text or the code of its authors could be read.

    Args:
        title: the method or measure that the paper is known by.
        source: the address of the paper.
        protocol: the value of ``--protocol``; None if no protocol has its settings.
        network: the network.
        layer: the target layer.
        data: the images and their number.
        published: values of the paper, with where they stand. None of them was measured with this package.
        unverified: what could not be verified; without a protocol, why there is none.
        options: the other options of the command.
    """

    title: str
    source: str
    protocol: str | None
    network: str
    layer: str
    data: str
    published: str
    unverified: str
    options: str = ""

    @property
    def command(self) -> str | None:
        """The command that evaluates in this way; None if there is none."""
        if self.protocol is None:
            return None
        protocol = shlex.quote(self.protocol)
        return f"torchmetrics-cam evaluate {self.options} --protocol {protocol} --data imagenet/val"


PRESET_LIST = (
    Preset(
        "paper",
        "Grad-CAM++, https://arxiv.org/abs/1710.11063",
        "The mask is the normalized map, and the drop is relative to the score of the clean image.",
    ),
    Preset(
        "torchcam",
        "torchcam's ClassificationMetric, https://github.com/frgfm/torch-cam",
        "As paper, with maps of the scores that are normalized before they are resized.",
    ),
    Preset(
        "grad_cam",
        "pytorch-grad-cam's DropInConfidence, https://github.com/jacobgil/pytorch-grad-cam",
        "As paper, with maps that are normalized before and after they are resized, and an absolute drop.",
    ),
    Preset(
        "score_cam",
        "Score-CAM, https://arxiv.org/abs/1910.01279",
        "As paper, with a mask that keeps the upper half of the pixels unchanged and hides the others.",
    ),
    Preset(
        "xplique",
        "Xplique's AverageDropMetric, https://github.com/deel-ai/xplique",
        "As paper, with the absolute values of maps of the scores, of a class that must be given.",
    ),
    Preset(
        "rise",
        "RISE, https://arxiv.org/abs/1806.07421",
        "Deletion to 0 and insertion into the blur of RISE's code, in 28 steps.",
    ),
)

_VALIDATION = "ImageNet validation set"
_ADCC = "--methods grad_cam,grad_cam_plus_plus --measures adcc,average_drop,coherency,complexity"
PAPERS = (
    Paper(
        title="Grad-CAM++",
        source="https://arxiv.org/abs/1710.11063",
        protocol="paper",
        network="VGG-16 (Caffe Model Zoo)",
        layer="conv5_3, in the authors' code",
        data=f"{_VALIDATION}; the number of images is not stated",
        published="Table 1, Grad-CAM++ and Grad-CAM: Average Drop 36.84 % and 46.56 %, Increase in Confidence"
        " 17.05 % and 13.42 %, Win 70.72 % and 29.28 %",
        unverified="how maps are normalized and what hides pixels: the image is multiplied by the map; the"
        " weights of torchvision are others",
        options="--model torchvision:vgg16 --layer features.29 --methods grad_cam,grad_cam_plus_plus"
        " --measures average_drop,increase_in_confidence",
    ),
    Paper(
        title="Score-CAM",
        source="https://arxiv.org/abs/1910.01279",
        protocol="score_cam",
        network="VGG-16 (PyTorch)",
        layer="not stated; the last convolution is recommended",
        data=f"{_VALIDATION}, 2,000 random images",
        published="Table 1, Grad-CAM, Grad-CAM++ and Score-CAM: Average Drop 47.8 %, 45.5 % and 31.5 %,"
        " Average Increase 19.6 %, 18.9 % and 30.6 %",
        unverified="whether the kept half of the pixels is unchanged, as in the preset, or weighted by the"
        " map: the text allows both, and the authors' code does not evaluate; which images",
        options="--model torchvision:vgg16 --layer features.29 --methods"
        " grad_cam,grad_cam_plus_plus,torchcam:ScoreCAM --measures average_drop,increase_in_confidence"
        " --limit 2000",
    ),
    Paper(
        title="RISE",
        source="https://arxiv.org/abs/1806.07421",
        protocol="rise",
        network="ResNet-50 (torchvision)",
        layer="none: RISE masks the image",
        data=f"{_VALIDATION}, the first 10,000 images in the order of the folders",
        published="evaluation notebook of the authors, RISE: deletion 0.1048, insertion 0.7719",
        unverified="the tables of the paper; RISE itself is not in this package, and can be given as"
        " package.module:factory",
        options="--model torchvision:resnet50 --layer layer4 --methods grad_cam,grad_cam_plus_plus"
        " --measures deletion_auc,insertion_auc",
    ),
    Paper(
        title="ADCC",
        source="https://arxiv.org/abs/2104.10252",
        protocol="paper",
        network="VGG-16, ResNet-18 and ResNet-50 (torchvision), in the authors' code",
        layer="not verified",
        data=f"{_VALIDATION}, all images",
        published="not verified",
        unverified="the layer and the values: of the paper only the abstract could be read. Softmax, relative"
        " drop and mask are those of the authors' code",
        options=f"--model torchvision:resnet50 --layer layer4 {_ADCC}",
    ),
    Paper(
        title="Recipro-CAM",
        source="https://arxiv.org/abs/2209.14074",
        protocol="paper",
        network="VGG-16 and ResNets",
        layer="not verified",
        data="not verified",
        published="abstract (CVPR 2024 workshops): ADCC 1.78 % to 3.72 % above Score-CAM for ResNets, 1.39 %"
        " below for VGG-16",
        unverified="all but the measure, ADCC: of the paper only the abstract could be read. Recipro-CAM"
        " itself is not in this package",
        options=f"--model torchvision:resnet50 --layer layer4 {_ADCC}",
    ),
    Paper(
        title="Opti-CAM",
        source="https://arxiv.org/abs/2301.07002",
        protocol="paper:baseline=[-2.1179,-2.0357,-1.8044]",
        network="ResNet-50 (torchvision), in the authors' code",
        layer="layer4[-1], in the authors' code",
        data=f"{_VALIDATION}, a list in the authors' code",
        published="not verified",
        unverified="the evaluation, whose code is not published: normalization and mask are those of the"
        " optimization, where hidden pixels are black. The baseline is black for the usual normalization of"
        " ImageNet. Opti-CAM itself is not in this package",
        options="--model torchvision:resnet50 --layer layer4.2 --methods grad_cam,grad_cam_plus_plus"
        " --measures average_drop,increase_in_confidence,average_gain",
    ),
    Paper(
        title="Relevance-CAM",
        source="https://openaccess.thecvf.com/content/CVPR2021/html/"
        "Lee_Relevance-CAM_Your_Model_Already_Knows_Where_To_Look_CVPR_2021_paper.html",
        protocol=None,
        network="VGG-16 and ResNet-50, in the authors' code",
        layer="layers of any depth",
        data=f"{_VALIDATION}, 2,000 images",
        published="not verified",
        unverified="no protocol: by the authors' code, the upper half of the pixels is weighted by the map,"
        " the others become black, and the drop is averaged over only the images whose score drops"
        " (https://github.com/mongeoroo/Relevance-CAM/issues/5)",
    ),
    Paper(
        title="Ablation-CAM",
        source="https://doi.org/10.1109/WACV45572.2020.9093360",
        protocol=None,
        network="not verified",
        layer="not verified",
        data="not verified",
        published="not verified",
        unverified="no protocol: neither the text of the paper nor code of its authors could be read",
    ),
)


CAVEAT = (
    "The published values are the papers' own; none was measured with this package. The commands load the"
    " newest weights of torchvision. Of ResNets these are not the weights of the papers, which --checkpoint"
    " reads from a file."
)


def run(arguments: Any) -> None:
    """Print the presets, and the evaluations of papers with their commands."""
    print("Presets, the values of --protocol:\n")
    for preset in PRESET_LIST:
        print(f"{preset.name}: {preset.origin}\n  {preset.effect}")
    print(f"\nEvaluations of papers. {CAVEAT}\n")
    for paper in PAPERS:
        print(f"{paper.title}: {paper.source}")
        if paper.command:
            print(f"  Protocol: {paper.protocol}")
        for name in ("network", "layer", "data", "published"):
            print(f"  {name.capitalize()}: {getattr(paper, name)}")
        print(f"  Not verified: {paper.unverified}" if paper.command else f"  Left out: {paper.unverified}")
        if paper.command:
            print(f"  Command: {paper.command}")
