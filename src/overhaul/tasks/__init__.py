"""What a model is for: the data in three splits, the loss, the metrics, and built-in data."""

from overhaul.tasks._array_samples import ArraySamples
from overhaul.tasks._as_samples import as_samples
from overhaul.tasks._cifar10 import Cifar10
from overhaul.tasks._classification import Classification
from overhaul.tasks._data_source import DataSource
from overhaul.tasks._data_task import DataTask
from overhaul.tasks._digits import Digits
from overhaul.tasks._fashion_mnist import FashionMnist
from overhaul.tasks._language_model import LanguageModel
from overhaul.tasks._lazy_samples import LazySamples
from overhaul.tasks._multilabel import MultiLabel
from overhaul.tasks._normalize import Normalize
from overhaul.tasks._prepare import SplitPlan, TargetRules, prepare_splits
from overhaul.tasks._regression import Regression
from overhaul.tasks._samples import Samples
from overhaul.tasks._sealed import Sealed, SealedData
from overhaul.tasks._single_task import SingleTask
from overhaul.tasks._split import DataSplit, as_split
from overhaul.tasks._token_samples import TokenSamples

__all__ = [
    "ArraySamples",
    "Cifar10",
    "Classification",
    "DataSource",
    "DataSplit",
    "DataTask",
    "Digits",
    "FashionMnist",
    "LanguageModel",
    "LazySamples",
    "MultiLabel",
    "Normalize",
    "Regression",
    "Samples",
    "Sealed",
    "SealedData",
    "SingleTask",
    "SplitPlan",
    "TargetRules",
    "TokenSamples",
    "as_samples",
    "as_split",
    "prepare_splits",
]
