"""``--model``: a network given by name, with its weights, its transform and its class names."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchmetrics_cam.cli.checkpoint import classes_in, load_state, read_state, without_prefix
from torchmetrics_cam.cli.errors import UsageError, import_library, summary, usage_error
from torchmetrics_cam.cli.names import call_factory, nearest
from torchmetrics_cam.cli.transforms import (
    ProcessorTransform,
    ToColors,
    Transform,
    imagenet_transform,
    name_of,
    normalization_of,
    processor_settings,
)

MODEL_NAMES = "torchvision:NAME, timm:NAME, hf:NAME or package.module:factory"


@dataclass(frozen=True)
class LoadedModel:
    """A network and what is needed to run it on images.

    Args:
        model: the network, in evaluation mode.
        transform: a function from an RGB image of PIL to a tensor ``(3, H, W)``.
        transform_name: the transform in words, and where it comes from.
        to_colors: a function from inputs of the network ``(N, 3, H, W)`` to colors in [0, 1].
        class_names: the names of its classes; None if they are not known.
        image_size: height and width of its images in pixels; None if they are not known.
        wordnet_ids: the WordNet ids of its classes, if its library tells them.
        has_own_transform: whether the transform comes with the network.
    """

    model: nn.Module
    transform: Transform
    transform_name: str
    to_colors: Callable[[Tensor], Tensor]
    class_names: list[str] | None
    image_size: int | None
    wordnet_ids: list[str] | None = None
    has_own_transform: bool = True


@dataclass(frozen=True)
class _Weights:
    """The weights chosen by ``--checkpoint``.

    Args:
        checkpoint: the value of the option; None for the pretrained weights of the library.
        state: the state dict, if the option names a file.
    """

    checkpoint: str | None
    state: dict[str, Tensor] | None

    @property
    def pretrained(self) -> bool:
        return self.checkpoint is None

    def fill(self, name: str, build: Callable[[int | None], nn.Module]) -> tuple[nn.Module, int | None]:
        """Build a network and load the state dict, if there is one.

        Args:
            name: the name of the network, for messages.
            build: a function from the number of classes to the network; None stands for its default number.

        Returns:
            The network, and the number of classes of the state dict if it differs from the default.
        """
        model, classes = self._build(name, build, None), None
        if self.state is not None:
            state = without_prefix(self.state, model)
            classes = classes_in(state, model)
            if classes is not None:
                model = self._build(name, build, classes)
            load_state(model, state, str(self.checkpoint))
        return model, classes

    def _build(self, name: str, build: Callable[[int | None], nn.Module], classes: int | None) -> nn.Module:
        message, what_to_do = f"--model {name} cannot be built", ""
        if self.pretrained:
            message = f"--model {name}: its pretrained weights cannot be loaded"
            what_to_do = "; give weights with --checkpoint FILE, or use random ones with --checkpoint random"
        with usage_error(message, what_to_do):
            return build(classes)


def load_model(name: str, checkpoint: str | None = None, *, image_size: int | None = None) -> LoadedModel:
    """Load the network of ``--model``.

    Args:
        name: ``torchvision:NAME``, ``timm:NAME``, ``hf:NAME_OR_FOLDER``, or ``package.module:factory``, a
            callable without arguments that returns the model, ``(model, transform)`` or
            ``(model, transform, class_names)``.
        checkpoint: None for the pretrained weights of the library, ``"random"`` for random weights drawn with
            torch's generator, or a file with a state dict.
        image_size: height and width of the images in pixels; None for the network's own.

    Raises:
        UsageError: if there is no network of this name, or its weights cannot be loaded or do not match.
        ModuleNotFoundError: if the library is not installed; the message contains the pip command.
    """
    if image_size is not None and image_size < 1:
        raise UsageError(f"--image-size {image_size} must be at least 1 pixel; give for example 224")
    library, _, rest = name.partition(":")
    if not rest:
        raise UsageError(f"--model {name!r} does not say where the network comes from; give {MODEL_NAMES}")
    state = None if checkpoint in (None, "random") else read_state(str(checkpoint))
    weights = _Weights(checkpoint, state)
    loaders = {"torchvision": _torchvision, "timm": _timm, "hf": _hugging_face}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Warnings of the libraries are for programmers.
        if library in loaders:
            loaded = loaders[library](rest, weights, image_size)
        else:
            loaded = _factory(name, weights, image_size)
    # Some are stored in half precision; --precision converts from float32.
    loaded.model.float().eval()
    return loaded


def _torchvision(name: str, weights: _Weights, size: int | None) -> LoadedModel:
    torchvision = import_library("torchvision", f"--model torchvision:{name}", "torchmetrics-cam[cli]")
    available = torchvision.models.list_models(module=torchvision.models)
    if name.lower() not in available:
        raise UsageError(
            f"--model torchvision:{name} is not a classifier of torchvision {torchvision.__version__}; the"
            f" nearest names are {nearest(name, available)}"
        )
    pretrained = torchvision.models.get_model_weights(name).DEFAULT
    # The position embedding of a ViT has a fixed size; pretrained weights cannot change it.
    settings = {"image_size": size} if size and name.startswith("vit_") and not weights.pretrained else {}

    def build(classes: int | None) -> nn.Module:
        if classes is not None:
            settings["num_classes"] = classes
        chosen = pretrained if weights.pretrained else None
        return torchvision.models.get_model(name, weights=chosen, **settings)  # type: ignore[no-any-return]

    model, classes = weights.fill(f"torchvision:{name}", build)
    transform = pretrained.transforms()
    crop = transform.crop_size[0]
    if size:
        resized = round(size * transform.resize_size[0] / crop)
        transform = pretrained.transforms(crop_size=size, resize_size=resized)
    names = list(pretrained.meta["categories"]) if classes is None else None
    colors = normalization_of(transform)
    return LoadedModel(model, transform, name_of(transform), colors, names, size or crop)


def _timm(name: str, weights: _Weights, size: int | None) -> LoadedModel:
    timm = import_library("timm", f"--model timm:{name}", "timm")
    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(name):
        raise UsageError(
            f"--model timm:{name} is not a network of timm {timm.__version__}; the nearest names are"
            f" {nearest(name.split('.')[0], timm.list_models())}"
        )

    def build(classes: int | None) -> nn.Module:
        settings = {"pretrained": weights.pretrained} | ({} if classes is None else {"num_classes": classes})
        if size:
            try:
                return timm.create_model(name, img_size=size, **settings)  # type: ignore[no-any-return]
            except TypeError:
                pass  # Networks that accept images of any size do not have this argument.
        return timm.create_model(name, **settings)  # type: ignore[no-any-return]

    model, _ = weights.fill(f"timm:{name}", build)
    config = timm.data.resolve_model_data_config(model)
    if size:
        config["input_size"] = (config["input_size"][0], size, size)
    transform = timm.data.create_transform(**config, is_training=False)
    subset = timm.data.infer_imagenet_subset(model)
    class_names = wordnet_ids = None
    info = timm.data.ImageNetInfo(subset) if subset else None
    if info is not None and info.num_classes() == getattr(model, "num_classes", None):
        class_names, wordnet_ids = list(info.label_descriptions()), list(info.label_names())
    colors = ToColors(config["mean"], config["std"])
    side = int(config["input_size"][-1])
    return LoadedModel(model, transform, name_of(transform), colors, class_names, side, wordnet_ids)


def _hugging_face(name: str, weights: _Weights, size: int | None) -> LoadedModel:
    transformers = import_library("transformers", f"--model hf:{name}", "transformers")
    classifier = transformers.AutoModelForImageClassification
    is_folder = Path(name).is_dir()
    if is_folder and not (Path(name) / "config.json").is_file():
        raise UsageError(
            f"--model hf:{name} is a folder without config.json; give a folder that save_pretrained wrote"
        )
    not_found = "there is no such folder, and it cannot be downloaded from the Hugging Face Hub"
    problem = "its config.json cannot be used" if is_folder else not_found
    what_to_do = "; give a folder that save_pretrained wrote, or a name on the Hub while it can be reached"
    with usage_error(f"--model hf:{name}: {problem}", what_to_do):
        # Code of the folder is not run, and transformers would ask on the terminal whether it may be.
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    if type(config) not in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise UsageError(
            f"--model hf:{name} is of type {config.model_type!r}, for which transformers has no image"
            " classifier; give another network"
        )

    def build(classes: int | None) -> nn.Module:
        if weights.pretrained:
            return classifier.from_pretrained(name)  # type: ignore[no-any-return]
        if classes is not None:
            config.num_labels = classes
        return classifier.from_config(config)  # type: ignore[no-any-return]

    model: Any = weights.fill(f"hf:{name}", build)[0]
    names = [str(label) for _, label in sorted(model.config.id2label.items())]
    own_size = getattr(config, "image_size", None)
    side = size or (own_size if isinstance(own_size, int) else None)
    processor = _image_processor(name)
    if processor is None:
        return _with_imagenet_transform(
            model, names, side or 224, f"hf:{name} has no preprocessor_config.json"
        )
    if hasattr(processor, "val_transforms"):
        # Of timm, with a transform that is no image processor.
        if size:
            raise UsageError(
                f"--image-size has no effect on hf:{name}, whose transform is one of timm; omit it, or give"
                " the network as timm:NAME"
            )
        transform = processor.val_transforms
        return LoadedModel(model, transform, name_of(transform), normalization_of(transform), names, side)
    normalized = processor.do_normalize
    colors = (
        ToColors(processor.image_mean, processor.image_std) if normalized else ToColors((0,) * 3, (1,) * 3)
    )
    settings = processor_settings(processor, size) if size else {}
    replaced = " and ".join(f"{setting}={value}" for setting, value in settings.items())
    transform_name = f"{type(processor).__name__} of hf:{name}{f' with {replaced}' if replaced else ''}"
    return LoadedModel(model, ProcessorTransform(processor, settings), transform_name, colors, names, side)


def _image_processor(name: str) -> Any:
    """Return the image processor of a model of transformers; None if the model has no file of one.

    Raises:
        UsageError: if it has one that cannot be used.
    """
    transformers = import_library("transformers", f"--model hf:{name}", "transformers")
    try:
        return transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        files = ("preprocessor_config.json", "processor_config.json")
        with usage_error(f"--model hf:{name}: its preprocessor cannot be downloaded"):
            present = [
                file
                for file in files
                if transformers.utils.cached_file(name, file, _raise_exceptions_for_missing_entries=False)
            ]
        if not present:
            return None
        raise UsageError(
            f"--model hf:{name}: its {' and '.join(present)} cannot be used ({summary(error)}); repair it, or"
            " delete it to use the ImageNet transform, or write a function that returns (model, transform)"
            " and give that as --model package.module:factory"
        ) from error


def _with_imagenet_transform(
    model: nn.Module, class_names: list[str] | None, side: int, reason: str
) -> LoadedModel:
    """Return a network that has no transform of its own, with the one that is used instead.

    Args:
        model: the network.
        class_names: the names of its classes; None if they are not known.
        side: height and width of its images in pixels.
        reason: why the transform is used.
    """
    transform = imagenet_transform(side)
    name = f"ImageNet transform of torchvision at {side} px, because {reason}"
    colors = normalization_of(transform)
    return LoadedModel(model, transform, name, colors, class_names, side, has_own_transform=False)


def _factory(name: str, weights: _Weights, size: int | None) -> LoadedModel:
    returned = call_factory(name, "--model")
    parts = returned if isinstance(returned, tuple) else (returned,)
    model, transform, names = (*parts, None, None)[:3]
    if not isinstance(model, nn.Module) or len(parts) > 3 or not (transform is None or callable(transform)):
        raise UsageError(
            f"--model {name!r} returned ({', '.join(type(part).__name__ for part in parts)}); it must return"
            " a torch.nn.Module, (model, transform) or (model, transform, class_names)"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError(
            f"--model {name!r} returned a TorchScript module, whose layers are not accessible; return the"
            " network before torch.jit"
        )
    if size and transform is not None:
        raise UsageError(
            f"--image-size has no effect on {name!r}, which returns a transform of its own; omit it, or set"
            " the size there"
        )
    if weights.checkpoint == "random":
        raise UsageError(
            f"--checkpoint random works only with networks of a library; {name!r} decides itself which"
            " weights it returns, so omit --checkpoint"
        )
    if weights.state is not None:
        load_state(model, without_prefix(weights.state, model), str(weights.checkpoint))
    class_names = None if names is None else [str(item) for item in names]
    if transform is None:
        return _with_imagenet_transform(model, class_names, size or 224, f"{name!r} returns no transform")
    return LoadedModel(model, transform, name_of(transform), normalization_of(transform), class_names, None)
