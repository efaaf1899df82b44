"""``--model``: a network by its name, with its weights, its transform and the names of its classes."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchmetrics_cam.cli.checkpoint import classes_in, load_state, read_state, without_prefix
from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.cli.names import call_factory, load_factory, nearest, short
from torchmetrics_cam.cli.transforms import (
    ProcessorTransform,
    ToColors,
    Transform,
    check_image_size,
    imagenet_transform,
    normalization_of,
    processor_settings,
    torchvision_transforms,
)

FORMS = "torchvision:NAME, timm:NAME, hf:NAME or package.module:factory"


@dataclass(frozen=True)
class LoadedModel:
    """A network and what it needs.

    Args:
        model: the network, in eval mode.
        transform: from an RGB picture of PIL to a tensor ``(3, H, W)``.
        to_colors: from a batch of inputs to colors in [0, 1].
        class_names: the names of its classes, where they are known.
        image_size: the side of its images in pixels, where it is known.
    """

    model: nn.Module
    transform: Transform
    to_colors: Callable[[Tensor], Tensor]
    class_names: list[str] | None
    image_size: int | None


def load_model(name: str, checkpoint: str | None = None, *, image_size: int | None = None) -> LoadedModel:
    """The network of a name.

    Args:
        name: ``torchvision:NAME``, ``timm:NAME``, ``hf:NAME_OR_FOLDER``, or ``package.module:factory``, a
            callable without arguments that returns the model, ``(model, transform)`` or
            ``(model, transform, class_names)``.
        checkpoint: None for the library's pretrained weights, ``"random"`` for random ones of torch's
            generator, or a file with a state dict.
        image_size: the side of the images in pixels; None for the network's own.

    Raises:
        UsageError: if a name is not known, or the weights cannot be had or do not fit.
        ModuleNotFoundError: if the library is not installed; the message is the pip line.
    """
    check_image_size(image_size)
    kind, _, rest = name.partition(":")
    if not rest:
        raise UsageError(f"--model {name!r} does not say where the network is from; give {FORMS}")
    loaders = {"torchvision": _torchvision, "timm": _timm, "hf": _hf}
    state = None if checkpoint in (None, "random") else read_state(str(checkpoint))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Advice of the libraries to programmers.
        if kind in loaders:
            loaded = loaders[kind](rest, checkpoint, state, image_size)
        else:
            loaded = _factory(name, checkpoint, state, image_size)
    # Some come in half precision; --precision says what they run in, and starts from this.
    loaded.model.float().eval()
    return loaded


def _filled(
    build: Callable[[int | None], nn.Module], state: dict[str, Tensor] | None, classes: int, checkpoint: str
) -> nn.Module:
    """A network with the weights of a file, built again where the file has another number of classes."""
    model = build(None)
    if state is not None:
        state = without_prefix(state, model)
        other = classes_in(state, model, classes)
        if other is not None:
            model = build(other)
        load_state(model, state, checkpoint)
    return model


def _build(name: str, builder: Callable[[], nn.Module], *, pretrained: bool) -> nn.Module:
    """Run the library's builder; what it raises becomes a sentence."""
    try:
        return builder()
    except UsageError:
        raise
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        if pretrained:
            raise UsageError(
                f"--model {name}: its pretrained weights cannot be had ({short(error)}); give the weights as"
                " a file with --checkpoint FILE, or --checkpoint random to try without any"
            ) from error
        raise UsageError(f"--model {name} cannot be built: {short(error)}") from error


def _torchvision(
    name: str, checkpoint: str | None, state: dict[str, Tensor] | None, size: int | None
) -> LoadedModel:
    torchvision_transforms()
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name.lower() not in known:
        raise UsageError(
            f"--model torchvision:{name} is no classifier of torchvision {torchvision.__version__}; the"
            f" nearest names are {nearest(name, known)}"
        )
    weights = torchvision.models.get_model_weights(name).DEFAULT
    # The position embedding of a ViT is made for one size.
    own_size = {"image_size": size} if size and name.startswith("vit_") and checkpoint is not None else {}

    def build(classes: int | None) -> nn.Module:
        settings = {**own_size, **({} if classes is None else {"num_classes": classes})}
        chosen = weights if checkpoint is None else None
        model: nn.Module = torchvision.models.get_model(name, weights=chosen, **settings)
        return model

    def filled() -> nn.Module:
        return _filled(build, state, 1000, str(checkpoint))

    model = _build(f"torchvision:{name}", filled, pretrained=checkpoint is None)
    preset = weights.transforms()
    crop = preset.crop_size[0]
    if size:
        resize = round(size * preset.resize_size[0] / crop)
        preset = weights.transforms(crop_size=size, resize_size=resize)
    categories = list(weights.meta.get("categories", ()))
    return LoadedModel(
        model, preset, ToColors(preset.mean, preset.std), _fitting(categories, model), size or crop
    )


def _fitting(names: list[str], model: nn.Module) -> list[str] | None:
    """The names, if the network has as many classes."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    outputs = {getattr(module, "out_features", getattr(module, "out_channels", 0)) for module in last[-1:]}
    return names if names and len(names) in outputs else None


def _timm(
    name: str, checkpoint: str | None, state: dict[str, Tensor] | None, size: int | None
) -> LoadedModel:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("timm is not there: pip install timm") from error
    timm_data: Any = timm.data
    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(name):
        raise UsageError(
            f"--model timm:{name} is no network of timm {timm.__version__}; the nearest names are"
            f" {nearest(name.split('.')[0], timm.list_models())}"
        )

    def build(classes: int | None) -> nn.Module:
        settings: dict[str, Any] = {} if classes is None else {"num_classes": classes}
        if size:
            try:
                return timm.create_model(name, pretrained=checkpoint is None, img_size=size, **settings)
            except TypeError:
                pass  # A network that takes all sizes has no such argument.
        return timm.create_model(name, pretrained=checkpoint is None, **settings)

    def filled() -> nn.Module:
        default = timm.create_model(name, pretrained=False).num_classes if state is not None else 0
        return _filled(build, state, int(default), str(checkpoint))  # type: ignore[arg-type]

    model = _build(f"timm:{name}", filled, pretrained=checkpoint is None)
    config = timm_data.resolve_model_data_config(model)
    if size:
        config["input_size"] = (config["input_size"][0], size, size)
    transform: Any = timm_data.create_transform(**config, is_training=False)
    names: list[str] = []
    subset = timm_data.infer_imagenet_subset(model)
    if subset:
        names = list(timm_data.ImageNetInfo(subset).label_descriptions())
    fits = len(names) == getattr(model, "num_classes", None)
    colors = ToColors(config["mean"], config["std"])
    return LoadedModel(model, transform, colors, names if fits else None, int(config["input_size"][-1]))


def _hf(name: str, checkpoint: str | None, state: dict[str, Tensor] | None, size: int | None) -> LoadedModel:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('transformers is not there: pip install "transformers"') from error
    classifier: Any = transformers.AutoModelForImageClassification
    folder = Path(name).is_dir()
    if folder and not (Path(name) / "config.json").is_file():
        raise UsageError(
            f"--model hf:{name} is a folder without config.json; give one that save_pretrained has written"
        )
    try:
        config: Any = transformers.AutoConfig.from_pretrained(name)
    except Exception as error:
        raise UsageError(
            f"--model hf:{name}: {'its config.json cannot be used' if folder else 'there is no such folder,'}"
            f"{'' if folder else ' and it cannot be had from the Hugging Face Hub'} ({short(error)}); give a"
            " folder that save_pretrained has written, or a name of the Hub while it can be reached"
        ) from error
    if type(config) not in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise UsageError(
            f"--model hf:{name} is of the kind {config.model_type!r}, which transformers has no image"
            " classifier of; give another"
        )
    default = config.num_labels

    def build(classes: int | None) -> nn.Module:
        if checkpoint is None:
            return classifier.from_pretrained(name)  # type: ignore[no-any-return]
        if classes is not None:
            config.num_labels = classes
        return classifier.from_config(config)  # type: ignore[no-any-return]

    model: Any = _build(
        f"hf:{name}", lambda: _filled(build, state, default, str(checkpoint)), pretrained=checkpoint is None
    )
    names = [str(label) for _, label in sorted(model.config.id2label.items())]
    own = getattr(config, "image_size", None)
    side = size or (own if isinstance(own, int) else None)
    try:
        automatic: Any = transformers.AutoImageProcessor
        processor = automatic.from_pretrained(name)
    except Exception:  # Many folders have none; what that raises differs from release to release.
        transform = imagenet_transform(side)
        return LoadedModel(model, transform, normalization_of(transform), names, side or 224)
    mean, std = (
        (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    )
    settings = processor_settings(processor, size) if size else {}
    return LoadedModel(model, ProcessorTransform(processor, settings), ToColors(mean, std), names, side)


def _factory(
    name: str, checkpoint: str | None, state: dict[str, Tensor] | None, size: int | None
) -> LoadedModel:
    made = call_factory(load_factory(name, "--model"), name, "--model")
    parts = made if isinstance(made, tuple) else (made,)
    model, transform, names = (*parts, None, None)[:3]
    if not isinstance(model, nn.Module) or len(parts) > 3 or not (transform is None or callable(transform)):
        raise UsageError(
            f"--model {name!r} returned ({', '.join(type(part).__name__ for part in parts)}); it must return"
            " a torch.nn.Module, (model, transform) or (model, transform, class_names)"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError(
            f"--model {name!r} returned a TorchScript module, whose layers cannot be looked into; return the"
            " network as it was before torch.jit"
        )
    if size and transform is not None:
        raise UsageError(
            f"--image-size has no effect on {name!r}, which brings a transform of its own; leave it out, or"
            " set the size there"
        )
    if checkpoint == "random":
        raise UsageError(
            f"--checkpoint random is for networks of a library; {name!r} decides itself what weights it"
            " returns, so leave --checkpoint out"
        )
    if state is not None:
        load_state(model, without_prefix(state, model), str(checkpoint))
    chosen = imagenet_transform(size) if transform is None else transform
    side = None if transform is not None else size or 224
    class_names = None if names is None else [str(item) for item in names]
    return LoadedModel(model, chosen, normalization_of(chosen), class_names, side)
