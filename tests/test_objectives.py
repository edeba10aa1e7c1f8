"""Training objective: each term against its formula in plain loops, and against the reference implementation.

The reference numbers (``tests/golden.py``) are the weighted terms of the loss for one batch in training mode, without
dropout, of narrow variants of the published models.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.golden import Golden
from tests.helpers import TINY_BAGNET, location_logits_by_level, pictures, three_levels, tiny_config
from torch import Tensor

from tnet.backbones.base import batch_norms
from tnet.errors import ConfigError
from tnet.geometry import Grid, Regions, choose_cells, whole_images
from tnet.losses import classification_loss, contrastive_loss, penalised_parameters, reward
from tnet.models.config import LocatorConfig, TNetConfig
from tnet.models.tnet import TNet, TNetOutput
from tnet.objectives import Loss, Objective, ObjectiveConfig
from tnet.traversal import BestFirst, StoppingRule, Trail
from tnet.traversal.trail import group_rows

BATCH, CLASSES = 4, 5
# Features of each level: the whole image, 2 regions, 2 regions in each of these.
COUNTS = (1, 2, 4)


def output_of(
    logits: Tensor,
    feature_logits: Tensor,
    log_prob: Tensor,
    joint_log_prob: Tensor,
    counts: tuple[int, ...] = COUNTS,
    features: Tensor | None = None,
    location_logits: tuple[Tensor, ...] = (),
) -> TNetOutput:
    """Output of a model with these numbers."""
    batch, n = feature_logits.shape[:2]
    features = torch.ones(batch, n, 3, dtype=logits.dtype) if features is None else features
    table = whole_images([(1000, 1000)] * batch)
    for level in range(1, len(counts)):
        parents = (table.level == level - 1).nonzero().flatten()
        cells = torch.stack([torch.randperm(9)[: counts[level] // counts[level - 1]].sort().values for _ in parents])
        table = Regions.concat([table, choose_cells(table.take(parents), Grid(3, 3, 0.5), cells, parents)])
    return TNetOutput(
        logits=logits,
        feature_logits=feature_logits,
        features=features,
        aggregate=features.mean(dim=1),
        weights=torch.full((batch, n), 1 / n, dtype=logits.dtype),
        regions=table,
        rows=group_rows(table.image, batch)[0],
        seen=None,
        location_logits=torch.cat(location_logits) if location_logits else logits.new_zeros(0, 9),
        divided=torch.arange(sum(len(item) for item in location_logits)),
        gains=None,
        log_prob=log_prob,
        joint_log_prob=joint_log_prob,
    )


def random_output(counts: tuple[int, ...] = COUNTS, cells: int = 9) -> TNetOutput:
    """Random 64-bit output; the joint log-probability is independent of the others."""
    n = sum(counts)
    draw = torch.Generator().manual_seed(11)
    options: dict[str, Any] = {"generator": draw, "dtype": torch.float64}
    per_level = tuple(torch.randn(BATCH * count, cells, **options) for count in counts[:-1])
    return output_of(
        torch.randn(BATCH, CLASSES, **options),
        torch.randn(BATCH, n, CLASSES, **options),
        -torch.rand(BATCH, n - 1, **options) * 3,
        -torch.rand(BATCH, **options) * 9 if n > 1 else torch.zeros(BATCH, dtype=torch.float64),
        counts,
        torch.randn(BATCH, n, 6, **options),
        per_level,
    )


TARGET = torch.tensor([0, 3, 3, 1])
LABELS = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0]], dtype=torch.float64)


def loss_of(output: TNetOutput, target: Tensor = TARGET, **changes: Any) -> Loss:
    return Objective(ObjectiveConfig(**changes))(output, target)


def cross_entropy(logits: np.ndarray, target: int, smoothing: float = 0.0) -> float:
    """``-sum_c q_c log p_c`` with ``q`` the smoothed one-hot target."""
    p = np.exp(logits - logits.max())
    p /= p.sum()
    total = 0.0
    for index, probability in enumerate(p):
        q = (1 - smoothing) * (index == target) + smoothing / len(p)
        total -= q * math.log(probability)
    return total


def right(logits: np.ndarray, target: int) -> float:
    return 1.0 if int(np.argmax(logits)) == target else 0.0


def expected_terms(
    output: TNetOutput, config: ObjectiveConfig, features: int, baseline: float = 0.5
) -> dict[str, float]:
    """The four terms of the paper's objective in plain loops, with single features up to number ``features``."""
    logits, single = output.logits.numpy(), output.feature_logits.numpy()
    log_prob, joint = output.log_prob.numpy(), output.joint_log_prob.numpy()
    target = TARGET.tolist()
    ce, ce_single, rf, rf_single = [], [], [], []
    for image in range(BATCH):
        ce.append(cross_entropy(logits[image], target[image], config.label_smoothing))
        rf.append((right(logits[image], target[image]) - baseline) * -joint[image])
        for feature in range(features):
            ce_single.append(cross_entropy(single[image, feature], target[image], config.label_smoothing))
            if feature > 0:  # the whole image was not chosen
                gain = right(single[image, feature], target[image]) - baseline
                rf_single.append(gain * -log_prob[image, feature - 1])
    weight = config.reinforce_weight
    return {
        "cross_entropy": config.joint_weight_ce * sum(ce) / len(ce),
        "cross_entropy_per_feature": (1 - config.joint_weight_ce) * sum(ce_single) / len(ce_single),
        "reinforce": weight * config.joint_weight_reinforce * sum(rf) / len(rf),
        "reinforce_per_feature": weight * (1 - config.joint_weight_reinforce) * sum(rf_single) / len(rf_single),
    }


def values(loss: Loss) -> dict[str, float]:
    return {name: float(term.detach()) for name, term in loss.terms.items()}


@pytest.mark.parametrize(
    ("changes", "features"),
    [
        ({}, 7),
        ({"joint_weight_ce": 0.2, "joint_weight_reinforce": 0.6, "reinforce_weight": 3.0}, 7),
        ({"label_smoothing": 0.1}, 7),
        ({"per_feature_levels": 2}, 3),
        ({"per_feature_levels": 3}, 7),
        ({"per_feature_levels": 9}, 7),
    ],
)
def test_four_terms_of_the_paper(changes: dict[str, Any], features: int) -> None:
    output = random_output()
    rewards = reward(output.feature_logits, TARGET[:, None].expand(-1, 7))[:, 1:]
    assert 0 < float(rewards.mean()) < 1  # some are correct, some are not
    loss = loss_of(output, **changes)
    expected = expected_terms(output, ObjectiveConfig(**changes), features)
    assert values(loss) == pytest.approx(expected, rel=1e-6)
    assert float(loss.total) == pytest.approx(sum(expected.values()), rel=1e-6)


def test_total_is_the_sum_of_terms() -> None:
    model = TNet(tiny_config())
    config = ObjectiveConfig(contrastive_weight=2.0, l2_weight=0.1, entropy_weight=0.5, reinforce_weight=1.0)
    loss = Objective(config)(random_output(), TARGET, model)
    names = {"cross_entropy", "cross_entropy_per_feature", "reinforce", "reinforce_per_feature"}
    assert loss.terms.keys() == names | {"contrastive", "l2", "entropy"}
    assert float(loss.total.detach()) == pytest.approx(sum(values(loss).values()), rel=1e-6)


def test_no_reinforce_terms_without_looks() -> None:
    loss = loss_of(random_output((1,)), entropy_weight=1.0)
    assert loss.terms.keys() == {"cross_entropy", "cross_entropy_per_feature"}


def test_joint_terms_only() -> None:
    output = random_output()
    loss = loss_of(output, joint_weight_ce=1.0, joint_weight_reinforce=1.0)
    assert loss.terms.keys() == {"cross_entropy", "reinforce"}
    assert float(loss.terms["cross_entropy"]) == pytest.approx(
        float(torch.nn.functional.cross_entropy(output.logits, TARGET))
    )


def test_cap_of_one_level_keeps_only_the_whole_image() -> None:
    """No chosen feature is left for the per-feature REINFORCE term; the baseline follows the joint reward."""
    output = random_output()
    objective = Objective(ObjectiveConfig(per_feature_levels=1)).train()
    loss = objective(output, TARGET)
    assert loss.terms.keys() == {"cross_entropy", "cross_entropy_per_feature", "reinforce"}
    first = [cross_entropy(output.feature_logits[i, 0].numpy(), int(TARGET[i])) for i in range(BATCH)]
    assert float(loss.terms["cross_entropy_per_feature"]) == pytest.approx(0.7 * sum(first) / BATCH, rel=1e-6)
    assert float(objective.baseline) == pytest.approx(0.9 * 0.5 + 0.1 * float(loss.reward))


# --- the optional terms


@pytest.mark.parametrize(("smoothing", "levels", "features"), [(0.0, 0, 7), (0.1, 0, 7), (0.0, 2, 3), (0.0, 1, 1)])
def test_one_of_the_features_must_know(smoothing: float, levels: int, features: int) -> None:
    output = random_output()
    changes = {"label_smoothing": smoothing, "per_feature_levels": levels}
    loss = loss_of(output, per_feature="mixture", joint_weight_ce=0.4, **changes)
    single = output.feature_logits.numpy()[:, :features]
    expected = []
    for image, target in enumerate(TARGET.tolist()):
        likelihoods = [math.exp(-cross_entropy(logits, target, smoothing)) for logits in single[image]]
        expected.append(-math.log(sum(likelihoods) / features))
    found = float(loss.terms["cross_entropy_per_feature"])
    assert found == pytest.approx(0.6 * sum(expected) / BATCH, rel=1e-6)
    others = loss_of(output, joint_weight_ce=0.4, **changes)
    assert found <= float(others.terms["cross_entropy_per_feature"]) + 1e-6  # Jensen's inequality
    assert loss.terms.keys() == others.terms.keys()


@pytest.mark.parametrize(("smoothing", "levels", "features"), [(0.0, 0, 7), (0.1, 2, 3), (0.0, 1, 1)])
def test_each_of_several_labels_must_be_known_by_one_of_the_features(
    smoothing: float, levels: int, features: int
) -> None:
    output = random_output()
    labels = (torch.arange(output.logits.numel()).view_as(output.logits) % 3 == 0).to(output.logits)
    changes = {"label_smoothing": smoothing, "per_feature_levels": levels}
    loss = loss_of(output, target=labels, per_feature="mixture", joint_weight_ce=0.4, **changes)
    absent = (1 - output.feature_logits[:, :features].double().sigmoid()).prod(dim=1).numpy()
    smoothed = labels.double().numpy() * (1 - smoothing) + smoothing / 2
    expected = -(smoothed * np.log(1 - absent) + (1 - smoothed) * np.log(absent)).mean()
    assert float(loss.terms["cross_entropy_per_feature"]) == pytest.approx(0.6 * expected, rel=1e-5)


@pytest.mark.parametrize("logit", [-60.0, 0.0, 60.0])
def test_labels_learn_from_features_that_are_sure(logit: float) -> None:
    output = random_output()
    logits = torch.full_like(output.feature_logits, logit).requires_grad_()
    labels = torch.full_like(output.logits, float(logit < 0))  # the opposite
    loss = loss_of(replace(output, feature_logits=logits), target=labels, per_feature="mixture", joint_weight_ce=0.0)
    (slope,) = torch.autograd.grad(loss.terms["cross_entropy_per_feature"], logits)
    assert bool(slope.isfinite().all())
    assert bool((slope * (1 if logit >= 0 else -1) > 0).all())  # downhill is away from the mistake


def test_features_learn_by_their_share_of_the_mixture() -> None:
    output = random_output()
    logits = output.feature_logits.clone().requires_grad_()
    loss = loss_of(replace(output, feature_logits=logits), per_feature="mixture", joint_weight_ce=0.0)
    (slope,) = torch.autograd.grad(loss.terms["cross_entropy_per_feature"], logits)
    probs = logits.detach().softmax(dim=2)
    likely = probs[torch.arange(BATCH)[:, None], torch.arange(7), TARGET[:, None]]
    alone = probs - torch.nn.functional.one_hot(TARGET, probs.shape[2])[:, None]  # of a feature's own cross entropy
    torch.testing.assert_close(slope, (likely / likely.sum(1, keepdim=True))[:, :, None] * alone / BATCH)


@pytest.mark.parametrize("margin", [0.4, 0.0])
def test_contrastive_loss_is_the_mean_over_all_pairs(margin: float) -> None:
    output = random_output()
    vectors = output.aggregate.numpy()
    pairs = []
    for i in range(BATCH):
        for j in range(BATCH):
            cosine = vectors[i] @ vectors[j] / (np.linalg.norm(vectors[i]) * np.linalg.norm(vectors[j]))
            pairs.append(1 - cosine if TARGET[i] == TARGET[j] else max(cosine - margin, 0.0))
    assert len(pairs) == BATCH**2 and any(pair > 0.01 for pair in pairs)
    loss = loss_of(output, contrastive_weight=50.0, contrastive_margin=margin)
    assert float(loss.terms["contrastive"]) == pytest.approx(50 * sum(pairs) / BATCH**2, rel=1e-6)


def test_contrastive_loss_of_a_small_example() -> None:
    """Two features at 60 degrees: of one class they cost 1 - 0.5 twice in four pairs, of two classes 0.5 - 0.4."""
    features = torch.tensor([[2.0, 0.0], [0.5, 0.75**0.5]])
    together, apart = torch.ones(2, 2, dtype=torch.bool), torch.eye(2, dtype=torch.bool)
    assert float(contrastive_loss(features, together, 0.4)) == pytest.approx(0.25)
    assert float(contrastive_loss(features, apart, 0.4)) == pytest.approx(0.05)


def test_contrastive_loss_with_multiple_labels() -> None:
    output = random_output()
    unit = torch.nn.functional.normalize(output.aggregate, dim=1)
    cosine = unit @ unit.T
    expected = 0.0
    for i in range(BATCH):
        for j in range(BATCH):
            shared = bool((LABELS[i] * LABELS[j]).sum() > 0)
            expected += float(1 - cosine[i, j]) if shared else max(float(cosine[i, j]) - 0.4, 0.0)
    loss = loss_of(output, LABELS, contrastive_weight=3.0)
    assert float(loss.terms["contrastive"]) == pytest.approx(3 * expected / BATCH**2, rel=1e-6)


@pytest.mark.parametrize("scope", ["all", "new"])
@pytest.mark.parametrize("config", [tiny_config(aggregation="weighted"), tiny_config(backbone=TINY_BAGNET)])
def test_l2_includes_biases_but_not_norms(config: TNetConfig, scope: Any) -> None:
    model = TNet(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)  # no bias is 0
    state = dict(model.named_modules())
    expected = 0.0
    for name, parameter in model.named_parameters():
        owner = state[name.rpartition(".")[0]]
        if "Norm" in type(owner).__name__ or (scope == "new" and name.startswith("backbone.")):
            continue
        expected += float((parameter.detach().numpy().astype(np.float64) ** 2).sum())
    loss = Objective(ObjectiveConfig(l2_weight=0.01, l2_scope=scope))(random_output(), TARGET, model)
    assert float(loss.terms["l2"].detach()) == pytest.approx(0.01 * expected, rel=1e-5)
    penalised = {id(parameter) for parameter in penalised_parameters(model, scope)}
    assert id(model.classifier.bias) in penalised
    backbone = {id(parameter) for parameter in model.backbone.parameters()}
    assert bool(penalised & backbone) == (scope == "all")


def test_l2_excludes_frozen_parameters() -> None:
    model = TNet(tiny_config())
    model.classifier.weight.requires_grad_(False)
    assert id(model.classifier.weight) not in {id(parameter) for parameter in penalised_parameters(model, "all")}


def test_entropy_bonus_is_averaged_over_divided_regions() -> None:
    output = random_output()
    entropies = []
    for row in output.location_logits.numpy():
        p = np.exp(row) / np.exp(row).sum()
        entropies.append(-(p * np.log(p)).sum())
    assert len(entropies) == BATCH * (1 + 2)
    loss = loss_of(output, entropy_weight=0.2)
    assert float(loss.terms["entropy"]) == pytest.approx(-0.2 * sum(entropies) / len(entropies), rel=1e-6)


# --- what looks are worth


def traverse(config: TNetConfig) -> tuple[TNet, TNetOutput]:
    torch.manual_seed(3)
    model = TNet(replace(config, dropout=0.5)).double()
    images = torch.randn(BATCH, 1, 96, 96, dtype=torch.float64)
    return model, model(images, policy="sample")


@pytest.mark.parametrize("aggregation", ["mean", "weighted", "attention"])
def test_worth_is_the_log_likelihood_given_the_look_and_the_whole(aggregation: Any) -> None:
    model, output = traverse(three_levels(aggregation=aggregation))
    worth = Objective.worth(output, TARGET, model)
    assert worth.shape == (BATCH, 2 + 4) and not worth.requires_grad
    for image in range(BATCH):
        for look in range(6):
            pair = output.features[image, [0, look + 1]][None]
            weights = model.aggregation(pair).weights[0]
            logits = model.classifier(weights[0] * pair[0, 0] + weights[1] * pair[0, 1])
            expected = -cross_entropy(logits.detach().numpy(), int(TARGET[image]))
            assert float(worth[image, look]) == pytest.approx(expected, rel=1e-9)


def test_worth_term_is_relative_to_siblings() -> None:
    model, output = traverse(three_levels())
    loss = Objective(ObjectiveConfig(worth_weight=0.7))(output, TARGET, model)
    worth = Objective.worth(output, TARGET, model).numpy()
    groups = [worth[:, :2].reshape(-1, 2), worth[:, 2:].reshape(-1, 2)]  # by parent
    means = []
    for level, group in enumerate(groups):
        gains = []
        chosen = output.regions.at_level(level + 1).cell.reshape(-1, 2).tolist()
        for row, (values_of, cells) in enumerate(zip(group, chosen, strict=True)):
            said = np.exp(location_logits_by_level(output)[level][row].detach().numpy()[cells])
            gains.append((said / said.sum() * values_of).sum() - values_of.mean())
        means.append(sum(gains) / len(gains))
    assert float(loss.terms["worth"].detach()) == pytest.approx(-0.7 * sum(means) / 2, rel=1e-9)
    loss.terms["worth"].backward()
    parts = {name.split(".")[0] for name, item in model.named_parameters() if item.grad is not None}
    assert parts == {"locator"}


def test_worth_gradient_prefers_the_best_look() -> None:
    """Whatever the cells say, the one whose region is worth more than its siblings is asked for."""
    model, output = traverse(tiny_config(looks=(3,), locator=LocatorConfig("squeeze", logits="l2_scaled")))
    best = Objective.worth(output, TARGET, model).argmax(dim=1)
    wanted = output.regions.at_level(1).cell.reshape(BATCH, 3).gather(1, best[:, None])
    logits = torch.zeros(BATCH, 9, dtype=torch.float64, requires_grad=True)
    loss = Objective(ObjectiveConfig(worth_weight=1.0, reinforce_weight=0.0))(
        replace(output, location_logits=logits), TARGET, model
    )
    (gradient,) = torch.autograd.grad(loss.total, logits)
    assert torch.equal(gradient.argmin(dim=1, keepdim=True), wanted)


def test_worth_with_one_look_and_without_a_model() -> None:
    model, output = traverse(tiny_config(looks=(1,)))
    assert float(Objective(ObjectiveConfig(worth_weight=1.0))(output, TARGET, model).terms["worth"]) == 0
    with pytest.raises(ConfigError, match="worth_weight"):
        Objective(ObjectiveConfig(worth_weight=1.0))(output, TARGET)


# --- several labels


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_multilabel_loss_is_the_mean_binary_cross_entropy(smoothing: float) -> None:
    logits = random_output().logits
    expected = []
    for i in range(BATCH):
        costs = []
        for c in range(CLASSES):
            p = 1 / (1 + math.exp(-float(logits[i, c])))
            q = float(LABELS[i, c]) * (1 - smoothing) + smoothing / 2
            costs.append(-q * math.log(p) - (1 - q) * math.log(1 - p))
        expected.append(sum(costs) / CLASSES)
    assert classification_loss(logits, LABELS, smoothing).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        ([1, 0, 1], [1, 0, 1], 1.0),
        ([1, 1, 1], [1, 0, 0], 1 / 3),
        ([1, 1, 0], [0, 1, 1], 1 / 3),
        ([0, 0, 0], [0, 1, 0], 0.0),
        ([0, 1, 0], [0, 0, 0], 0.0),
        ([0, 0, 0], [0, 0, 0], 1.0),
    ],
)
def test_multilabel_reward_is_intersection_over_union(predicted: list[int], true: list[int], expected: float) -> None:
    logits = torch.tensor([predicted]) * 4.0 - 2.0
    assert reward(logits, torch.tensor([true]).float()).tolist() == pytest.approx([expected])


def test_multilabel_objective() -> None:
    """The same four terms, with the other loss and reward; single features are compared with their image's labels."""
    output = random_output()
    loss = loss_of(output, LABELS)
    single = [
        [float(classification_loss(output.feature_logits[i, n][None], LABELS[i][None])) for n in range(7)]
        for i in range(BATCH)
    ]
    assert float(loss.terms["cross_entropy_per_feature"]) == pytest.approx(0.7 * float(np.mean(single)), rel=1e-6)
    gains = [
        (float(reward(output.feature_logits[i, n], LABELS[i])) - 0.5) * -float(output.log_prob[i, n - 1])
        for i in range(BATCH)
        for n in range(1, 7)
    ]
    assert float(loss.terms["reinforce_per_feature"]) == pytest.approx(0.1 * 0.7 * float(np.mean(gains)), rel=1e-5)


# --- reward and baseline


def test_reward_is_top_1_accuracy() -> None:
    logits = torch.tensor([[0.1, 0.3, 0.2], [5.0, -1.0, 4.0]])
    assert reward(logits, torch.tensor([1, 2])).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("target", [TARGET, LABELS])
def test_reward_has_no_gradient(target: Tensor) -> None:
    logits = random_output().logits.requires_grad_()
    assert not reward(logits, target).requires_grad


@pytest.mark.parametrize("share", [0.3, 0.8, 1.0])
def test_baseline_update_and_use(share: float) -> None:
    output = random_output()
    config = ObjectiveConfig(joint_weight_reinforce=share, reinforce_weight=1.0)
    objective = Objective(config).train()
    baseline = 0.5
    assert float(objective.baseline) == baseline
    joint = np.mean([right(output.logits[i].numpy(), int(TARGET[i])) for i in range(BATCH)])
    single = np.mean(
        [right(output.feature_logits[i, n].numpy(), int(TARGET[i])) for i in range(BATCH) for n in range(1, 7)]
    )
    assert joint != single
    for _ in range(3):
        loss = objective(output, TARGET)
        assert values(loss) == pytest.approx(expected_terms(output, config, 7, baseline), rel=1e-5, abs=1e-9)
        assert float(loss.reward) == pytest.approx(joint) and float(loss.reward_per_feature) == pytest.approx(single)
        baseline = 0.9 * baseline + 0.1 * (share * joint + (1 - share) * single)
        assert float(objective.baseline) == pytest.approx(baseline, rel=1e-6)


def test_baseline_is_constant_in_evaluation_and_without_looks() -> None:
    objective = Objective(ObjectiveConfig()).eval()
    objective(random_output(), TARGET)
    assert float(objective.baseline) == 0.5
    objective.train()(random_output((1,)), TARGET)
    assert float(objective.baseline) == 0.5


def test_baseline_is_in_the_state_dict() -> None:
    objective = Objective(ObjectiveConfig()).train()
    objective(random_output(), TARGET)
    again = Objective(ObjectiveConfig())
    again.load_state_dict(objective.state_dict())
    assert float(again.baseline) == float(objective.baseline) != 0.5


# --- gradients


def test_gradients_match_finite_differences() -> None:
    """Of all terms together, with respect to features, classifier and location logits, the choices held fixed."""
    draw = torch.Generator().manual_seed(3)
    features = torch.randn(BATCH, 7, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, CLASSES, generator=draw, dtype=torch.float64, requires_grad=True)
    whole = torch.randn(BATCH, 9, generator=draw, dtype=torch.float64, requires_grad=True)
    parts = torch.randn(BATCH * 2, 9, generator=draw, dtype=torch.float64, requires_grad=True)
    first = torch.tensor([[0, 4], [3, 8], [1, 2], [5, 6]])
    second = torch.tensor([[0, 1], [2, 8], [4, 7], [3, 5], [1, 6], [0, 8], [2, 3], [6, 7]])
    config = ObjectiveConfig(
        reinforce_weight=2.0, contrastive_weight=5.0, entropy_weight=0.3, per_feature_levels=2, label_smoothing=0.1
    )
    objective = Objective(config).eval()

    def total(features: Tensor, weight: Tensor, whole: Tensor, parts: Tensor) -> Tensor:
        chosen = [whole.log_softmax(1).gather(1, first), parts.log_softmax(1).gather(1, second).reshape(BATCH, -1)]
        log_prob = torch.cat(chosen, dim=1)
        output = output_of(
            features.mean(1) @ weight, features @ weight, log_prob, log_prob.sum(1), COUNTS, features, (whole, parts)
        )
        return objective(output, TARGET).total

    assert torch.autograd.gradcheck(total, (features, weight, whole, parts), fast_mode=True)
    total(features, weight, whole, parts).backward()
    for tensor in (features, weight, whole, parts):
        assert tensor.grad is not None and float(tensor.grad.abs().sum()) > 0


MODELS = [
    tiny_config(),
    tiny_config(backbone=TINY_BAGNET, locator=LocatorConfig("context", logits="l2_scaled"), aggregation="weighted"),
    three_levels(),
]


def gradients_of(config: TNetConfig, **changes: Any) -> dict[str, Tensor | None]:
    """Gradient of every parameter after one step's backward pass; always the same model, images and choices."""
    torch.manual_seed(0)
    model = TNet(config).train()
    for norm in batch_norms(model):  # timm starts the last one of each block at 0, which blocks what is before it
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    images = torch.stack(pictures((96, 96), (96, 96), (96, 96), (96, 96)))
    Objective(ObjectiveConfig(**changes)).train()(model(images), TARGET, model).total.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("config", MODELS)
def test_every_parameter_gets_a_gradient(config: TNetConfig) -> None:
    actual = gradients_of(config, joint_weight_reinforce=0.6, reinforce_weight=1.0)
    assert all(gradient is not None and bool(torch.isfinite(gradient).all()) for gradient in actual.values())
    still = {name for name, gradient in actual.items() if gradient is not None and not gradient.any()}
    assert still <= {"aggregation.rate.bias"}  # the same shift of everything that a softmax then compares


@pytest.mark.parametrize("config", MODELS)
def test_only_the_locator_learns_from_reinforce(config: TNetConfig) -> None:
    without, with_reward = gradients_of(config, reinforce_weight=0.0), gradients_of(config, reinforce_weight=10.0)
    for name, gradient in without.items():
        if name.startswith("locator."):
            assert gradient is None or not gradient.any()
        else:
            other = with_reward[name]
            assert gradient is not None and other is not None and torch.equal(gradient, other)
    assert any(bool(g.any()) for name, g in with_reward.items() if name.startswith("locator.") and g is not None)


# --- the reference implementation's numbers


@pytest.mark.parametrize(
    "name", ["tiny_imagenet_tnet_3", "tiny_fmow_tnet_448_l2", "tiny_fmow_tnet_896_l3", "tiny_cub_tnet_b0_5"]
)
def test_loss_matches_the_reference_implementation(name: str) -> None:
    reference = Golden(name)
    golden = {key: torch.from_numpy(array) for key, array in reference.train.items() if array.dtype.kind == "f"}
    config = replace(reference.objective(), l2_weight=0.0)
    target = golden["labels"].long()
    batch, classes = golden["logits"].shape
    per_level = [golden[f"logits_per_feature_{i}"] for i in range(3) if f"logits_per_feature_{i}" in golden]
    log_probs = [golden[f"logprobs_per_feature_{i}"] for i in range(1, len(per_level))]
    output = output_of(
        golden["logits"],
        torch.cat([logits.reshape(batch, -1, classes) for logits in per_level], dim=1),
        torch.cat([log_prob.reshape(batch, -1) for log_prob in log_probs], dim=1),
        golden["location_log_probs"][:, 0],
        tuple(len(logits) // batch for logits in per_level),
    )
    if config.contrastive_weight:
        features = golden["features_prime"]
        repeated = features[:, None].expand(-1, output.features.shape[1], -1)
        output = replace(output, features=repeated, aggregate=features)
    objective = Objective(config).train()
    objective.baseline.fill_(golden["baseline_before"].item())
    loss = objective(output, target)
    expected = {key.removeprefix("term_"): float(term) for key, term in golden.items() if key.startswith("term_")}
    expected.pop("l2", None)  # of parameters, which have no part here
    assert values(loss) == pytest.approx(expected, rel=1e-5)
    assert float(objective.baseline) == pytest.approx(golden["baseline_after"].item(), rel=1e-6)
    assert torch.equal(reward(output.logits, target), golden["reward"][:, 0].float())


# --- invalid settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("joint_weight_ce", 1.1),
        ("joint_weight_reinforce", -0.1),
        ("joint_weight_ce", math.nan),
        ("label_smoothing", 1.0),
        ("reinforce_weight", -1.0),
        ("reinforce_weight", math.nan),
        ("entropy_weight", -1.0),
        ("contrastive_weight", -1.0),
        ("contrastive_margin", 1.5),
        ("contrastive_margin", math.nan),
        ("l2_weight", math.inf),
        ("per_feature_levels", -1),
    ],
)
def test_invalid_setting(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"objective\.{name} is {value}"):
        ObjectiveConfig(**{name: value})


# --- predicted gains of looks

VALUED = LocatorConfig("squeeze", logits="l2", value=True)


def gain_by_loops(model: TNet, output: TNetOutput, image: int) -> dict[int, float]:
    """Gain of each row: levels in turn, and in each the largest predicted gain first."""
    assert output.gains is not None
    regions, divided, values = output.regions, output.divided.tolist(), output.gains.tolist()
    rows = [row for row, one in enumerate(regions.image.tolist()) if one == image]
    feature = dict(zip(output.rows[image].tolist(), output.features[image], strict=True))

    def promise(row: int) -> tuple[int, float]:
        level = int(regions.level[row])
        if level == 0:
            return 0, 0.0
        return level, -values[divided.index(int(regions.parent[row]))][regions.cell[row]]

    gains, likelihood = {}, 0.0
    order = sorted(rows, key=promise)
    for count in range(1, len(order) + 1):
        logits = model.classify(torch.stack([feature[row] for row in order[:count]])[None])[0]
        now = float(logits.detach().log_softmax(0)[TARGET[image]])
        if count > 1:
            gains[order[count - 1]] = now - likelihood
        likelihood = now
    return gains


@pytest.mark.parametrize("aggregation", ["mean", "attention"])
def test_gains_are_those_of_one_more_look(aggregation: Any) -> None:
    model, output = traverse(three_levels(aggregation=aggregation, locator=VALUED))
    gains = Objective.gains(output, TARGET, model)
    assert gains.shape == (BATCH, 2 + 4) and not gains.requires_grad
    for image in range(BATCH):
        expected = gain_by_loops(model, output, image)
        for row, gain in zip(output.rows[image, 1:].tolist(), gains[image].tolist(), strict=True):
            assert gain == pytest.approx(expected[row], rel=1e-9)
    total = output.logits.new_tensor([sum(gain_by_loops(model, output, image).values()) for image in range(BATCH)])
    whole, full = (model.classify(output.features[:, :n]) for n in (1, 7))
    rise = classification_loss(whole, TARGET) - classification_loss(full, TARGET)
    torch.testing.assert_close(total, rise.detach())


def fewer_looks(model: TNet) -> TNetOutput:
    """Output of four images with 1, 2, 3 and 4 regions, the whole image included."""

    class Fewer(StoppingRule):
        def __call__(self, trail: Trail) -> Tensor:
            return trail.looks >= torch.arange(trail.images)

    images = torch.randn(BATCH, 1, 96, 96, dtype=torch.float64)
    output: TNetOutput = model(images, search=BestFirst(looks=4, levels=2, stop=(Fewer(),)))
    return output


def test_gains_of_different_numbers_of_looks() -> None:
    """Features that are padding have no part in them, and no error."""
    torch.manual_seed(3)
    model = TNet(three_levels(locator=VALUED)).double().eval()

    output = fewer_looks(model)
    assert output.seen is not None and output.seen.sum(1).tolist() == [1, 2, 3, 4] and output.gains is not None
    gains, errors = Objective.gains(output, TARGET, model), []
    for image in range(BATCH):
        for row, gain in gain_by_loops(model, output, image).items():
            column = output.rows[image].tolist().index(row, 1)
            assert float(gains[image, column - 1]) == pytest.approx(gain, rel=1e-9)
            parent = output.divided.tolist().index(int(output.regions.parent[row]))
            error = abs(gain - output.gains[parent].tolist()[output.regions.cell[row]])
            errors.append(error**2 / 2 if error < 1 else error - 0.5)
    loss = Objective(ObjectiveConfig(gain_weight=0.3))(output, TARGET, model)
    assert float(loss.terms["gain"].detach()) == pytest.approx(0.3 * sum(errors) / len(errors), rel=1e-6)


def test_a_mixture_of_different_numbers_of_looks() -> None:
    torch.manual_seed(3)
    model = TNet(three_levels(locator=VALUED)).double().eval()
    output = fewer_looks(model)
    assert output.seen is not None
    config = ObjectiveConfig(per_feature="mixture", joint_weight_ce=0.0, reinforce_weight=0.0)
    chosen = {"log_prob": torch.zeros_like(output.log_prob), "joint_log_prob": torch.zeros(BATCH).double()}
    loss = Objective(config)(replace(output, **chosen), TARGET, model)  # a search has none
    probs = output.feature_logits.detach().softmax(2)[torch.arange(BATCH), :, TARGET]
    expected = [-float(probs[image][output.seen[image]].mean().log()) for image in range(BATCH)]
    assert float(loss.terms["cross_entropy_per_feature"].detach()) == pytest.approx(np.mean(expected), rel=1e-9)
    loss.total.backward()
    assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)


def test_only_the_second_locator_learns_from_gains() -> None:
    model, output = traverse(three_levels(locator=VALUED))
    Objective(ObjectiveConfig(gain_weight=1.0))(output, TARGET, model).terms["gain"].backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned and all(name.startswith("locator.value.") for name in learned)


def test_a_second_locator_changes_nothing_else() -> None:
    plain, valued = TNet(three_levels()).double().eval(), TNet(three_levels(locator=VALUED)).double().eval()
    own = {name: value for name, value in valued.state_dict().items() if ".value." not in name}
    assert own.keys() == plain.state_dict().keys()
    plain.load_state_dict(own)
    images = torch.randn(BATCH, 1, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = plain(images), valued(images)
    assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.location_logits, theirs.location_logits)
    assert ours.gains is None and theirs.gains is not None


def test_gains_without_a_second_locator_or_scores() -> None:
    objective = Objective(ObjectiveConfig(gain_weight=1.0))
    model, output = traverse(three_levels())
    with pytest.raises(ConfigError, match=r"model\.locator\.value"):
        objective(output, TARGET, model)
    with pytest.raises(ConfigError, match="gain_weight needs the model"):
        objective(output, TARGET)
    valued = TNet(three_levels(locator=VALUED)).double()
    blind = valued(torch.randn(BATCH, 1, 96, 96, dtype=torch.float64), policy="random")
    with pytest.raises(ConfigError, match="needs predicted gains"):
        objective(blind, TARGET, valued)


# --- rewards and answers look by look


def order_of(output: TNetOutput, image: int, scores: Tensor) -> list[int]:
    """Columns of an image level by level, in a level the largest score of the cell first."""
    regions, divided = output.regions, output.divided.tolist()
    count = output.rows.shape[1] if output.seen is None else int(output.seen[image].sum())

    def key(column: int) -> tuple[int, float]:
        row = int(output.rows[image, column])
        level = int(regions.level[row])
        return level, -float(
            scores.detach()[divided.index(int(regions.parent[row])), regions.cell[row]]
        ) if level else 0.0

    return sorted(range(count), key=key)


def answers_by_loops(model: TNet, output: TNetOutput, image: int, order: list[int]) -> list[Tensor]:
    """Class logits from the first 1, 2, ... features of an image."""
    return [model.classify(output.features[image, order[:n]][None])[0].detach() for n in range(1, len(order) + 1)]


@pytest.mark.parametrize("value", [False, True])
@pytest.mark.parametrize("fewer", [False, True])
def test_a_gain_is_rewarded_above_what_was_expected(value: bool, fewer: bool) -> None:
    """By plain loops: the fall of the cross entropy at each look, and its baseline, predicted or a moving mean."""
    locator = VALUED if value else LocatorConfig("squeeze", logits="l2_scaled")
    torch.manual_seed(3)
    model, output = traverse(three_levels(locator=locator))
    if fewer:
        model.eval()
        output = fewer_looks(model)
        shape = output.log_prob.shape  # a search has none
        output = replace(output, log_prob=-torch.rand(shape).double(), joint_log_prob=-torch.rand(BATCH).double())
    expected_gains = output.gains.detach() if value and output.gains is not None else None
    config = ObjectiveConfig(reward="gain", reinforce_weight=2.0, joint_weight_reinforce=0.4, gain_weight=float(value))
    objective = Objective(config).train()
    assert float(objective.baseline) == 0
    objective.baseline.fill_(0.125)
    single, joint, every = [], [], []
    for image in range(BATCH):
        order = order_of(output, image, output.location_logits if expected_gains is None else expected_gains)
        answers = answers_by_loops(model, output, image, order)
        cost = [cross_entropy(answer.numpy(), int(TARGET[image])) for answer in answers]
        total = 0.0
        for before, after, column in zip(cost[:-1], cost[1:], order[1:], strict=True):
            expected = 0.125
            row = int(output.rows[image, column])
            if expected_gains is not None:
                parent = output.divided.tolist().index(int(output.regions.parent[row]))
                expected = float(expected_gains[parent, output.regions.cell[row]])
            single.append((before - after - expected) * -float(output.log_prob.detach()[image, column - 1]))
            total += before - after - expected
            every.append(before - after)
        joint.append(total * -float(output.joint_log_prob.detach()[image]))
    loss = objective(output, TARGET, model)
    assert values(loss)["reinforce_per_feature"] == pytest.approx(2 * 0.6 * float(np.mean(single)), rel=1e-6)
    assert values(loss)["reinforce"] == pytest.approx(2 * 0.4 * float(np.mean(joint)), rel=1e-6)
    assert float(objective.baseline) == pytest.approx(0.9 * 0.125 + 0.1 * float(np.mean(every)), rel=1e-5)
    assert float(loss.reward) == float(reward(output.logits, TARGET).mean()), "accuracy is still what is reported"


@pytest.mark.parametrize("fewer", [False, True])
def test_answers_before_the_last_look_learn_the_label_and_the_last_answer(fewer: bool) -> None:
    model, output = traverse(three_levels(aggregation="attention", locator=LocatorConfig("squeeze")))
    if fewer:
        model.eval()
        output = fewer_looks(model)
    costs, divergences = [], []
    for image in range(BATCH):
        order = order_of(output, image, output.location_logits)
        *earlier, last = answers_by_loops(model, output, image, order)
        p = last.softmax(0)
        for answer in earlier:
            costs.append(cross_entropy(answer.numpy(), int(TARGET[image]), 0.1))
            divergences.append(float((p * (p.log() - answer.log_softmax(0))).sum()))
    assert len(costs) == (0 + 1 + 2 + 3 if fewer else BATCH * 6)
    config = ObjectiveConfig(every_look_weight=0.5, distil_weight=0.25, label_smoothing=0.1)
    loss = Objective(config)(output, TARGET, model)
    assert values(loss)["every_look"] == pytest.approx(0.5 * float(np.mean(costs)), rel=1e-6)
    assert values(loss)["distil"] == pytest.approx(0.25 * float(np.mean(divergences)), rel=1e-6)


def test_answers_learn_from_the_last_one_and_not_the_reverse() -> None:
    """With the last answer held fixed the gradient is the same, so it is a teacher only."""
    model, output = traverse(tiny_config(looks=(1,)))
    features = output.features.detach().requires_grad_()
    term = Objective(ObjectiveConfig(distil_weight=1.0))(replace(output, features=features), TARGET, model)
    (gradient,) = torch.autograd.grad(term.terms["distil"], features)
    assert gradient[:, 0].any() and not gradient[:, 1].any()


def test_several_labels_at_every_look() -> None:
    model, output = traverse(tiny_config(looks=(1,), multilabel=True))
    config = ObjectiveConfig(every_look_weight=1.0, distil_weight=1.0)
    terms = values(Objective(config)(output, LABELS, model))
    whole = model.classify(output.features[:, :1]).detach()
    p, q = model.classify(output.features).detach().sigmoid(), whole.sigmoid()
    assert terms["every_look"] == pytest.approx(float(classification_loss(whole, LABELS).mean()))
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert terms["distil"] == pytest.approx(float(expected), rel=1e-6)


def test_looks_that_are_taken_one_by_one_are_rewarded_in_their_order() -> None:
    model, output = traverse(tiny_config(looks=(3,), locator=LocatorConfig("squeeze", context="collected")))
    gains = Objective.gains(output, TARGET, model)
    for image in range(BATCH):
        answers = answers_by_loops(model, output, image, [0, 1, 2, 3])
        cost = [cross_entropy(answer.numpy(), int(TARGET[image])) for answer in answers]
        assert gains[image].tolist() == pytest.approx([cost[n] - cost[n + 1] for n in range(3)], rel=1e-6)


def test_only_the_locator_learns_from_rewarded_gains() -> None:
    model, output = traverse(tiny_config(looks=(2,)))
    terms = Objective(ObjectiveConfig(reward="gain", reinforce_weight=1.0))(output, TARGET, model).terms
    (terms["reinforce"] + terms["reinforce_per_feature"]).backward()
    assert {name.split(".")[0] for name, item in model.named_parameters() if item.grad is not None} == {"locator"}


@pytest.mark.parametrize("changes", [{"reward": "gain"}, {"every_look_weight": 1.0}, {"distil_weight": 1.0}])
def test_terms_look_by_look_need_the_model_and_are_absent_without_looks(changes: dict[str, Any]) -> None:
    objective = Objective(ObjectiveConfig(**changes))
    with pytest.raises(ConfigError, match=r"objective\.(reward|every_look_weight|distil_weight) needs the"):
        objective(random_output(), TARGET)
    model = TNet(tiny_config())
    assert objective(random_output((1,)), TARGET, model).terms.keys() == {"cross_entropy", "cross_entropy_per_feature"}


def test_a_rewarded_gain_without_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective\.reward is gain, but objective\.reinforce_weight is 0"):
        ObjectiveConfig(reward="gain", reinforce_weight=0.0)
