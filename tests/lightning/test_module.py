"""Metrics in a LightningModule, run by the Trainer."""

import copy
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from digits import Digits, MeasuredDigits, by_hand, network, source, trainer, training, validation
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from processes import START_METHOD
from torch import Tensor
from torchcam import methods
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from torchmetrics_cam import AverageDrop, AverageGain, IncreaseInConfidence
from torchmetrics_cam.cams import GradCAM, RandomMap
from torchmetrics_cam.lightning import CAMEvaluation

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches.*is smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def test_fit_logs_the_value_of_a_plain_loop_over_the_validation_set(tmp_path):
    """The value is that of the last epoch, without the sanity check and the epoch before."""
    module = MeasuredDigits()
    fit = trainer(tmp_path)
    fit.fit(module, training(), validation())
    assert fit.callback_metrics["val_drop"].item() == pytest.approx(by_hand(module.model), rel=1e-5)
    assert module.training


@pytest.mark.parametrize("entry", ["validate", "test"])
def test_validate_and_test_give_the_same_in_inference_mode(tmp_path, entry):
    module, seen = MeasuredDigits(), []
    module.model[0].register_forward_hook(lambda *_: seen.append(torch.is_inference_mode_enabled()))
    expected = by_hand(module.model)
    seen.clear()
    (values,) = getattr(trainer(tmp_path), entry)(module, validation(), verbose=False)
    assert values["val_drop"] == pytest.approx(expected, rel=1e-5)
    # The forward pass of the step is in inference mode, and the two of the metric are not.
    assert seen[:3] == [True, False, True]


@pytest.mark.parametrize("precision", ["32", "64-true", "bf16-mixed", "bf16-true"])
def test_every_precision_trains_and_validates(tmp_path, precision):
    module = MeasuredDigits()
    fit = trainer(tmp_path, precision=precision)
    fit.fit(module, training(), validation())
    assert (module.average_drop.drop.dtype, module.average_drop.total.dtype) == (torch.float64, torch.int64)
    value = fit.callback_metrics["val_drop"].item()
    dtype = {"64-true": torch.float64, "bf16-true": torch.bfloat16}.get(precision, torch.float32)
    assert module.model[0].weight.dtype == dtype
    # bfloat16 has three digits; the reference is computed from the same weights in float64.
    tolerance = 0.05 if "bf16" in precision else 1e-5
    assert value == pytest.approx(by_hand(copy.deepcopy(module.model).double()), rel=tolerance)


class MeasuredWithACollection(Digits):
    def __init__(self):
        super().__init__()
        own = GradCAM(self.model, "3")
        self.metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(10, average="micro"),
                "drop": AverageDrop(own),
                "increase": IncreaseInConfidence(own),
                "gain": AverageGain(own),
            },
            prefix="val_",
        )

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.metrics.update(preds=self.model(images), target=labels, input_tensor=images, class_idx=labels)
        self.log_dict(self.metrics)


def test_a_collection_is_logged_beside_accuracy(tmp_path):
    module = MeasuredWithACollection()
    fit = trainer(tmp_path)
    fit.fit(module, training(), validation())
    values = fit.callback_metrics
    assert {"val_accuracy", "val_drop", "val_increase", "val_gain"} <= set(values)
    assert values["val_drop"].item() == pytest.approx(by_hand(module.model), rel=1e-5)
    assert values["val_accuracy"] > 0.5
    assert len(module.metrics.compute_groups) == 2


def test_a_monitored_value_selects_the_checkpoint_which_holds_only_the_network(tmp_path):
    best = ModelCheckpoint(dirpath=tmp_path, monitor="val_drop", mode="min")
    module = MeasuredDigits()
    fit = trainer(tmp_path, callbacks=[best], max_epochs=3)
    fit.fit(module, training(), validation())
    loaded = MeasuredDigits.load_from_checkpoint(best.best_model_path)
    assert best.best_model_score.item() == pytest.approx(by_hand(loaded.model.eval()), rel=1e-5)
    assert loaded.average_drop.source.model is loaded.model
    assert {name.split(".")[0] for name in loaded.state_dict()} == {"model"}


@pytest.mark.filterwarnings("ignore:.*self.log.*barebones")
def test_barebones(tmp_path):
    module = MeasuredDigits()
    pl.Trainer(accelerator="cpu", max_epochs=1, barebones=True).fit(module, training(), validation())
    assert module.average_drop.total == 70
    assert module.average_drop.compute().item() == pytest.approx(by_hand(module.model), rel=1e-5)


def test_stochastic_weight_averaging_copies_the_module_with_its_metric(tmp_path):
    module = MeasuredDigits()
    averaging = StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1)
    fit = trainer(tmp_path, callbacks=[averaging], max_epochs=3)
    fit.fit(module, training(), validation())
    assert fit.validate(module, validation(), verbose=False)[0]["val_drop"] == pytest.approx(
        by_hand(module.model), rel=1e-5
    )


def test_averaged_weights_are_evaluated_while_they_are_in_place(tmp_path):
    trained, measured = [], []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            trained.append(pl_module.model[0].weight.clone())

        def on_validation_epoch_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                assert not torch.equal(pl_module.model[0].weight, trained[-1])
                measured.append((pl_module.average_drop.compute(), by_hand(copy.deepcopy(pl_module.model))))

    # Watch comes first, because the averaging restores the trained weights at the end of a validation.
    fit = trainer(tmp_path, callbacks=[Watch(), EMAWeightAveraging(decay=0.5)])
    fit.fit(MeasuredDigits(), training(), validation())
    assert len(measured) == 2
    for value, expected in measured:
        assert value.item() == pytest.approx(expected, rel=1e-5)


class Compiled(MeasuredDigits):
    """Module with a compiled network, on which the metric is made."""

    def __init__(self):
        super().__init__()
        self.model = torch.compile(network(), backend="aot_eager")
        self.average_drop = AverageDrop(GradCAM(self.model, "3"))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler's own
@pytest.mark.filterwarnings("ignore:Graph break due to unsupported builtin")  # that of torch 2.6
@pytest.mark.parametrize("whole", [False, True], ids=["a compiled network", "a compiled module"])
def test_compiled_models(tmp_path, whole):
    module = torch.compile(MeasuredDigits(), backend="aot_eager") if whole else Compiled()
    fit = trainer(tmp_path)
    fit.fit(module, training(), validation())
    plain = network()
    plain.load_state_dict(
        {name.removeprefix("_orig_mod."): value for name, value in module.model.state_dict().items()}
    )
    assert fit.callback_metrics["val_drop"].item() == pytest.approx(by_hand(plain.eval()), rel=1e-5)


def trajectory(module, folder, callbacks=()):
    """Return losses and weights of a training with validations between two accumulated gradients."""
    pl.seed_everything(1, verbose=False)
    fit = trainer(folder, accumulate_grad_batches=3, val_check_interval=2, callbacks=list(callbacks))
    fit.fit(module, training(), validation())
    return module.losses, module.state_dict()


WITH = {
    "own CAM": lambda: (MeasuredDigits(), ()),
    "torchcam": lambda: (MeasuredDigits(lambda model: methods.GradCAM(model, "3")), ()),
    "Score-CAM": lambda: (MeasuredDigits(lambda model: methods.ScoreCAM(model, "3", batch_size=16)), ()),
    "random control": lambda: (MeasuredDigits(RandomMap), ()),
    "callback": lambda: (
        Digits(),
        [
            CAMEvaluation(
                lambda module: {
                    "Grad-CAM": source(module.model),
                    "torchcam": methods.GradCAM(module.model, "3"),
                }
            )
        ],
    ),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trajectory(Digits(), tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("name", WITH)
def test_training_is_bit_identical_with_and_without_the_metric(tmp_path, alone, name):
    module, callbacks = WITH[name]()
    losses, weights = trajectory(module, tmp_path, callbacks)
    assert len(losses) == 16
    assert losses == alone[0]
    assert set(weights) == set(alone[1])
    assert all(torch.equal(weights[key], value) for key, value in alone[1].items())


def test_a_difference_in_the_training_is_noticed(tmp_path, alone):
    class Disturbed(MeasuredDigits):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.model[1].running_mean += 1e-6

    _, weights = trajectory(Disturbed(), tmp_path)
    assert not all(torch.equal(weights[key], value) for key, value in alone[1].items())


# Several processes

SCRIPT = """
import sys
sys.path[:0] = [{tests!r}, {tests!r} + "/lightning"]
import torch
torch.set_num_threads(1)
from test_module import fit_in_two_processes

if __name__ == "__main__":
    found = fit_in_two_processes({folder!r}, "popen")
    if torch.distributed.get_rank() == 0:
        torch.save(found, {folder!r} + "/outcome")
"""


def fit_in_two_processes(folder: str, start_method: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logged value and the weights."""
    strategy = DDPStrategy(start_method=start_method, timeout=timedelta(seconds=60))
    module = MeasuredDigits()
    many = trainer(folder, devices=2, strategy=strategy, max_epochs=1)
    many.fit(module, training(), validation())
    return many.callback_metrics["val_drop"], module.state_dict()


def check_against_one_process(value: Tensor, weights: dict[str, Tensor]) -> None:
    module = Digits()
    module.load_state_dict(weights)
    assert value.item() == pytest.approx(by_hand(module.model.eval()), rel=1e-5)


def test_validation_in_two_processes_of_ddp(tmp_path):
    """The Trainer gives each rank 35 of the 70 images."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path)))
    subprocess.run([sys.executable, script], check=True, timeout=180, capture_output=True)
    check_against_one_process(*torch.load(tmp_path / "outcome"))


def test_validation_in_two_processes_that_the_trainer_forks(tmp_path):
    check_against_one_process(*fit_in_two_processes(str(tmp_path), START_METHOD))
