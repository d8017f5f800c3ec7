"""Shapes of a row. A new format is one module here and one entry in `FORMATS`."""

from finetune_api.datasetregistration import DatasetFormat
from finetune_trainer.data.formats import alpaca, openai, sharegpt
from finetune_trainer.data.formats.layout import Format

FORMATS: dict[DatasetFormat, Format] = {
    DatasetFormat.ALPACA: Format(alpaca.detect, alpaca.convert, alpaca.NEEDS),
    DatasetFormat.SHAREGPT: Format(sharegpt.detect, sharegpt.convert, sharegpt.NEEDS),
    DatasetFormat.OPENAI: Format(openai.detect, openai.convert, openai.NEEDS),
}
