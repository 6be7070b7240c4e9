"""Training of the tracker on pairs: through the frozen backbone once, or through everything at each step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from mmengine.optim import LinearLR, MultiStepLR, build_optim_wrapper
from torch.utils.data import DataLoader, Dataset

from downstream.tracking.model import SingleObjectTracker
from downstream.tracking.pairs import FeatureDataset, PairDataset
