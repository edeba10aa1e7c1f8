"""Any timm model as a backbone."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import timm
import torch
from jaxtyping import Float
from timm.models import group_parameters
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import override

from tnet.backbones.base import Backbone, BackboneConfig, Described
from tnet.backbones.counting import SkipElementwise
from tnet.backbones.efficientnet import create_narrow, is_efficientnet, set_stochastic_depth
from tnet.errors import ConfigError, TnetError, first_line
from tnet.weights import check_state, read_tensors

# Arguments of timm.create_model that an untrusted configuration must not set.
_FORBIDDEN_KWARGS = {
    *("cache_dir", "checkpoint_path", "in_chans", "num_classes", "pretrained", "pretrained_cfg"),
    *("pretrained_cfg_overlay", "scriptable"),
}
_SAVED_BY_TNET = "backbone.model."  # prefix of the backbone's weights in a model saved by tnet
_POSITIONS_PER_CELL = 1.5  # of the tapped map, per axis, for `tap: auto`


class TimmBackbone(Backbone):
    """A timm model without its classifier.

    The pooled feature is the input of the model's classifier; the cell map is an intermediate map in ``[channels,
    height, width]`` form, also for transformers. Models with a fixed input size are built for ``base_px``;
    ``grid_side``, the larger of the grid's rows and columns, is used by ``tap: auto``.

    Attributes:
        frozen: modules that :meth:`freeze` keeps as they are.
        train_channels_last: use the channels-last memory format on the CPU also in training, as in evaluation. Faster,
            but batch norm then accumulates in single precision, and gradients are rounded more coarsely.
    """

    min_px = 8
    train_channels_last = False

    def __init__(self, config: BackboneConfig, in_channels: int, base_px: int, grid_side: int) -> None:
        super().__init__()
        self.frozen: list[nn.Module] = []
        self.config, self.in_channels = config, in_channels
        self.model = _create(config, in_channels, base_px)
        training = self.model.training
        self.model.eval()
        try:
            _, maps = self._probe(base_px, None)
            self._indices = self._choose_tap(config, [shape[-1] for shape in maps], grid_side)
            if not self._indices:
                self.model.get_submodule(str(config.tap)).register_forward_hook(_keep)
            self.model.train(training)
            pooled, maps = self._probe(base_px, self._indices)
        except TnetError:
            raise
        except Exception as error:  # timm's models raise almost anything for sizes that they do not support
            problem = f"does not support {base_px} px glimpses ({first_line(error)})"
            own_px = (getattr(self.model, "pretrained_cfg", None) or {}).get("input_size", (base_px,))[-1]
            other = "another base_px" if own_px == base_px else f"another base_px, such as {own_px},"
            remedy = f"{'correct backbone.kwargs, or ' if config.kwargs else ''}choose {other} or another backbone"
            raise ConfigError(f"backbone {config.name} {problem}; {remedy}") from None
        if len(pooled) != 2:
            remedy = "remove arguments such as global_pool, or choose another backbone"
            raise ConfigError(f"backbone {config.name} gives features of shape {list(pooled[1:])}; {remedy}")
        if not maps or len(maps[0]) != 4:
            raise ConfigError(f"tap {config.tap!r} of {config.name} is not a feature map; choose another module")
        self.feature_dim, self.cell_dim = pooled[1], maps[0][1]

    def freeze(self, stages: int | None) -> None:
        """Stop training the first stages, as timm groups them (the stem is one, or part of the first), or all if None.

        Their batch norm and dropout stay in evaluation mode. They need no gradients, hence less time and memory.

        Raises:
            ConfigError: there are fewer stages, or timm does not group them.
        """
        trained = [] if stages is None else self._after(stages)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name in trained)
        self.frozen = [
            part
            for path, part in self.model.named_modules()
            if next(part.parameters(), None) is not None
            and not any(name.startswith(f"{path}.".lstrip(".")) for name in trained)
        ]
        self.train(self.training)

    def _after(self, stages: int) -> list[str]:
        """Return the names of the parameters beyond the first stages."""
        problem = f"train.frozen_stages is {stages}, but"
        try:
            stage_of = group_parameters(self.model, self.model.group_matcher(coarse=True), reverse=True)
        except (AttributeError, AssertionError):  # a few models
            raise ConfigError(f"{problem} timm knows no stages of {self.config.name}; set it to 0") from None
        count = 1 + max(stage_of.values())
        if stages > count:
            raise ConfigError(f"{problem} {self.config.name} has {count}; give at most that")
        return [name for name, stage in stage_of.items() if stage >= stages]

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    @override
    def check_px(self, side_px: int) -> None:
        super().check_px(side_px)
        try:
            self._probe(side_px, self._indices)
        except Exception as error:
            problem = f"backbone {self.config.name} does not support regions of {side_px} px ({first_line(error)})"
            raise ConfigError(f"{problem} besides whole images; remove model.look_px, or choose another") from None

    def _probe(self, side_px: int, indices: list[int] | None) -> _Shapes:
        """Return the shapes of what :meth:`_run` gives for two glimpses.

        On the meta device, so that nothing is computed or allocated; once per process, as it takes a tenth of a second.
        """
        plain = replace(self.config, pretrained=False, weights=None)
        key = repr((plain, self.in_channels, side_px, indices, self.model.training))
        if key not in _PROBED:
            pooled, maps = self._run_on_meta(self.in_channels, side_px, indices)
            _PROBED[key] = tuple(pooled.shape), [tuple(m.shape) if isinstance(m, Tensor) else () for m in maps]
        return _PROBED[key]

    def _run_on_meta(self, in_channels: int, side_px: int, indices: list[int] | None) -> tuple[Tensor, list[Tensor]]:
        call = _Call(self.model, self._run)
        tensors = {
            f"{path}.{name}".removeprefix("."): tensor.to("meta")
            for path, module in call.named_modules()  # each once, also if several others share it
            for name, tensor in (*module.named_parameters("", False), *module.named_buffers("", False))
        }
        glimpses = torch.zeros(2, in_channels, side_px, side_px, device="meta")
        with torch.no_grad(), SkipElementwise():
            result: tuple[Tensor, list[Tensor]] = functional_call(call, tensors, (glimpses, indices), tie_weights=False)
        return result

    def _choose_tap(self, config: BackboneConfig, sides: list[int], grid_side: int) -> list[int]:
        """Return the indices of the map to use and of the last one, at which some models stop; none for a module."""
        tap = config.tap
        if tap == "auto":
            fine = [i for i, side in enumerate(sides) if side >= _POSITIONS_PER_CELL * grid_side]
            tap = fine[-1] if fine else 0
        if isinstance(tap, int):
            if not -len(sides) <= tap < len(sides):
                raise ConfigError(f"tap {tap} of {config.name} must be between {-len(sides)} and {len(sides) - 1}")
            return sorted({tap % len(sides), len(sides) - 1})
        if tap not in dict(self.model.named_modules()):
            raise ConfigError(f"tap {tap!r} is not a module of {config.name}; give an index, 'auto' or a module's name")
        return []

    def _run(self, glimpses: Tensor, indices: list[int] | None) -> tuple[Tensor, list[Tensor]]:
        """Return pooled features, and the maps of these indices (``None``: all; none: the tapped module)."""
        if indices or indices is None:
            final, maps = self.model.forward_intermediates(glimpses, indices=indices)
        else:
            token = _TAPPED.set(maps := [])
            try:
                final = self.model.forward_features(glimpses)
            finally:
                _TAPPED.reset(token)
        if isinstance(final, Tensor) and final.device.type == "cpu" and final.requires_grad and final.dim() == 4:
            # The gradient of a mean is one value expanded over the map, of which batch norm's gradient takes ten times
            # as long.
            final.register_hook(_dense)
        return self.model.forward_head(final, pre_logits=True), maps

    def forward(self, glimpses: Float[Tensor, "glimpses channels height width"]) -> Described:
        """Extract features of glimpses of the model's size (any size for convolutional models)."""
        if glimpses.device.type == "cpu" and (self.train_channels_last or not self.training):
            # Faster on the CPU (docs/results.md); other devices were not measured.
            glimpses = glimpses.contiguous(memory_format=torch.channels_last)
        pooled, maps = self._run(glimpses, self._indices)
        return Described(pooled, maps[0])


_Shapes = tuple[tuple[int, ...], list[tuple[int, ...]]]  # of pooled features, and of maps
_PROBED: dict[str, _Shapes] = {}

_TAPPED: ContextVar[list[Any] | None] = ContextVar("tapped", default=None)
"""Outputs of a tapped module in the current call, so that threads can share a model."""


def _keep(module: nn.Module, inputs: Any, output: Any) -> None:
    kept = _TAPPED.get()
    if kept is not None:
        kept.append(output)


def _dense(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


class _Call(nn.Module):
    """A function of a module as the ``forward`` of another."""

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, *arguments: Any) -> Any:
        return self.call(*arguments)


def _create(config: BackboneConfig, in_channels: int, base_px: int) -> Any:
    """Build the timm model without classifier, with the configured weights."""
    kwargs: dict[str, Any] = dict(config.kwargs)
    forbidden = sorted(_FORBIDDEN_KWARGS & kwargs.keys())
    if forbidden:
        remedy = "use backbone.pretrained or backbone.weights for weights"
        raise ConfigError(f"backbone kwargs must not contain {forbidden[0]!r}, which tnet sets itself; {remedy}")
    if config.pretrained and config.weights is not None:
        raise ConfigError(f"backbone has both pretrained: true and weights {config.weights}; choose one of them")
    if not timm.is_model(config.name):
        close = timm.list_models(f"*{config.name.split('.')[0][:8]}*")[:3]
        hint = f"; did you mean {', '.join(close)}" if close else ""
        raise ConfigError(f"backbone {config.name!r} is neither bagnet77 nor a timm model{hint}")
    width, stochastic_depth = _efficientnet_arguments(config, kwargs)
    try:
        default = timm.get_pretrained_cfg(config.name)
    except RuntimeError:
        architecture = config.name.partition(".")[0]
        tags = ", ".join(timm.list_models(f"{architecture}.*", pretrained=True)[:5])
        problem = f"backbone {config.name!r} has a tag of weights that timm does not know"
        raise ConfigError(f"{problem}; give {architecture}{f', or one of {tags}' if tags else ''}") from None
    if default is not None and default.fixed_input_size:
        kwargs.setdefault("img_size", base_px)
    try:
        model = (
            timm.create_model(config.name, pretrained=config.pretrained, num_classes=0, in_chans=in_channels, **kwargs)
            if width == 1
            else create_narrow(config.name, in_channels, width, **kwargs)
        )
    except TnetError:
        raise
    except Exception as error:  # timm's models check few of their arguments, and loading raises several types
        if config.pretrained and isinstance(error, (OSError, RuntimeError)):
            problem = f"pretrained weights of {config.name} cannot be loaded ({first_line(error)})"
            remedy = "connect to the network once, set HF_HOME to a cache with them, or set model.backbone.weights"
            raise ConfigError(f"{problem}; {remedy} to a file") from None
        given = f" with kwargs {kwargs}"[:200] if kwargs else ""
        remedy = "correct backbone.kwargs" if config.kwargs else "choose another base_px or another backbone"
        problem = f"backbone {config.name} cannot be built{given} for {base_px} px glimpses ({first_line(error)})"
        raise ConfigError(f"{problem}; {remedy}") from None
    if config.weights is not None:
        tensors = read_tensors(Path(config.weights))
        classifiers = getattr(default, "classifier", None) or ()
        classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
        if any(name.startswith(_SAVED_BY_TNET) for name in tensors):
            kept = {n.removeprefix(_SAVED_BY_TNET): t for n, t in tensors.items() if n.startswith(_SAVED_BY_TNET)}
        else:
            kept = {name: t for name, t in tensors.items() if name.rpartition(".")[0] not in classifiers}
        remedy = f"set model.backbone.name to their model, or give a file of {config.name}"
        check_state(model.state_dict(), kept, config.weights, remedy)
        model.load_state_dict(kept)
    if stochastic_depth:
        set_stochastic_depth(model, stochastic_depth)
    return model


def _efficientnet_arguments(config: BackboneConfig, kwargs: dict[str, Any]) -> tuple[float, float]:
    """Pop ``width`` and ``stochastic_depth`` from the arguments, if the backbone supports them."""
    if not is_efficientnet(config.name):
        return 1.0, 0.0
    values = {"width": kwargs.pop("width", 1.0), "stochastic_depth": kwargs.pop("stochastic_depth", 0.0)}
    for (key, value), limit in zip(values.items(), (4, 1), strict=True):
        if not isinstance(value, int | float) or not 0 <= value < limit or (key == "width" and not value):
            remedy = "give a width above 0 and below 4, and a stochastic_depth in [0, 1)"
            raise ConfigError(f"backbone kwargs {key} is {value!r}; {remedy}")
    if values["width"] != 1 and config.pretrained:
        width = f"backbone kwargs width is {values['width']}, but pretrained weights fit width 1"
        raise ConfigError(f"{width}; set pretrained: false")
    return values["width"], values["stochastic_depth"]
