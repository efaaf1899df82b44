"""Models and images that the tests share: small ones, and real ones that come inside of a package.

Ranks and scripts import this module too, so large libraries are imported where they are used.
"""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Two threads on a busy machine of two cores wait for each other, and take five times as long as one. The
# environment is for the processes that the tests start: notebooks, commands, ranks.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


# Files whose tests take up to a minute and a half each.
LONG = {"test_documentation.py", "test_package.py", "test_generated.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first, or one worker is left with one of them when the others are done."""
    items.sort(key=lambda item: item.path.name not in LONG)


class SmallNet(nn.Module):
    """Batch norm, dropout and an in-place ReLU behind the target layer: all that an update could disturb."""

    def __init__(self, channels: int = 3, classes: int = 5, dims: int = 2) -> None:
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
        norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
        self.stem = nn.Sequential(conv(channels, 6, 3, padding=1), norm(6), nn.ReLU(inplace=True))
        self.body = conv(6, 8, 3, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.relu(self.body(self.stem(x)))
        return self.fc(self.dropout(features.flatten(2).mean(-1)))


def small_net(channels: int = 3, classes: int = 5, dims: int = 2, seed: int = 0) -> SmallNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = SmallNet(channels, classes, dims)
        for parameter in net.parameters():
            # Large enough weights that the scores of masked images differ clearly.
            nn.init.normal_(parameter, std=0.7)
    return net.double().eval()


@pytest.fixture
def net(request: pytest.FixtureRequest) -> SmallNet:
    """A small network, in double precision unless the test's module sets ``DTYPE``."""
    return small_net().to(getattr(request.module, "DTYPE", torch.float64))


@pytest.fixture
def images(request: pytest.FixtureRequest) -> Tensor:
    """Images for ``net``, four of 12 x 12 pixels unless the test's module sets ``IMAGES``, their shape."""
    shape, dtype = (
        getattr(request.module, "IMAGES", (4, 3, 12, 12)),
        getattr(request.module, "DTYPE", torch.float64),
    )
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.fixture(scope="session")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A CNN trained on real digits, and 200 of them that it has not seen with their labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(bunch.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(512, 10),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        order = torch.randperm(len(pixels))
        train, test = order[200:], order[:200]
        for _ in range(4):
            for batch in train[torch.randperm(len(train))].split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(pixels[batch]), labels[batch]).backward()
                optimizer.step()
    model.eval().requires_grad_(True).zero_grad()
    assert (model(pixels[test]).argmax(1) == labels[test]).float().mean() > 0.9
    return model, pixels[test], labels[test]


@pytest.fixture(scope="session")
def lite0() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights."""
    from torchmetrics_cam.cli.demo import load_model

    return load_model()


@pytest.fixture(scope="session")
def photos() -> Tensor:
    """The eleven photos of the demo, as the network takes them."""
    from torchmetrics_cam.cli.demo import load_photos

    return torch.stack(list(load_photos().values()))


def find_or_skip(path: str | Path | None, package: str) -> Path:
    """Return the path of what a Debian package installs. Skip the test without it, or fail where ``CI`` is set."""
    if path is not None and Path(path).exists():
        return Path(path)
    reason = f"needs the Debian package {package}: apt-get install {package}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def cautious_t_test(first, second, **settings):
    """Return the wider interval and the larger p-value of scipy's two t tests of independent samples."""
    import numpy as np
    from scipy import stats

    tests = [stats.ttest_ind(first, second, equal_var=equal, **settings) for equal in (False, True)]
    lower, upper = zip(*(test.confidence_interval() for test in tests), strict=True)
    return np.fmin(*lower), np.fmax(*upper), np.fmax(*(test.pvalue for test in tests))


def student_over_classes(first, second):
    """Return the difference of two macro averages, its standard error by the variance in each class, and its freedom.

    Both samples are lists of the values of each class.
    """
    import numpy as np

    numbers = [sum(len(values) > 0 for values in sample) for sample in (first, second)]
    parts, degrees = [], []
    for both in zip(first, second, strict=True):
        present = [values for values in both if len(values)]
        degrees.append(sum(len(values) - 1 for values in present))
        spread = sum(((values - values.mean()) ** 2).sum() for values in present)
        weight = sum(
            1 / len(values) / number**2 for values, number in zip(both, numbers, strict=True) if len(values)
        )
        parts.append(spread / degrees[-1] * weight)
    means = [np.mean([values.mean() for values in sample if len(values)]) for sample in (first, second)]
    freedom = sum(parts) ** 2 / sum(part**2 / one for part, one in zip(parts, degrees, strict=True))
    return means[0] - means[1], np.sqrt(sum(parts)), freedom


class Returning(nn.Module):
    """A model that returns what ``form`` makes of its scores."""

    def __init__(self, net, form):
        super().__init__()
        self.net, self.form = net, form

    def forward(self, x):
        return self.form(self.net(x))


class _Calls(TorchFunctionMode):
    """What a CPU does without an operation of its own, and a GPU must wait for."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ("tolist", "numpy", "cpu", "__array__"):
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


class HostSyncs(TorchDispatchMode):
    """Counts the operations that make a GPU wait for the host, and apart from them copies of its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.copies = 0
        self.calls = _Calls(self.seen)

    def __enter__(self) -> "HostSyncs":
        self.calls.__enter__()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.calls.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        if by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"):
            self.seen.append(name)
        # So torch.tensor and torch.as_tensor bring numbers of the host to a device.
        if name == "lift_fresh":
            self.copies += 1
        return func(*args, **(kwargs or {}))


class Calls:
    """Counts the forward passes of a model, and the images in each."""

    def __init__(self, model: nn.Module) -> None:
        self.batches: list[int] = []
        self._handle = model.register_forward_pre_hook(lambda _m, args: self.batches.append(len(args[0])))

    def __enter__(self) -> "Calls":
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()
