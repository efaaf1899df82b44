"""Lightning: callbacks for training, and evaluation on many devices with each image exactly once."""

try:
    import lightning.pytorch  # noqa: F401 (a missing package is reported here, with its pip line)
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'torchmetrics_cam.lightning needs Lightning: pip install "torchmetrics-cam[lightning]"',
        name="lightning",
    ) from error

from torchmetrics_cam.lightning.callback import CAMEvaluation
from torchmetrics_cam.lightning.evaluate import evaluate
from torchmetrics_cam.lightning.masking import RandomMaskingCallback

__all__ = ["CAMEvaluation", "RandomMaskingCallback", "evaluate"]
