"""Linear probe: logistic regression on frozen vectors, and cross-validation of its penalty."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtllm_edge_train.distillation.losses import Standardizer

_FOLDS = 5


def logistic_regression(
    vectors_VD: Tensor, gold_N: Tensor, rows: int, *, scale: Standardizer, penalty: float
) -> nn.Linear:
    """Fit a multinomial logistic regression with L-BFGS, or a conditional one for choices.

    Args:
        vectors_VD: Features: one vector per text, or one per choice.
        gold_N: Index of the correct class or choice of each text.
        rows: Rows of the head: the number of classes, or 1 for choices.
        scale: Standardization of the features.
        penalty: L2 penalty beside the sum of the cross-entropies; scikit-learn's C is 1 / (2 * penalty).

    Returns:
        A head for features that are not standardized.
    """
    scaled_VD = scale(vectors_VD)
    weight_CD = torch.zeros(rows, vectors_VD.shape[1], requires_grad=True)
    bias_C = torch.zeros(rows, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_CD, bias_C], max_iter=200, line_search_fn="strong_wolfe")

    def objective() -> float:
        optimizer.zero_grad()
        logits_NC = (scaled_VD @ weight_CD.T + bias_C).reshape(len(gold_N), -1)
        value = nn.functional.cross_entropy(logits_NC, gold_N, reduction="sum")
        value = value + penalty * weight_CD.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    head = nn.Linear(vectors_VD.shape[1], rows)
    with torch.no_grad():
        head.weight.copy_(weight_CD / scale.std)
        head.bias.copy_(bias_C - head.weight @ scale.mean)
    return head


def choose_penalty(
    vectors_VD: Tensor, gold_N: Tensor, rows: int, *, scale: Standardizer, penalties: Sequence[float]
) -> float:
    """Choose a penalty by the cross-entropy in five-fold cross-validation of `logistic_regression`."""
    vectors_NVD = vectors_VD.reshape(len(gold_N), -1, vectors_VD.shape[1])
    fold_N = torch.randperm(len(gold_N), generator=torch.Generator().manual_seed(0)) % _FOLDS

    def held_out_loss(penalty: float) -> float:
        total = 0.0
        for fold in range(_FOLDS):
            train_N, test_N = fold_N != fold, fold_N == fold
            train_VD = vectors_NVD[train_N].flatten(0, 1)
            head = logistic_regression(train_VD, gold_N[train_N], rows, scale=scale, penalty=penalty)
            with torch.no_grad():
                logits_NC = head(vectors_NVD[test_N]).flatten(1)
                total += nn.functional.cross_entropy(logits_NC, gold_N[test_N], reduction="sum").item()
        return total

    return min(penalties, key=held_out_loss)
