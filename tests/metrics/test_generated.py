"""One thousand generated cases: what holds whatever the images, maps, protocol and shapes are."""

from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics import MetricCollection

from torchmetrics_cam import AverageDrop, AverageGain, EvaluationProtocol, IncreaseInConfidence
from torchmetrics_cam.baselines import GaussianBlur
from torchmetrics_cam.cams import PrecomputedMaps, UniformMap

MEASURES = (AverageDrop, IncreaseInConfidence, AverageGain)
TWO_HUNDRED = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


class TinyNet(nn.Module):
    """Two layers, because most of the time goes into modules. No map is made of it here."""

    def __init__(self, dims: int, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims](channels, 6, 3, padding=1)
        self.fc = nn.Linear(6, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).relu().flatten(2).mean(-1))


@cache
def model_of(dims: int, channels: int, classes: int) -> TinyNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = TinyNet(dims, channels, classes)
        for parameter in net.parameters():
            # Large enough that the scores of masked images differ clearly.
            nn.init.normal_(parameter, std=0.7)
    return net.double().eval()


@st.composite
def protocols(draw, **fixed):
    channels = draw(st.integers(1, 4)) if "channels" not in fixed else fixed.pop("channels")
    number = st.floats(-2, 2)
    chosen = {
        "cam_of": draw(st.sampled_from(["logit", "scores"])),
        "rectify": draw(st.sampled_from(["relu", "abs", "source"])),
        "normalize": draw(st.sampled_from(["before_resize", "after_resize", "before_and_after_resize"])),
        "normalize_eps": draw(st.sampled_from([0.0, 1e-8, 0.1])),
        "mask": draw(st.sampled_from(["soft", "top", "threshold"])),
        "mask_fraction": draw(st.floats(0.01, 1)),
        "mask_threshold": draw(st.floats(0.01, 1)),
        "baseline": draw(
            st.one_of(
                number,
                st.tuples(*[number] * channels),
                st.sampled_from(
                    ["mean", "blur", GaussianBlur(3, 1.0), torch.zeros_like, lambda x: x.flip(-1)]
                ),
            )
        ),
        "drop": draw(st.sampled_from(["relative", "absolute"])),
        "drop_eps": draw(st.sampled_from([0.0, 1e-7])),
        "gain_eps": draw(st.sampled_from([0.0, 1e-8])),
    }
    return EvaluationProtocol(**(chosen | fixed))


@st.composite
def cases(draw, **fixed):
    """A model, images, maps and a protocol."""
    dims, channels, count = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    size = draw(st.lists(st.integers(1, 7), min_size=dims, max_size=dims))
    map_size = draw(st.one_of(st.just(size), st.lists(st.integers(1, 9), min_size=dims, max_size=dims)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    images = torch.randn(count, channels, *size, generator=generator, dtype=torch.float64)
    kind = draw(st.sampled_from(["any", "constant", "small", "steps"]))
    maps = torch.randn(count, *map_size, generator=generator, dtype=torch.float64)
    if kind == "constant":
        maps[draw(st.integers(0, count - 1))] = draw(st.sampled_from([-1.0, 0.0, 0.7]))
    elif kind == "small":
        maps *= 1e-12
    elif kind == "steps":
        # Few values, so many ties; exact in binary.
        maps = (maps * 2).round() / 4
    protocol = draw(protocols(channels=channels, **fixed))
    return model_of(dims, channels, draw(st.integers(2, 5))), images, maps, protocol


def metrics_of(source, protocol, **settings):
    """The three metrics, of which one does the work for all."""
    return MetricCollection(
        [measure(source, protocol=protocol, **settings) for measure in MEASURES],
        compute_groups=[[measure.__name__ for measure in MEASURES]],
    )


def values_of(metrics, images, maps):
    metrics.reset()
    metrics.update(input_tensor=images, cams=maps)
    assert next(iter(metrics.values(copy_state=False))).total == len(images)
    values = metrics.compute()
    return [values[measure.__name__].item() for measure in MEASURES]


def values(model, images, maps, protocol, source=PrecomputedMaps, **settings):
    return values_of(metrics_of(source(model), protocol, **settings), images, maps)


@TWO_HUNDRED
@given(cases())
def test_values_stay_within_their_range(case):
    for value in values(*case):
        assert 0 <= value <= 1


@TWO_HUNDRED
@given(cases())
def test_a_map_of_ones_changes_nothing(case):
    model, images, maps, protocol = case
    assert values(model, images, None, protocol, UniformMap) == [0, 0, 0]
    ones = torch.ones_like(maps)
    assert values(model, images, ones, protocol.replace(normalize="none")) == pytest.approx(
        [0, 0, 0], abs=1e-9
    )


@TWO_HUNDRED
@given(cases(), st.randoms(use_true_random=False))
def test_the_order_and_the_chunks_of_a_batch_do_not_matter(case, random):
    """Neither to the drop nor to the gain; a score that does not change may by its last digit."""
    model, images, maps, protocol = case
    order = random.sample(range(len(images)), len(images))
    shuffled = values(model, images[order], maps[order], protocol, batch_size=random.randint(1, 3))
    expected = values(model, images, maps, protocol)
    assert shuffled[::2] == pytest.approx(expected[::2], abs=1e-9)


@TWO_HUNDRED
@given(cases(normalize_eps=0.0), st.integers(-20, 20))
def test_a_factor_on_a_map_is_taken_away_by_its_normalization(case, exponent):
    model, images, maps, protocol = case
    metrics = metrics_of(PrecomputedMaps(model), protocol)
    scaled = values_of(metrics, images, maps * 2.0**exponent)
    assert scaled == pytest.approx(values_of(metrics, images, maps), abs=1e-9)


@TWO_HUNDRED
@given(cases(normalize_eps=0.0, rectify="source", mask="soft"), st.sampled_from([-3.0, -0.5, 0.25, 8.0]))
def test_a_constant_on_a_map_is_taken_away_by_its_normalization(case, constant):
    model, images, maps, protocol = case
    if maps.abs().max() < 1e-6:
        maps = maps * 1e12  # what is smaller than the last digit of the constant cannot be told
    metrics = metrics_of(PrecomputedMaps(model), protocol)
    shifted = values_of(metrics, images, maps + constant)
    assert shifted == pytest.approx(values_of(metrics, images, maps), abs=1e-6)
