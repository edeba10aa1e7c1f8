"""Training objective of TNet (paper, training objective with per-feature regularisation)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tnet.errors import ConfigError
from tnet.losses import (
    Loss,
    ModelObjective,
    Target,
    check_weights,
    classification_loss,
    contrastive_loss,
    divergence,
    l2_term,
    penalised_parameters,
    repeat_target,
    reward,
)
from tnet.models.config import TNetConfig
from tnet.models.kind import MODEL_KINDS, ModelKind
from tnet.models.tnet import TNet, TNetOutput
from tnet.traversal.trail import group_rows

__all__ = ["Loss", "Objective", "ObjectiveConfig"]

_BASELINE_DECAY = 0.9


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the terms.

    Attributes:
        joint_weight_ce: share of the cross entropy of all features together (paper: 0.3 ImageNet and birds, 0.2 and
            0.05 fMoW); the rest goes to the cross entropy of single features.
        per_feature: who must know the label: each single feature (``mean`` of their cross entropies, paper); or one of
            them (``mixture``: cross entropy of the mean of their probabilities), so that a region without the evidence
            need not guess. With several labels per image, each label must be known by one of them: the probability that
            any feature shows it, if they are independent (noisy or).
        joint_weight_reinforce: the same for the two REINFORCE terms.
        reinforce_weight: weight of both REINFORCE terms (paper: 0.1).
        reward: what REINFORCE rewards: a ``correct`` answer, of all features together and of each alone (paper); or the
            ``gain`` of each look, the fall of the cross entropy from before to after it (:meth:`Objective.gains`), and
            the sum of all gains. The baseline of a gain is the one predicted (``model.locator.value``), or else a
            moving mean.
        every_look_weight: weight of the mean cross entropy of the answers before the last look: after 0, 1, ... looks,
            in the order of :meth:`Objective.gains` (not in the paper).
        distil_weight: weight of the mean divergence of these answers from the last one, which they learn (not in the
            paper).
        worth_weight: weight of the worth of the locator's choice among sibling regions (:meth:`Objective.worth`), which
            lets it learn from every look, not only from whether the answer was correct (not in the paper). Needs 2 or
            more looks at some level.
        gain_weight: weight of the error of the predicted gains of looks (:meth:`Objective.gains`, not in the paper).
            Needs ``model.locator.value``.
        entropy_weight: weight of an entropy bonus on the location probabilities (0 in the paper).
        per_feature_levels: number of levels whose single features are used, 0 for all (paper: 2 in fMoW stage 2).
        contrastive_weight: weight of the contrastive term (paper: 100 CUB, 50 NABirds).
        contrastive_margin: cosine similarity below which different classes cost nothing.
        l2_weight: weight of the sum of squares of the penalised parameters, including biases, excluding norms.
        l2_scope: penalise ``all`` parameters or only those of the ``new`` layers (everything but the backbone).
        label_smoothing: label smoothing of the cross entropy.
    """

    joint_weight_ce: float = 0.3
    per_feature: Literal["mean", "mixture"] = "mean"
    joint_weight_reinforce: float = 0.3
    reinforce_weight: float = 0.1
    reward: Literal["correct", "gain"] = "correct"
    every_look_weight: float = 0.0
    distil_weight: float = 0.0
    worth_weight: float = 0.0
    gain_weight: float = 0.0
    entropy_weight: float = 0.0
    per_feature_levels: int = 0
    contrastive_weight: float = 0.0
    contrastive_margin: float = 0.4
    l2_weight: float = 0.0
    l2_scope: Literal["all", "new"] = "all"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("joint_weight_ce", "joint_weight_reinforce"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"objective.{name} is {getattr(self, name)}; give a share between 0 and 1")
        if not -1 <= self.contrastive_margin <= 1:
            raise ConfigError(f"objective.contrastive_margin is {self.contrastive_margin}; give a cosine, from -1 to 1")
        weights = "reinforce_weight", "worth_weight", "gain_weight", "entropy_weight", "contrastive_weight", "l2_weight"
        check_weights(self, *weights, "every_look_weight", "distil_weight", "per_feature_levels")
        if self.reward == "gain" and not self.reinforce_weight:
            problem = "objective.reward is gain, but objective.reinforce_weight is 0, so nothing learns from it"
            raise ConfigError(f"{problem}; raise the weight, or set reward to correct")


class Objective(ModelObjective):
    """The training objective with its moving reward baseline.

    The baseline starts at 0.5 (for gains at 0) and follows the rewards with a decay of 0.9; both REINFORCE terms use
    its old value, and it is updated once per step in training mode. With several processes the rewards are averaged
    over them, so that all keep the same baseline.
    """

    baseline: Tensor

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__(config)
        self.register_buffer("baseline", torch.tensor(0.0 if config.reward == "gain" else 0.5))

    def forward(self, output: TNetOutput, target: Target, model: nn.Module | None = None) -> Loss:
        """Compute all terms for one batch.

        Args:
            output: output of the model in training mode.
            target: class indices, or 0/1 values for multiple labels.
            model: the model, which the L2 term and all terms that are not in the paper require.
        """
        self.check_model(model)
        config = self.config
        looks = output.log_prob.shape[1]
        used = self._used_features(output)
        ce = classification_loss(output.logits, target, config.label_smoothing).mean()
        joint_reward = reward(output.logits, target)
        terms = {"cross_entropy": ce * config.joint_weight_ce}
        feature_reward = output.logits.new_zeros(())
        gains = advantage = None
        if looks and config.reward == "gain":
            gains, advantage = self._advantage(output, target, model)
        if config.joint_weight_ce < 1 or (looks and config.joint_weight_reinforce < 1):
            logits, repeated = output.feature_logits.flatten(0, 1), repeat_target(target, used.shape[1]).flatten(0, 1)
            rows = _indices(used, logits.device)
            is_mixture = config.per_feature == "mixture"
            if is_mixture and target.is_floating_point():
                per_feature = classification_loss(_of_any(output.feature_logits, used), target, config.label_smoothing)
            else:
                alone = classification_loss(logits[rows], repeated[rows], config.label_smoothing)
                per_feature = _of_mixture(alone, rows, used) if is_mixture else alone
            terms["cross_entropy_per_feature"] = per_feature.mean() * (1 - config.joint_weight_ce)
            chosen = _indices(used[:, 1:], logits.device)
            if len(chosen):
                rewards = reward(logits, repeated).unflatten(0, (-1, used.shape[1]))[:, 1:].flatten()[chosen]
                share = config.reinforce_weight * (1 - config.joint_weight_reinforce)
                surprise = -output.log_prob.flatten()[chosen]
                gained = rewards - self.baseline if advantage is None else advantage.flatten()[chosen]
                terms["reinforce_per_feature"] = (gained * surprise).mean() * share
                feature_reward = rewards.mean()
        if looks:
            share = config.reinforce_weight * config.joint_weight_reinforce
            gained = joint_reward - self.baseline if advantage is None else advantage.sum(dim=1)
            terms["reinforce"] = (gained * -output.joint_log_prob).mean() * share
            if config.entropy_weight:
                probs, log_probs = output.location_logits.softmax(1), output.location_logits.log_softmax(1)
                terms["entropy"] = -config.entropy_weight * -(probs * log_probs).sum(1).mean()
        if config.worth_weight and looks:
            terms["worth"] = -config.worth_weight * self._expected_worth(output, target, model)
        if looks and (config.every_look_weight or config.distil_weight):
            terms |= self._earlier_answers(output, target, model)
        if config.gain_weight and looks:
            terms["gain"] = config.gain_weight * self._gain_error(output, target, model)
        if config.contrastive_weight:
            same = (target[:, None] == target[None, :]) if target.ndim == 1 else (target @ target.T) > 0
            contrastive = contrastive_loss(output.aggregate, same, config.contrastive_margin)
            terms["contrastive"] = contrastive * config.contrastive_weight
        if config.l2_weight and model is not None:
            terms["l2"] = l2_term(penalised_parameters(model, config.l2_scope), config.l2_weight)
        if self.training and gains is not None:
            self._update_baseline(gains.mean(), gains.mean())
        elif self.training and looks:
            # With a cap of one level no chosen feature is used: the baseline follows the joint reward alone.
            self._update_baseline(joint_reward.mean(), feature_reward if used[:, 1:].any() else joint_reward.mean())
        return Loss.of(terms, joint_reward.mean(), feature_reward)

    @staticmethod
    @torch.no_grad()
    def worth(output: TNetOutput, target: Target, model: TNet) -> Float[Tensor, "batch looks"]:
        """Return the worth of each look: log-likelihood of the label given the whole image and this region, in nats.

        Regions of all levels are paired with the whole image, so the worth of one does not depend on which others were
        seen. Dropout is not applied.
        """
        features = output.features.detach()
        batch, looks = len(features), features.shape[1] - 1
        with_whole = torch.stack([torch.zeros(looks, dtype=torch.long), torch.arange(1, looks + 1)], dim=1)
        places = None if output.places is None else output.places.at(with_whole)
        logits = model.classify(features[:, with_whole].flatten(0, 1), places=places)
        return -classification_loss(logits, repeat_target(target, looks).flatten(0, 1)).unflatten(0, (batch, looks))

    def _expected_worth(self, output: TNetOutput, target: Target, model: nn.Module | None) -> Float[Tensor, ""]:
        """Return the expected worth of a seen region drawn by the locator's logits, above the mean of its siblings.

        This is an exact expectation: it needs neither a reward baseline nor the probability of the choice, so any
        policy can have chosen. If all siblings are worth the same, as in memorised images, the gradient is zero. (Cross
        entropy with the softmax of the worth as target would push the locator to uniform there.)
        """
        model = _tnet(model, "worth_weight")
        regions, seen = output.regions, output.seen
        worth, rows = self.worth(output, target, model), output.rows[:, 1:]
        valid = slice(None) if seen is None else seen[:, 1:]
        by_row = worth.new_zeros(len(regions))
        by_row[rows[valid].flatten()] = worth[valid].flatten()
        chosen_logits, gains = output.of_chosen(output.location_logits), []
        for level in range(1, regions.depth + 1):
            children = (regions.level == level).nonzero().flatten()
            parents, group = regions.parent[children].unique(return_inverse=True)
            members, mask = group_rows(group, len(parents))
            if mask is not None:  # an only child has no siblings to compare with
                several = mask.sum(1) > 1
                members, mask = members[several], mask[several]
            if members.shape[1] > 1 and len(members):
                siblings = children[members]
                gains.append(_expected_gain(chosen_logits[siblings], by_row[siblings], mask))
        return torch.stack(gains).mean() if gains else output.logits.new_zeros(())

    @staticmethod
    @torch.no_grad()
    def gains(output: TNetOutput, target: Target, model: TNet) -> Float[Tensor, "batch looks"]:
        """Return the gain of each look: log-likelihood of the label with it, above that without it, in nats.

        Looks count level by level, and in a level in the order of their predicted gains, as a search by gain takes
        them; if none are predicted, of their location logits; if looks are taken one by one, in the order seen. Dropout
        is not applied.
        """
        logits, _, order = _answers(output, model, output.features.detach())
        repeated = repeat_target(target, logits.shape[1]).flatten(0, 1)
        likelihood = -classification_loss(logits.flatten(0, 1), repeated).unflatten(0, logits.shape[:2])
        return likelihood.diff(dim=1).gather(1, (order.argsort(dim=1)[:, 1:] - 1).to(likelihood.device))

    def _advantage(
        self, output: TNetOutput, target: Target, model: nn.Module | None
    ) -> tuple[Float[Tensor, " seen"], Float[Tensor, "batch looks"]]:
        """Return the gains of the looks, and by how much they exceed their baseline; 0 for looks not taken."""
        gains = self.gains(output, target, _tnet(model, "reward"))
        expected = self.baseline
        if output.gains is not None:
            expected = output.of_chosen(output.gains.detach())[output.rows[:, 1:].to(gains.device)]
        if output.seen is None:
            return gains.flatten(), gains - expected
        seen = output.seen[:, 1:].to(gains.device)
        return gains[seen], (gains - expected) * seen

    def _earlier_answers(
        self, output: TNetOutput, target: Target, model: nn.Module | None
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the terms of the answers before the last look of each image."""
        config = self.config
        logits, seen, _ = _answers(output, _tnet(model, "every_look_weight and distil_weight"), output.features)
        looks, last = logits.shape[1] - 1, logits[:, -1].detach()
        earlier = torch.ones(logits.shape[:2], dtype=torch.bool) if seen is None else seen
        rows = _indices(earlier[:, 1:], logits.device)  # one look follows
        answers, terms = logits[:, :-1].flatten(0, 1)[rows], {}
        if config.every_look_weight:
            repeated = repeat_target(target, looks).flatten(0, 1)[rows]
            terms["every_look"] = classification_loss(answers, repeated, config.label_smoothing).mean()
            terms["every_look"] *= config.every_look_weight
        if config.distil_weight:
            taught = last.repeat_interleave(looks, dim=0)[rows]
            terms["distil"] = divergence(taught, answers, target.is_floating_point()) * config.distil_weight
        return terms

    def _gain_error(self, output: TNetOutput, target: Target, model: nn.Module | None) -> Float[Tensor, ""]:
        """Return the Huber error of the predicted gains of the looks, which are of few large and many small sizes."""
        if output.gains is None or not isinstance(model, TNet):
            raise ConfigError("objective.gain_weight needs predicted gains; set model.locator.value and use its policy")
        predicted = output.of_chosen(output.gains)[output.rows.to(output.gains.device)]
        used = torch.ones_like(output.rows, dtype=torch.bool) if output.seen is None else output.seen
        chosen = _indices(used[:, 1:], predicted.device)
        measured = self.gains(output, target, model)
        return F.smooth_l1_loss(predicted[:, 1:].flatten()[chosen], measured.flatten()[chosen])

    def _used_features(self, output: TNetOutput) -> Bool[Tensor, "batch n"]:
        """Return the mask, on the CPU, of the features used by the per-feature terms: the first levels if capped."""
        level, cap = output.regions.level[output.rows], self.config.per_feature_levels
        used = torch.ones_like(level, dtype=torch.bool) if output.seen is None else output.seen
        return used & (level < cap) if cap else used

    @torch.no_grad()
    def _update_baseline(self, joint_reward: Float[Tensor, ""], feature_reward: Float[Tensor, ""]) -> None:
        share = self.config.joint_weight_reinforce
        step = share * joint_reward + (1 - share) * feature_reward
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(step)
            step = step / torch.distributed.get_world_size()
        self.baseline.mul_(_BASELINE_DECAY).add_((1 - _BASELINE_DECAY) * step)


def _tnet(model: nn.Module | None, key: str) -> TNet:
    if not isinstance(model, TNet):
        raise ConfigError(f"objective.{key} needs the TNet of the output; pass it as the third argument")
    return model


def _answers(
    output: TNetOutput, model: TNet, features: Float[Tensor, "batch n dim"]
) -> tuple[Float[Tensor, "batch n classes"], Bool[Tensor, "batch n"] | None, Int[Tensor, "batch n"]]:
    """Return the class logits after each look in the order of :meth:`Objective.gains`, the mask, and the order."""
    rows, seen = output.rows, output.seen
    scores = output.location_logits if output.gains is None else output.gains
    if output.gains is None and model.sees_collected:
        order = torch.arange(rows.shape[1]).expand_as(rows)
    else:
        level = output.regions.level[rows] if seen is None else output.regions.level[rows].masked_fill(~seen, 2**30)
        order = output.of_chosen(scores.detach()).cpu()[rows].argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, level.gather(1, order).argsort(dim=1, stable=True))
    ordered = features.gather(1, order.to(features.device)[:, :, None].expand_as(features))
    places = None if output.places is None else output.places.ordered(order)
    in_order = None if seen is None else seen.gather(1, order)
    return model.answers(ordered, in_order, places), in_order, order


def _indices(mask: Bool[Tensor, "batch n"], device: torch.device) -> Int[Tensor, " true"]:
    """Return flat indices of true elements, computed on the CPU to avoid a device synchronisation."""
    return mask.flatten().nonzero().flatten().to(device)


def _of_mixture(
    losses: Float[Tensor, " used"], rows: Int[Tensor, " used"], used: Bool[Tensor, "batch n"]
) -> Float[Tensor, " batch"]:
    """Return the cross entropy of the mean probability of each image's features, one of which is the whole image."""
    spread = losses.new_full((used.numel(),), torch.inf).index_put((rows,), losses).view(used.shape)
    return used.sum(dim=1).to(losses).log() - (-spread).logsumexp(dim=1)


def _of_any(logits: Float[Tensor, "batch n classes"], used: Bool[Tensor, "batch n"]) -> Float[Tensor, "batch classes"]:
    """Return the logit of each label being shown by any of the features, from its logits given each alone."""
    # The log-odds of 1 - prod(1 - p): each factor is exp(-softplus(logit)).
    surprise = (F.softplus(logits) * used[:, :, None].to(logits)).sum(dim=1).clamp_min(1e-30)  # log(0) has no gradient
    return surprise + (-torch.expm1(-surprise)).log()


def _expected_gain(
    logits: Float[Tensor, "parents k"], worth: Float[Tensor, "parents k"], mask: Bool[Tensor, "parents k"] | None
) -> Float[Tensor, ""]:
    """Return the expected worth of a sibling drawn by its logits, above the siblings' mean (``mask``: valid ones)."""
    if mask is None:
        gained = worth - worth.mean(dim=1, keepdim=True)
    else:
        mask = mask.to(logits.device)
        logits = logits.masked_fill(~mask, -torch.inf)
        gained = (worth - (worth * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)) * mask
    return (logits.softmax(dim=1) * gained).sum(dim=1).mean()


MODEL_KINDS.register("tnet")(ModelKind(TNetConfig, TNet, ObjectiveConfig, Objective))
