"""What every API class shares: camelCase fields, strictness, documented attributes, CEL rules."""

from typing import Annotated, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


class Rule(NamedTuple):
    """A CEL rule of a schema, written once: the API server and `finetune local` both evaluate it.

    `self` and `oldSelf` are the object the rule stands on. The message says what must hold and
    what to do.
    """

    rule: str
    message: str
    message_expression: str = ""
    """CEL of a message that depends on the values; `message` then stands in the documentation."""

    def as_validation(self) -> dict[str, str]:
        """Return the entry of `x-kubernetes-validations`."""
        shown = {"rule": self.rule, "message": self.message}
        if self.message_expression:
            shown["messageExpression"] = self.message_expression
        return shown


class Model(BaseModel):
    """Base of everything a user writes: immutable, and unknown fields are errors."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )
    cel_rules: ClassVar[tuple[Rule, ...]] = ()


class StatusModel(Model):
    """Base of what the operator writes; unknown fields are kept out silently.

    A status written by a newer operator must stay readable after a downgrade.
    """

    model_config = ConfigDict(extra="ignore")


# Bounded building blocks: every string, list and map of a CRD has a maximum, or its CEL rules
# would exceed the API server's cost budget.
Name = Annotated[
    str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
]
ShortText = Annotated[str, Field(min_length=1, max_length=256)]
Message = Annotated[str, Field(max_length=4096)]
Timestamp = Annotated[str, Field(max_length=32)]
Number = Annotated[str, Field(max_length=32)]
