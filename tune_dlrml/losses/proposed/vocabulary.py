"""The names of the language in which a loss is proposed. Imports no torch.

Everything here is a pure function of its arguments, makes nothing larger than they are (but for `GROWING`), and leaves
them, every file and the state of every generator as they are.
"""

FIELDS = {
    "margin_B": "log-ratio of the chosen completion minus that of the rejected one, nats",
    "chosen_logratio_B": "log-probability of the chosen completion, policy minus reference, nats",
    "rejected_logratio_B": "that of the rejected completion",
    "chosen_logps_B": "log-probability of the chosen completion under the policy, nats",
    "rejected_logps_B": "that of the rejected completion",
    "policy_margin_B": "log-probability per token under the policy, chosen minus rejected",
    "chosen_length_B": "tokens of the chosen completion",
    "rejected_length_B": "tokens of the rejected completion",
    "reference_margin_B": "log-probability under the reference, chosen minus rejected, nats",
    "reference_chosen_logps_B": "log-probability of the chosen completion under the reference, nats",
    "reference_rejected_logps_B": "that of the rejected completion",
}
"""Fields of the pairs, with what they are; shape (B,) each."""


def _names(arguments: int, names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), arguments)


_BOTH = {
    **_names(
        1, "abs exp expm1 exp2 log log1p log2 log10 sqrt rsqrt square reciprocal neg sigmoid tanh relu sign sin cos"
    ),
    **_names(1, "tan asin acos atan sinh cosh asinh acosh atanh erf erfc lgamma digamma floor ceil round trunc frac"),
    **_names(1, "isfinite isnan isinf logical_not squeeze any all numel"),
    **_names(2, "add sub mul div pow maximum minimum fmax fmin logaddexp atan2 hypot fmod remainder copysign xlogy"),
    **_names(2, "eq ne lt le gt ge logical_and logical_or logical_xor heaviside clamp_min clamp_max logit softmax dot"),
    **_names(
        2, "log_softmax unsqueeze cumsum cumprod flip roll flatten amax amin argmax argmin max min sum mean var std"
    ),
    **_names(3, "clamp clip where lerp logsumexp sort argsort median quantile addcmul addcdiv gather masked_fill"),
    **_names(4, "nan_to_num"),
}
_TORCH = {
    **_BOTH,
    **_names(1, "zeros_like ones_like tensor"),
    **_names(2, "full_like cat concat stack reshape true_divide float_power"),
}
_FUNCTIONAL = {
    **_names(1, "logsigmoid relu relu6 selu gelu silu mish sigmoid tanh softsign tanhshrink hardsigmoid hardswish"),
    **_names(
        2, "leaky_relu elu celu softshrink hardshrink softmax log_softmax softmin mse_loss l1_loss smooth_l1_loss"
    ),
    **_names(2, "huber_loss binary_cross_entropy_with_logits binary_cross_entropy"),
    **_names(3, "softplus hardtanh threshold"),
}
_MATH = {
    **_names(1, "exp expm1 log1p log2 log10 sqrt tanh sinh cosh sin cos tan asin acos atan erf erfc lgamma fabs"),
    **_names(1, "isfinite isnan isinf"),
    **_names(2, "log pow hypot atan2 fmod copysign"),
}
FUNCTIONS: dict[str, int] = {
    **{f"torch.{name}": count for name, count in _TORCH.items()},
    **{f"F.{name}": count for name, count in _FUNCTIONAL.items()},
    **{f"math.{name}": count for name, count in _MATH.items()},
    **_names(1, "abs float len"),
    **_names(4, "min max"),
}
"""Every function that may be called, with how many arguments it takes by position: further ones may mean `inplace`."""

METHODS: dict[str, int] = {
    **{name: count - 1 for name, count in _BOTH.items()},
    **_names(0, "float double detach clone dim contiguous"),
    **_names(1, "size to type_as view_as"),
    **_names(2, "view reshape"),
}
"""Methods of a tensor, with how many arguments they take by position."""

ATTRIBUTES = ("dtype", "device", "shape", "values", "indices", "ndim")
"""What may be read of a value; `values` and `indices` are those of a sorted or an extreme one."""

DTYPES = ("torch.float32", "torch.float64", "torch.float", "torch.double", "torch.bool")
CONSTANTS = (
    *("math.pi", "math.e", "math.inf", "math.nan", "math.tau", "torch.pi", "torch.e", "torch.inf", "torch.nan"),
    *DTYPES,
)

KEYWORDS = {
    *(
        "dim",
        "keepdim",
        "min",
        "max",
        "beta",
        "threshold",
        "alpha",
        "input",
        "other",
        "exponent",
        "value",
        "eps",
        "nan",
    ),
    *("posinf", "neginf", "descending", "stable", "unbiased", "correction", "negative_slope", "lambd", "min_val"),
    *(
        "max_val",
        "reduction",
        "approximate",
        "rounding_mode",
        "dtype",
        "device",
        "target",
        "delta",
        "weight",
        "end",
        "q",
    ),
    *("dims", "shifts", "fill_value", "condition", "mask", "index", "start_dim", "end_dim", "pos_weight"),
}
"""Names by which functions may be given arguments; `out`, `inplace` and `requires_grad` are none of them."""

WORDS = {
    "reduction": ("none", "mean", "sum"),
    "approximate": ("none", "tanh"),
    "rounding_mode": ("floor", "trunc"),
}
"""Keywords whose values are words."""

GROWING = {"cat", "concat", "stack", "unsqueeze", "view", "reshape", "flatten"}
"""Functions by which a tensor can become larger, or broadcast to something larger."""

REMEDIES = {
    "item": "leave it a tensor",
    "tolist": "leave it a tensor",
    "numpy": "use torch and math; a tensor stays one",
    "cpu": "tensors stay where they are",
    "cuda": "tensors stay where they are",
    "half": "use .float()",
    "data": "use .detach()",
    "grad": "a loss returns values; their gradient is taken by the trainer",
    "backward": "a loss returns values; their gradient is taken by the trainer",
    "print": "leave it out",
    "sum": "add the terms with +, or use torch.sum of a tensor",
    "pow": "write a ** b",
    "range": "it stands in `for i in range(3):` alone",
    "int": "use a float",
    "isinstance": "scalars are numbers, fields of the pairs are tensors",
    "np": "use torch or math",
    "nn": "use F, which is torch.nn.functional",
    "zeros": "use torch.zeros_like(pairs.margin_B)",
    "ones": "use torch.ones_like(pairs.margin_B)",
    "full": "use torch.full_like(pairs.margin_B, value)",
    "rand": "a loss draws no random numbers",
    "randn": "a loss draws no random numbers",
    "rand_like": "a loss draws no random numbers",
    "randn_like": "a loss draws no random numbers",
    "normal": "a loss draws no random numbers",
    "dropout": "a loss draws no random numbers",
    "bernoulli": "a loss draws no random numbers",
    "manual_seed": "a loss draws no random numbers",
}
"""What to use instead of a name that is not listed."""
GIVEN = ("torch", "F", "math", *(name for name in FUNCTIONS if "." not in name), "range")
"""Names that mean the same in every proposal: `F` is torch.nn.functional."""
