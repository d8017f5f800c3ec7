"""One decision a kind, pure. A new kind is one module here and one entry in `DECISIONS`."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from finetune_operator.kinds import datasetregistration, finetunejob, modelexport
from finetune_operator.plan import Observed, Plan

Decision = Callable[[Any, Observed, datetime], Plan]

DECISIONS: dict[str, Decision] = {
    "DatasetRegistration": datasetregistration.decide,
    "FineTuneJob": finetunejob.decide,
    "ModelExport": modelexport.decide,
}
