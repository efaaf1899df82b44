"""Lightning: a callback for training, and an evaluation over many devices in which each image counts once."""

try:
    import lightning.pytorch  # noqa: F401 (found out here, so that the message can say what to do)
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'torchmetrics_cam.lightning needs Lightning: pip install "torchmetrics-cam[lightning]"',
        name="lightning",
    ) from error

from torchmetrics_cam.lightning.callback import CAMEvaluation
from torchmetrics_cam.lightning.evaluate import evaluate

__all__ = ["CAMEvaluation", "evaluate"]
