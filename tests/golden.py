"""The reference implementation's own numbers, and the weights and images that they belong to.

``data/golden`` holds what the reference implementation (TensorFlow) computed for each of its published models, and for
narrow forms of them: in evaluation, in one training step, and over six steps (its README says more). Weights and images
are not stored: both follow from names and seeds, and a hash of each is compared before anything else is.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tnet.interop.tf_names import to_tensor, variable_names
from tnet.models.registry import create_model, model_config
from tnet.models.tnet import TNet
from tnet.objectives import Objective, ObjectiveConfig
from tnet.training.optimizers import KerasAdam

# The whole data, of which data/golden is a part, can be named instead.
FOLDER = Path(os.environ.get("TNET_GOLDEN") or Path(__file__).parent / "data" / "golden")

TINY = (
    "tiny_imagenet_tnet_3",
    "tiny_imagenet_bagnet77",
    "tiny_fmow_tnet_448_l2",
    "tiny_fmow_tnet_896_l3",
    "tiny_fmow_b0_224",
    "tiny_cub_tnet_b0_5",
    "tiny_cub_b0_448",
)
FULL = tuple(name.removeprefix("tiny_") for name in TINY)
MODELS = {
    "imagenet_tnet_3": "tnet_bagnet77.imagenet",
    "imagenet_bagnet77": "bagnet77.imagenet",
    "fmow_tnet_448_l2": "tnet_efficientnet_b0.fmow_448",
    "fmow_tnet_896_l3": "tnet_efficientnet_b0.fmow_896",
    "fmow_b0_224": "efficientnet_b0.fmow",
    "cub_tnet_b0_5": "tnet_efficientnet_b0.cub",
    "cub_b0_448": "efficientnet_b0.cub",
}

# Kernels are drawn from N(0, gain / inputs); the gain of the first fragment that is in "/name" counts.
_GAINS = {
    "/feature_extraction/part1/conv2d/": 6.0,
    "/comp_1/conv2d/": 1.9,
    "/comp_2/conv2d/": 1.9,
    "/comp_3/conv2d/": 0.25,
    "/shortcut_comp/conv2d/": 1.0,
    "/feature_extraction/part6/conv2d/": 2.5,
    "/stem/conv2d/": 6.0,
    "/expand/conv2d/": 1.0,
    "/depthwise/conv2d/": 2.8,
    "/feat_weighting/se/": 1.0,
    "/se/conv2d_": 1.5,
    "/location_prediction": 2.0,
    "/bottleneck/conv2d/": 9.0,
    "/top/conv2d/": 1.0,
    "/feature_posBurn/linear/": 6.0,
    "/feat_weighting/output_linear/": 0.3,
    "/feature_extraction/logits_layer/": 1.5,
}


def _normal(text: str, shape: tuple[int, ...]) -> NDArray:
    return np.random.RandomState(zlib.crc32(text.encode())).standard_normal(size=shape)


def probe(name: str, shape: tuple[int, ...]) -> NDArray:
    """The direction on which a gradient or change is projected, in TensorFlow's layout."""
    return _normal(f"probe:{name}", shape)


def value(name: str, shape: tuple[int, ...]) -> NDArray:
    """The weights of a variable: they follow from its name alone."""
    if name == "baseline_var":
        return np.float32(0.5)
    z = _normal(name, shape)
    leaf = name.rpartition("/")[2]
    if "_scaling/kernel" in name:
        z = 1 + 0.2 * z
    elif "kernel" in leaf:
        gain = next(gain for part, gain in _GAINS.items() if part in f"/{name}")
        inputs = np.prod(shape[:2] if leaf == "depthwise_kernel" else shape[:-1])
        z = z * np.sqrt(gain / inputs)
    else:
        mean, spread = {"gamma": (1, 0.1), "bias": (0, 0.05), "moving_variance": (0, 0.2)}.get(leaf, (0, 0.1))
        z = mean + spread * z
        z = np.exp(z) if leaf == "moving_variance" else z
    return np.asarray(z).astype(np.float32)


def _upsampling(count: int, size: int) -> NDArray:
    """Matrix of bilinear interpolation from ``count`` to ``size`` points, half-pixel centres."""
    at = (np.arange(size) + 0.5) * count / size - 0.5
    low = np.floor(at).astype(int)
    matrix = np.zeros((size, count))
    for row, (i, share) in enumerate(zip(low, at - low, strict=True)):
        matrix[row, np.clip(i, 0, count - 1)] += 1 - share
        matrix[row, np.clip(i + 1, 0, count - 1)] += share
    return matrix


@lru_cache(maxsize=32)
def image(seed: int, size: int) -> NDArray:
    """A random picture: five octaves of noise, and texture in a part of it; ``uint8`` ``[size, size, 3]``."""
    rng = np.random.RandomState(seed)
    pixels = np.zeros((size, size, 3))
    for count, amplitude in ((3, 1.0), (7, 0.8), (15, 0.5), (31, 0.35), (63, 0.25)):
        matrix = _upsampling(count, size)
        coarse = rng.standard_normal((count, count, 3))
        pixels += amplitude * np.einsum("ia,abc,jb->ijc", matrix, coarse, matrix, optimize=True)
    matrix = _upsampling(5, size)
    mask = matrix @ rng.standard_normal((5, 5)) @ matrix.T
    texture = rng.standard_normal((size // 2, size // 2, 3)).repeat(2, 0).repeat(2, 1)
    pixels += 0.6 * texture * (mask > 0)[..., None]
    pixels = 127.5 + 55.0 * pixels / pixels.std()
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


# The bias of the scores that a softmax turns into weights of features: a shift, without effect on them. Its gradient is
# that of the L2 penalty and, in both implementations, rounding (the reference's is off by 3e-3).
SHIFT = "feat_weighting/output_linear/bias"


class Golden:
    """One configuration's numbers.

    Args:
        name: of the configuration, one of :data:`TINY` or :data:`FULL`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        folder = FOLDER / name
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        self.noise: dict[str, Any] = json.loads((folder / "noise.json").read_text())
        self.eval = dict(np.load(folder / "eval.npz"))
        self.train = dict(np.load(folder / "train.npz"))
        self.shapes = {variable: tuple(shape) for variable, shape, _ in self.meta["variables"]}
        self.looks = tuple(int(number) for number in self.meta["model"].get("loc", ()))

    def flag(self, name: str, default: float) -> float:
        """A number from the command by which the reference implementation was run."""
        flags = self.meta["flags"]
        return float(flags[flags.index(f"--{name}") + 1]) if f"--{name}" in flags else default

    def weights(self) -> dict[str, NDArray]:
        """Every variable, in TensorFlow's layout."""
        statistics: dict[str, NDArray] = {}
        if self.meta["model"]["ds"] != "imagenet":
            width = "0.25" if self.meta["model"].get("width") else "1.0"
            statistics = dict(np.load(FOLDER / "bn_stats" / f"efficientnet_b0_w{width}.npz"))
        weights = {
            name: statistics[name].astype(np.float32) if name in statistics else value(name, shape)
            for name, shape in self.shapes.items()
        }
        digest = hashlib.sha256(b"".join(name.encode() + weights[name].tobytes() for name in sorted(weights)))
        assert digest.hexdigest() == self.meta["weights_sha256"]
        return weights

    def images(self, mode: str) -> Float[Tensor, "batch 3 side side"]:
        """The images of ``eval`` or ``train``, as the network gets them."""
        pixels = np.stack([image(seed, self.meta["image_size"]) for seed in self.meta[f"{mode}_image_seeds"]])
        x = (pixels.astype(np.float32) * np.float32(1 / 255) - np.float32(0.5)) * np.float32(2)
        assert hashlib.sha256(x.tobytes()).hexdigest() == self.meta[f"{mode}_input_sha256"]
        return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()

    @property
    def model_name(self) -> str:
        """The registered model."""
        return MODELS[self.name.removeprefix("tiny_")]

    def overrides(self) -> dict[str, Any]:
        """What distinguishes this configuration from the registered model: width, classes, and no random layers."""
        config = model_config(self.model_name)
        kwargs: dict[str, Any] = dict(config.backbone.kwargs)
        if config.backbone.name == "bagnet77":
            kwargs["spatial_dropout"] = 0.0
            if "mf" in self.meta["model"]:
                kwargs["expansion"] = self.meta["model"]["mf"]
        else:
            kwargs |= {"stochastic_depth": 0.0, "width": self.meta["model"].get("width", 1.0)}
        classes = self.meta["model"]["ncls"]
        return {"backbone": replace(config.backbone, kwargs=kwargs), "num_classes": classes, "dropout": 0.0}

    def model(self) -> TNet:
        """The model with the reference implementation's weights, in evaluation mode."""
        model = create_model(self.model_name, **self.overrides())
        weights, state = self.weights(), model.state_dict()
        for name, variable in variable_names(model, "reference").items():
            state[name] = to_tensor(variable, weights[variable])
        model.load_state_dict(state)
        return model.eval()

    def objective(self) -> ObjectiveConfig:
        """The objective of the configuration."""
        return ObjectiveConfig(
            joint_weight_ce=self.flag("perFReg_ce_weight", 1.0),
            joint_weight_reinforce=self.flag("perFReg_reinf_weight", 1.0),
            reinforce_weight=self.flag("reinfornce_reg_w", 0.0),
            per_feature_levels=int(self.flag("perFReg_cap", 0)),
            contrastive_weight=self.flag("l_contrastive", 0.0),
            contrastive_margin=self.flag("contrastive_margin", 0.4),
            l2_weight=self.flag("l2_reg", 0.0),
            l2_scope="new" if "--two_oprimizers" in self.meta["flags"] else "all",
        )


def tensorflow_layout(variable: str, tensor: Tensor) -> NDArray:
    """A parameter, gradient or statistic in TensorFlow's layout."""
    array = tensor.detach().cpu().numpy()
    if variable.endswith("depthwise_kernel"):
        return array.transpose(2, 3, 0, 1)
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def variables(model: TNet) -> Iterator[tuple[str, Tensor]]:
    """Every variable's name and tensor."""
    state = model.state_dict(keep_vars=True)
    for name, variable in variable_names(model, "reference").items():
        yield variable, state[name]


def six_steps(golden: Golden, dtype: torch.dtype) -> tuple[list[float], list[float], dict[str, NDArray]]:
    """Losses, baselines, and how far every variable has moved after six steps on one batch."""
    model = golden.model().to(dtype).train()
    objective = Objective(golden.objective()).train()
    start = {variable: tensor.detach().clone() for variable, tensor in variables(model)}
    lr = golden.flag("initial_lr", 0.0)
    backbone_lr = golden.flag("initial_lr2", lr)
    groups = [[p for n, p in model.named_parameters() if n.startswith("backbone.") is flag] for flag in (False, True)]
    optimizer = KerasAdam([{"params": groups[0], "lr": lr}, {"params": groups[1], "lr": backbone_lr}])
    images = golden.images("train").to(dtype)
    labels = torch.from_numpy(golden.train["labels"]).long()
    losses, baselines = [], []
    for step_lr in golden.train["traj_lr"]:
        for group, rate in zip(optimizer.param_groups, (lr, backbone_lr), strict=True):
            group["lr"] = rate * float(step_lr) / lr
        optimizer.zero_grad()
        loss = objective(model(images, golden.looks), labels, model)
        loss.total.backward()
        optimizer.step()
        losses.append(float(loss.total.detach()))
        baselines.append(float(objective.baseline))
    moved = {v: tensorflow_layout(v, t) - tensorflow_layout(v, start[v]) for v, t in variables(model)}
    return losses, baselines, moved
