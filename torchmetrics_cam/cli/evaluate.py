"""``torchmetrics-cam evaluate``: a network and images by name, a comparison, and the files that it writes."""

import logging
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from torchmetrics_cam.cli.arguments import ASKED, names_in, protocol_of
from torchmetrics_cam.cli.data import Images, collate, load_data
from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.cli.folder import prepare_folder, write_files, written_to
from torchmetrics_cam.cli.layers import check_layer, choose_layer
from torchmetrics_cam.cli.methods import make_sources
from torchmetrics_cam.cli.models import LoadedModel, load_model
from torchmetrics_cam.cli.names import nearest, short
from torchmetrics_cam.cli.results import circumstances, results_of
from torchmetrics_cam.cli.resume import go_on_or_begin, settings_of, way_on
from torchmetrics_cam.lightning.resume import weights_checksum
from torchmetrics_cam.metrics.comparison.metric import CAMComparison
from torchmetrics_cam.report.gallery import gallery
from torchmetrics_cam.report.text import summarize_comparison

PARTIAL = "partial"
# How many files that cannot be read are named on the terminal.
_SHOWN = 5


def run(arguments: Any) -> None:
    """Evaluate, write the files and print the table.

    Raises:
        UsageError: for whatever in the arguments or the images cannot be used.
        ModuleNotFoundError: if a package is missing; the message is the pip line.
    """
    started = time.perf_counter()
    _check(arguments)
    protocol, measures = protocol_of(arguments), _measures(arguments.measures)
    prepare_folder(arguments.out)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(arguments.seed)
    loaded = load_model(arguments.model, arguments.checkpoint, image_size=arguments.image_size)
    explain_labels = arguments.explain == "label"
    images = load_data(
        arguments.data,
        loaded.transform,
        limit=arguments.limit,
        class_names=loaded.class_names,
        labeled=explain_labels,
    )
    first = next(item for item in (images[index] for index in range(len(images))) if item is not None)
    layers, reason, reshape = _layer(arguments.layer, loaded, first["image"])
    sources = make_sources(
        names_in(arguments.methods, "--methods"), loaded.model, layers, reshape_transform=reshape
    )

    def comparison_of(batch_size: int) -> CAMComparison:
        try:
            return CAMComparison(
                sources,
                protocol=protocol,
                measures=measures,
                per_sample=True,
                num_classes=arguments.num_classes,
                average=arguments.average,
                batch_size=batch_size,
            )
        except ValueError as error:
            raise UsageError(str(error)) from error

    partial = arguments.out / PARTIAL
    # The same names may stand for something else by now: a network that was trained on, a photo that moved.
    states = {"weights": weights_checksum(loaded.model), "images": images.fingerprint()}
    with written_to(arguments.out, among_others=True):
        comparison = _evaluated(comparison_of, images, arguments, partial, states)
    if comparison is None:
        return
    # This process has the sums of all, and the others are at their end.
    comparison.sync_on_compute = False
    if not int(comparison.count.sum()):
        raise UsageError(f"no image of {len(images)} could be counted: {_excluded(comparison)}")
    names = images.class_names if explain_labels else loaded.class_names
    results = results_of(comparison, names)
    results |= circumstances(processes=len(list(partial.glob("rank-*.pt"))))
    results |= {
        "seconds": round(time.perf_counter() - started, 3),
        "model": {
            "name": arguments.model,
            "class": type(loaded.model).__name__,
            "checkpoint": arguments.checkpoint,
            "layer": list(layers),
            "layer_reason": reason,
        },
        "data": {
            "name": str(arguments.data),
            "images": len(images),
            "unreadable": _unreadable(comparison, images),
            "class_names": None if names is None else list(names),
            "explained": "label" if explain_labels else "top class",
        },
        "seed": arguments.seed,
        "settings": settings_of(arguments),
    }

    def image_of(index: int) -> Tensor:
        image: Tensor = images[index]["image"]  # type: ignore[index]
        return image

    pictures = gallery(
        comparison,
        image_of=image_of,
        file_of=images.file,
        label_of=lambda number: (
            names[number] if names is not None and 0 <= number < len(names) else f"class {number}"
        ),
        to_colors=loaded.to_colors,
        count=arguments.pictures,
    )
    write_files(comparison, results, pictures, arguments.out, images.file)
    shutil.rmtree(partial, ignore_errors=True)
    print(comparison.table())
    print(*summarize_comparison(results["comparison"]))
    unreadable = results["data"]["unreadable"]
    for one in unreadable[:_SHOWN]:
        print(f"Not read: {one['file']}: {one['reason']}")
    if len(unreadable) > _SHOWN:
        print(
            f"Not read: {len(unreadable) - _SHOWN} more, {len(unreadable)} of {len(images)}; see the report"
        )
    print(f"Layer {', '.join(layers)}: {reason}\nReport: {arguments.out / 'report.html'}")


def _check(arguments: Any) -> None:
    for name in ("model", "data"):
        if not arguments[name]:
            raise UsageError(f"--{name} is missing; see torchmetrics-cam evaluate --help")
    for name, least in (("batch_size", 1), ("save_every", 1), ("pictures", 0), ("num_workers", 0)):
        if arguments[name] < least:
            raise UsageError(f"--{name.replace('_', '-')} is {arguments[name]}; it must be {least} or more")
    for name, known in (("explain", ("top", "label")), ("average", ("micro", "macro"))):
        if arguments[name] not in known:
            raise UsageError(f"--{name} is {arguments[name]!r}; it must be {known[0]} or {known[1]}")
    if arguments.average == "macro" and arguments.num_classes is None:
        raise UsageError("--average macro needs --num-classes, the number of the model's classes")


def _measures(value: str) -> list[str]:
    names = names_in(value, "--measures")
    for name in names:
        if name not in ASKED:
            raise UsageError(
                f"--measures names {name!r}, which is none of {', '.join(ASKED)}; did you mean"
                f" {nearest(name, ASKED, count=1)}?"
            )
    if len(set(names)) < len(names):
        raise UsageError(f"--measures names one twice: {value}; name every measure once")
    return names


def _layer(asked: str, loaded: LoadedModel, image: Tensor) -> tuple[tuple[str, ...], str, Any]:
    images = image.unsqueeze(0)
    if asked == "auto":
        choice = choose_layer(loaded.model, images)
        return choice.names, choice.reason, choice.reshape_transform
    names = tuple(names_in(asked, "--layer"))
    return names, "given", check_layer(loaded.model, images, names)


def _evaluated(
    comparison_of: Callable[[int], CAMComparison],
    images: Images,
    arguments: Any,
    partial: Path,
    states: dict[str, str],
) -> CAMComparison | None:
    """The comparison after the loop, in the process that has the numbers of all."""
    try:
        from lightning.fabric.utilities.rank_zero import rank_zero_only
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'evaluate needs lightning: pip install "torchmetrics-cam[cli]"', name="lightning"
        ) from error

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    from torchmetrics_cam.lightning import evaluate

    def inputs(batch: dict[str, Tensor]) -> dict[str, Any]:
        classes = {"class_idx": batch["label"]} if arguments.explain == "label" else {}
        return {"input_tensor": batch["image"], "index": batch["index"], **classes}

    size = arguments.batch_size
    # By default as many as there are, or as torchrun has started.
    devices = {} if arguments.devices == "auto" else {"devices": arguments.devices}
    # What it refuses, it refuses before anything is written.
    comparison = comparison_of(size)
    go_on_or_begin(partial, arguments, states)
    while True:
        loader = DataLoader(images, size, num_workers=arguments.num_workers, collate_fn=collate)
        try:
            evaluate(
                comparison,
                loader,
                inputs=inputs,
                partial=partial,
                save_every=arguments.save_every,
                accelerator=arguments.accelerator,
                strategy=arguments.strategy,
                num_nodes=arguments.num_nodes,
                precision=arguments.precision,
                **devices,
            )
        except SystemExit as error:
            # Lightning ends the process after Ctrl-C.
            raise KeyboardInterrupt from error
        except ValueError as error:
            if "logits_fn" not in str(error):
                raise
            raise UsageError(
                f"{error}. The command takes no logits_fn: let a function of your own return the network with"
                " that inside, and name it with --model package.module:factory"
            ) from error
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            # Of several processes one alone may have met it, and the others would wait for it.
            if arguments.halve_on_oom and size > 1 and not _is_one_of_several():
                size //= 2
                comparison = comparison_of(size)
                continue
            raise UsageError(
                f"memory ran out with {size} images in a batch; try --batch-size {max(size // 2, 1)}, or"
                f" --halve-on-oom on one device. What was done is kept, and {way_on(arguments)}"
                f" ({short(error)})"
            ) from error
        return comparison if vars(rank_zero_only)["rank"] == 0 else None


def _is_one_of_several() -> bool:
    group = torch.distributed
    return group.is_available() and group.is_initialized() and group.get_world_size() > 1


def _is_out_of_memory(error: RuntimeError) -> bool:
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in said for words in ("out of memory", "not enough memory", "can't allocate memory")
    )


def _excluded(comparison: CAMComparison) -> str:
    return (
        f"{int(comparison.nan_count.max())} had a pixel, score or map that is not finite, and the others"
        " cannot be read"
    )


def _unreadable(comparison: CAMComparison, images: Images) -> list[dict[str, str]]:
    seen = set(comparison.samples()["index"].tolist())
    left = [index for index in range(len(images)) if index not in seen]
    return [
        {"file": images.file(index), "reason": images.reason(index) or "it could be read later"}
        for index in left
    ]
