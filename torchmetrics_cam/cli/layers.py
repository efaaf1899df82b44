"""``--layer``: the target layer, checked or chosen by running the network once."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from torchmetrics_cam.cams.layers import layer_names
from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.cli.layer_outputs import LayerOutput, NetworkRun, Reshape, run_network

# The size of their output is an argument, so a grid there does not show that the layer has spatial positions.
_RESIZING_MODULES = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)

_OF_A_NETWORK_THAT_REPEATS = (
    "Name a layer that runs once; if the whole network runs several times, as in test-time augmentation,"
    " give the network inside as --model package.module:factory."
)


@dataclass(frozen=True)
class LayerChoice:
    """The target layers, and why they were chosen.

    Args:
        names: the names of the layers.
        reason: why they were chosen, for the report.
        reshape_transform: a function from the output of the layer to ``(N, channels, h, w)``; None if the
            output already has this shape.
    """

    names: tuple[str, ...]
    reason: str
    reshape_transform: Reshape | None


def choose_layer(model: nn.Module, images: Tensor) -> LayerChoice:
    """Return the layer for ``--layer auto``.

    This is the last layer with a spatial grid whose positions the score depends on: in a convolutional
    network, only pooling and the classifier follow. In a transformer with a class token, it is the layer
    before the last attention, after which only the class token reaches the classifier. Layers inside an
    attention module and linear layers of tokens are chosen only if there is no other, and layers that run
    several times are not chosen.

    Args:
        model: the network, which is not changed.
        images: shape ``(N, C, H, W)``; the first is used.

    Raises:
        UsageError: if the network does not accept the images, there is no such layer, or the class token is
            not the first token.
    """
    try:
        run = run_network(model, images, traced=True)
    except UsageError:
        # Without autograd, as for quantized networks: every grid may contribute to the score.
        run = run_network(model, images)
    with_grid = _with_grid(run.outputs)
    once = [output for output in with_grid if run.calls[output.name] == 1]
    if not with_grid:
        raise UsageError(
            f"--layer auto chooses the last layer with a spatial grid, but this {type(model).__name__} has no"
            f" such layer; name one with --layer. {run.layers_with_grid()}"
        )
    if not once:
        raise UsageError(
            f"--layer auto: in this {type(model).__name__} every layer with a spatial grid runs several"
            f" times, and a map is computed from one run. {_OF_A_NETWORK_THAT_REPEATS}"
        )
    # Methods without gradients need no layer that autograd reaches.
    used = [output for output in once if output.used] or once
    layer = next((output for output in reversed(used) if not output.in_branch), used[-1])
    if any(output.shape[:2] == layer.shape[:2] and output.used_token_in_grid for output in once):
        raise UsageError(
            f"--layer auto: the class token of this {type(model).__name__} is not the first of its tokens"
            f" {layer.shape}, and the command expects the patches last; put it first, or use the Python API"
            " with a reshape_transform of your own"
        )
    return LayerChoice((layer.name,), _reason(run, layer), layer.reshape)


def _with_grid(outputs: Sequence[LayerOutput]) -> list[LayerOutput]:
    return [output for output in outputs if output.grid and not isinstance(output.module, _RESIZING_MODULES)]


def _reason(run: NetworkRun, layer: LayerOutput) -> str:
    """Return why a layer was chosen, and not one of the later layers with a spatial grid."""
    later = _with_grid(run.outputs[run.outputs.index(layer) + 1 :])
    once = [output for output in later if run.calls[output.name] == 1]
    height, width = layer.grid or (0, 0)
    order = ", channels last" if len(layer.shape) == 4 and layer.reshape is not None else ""
    kind = "tokens" if len(layer.shape) == 3 else "shape"
    reason = f"{layer.name} is the last layer with a spatial grid"
    if len(once) < len(later):
        reason += " that runs once"
    if any(output.used for output in once):
        reason += " outside attention and linear layers"
    unused = [output for output in once if not output.used and not output.in_branch]
    if unused:
        reason += " that the score depends on"
    reason += f", {height} x {width} ({kind} {layer.shape}{order})"
    prefix_tokens = max((output.prefix_tokens for output in unused if output.prefix_used), default=0)
    if prefix_tokens:
        only = "the class token is" if prefix_tokens == 1 else "those before the grid are"
        reason += f"; of the tokens after it, only {only} used"
    if not layer.used:
        reason += "; no gradient of the score reaches it"
    return reason


def check_layer(model: nn.Module, images: Tensor, names: Sequence[str]) -> Reshape | None:
    """Check that the named layers have spatial grids.

    Args:
        model: the network, which is not changed.
        images: shape ``(N, C, H, W)``; the first is used.
        names: the names of the layers.

    Returns:
        The function from their outputs to ``(N, channels, h, w)``; None if the outputs have this shape.

    Raises:
        UsageError: if a layer is not in the network, does not run, or has no spatial grid, if layers need to
            be reshaped differently, or if the network does not accept the images.
    """
    run = run_network(model, images)
    try:
        existing_names = layer_names(model, list(names))
    except (TypeError, ValueError) as error:
        message = str(error).replace("target_layer", "--layer").split(", and dict(")[0]
        raise UsageError(f"{message}. {run.layers_with_grid()}") from error
    outputs = []
    for name in existing_names:
        output = run.last(name)
        if output is None or not output.shape:
            problem = "does not run" if output is None else "returns no tensor"
            raise UsageError(
                f"--layer {name!r} {problem} when the model classifies an image; name another layer."
                f" {run.layers_with_grid()}"
            )
        if run.calls[name] > 1:
            raise UsageError(
                f"--layer {name!r} runs {run.calls[name]} times when the model classifies an image, and a map"
                f" is computed from one run. {_OF_A_NETWORK_THAT_REPEATS} {run.layers_with_grid()}"
            )
        if output.grid is None:
            raise UsageError(
                f"--layer {name!r} has output of shape {output.shape}, which has no spatial grid; name a"
                f" layer before the pooling. {run.layers_with_grid()}"
            )
        outputs.append(output)
    if len({_output_format(output) for output in outputs}) > 1:
        shapes = ", ".join(f"{output.name} {output.shape}" for output in outputs)
        raise UsageError(
            f"--layer names layers whose outputs have different formats ({shapes}); evaluate them in separate"
            " runs"
        )
    return outputs[0].reshape


def _output_format(output: LayerOutput) -> tuple[object, ...]:
    tokens = len(output.shape) == 3
    return tokens, output.reshape is None, (output.grid, output.shape[:2]) if tokens else None
