"""What more processes and more images do: images per second, collectives of compute(), memory.

    python tests/benchmarks/scaling.py [--images 100000]

A comparison of eight methods and three controls. Speed: ResNet-18 at 96 px on one process and on two, one thread
each, in turn. Memory: a small network on 8 px images, resident after 1,000 images and after all of them.
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
from cost import OWN
from results import environment, parser, table, write
from torch import nn
from torchvision.models import resnet18

from torchmetrics_cam import CAMComparison

METHODS, ROUNDS = 8, 5
SPEED_BATCH, SPEED_BATCHES, SIDE = 8, 6, 96
COLLECTIVES = ("all_gather", "all_reduce", "barrier", "broadcast", "all_gather_into_tensor")


def comparison_of(model: nn.Module, layer: str) -> CAMComparison:
    """Eight gradient CAMs of a layer, and the controls."""
    sources = [method(model, layer) for method in islice(cycle(OWN), METHODS)]
    return CAMComparison({f"{place} {type(source).__name__}": source for place, source in enumerate(sources)})


def seconds_of_a_share(rank: int, world_size: int) -> float:
    """How long the slowest rank takes for its share of the images."""
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
    """What compute() says to the other ranks: calls by name, and the bytes that this rank hands over."""
    comparison = comparison_of(resnet18().eval(), "layer4")
    comparison.update(torch.randn(2, 3, 64, 64))
    calls: dict[str, int] = {}
    handed = 0

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            nonlocal handed
            calls[name] = calls.get(name, 0) + 1
            if name == "all_gather":
                tensor = arguments[1]
                handed += tensor.numel() * tensor.element_size()
            return function(*arguments, **settings)

        return call

    for name in COLLECTIVES:
        setattr(torch.distributed, name, counted(name, getattr(torch.distributed, name)))
    torch.distributed.barrier()
    calls.clear()
    started = time.perf_counter()
    comparison.compute()
    return {"calls": calls, "bytes": handed, "seconds": time.perf_counter() - started}


def on_processes(function: Callable[[int, int], Any], world_size: int) -> list[Any]:
    """What each of so many processes returns, over gloo, one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (function, world_size, folder), nprocs=world_size)
        return [torch.load(f"{folder}/{rank}", weights_only=False) for rank in range(world_size)]


def _rank(rank: int, function: Callable[[int, int], Any], world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size
    )
    torch.save(function(rank, world_size), f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


def memory(images: int) -> dict[int, float]:
    """MiB resident after 1,000 images, after a tenth of them, and after all."""
    torch.manual_seed(0)
    body = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    comparison = comparison_of(model, "1")
    batch, found = torch.rand(500, 1, 8, 8), {}
    for done in range(500, images + 1, 500):
        comparison.update(batch)
        if done in (1_000, images // 10, images):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            found[done] = round(pages * 4096 / 2**20, 1)
    return found


def report(result: dict[str, Any]) -> str:
    """What was found, for people."""
    speed, said = result["images_per_second"], result["compute"]
    gathers = ", ".join(f"{count} {name}" for name, count in said["calls"].items())
    rows = [(f"{images:,}", f"{mib:.1f}") for images, mib in result["resident_mib"].items()]
    return f"""# More processes, more images

{METHODS} gradient CAMs of one layer and three controls in one `CAMComparison`. Written by `scaling.py`; all
figures are in `scaling.json`.

ResNet-18, {SIDE} px, one thread a process: {speed["one"]:.2f} images/s on one process and {speed["two"]:.2f} on two,
{speed["two"] / speed["one"]:.2f} times as many (medians of {ROUNDS} rounds in turn).

`compute()` over two ranks: {gathers}; each rank hands over {said["bytes"]:,} bytes, whatever the number of images.

Memory of the process, a small network on 8 px images:

{table(("images", "resident, MiB"), rows)}"""


def main() -> None:
    """Measure all three, and write them down."""
    options = parser(__doc__, __file__)
    options.add_argument("--images", type=int, default=100_000, help="how many for the memory")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    circumstances = environment()
    seconds: dict[str, list[float]] = {"one": [], "two": []}
    for turn in range(ROUNDS):
        for name, processes in (("one", 1), ("two", 2)):
            seconds[name].append(max(on_processes(seconds_of_a_share, processes)))
        print(
            f"round {turn + 1}:", {name: round(values[-1], 2) for name, values in seconds.items()}, flush=True
        )
    images = SPEED_BATCH * SPEED_BATCHES
    result = {
        "environment": circumstances,
        "seconds": seconds,
        "images_per_second": {name: images / sorted(values)[ROUNDS // 2] for name, values in seconds.items()},
        "compute": on_processes(collectives_of_compute, 2)[0],
        "resident_mib": memory(arguments.images),
    }
    write(arguments.out, result, report(result))


if __name__ == "__main__":
    main()
