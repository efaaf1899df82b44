"""ROAD: the imputation against scipy's solver, the metric against pytorch-grad-cam's, and the signs."""

from itertools import product

import numpy as np
import pytest
import torch
from conftest import Calls
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from torch import nn

from torchmetrics_cam import ROAD, CAMComparison, EvaluationProtocol
from torchmetrics_cam.cams import GradCAM, PrecomputedMaps, UniformMap
from torchmetrics_cam.functional._noise import normal_noise
from torchmetrics_cam.functional.curves import position_ranks
from torchmetrics_cam.functional.road import linear_imputation

# pytorch-grad-cam hands tensors to NumPy functions.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context")
PAPER = EvaluationProtocol.preset("paper")
QUIET = PAPER.replace(road_noise=0.0)
DTYPE = torch.float32  # of the fixtures net and images


def smooth_maps(count: int, side: int, seed: int = 2) -> torch.Tensor:
    coarse = torch.rand(count, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (side, side), mode="bicubic")[:, 0]


def most_relevant(maps: torch.Tensor, share: float) -> torch.Tensor:
    ranks = position_ranks(maps)
    return ranks < round(share * ranks[0].numel())


@pytest.mark.parametrize(("side", "share"), [*product([5, 16, 61], [0.02, 0.5, 0.95]), (224, 0.5)])
def test_imputation_is_that_of_a_sparse_solver(side, share):
    """pytorch-grad-cam's imputer, which calls scipy's spsolve, without its noise."""
    images = torch.rand(3, 2, side, side, generator=torch.Generator().manual_seed(1))
    hidden = most_relevant(smooth_maps(3, side), share)
    imputed = linear_imputation(images, hidden)
    expected = [
        NoisyLinearImputer(noise=0)(image, (~gone).float())
        for image, gone in zip(images, hidden, strict=True)
    ]
    torch.testing.assert_close(imputed, torch.stack(expected), rtol=0, atol=1e-5)
    assert torch.equal(
        imputed[~hidden.unsqueeze(1).expand_as(imputed)], images[~hidden.unsqueeze(1).expand_as(images)]
    )


@pytest.mark.parametrize("shape", [(40,), (33, 18), (9, 14, 11)])
def test_the_solution_is_the_weighted_mean_of_its_neighbors(shape):
    """In one to three dimensions, at the border too, and whoever stands beside an image in the batch."""
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(4, 2, *shape, generator=generator)
    hidden = torch.rand(4, *shape, generator=generator) < torch.tensor([0.1, 0.5, 0.8, 0.95]).view(
        -1, *(1,) * len(shape)
    )
    imputed = linear_imputation(images, hidden)
    for place in torch.cartesian_prod(*map(torch.arange, shape)).view(-1, len(shape)).tolist():
        total, weights = torch.zeros(4, 2), 0.0
        for step in product((-1, 0, 1), repeat=len(shape)):
            there = [at + one for at, one in zip(place, step, strict=True)]
            if any(step) and all(0 <= at < side for at, side in zip(there, shape, strict=True)):
                weight = 1 / sum(map(abs, step))
                total, weights = total + weight * imputed[(..., *there)], weights + weight
        here, gone = imputed[(..., *place)], hidden[(..., *place)]
        torch.testing.assert_close(here[gone], (total / weights)[gone], rtol=0, atol=1e-5)
    alone = torch.cat([linear_imputation(images[[one]], hidden[[one]]) for one in range(4)])
    torch.testing.assert_close(imputed, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_linear_image_is_imputed_exactly(dims):
    """The weighted mean of neighbors on both sides is what lies between them."""
    axes = torch.meshgrid(*[torch.arange(9.0)] * dims, indexing="ij")
    image = sum(weight * axis for weight, axis in zip((1.0, 2.0, -3.0), axes, strict=False))[None, None]
    hidden = torch.zeros(1, *(9,) * dims, dtype=torch.bool)
    hidden[(0, *(slice(3, 6),) * dims)] = True
    torch.testing.assert_close(linear_imputation(image, hidden), image, rtol=1e-4, atol=1e-4)


def test_nothing_or_everything_hidden_and_images_beside_each_other():
    images = torch.rand(3, 1, 20, 20)
    hidden = torch.zeros(3, 20, 20, dtype=torch.bool)
    hidden[1], hidden[2, 4:9] = True, True
    imputed = linear_imputation(images, hidden)
    assert torch.equal(imputed[0], images[0])
    assert imputed[1].abs().max() == 0
    torch.testing.assert_close(imputed[2:], linear_imputation(images[2:], hidden[2:]), rtol=0, atol=1e-5)
    assert linear_imputation(images.half(), hidden).dtype == torch.float16


@pytest.mark.parametrize("batch_size", [None, 7])
def test_against_numpy(batch_size, net):
    images, maps = torch.rand(4, 3, 12, 12), smooth_maps(4, 12)
    # With ties, of which exactly the share is taken.
    maps = (maps * 5).round() / 5
    shares, classes = (0.25, 0.6), [0, 1, 2, 3]
    expected = []
    for image, saliency, index in zip(images, maps, classes, strict=True):
        order = np.argsort(-saliency.numpy().ravel(), kind="stable")
        parts = []
        for share in shares:
            count = round(share * 144)
            for chosen in (order[144 - count :], order[:count]):
                keep = torch.ones(144)
                keep[chosen.copy()] = 0
                imputed = NoisyLinearImputer(noise=0)(image, keep.view(12, 12))
                with torch.no_grad():
                    parts.append(net(imputed[None]).softmax(1)[0, index].item())
        expected.append(
            np.mean([(least - most) / 2 for least, most in zip(parts[::2], parts[1::2], strict=True)])
        )
    metric = ROAD(PrecomputedMaps(net), protocol=QUIET.replace(road_fractions=shares), batch_size=batch_size)
    with Calls(net) as calls:
        metric.update(images, class_idx=classes, cams=maps)
    assert sum(calls.batches) == 4 * (1 + 4)
    assert metric.compute().item() == pytest.approx(np.mean(expected), abs=1e-5)
    fractions, most, least = metric.curve()
    assert fractions.tolist() == pytest.approx(shares)
    assert ((least - most) / 2).mean().item() == pytest.approx(metric.compute().item(), abs=1e-9)


def test_pytorch_grad_cams_road_on_maps_without_ties(net, monkeypatch):
    from pytorch_grad_cam.metrics import road

    monkeypatch.setattr(road.NoisyLinearImputer.__init__, "__defaults__", (0, road.neighbors_weights))
    net.fc.weight.data.mul_(0.3)
    images, maps = torch.rand(3, 3, 21, 21, generator=torch.Generator().manual_seed(1)), smooth_maps(3, 21)
    theirs = road.ROADCombined(percentiles=[20, 50, 80])
    targets = [ClassifierOutputSoftmaxTarget(index) for index in net(images).argmax(1).tolist()]
    expected = theirs(images, maps.numpy(), targets, net)
    # A percentile of 441 positions cuts between two of them; these are the shares that it takes.
    protocol = QUIET.replace(road_fractions=(353 / 441, 221 / 441, 89 / 441), rectify="source")
    comparison = CAMComparison(
        {"maps": PrecomputedMaps(net)}, measures=["road"], protocol=protocol, per_sample=True
    )
    comparison.update(images, cams=maps)
    np.testing.assert_allclose(comparison.samples()["road"][:, 0], expected, atol=1e-4)
    assert abs(expected).max() > 0.01


def test_noise_is_the_images_own_and_small(net):
    images = torch.rand(6, 3, 12, 12)
    noise = normal_noise(images, 0)
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert torch.equal(normal_noise(images[2:4], 0), noise[2:4])
    assert not torch.equal(normal_noise(images, 1), noise)
    values = []
    for protocol, parts in ((PAPER, (6,)), (PAPER, (1, 2, 3)), (QUIET, (6,))):
        metric = ROAD(GradCAM(net, "body"), protocol=protocol.replace(road_fractions=(0.3,)))
        for batch in images.split(parts):
            metric.update(batch)
        values.append(metric.compute().item())
    assert values[0] == pytest.approx(values[1], abs=1e-7)
    assert values[0] != values[2]
    assert values[0] == pytest.approx(values[2], abs=0.02)


def test_a_classifier_that_reads_one_patch_and_the_signs():
    """The patch lies in a corner, so that the center map is no second best."""

    class Patch(nn.Module):
        def forward(self, images):
            inside = (images[:, 0, 1:4, 1:4] - images[:, 0].mean((1, 2), keepdim=True)).mean((1, 2)) * 8
            return torch.stack([inside, torch.full_like(inside, 2.0)], 1)

    images = 0.2 * torch.rand(5, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    images[:, :, 1:4, 1:4] += 0.8
    perfect = torch.zeros(5, 12, 12)
    perfect[:, 1:4, 1:4] = 1
    first = PrecomputedMaps(Patch())
    comparison = CAMComparison(
        {"perfect": first, "worst": PrecomputedMaps(first.model)}, measures=["road"], protocol=QUIET
    )
    comparison.update(images, class_idx=0, cams={"perfect": perfect, "worst": 1 - perfect})
    rows = {row["method"]: row["road"] for row in comparison.table().rows}
    assert rows["perfect"]["rank"] == 1
    assert rows["worst"]["rank"] == 5
    assert rows["worst"]["value"] < 0 < rows["perfect"]["value"]


def test_the_plot_has_both_curves(net):
    metric = ROAD(UniformMap(net), protocol=PAPER.replace(road_fractions=(0.2, 0.8)))
    metric.update(torch.rand(3, 3, 12, 12))
    figure, axis = metric.plot()
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [
        "most relevant first",
        "least relevant first",
    ]
    assert metric.plot(ax=axis)[0] is figure


@pytest.mark.parametrize("shares", [(), (0.0, 0.5), (1.0,), [0.5], ("half",)])
def test_shares_that_cannot_be_are_refused(shares):
    with pytest.raises(ValueError, match=r"road_fractions=.*it must be a tuple of numbers in \(0, 1\)"):
        EvaluationProtocol(road_fractions=shares)
