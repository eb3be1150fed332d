"""Pred-Sim against a plain NumPy transcription of Nokland & Eidnes's formulas."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from bllpipe.config.schema import ObjectiveConfig
from bllpipe.learn.losses import PredSim, similarity_matrix
from bllpipe.messages import Round, Target

Array = npt.NDArray[np.float64]


def cosines(features: Array) -> Array:
    """R(x): deviation over the positions, centred over the features, cosines between all samples."""
    if features.ndim == 4:
        features = np.array([[channel.std(ddof=1) for channel in sample] for sample in features])
    rows = [row - row.mean() for row in features]
    unit = [row / np.sqrt((row**2).sum()) for row in rows]
    return np.array([[min(1.0, max(-1.0, float(a @ b))) for b in unit] for a in unit])


def convolved(x: Array, weight: Array) -> Array:
    """A 3x3 convolution with one pixel of zeros round it, by loops."""
    batch, _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((batch, len(weight), height, width))
    for row in range(height):
        for column in range(width):
            window = padded[:, :, row : row + 3, column : column + 3]
            out[:, :, row, column] = np.einsum("bchw,ochw->bo", window, weight)
    return out


def losses(alpha: Array, weight: Array, scores: Array, label: Any, share: float) -> tuple[float, float]:
    one_hot = np.eye(scores.shape[1])[label]
    sim = ((cosines(convolved(alpha, weight)) - cosines(one_hot)) ** 2).mean()
    log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return share * sim, (1 - share) * -log_p[np.arange(len(label)), label].mean()


@pytest.mark.parametrize("share", [0.99, 0.5, 0.0])
def test_losses_equal_the_formulas(share: float) -> None:
    torch.manual_seed(0)
    objective = PredSim(ObjectiveConfig(sim_share=share), (4, 5, 6), 3)
    alpha, scores_BK, label_B = torch.randn(7, 4, 5, 6), torch.randn(7, 3), torch.randint(0, 3, (7,))
    target = Target(Round("train", 0, size=7), torch.zeros(7, 4), torch.zeros(7), label_B)
    terms = objective(alpha, scores_BK, target, torch.empty(0))
    assert isinstance(objective.similarity, nn.Conv2d)
    weight = objective.similarity.weight.detach().double().numpy()
    sim, pred = losses(alpha.double().numpy(), weight, scores_BK.double().numpy(), label_B.numpy(), share)
    assert terms["sim"].item() == pytest.approx(sim, rel=1e-5, abs=1e-7)
    assert terms["pred"].item() == pytest.approx(pred, rel=1e-5, abs=1e-7)


def test_the_matrix_of_labels_says_who_is_alike() -> None:
    labels = torch.nn.functional.one_hot(torch.tensor([0, 1, 0]), 5)
    found_BB = similarity_matrix(labels)
    torch.testing.assert_close(found_BB, torch.tensor([[1, -0.25, 1], [-0.25, 1, -0.25], [1, -0.25, 1]]))
    np.testing.assert_allclose(found_BB.numpy(), cosines(labels.double().numpy()), rtol=1e-5)


def test_a_sample_without_variation_is_like_nobody() -> None:
    found_BB = similarity_matrix(torch.stack([torch.ones(4), torch.arange(4.0)]))
    assert torch.isfinite(found_BB).all() and found_BB[0, 1] == 0


@pytest.mark.parametrize("shape", [(9, 6), (6,)])
def test_tokens_and_vectors_have_a_linear_layer(shape: tuple[int, ...]) -> None:
    objective = PredSim(ObjectiveConfig(), shape, 3)
    target = Target(Round("train", 0, size=2), torch.zeros(2, 6), torch.zeros(2), torch.tensor([0, 2]))
    terms = objective(torch.randn(2, *shape), torch.randn(2, 3), target, torch.empty(0))
    assert isinstance(objective.similarity, nn.Linear) and torch.isfinite(terms["sim"])


def test_the_matrix_is_exact_under_bf16() -> None:
    features = torch.randn(6, 4, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(similarity_matrix(features), similarity_matrix(features))
        found_BB = similarity_matrix(features)
    assert found_BB.dtype is torch.float32
    torch.testing.assert_close(found_BB, similarity_matrix(features))


def test_one_position_has_no_deviation_and_counts_itself() -> None:
    features_BC = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(similarity_matrix(features_BC[:, :, None, None]), similarity_matrix(features_BC))
