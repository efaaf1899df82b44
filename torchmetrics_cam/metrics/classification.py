"""ClassificationMetric: torchcam's class, as a metric that adds up over batches and devices."""

from typing import Any, ClassVar

from torch import Tensor

from torchmetrics_cam.metrics.confidence import ConfidenceMetric


class ClassificationMetric(ConfidenceMetric):
    """Average Drop and Increase in Confidence as ``torchcam.metrics.ClassificationMetric`` computes them.

    It differs from `AverageDrop` in one way that changes the ranking of methods: gradient CAMs are taken
    through ``logits_fn``. With a softmax that is another map than the one torchcam draws, and than the one in
    the papers. For their numbers use `AverageDrop`, or ``protocol="paper"`` here.

    As input to ``forward`` and ``update`` the metric accepts images ``(N, C, *spatial)``, and a class as an
    int, a list or a LongTensor ``(N,)``.

    As output of ``forward`` and ``compute`` the metric returns ``{"avg_drop": ..., "conf_increase": ...}``,
    scalar tensors, NaN if no image was counted.

    Args, Raises: those of `AverageDrop`; ``protocol`` is ``"torchcam"`` by default, and without ``logits_fn``
    the scores are the model's raw output.

    Example:
        >>> from functools import partial
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import ClassificationMetric
        >>> from torchmetrics_cam.cams import UniformMap
        >>> metric = ClassificationMetric(UniformMap(nn.Flatten()), partial(torch.softmax, dim=-1))
        >>> metric.update(torch.rand(2, 1, 4, 4))
        >>> metric.summary()
        {'avg_drop': 0.0, 'conf_increase': 0.0}

    """

    higher_is_better: bool | None = None
    default_protocol: ClassVar[str] = "torchcam"

    def compute(self) -> dict[str, Tensor]:
        """Average Drop and Increase in Confidence over all images."""
        return {"avg_drop": self._mean("drop"), "conf_increase": self._mean("increase")}

    def summary(self) -> dict[str, Any]:
        """What `compute` gives, as floats; as lists with ``average="none"``.

        Raises:
            AssertionError: if no image was counted yet.
        """
        if not self.total.any():
            raise AssertionError("you need to update the metric before getting the summary")
        return {name: value.tolist() for name, value in self.compute().items()}
