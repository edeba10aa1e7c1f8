"""timm backbones: one model of each documented family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from tests.helpers import TINY_RESNET

from tnet.backbones import BackboneConfig, TimmBackbone
from tnet.errors import CheckpointError, ConfigError
from tnet.models.config import TNetConfig
from tnet.models.io import load_model, save_model
from tnet.models.tnet import TNet
from tnet.objectives import Objective, ObjectiveConfig

# With fewer layers and small inputs for speed.
FAMILIES: list[tuple[str, int, dict[str, Any]]] = [
    ("tf_efficientnet_b0", 64, {}),
    ("resnet10t", 64, TINY_RESNET.kwargs),
    ("mobilenetv3_small_050", 64, {}),
    ("convnext_atto", 64, {}),
    ("test_vit", 64, {}),
    ("vit_tiny_patch16_224", 64, {"depth": 3}),
    ("vit_small_patch14_dinov2", 56, {"depth": 2}),
]
families = pytest.mark.parametrize(("name", "side", "kwargs"), FAMILIES, ids=[name for name, _, _ in FAMILIES])


def build(name: str, side: int, kwargs: dict[str, Any], tap: str | int = "auto", **changes: Any) -> TimmBackbone:
    torch.manual_seed(0)
    config = BackboneConfig(name, tap, kwargs=kwargs, **changes)
    return TimmBackbone(config, in_channels=3, base_px=side, grid_side=3)


@families
def test_family_extracts_features(name: str, side: int, kwargs: dict[str, Any]) -> None:
    backbone = build(name, side, kwargs)
    assert backbone.training
    glimpses = torch.randn(2, 3, side, side, requires_grad=True)
    pooled, cell_map = backbone(glimpses)
    assert pooled.shape == (2, backbone.feature_dim)
    assert cell_map.shape[:2] == (2, backbone.cell_dim) and cell_map.ndim == 4
    # At least 1.5 positions for each of the 3 cells of an axis, where the model has such a map.
    assert cell_map.shape[-1] >= 4
    # Both depend on the glimpse (the square, because a sum over normalised features is a constant), and on each
    # glimpse alone in evaluation.
    for described in (pooled, cell_map):
        (gradient,) = torch.autograd.grad(described[0].square().sum(), glimpses, retain_graph=True)
        assert float(gradient[0].abs().max()) > 0 and torch.isfinite(gradient).all()
    backbone.eval()
    with torch.no_grad():
        both, alone = backbone(glimpses), backbone(glimpses[1:])
    torch.testing.assert_close(both.pooled[1:], alone.pooled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both.cell_map[1:], alone.cell_map, rtol=1e-4, atol=1e-4)


def test_channels_last_memory_format() -> None:
    backbone = build("resnet10t", 64, TINY_RESNET.kwargs)
    formats: list[bool] = []
    backbone.model.conv1.register_forward_pre_hook(
        lambda _, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    glimpses = torch.randn(2, 3, 64, 64)
    described = []
    for training, asked in ((True, False), (True, True), (False, False)):
        backbone.train(training).train_channels_last = asked
        described.append(backbone(glimpses).pooled)
    assert formats == [False, True, True]
    torch.testing.assert_close(described[0], described[1], rtol=1e-4, atol=1e-4)


@families
def test_pooled_feature_is_the_input_of_the_classifier(name: str, side: int, kwargs: dict[str, Any]) -> None:
    backbone = build(name, side, kwargs).eval()
    sized = {"img_size": side} if "vit" in name else {}
    model = timm.create_model(name, num_classes=7, **kwargs, **sized).eval()
    state = backbone.model.state_dict()
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and all(".weight" in key or ".bias" in key for key in missing.missing_keys)
    assert len(missing.missing_keys) == 2  # the classifier
    glimpses = torch.randn(2, 3, side, side)
    with torch.no_grad():
        logits = model.get_classifier()(backbone(glimpses).pooled)
        torch.testing.assert_close(logits, model(glimpses), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "side", "kwargs", "index", "module"),
    [
        ("resnet10t", 64, TINY_RESNET.kwargs, 2, "layer2"),
        pytest.param("convnext_atto", 64, {}, 1, "stages.1", marks=pytest.mark.slow),
    ],
)
def test_tap_by_index_by_name_and_automatic(
    name: str, side: int, kwargs: dict[str, Any], index: int, module: str
) -> None:
    by_index, by_name = build(name, side, kwargs, index).eval(), build(name, side, kwargs, module).eval()
    glimpses = torch.randn(1, 3, side, side)
    with torch.no_grad():
        first, second = by_index(glimpses), by_name(glimpses)
        assert torch.equal(first.cell_map, second.cell_map) and torch.allclose(first.pooled, second.pooled, atol=1e-6)
        assert by_index.cell_dim == by_name.cell_dim == first.cell_map.shape[1]
        # The deepest map with 1.5 positions a cell and axis: for 3 cells a side 5, for 1 cell 2.
        maps = by_index.model.forward_intermediates(glimpses)[1]
        negative = build(name, side, kwargs, index - len(maps)).eval()
        assert torch.equal(negative(glimpses).cell_map, first.cell_map)
        for cells in (1, 2, 3, 5):
            config = BackboneConfig(name, kwargs=kwargs)
            automatic = TimmBackbone(config, 3, side, cells).eval()(glimpses).cell_map.shape[-1]
            assert automatic == min(m.shape[-1] for m in maps if m.shape[-1] >= 1.5 * cells)


def test_auto_tap_falls_back_to_the_finest_map() -> None:
    config = BackboneConfig(TINY_RESNET.name, kwargs=TINY_RESNET.kwargs)
    backbone = TimmBackbone(config, 1, 32, grid_side=40)
    assert backbone(torch.rand(2, 1, 32, 32)).cell_map.shape[-1] == 16


def test_published_tap_inside_a_stage() -> None:
    backbone = build("tf_efficientnet_b0", 64, {}, "blocks.3.0")
    assert backbone.cell_dim == 80 and backbone(torch.rand(2, 3, 64, 64)).cell_map.shape == (2, 80, 4, 4)


def test_building_keeps_batch_norm_statistics() -> None:
    backbone = build("resnet10t", 64, TINY_RESNET.kwargs, "layer2")
    counts = [value for name, value in backbone.state_dict().items() if name.endswith("num_batches_tracked")]
    assert counts and not any(counts)


def test_convolutional_models_accept_other_sizes() -> None:
    backbone = build("resnet10t", 64, TINY_RESNET.kwargs)
    assert backbone(torch.rand(2, 3, 96, 80)).cell_map.shape[-2:] == (12, 10)


@pytest.mark.parametrize(
    ("name", "side", "kwargs", "tap", "message"),
    [
        ("resnet10q", 64, {}, "auto", "'resnet10q'.*did you mean .*resnet10"),
        ("no-such-thing", 64, {}, "auto", "'no-such-thing'"),
        ("hf-hub:someone/something", 64, {}, "auto", "'hf-hub:someone/something'"),
        ("resnet10t", 64, {"depht": 2}, "auto", "depht"),
        ("resnet10t", 64, {}, 9, r"tap 9 .* between -5 and 4"),
        ("resnet10t", 64, {}, -6, r"tap -6"),
        ("resnet10t", 64, {}, "layer9", "tap 'layer9'"),
        ("resnet10t", 64, {}, "global_pool", "tap 'global_pool'"),
        ("test_vit", 64, {}, "blocks.0", "tap 'blocks.0'"),
        ("convnext_atto", 8, {}, "auto", "convnext_atto .* 8 px"),
        ("resnet10t", 64, {"checkpoint_path": "weights.pth"}, "auto", "'checkpoint_path'"),
        ("resnet10t", 64, {"pretrained": True}, "auto", "'pretrained'"),
        ("resnet10t.none", 64, {}, "auto", "'resnet10t.none' has a tag .* give resnet10t, or one of resnet10t.c3_in1k"),
        ("resnet10t", 64, {"global_pool": "median"}, "auto", "'global_pool': 'median'.*Invalid pool type"),
        ("resnet10t", 64, {"global_pool": ""}, "auto", r"features of shape \[512, 2, 2\]"),
        ("resnet10t", 64, {"global_pool": 3}, "auto", "kwargs {'global_pool': 3}"),
        ("resnet10t", 64, {"act_layer": "none"}, "auto", "kwargs {'act_layer': 'none'}"),
        ("resnet10t", 64, {"features_only": True}, "auto", "resnet10t does not support"),
        ("resnet10t", 64, {"drop_rate": 5}, "auto", "dropout probability"),  # which only training shows
        ("halonet26t", 224, {}, "auto", r"halonet26t .* 224 px .*such as 256"),  # from an error without text
    ],
)
def test_invalid_backbone(name: str, side: int, kwargs: dict[str, Any], tap: str | int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, side, kwargs, tap)


def test_probing_takes_no_memory_for_glimpses() -> None:
    """Two glimpses of this size have 24 GB in the first layer alone."""
    config = BackboneConfig("test_resnet")
    assert TimmBackbone(config, 3, 20_000, 3).feature_dim == TimmBackbone(config, 3, 64, 3).feature_dim


# The smallest model of most of timm's modules; the largest are left out.
SWEPT = [
    "beit_base_patch16_224", "botnet26t_256", "cait_xxs24_224", "coat_tiny", "convit_tiny", "convnext_zepto_rms",
    "crossvit_tiny_240", "test_convnext", "csatv2", "cs3darknet_focus_s", "davit_tiny", "deit_tiny_patch16_224",
    "densenet121", "dla46x_c", "dpn48b", "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0",
    "test_efficientnet", "efficientvit_b0", "efficientvit_m0", "eva02_tiny_patch14_224", "fasternet_t0", "fastvit_t8",
    "focalnet_tiny_srf", "gcvit_xxtiny", "ghostnet_050", "hardcorenas_b", "hgnetv2_b0", "hiera_tiny_224",
    "sam2_hiera_tiny", "hrnet_w18_small", "inception_next_atto", "inception_v3", "lcnet_035", "levit_128s",
    "test_mambaout", "test_maxvit", "coatnet_pico_rw_224", "poolformer_s12", "caformer_s18", "gmlp_ti16_224",
    "mixer_s16_224", "mobilenetv2_035", "mobilenetv3_small_050", "mobilevit_xxs", "mobilevitv2_050", "mvitv2_tiny",
    "nest_tiny", "test_nfnet", "pit_ti_224", "pvt_v2_b0", "regnetx_002", "repghostnet_050", "repvit_m1", "resnest14d",
    "test_resnet", "resnetv2_18", "rexnet_100", "selecsls42", "legacy_seresnet18", "skresnet18", "starnet_s050",
    "swiftformer_xs", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_224",
    "tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "twins_svt_small", "visformer_tiny", "test_vit", "test_vit_relpos",
    "ese_vovnet19b_slim_dw", "halonet26t", "bat_resnext26ts", "lambda_resnet26t", "test_byobnet",
]  # fmt: skip
# Of modules without a small model: fewer blocks.
SHALLOW: dict[str, dict[str, object]] = {
    "beit_base_patch16_224": {"depth": 2},
    "swin_tiny_patch4_window7_224": {"depths": [1, 1, 2, 1]},
    "swinv2_cr_tiny_224": {"depths": [1, 1, 2, 1]},
    "swinv2_tiny_window8_256": {"depths": [1, 1, 2, 1]},
    "tnt_s_legacy_patch16_224": {"depth": 2},
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(4))
def test_every_family_trains_or_says_why_not(part: int, tmp_path: Path) -> None:
    """At the default size and grid: a step, gradients, saving, loading, and a single image; or one sentence at once."""
    refused, failed = set(), []
    for name in SWEPT[part::4]:
        torch.manual_seed(0)
        backbone = BackboneConfig(name, kwargs=SHALLOW.get(name, {}))
        config = TNetConfig(num_classes=3, backbone=backbone, looks=(1,))
        try:
            model = TNet(config).train()
        except ConfigError as error:
            refused.add(name)
            failed += [str(error)] * (f"{name} does not support" not in str(error) or "\n" in str(error))
            continue
        try:
            images = torch.randint(0, 256, (2, 3, 300, 300), dtype=torch.uint8)
            Objective(ObjectiveConfig())(model(images), torch.tensor([0, 2]), model).total.backward()
            gradients = [p.grad for p in model.backbone.parameters() if p.grad is not None]
            assert all(bool(g.isfinite().all()) for g in gradients) and any(bool(g.any()) for g in gradients)
            loaded = load_model(save_model(model, tmp_path / name))
            with torch.inference_mode():
                assert torch.equal(model.eval()(images[:1]).logits, loaded(images[:1]).logits)
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__} {error}")
    assert not failed
    assert refused == {"bat_resnext26ts", "crossvit_tiny_240", "halonet26t"} & set(SWEPT[part::4])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file(tmp_path: Any, suffix: str) -> None:
    model = timm.create_model("resnet10t", num_classes=4, **TINY_RESNET.kwargs)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    backbone = build("resnet10t", 64, TINY_RESNET.kwargs, weights=str(path))
    expected = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("fc.")}
    actual = backbone.model.state_dict()
    assert actual.keys() == expected.keys() and all(torch.equal(actual[name], expected[name]) for name in expected)
    with pytest.raises(CheckpointError, match=path.name):
        build("resnet10t", 64, {}, weights=str(path))
    with pytest.raises(ConfigError, match=f"pretrained.*{path.name}"):
        build("resnet10t", 64, TINY_RESNET.kwargs, weights=str(path), pretrained=True)
    with pytest.raises(CheckpointError, match=r"none\.pth"):
        build("resnet10t", 64, TINY_RESNET.kwargs, weights=str(tmp_path / "none.pth"))


@pytest.mark.parametrize(
    "content", [b"text, not weights\n", b"", b"PK\x03\x04 cut off", b"\x80\x02csubprocess\ncall\n"]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_not_weights(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=path.name):
        build("resnet10t", 64, TINY_RESNET.kwargs, weights=str(path))


def test_pretrained_weights_come_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cached weights load offline; missing ones are an error."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="test_resnet.*HF_HOME"):
        build("test_resnet", 64, {}, pretrained=True)
    model = timm.create_model("test_resnet")
    repository = tmp_path / "models--timm--test_resnet.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(model.state_dict(), repository / "snapshots" / ("0" * 40) / "model.safetensors")
    actual = build("test_resnet", 64, {}, pretrained=True).model.state_dict()
    assert actual and all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in actual.items())


@families
def test_frozen_stages_get_no_gradients_and_stay_in_evaluation(name: str, side: int, kwargs: dict[str, Any]) -> None:
    backbone = build(name, side, kwargs)
    backbone.freeze(2)
    trained = {name: parameter.requires_grad for name, parameter in backbone.model.named_parameters()}
    first, last = next(iter(trained)), [name for name in trained if "head" not in name][-1]
    assert not trained[first] and trained[last]
    for mode in (True, False):
        backbone.train(mode)
        frozen = {id(part) for top in backbone.frozen for part in top.modules()}
        for part in backbone.model.modules():
            own = list(part.parameters())
            assert not own or (id(part) in frozen) != any(parameter.requires_grad for parameter in own)
            assert part.training == (mode and id(part) not in frozen)
    backbone.train()(torch.randn(2, 3, side, side)).pooled.square().sum().backward()
    assert all((parameter.grad is not None) <= parameter.requires_grad for parameter in backbone.parameters())


def test_a_model_without_stages_cannot_be_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build("resnet10t", 64, TINY_RESNET.kwargs)
    monkeypatch.delattr(type(backbone.model), "group_matcher")
    with pytest.raises(ConfigError, match=r"frozen_stages is 2.*no stages of resnet10t"):
        backbone.freeze(2)


@pytest.mark.parametrize("count", [5, None])
def test_all_stages_can_be_frozen_but_no_more(count: int | None) -> None:
    backbone = build("resnet10t", 64, TINY_RESNET.kwargs)
    backbone.freeze(count)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(part.training for part in backbone.model.modules())
    with pytest.raises(ConfigError, match=r"frozen_stages is 6.*resnet10t has 5"):
        build("resnet10t", 64, TINY_RESNET.kwargs).freeze(6)
