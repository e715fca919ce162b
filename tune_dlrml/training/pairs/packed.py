"""Preference pairs as one row without padding, in which a prompt that two completions share is computed once.

A row of B pairs has, for each of them,

    [prompt without its last token | last prompt token, chosen | last prompt token, rejected]

where each branch leaves out the last token of its completion, which predicts nothing. The last prompt token stands in
both branches, at the same position: so every scored token has one label, and the head takes the labels as they are.
Positions of a branch go on where its prefix ends. A token sees the prefix and its own branch, never the other branch or
another pair; attention runs pair by pair on exactly these keys, so neither padding nor a masked block is computed, and
a pair's numbers do not depend on which other pairs are in its row.

For a prompt p times as long as a completion this is (2p + 2) / (p + 2) times less than two padded sequences.

Shape legend: B = preference pairs in the row, N = tokens in the row, H = heads, D = dimension of a head.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tune_dlrml.training.pairs.log_prob_head import UNSCORED

ATTENTION = "packed_pairs"
"""Name of the attention in transformers' registry; without a packed row it is sdpa."""
FLASH_WIDTH = 256
"""Dimension of a head up to which the flash kernel goes."""
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps", "ref_chosen_beyond_logps", "ref_rejected_beyond_logps")
"""Columns of the reference's log-probs: of completions, and of their tokens beyond the public length of the pair."""


@dataclass(frozen=True)
class Shared:
    """Lengths of a prefix and of the branches that go on from it, in tokens of the packed row."""

    prefix: int
    branches: tuple[int, ...]


@dataclass(frozen=True)
class Spans:
    """A layout as one call of attention over sequences of different lengths takes it.

    The queries are the row as it is; a sequence is a prefix with its first branch, or a further branch alone. The keys
    of a further branch are its prefix, laid out once more, and its own.

    Attributes:
        queries_behind: Where each sequence ends among the queries, a zero before them; int32.
        keys_behind: The same among the keys.
        most_queries: Of one sequence.
        most_keys: Of one sequence.
        order: The token of the row at each place of the keys; None where nothing is laid out twice.
        first: The place among the keys at which each token of the row stands first.
        again: For the second branches, the third and so on: the tokens of their prefixes, and the places of these.
    """

    queries_behind: Tensor
    keys_behind: Tensor
    most_queries: int
    most_keys: int
    order: Tensor | None
    first: Tensor
    again: tuple[tuple[Tensor, Tensor], ...]


class Layout:
    """Where the prefixes and branches of a row lie, one after another.

    Neither a tuple nor a dataclass, which pinned memory, DDP and FSDP take apart and put together as something else.

    Args:
        pieces: The pairs, in the order of the row.
    """

    def __init__(self, pieces: Iterable[Shared]) -> None:
        self._pieces = tuple(pieces)
        self._spans: Spans | None = None

    def __iter__(self) -> Iterator[Shared]:
        return iter(self._pieces)

    def spans(self, device: torch.device) -> Spans:
        """The same for one call of attention; made at the first layer of a row, and kept for the others."""
        if self._spans is None or self._spans.first.device != device:
            self._spans = _spans(self, device)
        return self._spans


def _spans(layout: Layout, device: torch.device) -> Spans:
    queries: list[int] = []
    keys: list[int] = []
    order: list[int] = []
    first: list[int] = []
    again: dict[int, tuple[list[int], list[int]]] = {}
    start = 0
    for shared in layout:
        prefix = range(start, start + shared.prefix)
        for index, length in enumerate(shared.branches):
            own = shared.prefix + length if index == 0 else length
            if index > 0:
                tokens, places = again.setdefault(index, ([], []))
                tokens += prefix
                places += range(len(order), len(order) + shared.prefix)
                order += prefix
            first += range(len(order), len(order) + own)
            order += range(start, start + own)
            queries.append(own)
            keys.append(shared.prefix + length)
            start += own

    def tensor(numbers: Sequence[int], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)

    return Spans(
        queries_behind=tensor([0, *accumulate(queries)], torch.int32),
        keys_behind=tensor([0, *accumulate(keys)], torch.int32),
        most_queries=max(queries),
        most_keys=max(keys),
        order=tensor(order) if again else None,
        first=tensor(first),
        again=tuple((tensor(tokens), tensor(places)) for tokens, places in again.values()),
    )


def sequences(row: Mapping[str, Any], max_length: int | None, truncation_mode: str) -> list[tuple[list[int], int]]:
    """Token ids of prompt with chosen and prompt with rejected, truncated as TRL does, and where completions begin."""
    keep = slice(None) if max_length is None else slice(max_length)
    if max_length is not None and truncation_mode == "keep_end":
        keep = slice(-max_length, None)
    found = []
    for completion in (row["chosen_ids"], row["rejected_ids"]):
        ids = [*row["prompt_ids"], *completion]
        kept = ids[keep]
        cut = len(ids) - len(kept) if truncation_mode == "keep_end" else 0
        found.append((kept, max(0, len(row["prompt_ids"]) - cut)))
    return found


class PackedCollator:
    """Makes one packed row of pairs.

    Args:
        max_length: Tokens that a prompt with its completion may have.
        truncation_mode: Which end of a longer one is kept. Where `keep_end` leaves the two completions of a pair
            different prompts, each gets its own.
    """

    def __init__(self, max_length: int | None, truncation_mode: str) -> None:
        self._truncation = max_length, truncation_mode

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of these pairs; see `batches.PairCollator` for the entries that every form has.

        `input_ids`, `position_ids` and `shift_labels` have shape (1, N), `branch_N` says to which completion a token
        belongs (chosen ones first; prefixes count as 2B), `layout` where everything lies.
        """
        row = _Row(prefix_owner=2 * len(rows))
        layout: list[Shared] = []
        lengths = [[0] * len(rows), [0] * len(rows)]
        seen = 0
        for index, pair in enumerate(sequences(each, *self._truncation) for each in rows):
            heads = [max(0, begin - 1) for _, begin in pair]
            prefixes = [ids[:head] for (ids, _), head in zip(pair, heads, strict=True)]
            for sides in [(0, 1)] if prefixes[0] == prefixes[1] else [(0,), (1,)]:
                row.put_prefix(prefixes[sides[0]])
                branches = []
                for side in sides:
                    ids, begin = pair[side]
                    row.put_branch(ids, heads[side], owner=index + side * len(rows))
                    branches.append(len(ids) - 1 - heads[side])
                    lengths[side][index] = len(ids) - begin
                    seen += len(ids)
                layout.append(Shared(len(prefixes[sides[0]]), tuple(branches)))
        batch: dict[str, Any] = {
            "input_ids": torch.tensor([row.tokens]),
            "position_ids": torch.tensor([row.positions]),
            "shift_labels": torch.tensor([row.labels]),
            "branch_N": torch.tensor(row.owners),
            "layout": Layout(layout),
            "chosen_lengths": torch.tensor(lengths[0]),
            "rejected_lengths": torch.tensor(lengths[1]),
            "tokens": torch.tensor(seen),
        }
        return batch | {name: torch.tensor([each[name] for each in rows]) for name in REFERENCE if name in rows[0]}


@dataclass
class _Row:
    """A packed row while it is built; `owners` has the completion of each token, `prefix_owner` for a prefix."""

    prefix_owner: int
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)

    def put_prefix(self, ids: list[int]) -> None:
        self._put(ids, 0, [UNSCORED] * len(ids), self.prefix_owner)

    def put_branch(self, ids: list[int], head: int, owner: int) -> None:
        """What follows the prefix of a sequence, each token with the next one as its label."""
        self._put(ids[head:-1], head, ids[head + 1 :], owner)

    def _put(self, ids: list[int], position: int, labels: list[int], owner: int) -> None:
        self.tokens += ids
        self.positions += range(position, position + len(ids))
        self.labels += labels
        self.owners += [owner] * len(ids)


def outputs(model: nn.Module, batch: Mapping[str, Any], **asked: bool) -> Any:
    """What the log-prob head gives of a packed row; `log_probs` are of the label of each token, 0 for a prefix."""
    return model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        shift_labels=batch["shift_labels"],
        **attending(batch["layout"], batch["input_ids"]),
        fused_lm_head=True,
        **asked,
    )


def pair_sums(tokens_N: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Sums over the tokens of the chosen and of the rejected completions of a packed row, each of shape (B,)."""
    sums = tokens_N.new_zeros(2 * len(batch["chosen_lengths"]) + 1)
    chosen_B, rejected_B = sums.index_add(0, batch["branch_N"], tokens_N)[:-1].chunk(2)
    return chosen_B, rejected_B


def beyond_public_length(batch: Mapping[str, Any]) -> Tensor:
    """Which tokens of a packed row have a label beyond the public length of their pair, shape (N,), bool."""
    owner_N, position_N = batch["branch_N"], batch["position_ids"][0]
    empty = position_N.new_zeros(2 * len(batch["chosen_lengths"]) + 1)
    scored = empty.index_add(0, owner_N, torch.ones_like(owner_N))
    begins = empty.scatter_reduce(0, owner_N, position_N, "amin", include_self=False)
    ends = begins + torch.cat([scored[:-1].view(2, -1).amin(dim=0).repeat(2), scored[-1:]])
    return position_N >= ends[owner_N]


def attending(layout: Layout, like: Tensor) -> dict[str, Any]:
    """Arguments of a model's forward that make its attention follow a layout.

    Transformers hands a mask of four dimensions on as it is, and this attention does not look at it; one of integers is
    refused by any other attention.
    """
    return {"attention_mask": like.new_ones((1, 1, 1, 1)), "layout": layout, "use_cache": False}


def use_packed_attention(model: PreTrainedModel) -> None:
    """Let a model's forward take `attending` arguments; without them it attends as under sdpa."""
    model.set_attn_implementation(ATTENTION)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if layout is None:
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return attended
    # Rotary embeddings leave queries and keys in float32 under autocast, and a causal bias is refused before it casts.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if _flash_takes(value, dropout):
        return _attend_at_once(query, key, value, layout.spans(value.device), scaling), None
    groups = getattr(module, "num_key_value_groups", 1)
    return _attend_one_by_one(query, repeat_kv(key, groups), repeat_kv(value, groups), layout, dropout, scaling), None


def _flash_takes(value: Tensor, dropout: float) -> bool:
    width = value.size(-1)
    half = value.dtype in (torch.bfloat16, torch.float16)
    return value.is_cuda and half and dropout == 0 and width <= FLASH_WIDTH and width % 8 == 0


def _attend_at_once(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scaling: float | None) -> Tensor:
    """All branches of all pairs in one kernel: a call each would leave a GPU waiting for its launches."""
    query_NHD, key_NHD, value_NHD = (each[0].transpose(0, 1) for each in (query, key, value))
    if spans.order is not None:
        key_NHD, value_NHD = (_LaidOut.apply(each, spans) for each in (key_NHD, value_NHD))
    attended_NHD: Tensor = varlen_attn(
        query_NHD,
        key_NHD,
        value_NHD,
        spans.queries_behind,
        spans.keys_behind,
        spans.most_queries,
        spans.most_keys,
        scale=scaling,
        window_size=(-1, 0),  # causal, and the last query sees the last key
        enable_gqa=query_NHD.size(1) != key_NHD.size(1),
    )
    return attended_NHD[None]


def _attend_one_by_one(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float, scaling: float | None
) -> Tensor:
    attend = partial(scaled_dot_product_attention, dropout_p=dropout, scale=scaling)
    parts: list[Tensor] = []
    start = 0
    for shared in layout:
        first = start + shared.prefix + shared.branches[0]
        own = slice(start, first)
        parts.append(attend(query[:, :, own], key[:, :, own], value[:, :, own], is_causal=True))
        prefix, start = slice(start, start + shared.prefix), first
        for length in shared.branches[1:]:
            branch = slice(start, start + length)
            keys, values = (torch.cat([each[:, :, prefix], each[:, :, branch]], dim=2) for each in (key, value))
            causal = _causal(length, shared.prefix + length, query.device)
            parts.append(attend(query[:, :, branch], keys, values, **causal))
            start += length
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous()


def _causal(queries: int, keys: int, device: torch.device) -> dict[str, Any]:
    """Arguments of attention whose last query sees the last key; a CPU has no kernel for that and takes a mask."""
    if queries == keys:
        return {"is_causal": True}
    if device.type == "cuda":
        return {"attn_mask": causal_lower_right(queries, keys)}
    return {"attn_mask": torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)}


class _LaidOut(torch.autograd.Function):  # type: ignore[misc]  # mypy skips torch, see pyproject.toml
    """Keys or values of shape (N, H, D) with each prefix once more in front of every further branch.

    The gradient of a prefix is the sum over its branches. It is added branch by branch and not by an `index_add`, whose
    order on a GPU is another in every run, so that the same trial gives the same numbers.
    """

    @staticmethod
    def forward(ctx: Any, tensor_NHD: Tensor, spans: Spans) -> Tensor:
        ctx.spans = spans
        return tensor_NHD.index_select(0, spans.order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), spans = gradients, ctx.spans
        summed = gradient.index_select(0, spans.first)
        for tokens, places in spans.again:
            more = summed.index_select(0, tokens) + gradient.index_select(0, places)
            summed.index_copy_(0, tokens, more)
        return summed, None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
