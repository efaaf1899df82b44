"""How often 95 % intervals contained the true value on real images, where that was not 93 to 97 %.

Measured by tests/benchmarks/coverage.py: samples of Fashion-MNIST's test images, with the mean over all of
them as the truth, for Grad-CAM and a random map. Of the two, the coverage further from 95 % is listed. A test
compares the numbers with the results of that script.
"""

from collections.abc import Sequence

from torchmetrics_cam.metrics.measures import Measure

# The numbers of images with which coverage was measured.
SIZES = (10, 20, 30, 50, 100, 300)
# By measure and number of images.
OF_MEANS = {
    "average_drop": {10: 0.921},
    "increase_in_confidence": {20: 0.98},
    "drop_in_deletion": {10: 0.891, 20: 0.929},
    "deletion_auc": {10: 0.929},
    "relative_drop": {10: 0.921},
    "adcc": {10: 0.856, 20: 0.9, 30: 0.914, 50: 0.927},
}
OF_DIFFERENCES = {
    "increase_in_confidence": {10: 0.815},
    "average_gain": {10: 0.877, 20: 0.928},
    "adcc": {10: 0.893, 20: 0.914, 30: 0.927},
}


def coverage_notes(measures: Sequence[Measure], images: int) -> list[str]:
    """Return a sentence for each measure whose 95 % intervals did not have this coverage.

    Args:
        measures: the measures of a table.
        images: the smallest number of images of a method, at least 1.

    Returns:
        Sentences with the coverage of the measured number of images that is closest from below. For fewer
        images than any, one sentence says that the coverage is not known.
    """
    if images < SIZES[0]:
        count = "1 image is" if images == 1 else f"{images} images are"
        return [f"{count} few: the coverage of the intervals was measured from {SIZES[0]} images."]
    size = max(size for size in SIZES if size <= images)
    notes = []
    for measure in measures:
        shares = {
            "mean": OF_MEANS.get(measure.name, {}).get(size),
            "difference of two methods": OF_DIFFERENCES.get(measure.name, {}).get(size),
        }
        parts = [f"{100 * share:.1f} % contained the true {name}" for name, share in shares.items() if share]
        if parts:
            notes.append(
                f"{measure.title}: of the 95 % intervals of {size} images, {' and '.join(parts)}, as measured"
                " on Fashion-MNIST."
            )
    return notes
