"""Output agreement as configuration: which logits travel, and what the server's student is."""

from typing import Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from fedrec.errors import UserError
from fedrec.tasks import ATTRIBUTES

Scale = Literal["raw", "centred", "standard"]


class Agreement(BaseModel, frozen=True, extra="forbid"):
    """Agreement on outputs: recommenders of any architecture are tied by their logits on public pairs, nothing else.

    x_i(theta) are the logits (FedMD, arXiv 1910.03581); their consensus teaches one student on the server, as ensemble
    distillation does (FedDF, arXiv 2006.07242, eq. 1).
    """

    items: int = Field(0, ge=0, description="public items for each volunteer whose logits travel; 0: parameters do")
    task: str = Field("rank", description="the task whose logits travel; every client must have it")
    scale: Scale = Field(
        "standard", validate_default=True, description="what is done to a volunteer's logits before they are compared"
    )
    batch: int = Field(8192, ge=1, description="logits in a step; of a larger probe each step draws volunteers")
    student: Literal["mf", "mlp"] = Field("mf", description="model of the server's student")
    epochs: int = Field(30, ge=1, description="the student's passes over the consensus")

    @field_validator("task")
    @classmethod
    def _one_score(cls, task: str, info: ValidationInfo) -> str:
        if info.data.get("items") and task in (*ATTRIBUTES, "behaviour"):
            raise UserError(f"must have one score for a user and an item, found {task}")
        return task

    @field_validator("scale")
    @classmethod
    def _of_scores(cls, scale: Scale, info: ValidationInfo) -> Scale:
        if info.data.get("items") and info.data.get("task", "rank") != "rank" and scale != "raw":
            raise UserError(f"must be raw for a task that does not rank, found {scale}")
        return scale

    @property
    def active(self) -> bool:
        """Whether logits travel, and not parameters."""
        return self.items > 0
