"""``scorer="compile"``: a compiled copy of the model scores the perturbed images."""

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from conftest import SmallNet, small_net
from restoration import traces
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.utils import parametrizations, spectral_norm
from torchmetrics import MetricCollection

from torchmetrics_cam import ADCC, AverageDrop, CAMComparison, DeletionAUC, explain
from torchmetrics_cam.cams import GradCAM, LayerCAM, UniformMap
from torchmetrics_cam.model.compiled import (
    CompiledCopy,
    _copied,
    _fold_batch_norms,
    _foldable_batch_norms,
    compiled_copy,
)

# The time of each compilation is seconds, so most tests use one network, and so its copy.


@pytest.fixture(scope="module")
def net() -> SmallNet:
    """In training mode, with gradients and a frozen weight."""
    net = small_net().float()
    net(torch.rand(2, 3, 12, 12)).sum().backward()
    net.fc.bias.requires_grad_(False)
    return net.train()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True, scope="module")
def _fresh_compiler() -> Iterator[None]:
    """As of a user who freezes weights."""
    torch._dynamo.reset()
    with torch._inductor.config.patch(freezing=True):
        yield
    torch._dynamo.reset()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def value(metric: AverageDrop, images: Tensor) -> float:
    metric.update(images)
    return metric.compute().item()


def agree(first: AverageDrop, second: AverageDrop) -> None:
    torch.testing.assert_close(first.compute(), second.compute(), rtol=1e-4, atol=1e-6)


def test_smaller_batches_and_chunks_are_not_compiled_again(net, images):
    before, state = graphs(), traces(net, images)
    metrics = [CAMComparison(sources(net), scorer=scorer, batch_size=7) for scorer in ("compile", None)]
    assert metrics[0].compilation is None
    for metric in metrics:
        for size in (8, 8, 3, 1):
            metric.update(images[:size])
            assert traces(net, images) == state
    assert graphs() == before + 1
    agree(*metrics)
    assert not any(
        hasattr(images, name) for name in ("_dynamo_dynamic_indices", "_dynamo_weak_dynamic_indices")
    )
    assert 0 < metrics[0].compilation.seconds < 600
    assert metrics[0].compilation.failure is None
    assert metrics[1].compilation is None
    assert metrics[0].table().notes == metrics[1].table().notes


def sources(net: nn.Module) -> dict[str, GradCAM]:
    return {"Grad-CAM": GradCAM(net, "body"), "Layer-CAM": LayerCAM(net, "stem")}


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_every_metric_and_copy_of_a_network_shares_its_compiled_copy(net, images, context):
    AverageDrop(GradCAM(net, "body"), scorer="compile").update(images)
    with torch.compiler.set_stance("fail_on_recompile"), context():
        for make in (AverageDrop, DeletionAUC, ADCC):
            pair = [make(GradCAM(net, "body"), scorer=scorer) for scorer in ("compile", None)]
            assert value(pair[0].clone(), images) == pytest.approx(value(pair[1], images), rel=1e-4)
        batch = explain(GradCAM(net, "body"), images, scorer="compile")
        torch.testing.assert_close(batch.masked_scores, explain(GradCAM(net, "body"), images).masked_scores)
        collection = MetricCollection(
            {
                "paper": AverageDrop(GradCAM(net, "body"), scorer="compile"),
                "too": AverageDrop(GradCAM(net, "body"), scorer="compile"),
                "score_cam": AverageDrop(GradCAM(net, "body"), protocol="score_cam", scorer="compile"),
                "model": AverageDrop(GradCAM(net, "body")),
            }
        )
        collection.update(images)
        assert sorted(map(len, collection.compute_groups.values())) == [1, 1, 2]


def test_changed_weights_are_seen(net, images):
    metric = AverageDrop(GradCAM(net, "body"), scorer="compile")
    metric.update(images)
    changes: dict[str, Callable[[], object]] = {
        "in place": lambda: net.fc.weight.mul_(0.5),
        "batch norm": lambda: net.stem[1].running_mean.add_(0.3),
        "another tensor": lambda: setattr(net.fc, "bias", nn.Parameter(torch.rand(5))),
        "data": lambda: setattr(net.body.weight, "data", net.body.weight * 1.5),
    }
    with torch.compiler.set_stance("fail_on_recompile"):
        for name, change in changes.items():
            seen = metric.total.item()
            with torch.no_grad():
                change()
            metric.update(images)
            assert metric.total.item() == seen + len(images)
            metric.reset()
            metric.update(images)
            expected = AverageDrop(GradCAM(net, "body"))
            assert metric.compute().item() == pytest.approx(value(expected, images), rel=1e-4), name
        # Neither the tensor nor its version tells, so this is seen after a reset.
        net.fc.weight.data.mul_(1.2)
        metric.reset()
        assert value(metric, images) == pytest.approx(
            value(AverageDrop(GradCAM(net, "body")), images), rel=1e-4
        )


def test_weights_that_change_between_two_batches_are_seen_in_the_second(net, images):
    metric, plain = (AverageDrop(GradCAM(net, "body"), scorer=scorer) for scorer in ("compile", None))
    for factor in (1.0, 0.5):
        with torch.no_grad():
            net.fc.weight.mul_(factor)
        metric.update(images)
        plain.update(images)
    agree(metric, plain)


def test_pickles_and_copies_with_the_network_compile_again(net, images):
    metric = AverageDrop(GradCAM(net, "body"), scorer="compile")
    expected = value(metric, images)
    loaded = pickle.loads(pickle.dumps(metric))
    holder = nn.ModuleDict({"net": net, "metric": metric})
    copied = copy.deepcopy(holder)["metric"]
    for other in (loaded, copied):
        assert other.compilation is None
        other.reset()
    before = graphs()
    assert value(loaded, images) == pytest.approx(expected, rel=1e-4)
    assert graphs() == before + 1
    assert compiled_copy(loaded.model) is not compiled_copy(net)


class Chance(nn.Module):
    """Dropout that eval() does not turn off."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(nn.functional.dropout(images, 0.5, training=True))


def pooled() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


FALLBACKS = {
    "no compiler of C++": lambda: (pooled(), "could not be compiled.*InvalidCxxCompiler"),
    "cannot be copied": lambda: (
        Uncopied(),
        "could not be compiled.*TypeError: this network cannot be copied",
    ),
    "nothing to compile": lambda: (
        torch.jit.script(pooled()),
        "found nothing in it to compile",
    ),
    "scores by chance": lambda: (
        Chance(small_net().float()),
        "The scores of the compiled network differ by up to .* and 0.001 is allowed",
    ),
}


class Uncopied(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def __deepcopy__(self, memo):
        raise TypeError("this network cannot be copied")


@pytest.mark.parametrize("case", FALLBACKS)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_the_model_runs_where_it_cannot_be_compiled(case, images, monkeypatch, tmp_path):
    model, reason = FALLBACKS[case]()
    half = {"half": UniformMap(model, 0.5)}
    comparison, plain = CAMComparison(half, scorer="compile"), CAMComparison(half)
    missing = {"cpp.cxx": ("no-compiler",)} if case == "no compiler of C++" else {}
    if missing:
        # Nor what a compiler has left in files.
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with torch._inductor.config.patch(missing), pytest.warns(UserWarning, match=reason) as warned:
        comparison.update(images)
    assert len(warned) == 1
    comparison.update(images[:3])
    note = str(warned[0].message)
    assert note in comparison.table().notes
    assert note in str(comparison.table())
    if case != "scores by chance":
        assert comparison.compilation.failure == note
        plain.update(images)
        plain.update(images[:3])
        torch.testing.assert_close(comparison.compute(), plain.compute())


def test_an_error_of_the_network_is_raised_and_is_none_of_the_compiler(images):
    class Limited(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 4:
                raise RuntimeError("memory ran out")
            return images.mean((2, 3))

    model = Limited()
    compiled = CompiledCopy()
    compiled.follow(model, is_new=True)
    with pytest.raises(RuntimeError, match="memory ran out"):
        compiled(model, images)
    assert compiled.failure is None


class Counting(nn.Module):
    """Counts its passes in a buffer, which its scores depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        return images.mean((2, 3)) * self.passes


def test_each_pass_starts_from_the_same_buffers(images):
    model = Counting()
    metrics = [AverageDrop(UniformMap(model, 0.5), scorer=scorer) for scorer in ("compile", None)]
    for metric in metrics:
        metric.update(images)
        metric.update(images)
    agree(*metrics)
    assert metrics[0].compilation.failure is None
    assert model.passes == 0


class Padded(nn.Conv2d):
    """Pads itself, as the convolutions of EfficientNet-Lite."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class Standardized(Padded):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1)), weight, self.bias)


class WithoutBias(Padded):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1)), self.weight, None)


class Block(nn.Module):
    """Of these batch norms, ``norm`` and ``norm_padded`` alone read the output of a convolution with no other use."""

    def __init__(self) -> None:
        super().__init__()
        for name in (
            "",
            "_shared",
            "_read_twice",
            "_hooked",
            "_parametrized",
            "_weight_read",
            "_no_statistics",
        ):
            statistics = name != "_no_statistics"
            setattr(self, f"conv{name}", nn.Conv2d(3, 3, 3, padding=1))
            setattr(self, f"norm{name}", nn.BatchNorm2d(3, track_running_stats=statistics))
        spectral_norm(self.conv_hooked)
        parametrizations.weight_norm(self.conv_parametrized)
        for kind in (Padded, Standardized, WithoutBias):
            setattr(self, f"conv_{kind.__name__.lower()}", kind(3, 3, 3, bias=False))
            setattr(self, f"norm_{kind.__name__.lower()}", nn.BatchNorm2d(3))
        self.conv_transposed, self.norm_transposed = nn.ConvTranspose2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        x = self.norm_shared(self.conv_shared(self.conv_shared(x)))
        y = self.conv_read_twice(x)
        x = self.norm_read_twice(y) + y
        x = self.norm_hooked(self.conv_hooked(x))
        x = self.norm_parametrized(self.conv_parametrized(x))
        x = self.norm_weight_read(self.conv_weight_read(x)) * self.conv_weight_read.weight.mean()
        x = self.norm_padded(self.conv_padded(x))
        x = self.norm_standardized(self.conv_standardized(x))
        x = self.norm_withoutbias(self.conv_withoutbias(x))
        x = self.norm_no_statistics(self.conv_no_statistics(x))
        return self.norm_transposed(self.conv_transposed(x))


def test_batch_norms_are_folded_only_where_it_is_exact(images):
    torch.manual_seed(0)
    block = Block()
    block(images)
    block.eval()
    names = list(_foldable_batch_norms(_copied(block)))
    assert names == [("conv", "norm"), ("conv_padded", "norm_padded")]
    folded = _copied(block)
    _fold_batch_norms(folded, names)
    assert isinstance(folded.norm, nn.Identity)
    torch.testing.assert_close(folded(images), block(images))
    assert list(_foldable_batch_norms(_copied(block).half())) == []
    # Forward passes that depend on values cannot be traced.
    block.forward = lambda images: images * 2 if images.sum() > 0 else images
    assert list(_foldable_batch_norms(block)) == []
