"""Scaling with processes and images: images per second, collective operations of compute(), memory.

    python tests/benchmarks/scaling.py [--images 100000] [--rounds 5]

A `CAMComparison` of eight methods and three controls is measured. Speed: ResNet-18 with images of 96 x 96 pixels on one
process and on two, alternately, with one thread per process. Memory: resident memory of a process with a small network and
images of 8 x 8 pixels, after 1,000 images and after all.
"""

import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing
from cases import OWN
from results import environment, parser, table, write
from torch import nn
from torchvision.models import resnet18

from torchmetrics_cam import CAMComparison

METHODS = 8
SPEED_BATCH, SPEED_BATCHES, SIDE = 8, 6, 96
COLLECTIVES = ("all_gather", "all_reduce", "barrier", "broadcast", "all_gather_into_tensor")


def comparison_of(model: nn.Module, layer: str) -> CAMComparison:
    """Return a comparison of eight gradient CAMs of a layer and the controls."""
    sources = [method(model, layer) for method in islice(cycle(OWN), METHODS)]
    return CAMComparison({f"{index} {type(source).__name__}": source for index, source in enumerate(sources)})


def seconds_of_a_share(rank: int, world_size: int) -> float:
    """Return the seconds that a rank takes for its share of the images, including the wait for the other ranks."""
    comparison = comparison_of(resnet18().eval(), "layer4")
    images = torch.randn(SPEED_BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(rank))
    comparison.update(images)
    torch.distributed.barrier()
    started = time.perf_counter()
    for _ in range(SPEED_BATCHES // world_size):
        comparison.update(images)
    torch.distributed.barrier()
    return time.perf_counter() - started


def collectives_of_compute(rank: int, world_size: int) -> dict[str, Any]:
    """Return the collective operations of compute(): calls by name, bytes that this rank sends, and seconds."""
    comparison = comparison_of(resnet18().eval(), "layer4")
    comparison.update(torch.randn(2, 3, 64, 64))
    calls: dict[str, int] = {}
    sent_bytes = 0

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal sent_bytes
            calls[name] = calls.get(name, 0) + 1
            if name == "all_gather":
                tensor = args[1]
                sent_bytes += tensor.numel() * tensor.element_size()
            return function(*args, **kwargs)

        return call

    for name in COLLECTIVES:
        setattr(torch.distributed, name, counted(name, getattr(torch.distributed, name)))
    torch.distributed.barrier()
    calls.clear()
    started = time.perf_counter()
    comparison.compute()
    return {"calls": calls, "bytes": sent_bytes, "seconds": time.perf_counter() - started}


def on_processes(function: Callable[[int, int], Any], world_size: int) -> list[Any]:
    """Return the results of a function run in parallel processes with the gloo backend, one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (function, world_size, folder), nprocs=world_size)
        return [torch.load(f"{folder}/{rank}", weights_only=False) for rank in range(world_size)]


def _rank(rank: int, function: Callable[[int, int], Any], world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    torch.save(function(rank, world_size), f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


def memory(images: int) -> dict[int, float]:
    """Return the resident memory in MiB after 1,000 images, after a tenth of all images, and after all."""
    torch.manual_seed(0)
    body = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    comparison = comparison_of(model, "1")
    batch, resident = torch.rand(500, 1, 8, 8), {}
    for done in range(500, images + 1, 500):
        comparison.update(batch)
        if done in (1_000, images // 10, images):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident[done] = round(pages * 4096 / 2**20, 1)
    return resident


def report(result: dict[str, Any]) -> str:
    """Return the page of the results."""
    speed, collectives = result["images_per_second"], result["compute"]
    calls = ", ".join(f"{count} {name}" for name, count in collectives["calls"].items())
    rows = [(f"{images:,}", f"{mib:.1f}") for images, mib in result["resident_mib"].items()]
    return f"""# Scaling with processes and images

A `CAMComparison` of {METHODS} gradient CAMs of one layer and three controls. Written by `scaling.py`; all numbers are
in `scaling.json`.

## Speed

ResNet-18, images of {SIDE} x {SIDE} pixels, one thread per process: {speed["one"]:.2f} images/s on one process and
{speed["two"]:.2f} on two, a factor of {speed["two"] / speed["one"]:.2f} (medians of {len(result["seconds"]["one"])} rounds
in which one and two processes alternate).

## Communication

`compute()` on two ranks: {calls}; each rank sends {collectives["bytes"]:,} bytes, independent of the number of images.

## Memory

Resident memory of a process with a small network and images of 8 x 8 pixels:

{table(("images", "resident memory, MiB"), rows)}"""


def main() -> None:
    """Measure speed, communication and memory, and write the results."""
    options = parser(__doc__, __file__)
    options.add_argument("--images", type=int, default=100_000, help="number of images for the memory")
    options.add_argument("--rounds", type=int, default=5, help="number of rounds for the speed")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    machine = environment()
    seconds: dict[str, list[float]] = {"one": [], "two": []}
    for index in range(arguments.rounds):
        for name, processes in (("one", 1), ("two", 2)):
            seconds[name].append(max(on_processes(seconds_of_a_share, processes)))
        print(
            f"round {index + 1}:",
            {name: round(values[-1], 2) for name, values in seconds.items()},
            flush=True,
        )
    images = SPEED_BATCH * SPEED_BATCHES
    result = {
        "environment": machine,
        "seconds": seconds,
        "images_per_second": {
            name: images / sorted(values)[len(values) // 2] for name, values in seconds.items()
        },
        "compute": on_processes(collectives_of_compute, 2)[0],
        "resident_mib": memory(arguments.images),
    }
    write(arguments.out, result, report(result))


if __name__ == "__main__":
    main()
