"""A surrogate scores clean and perturbed images in place of the model, and the model explains."""

import copy
import json
import pickle

import pytest
import pytorch_grad_cam
import torch
import torchcam
from conftest import Calls, HostSyncs, small_net
from restoration import CONTEXTS, Fragile, traces
from torch import nn
from torch.utils.data import TensorDataset
from torchmetrics import MetricCollection

from torchmetrics_cam import (
    AverageDrop,
    AverageGain,
    CAMComparison,
    DropInDeletion,
    EvaluationProtocol,
    IncreaseInConfidence,
    SingleDeletion,
    explain,
)
from torchmetrics_cam.cams import GradCAM, LayerCAM, PrecomputedMaps, RandomMap
from torchmetrics_cam.lightning import evaluate
from torchmetrics_cam.model.compiled import existing_copy

DTYPE = torch.float32  # of the fixtures net and images
IMAGES = (6, 3, 12, 12)  # the shape of the fixture images


def linear(*weights):
    """Return a network whose class k scores the sum of the pixels [a, b, c, d] times its weights."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, len(weights), bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(weights))
    return model


# The model prefers class 0 (3.0 to 1.0), the surrogate class 1 (2.0 to 6.0).
MODEL = [[0.1, 0.2, 0.3, 0.4], [0.1, 0.1, 0.1, 0.1]]
SURROGATE = [[0.0, 0.2, 0.0, 0.4], [0.6, 0.6, 0.6, 0.6]]
IMAGE = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=torch.float64)
# As a mask [0, 1, 0, 1/2].
CAM = torch.tensor([[[0.0, 2.0], [0.0, 1.0]]], dtype=torch.float64)


def value(kind, *, weights=SURROGATE, **kwargs):
    kwargs = {"logits_fn": lambda logits: logits / 4} | kwargs
    metric = kind(PrecomputedMaps(linear(*MODEL)), surrogate=linear(*weights), **kwargs)
    metric.update(IMAGE, cams=CAM)
    return metric.compute().item()


def test_values_by_hand_with_the_class_of_the_model():
    # Class 0 of the surrogate scores (0.2 * 2 + 0.4 * 4) / 4 = 0.5, and (0.2 * 2 + 0.4 * 2) / 4 = 0.3 masked.
    assert value(AverageDrop) == pytest.approx((0.5 - 0.3) / 0.5)
    assert value(IncreaseInConfidence) == 0
    # The complement keeps [1, 0, 3, 2]: 0.4 * 2 / 4 = 0.2.
    assert value(DropInDeletion) == pytest.approx((0.5 - 0.2) / 0.5)
    # Weights for which the masked image scores more, .25 instead of .1.
    clean, masked = (0.5 + 0.6 - 1.5 + 0.8) / 4, (0.6 + 0.2 * 2) / 4
    assert value(AverageGain, weights=[[0.5, 0.3, -0.5, 0.2], [0.0] * 4]) == pytest.approx(
        (masked - clean) / (1 - clean)
    )


def test_logits_are_those_of_the_surrogate():
    # Hiding one pixel of 2 x 2 cells drops the logit of the surrogate by [0, .4, 0, 1.6], ranks [1.5, 3, 1.5, 4];
    # the map [0, 2, 0, 1] has the ranks [1.5, 4, 1.5, 3]: Spearman's correlation is 3.5 / 4.5.
    protocol = EvaluationProtocol(deletion_grid=2)
    assert value(SingleDeletion, protocol=protocol) == pytest.approx(3.5 / 4.5)
    # For the model, all four ranks of the drops [.1, .4, .9, 1.6] differ.
    metric = SingleDeletion(PrecomputedMaps(linear(*MODEL)), protocol=protocol)
    metric.update(IMAGE, cams=CAM)
    assert metric.compute().item() == pytest.approx(1 / (5 * 4.5) ** 0.5)


def test_the_batch_has_the_scores_of_the_surrogate_and_the_maps_of_the_model(net, images):
    surrogate = small_net(seed=3).float()
    batch = explain(GradCAM(net, "body"), images, surrogate=surrogate)
    plain = explain(GradCAM(net, "body"), images)
    assert torch.equal(batch.maps, plain.maps)
    assert torch.equal(batch.class_idx, net(images).argmax(1))
    assert torch.equal(batch.class_idx, plain.class_idx)
    with torch.no_grad():
        clean, masked = (
            surrogate(given).softmax(1).gather(1, batch.class_idx.unsqueeze(1)).squeeze(1)
            for given in (images, plain.masked_images)
        )
    torch.testing.assert_close(batch.scores, clean)
    torch.testing.assert_close(batch.masked_scores, masked)


def test_the_model_itself_as_surrogate_changes_no_value(net, images):
    sources = {"Grad-CAM": GradCAM(net, "body"), "Layer-CAM": LayerCAM(net, "stem")}
    measures = ["average_drop", "deletion_auc", "single_deletion", "coherency", "class_sensitivity", "road"]
    plain, own = (
        CAMComparison(sources, measures=measures, protocols=("paper", "score_cam"), surrogate=surrogate)
        for surrogate in (None, copy.deepcopy(net))
    )
    for comparison in (plain, own):
        comparison.update(images)
    torch.testing.assert_close(own.compute(), plain.compute(), rtol=0, atol=0, equal_nan=True)


def test_the_surrogate_runs_once_on_the_clean_images_and_on_all_masked_ones(net, images):
    surrogate = small_net(seed=3).float()
    sources = {"Grad-CAM": GradCAM(net, "body"), "Layer-CAM": LayerCAM(net, "stem")}
    comparison = CAMComparison(
        sources, controls=False, protocols=("paper", "score_cam"), surrogate=surrogate, batch_size=12
    )
    with Calls(net) as of_model, Calls(surrogate) as of_surrogate:
        comparison.update(images)
    assert of_model.batches == [6]
    assert of_surrogate.batches == [6, 12, 12]


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_nothing_of_model_and_surrogate_is_changed(context, mode, net, images):
    surrogate = small_net(seed=3).float()
    for one in (net, surrogate):
        one(images).sum().backward()
        one.fc.bias.requires_grad_(False)
        getattr(one, mode)()
        one.stem[0].register_forward_hook(lambda *_: None)
    metric = AverageDrop(GradCAM(net, "body"), surrogate=surrogate)
    before = [traces(one, images) for one in (net, surrogate)]
    torch.manual_seed(5)
    with CONTEXTS[context]():
        metric.update(images)
    drawn = torch.rand(3)
    assert [traces(one, images) for one in (net, surrogate)] == before
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize("shared", ["model", "layers"])
def test_extractors_of_other_libraries_keep_nothing_of_a_surrogate_with_their_layers(shared, net, images):
    extractor, library = torchcam.methods.GradCAM(net, "relu"), pytorch_grad_cam.GradCAM(net, [net.relu])
    surrogate = net if shared == "model" else nn.Sequential(net, nn.Linear(5, 5))
    sources = {"torchcam": extractor, "pytorch-grad-cam": library}
    comparison = CAMComparison(sources, surrogate=surrogate)
    comparison.update(images)
    assert (extractor.hook_a, library.activations_and_grads.activations) == ([None], [])


@pytest.mark.parametrize("fails_at", [1, 2], ids=["clean", "masked"])
def test_after_an_error_of_the_surrogate_all_is_as_before(fails_at, net, images):
    surrogate = Fragile(small_net(seed=3).float()).train()
    metric = AverageDrop(GradCAM(net, "body"), surrogate=surrogate)
    surrogate.fails_at = fails_at
    before = [traces(one, images) for one in (net, surrogate)]
    with pytest.raises(ArithmeticError, match="on purpose"):
        metric.update(images)
    assert [traces(one, images) for one in (net, surrogate)] == before
    assert metric.total == metric.update_count == 0


class Counting(nn.Module):
    """Counts its calls in a buffer, modifies its input, and removes a hook of its own."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images):
        self.calls += 1
        images *= 2
        return self.net(images) * self.calls


def test_each_pass_of_the_surrogate_starts_from_its_own_state(net, images):
    original, surrogate = images.clone(), Counting(small_net(seed=3).float())
    metric = AverageDrop(RandomMap(net), surrogate=surrogate)
    expected = AverageDrop(RandomMap(net), surrogate=nn.Sequential(Doubled(), surrogate.net))
    for one in (metric, expected):
        one.update(images)
    assert surrogate.calls == 0
    assert torch.equal(images, original)
    assert metric.compute() == expected.compute()


class Doubled(nn.Module):
    def forward(self, images):
        return images * 2


REFUSED = {
    "fewer classes": (
        lambda net: small_net(classes=3).float(),
        ValueError,
        "the surrogate scores 3 classes and the model 5; pass a surrogate with the classes of the model",
    ),
    "one class": (
        lambda net: nn.Sequential(net, nn.Linear(5, 1)),
        ValueError,
        "the surrogate scores 2 classes",
    ),
    "no row for each image": (
        lambda net: nn.Sequential(net, nn.Flatten(0)),
        ValueError,
        r"the scores have shape \(30,\) for 6 images",
    ),
    "lazy": (
        lambda net: nn.Sequential(nn.Flatten(), nn.LazyLinear(5)),
        ValueError,
        "the surrogate's '1.weight' is",
    ),
    "another device": (
        lambda net: small_net().float().to("meta"),
        ValueError,
        r"input_tensor is on cpu but the surrogate is on meta; move one of them.*surrogate.to\(device\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_unsuitable_surrogate_is_refused_before_states_change(case, net, images):
    make, error, message = REFUSED[case]
    metric = CAMComparison({"Grad-CAM": GradCAM(net, "body")}, surrogate=make(net))
    with pytest.raises(error, match=message):
        metric.update(images)
    assert metric.count.sum() == metric.update_count == 0


def test_something_else_than_a_module_is_refused(net):
    with pytest.raises(TypeError, match=r"surrogate is 'net'; it must be a torch.nn.Module with the input"):
        AverageDrop(GradCAM(net, "body"), surrogate="net")


def test_images_that_the_surrogate_cannot_score_are_excluded(net, images):
    class NotANumber(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, given):
            scores = self.net(given)
            scores[0] = torch.nan
            return scores

    metric = AverageDrop(GradCAM(net, "body"), surrogate=NotANumber())
    metric.update(images)
    assert (metric.total, metric.nan_count) == (5, 1)


def test_a_surrogate_of_another_precision_gets_images_of_its_own(net, images):
    surrogate = small_net(seed=3)
    assert surrogate.fc.weight.dtype == torch.float64
    values = []
    for one in (surrogate, copy.deepcopy(surrogate).float()):
        metric = AverageDrop(GradCAM(net, "body"), surrogate=one)
        metric.update(images)
        values.append(metric.compute().item())
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_targets_are_scored_by_the_surrogate(net, images):
    def target(scores):
        return scores[2]

    surrogate = small_net(seed=3).float()
    metric, expected = (AverageDrop(GradCAM(net, "body"), surrogate=surrogate) for _ in range(2))
    metric.update(images, targets=target)
    expected.update(images, 2)
    assert metric.compute().item() == pytest.approx(expected.compute().item(), rel=1e-6)


# The surrogate and scorers


def test_a_scorer_runs_in_place_of_the_surrogate_and_is_compared_with_it(net, images):
    surrogate = small_net(seed=3).float()
    metric, plain = (
        AverageDrop(GradCAM(net, "body"), surrogate=surrogate, scorer=scorer)
        for scorer in (copy.deepcopy(surrogate), None)
    )
    metric.update(images)
    plain.update(images)
    assert metric.compute().item() == pytest.approx(plain.compute().item(), rel=1e-6)
    other = AverageDrop(GradCAM(net, "body"), surrogate=surrogate, scorer=copy.deepcopy(net))
    with pytest.raises(
        ValueError, match=r"scorer and surrogate disagree.*make the scorer from the surrogate as"
    ):
        other.update(images)


def test_compile_makes_a_compiled_copy_of_the_surrogate(net, images):
    surrogate = small_net(seed=3).float()
    metric, plain = (
        AverageDrop(GradCAM(net, "body"), surrogate=surrogate, scorer=scorer) for scorer in ("compile", None)
    )
    with Calls(net) as of_model:
        metric.update(images)
    plain.update(images)
    assert of_model.batches == [6]
    assert existing_copy(net) is None
    assert existing_copy(surrogate) is not None
    assert metric.compilation.failure is None
    assert metric.compute().item() == pytest.approx(plain.compute().item(), rel=1e-4)


def test_a_surrogate_that_depends_on_chance_is_reported(net, images):
    class Noisy(nn.Module):
        def forward(self, given):
            return net(given) + torch.randn(len(given), 5)

    comparison = CAMComparison(
        {"Grad-CAM": GradCAM(net, "body")}, surrogate=Noisy(), validate_args="determinism"
    )
    with pytest.warns(UserWarning, match="The surrogate is not deterministic: scored twice"):
        comparison.update(images)


# Which metrics belong together


def test_metrics_with_other_surrogates_are_not_in_one_compute_group(net, images):
    first, second, source = small_net(seed=3).float(), small_net(seed=4).float(), GradCAM(net, "body")
    metrics = {
        "model": AverageDrop(source),
        "first": AverageDrop(source, surrogate=first),
        "first gain": AverageGain(source, surrogate=first),
        "second": AverageDrop(source, surrogate=second),
    }
    collection = MetricCollection(metrics)
    collection.update(images)
    groups = {frozenset(names) for names in collection.compute_groups.values()}
    assert groups == {frozenset({"model"}), frozenset({"first", "first gain"}), frozenset({"second"})}


def test_metrics_with_other_surrogates_cannot_be_merged(net, images):
    source, surrogate = GradCAM(net, "body"), small_net(seed=3).float()
    metric = AverageDrop(source, surrogate=surrogate)
    metric.update(images)
    for other, theirs in (
        (None, "None"),
        (small_net(seed=4).float(), "SmallNet with the weights [0-9a-f]{8}"),
    ):
        with pytest.raises(
            ValueError, match=f"surrogate={theirs} cannot be merged into one with surrogate=SmallN"
        ):
            metric.merge_state(AverageDrop(source, surrogate=other))
    # A shard that was computed in another process has a copy of the surrogate.
    shard = pickle.loads(pickle.dumps(metric))
    metric.merge_state(shard)
    assert metric.total == 12


def test_a_copy_of_the_module_that_holds_all_scores_with_the_copied_surrogate(net, images):
    holder = nn.ModuleDict({"net": net, "surrogate": small_net(seed=3).float()})
    holder["metric"] = AverageDrop(GradCAM(net, "body"), surrogate=holder["surrogate"])
    copied = copy.deepcopy(holder)
    assert copied["metric"].surrogate is copied["surrogate"]
    assert holder["metric"].clone().surrogate is holder["surrogate"]
    assert set(holder["metric"].state_dict()) == set()
    copied["metric"].update(images)


@pytest.mark.parametrize("held", ["net", "surrogate", "both", "neither"])
def test_a_copied_scorer_belongs_to_the_copied_surrogate(held, net, images):
    surrogate = small_net(seed=3).float()
    networks = {"net": {"net": net}, "surrogate": {"surrogate": surrogate}}
    networks |= {"both": networks["net"] | networks["surrogate"], "neither": {}}
    holder = nn.ModuleDict(networks[held])
    holder["metric"] = metric = AverageDrop(
        GradCAM(net, "body"), surrogate=surrogate, scorer=Scoring(surrogate)
    )
    copied = copy.deepcopy(holder)
    scored = copied["metric"]
    assert scored.surrogate is (copied["surrogate"] if "surrogate" in holder else surrogate)
    assert scored._pipeline.scorer.network is scored.surrogate
    assert (scored._pipeline.scorer is metric._pipeline.scorer) == ("surrogate" not in holder)
    assert scored._pipeline.model is (copied["net"] if "net" in holder else net)
    with torch.no_grad():
        scored.surrogate.fc.weight.mul_(2)
    # A scorer of other weights would be refused.
    scored.update(images)


class Scoring:
    """A scorer that is no module, and runs a network."""

    def __init__(self, network):
        self.network = network

    def __call__(self, images):
        return self.network(images)


# Where it is named


def test_repr_table_and_json_name_it(net, images):
    surrogate = small_net(seed=3).float()
    assert repr(AverageDrop(GradCAM(net, "body"), surrogate=surrogate)).endswith(
        "protocol='paper', surrogate=SmallNet)"
    )
    comparison = CAMComparison({"Grad-CAM": GradCAM(net, "body")}, surrogate=surrogate)
    assert repr(comparison).endswith("protocol='paper', surrogate=SmallNet)")
    comparison.update(images)
    table = comparison.table()
    assert json.loads(table.to_json())["surrogate"] == "SmallNet"
    (caption,) = [line for line in str(table).splitlines() if line.startswith("Protocol paper")]
    assert caption.endswith(", surrogate=SmallNet")
    plain = CAMComparison({"Grad-CAM": GradCAM(net, "body")})
    plain.update(images)
    assert json.loads(plain.table().to_json())["surrogate"] is None
    assert "surrogate" not in str(plain.table()) + repr(plain)


def test_evaluate_moves_and_restores_the_surrogate(net, images):
    surrogate = small_net(seed=3).float().train()
    metric, expected = (AverageDrop(GradCAM(net, "body"), surrogate=surrogate) for _ in range(2))
    before = traces(surrogate, images)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "precision": "64-true"}
    value = evaluate(metric, TensorDataset(images), batch_size=4, **quiet)
    expected.update(images)
    assert float(value) == pytest.approx(expected.compute().item(), rel=1e-4)
    assert traces(surrogate, images) == before
    assert surrogate.fc.weight.dtype == torch.float32


@pytest.mark.parametrize("protocol", ["paper", EvaluationProtocol(removal_limit=0.1, removal_samples=2)])
def test_neither_a_surrogate_nor_a_random_removal_waits_for_the_device(protocol, net, images):
    surrogate, counts = small_net(seed=3).float(), []
    settings = [{}, {"surrogate": surrogate, "protocol": protocol}]
    for setting in settings:
        metric = AverageDrop(GradCAM(net, "body"), validate_args=False, **setting)
        metric.update(images)
        with HostSyncs() as syncs:
            metric.update(images)
        counts.append((syncs.seen, syncs.copies))
    assert counts[1] == counts[0]
