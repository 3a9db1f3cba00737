"""Logistic regression on frozen vectors: the first state of a teacher's head, and the head of an encoder alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtllm_edge_train.distillation.losses import Standardizer

_FOLDS = 5


def logistic_regression(
    vectors_VD: Tensor, gold_N: Tensor, rows: int, *, scale: Standardizer, penalty: float
) -> nn.Linear:
    """Fit a multinomial logistic regression with L-BFGS; of choices, a conditional one.

    Args:
        vectors_VD: The inputs: a vector of each text, or as many of each as there are choices.
        gold_N: Number of the right class or choice of each text.
        rows: Of the head: as many as there are classes, or 1 for choices.
        scale: What the inputs are put through before they are fitted.
        penalty: On the squared weights, beside the sum of the cross-entropies; scikit-learn's C is 1 / (2 * this).

    Returns:
        A head for the inputs as they are.
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
        head.weight.copy_(weight_CD / scale.deviation)
        head.bias.copy_(bias_C - head.weight @ scale.mean)
    return head


def choose_penalty(
    vectors_VD: Tensor, gold_N: Tensor, rows: int, *, scale: Standardizer, penalties: Sequence[float], seed: int = 0
) -> float:
    """The penalty with the smallest cross-entropy on texts that were held out, in five folds.

    Args:
        vectors_VD: The inputs; these and the next three arguments are as in `logistic_regression`.
        gold_N: Number of the right class or choice of each text.
        rows: Of the head.
        scale: What the inputs are put through.
        penalties: Those to choose from.
        seed: Decides which text is in which fold.
    """
    vectors_NVD = vectors_VD.reshape(len(gold_N), -1, vectors_VD.shape[1])
    fold_N = torch.randperm(len(gold_N), generator=torch.Generator().manual_seed(seed)) % _FOLDS

    def held_out(penalty: float) -> float:
        total = 0.0
        for fold in range(_FOLDS):
            kept_N, out_N = fold_N != fold, fold_N == fold
            kept_VD = vectors_NVD[kept_N].flatten(0, 1)
            head = logistic_regression(kept_VD, gold_N[kept_N], rows, scale=scale, penalty=penalty)
            with torch.no_grad():
                logits_NC = head(vectors_NVD[out_N]).flatten(1)
                total += nn.functional.cross_entropy(logits_NC, gold_N[out_N], reduction="sum").item()
        return total

    return min(penalties, key=held_out)
