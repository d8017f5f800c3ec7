"""The result of a run: weights, tokenizer, log, plot, model card, in one folder."""

import json
import shutil
from pathlib import Path
from typing import Any

from finetune_api.adapters import Method
from finetune_api.contract import PLOT_FILE, TRAINER_LOG_FILE, JobFile
from finetune_api.status import Artifact
from finetune_trainer import checkpoints, outputs
from finetune_trainer.data.chat import serving_template
from finetune_trainer.plot import plot_losses

NOT_A_RESULT = shutil.ignore_patterns(
    "optimizer*", "scheduler*", "rng_state*", "trainer_state.json", "training_args.bin",
    "manifest.json", "README.md",
)  # fmt: skip


def publish_run(
    file: JobFile, trainer: Any, *, steps: int, best: Path | None
) -> outputs.OutputManifest:
    """Publish the trainer's weights, or those of the best checkpoint."""
    spec = file.job
    assert spec is not None
    kind = "adapter" if spec.method is Method.LORA else "model"

    def fill(folder: Path) -> outputs.OutputManifest:
        if best is not None:
            shutil.copytree(best, folder, dirs_exist_ok=True, ignore=NOT_A_RESULT)
        else:
            model = trainer.accelerator.unwrap_model(trainer.model)
            model.save_pretrained(folder)
        _save_tokenizer(file, trainer.processing_class, folder)
        if spec.method is Method.LORA:
            _name_base_model(folder, spec.model.uri)
        log = checkpoints.attempt_folder(file) / TRAINER_LOG_FILE
        shutil.copyfile(log, folder / TRAINER_LOG_FILE)
        plot_losses(
            folder / TRAINER_LOG_FILE, folder / PLOT_FILE, title=f"{file.name}, run {file.run}"
        )
        (folder / "README.md").write_text(model_card(file, folder), encoding="utf-8")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return outputs.OutputManifest(
            uid=file.uid,
            namespace=file.namespace,
            name=file.name,
            run=file.run,
            config_digest=file.config_digest,
            dataset_digests=file.resolved.dataset_digests if file.resolved else {},
            model_revision=file.prepared.model.revision if file.prepared else "",
            steps=steps,
            artifacts=[Artifact(kind=kind, uri=file.output, size_bytes=size)],
        )

    return outputs.publish(file, fill)


def _save_tokenizer(file: JobFile, tokenizer: Any, folder: Path) -> None:
    """Save the tokenizer with the template that was trained on: serving must use the same."""
    assert file.prepared is not None
    template = Path(file.folders.cache) / file.prepared.data_folder / "chat_template.jinja"
    tokenizer.chat_template = serving_template(template.read_text(encoding="utf-8"))
    tokenizer.save_pretrained(folder)


def _name_base_model(folder: Path, uri: str) -> None:
    """Name the base model by where everybody finds it, not by its place in our cache."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = uri.removeprefix("hf://")
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def model_card(file: JobFile, folder: Path) -> str:
    """Return the README of a result: what it is, how it was made, how to load it."""
    spec, resolved, prepared = file.job, file.resolved, file.prepared
    assert spec is not None
    assert resolved is not None
    assert prepared is not None
    lines = [json.loads(line) for line in (folder / TRAINER_LOG_FILE).read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    evals = [line["eval_loss"] for line in lines if "eval_loss" in line]
    rows = [
        ("Base model", f"`{spec.model.uri}` ({prepared.model.revision[:19]})"),
        ("Data", ", ".join(f"{n} ({d[:19]})" for n, d in resolved.dataset_digests.items())),
        ("Stage, method", f"{spec.stage}, {spec.method}"),
        ("Rows, trained tokens", f"{prepared.data.rows}, {prepared.data.trained_tokens}"),
        ("Steps, batch", f"{resolved.total_steps}, {resolved.global_batch_size} rows"),
        ("Learning rate", resolved.learning_rate),
        ("Loss", f"{losses[0]:.4f} → {losses[-1]:.4f}" if losses else "not logged"),
    ]
    if evals:
        rows.append(("Evaluation loss", f"{min(evals):.4f} (best)"))
    if resolved.lora_rank:
        rows.append(("LoRA", f"rank {resolved.lora_rank}, alpha {resolved.lora_alpha}"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    base = spec.model.uri.removeprefix("hf://")
    loading = (
        f'model = AutoModelForCausalLM.from_pretrained("{base}")\n'
        'model = PeftModel.from_pretrained(model, "path/to/this/folder")'
        if spec.method is Method.LORA
        else 'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")'
    )
    library = "peft" if spec.method is Method.LORA else "transformers"
    return (
        f"---\nlibrary_name: {library}\nbase_model: {base}\n---\n\n# {file.name}\n\n"
        f"Fine-tuned by finetune-operator, run {file.run}.\n\n| | |\n|---|---|\n{table}\n\n"
        f"![Loss]({PLOT_FILE})\n\n```python\n{loading}\n```\n"
    )
