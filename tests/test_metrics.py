"""One table says which way a metric is better, under whatever name people give it."""

from __future__ import annotations

import math

import pytest

from soupkit.errors import RecipeError
from soupkit.metrics import HIGHER, LOWER, contradiction, direction_of, known_direction, rank_key

UP = """
    top1 Top-5 acc@1 accuracy eval_accuracy val/Acc MulticlassAccuracy acc,none acc_norm
    exact_match,strict-match F1
    f1_macro macro_f1 BinaryF1Score f1_score AUROC ROC-AUC roc_auc mAP mAP@0.5 mIoU val_mIoU bleu BLEU-4
    rougeL rouge1
    chrF pass@1 NDCG@10 recall@5 r2 R2Score spearmanr matthews_correlation PSNR score reward log_likelihood
    neg_mean_squared_error neg_log_loss negative_predictive_value hit_rate
"""
DOWN = """
    nll NLL loss val_loss eval_loss Loss/val evalLoss masked_lm_loss held_out.perplexity PPL word_perplexity
    perplexity,none bits_per_byte wer CER eval_wer word_error_rate mse RMSE val_rmse mean_absolute_error mae
    MAPE fid
    FID lpips ece expected_calibration_error brier_score err error top1_err err_max nll_barrier kl_divergence
    cross_entropy CrossEntropyLoss negative_log_likelihood neg_elbo FPR95 edit_distance latency_ms
    cosine_distance
    false_positive_rate
"""
UNKNOWN = """
    foo my_metric toxicity entropy 1-accuracy one_minus_f1 accuracy_drop accuracy_std acc_stderr,none
    loss_ratio
    train_test_gap anomaly_score temperature epoch val 50 …
"""


@pytest.mark.parametrize("name", UP.split())
def test_higher_is_better(name: str) -> None:
    assert known_direction(name) == "max"


@pytest.mark.parametrize("name", DOWN.split())
def test_lower_is_better(name: str) -> None:
    assert known_direction(name) == "min"


@pytest.mark.parametrize("name", [*UNKNOWN.split(), "", "  "])
def test_a_name_that_does_not_say_is_refused_and_a_direction_helps(name: str) -> None:
    assert known_direction(name) is None
    with pytest.raises(RecipeError, match="which way") as caught:
        direction_of(name)
    assert caught.value.hint == "give --direction max|min"
    assert direction_of(name, "min") == "min"


def test_an_explicit_direction_is_obeyed_and_a_contradiction_is_told() -> None:
    assert direction_of("nll", "max") == "max"
    assert "lower" in (contradiction("val_loss", "max") or "")
    assert "higher" in (contradiction("Accuracy", "min") or "")
    assert contradiction("nll", "min") is contradiction("nll", "auto") is contradiction("foo", "max") is None


def test_no_name_is_in_both_halves() -> None:
    assert not HIGHER & LOWER


def test_the_best_comes_first_and_nan_last() -> None:
    values = [2.0, math.nan, 1.0]
    assert sorted(values, key=lambda value: rank_key(value, "min"))[:2] == [1.0, 2.0]
    assert sorted(values, key=lambda value: rank_key(value, "max"))[:2] == [2.0, 1.0]
