"""What every section of a recipe is: frozen, and refuses keys that it does not know."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from mergetomix.bounds import MOST_WHOLE

Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What numpy, which draws, takes for a seed."""


class Section(BaseModel):
    """A frozen part of the recipe that knows its keys."""

    # Defaults are validated too: `epochs: 1` and no epochs at all then have the same address.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        arbitrary_types_allowed=True,
        allow_inf_nan=False,
        validate_default=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_of_a_size(cls, value: Any) -> Any:
        # what a float cannot hold exactly, something on the way would round or refuse
        if isinstance(value, int) and abs(value) > MOST_WHOLE:
            raise ValueError(f"a whole number must be at most {MOST_WHOLE:,} in size")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic takes true for 1, and YAML takes yes and on for true
        wanted = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and not {bool, Any} & {wanted, *get_args(wanted)}:
            yaml = "YAML takes yes, no, on and off for it, so quote a text"
            raise ValueError(f"must not be {str(value).lower()}; {yaml}")
        return value
