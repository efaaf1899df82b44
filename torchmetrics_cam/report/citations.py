"""BibTeX entries of the software and of the papers that define the measures."""

from collections.abc import Sequence

from torchmetrics_cam.__about__ import __version__

_SOFTWARE = """@software{{torchmetrics_cam,
  author  = {{{{The torchmetrics-cam developers}}}},
  title   = {{torchmetrics-cam: faithfulness of class activation maps, as TorchMetrics metrics}},
  version = {{{version}}}
}}"""

# arXiv number: key, authors, title, year.
_PAPERS = {
    "1710.11063": (
        "chattopadhyay2017gradcampp",
        "Chattopadhyay, Aditya and Sarkar, Anirban and Howlader, Prantik and Balasubramanian, Vineeth N",
        "Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks",
        2017,
    ),
    "2301.07002": (
        "zhang2023opticam",
        "Zhang, Hanwei and Torres, Felipe and Sicre, Ronan and Avrithis, Yannis and Ayache, Stephane",
        "Opti-CAM: Optimizing saliency maps for interpretability",
        2023,
    ),
    "2102.05228": (
        "jung2021liftcam",
        "Jung, Hyungsik and Oh, Youngrock",
        "Towards Better Explanations of Class Activation Mapping",
        2021,
    ),
    "1806.07421": (
        "petsiuk2018rise",
        "Petsiuk, Vitali and Das, Abir and Saenko, Kate",
        "RISE: Randomized Input Sampling for Explanation of Black-box Models",
        2018,
    ),
    "2202.00449": (
        "rong2022road",
        "Rong, Yao and Leemann, Tobias and Borisov, Vadim and Kasneci, Gjergji and Kasneci, Enkelejda",
        "A Consistent and Efficient Evaluation Strategy for Attribution Methods",
        2022,
    ),
    "2104.10252": (
        "poppi2021adcc",
        "Poppi, Samuele and Cornia, Marcella and Baraldi, Lorenzo and Cucchiara, Rita",
        "Revisiting The Evaluation of Class Activation Mapping for Explainability:"
        " A Novel Metric and Experimental Analysis",
        2021,
    ),
    "1910.01279": (
        "wang2019scorecam",
        "Wang, Haofan and Wang, Zifan and Du, Mengnan and Yang, Fan and Zhang, Zijian and Ding, Sirui"
        " and Mardziel, Piotr and Hu, Xia",
        "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks",
        2019,
    ),
    "1608.00507": (
        "zhang2016excitation",
        "Zhang, Jianming and Lin, Zhe and Brandt, Jonathan and Shen, Xiaohui and Sclaroff, Stan",
        "Top-down Neural Attention by Excitation Backprop",
        2016,
    ),
    "1810.06583": (
        "chalasani2018concise",
        "Chalasani, Prasad and Chen, Jiefeng and Chowdhury, Amrita Roy and Jha, Somesh and Wu, Xi",
        "Concise Explanations of Neural Networks using Adversarial Training",
        2018,
    ),
    "2005.00631": (
        "bhatt2020evaluating",
        "Bhatt, Umang and Weller, Adrian and Moura, Jos{\\'e} M. F.",
        "Evaluating and Aggregating Feature-based Model Explanations",
        2020,
    ),
    "2003.07258": (
        "arras2020clevrxai",
        "Arras, Leila and Osman, Ahmed and Samek, Wojciech",
        "CLEVR-XAI: A Benchmark Dataset for the Ground Truth Evaluation of Neural Network Explanations",
        2020,
    ),
    "2104.14995": (
        "theiner2021geolocation",
        "Theiner, Jonas and Mueller-Budack, Eric and Ewerth, Ralph",
        "Interpretable Semantic Photo Geolocation",
        2021,
    ),
    "2401.06654": (
        "blucher2024srg",
        r"Bl{\"u}cher, Stefan and Vielhaben, Johanna and Strodthoff, Nils",
        "Decoupling Pixel Flipping and Occlusion Strategy for Consistent XAI Benchmarks",
        2024,
    ),
    "2407.11910": (
        "hesse2024idsds",
        "Hesse, Robin and Schaub-Meyer, Simone and Roth, Stefan",
        "Benchmarking the Attribution Quality of Vision Models",
        2024,
    ),
    "1901.09392": (
        "yeh2019infidelity",
        "Yeh, Chih-Kuan and Hsieh, Cheng-Yu and Suggala, Arun Sai and Inouye, David I."
        " and Ravikumar, Pradeep",
        "On the (In)fidelity and Sensitivity of Explanations",
        2019,
    ),
    "1912.09818": (
        "sixt2019lie",
        "Sixt, Leon and Granz, Maximilian and Landgraf, Tim",
        "When Explanations Lie: Why Many Modified BP Attributions Fail",
        2019,
    ),
    "2104.00032": (
        "bohle2021coda",
        r"B{\"o}hle, Moritz and Fritz, Mario and Schiele, Bernt",
        "Convolutional Dynamic Alignment Networks for Interpretable Classifications",
        2021,
    ),
}
_OF_MEASURE = {
    "average_gain": "2301.07002",
    "drop_in_deletion": "2102.05228",
    "deletion_auc": "1806.07421",
    "insertion_auc": "1806.07421",
    "symmetric_relevance_gain": "2401.06654",
    "road": "2202.00449",
    "complexity": "2104.10252",
    "sparseness": "1810.06583",
    "entropy": "2005.00631",
    "coherency": "2104.10252",
    "adcc": "2104.10252",
    "single_deletion": "2407.11910",
    "faithfulness_correlation": "2005.00631",
    "max_sensitivity": "1901.09392",
    "average_sensitivity": "2005.00631",
    "class_sensitivity": "1912.09818",
    "energy_pointing_game": "1910.01279",
    "pointing_game": "1608.00507",
    "relevance_rank_accuracy": "2003.07258",
    "top_k_intersection": "2104.14995",
}
_MOSAICS = "2104.00032"


def bibtex(measures: Sequence[str], version: str | None = None, *, has_mosaics: bool = False) -> str:
    """Return BibTeX of the software, of the Grad-CAM++ paper and of the papers of the measures.

    The default protocol is that of the Grad-CAM++ paper.

    Args:
        measures: the names of the measures.
        version: the version of the software; None for the installed one.
        has_mosaics: whether the images are mosaics, whose paper is cited too.
    """
    numbers = ["1710.11063", *(_OF_MEASURE[name] for name in measures if name in _OF_MEASURE)]
    if has_mosaics:
        numbers.append(_MOSAICS)
    papers = [_paper(number, *_PAPERS[number]) for number in dict.fromkeys(numbers)]
    return "\n\n".join([_SOFTWARE.format(version=version or __version__), *papers])


def _paper(number: str, key: str, authors: str, title: str, year: int) -> str:
    lines = [
        f"@article{{{key},",
        f"  title   = {{{title}}},",
        f"  author  = {{{authors}}},",
        f"  journal = {{arXiv preprint arXiv:{number}}},",
        f"  year    = {{{year}}}",
        "}",
    ]
    return "\n".join(lines)
