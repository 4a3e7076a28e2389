"""Data, models and metrics of an experiment on structured outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Split(NamedTuple):
    """Inputs and targets."""

    x: Tensor
    y: Tensor


class Task(ABC):
    """Data, models and metrics of one experiment.

    Attributes:
        train: What is learned from.
        valid: What weights, thresholds and temperatures are chosen by.
        test: What is reported.
        labels: The models by name, and what they are called in tables.
        metric: The validation metric that chooses the weights: lower is better.
    """

    train: Split
    valid: Split
    test: Split
    labels: Mapping[str, str]
    metric: str

    @abstractmethod
    def build(self, name: str) -> nn.Module:
        """A fresh model."""

    @abstractmethod
    def loss(self, name: str, model: Any, batch: Split, generator: torch.Generator) -> Tensor:
        """The loss of an update."""

    @abstractmethod
    def evaluate(self, name: str, model: Any, split: Split) -> dict[str, float]:
        """Metrics during training, `metric` among them."""

    @abstractmethod
    def report(self, name: str, model: Any) -> dict[str, Any]:
        """Metrics of the trained model on the test set."""
