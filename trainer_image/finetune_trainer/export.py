"""`export`: a trained model in another form, called done only when it computes the same."""

from pathlib import Path
from typing import Any

from finetune_api.contract import ExportResult, JobFile
from finetune_api.status import Artifact
from finetune_api.storage import Location
from finetune_trainer import outputs, signals, sources
from finetune_trainer.exporters import EXPORTERS
from finetune_trainer.exporters.layout import ExportParts
from finetune_trainer.models import load_tokenizer
from finetune_trainer.verify import verify

DEFAULT_PROMPTS = 4


def export(file: JobFile) -> ExportResult:
    """Export, verify against base and adapter, publish.

    Raises:
        UserError: source or destination cannot be used. VerificationFailed: it computes otherwise.
    """
    assert file.export is not None, "an export step has an export"
    settings = file.export.settings
    if (done := outputs.published(file)) is None:
        outputs.require_replaceable(file)
        outputs.claim(file, overwrite=False)
        parts = _parts(file)

        def fill(folder: Path) -> outputs.OutputManifest:
            EXPORTERS[settings.format](parts, settings, folder)
            signals.beat()
            prompts = settings.verify.prompts if settings.verify else DEFAULT_PROMPTS
            found = verify(parts, folder, prompts=prompts)
            return outputs.OutputManifest(
                uid=file.uid, namespace=file.namespace, name=file.name, run=file.run, verification=found
            )  # fmt: skip

        done = outputs.publish(file, fill)
    assert done.verification is not None
    artifact = Artifact(
        kind=settings.format,
        uri=file.output,
        size_bytes=outputs.total_size(done),
        digest=outputs.digest(done),
    )
    return ExportResult(artifact=artifact, files=len(done.files), verification=done.verification)


def _parts(file: JobFile) -> ExportParts:
    """Bring base model, adapters and tokenizer here."""
    given = file.export
    assert given is not None

    def local(location: Location) -> Path:
        patterns = [*sources.MODEL_FILES]
        return sources.fetch(location, file.folders, what="`spec.source`", patterns=patterns)

    adapters = [local(location) for location in given.adapters]
    if given.full_model is not None:
        base = local(given.full_model)
    elif given.prepared and (Path(file.folders.cache) / given.prepared.folder).is_dir():
        base = Path(file.folders.cache) / given.prepared.folder
    else:
        assert given.model is not None, "the schema asks for one of jobRef and model"
        base = _prepared_base(file, given.model)
    tokenizer: Any = load_tokenizer(adapters[-1] if _has_tokenizer(adapters) else base)
    return ExportParts(base=base, adapters=adapters, tokenizer=tokenizer)


def _prepared_base(file: JobFile, location: Location) -> Path:
    from finetune_api.finetunejob import BaseModelSource
    from finetune_trainer.models import prepare_model

    source = BaseModelSource.model_validate(location.model_dump())
    prepared = prepare_model(source, file.folders, what="`spec.source.model.uri`")
    return Path(file.folders.cache) / prepared.folder


def _has_tokenizer(adapters: list[Path]) -> bool:
    return bool(adapters) and (adapters[-1] / "tokenizer_config.json").is_file()
