"""A base in 4 or 8 bits under an adapter, in transformers' names."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tune_dlrml.config.lora import Names
from tune_dlrml.config.numbers import NotNegative
from tune_dlrml.domains import Frozen, law


class QuantizationSettings(Frozen):
    """How bitsandbytes keeps the linear layers of the base; the head, and what is no linear layer, stays as it is."""

    load_in_4bit: bool = False
    """NF4 or FP4, in 4 bits; this or load_in_8bit is given."""
    load_in_8bit: bool = False
    """LLM.int8(), in 8 bits."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """The 16 values that 4 bits stand for."""
    bnb_4bit_compute_dtype: Literal["bfloat16", "float32"] | None = None
    """What 4 bits are computed in; null follows `bf16`."""
    bnb_4bit_use_double_quant: bool = False
    """Quantizes the scales too, which saves another 0.4 bits a weight."""
    llm_int8_threshold: NotNegative = 6.0
    """Size from which activations are computed outside of the 8 bits."""
    llm_int8_skip_modules: Annotated[Names | None, Field(exclude_if=lambda value: value is None)] = None
    """Modules that stay as they are, in place of the head."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.load_in_4bit == self.load_in_8bit:
            given = "both" if self.load_in_4bit else "neither"
            raise law(f"exactly one of `load_in_4bit` and `load_in_8bit` must be true, but got {given}")
        fields, bits = type(self).model_fields, 4 if self.load_in_4bit else 8
        idle = [key for key in self._idle if getattr(self, key) != fields[key].default]
        if idle:
            raise law(f"has no effect while load_in_{bits}bit is true; leave it out", key=idle[0])
        return self

    @property
    def _idle(self) -> list[str]:
        """Settings of the bits that were not chosen."""
        prefix = "llm_int8_threshold" if self.load_in_4bit else "bnb_4bit_"
        return [key for key in type(self).model_fields if key.startswith(prefix)]

    def arguments(self, *, bf16: bool) -> dict[str, Any]:
        """Of transformers' BitsAndBytesConfig, for a model that computes in bfloat16 or in float32."""
        computed = self.bnb_4bit_compute_dtype or ("bfloat16" if bf16 else "float32")
        given = self.model_dump() | {"bnb_4bit_compute_dtype": computed}
        return {key: value for key, value in given.items() if key not in self._idle and value is not False}
