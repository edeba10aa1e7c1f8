"""Aggregations: masked features do not count, shares sum to 1, attention starts as the mean and learns context."""

from __future__ import annotations

import pytest
import torch

from tnet.models.aggregation import AGGREGATIONS


@pytest.mark.parametrize(
    "name", sorted({*AGGREGATIONS} - {"canvas"})
)  # which needs places: tests/models/test_canvas.py
def test_unseen_features_do_not_count(name: str) -> None:
    torch.manual_seed(0)
    aggregation = AGGREGATIONS[name](16)
    for parameter in aggregation.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    features = torch.randn(3, 5, 16)
    seen = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]).bool()
    feature, weights = aggregation(features, seen)
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert not weights[~seen].any()
    for i, n in enumerate((3, 5, 1)):
        alone, shares = aggregation(features[i : i + 1, :n])
        torch.testing.assert_close(alone[0], feature[i])
        torch.testing.assert_close(shares[0], weights[i, :n])


def test_attention_starts_as_the_mean() -> None:
    features = torch.randn(2, 4, 16)
    actual, expected = AGGREGATIONS["attention"](16)(features), AGGREGATIONS["mean"](16)(features)
    torch.testing.assert_close(actual.feature, expected.feature)
    torch.testing.assert_close(actual.weights, expected.weights)


def test_attention_learns_what_no_single_feature_says() -> None:
    """Whether two features are alike: sums of features, however weighted one by one, do not tell."""
    torch.manual_seed(0)
    aggregation, classifier = AGGREGATIONS["attention"](16), torch.nn.Linear(16, 2)
    optimizer = torch.optim.AdamW([*aggregation.parameters(), *classifier.parameters()], lr=0.01)
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).repeat(16, 1)
    alike = (signs[:, 0] == signs[:, 1]).long()
    features = torch.zeros(64, 2, 16)
    features[:, 0, 0], features[:, 1, 1] = signs[:, 0], signs[:, 1]
    for _ in range(200):
        loss = torch.nn.functional.cross_entropy(classifier(aggregation(features).feature), alike)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05
