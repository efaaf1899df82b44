"""Where the time of ``torchmetrics-cam evaluate`` goes: eight methods and three controls on a small network.

The command runs in a process of its own with one thread, on test images of Fashion-MNIST. Functions of this package and of the
libraries are timed; a function inside another one counts for the inner one alone. Weights are random: they do not change the
cost. The seconds are those of the CPU, which other processes change less than those of the clock.

    python tests/benchmarks/command_cost.py [--rounds 3]

The exit code is 1 if the evaluation misses its target.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from command import BATCH, CONTROLS, METHODS, SEED
from fashion_mnist import TARGET_LAYER, SmallCNN
from results import environment, parser, table, write
from torch import nn

TARGET = 1.25
# Methods, number of images, images per batch, and whether the network is in channels-last layout.
CASES: dict[str, tuple[tuple[str, ...], int, int, bool]] = {
    "eight methods": (METHODS, 1000, BATCH, True),
    "contiguous": (METHODS, 500, BATCH, False),
    "batches of 32": (METHODS, 500, 32, True),
    "five own methods": (METHODS[:5], 4000, BATCH, True),
    "five own, batches of 32": (METHODS[:5], 2000, 32, True),
}
IMPORTS, START_UP = "start-up: imports of torch, torchmetrics and Lightning", "start-up: the rest"
REPORT = "report and result files"
OUTSIDE = (IMPORTS, START_UP, REPORT)
FORWARD, BACKWARD, SCORE_CAM = "forward pass", "backward passes", "torchcam's Score-CAM, beside its passes"
EIGEN = "Eigen-CAM and Eigen-Grad-CAM of pytorch-grad-cam: decompositions and other NumPy"
SCORE_CAM_PASSES, OTHER_PASSES = "forward passes of Score-CAM", "other forward passes"
PASSES = (SCORE_CAM_PASSES, OTHER_PASSES, BACKWARD)
OF_LIBRARIES = (SCORE_CAM, EIGEN)
DETERMINISM = "check of determinism on the first batch"


class Stages:
    """The CPU seconds of each stage since the process started; a stage inside another one interrupts it.

    Attributes:
        seconds: by the names of the stages, from the outermost to the innermost.
        sizes: the number of forward passes by their number of images.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self.sizes: Counter[int] = Counter()
        self.running = [IMPORTS]
        self._since = 0.0

    def switch(self) -> None:
        """Count the time since the last switch for the stages that are running."""
        now = time.process_time()
        self.seconds[tuple(self.running)] += now - self._since
        self._since = now

    def time(self, owner: Any, name: str, stage: str) -> None:
        """Time every call of a function of a class or module."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if stage == FORWARD:
                self.sizes[len(args[1])] += 1
            self.switch()
            self.running.append(stage)
            try:
                return function(*args, **kwargs)
            finally:
                self.switch()
                self.running.pop()

        setattr(owner, name, timed)

    def then(self, owner: Any, name: str, stage: str) -> None:
        """Let the outermost stage be another one after a function has returned."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def last(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            self.switch()
            self.running[0] = stage
            return result

        setattr(owner, name, last)


def network() -> nn.Module:
    """Return the network for ``--model command_cost:network``, in the layout of the case that the environment names."""
    layout = torch.channels_last if CASES[os.environ["CASE"]][3] else torch.contiguous_format
    return SmallCNN().to(memory_format=layout)


def watch(stages: Stages) -> None:
    """Time the functions of which the command consists."""
    import torchmetrics_cam.cli.evaluate as command
    from torchmetrics_cam.cams.adapters.pytorch_grad_cam import PytorchGradCAMSource
    from torchmetrics_cam.cams.adapters.torchcam import TorchcamSource
    from torchmetrics_cam.cams.controls import CenterMap, RandomMap, UniformMap
    from torchmetrics_cam.cams.gradient import GradientCAM
    from torchmetrics_cam.lightning.data import _Indexed, _IndexedCollate
    from torchmetrics_cam.lightning.resume import PartialResult
    from torchmetrics_cam.metrics.comparison.metric import CAMComparison
    from torchmetrics_cam.pipeline.perturb import Masking
    from torchmetrics_cam.pipeline.pipeline import Pipeline

    stages.time(command, "_evaluated", "Lightning's loop, guards and checks of a resumed run")
    stages.then(command, "_evaluated", REPORT)
    # The package has a function of the same name.
    loop = sys.modules["torchmetrics_cam.lightning.evaluate"]
    stages.time(loop, "run_key", "digests of network, data and functions")
    stages.time(CAMComparison, "update", "values, sums and a row for each image")
    stages.time(Pipeline, "explain", "guards, hooks and checks of a batch")
    stages.time(Pipeline, "_check_determinism", DETERMINISM)
    stages.time(Pipeline, "score", "guards, hooks and checks of a batch")
    stages.time(Masking, "perturb", "masks and masked images")
    stages.time(PartialResult, "save", "saves of the partial result")
    stages.time(_Indexed, "__getitems__", "reading and stacking images")
    stages.time(_IndexedCollate, "__call__", "reading and stacking images")
    for own in (GradientCAM, CenterMap, RandomMap, UniformMap):
        stages.time(own, "maps", "maps of own methods and controls")
    stages.time(TorchcamSource, "maps", SCORE_CAM)
    stages.time(PytorchGradCAMSource, "maps", EIGEN)
    stages.time(SmallCNN, "forward", FORWARD)
    stages.time(torch.autograd, "grad", BACKWARD)
    stages.time(torch.Tensor, "backward", BACKWARD)


def bare_seconds(model: nn.Module, sizes: dict[int, int]) -> float:
    """Return the CPU seconds of forward passes of these numbers of images, without anything else."""
    images = torch.rand(max(sizes), 1, 28, 28)
    started = time.process_time()
    with torch.no_grad():
        for size, count in sizes.items():
            for _ in range(count):
                model(images[:size])
    return time.process_time() - started


def measured(out: Path, weights: Path, case: str) -> dict[str, Any]:
    """Run the command in this process, and return its seconds by stage.

    Raises:
        RuntimeError: if the command fails.
    """
    stages = Stages()
    from torchmetrics_cam.cli import main as command

    watch(stages)
    stages.switch()
    stages.running[0] = START_UP
    line = ["evaluate", "--model", "command_cost:network", "--checkpoint", str(weights)]
    methods, limit, batch, _ = CASES[case]
    line += ["--data", "command:images", "--limit", str(limit), "--methods", ",".join(methods)]
    line += ["--layer", TARGET_LAYER, "--batch-size", str(batch), "--accelerator", "cpu", "--devices", "1"]
    started = time.perf_counter()
    if command([*line, "--out", str(out)]):
        raise RuntimeError("the command failed")
    stages.switch()
    return {
        "seconds": [[list(running), seconds] for running, seconds in stages.seconds.items()],
        "clock": time.perf_counter() - started,
        "forward_passes": dict(stages.sizes),
        "bare": bare_seconds(network().eval(), stages.sizes),
    }


def by_stage(run: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of a run by the name of the stage."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for running, value in run["seconds"]:
        outer, *_, name = [*running[:1], *running]
        if outer == REPORT or len(running) == 1:
            name = outer
        elif DETERMINISM in running:
            name = DETERMINISM
        elif name == FORWARD:
            name = SCORE_CAM_PASSES if SCORE_CAM in running else OTHER_PASSES
        seconds[name] += value
    return dict(seconds)


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians over the runs of one case: seconds by stage, and the ratios to the passes."""
    stages = [by_stage(run) for run in runs]
    passes = [sum(stage.get(name, 0.0) for name in PASSES) for stage in stages]
    evaluations = [sum(stage.values()) - sum(stage[name] for name in OUTSIDE) for stage in stages]
    own = [
        evaluation - sum(stage.get(name, 0.0) for name in OF_LIBRARIES)
        for evaluation, stage in zip(evaluations, stages, strict=True)
    ]
    return {
        "seconds": {name: statistics.median(stage[name] for stage in stages) for name in stages[0]},
        "passes": _with_range(passes),
        "bare": _with_range([run["bare"] for run in runs]),
        "clock": _with_range([run["clock"] for run in runs]),
        "whole": _with_range([whole / passed for whole, passed in zip(evaluations, passes, strict=True)]),
        "without_libraries": _with_range([part / passed for part, passed in zip(own, passes, strict=True)]),
    }


def _with_range(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def report(result: dict[str, Any]) -> str:
    """Return the page of the results."""
    cases: dict[str, Any] = result["cases"]
    first = cases["eight methods"]["seconds"]
    others = sorted(set(first) - {*PASSES, *OUTSIDE}, key=lambda name: -first[name])

    def row(name: str, *, in_seconds: bool = False) -> tuple[str, ...]:
        seconds = [(case["seconds"].get(name, 0.0), case["passes"]["median"]) for case in cases.values()]
        return name, *(
            f"{value:.2f} s" if in_seconds else f"{value / passes:.3f}" for value, passes in seconds
        )

    def ratios(name: str) -> list[str]:
        return [
            "{median:.2f} ({lowest:.2f} to {highest:.2f})".format(**case[name]) for case in cases.values()
        ]

    rows = [
        *map(row, (*PASSES, *others)),
        ("**the evaluation**", *ratios("whole")),
        ("**without what the libraries do beside the passes**", *ratios("without_libraries")),
        *(row(name, in_seconds=True) for name in OUTSIDE),
        ("forward and backward passes", *(f"{case['passes']['median']:.2f} s" for case in cases.values())),
        ("bare forward passes", *(f"{case['bare']['median']:.2f} s" for case in cases.values())),
    ]
    settings = [
        (
            name,
            str(len(methods)),
            f"{limit:,}",
            str(batch),
            "channels last" if channels_last else "contiguous",
        )
        for name, (methods, limit, batch, channels_last) in CASES.items()
    ]
    per_image = {name: cases[name]["passes"]["median"] / CASES[name][1] for name in CASES}
    slower = per_image["contiguous"] / per_image["eight methods"]
    ratio = {name: f"{case['without_libraries']['median']:.2f}" for name, case in cases.items()}
    return f"""# Where the time of the command goes

``torchmetrics-cam evaluate`` with {CONTROLS} controls and the default measures on images of 28 x 28 pixels: a CNN of three
convolutional layers, one thread, CPU seconds, medians of {result["rounds"]} runs (lowest to highest). The load average was
{result["environment"]["load_average"][0]} at the start. Written by `command_cost.py`; all numbers are in `command_cost.json`.

{table(("case", "methods", "images", "images per batch", "layout of the network"), settings)}

Unless a unit is given, the numbers are fractions of the forward and backward passes of the same run. The bare passes have the
same sizes and random pixels, for which the contiguous network takes longer than for areas of 0.

{table(("stage", *cases), rows)}

- **Target**: without what the libraries do beside the passes, the evaluation of eight methods takes at most {TARGET} times the
  passes. It is {"met" if result["claim_holds"] else "missed"}, with {ratio["eight methods"]}. Score-CAM of torchcam resizes and
  applies 64 masks per image, and the Eigen-CAMs of pytorch-grad-cam decompose the activation of each image in NumPy; with both
  it takes {cases["eight methods"]["whole"]["median"]:.2f}.
- **Layout**: the passes of the contiguous network take {slower:.2f} times as long per image. The command leaves the layout to
  the function of `--model`, which can return `network.to(memory_format=torch.channels_last)`.
- **Small batches**: masks, guards and sums cost a few milliseconds per batch, however few its images are. Own methods need only
  nine passes per image, so that the ratio is {ratio["five own methods"]} with {BATCH} images per batch and
  {ratio["five own, batches of 32"]} with 32, the default, where a pass takes about 2 ms.
- **Start-up** is imports of libraries. pytorch-grad-cam imports scikit-learn, which is in the rest."""


def run_in_process(case: str) -> dict[str, Any]:
    """Run the command in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(SEED)
        torch.save(SmallCNN().state_dict(), Path(folder) / "weights.pt")
        line = [sys.executable, __file__, "--measure", folder]
        # The threads and the case are those of the whole process.
        environ = os.environ | {"OMP_NUM_THREADS": "1", "CASE": case}
        subprocess.run(line, check=True, env=environ, cwd=Path(__file__).parent, stdout=subprocess.DEVNULL)
        result: dict[str, Any] = json.loads((Path(folder) / "run.json").read_text())
    return result


def main() -> int:
    """Run the command in processes of its own, and write the results."""
    options = parser(__doc__, __file__)
    options.add_argument("--rounds", type=int, default=3, help="number of runs for each case")
    options.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    if (folder := arguments.measure) is not None:
        run = measured(folder / "out", folder / "weights.pt", os.environ["CASE"])
        (folder / "run.json").write_text(json.dumps(run))
        return 0
    machine = environment()
    runs: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    for number in range(arguments.rounds):
        for case in CASES:
            runs[case].append(run_in_process(case))
            print(f"round {number + 1}, {case}: {runs[case][-1]['clock']:.1f} s", flush=True)
    cases = {case: summary(runs[case]) for case in CASES}
    holds = cases["eight methods"]["without_libraries"]["median"] <= TARGET
    result = {
        "claim": f"the evaluation takes at most {TARGET} times its passes, beside what the libraries do",
        "claim_holds": holds,
        "environment": machine,
        "rounds": arguments.rounds,
        "cases": cases,
        "runs": {case: [run | {"seconds": by_stage(run)} for run in runs[case]] for case in CASES},
    }
    write(arguments.out, result, report(result))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
