"""CAMEvaluation in real trainings: its values, its logs and figures, and its effects on the module."""

import csv
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from digits import Digits, MeasuredDigits, by_hand, data, network, source, trainer, training, validation
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from matplotlib.image import imread
from monai.data import MetaTensor
from pytorch_grad_cam import EigenCAM
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchcam import methods

from torchmetrics_cam import AverageDrop, explain
from torchmetrics_cam.cams import GradCAM, LayerCAM, UniformMap
from torchmetrics_cam.functional import average_drop
from torchmetrics_cam.lightning import CAMEvaluation
from torchmetrics_cam.lightning.data import images_of, update_arguments
from torchmetrics_cam.report.gallery import worst_explained

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches.*is smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
DROP = "cam/Grad-CAM/average_drop"


def grad_cam(module: pl.LightningModule) -> dict:
    return {"Grad-CAM": source(module.model)}


def two(module: pl.LightningModule) -> dict:
    return grad_cam(module) | {"Layer-CAM": LayerCAM(module.model, "3")}


def fitted(folder, callback, **settings):
    module = Digits()
    fit = trainer(folder, callbacks=[callback, *settings.pop("callbacks", [])], **settings)
    fit.fit(module, training(), settings.pop("val_dataloaders", validation()))
    return fit, module


def pictures(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*.png"))


# Values


def test_values_equal_those_of_a_plain_loop_and_are_in_callback_metrics(tmp_path):
    fit, module = fitted(tmp_path, CAMEvaluation(two, max_batches=None))
    names = {
        f"cam/{method}/{measure}"
        for method in ("Grad-CAM", "Layer-CAM")
        for measure in ("average_drop", "increase_in_confidence", "average_gain")
    }
    assert set(fit.callback_metrics) == names | {"val_loss"}
    expected = by_hand(module.model, explain_labels=False)
    assert fit.callback_metrics[DROP].item() == pytest.approx(expected, rel=1e-5)
    (values,) = fit.validate(module, validation(), verbose=False)
    assert values[DROP] == pytest.approx(expected, rel=1e-5)


def test_only_max_batches_are_evaluated_and_inputs_can_pass_the_labels(tmp_path):
    seen = []
    callback = CAMEvaluation(
        grad_cam,
        max_batches=2,
        inputs=lambda batch: {"input_tensor": batch[0], "class_idx": batch[1]},
    )

    class Watch(pl.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            (comparison,) = callback._comparisons
            expected = AverageDrop(source(pl_module.model))
            for images, labels in list(validation())[:2]:
                expected.update(images, class_idx=labels)
            value = comparison.compute()["Grad-CAM/average_drop"]
            seen.append((int(comparison.count), value, expected.compute()))

    fitted(tmp_path, callback, callbacks=[Watch()], num_sanity_val_steps=0)
    assert [total for total, _, _ in seen] == [32, 32]
    for _, value, expected in seen:
        assert value.item() == pytest.approx(expected.item(), rel=1e-9)


def test_the_last_value_stays_logged_between_two_evaluated_epochs(tmp_path):
    logged = []

    class Watch(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                logged.append(trainer.callback_metrics[DROP].item())

    best = ModelCheckpoint(dirpath=tmp_path, monitor=DROP, save_top_k=-1, filename="{epoch}")
    stopping = EarlyStopping(monitor=DROP, patience=10)
    watched = [Watch(), best, stopping]
    fitted(tmp_path, CAMEvaluation(grad_cam, every_n_epochs=2), callbacks=watched, max_epochs=5)
    assert len(logged) == 5
    assert logged[0] == logged[1] != logged[2] == logged[3] != logged[4]
    assert best.best_model_score.item() == min(logged)
    assert stopping.best_score.item() == pytest.approx(min(logged))


def test_dataloader_idx_selects_a_dataloader(tmp_path):
    module = Digits()
    module.validation_step = lambda batch, batch_idx, dataloader_idx=0: None
    other = DataLoader(data(326, 346), batch_size=10)
    callback = CAMEvaluation(grad_cam, dataloader_idx=1)
    both = [validation(), other]
    first, second = trainer(tmp_path, callbacks=[callback]).validate(module, both, verbose=False)
    expected = AverageDrop(source(module.model))
    expected.update(next(iter(DataLoader(data(326, 346), batch_size=20)))[0])
    assert (first | second)[DROP] == pytest.approx(expected.compute().item(), rel=1e-5)


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
def test_the_callback_runs_in_the_precision_of_the_trainer(tmp_path, precision):
    seen = []
    module = Digits()
    module.model[8].register_forward_hook(lambda _m, _a, output: seen.append(output.dtype))
    values = trainer(tmp_path, callbacks=[CAMEvaluation(grad_cam)], precision=precision).validate(
        module, validation(), verbose=False
    )
    assert set(seen) == {torch.float64 if precision == "64-true" else torch.bfloat16}
    assert 0 < values[0][DROP] < 1


def test_sources_as_a_mapping_and_a_network_outside_of_the_module(tmp_path):
    module, other = Digits(), network(seed=1)
    callback = CAMEvaluation({"Grad-CAM": source(module.model), "teacher": GradCAM(other.eval(), "3")})
    with pytest.warns(UserWarning, match="network of 'teacher' is not part of the LightningModule"):
        (values,) = trainer(tmp_path, callbacks=[callback]).validate(module, validation(), verbose=False)
    assert values[DROP] != values["cam/teacher/average_drop"]


@pytest.mark.filterwarnings("ignore:.*self.log.*barebones")
def test_barebones_and_fast_dev_run_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pl.Trainer(accelerator="cpu", max_epochs=1, barebones=True, callbacks=[CAMEvaluation(grad_cam)]).fit(
        Digits(), training(), validation()
    )
    fitted(tmp_path, CAMEvaluation(grad_cam), fast_dev_run=True)
    assert list(tmp_path.iterdir()) == []


# The figure


def drops(model):
    """Return the drop of each image of the first eight batches, each evaluated alone."""
    found = []
    for images, _ in list(validation())[:8]:
        for image in images:
            metric = AverageDrop(source(model))
            metric.update(image.unsqueeze(0))
            found.append((metric.compute().item(), image))
    return sorted(found, key=lambda pair: pair[0], reverse=True)


def test_the_worst_explained_images_of_all_batches_are_kept(tmp_path):
    callback, kept = CAMEvaluation(grad_cam, num_images=3), []

    class Watch(pl.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            kept.extend(callback._worst)

    module = Digits()
    trainer(tmp_path, callbacks=[Watch(), callback]).validate(module, validation(), verbose=False)
    expected = drops(module.model)[:3]
    assert [one.drop for one in kept] == pytest.approx([drop for drop, _ in expected], rel=1e-4)
    for one, (drop, image) in zip(kept, expected, strict=True):
        assert torch.equal(one.image, image)
        score, masked = torch.tensor([one.score]), torch.tensor(one.masked_scores)
        assert average_drop(score, masked).item() == pytest.approx(drop, rel=1e-4)
        with torch.no_grad():
            again = module.model.eval()(torch.stack([one.image, *one.masked_images])).softmax(1)
        index = int(one.label.removeprefix("class "))
        assert again[:, index].tolist() == pytest.approx([one.score, *one.masked_scores], rel=1e-4)


def test_tensorboard_has_scalars_and_one_figure_for_each_evaluation(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    fit, _ = fitted(tmp_path, CAMEvaluation(two), logger=logger)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir).Reload()
    assert events.Scalars(DROP)[-1].value == pytest.approx(fit.callback_metrics[DROP].item())
    figures = events.Images("cam/worst_explained")
    assert [figure.step for figure in figures] == [8, 16]
    assert figures[0].width > 200
    assert pictures(tmp_path) == []


def test_wandb_has_scalars_and_the_image(tmp_path, monkeypatch):
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    logger = WandbLogger(save_dir=tmp_path, offline=True, project="cam")
    try:
        fit, _ = fitted(tmp_path, CAMEvaluation(two), logger=logger, max_epochs=1)
        summary = dict(logger.experiment.summary)
    finally:
        logger.experiment.finish()
    assert summary[DROP] == pytest.approx(fit.callback_metrics[DROP].item())
    (picture,) = pictures(tmp_path)
    assert "media/images/cam/worst_explained" in picture


def test_csv_has_scalars_and_the_figure_is_a_file_beside_them(tmp_path):
    logger = CSVLogger(tmp_path)
    fit, _ = fitted(tmp_path, CAMEvaluation(two), logger=logger)
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row[DROP]]
    assert float(rows[-1][DROP]) == pytest.approx(fit.callback_metrics[DROP].item())
    folder = Path(logger.log_dir, "cam", "worst_explained")
    assert pictures(folder) == ["epoch=0-step=8.png", "epoch=1-step=16.png"]
    assert imread(folder / "epoch=0-step=8.png").std() > 0.05


class Gallery(Logger):
    """Custom logger that accepts images."""

    name, version = "gallery", 0

    def __init__(self) -> None:
        super().__init__()
        self.pictures = []

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, *_args, **_kwargs):
        pass

    def log_image(self, key, images, step=None):
        self.pictures.append((key, images[0].shape[-1], step))


def test_custom_loggers_with_log_image_get_an_image_and_others_a_file(tmp_path):
    gallery, table = Gallery(), CSVLogger(tmp_path / "table")
    fitted(tmp_path, CAMEvaluation(grad_cam, name="faithful"), logger=[gallery, table], max_epochs=1)
    assert gallery.pictures == [("faithful/worst_explained", 3, 8)]
    assert len(pictures(tmp_path)) == len(pictures(table.log_dir)) == 1


class Comet(Gallery):
    """Logger with the interface of CometLogger."""

    log_image = None

    @property
    def experiment(self):
        return self

    def log_figure(self, figure_name=None, figure=None, overwrite=False, step=None):
        assert figure.axes
        self.pictures.append((figure_name, step))


class MLFlow(Comet):
    """Logger with the interface of MLFlowLogger."""

    run_id = "run"

    def log_figure(self, run_id, figure, artifact_file):
        assert figure.axes
        self.pictures.append((run_id, artifact_file))


def test_loggers_that_accept_figures_get_the_figure(tmp_path):
    comet, mlflow = Comet(), MLFlow()
    fitted(tmp_path, CAMEvaluation(grad_cam), logger=[comet, mlflow], max_epochs=1)
    assert comet.pictures == [("cam/worst_explained", 8)]
    assert mlflow.pictures == [("run", "cam/worst_explained/step=8.png")]
    assert pictures(tmp_path) == []


def test_without_a_logger_the_figure_is_written_to_the_directory(tmp_path):
    fitted(tmp_path, CAMEvaluation(grad_cam), max_epochs=1)
    assert pictures(tmp_path) == ["cam/worst_explained/epoch=0-step=8.png"]
    fitted(tmp_path / "a", CAMEvaluation(grad_cam, directory=tmp_path / "b"), max_epochs=1)
    assert pictures(tmp_path / "a") == []
    assert len(pictures(tmp_path / "b")) == 1
    fitted(tmp_path / "c", CAMEvaluation(grad_cam, num_images=0), max_epochs=1)
    assert pictures(tmp_path / "c") == []


def test_signals_have_values_and_no_figure(tmp_path):
    module = Digits()
    module.model = nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
    images, labels = data(256, 326).tensors
    signals = DataLoader(TensorDataset(images.flatten(2), labels), batch_size=16)
    callback = CAMEvaluation(lambda module: {"Grad-CAM": GradCAM(module.model, "1")})
    (values,) = trainer(tmp_path, callbacks=[callback]).validate(module, signals, verbose=False)
    assert 0 < values[DROP] < 1
    assert pictures(tmp_path) == []


def test_class_names_and_to_colors_are_used(tmp_path):
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    asked, kept = [], []
    callback = CAMEvaluation(
        grad_cam,
        class_names=names,
        to_colors=lambda images: asked.append(images.shape) or images,
        num_images=2,
    )

    class Watch(pl.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            kept.extend(one.label for one in callback._worst)

    trainer(tmp_path, callbacks=[Watch(), callback]).validate(Digits(), validation(), verbose=False)
    assert set(kept) <= set(names)
    assert asked == [(2, 1, 8, 8), (2, 1, 8, 8)]


# Effects on the network


def hooks(model):
    return [dict(module._forward_hooks) | dict(module._forward_pre_hooks) for module in model.modules()]


@pytest.mark.parametrize(
    "failure", [None, ArithmeticError, KeyboardInterrupt], ids=["end", "error", "interrupt"]
)
def test_no_hook_is_left_on_the_network(tmp_path, failure):
    class Failing(Digits):
        def training_step(self, batch, batch_idx):
            if failure is not None and self.current_epoch == 1:
                raise failure
            return super().training_step(batch, batch_idx)

    module = Failing()
    before = hooks(module.model)
    callback = CAMEvaluation(lambda module: {"torchcam": methods.GradCAM(module.model, "3")})
    fit = trainer(tmp_path, callbacks=[callback], max_epochs=3)
    if failure is None:
        fit.fit(module, training(), validation())
    else:
        # Lightning ends the process on an interrupt.
        with pytest.raises(SystemExit if failure is KeyboardInterrupt else failure):
            fit.fit(module, training(), validation())
    assert "cam/torchcam/average_drop" in fit.callback_metrics
    assert hooks(module.model) == before
    assert (callback._comparisons, callback._worst) == ([], [])


def test_extractors_that_the_user_made_keep_their_hooks(tmp_path):
    module = Digits()
    with methods.GradCAM(module.model, "3") as extractor:
        before = hooks(module.model)
        callback = CAMEvaluation({"torchcam": extractor})
        trainer(tmp_path, callbacks=[callback]).validate(module, validation(), verbose=False)
        assert hooks(module.model) == before


# Error messages


def test_a_wrong_layer_is_found_before_training(tmp_path):
    callback = CAMEvaluation(lambda module: {"Grad-CAM": GradCAM(module.model, "layer4")})
    module = Digits()
    with pytest.raises(ValueError, match="'layer4' is not in the model"):
        trainer(tmp_path, callbacks=[callback], num_sanity_val_steps=0).fit(module, training(), validation())
    assert module.losses == []


def test_the_sanity_check_finds_a_wrong_batch(tmp_path):
    module = Digits()
    callback = CAMEvaluation(grad_cam, inputs=lambda batch: batch[1])
    with pytest.raises(TypeError, match=r"input_tensor is of torch\.int64"):
        trainer(tmp_path, callbacks=[callback]).fit(module, training(), validation())
    assert module.losses == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sources": {}}, TypeError, r"sources is \{\}; give each a name, such as"),
        ({"sources": [1]}, TypeError, r"sources is \[1\]; give each a name"),
        ({"sources": {"a": 1}}, TypeError, "cam_extractor is a int"),
        ({"every_n_epochs": 0}, ValueError, "every_n_epochs is 0; it must be at least 1"),
        ({"max_batches": 0}, ValueError, "max_batches is 0; it must be at least 1"),
        ({"num_images": -1}, ValueError, "num_images is -1; it must be at least 0"),
        ({"num_images": 1.5}, TypeError, "num_images is 1.5; it must be an integer"),
        ({"dataloader_idx": -1}, ValueError, "dataloader_idx is -1; it must be at least 0"),
        ({"protocol": "papr"}, ValueError, "protocol='papr' is not a preset"),
        ({"batch_size": 0}, ValueError, "batch_size is 0; it must be a positive integer"),
        ({"logits_fn": 4}, TypeError, "logits_fn is 4; it must be a callable"),
    ],
)
def test_wrong_arguments_are_refused_by_the_constructor(arguments, error, message):
    with pytest.raises(error, match=message):
        CAMEvaluation(**({"sources": {"uniform": UniformMap(nn.Flatten())}} | arguments))


def test_two_callbacks_with_one_name_are_refused(tmp_path):
    both = [CAMEvaluation(grad_cam), CAMEvaluation(two)]
    with pytest.raises(ValueError, match="2 CAMEvaluation callbacks log under the name 'cam'"):
        trainer(tmp_path, callbacks=both).validate(Digits(), validation(), verbose=False)
    both = [CAMEvaluation(grad_cam), CAMEvaluation(two, name="again")]
    fit, _ = fitted(tmp_path, both[0], callbacks=both[1:])
    assert fit.callback_metrics[DROP] == fit.callback_metrics["again/Grad-CAM/average_drop"]
    assert len(pictures(tmp_path)) == 4


def test_a_dataloader_idx_out_of_range_is_refused(tmp_path):
    callback = CAMEvaluation(grad_cam, dataloader_idx=3)
    with pytest.raises(
        ValueError, match="dataloader_idx is 3, but the number of validation dataloaders is 1"
    ):
        trainer(tmp_path, callbacks=[callback]).validate(Digits(), validation(), verbose=False)


def test_no_hook_is_left_if_a_later_source_is_invalid(tmp_path):
    modules = []

    def sources(module):
        modules.append(module.model)
        return {"torchcam": methods.GradCAM(module.model, "3", input_shape=(1, 8, 8)), "none": 42}

    with pytest.raises(TypeError, match="cam_extractor is a int"):
        trainer(tmp_path, callbacks=[CAMEvaluation(sources)]).fit(Digits(), training(), validation())
    assert not modules[0][3]._forward_hooks


@pytest.mark.parametrize(("every", "due"), [(1, [1, 3, 5]), (2, [1, 3, 5]), (4, [1, 5])])
def test_every_n_epochs_counts_epochs_with_a_validation(tmp_path, every, due):
    callback = CAMEvaluation(grad_cam, every_n_epochs=every, num_images=1)
    fitted(tmp_path, callback, max_epochs=6, check_val_every_n_epoch=2)
    epochs = [int(re.search(r"epoch=(\d+)", picture)[1]) for picture in pictures(tmp_path)]
    assert sorted(epochs) == due


def test_a_class_without_a_name_is_shown_by_its_number(tmp_path):
    fitted(tmp_path, CAMEvaluation(grad_cam, class_names=["zero"]), max_epochs=1)
    assert len(pictures(tmp_path)) == 1


def test_a_function_that_returns_no_mapping_is_refused(tmp_path):
    callback = CAMEvaluation(lambda module: source(module.model))
    with pytest.raises(TypeError, match=r"sources is GradCAM\(Sequential, 3\); give each a name"):
        trainer(tmp_path, callbacks=[callback]).validate(Digits(), validation(), verbose=False)


def test_a_missing_matplotlib_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setattr("torchmetrics_cam.lightning.callback.find_spec", lambda _: None)
    with pytest.raises(
        ModuleNotFoundError, match=r'pip install "torchmetrics-cam\[plot\]", or set num_images=0'
    ):
        CAMEvaluation(grad_cam)
    assert CAMEvaluation(grad_cam, num_images=0).num_images == 0


# Batches

IMAGES, LABELS = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])


@pytest.mark.parametrize(
    "batch",
    [
        IMAGES,
        (IMAGES, LABELS),
        [IMAGES, LABELS],
        {"image": IMAGES, "label": LABELS},
        {"pixel_values": IMAGES, "labels": LABELS, "mask": torch.rand(2, 4, 4)},
        {"photo": IMAGES, "label": LABELS},
        ({"images": IMAGES}, LABELS),
    ],
    ids=["tensor", "tuple", "list", "dict", "two tensors", "any name", "dict in a tuple"],
)
def test_images_are_found_in_common_batches(batch):
    assert images_of(batch) is IMAGES


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((LABELS, IMAGES), "the batch is a tuple that does not begin with floating-point images"),
        ({"a": IMAGES, "b": IMAGES}, r"has \['a', 'b'\], and each of them could be images; pass inputs="),
        ({"label": LABELS}, r"has \['label'\], and none of them is a tensor of images; pass inputs="),
        ("text", "the batch is a str"),
    ],
)
def test_other_batches_are_refused_with_a_hint(batch, message):
    with pytest.raises(ValueError, match=message):
        images_of(batch)


def test_inputs_returns_images_or_arguments():
    assert update_arguments((1, IMAGES), lambda batch: batch[1]) == {"input_tensor": IMAGES}
    arguments = {"input_tensor": IMAGES, "class_idx": LABELS}
    assert update_arguments(IMAGES, lambda _: arguments) == arguments
    with pytest.raises(TypeError, match="inputs returned a tuple; return the images, or update's arguments"):
        update_arguments(IMAGES, lambda batch: (batch, LABELS))


def test_extractors_of_other_libraries_keep_no_activations_of_the_training(tmp_path):
    """Otherwise each of them would keep the activations of every forward pass, until memory runs out."""
    made, kept = {}, []

    def sources(module):
        made["pytorch-grad-cam"] = EigenCAM(module.model, [module.model[3]])
        made["torchcam"] = methods.GradCAM(module.model, "3")
        return made

    class Watch(pl.Callback):
        def on_train_batch_end(self, *_):
            object_ = made["pytorch-grad-cam"].activations_and_grads
            kept.append([len(object_.activations), len(object_.gradients), list(made["torchcam"].hook_a)])

    fit, module = fitted(tmp_path, CAMEvaluation(sources), callbacks=[Watch()], max_epochs=2)
    assert {"cam/pytorch-grad-cam/average_drop", "cam/torchcam/average_drop"} <= set(fit.callback_metrics)
    assert len(kept) >= 4
    assert kept == [[0, 0, [None]]] * len(kept)
    assert not any(layer._forward_hooks for layer in module.modules())


def test_values_of_meta_tensors_are_plain_and_their_checkpoints_load_safely(tmp_path):
    """Also a module that keeps the states of its own metric in the checkpoint."""

    class Kept(MeasuredDigits):
        def __init__(self):
            super().__init__()
            self.average_drop.persistent(True)

    images, labels = data(256, 288).tensors
    loader = DataLoader(TensorDataset(MetaTensor(images), MetaTensor(labels)), batch_size=16)
    callback = CAMEvaluation(
        grad_cam, inputs=lambda batch: {"input_tensor": batch[0], "class_idx": batch[1]}, directory=tmp_path
    )
    best = ModelCheckpoint(dirpath=tmp_path, monitor=DROP)
    module = Kept()
    fit = trainer(tmp_path, callbacks=[callback, best])
    fit.fit(module, training(), loader)
    # The loss is the module's own.
    logged = {name: value for name, value in fit.callback_metrics.items() if name != "val_loss"}
    assert {type(value) for value in logged.values()} == {torch.Tensor}
    expected = AverageDrop(source(module.model))
    expected.update(images, class_idx=labels)
    assert fit.callback_metrics[DROP].item() == pytest.approx(expected.compute().item(), rel=1e-5)
    checkpoint = torch.load(best.last_model_path or best.best_model_path, weights_only=True)
    assert type(checkpoint["state_dict"]["average_drop.drop"]) is torch.Tensor
    assert len(pictures(tmp_path)) == 2


def test_worst_images_of_meta_tensors_are_plain():
    """They travel between ranks, which may not have the library of the subclass."""
    images = MetaTensor(data(256, 260).tensors[0])
    batch = explain({"half": UniformMap(network().eval(), 0.5)}, images)
    for one in worst_explained([batch], 2):
        for tensor in (one.image, one.masks, one.masked_images):
            assert type(tensor) is torch.Tensor
