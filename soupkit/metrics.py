"""Metrics by the names that people give them, and which way each is better: the one table of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Literal

from soupkit.asked import Names
from soupkit.errors import RecipeError

Direction = Literal["max", "min"]
UNNAMED = "score"
"""What a number is called that an external scorer prints, when nothing says its name."""

_HIGHER = """
    accuracy acc top topk hits correct precision recall sensitivity specificity f fbeta fscore fmeasure score
    auc auroc rocauc aucroc auprc prauc ap map average_precision iou miou jaccard dice gmean youden
    kappa mcc matthews matthews_corrcoef r2 r2score rsquared r_squared explained_variance corr correlation
    corrcoef
    pearson pearsonr spearman spearmanr rho kendall tau ndcg mrr reciprocal_rank
    bleu sacrebleu rouge rougel rougelsum meteor chrf cider spice bleurt comet bertscore em exact_match
    pass passk pass_at success_rate win_rate winrate hit_rate pass_rate acceptance_rate detection_rate
    solve_rate
    true_positive_rate true_negative_rate tpr tnr ppv npv positive_predictive_value negative_predictive_value
    psnr ssim inception_score clip_score similarity silhouette nmi ari ami v_measure modularity
    likelihood loglikelihood loglik logprob log_prob logp elbo reward return elo throughput mc mos pesq stoi
    sisdr
"""
_LOWER = """
    loss losses nll perplexity ppl cross_entropy crossentropy xent ce bce log_loss logloss bpb bpc bpd bpt
    bits_per_byte bits_per_character bits_per_char bits_per_dim bits_per_token nats_per_token kl kld
    kl_divergence
    divergence err error errors error_rate wer cer mer ter der eer wil misclassification miss_rate
    false_positive_rate false_negative_rate false_alarm_rate false_discovery_rate fpr fnr fdr hter
    mse rmse mae mape smape mdape mase msle rmsle medae wape nrmse nmse sse rss rae rrse crps mspe rmspe
    ece mce ace sce tce brier brier_score calibration aurc eaurc
    fid kid lpips dists fad fvd niqe brisque cmmd distance edit_distance levenshtein hausdorff chamfer
    wasserstein emd
    latency time runtime seconds milliseconds ms flops memory cost regret risk deviance hinge huber
    davies_bouldin
    aic bic barrier epe
"""
_QUALIFIERS = """
    val valid validation eval evaluation test dev train training held out heldout external metric metrics
    mean avg average macro micro weighted samples binary multiclass multilabel overall total final best none
    norm normalized strict flexible extract match percent pct at epoch step max min worst middle integral
    sum rate score k top b ms
"""
_TURNING = """
    minus one non not inv inverse inverted complement drop gap diff delta stderr std se var count
"""
_SHORT = """
    score top f pass return correct map mc cost memory tau rho ace ap em ce
"""
HIGHER, LOWER = frozenset(_HIGHER.split()), frozenset(_LOWER.split())
_AROUND = frozenset(_QUALIFIERS.split())
"""Words beside the name of a metric that do not change which way it is better."""
_UNTOLD = frozenset(_TURNING.split())
"""Words with which a name may mean the opposite, or nothing that ranks."""
_ONLY_ALONE = frozenset(_SHORT.split())
"""Names that mean a metric only where nothing but a qualifier stands beside them."""


def known_direction(metric: str) -> Direction | None:
    """Which way a metric is better by its name, None where the name does not say.

    Upper case, punctuation, CamelCase, a path or split before it (`val/Loss`, `held_out.eval_wer`), a
    qualifier or a number behind it (`f1_macro`, `rougeL`, `recall@5`, `err_max`) make no difference; `neg_`
    turns a metric around.
    """
    for words in _spellings(metric):
        found = _of_words(words)
        if found:
            return found
    return None


def direction_of(
    metric: str, asked: Literal["auto", "max", "min"] = "auto", *, option: str = "--direction"
) -> Direction:
    """Which way is better: as `asked`, else by the metric's name. Raises RecipeError for a name that does not
    say."""
    if asked != "auto":
        return asked
    known = known_direction(metric)
    if known is None:
        raise RecipeError(
            f"nothing says which way the metric {metric!r} is better", hint=f"give {option} max|min"
        )
    return known


def contradiction(metric: str, asked: Literal["auto", "max", "min"]) -> str | None:
    """The warning that an explicit direction deserves when the metric is better the other way; None when it
    is not."""
    known = known_direction(metric)
    if asked == "auto" or known in (None, asked):
        return None
    better, taken = ("lower", "highest") if known == "min" else ("higher", "lowest")
    return (
        f"{metric} is better when it is {better}, but the direction is given as {asked}: the {taken} "
        f"counts as best"
    )


def metric_of(recipe: Names) -> str:
    """The metric of a recipe with ScoreOptions: the named one, else top1, or `score` of an external
    scorer."""
    return str(recipe.metric or (UNNAMED if recipe.score_command else "top1"))


def rank_key(value: float, direction: Direction) -> tuple[bool, float]:
    """Sorts the best first, and what is not a number last."""
    return math.isnan(value), -value if direction == "max" else value


def _spellings(metric: str) -> Iterator[list[str]]:
    """The words of a name, without and then with a cut before each capital."""
    for text in (metric, re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", metric)):
        yield [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word]


def _of_words(words: list[str]) -> Direction | None:
    if any(word in _UNTOLD for word in words) or (words and words[0] == "1" and len(words) > 1):
        return None
    if (whole := _named(words)) is not None:  # before `negative` is read as a sign: negative_predictive_value
        return whole
    if words and words[0] in ("neg", "negative", "negated"):
        turned = _of_words(words[1:])
        return None if turned is None else ("min" if turned == "max" else "max")
    if len(words) > 1 and words[0] in _AROUND:
        return _of_words(words[1:])
    if len(words) > 1 and (words[-1] in _AROUND or words[-1].isdigit()):
        return _of_words(words[:-1])
    for start in range(1, len(words)):
        tail = words[start:]
        if words[start - 1] in ("neg", "negative", "negated"):
            return _of_words(words[start - 1 :])
        if tail[0] not in _ONLY_ALONE and (found := _named(tail)) is not None:
            return found
    return None


def _named(words: list[str]) -> Direction | None:
    """The direction of exactly these words, with and without a number at their end."""
    for name in ("_".join(words), "".join(words)):
        for spelled in (name, name.rstrip("0123456789")):
            if spelled in HIGHER:
                return "max"
            if spelled in LOWER:
                return "min"
    return None
