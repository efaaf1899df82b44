"""Digests: equal in every process for equal content, and different for any other."""

import functools
import importlib
import multiprocessing
import operator
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import START_METHOD
from pytorch_grad_cam import GradCAM
from torch import nn
from torchvision.transforms import Compose, Lambda, v2

from torchmetrics_cam.lightning.digest import SAMPLES, UnidentifiedError, dataset_digest, digest

SCRIPT = """
import functools, operator, re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

WEIGHT = 3
SETTINGS = {"names": {"b", "a", "c"}, "size": (8, 8)}


class Base:
    def __init__(self, factor):
        self.factor = factor
        self.own = self

    @property
    def double(self):
        return 2 * self.factor


class Mine(Base):
    def __call__(self, values):
        return super().double * values if values in {1, 2, 3} else recursive(values)


def recursive(value):
    return recursive(value - 1) * WEIGHT if value else SETTINGS


@functools.lru_cache
def cached(value):
    return np.mean(value) + np.random.rand()


@torch.no_grad()
def decorated(value):
    return cached(value)


def made(factor):
    return lambda values, shift=1: values * factor + shift


def values():
    torch.manual_seed(0)
    return {
        "closure": made(2),
        "object": Mine(2),
        "method": Mine(2).__call__,
        "class": Mine,
        "recursion": recursive,
        "decorated": decorated,
        "network": nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
        "transform": v2.Compose([v2.Resize(4), v2.Lambda(made(3))]),
        "built-in": [torch.sigmoid, torch.Tensor.sigmoid, len, np.sin, nn.functional.relu],
        "partial": functools.partial(torch.softmax, dim=1),
        "set": {"a", "b", "c", "d"},
        "dict of a set": {name: name for name in {"a", "b", "c", "d"}},
        "others": [Path("a"), re.compile("a"), operator.itemgetter(1), torch.float16, torch.device("cpu"), 1j],
        "arrays": [np.arange(3), np.array(["a", None]), torch.ones(2, dtype=torch.bfloat16), torch.ones(0)],
        "image": Image.new("RGB", (3, 2), (1, 2, 3)),
    }
"""


def digests_of_script(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        script = importlib.import_module("script_of_digests")
    return {name: digest(value) for name, value in script.values().items()}


def test_digests_are_those_of_another_process(tmp_path):
    """Which hashes texts differently, so that its sets have another order."""
    (tmp_path / "script_of_digests.py").write_text(SCRIPT)
    with multiprocessing.get_context(START_METHOD).Pool(1) as pool:
        theirs = pool.apply(digests_of_script, (str(tmp_path),))
    assert theirs == digests_of_script(str(tmp_path))
    assert len(set(theirs.values())) == len(theirs) == 15


def adding(number):
    return lambda values: values + number


class Adding:
    def __init__(self, number):
        self.number = number

    def __call__(self, values):
        return values + self.number


def class_of(method):
    return type("Made", (), {"method": method})


def network(weight=1.0, act=torch.relu, **settings):
    model = nn.Sequential(nn.Conv2d(1, 1, 1, **settings))
    nn.init.constant_(model[0].weight, weight)
    nn.init.zeros_(model[0].bias)
    model[0].act = lambda values: act(values)
    return model


DIFFERENT = {
    "names": (lambda values: values.min(), lambda values: values.max()),
    "constants": (lambda values: values + 1, lambda values: values + 2),
    "inner constants": (lambda v: [one + 1 for one in v], lambda v: [one + 2 for one in v]),
    "defaults": (lambda values, shift=1: shift, lambda values, shift=2: shift),
    "keyword defaults": (lambda *, shift=1: shift, lambda *, shift=2: shift),
    "closures": (adding(1), adding(2)),
    "closures of tensors": (adding(torch.zeros(2)), adding(torch.tensor([0.0, 1.0]))),
    "closures of functions": (adding(adding(1)), adding(adding(2))),
    "state": (Adding(1), Adding(2)),
    "bound methods": (Adding(1).__call__, Adding(2).__call__),
    "methods": (class_of(adding(1)), class_of(adding(2))),
    "properties": (class_of(property(adding(1))), class_of(property(adding(2)))),
    "cached properties": (
        class_of(functools.cached_property(adding(1))),
        class_of(functools.cached_property(adding(2))),
    ),
    "class methods": (class_of(classmethod(adding(1))), class_of(classmethod(adding(2)))),
    "base classes": (type("Made", (class_of(adding(1)),), {}), type("Made", (class_of(adding(2)),), {})),
    "partial arguments": (functools.partial(max, 1), functools.partial(max, 2)),
    "cached functions": (functools.lru_cache(adding(1)), functools.lru_cache(adding(2))),
    "compiled functions": (torch.compile(adding(1)), torch.compile(adding(2))),
    "built-in functions": (torch.sigmoid, torch.tanh),
    "transforms": (Compose([Lambda(adding(1))]), Compose([Lambda(adding(2))])),
    "transforms of torchvision's second version": (v2.Resize(3), v2.Resize(4)),
    "weights": (network(1.0), network(2.0)),
    "settings of layers": (network(), network(padding=1)),
    "functions of layers": (network(), network(act=torch.sigmoid)),
    "dtypes": (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
    "shapes": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "arrays": (np.zeros(2), np.ones(2)),
    "types": (1, True),
    "order": ([1, 2], [2, 1]),
    "keys": ({"a": 1}, {"b": 1}),
    "paths": (Path("a"), Path("b")),
    "getters": (operator.itemgetter(1), operator.itemgetter(2)),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_other_content_has_another_digest(what):
    first, second = DIFFERENT[what]
    assert digest(first) == digest(first)
    assert digest(first) != digest(second)


@pytest.mark.parametrize("copies", [(adding(1), adding(1)), (Adding(1), Adding(1)), (network(), network())])
def test_copies_have_the_same_digest(copies):
    assert digest(copies[0]) == digest(copies[1])


def test_hooks_and_modes_of_a_network_do_not_count():
    first, second = network(), network().eval()
    second.register_forward_hook(lambda *_: None)
    assert digest(first) == digest(second)


def test_an_object_that_hooks_a_network_has_the_digest_of_its_copy():
    model = network()
    assert digest(adding(GradCAM(model, [model[0]]))) == digest(adding(GradCAM(model, [model[0]])))


UNIDENTIFIED = {
    "a lock": (threading.Lock, "a _thread.lock"),
    "a generator": (lambda: adding(number for number in [1]), "a builtins.generator"),
    "a sparse tensor": (lambda: torch.ones(2).to_sparse(), "a tensor of torch.sparse_coo"),
    "a frozen TorchScript module": (
        lambda: torch.jit.freeze(torch.jit.script(nn.Linear(2, 2).eval())),
        "a TorchScript module without weights",
    ),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated", "ignore:.*inspect.getmodule")
@pytest.mark.parametrize("what", UNIDENTIFIED)
def test_content_that_cannot_be_read_is_named(what):
    make, name = UNIDENTIFIED[what]
    with pytest.raises(UnidentifiedError, match=f"^{name}"):
        digest([make()])


LOCK = threading.Lock()


def locked(value):
    with LOCK:
        return value


def test_a_global_that_cannot_be_read_counts_by_its_type():
    assert digest(locked) == digest(locked)


def test_a_dataset_is_represented_by_its_first_its_last_and_evenly_spaced_items():
    read = []

    class Watched:
        def __len__(self):
            return 151

        def __getitem__(self, index):
            read.append(index)
            return index

    dataset_digest(Watched())
    assert read == [*range(0, 151, 10), 0]
    assert len(read) == SAMPLES + 1
    assert dataset_digest([1, 2]) != dataset_digest([1, 3])
    assert dataset_digest([]) == dataset_digest([])
