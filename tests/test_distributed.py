"""Two processes give the number of one, also where their batches are uneven or one has none."""

import datetime
import os

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from conftest import small_net
from torch import Tensor

from torchmetrics_cam import AverageDrop
from torchmetrics_cam.cams import GradCAM

COUNTS = ("total", "increase", "nan_count", "degenerate_count")


def batches() -> list[Tensor]:
    images = torch.rand(24, 3, 12, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    images[5, 0, 0, 0] = float("nan")
    return list(images.split(3))


def measured(mine: list[Tensor]) -> tuple[float, list[int]]:
    metric = AverageDrop(GradCAM(small_net(), "body"))
    for batch in mine:
        metric.update(batch)
    drop = metric.compute().item()
    with metric.sync_context():
        return drop, [int(getattr(metric, name)) for name in COUNTS]


def worker(rank: int, folder: str, shares: list[list[int]]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{os.path.join(folder, 'meeting')}",
        rank=rank,
        world_size=len(shares),
        timeout=datetime.timedelta(seconds=60),
    )
    try:
        every = batches()
        torch.save(measured([every[index] for index in shares[rank]]), os.path.join(folder, f"{rank}"))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "shares",
    [[[0, 1, 2, 3, 4], [5, 6, 7]], [list(range(8)), []]],
    ids=["five and three batches", "a rank without a sample"],
)
@pytest.mark.filterwarnings("ignore:.*was called before the ``update`` method")
def test_two_processes_give_the_number_of_one(tmp_path, shares):
    torch.multiprocessing.spawn(worker, (str(tmp_path), shares), nprocs=2)
    drop, counts = measured(batches())
    assert drop > 0
    assert counts[0] == 23
    for rank in range(2):
        theirs, their_counts = torch.load(tmp_path / f"{rank}")
        assert theirs == pytest.approx(drop, rel=1e-9)
        assert their_counts == counts
