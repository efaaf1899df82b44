"""The metrics on a GPU: the values of a CPU, no waiting for the host, and nothing left behind."""

import copy

import pytest
import torch
from conftest import small_net
from restoration import traces
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.models import resnet18

from torchmetrics_cam import AverageDrop, CAMComparison, EvaluationProtocol
from torchmetrics_cam.cams import GradCAM, GradCAMPlusPlus, LayerCAM
from torchmetrics_cam.lightning import evaluate
from torchmetrics_cam.metrics.measures import MEASURES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")

IMAGES = (4, 3, 20, 20)
PROTOCOL = EvaluationProtocol(top_k=100)
# The preprocessing of ROAD solves a linear system, and stops where its residual, on the host, is small enough.
WAITING = {"road"}


@pytest.fixture
def no_waiting():
    """Raise an error wherever the host waits for the GPU."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def comparison_of(net, measures, **settings):
    sources = {"Grad-CAM": GradCAM(net, "body"), "Layer-CAM": LayerCAM(net, "stem")}
    return CAMComparison(sources, measures=measures, protocol=PROTOCOL, **settings)


def objects_of(images):
    return (torch.arange(20, device=images.device) < 10).expand(len(images), 20, 20)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_gpu_has_the_values_of_a_cpu(net, images, measure):
    expected = comparison_of(net, [measure]).set_dtype(torch.float64)
    expected.update(images, objects=objects_of(images))
    net, images = copy.deepcopy(net).cuda(), images.cuda()
    metric = comparison_of(net, [measure]).set_dtype(torch.float64).to("cuda")
    metric.update(images, objects=objects_of(images))
    assert metric.sums.is_cuda
    values, expected_values = metric.compute(), expected.compute()
    for name, expected_value in expected_values.items():
        is_random = name.startswith("random map")
        # The random map of a masked image depends on all of its bits, the last one included.
        if not (is_random and measure in ("coherency", "adcc")):
            # It is interpolated in float32.
            assert values[name].item() == pytest.approx(
                expected_value.item(), abs=1e-7 if is_random else 1e-9, nan_ok=True
            ), name


@pytest.mark.parametrize("measure", sorted(set(MEASURES) - WAITING))
def test_an_update_does_not_wait_for_the_gpu(net, images, measure, no_waiting):
    net, images = net.cuda(), images.cuda()
    metric = comparison_of(net, [measure], validate_args=False).to("cuda")
    objects = objects_of(images)
    metric.update(images, objects=objects)
    no_waiting()
    metric.update(images, objects=objects)


def test_an_update_of_one_method_does_not_wait_for_the_gpu(net, images, no_waiting):
    net, images = net.cuda(), images.cuda()
    metric = AverageDrop(GradCAM(net, "body"), validate_args=False).to("cuda")
    metric.update(images)
    no_waiting()
    metric.update(images)


def test_groups_and_a_surrogate_have_the_values_of_a_cpu_and_do_not_wait(net, images, no_waiting):
    tuned, group, labels = small_net(seed=1), torch.tensor([0, 1, 1, 0]), torch.arange(4)
    found = {}
    for device in ("cpu", "cuda"):
        model, surrogate = copy.deepcopy(net).to(device), copy.deepcopy(tuned).to(device)
        settings = {"groups": ("tops", "bags"), "by_correctness": True, "surrogate": surrogate}
        metric = comparison_of(model, ["average_drop"], controls=False, validate_args=False, **settings)
        metric = metric.set_dtype(torch.float64).to(device)
        batch = images.to(device), {"group": group.to(device), "labels": labels.to(device)}
        metric.update(batch[0], **batch[1])
        if device == "cuda":
            no_waiting()
        metric.update(batch[0], **batch[1])
        torch.cuda.set_sync_debug_mode("default")
        found[device] = {name: value.item() for name, value in metric.compute().items()}
    assert found["cuda"] == pytest.approx(found["cpu"], abs=1e-9, nan_ok=True)


def test_an_update_leaves_no_trace(net, images):
    net, images = net.cuda().train(), images.cuda()
    metric = AverageDrop(GradCAM(net, "body"), num_classes=5, average="macro").to("cuda")
    before, random_state = traces(net, images), torch.cuda.get_rng_state()
    metric.update(images, class_idx=torch.tensor([0, 1, 2, 3]))
    assert traces(net, images) == before
    assert torch.equal(torch.cuda.get_rng_state(), random_state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_has_the_values_of_float32_to_its_precision(dtype):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, images = resnet18(num_classes=10).cuda().eval(), torch.rand(16, 3, 96, 96, device="cuda")
    cam = GradCAM(model, "layer4")
    exact, metric = AverageDrop(cam).to("cuda"), AverageDrop(cam).to("cuda")
    exact.update(images)
    with torch.autocast("cuda", dtype):
        metric.update(images)
    assert metric.total == 16
    assert metric.compute().item() == pytest.approx(exact.compute().item(), abs=0.02)


def test_a_metric_on_the_cpu_takes_a_model_on_the_gpu(net, images):
    cam = GradCAM(net.cuda(), "body")
    metric, on_gpu = AverageDrop(cam), AverageDrop(cam).to("cuda")
    metric.update(images.cuda())
    on_gpu.update(images.cuda())
    assert metric.drop.device.type == "cpu"
    assert metric.compute().item() == on_gpu.compute().item()
    metric.merge_state(on_gpu.cpu())
    assert metric.total == 8


def test_a_compiled_scorer_has_the_values_of_the_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, images = resnet18(num_classes=10).cuda().eval(), torch.rand(8, 3, 96, 96, device="cuda")
    cam = GradCAM(model, "layer4")
    expected, metric = AverageDrop(cam).to("cuda"), AverageDrop(cam, scorer="compile").to("cuda")
    for batch in (images, images[:3]):
        expected.update(batch)
        metric.update(batch)
    assert metric.compilation.failure is None
    assert metric.compute().item() == pytest.approx(expected.compute().item(), abs=1e-3)


def test_evaluate_moves_model_and_metric_to_the_gpu_and_back(images):
    net = small_net().float()
    metric = CAMComparison({"Grad-CAM++": GradCAMPlusPlus(net, "body")})
    seen = []
    net.register_forward_pre_hook(lambda _m, args: seen.append(args[0].device.type))
    evaluate(metric, TensorDataset(images.float()), batch_size=2, accelerator="gpu", devices=1)
    assert set(seen) == {"cuda"}
    assert next(net.parameters()).device.type == "cpu"
    assert metric.count.diagonal().tolist() == [4] * 4


def test_states_are_summed_over_nccl(net, images, tmp_path):
    net, images = net.cuda(), images.cuda()
    metric = AverageDrop(GradCAM(net, "body")).to("cuda")
    metric.update(images)
    alone = metric.compute()
    torch.distributed.init_process_group(
        "nccl", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    try:
        metric._computed = None
        with metric.sync_context(distributed_available=lambda: True):
            assert metric.total == 4
        assert metric.compute() == alone
    finally:
        torch.distributed.destroy_process_group()


def test_memory_of_an_update_is_that_of_its_forward_passes():
    model, images = resnet18().cuda().eval(), torch.rand(32, 3, 224, 224, device="cuda")
    metric = AverageDrop(GradCAM(model, "layer4")).to("cuda")

    def peak_of(run):
        run()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before

    def bare():
        with torch.inference_mode():
            return [model(images), model(images)]

    assert peak_of(lambda: metric.update(images)) < 1.5 * peak_of(bare)


class Dropout(nn.Module):
    """A network whose dropout is also active in eval mode."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(nn.functional.dropout(x, 0.2, training=True))


def test_random_numbers_of_the_gpu_are_restored(net, images):
    model, images = Dropout(net).cuda(), images.cuda()
    metric = AverageDrop(GradCAM(model, "net.body"), validate_args=False).to("cuda")
    random_state = torch.cuda.get_rng_state()
    metric.update(images)
    assert torch.equal(torch.cuda.get_rng_state(), random_state)
