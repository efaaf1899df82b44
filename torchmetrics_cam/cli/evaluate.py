"""``torchmetrics-cam evaluate``: CAM methods on a network and images, and the files of the results."""

import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from torchmetrics_cam.cli.arguments import Names, names_in, protocols_of
from torchmetrics_cam.cli.classes import EXPLAIN_LABEL, check_outputs
from torchmetrics_cam.cli.data import Images, Item, collate, load_data
from torchmetrics_cam.cli.errors import UsageError, summary
from torchmetrics_cam.cli.folder import check_partial, prepare_folder, remove_partial_files, write_errors
from torchmetrics_cam.cli.gates import check_gates, parse_gates, report_gates, values_by_key
from torchmetrics_cam.cli.groups import (
    CORRECT,
    OPTION_CORRECT,
    Groups,
    check_option,
    inputs_of,
    load_groups,
    why_not_separated,
)
from torchmetrics_cam.cli.layers import LayerChoice, check_layer, choose_layer
from torchmetrics_cam.cli.methods import make_sources, titles_of
from torchmetrics_cam.cli.models import LoadedModel, load_model
from torchmetrics_cam.cli.mosaics import Mosaics, resolve_options
from torchmetrics_cam.cli.names import nearest
from torchmetrics_cam.cli.results import (
    compilation_of,
    environment,
    how_to_resume,
    results_of,
    settings_of,
    start_or_resume,
    write_files,
)
from torchmetrics_cam.cli.surrogates import fingerprint_of, load_surrogate, name_surrogate
from torchmetrics_cam.cli.terminal import print_results
from torchmetrics_cam.lightning import evaluate
from torchmetrics_cam.lightning.resume import PartialResultError
from torchmetrics_cam.metrics.comparison.grouped import PREDICTION
from torchmetrics_cam.metrics.comparison.metric import CAMComparison
from torchmetrics_cam.metrics.measures import MEASURES
from torchmetrics_cam.model.weights import weights_checksum
from torchmetrics_cam.report.gallery import gallery

PARTIAL = "partial"


def run(arguments: Any) -> None:
    """Evaluate, write the files and print the table.

    Raises:
        UsageError: if an argument or an image cannot be used.
        GateError: if a gate of ``--fail-if`` fails; the files are written then too.
        ModuleNotFoundError: if a package is missing; the message contains the pip command.
    """
    started = time.perf_counter()
    _check(arguments)
    measures = _measures(arguments.measures)
    resolve_options(arguments, measures)
    check_option(arguments)
    protocols = protocols_of(arguments)
    given = [protocol.name for protocol in protocols if protocol.class_selection == "given"]
    if given and arguments.explain != "label":
        raise UsageError(f"--protocol {given[0]} explains a given class; add --explain label")
    methods = names_in(arguments.methods, "--methods")
    further = [protocol.name for protocol in protocols[1:]]
    titles = titles_of(methods)
    first_name = protocols[0].name
    unavailable = {
        first_name: f"{first_name!r} is the first protocol, which needs no name; omit '{first_name}/'"
    }
    # The groups of a file, and whether predictions can be separated, are known only after the images.
    if arguments.group in (None, CORRECT):
        scopes = [*further, *PREDICTION.names]
        parse_gates(arguments.fail_if, measures, titles, scopes, unavailable=unavailable)
    out = prepare_folder(arguments.out)
    partial = out / PARTIAL
    check_partial(partial)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(arguments.seed)
    loaded = load_model(arguments.model, arguments.checkpoint, image_size=arguments.image_size)
    explain_labels = arguments.explain == "label"
    option = "--mosaic" if arguments.mosaic else EXPLAIN_LABEL if explain_labels else OPTION_CORRECT
    images = load_data(
        arguments.data,
        loaded.transform,
        limit=arguments.limit,
        class_names=loaded.class_names,
        wordnet_ids=loaded.wordnet_ids,
        labeled=explain_labels or arguments.group == CORRECT,
        labeled_if_possible=True,
        option=option,
    )
    groups = load_groups(arguments.group, images)
    explained = Mosaics(images, arguments.mosaic) if arguments.mosaic else images
    first = next(item for item in (explained[index] for index in range(len(images))) if item is not None)
    if images.needed_outputs is not None and (explain_labels or arguments.group == CORRECT):
        check_outputs(loaded.model, first["image"], images.needed_outputs, option)
    surrogate = load_surrogate(arguments, loaded, first["image"])
    layer = _layer(arguments.layer, loaded, first["image"])
    not_separated = why_not_separated(
        images, groups, arguments, model=loaded.model, image=first["image"], protocol=protocols[0]
    )
    if not_separated is not None:
        unavailable |= dict.fromkeys(PREDICTION.names, not_separated)
    scopes = [*further, *([] if groups is None else groups.names)]
    scopes += PREDICTION.names if not_separated is None else []
    gates = parse_gates(arguments.fail_if, measures, titles, scopes, unavailable=unavailable)
    sources = make_sources(methods, loaded.model, layer.names, reshape_transform=layer.reshape_transform)

    def comparison_of(batch_size: int) -> CAMComparison:
        try:
            return CAMComparison(
                sources,
                protocols=protocols,
                measures=measures,
                per_sample=True,
                groups=None if groups is None else groups.names,
                by_correctness=not_separated is None,
                num_classes=arguments.num_classes,
                average=arguments.average,
                batch_size=batch_size,
                scorer="compile" if arguments.compile else None,
                surrogate=None if surrogate is None else surrogate.model,
                validate_args="determinism",
            )
        except ValueError as error:
            raise UsageError(str(error)) from error

    # The same names may refer to something else later: a network after more training, other photos.
    fingerprints = {"weights": weights_checksum(loaded.model), "images": images.fingerprint()}
    fingerprints |= fingerprint_of(surrogate)
    if groups is not None:
        fingerprints["groups"] = groups.fingerprint()
    with write_errors(out, only_certain=True):
        comparison = _evaluated(comparison_of, explained, groups, arguments, partial, fingerprints)
    if comparison is None:
        return
    # This process has the states of all processes, and the others have ended.
    comparison.sync_on_compute = False
    if not int(comparison.count.sum()):
        raise UsageError(
            f"none of {len(images)} images could be evaluated: {int(comparison.nan_count.max())} have pixels,"
            " a score or a map that is not finite, and the others cannot be read"
        )
    names = images.class_names if explain_labels else loaded.class_names
    evaluated = comparison.samples()["index"].tolist()
    unreadable = images.unreadable(evaluated)
    pixel_ranges = images.pixel_ranges(evaluated)
    results = results_of(comparison, names)
    if groups is not None:
        results["comparison"]["groups"][0]["title"] = groups.title
    checked = check_gates(gates, values_by_key(results["comparison"]), list(sources))
    results["gates"] = checked or None
    results |= environment(processes=len(list(partial.glob("rank-*.pt"))))
    results |= {
        "seconds": round(time.perf_counter() - started, 3),
        "model": {
            "name": arguments.model,
            "class": type(loaded.model).__name__,
            "checkpoint": arguments.checkpoint,
            "layer": list(layer.names),
            "layer_reason": layer.reason,
            "transform": loaded.transform_name,
        },
        "data": {
            "name": str(arguments.data),
            "images": len(images),
            "unreadable": unreadable,
            "unused": images.unused,
            "pixel_ranges": pixel_ranges,
            "class_names": None if names is None else list(names),
            "explained": "label" if explain_labels else "top class",
            "labels": images.label_source,
            # A mosaic shows several classes, and images without classes raise no question.
            "predictions": not_separated if images.are_sorted_into_classes and not arguments.mosaic else None,
            "groups": None if groups is None else groups.description,
            "mosaic": arguments.mosaic,
        },
        "compilation": compilation_of(comparison) if arguments.compile else None,
        "seed": arguments.seed,
        "settings": settings_of(arguments),
    }
    name_surrogate(results, arguments, surrogate, fingerprints)
    pictures = gallery(
        comparison,
        image_of=lambda index: explained[index]["image"],  # type: ignore[index]
        objects_of=(lambda index: explained[index]["objects"]) if arguments.mosaic else None,  # type: ignore[index]
        file_of=images.file,
        class_names=names,
        to_colors=loaded.to_colors,
        count=arguments.pictures,
    )
    digests = _digests(evaluated, images, arguments.num_workers)
    write_files(comparison, results, pictures, out, images.file, digests)
    # The results are complete even if it cannot be removed, for example because the user has put files there.
    with suppress(OSError, UsageError):
        remove_partial_files(partial)
        partial.rmdir()
    print_results(results, out / "report.html")
    report_gates(checked)


def _check(arguments: Any) -> None:
    """Refuse what the types of the options do not express."""
    for name in ("model", "data"):
        if not arguments[name]:
            raise UsageError(f"--{name} is missing; see torchmetrics-cam evaluate --help")
    if arguments.average == "macro" and arguments.num_classes is None:
        raise UsageError("--average macro needs --num-classes, the number of the model's classes")


def _measures(value: Names) -> list[str]:
    names = names_in(value, "--measures")
    for name in names:
        if name not in MEASURES:
            raise UsageError(
                f"--measures: {name!r} is not one of {', '.join(MEASURES)}; did you mean"
                f" {nearest(name, MEASURES, count=1)}?"
            )
    return names


def _digests(evaluated: list[int], images: Images, num_workers: int) -> dict[int, str]:
    """Return the digest of every image that was evaluated, by its index; the workers read the images."""
    indices: Any = evaluated
    digest: Any = images.digest
    digests = DataLoader(indices, batch_size=None, num_workers=num_workers, collate_fn=digest)
    return dict(zip(evaluated, digests, strict=True))


def _layer(value: Names, loaded: LoadedModel, image: Tensor) -> LayerChoice:
    images = image.unsqueeze(0)
    if value == "auto":
        return choose_layer(loaded.model, images)
    names = tuple(names_in(value, "--layer"))
    return LayerChoice(names, "given", check_layer(loaded.model, images, names))


def _evaluated(
    comparison_of: Callable[[int], CAMComparison],
    images: Dataset[Item | None],
    groups: Groups | None,
    arguments: Any,
    partial: Path,
    fingerprints: dict[str, str],
) -> CAMComparison | None:
    """Run the evaluation; return the comparison in the process of rank 0, which has the states of all."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

    batch_size = arguments.batch_size
    # Constructed first, so that an invalid argument leaves no partial result.
    comparison = comparison_of(batch_size)
    # Without a number of devices, Lightning takes all, or as many as torchrun has started.
    devices = {} if arguments.devices == "auto" else {"devices": arguments.devices}
    start_or_resume(partial, arguments, fingerprints)
    while True:
        loader = DataLoader(images, batch_size, num_workers=arguments.num_workers, collate_fn=collate)
        try:
            evaluate(
                comparison,
                loader,
                inputs=inputs_of(comparison, groups, arguments),
                partial=partial,
                # Needed until the result files are written.
                keep_partial=True,
                assume_unchanged=arguments.assume_unchanged,
                save_every=arguments.save_every,
                accelerator=arguments.accelerator,
                strategy=arguments.strategy,
                num_nodes=arguments.num_nodes,
                precision=arguments.precision,
                **devices,
            )
        except SystemExit as error:
            # Lightning exits after Ctrl-C.
            raise KeyboardInterrupt from error
        except PartialResultError as error:
            told = ", or if nothing has changed, with --assume-unchanged" if error.may_be_unchanged else ""
            raise UsageError(
                f"{error.problem}; start again with --fresh, or resume with everything as it was{told}"
            ) from error
        except ValueError as error:
            if "logits_fn" not in str(error):
                raise
            raise UsageError(
                f"{error}. The command has no option for logits_fn: write a function that returns the network"
                " with it applied to the output, and give that as --model package.module:factory"
            ) from error
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            # With several processes, the others would wait for the one that runs out of memory.
            if arguments.halve_on_oom and batch_size > 1 and not _is_distributed():
                batch_size //= 2
                comparison = comparison_of(batch_size)
                continue
            raise UsageError(
                f"memory ran out with {batch_size} images per batch; try --batch-size"
                f" {max(batch_size // 2, 1)}, or --halve-on-oom on one device. The partial result is kept,"
                f" and {how_to_resume(arguments)} ({summary(error)})"
            ) from error
        return comparison if getattr(rank_zero_only, "rank", 0) == 0 else None


def _is_distributed() -> bool:
    group = torch.distributed
    return group.is_available() and group.is_initialized() and group.get_world_size() > 1


def _is_out_of_memory(error: RuntimeError) -> bool:
    message = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in message for words in ("out of memory", "not enough memory", "can't allocate memory")
    )
