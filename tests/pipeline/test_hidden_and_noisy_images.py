"""Cells, subsets and noise that do not depend on a map: exact drops, memory, half precision, the class kept."""

import pytest
import torch
from conftest import HostSyncs, small_net
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from torchmetrics_cam import CAMComparison, EvaluationProtocol, explain
from torchmetrics_cam.cams import CallableSource, GradCAM, PrecomputedMaps, RandomMap, UniformMap
from torchmetrics_cam.functional import grid_cells
from torchmetrics_cam.functional._noise import hashed_noise
from torchmetrics_cam.metrics.measures import MEASURES

FINE = EvaluationProtocol(correlation_grid=48, correlation_subsets=3)
RAW = EvaluationProtocol(scores="raw")


def test_a_cell_that_shows_the_baseline_already_has_a_drop_of_exactly_0(digits):
    model, images, _ = digits
    source = GradCAM(model, "2")
    # A batch of another size rounds differently, which a rank would make as large as any other difference.
    drops = explain(source, images, batch_size=7).cell_drops
    cells = grid_cells((8, 8), 4)
    equals_baseline = torch.stack([(images[:, 0] * cell).flatten(1).amax(1) == 0 for cell in cells])
    assert equals_baseline.sum() > len(images)
    assert (drops[equals_baseline] == 0).all()
    values = MEASURES["single_deletion"].values
    one_by_one = torch.cat([values(explain(source, image)) for image in images.split(1)])
    torch.testing.assert_close(values(explain(source, images)), one_by_one, rtol=0, atol=1e-6)


def largest_tensor(function):
    """Return the number of bytes of the largest tensor that a function makes."""

    class Largest(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.count = max(self.count, result.untyped_storage().nbytes())
            return result

    with Largest() as largest:
        function()
    return largest.count


def test_subsets_of_a_fine_grid_take_no_more_memory_than_they_have_elements(net):
    images = torch.rand(2, 3, 48, 48, dtype=torch.float64)
    batch = explain(PrecomputedMaps(net), images, cams=torch.rand(2, 48, 48), protocol=FINE)
    elements = 2 * FINE.correlation_subsets * 48**2
    assert largest_tensor(lambda: (batch.subset_drops, batch.subset_sums)) <= 16 * elements


def test_a_random_map_does_not_choose_the_subsets():
    """Both hash the image; from the same numbers the first subset would be the lowest cells of the map."""
    images = torch.rand(6, 1, 8, 8)
    batch = explain(RandomMap(nn.Flatten(), grid=4), images, protocol=RAW)
    lowest = batch.maps.flatten(1).argsort(1)[:, :4]
    chosen = batch._perturbed.subsets[:, 0]
    assert not chosen.gather(1, lowest).all(1).any()


def test_a_constant_map_has_no_correlation_even_if_the_cells_differ_in_size(net):
    images = torch.rand(3, 3, 10, 10, dtype=torch.float64)
    comparison = CAMComparison({"half": UniformMap(net, 0.5)}, measures=["faithfulness_correlation"])
    comparison.update(images)
    assert comparison.compute()["half/faithfulness_correlation"].isnan()


def seen_by(net, images, **settings):
    """Return the noisy images that the network receives."""
    seen = []
    handle = net.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
    _ = explain(GradCAM(net, "body"), images, **settings).map_changes
    handle.remove()
    return seen[1:]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_noise_is_uniform_and_rounded_once_to_the_dtype_of_the_network(dtype):
    net = small_net().to(dtype)
    images = (torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(1)) * 4).to(dtype)
    exact = seen_by(small_net(), images.double(), protocol=EvaluationProtocol(sensitivity_samples=3))
    noisy = seen_by(net, images, protocol=EvaluationProtocol(sensitivity_samples=3))
    assert [one.dtype for one in noisy] == [dtype] * 3
    for one in exact:
        noise = one - images.double()
        assert 0.019 < noise.abs().amax() <= 0.02
        assert abs(noise.mean()) < 0.002
    if dtype in (torch.float64, torch.float32):
        for one in noisy:
            assert (one.double() - images.double()).abs().amax() <= 0.02 + 1e-6
    else:
        resolution = torch.finfo(dtype).eps * 2
        for one in noisy:
            # The nearest number of this dtype to an image with noise within the radius.
            assert ((one.double() - images.double()).abs() <= 0.02 + resolution).all()


def test_noise_is_not_rounded_before_it_is_added():
    images = torch.full((1, 3, 12, 12), 1.0, dtype=torch.bfloat16)
    (noisy,) = seen_by(
        small_net().bfloat16(), images, protocol=EvaluationProtocol(sensitivity_samples=1, name="one")
    )
    noise = 0.02 * (hashed_noise(images, 3 * 144, 0) * 2 - 1).view_as(images)
    assert torch.equal(noisy, (images.float() + noise).bfloat16())


def test_noise_that_changes_the_top_class_does_not_change_the_explained_class():
    explained = []

    def record(model, images, class_idx):
        explained.append(class_idx.tolist())
        return images.mean(1)

    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.full((8, 2, 4, 4), 0.5)
    images[:, 0, 0, 0] += 1e-4 * torch.arange(1, 9)
    tops = []
    net.register_forward_hook(lambda _m, _a, output: tops.append(output.argmax(1).tolist()))
    _ = explain(CallableSource(net, record), images).map_changes
    assert explained == [[0] * 8] * 11
    assert any(1 in top for top in tops)


def test_nothing_synchronizes_a_gpu_with_the_host(net, images):
    source = GradCAM(net, "body")
    comparison = CAMComparison(
        {"Grad-CAM": source},
        measures=[
            "single_deletion", "faithfulness_correlation", "max_sensitivity", "average_sensitivity", "class_sensitivity",
        ],
        validate_args=False,
    )  # fmt: skip
    comparison.update(images)
    with HostSyncs() as syncs:
        comparison.update(images)
    assert (syncs.seen, syncs.copies) == ([], 0)
