"""Parameter randomization: only maps that depend on the network change, and the network never does."""

import numpy as np
import pytest
import quantus
import torch
import torchcam.methods
from conftest import small_net
from restoration import traces
from scipy import stats
from skimage.metrics import structural_similarity
from torch import nn

from torchmetrics_cam import explain, parameter_randomization
from torchmetrics_cam.cams import EdgeMap, GradCAM, LayerCAM, UniformMap
from torchmetrics_cam.functional import histogram_entropy
from torchmetrics_cam.functional.maps import min_max, resize_maps

DTYPE = torch.float32  # of the fixtures net and images
IMAGES = (4, 3, 24, 24)  # the shape of the fixture images


def test_layers_are_randomized_from_the_output_on_and_a_cam_changes(net, images):
    net.train()
    before = traces(net, images)
    generator_state = torch.get_rng_state()
    result = parameter_randomization(net, GradCAM(net, "body"), images)
    assert torch.equal(torch.get_rng_state(), generator_state)
    after = traces(net, images)
    for trace in before:
        assert after[trace] == before[trace], trace
    assert result.layers == ("none", "fc", "body", "stem.1", "stem.0")
    assert result.rank_correlation.shape == result.ssim.shape == (5, 4)
    torch.testing.assert_close(result.rank_correlation[0], torch.ones(4))
    torch.testing.assert_close(result.ssim[0], torch.ones(4))
    assert result.rank_correlation[-1].nanmean() < 0.9
    again = parameter_randomization(net, GradCAM(net, "body"), images)
    torch.testing.assert_close(again.ssim, result.ssim, equal_nan=True)
    other = parameter_randomization(net, GradCAM(net, "body"), images, seed=1)
    assert not torch.allclose(other.ssim, result.ssim, equal_nan=True)


def test_a_map_that_does_not_depend_on_the_network_stays(net, images):
    result = parameter_randomization(net, EdgeMap(net), images)
    torch.testing.assert_close(result.rank_correlation, torch.ones(5, 4))
    torch.testing.assert_close(result.ssim, torch.ones(5, 4))


def test_similarities_equal_scipy_and_scikit_image(net, images):
    result = parameter_randomization(net, LayerCAM(net, "body"), images, class_idx=2)
    first = explain(LayerCAM(net, "body"), images, class_idx=2).maps
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net.fc.reset_parameters()
    second = explain(LayerCAM(net, "body"), images, class_idx=2).maps
    pairs = [min_max(resize_maps(maps, (24, 24))).numpy() for maps in (first, second)]
    for index, (one, other) in enumerate(zip(*pairs, strict=True)):
        expected = stats.spearmanr(one.ravel(), other.ravel()).statistic
        assert result.rank_correlation[1, index].item() == pytest.approx(expected, abs=1e-6)
        # torchmetrics averages over the whole image, scikit-image's own mean leaves out a border.
        _, similarity_map = structural_similarity(
            one, other, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
        )
        assert result.ssim[1, index].item() == pytest.approx(similarity_map.mean(), abs=5e-3)


def test_sources_of_other_libraries_are_created_on_the_copy(net, images):
    result = parameter_randomization(net, lambda model: torchcam.methods.GradCAM(model, "relu"), images)
    ours = parameter_randomization(net, GradCAM(net, "relu"), images)
    torch.testing.assert_close(
        result.rank_correlation, ours.rank_correlation, rtol=1e-3, atol=1e-3, equal_nan=True
    )
    assert not net.relu._forward_hooks


def test_signals_have_a_rank_correlation_but_no_ssim(images):
    net = small_net(dims=1).float()
    result = parameter_randomization(net, GradCAM(net, "body"), images[:, :, 0])
    assert result.ssim.isnan().all()
    assert result.rank_correlation[0].nanmean().item() == pytest.approx(1)


def test_plot_and_messages(net, images):
    result = parameter_randomization(net, GradCAM(net, "body"), images)
    figure, axis = result.plot()
    assert [label.get_text() for label in axis.get_xticklabels()] == list(result.layers)
    assert result.plot(axis)[0] is figure
    with pytest.raises(ValueError, match="explains another model than the one that is given"):
        parameter_randomization(small_net().float(), GradCAM(net, "body"), images)
    with pytest.raises(ValueError, match="no layer of Flatten has a method reset_parameters"):
        parameter_randomization(flat := nn.Flatten(), EdgeMap(flat), images)
    with pytest.raises(TypeError, match="gives no maps"):
        parameter_randomization(net, "layer4", images)


def test_entropy_equals_that_of_quantus_for_the_maps_that_it_explains(net, images):
    """Quantus randomizes with other weights, so its score is compared on the maps of its own networks."""
    made = []

    def grad_cam(model, inputs, targets, **_):
        batch = explain(GradCAM(model, "body"), torch.tensor(inputs), torch.tensor(targets))
        made.append(batch.masks)
        return batch.masks[:, None].numpy()

    metric = quantus.EfficientMPRT(layer_order="top_down", disable_warnings=True)
    call = {"x_batch": images.numpy(), "y_batch": np.array([1, 2, 3, 4]), "explain_func": grad_cam}
    theirs = metric(model=net, **call, a_batch=None, device="cpu", batch_size=4)
    entropies = [histogram_entropy(maps.double(), reduction="none") for maps in (made[0], made[-1])]
    assert not torch.equal(made[0], made[-1])
    np.testing.assert_allclose((entropies[1] - entropies[0]) / entropies[0], theirs, rtol=1e-10)


def test_entropy_and_its_rise(net, images):
    result = parameter_randomization(net, LayerCAM(net, "body"), images, class_idx=2)
    assert result.entropy.shape == (5, 4)
    masks = explain(LayerCAM(net, "body"), images, class_idx=2).masks.numpy()
    for index, mask in enumerate(masks):
        shares = np.histogram(mask.astype(float), bins=100)[0] / mask.size
        assert result.entropy[0, index].item() == pytest.approx(stats.entropy(shares), rel=1e-6)
    assert torch.equal(result.entropy_rise, result.entropy[-1] / result.entropy[0] - 1)
    assert result.entropy_rise.abs().min() > 1e-4
    edges = parameter_randomization(net, EdgeMap(net), images)
    assert edges.entropy_rise.tolist() == [0] * 4
    assert (edges.entropy > 1).all()


def test_a_constant_map_has_an_entropy_of_0_and_no_rise(net, images):
    result = parameter_randomization(net, UniformMap(net), images)
    assert (result.entropy == 0).all()
    assert result.entropy_rise.isnan().all()
    assert result.rank_correlation.isnan().all()


@pytest.mark.parametrize(("side", "has_ssim"), [(5, False), (6, True)])
def test_images_below_the_window_of_ssim_have_none(side, has_ssim):
    net = small_net().float()
    result = parameter_randomization(net, EdgeMap(net), torch.rand(2, 3, side, 9))
    assert result.ssim.shape == result.entropy.shape == (5, 2)
    assert result.ssim.isfinite().all() if has_ssim else result.ssim.isnan().all()
    assert result.rank_correlation.isfinite().all()
