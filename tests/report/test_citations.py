"""The papers that the report cites for the measures."""

import re

from torchmetrics_cam.metrics import sensitivity
from torchmetrics_cam.metrics.measures import MEASURES
from torchmetrics_cam.report.citations import bibtex

# Of the Grad-CAM++ paper, which is always cited, and those without a paper of their own.
OTHERS = {"average_drop", "increase_in_confidence", "relative_drop", "localization_auc", "mask_iou"}


def test_every_measure_cites_its_paper():
    for name in MEASURES:
        numbers = re.findall(r"arXiv:([\d.]+)", bibtex([name]))
        assert numbers[0] == "1710.11063"
        assert len(numbers) == (1 if name in OTHERS else 2), name


def test_a_paper_is_cited_once_and_is_that_of_the_docstring():
    text = bibtex(["max_sensitivity", "average_sensitivity", "class_sensitivity"])
    assert re.findall(r"arXiv:([\d.]+)", text) == ["1710.11063", "1901.09392", "2005.00631", "1912.09818"]
    assert "arxiv.org/abs/1901.09392" in sensitivity.MaxSensitivity.__doc__
    assert "arxiv.org/abs/2005.00631" in sensitivity.AverageSensitivity.__doc__
    assert "arxiv.org/abs/1912.09818" in sensitivity.ClassSensitivity.__doc__
