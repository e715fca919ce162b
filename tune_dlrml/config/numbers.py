"""Numbers that many settings are."""

from typing import Annotated, Literal

from pydantic import Field

Natural = Annotated[int, Field(ge=1)]
NotNegativeInt = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Auto = Literal["auto"] | bool
