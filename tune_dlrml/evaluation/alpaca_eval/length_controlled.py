"""AlpacaEval's length-controlled win rate: what the win rate would be if both outputs were equally long.

A logistic regression explains the preferences for a model by three things, as `length_controlled_v1` of alpaca_eval
0.6.6 (https://arxiv.org/abs/2404.04475) does:

    logit P(model wins) = a * tanh(length difference / its deviation) + b * difficulty of the instruction + c

The win rate is the mean of what it predicts with the first term left out. It is fitted together with published
annotations of a baseline that was asked to be verbose or concise ("gamed"), which determine `a`; they have no `c`.

Shape legend: N = instructions, R = rows of the regression, F = its 3 features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import sklearn
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import make_scorer
from sklearn.model_selection import GroupKFold

from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.alpaca_eval.annotations import Annotation, check_same_instructions, numbered
from tune_dlrml.evaluation.alpaca_eval.side_files import SideFiles

FOLDS = 5
GAMED_WEIGHT = 0.1
"""Weight of a gamed row; a row of the model has 1. There are two gamed baselines, and 0.2 is shared by them."""
SEED = 123
"""Of the solver's order of features. alpaca_eval's, so that the numbers agree to the solver's last digit."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LengthControlledWinRate:
    """The win rate of a model over the baseline at equal lengths.

    Attributes:
        win_rate: Mean prediction over all instructions of the set, in percent.
        standard_error: Of that mean over the instructions, in percent; it does not hold the error of the fit.
        length: Coefficient of the length term: how much this judge likes length in this comparison.
        difficulty: Coefficient of the instruction's difficulty.
        model: Coefficient of the model itself.
    """

    win_rate: float
    standard_error: float
    length: float
    difficulty: float
    model: float


def length_controlled_win_rate(annotations: Sequence[Annotation], side_files: SideFiles) -> LengthControlledWinRate:
    """The length-controlled win rate of output 2 over output 1.

    An annotation without a preference is not fitted, but predicted like the others.

    Args:
        annotations: One for each instruction of the set: in the set's own order, unless the side files come with the
            instructions, by which they are then put in order.
        side_files: What is published for the instruction set and its baseline.

    Raises:
        InputError: The annotations are not those of one model and one annotator on the instruction set of the side
            files, fewer than 5 of them have a preference, or all lengths differ alike.
    """
    _check_one_comparison(annotations)
    annotations = _in_order_of_the_set(annotations, side_files)
    if annotations[0].generator_1 == annotations[0].generator_2:
        return LengthControlledWinRate(win_rate=50.0, standard_error=0.0, length=0.0, difficulty=0.0, model=0.0)
    difficulty_N = np.array(side_files.fitted_difficulty())
    coefficients_F = _fit(*_training_rows(annotations, difficulty_N, side_files))
    predicted_N = expit(_features(np.zeros_like(difficulty_N), difficulty_N, model=1) @ coefficients_F)
    length, difficulty, model = map(float, coefficients_F)
    return LengthControlledWinRate(
        win_rate=100 * float(predicted_N.mean()),
        standard_error=100 * float(predicted_N.std(ddof=1)) / math.sqrt(len(predicted_N)),
        length=length,
        difficulty=difficulty,
        model=model,
    )


def _check_one_comparison(annotations: Sequence[Annotation]) -> None:
    for name in ("generator_1", "generator_2", "annotator"):
        found = sorted({getattr(row, name) for row in annotations})
        if len(found) != 1:
            raise InputError(
                f"A length-controlled win rate is that of one model against one baseline by one annotator, but "
                f"{name} has {len(found)} values: {', '.join(found[:3]) or 'no annotation is given'}. Split the file."
            )
    scored = sum(row.preference is not None for row in annotations)
    if scored < FOLDS:
        raise InputError(
            f"At least {FOLDS} annotations must have a preference, but {scored} of {len(annotations)} have one. "
            "Ask the judge again."
        )


def _in_order_of_the_set(annotations: Sequence[Annotation], side_files: SideFiles) -> list[Annotation]:
    if len(annotations) != len(side_files.difficulty):
        raise InputError(
            "A length-controlled win rate exists for the whole AlpacaEval instruction set only: the side files are "
            f"about {len(side_files.difficulty)} instructions, but {len(annotations)} annotations are given."
        )
    if side_files.instructions is None:
        return list(annotations)
    by_instruction = dict(zip(numbered(row.instruction for row in annotations), annotations, strict=True))
    the_set = numbered(side_files.instructions)
    check_same_instructions(by_instruction, the_set, "the annotations", "the side files")
    return [by_instruction[key] for key in the_set]


def _training_rows(
    annotations: Sequence[Annotation], difficulty_N: Floats, side_files: SideFiles
) -> tuple[Floats, Floats, Floats]:
    """Features (R, 3), preferences from 0 to 1 (R,) and weights (R,): the gamed rows, then the model's."""
    gamed = side_files.gamed
    gamed_length = np.array([row.std_delta_len for row in gamed])
    gamed_difficulty = np.array([row.instruction_difficulty for row in gamed])
    features_RF = np.concatenate(
        [
            _features(gamed_length, gamed_difficulty, model=0),
            _features(_standardised_length_difference(annotations), difficulty_N, model=1),
        ]
    )
    preferences = [row.preference for row in gamed]
    preferences += [None if row.preference is None else row.preference - 1 for row in annotations]
    weight_R = np.repeat([GAMED_WEIGHT, 1.0], [len(gamed), len(annotations)])
    preference_R = np.array(preferences, dtype=float)
    known_R = ~np.isnan(preference_R)
    return features_RF[known_R], preference_R[known_R], weight_R[known_R]


def _standardised_length_difference(annotations: Sequence[Annotation]) -> Floats:
    """Characters that the baseline's output has more than the model's, over their standard deviation, shape (N,)."""
    difference_N = np.array([len(row.output_1) - len(row.output_2) for row in annotations], dtype=float)
    deviation = difference_N.std(ddof=1) if len(difference_N) > 1 else 0.0
    if deviation == 0:
        raise InputError(
            "The lengths of the two outputs must differ by more for some instructions than for others, but they differ "
            f"by {difference_N[0]:g} characters for all {len(difference_N)}: there is no length to control for."
        )
    return np.asarray(difference_N / deviation)


def _features(length_R: Floats, difficulty_R: Floats, *, model: int) -> Floats:
    return np.column_stack([np.tanh(length_R), difficulty_R, np.full_like(difficulty_R, model)])


def _fit(features_RF: Floats, preference_R: Floats, weight_R: Floats) -> Floats:
    """Coefficients (3,) of an L1 logistic regression without intercept, its strength chosen by cross-validation.

    scikit-learn takes no soft labels: each row stands there twice, as a win with its preference p for weight and as a
    loss with 1 - p. Both are always in the same fold, and the fold is scored by the cross-entropy to p.
    """
    label_2R = np.repeat([1, 0], len(preference_R))
    row_2R = np.tile(np.arange(len(preference_R)), 2)
    label_weight_2R = np.where(label_2R == 1, preference_R[row_2R], 1 - preference_R[row_2R])
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = make_scorer(_cross_entropy, response_method="predict_proba", greater_is_better=False)
        model = LogisticRegressionCV(
            cv=GroupKFold(FOLDS),
            scoring=scorer.set_score_request(preference=True, row_weight=True),
            solver="liblinear",
            l1_ratios=(1.0,),
            fit_intercept=False,
            random_state=SEED,
            use_legacy_attributes=False,
        ).set_fit_request(sample_weight=True)
        model.fit(
            features_RF[row_2R],
            label_2R,
            sample_weight=label_weight_2R * weight_R[row_2R],
            groups=row_2R,
            preference=preference_R[row_2R],
            row_weight=weight_R[row_2R],
        )
    return np.asarray(model.coef_[0])


def _cross_entropy(label_R: Floats, predicted_R: Floats, *, preference: Floats, row_weight: Floats) -> float:
    """Mean weighted cross-entropy in nats; the labels say nothing here, since each row stands under both."""
    predicted_R = np.clip(predicted_R, 1e-15, 1 - 1e-15)
    return -float(np.mean(row_weight * (preference * np.log(predicted_R) + (1 - preference) * np.log1p(-predicted_R))))
