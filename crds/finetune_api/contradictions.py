"""What cannot work whatever the data and the model are: told before anything is started. Pure."""

from finetune_api.adapters import Lora
from finetune_api.data import Packing
from finetune_api.extra_arguments import refused_arguments
from finetune_api.finetunejob import Attention, FineTuneJobSpec
from finetune_api.modelexport import ExportFormat
from finetune_api.resolve import Machine, machine_of, world_size
from finetune_api.training import Precision, Training


def contradictions(spec: FineTuneJobSpec, *, here: Machine | None = None) -> list[str]:
    """Return what cannot work whatever the data and the model are."""
    training, machine = spec.training or Training(), machine_of(spec, here=here)
    world = world_size(spec, machine)
    found = [
        *_device_contradictions(spec, machine, world, here),
        *_batch_contradictions(training, world),
    ]
    found += refused_arguments(training)
    has_eval = bool(spec.eval_datasets or (spec.data and spec.data.validation_split))
    if not has_eval:
        for name, value in (
            ("evalSteps", training.eval_steps),
            ("earlyStopping", training.early_stopping),
        ):
            if value is not None:
                found.append(
                    f"`spec.training.{name}` is set, but there is nothing to evaluate on;"
                    " add `spec.evalDatasets` or `spec.data.validationSplit`, or remove it"
                )
    return found + _other_contradictions(spec)


def _device_contradictions(
    spec: FineTuneJobSpec, machine: Machine, world: int, here: Machine | None
) -> list[str]:
    found = []
    if machine.gpus and world != machine.gpus:
        found.append(
            f"`spec.workers.processesPerNode` is {world}; it must equal `gpusPerNode`"
            f" {machine.gpus}, one process a GPU; remove it"
        )
    if here is not None and machine.gpus > here.gpus:
        found.append(
            f"`spec.workers.gpusPerNode` is {machine.gpus}, but this computer has {here.gpus};"
            " lower it, or remove it to use what is there"
        )
    precision = (spec.training or Training()).precision
    if precision is Precision.BF16 and here is not None and machine.gpus and not machine.has_bf16:
        found.append(
            "`spec.training.precision` is bf16, which this computer's GPU does not compute; use fp16"
            " or fp32"
        )
    if precision is Precision.FP16 and not machine.gpus:
        found.append(
            "`spec.training.precision` is fp16, which needs a GPU; use fp32, or bf16 where the"
            " processor has it"
        )
    return found


def _batch_contradictions(training: Training, world: int) -> list[str]:
    batch, per_device = training.global_batch_size, training.per_device_batch_size
    accumulation = training.gradient_accumulation_steps
    if batch is None:
        return []
    if per_device and accumulation and per_device * accumulation * world != batch:
        product = per_device * accumulation * world
        return [
            f"`spec.training.globalBatchSize` is {batch}, but perDeviceBatchSize {per_device} x"
            f" gradientAccumulationSteps {accumulation} x {world} processes = {product};"
            " they must be equal, or leave one of them unset"
        ]
    if batch % world:
        return [
            f"`spec.training.globalBatchSize` is {batch}; it must be a multiple of the {world}"
            f" training processes; set e.g. {max(batch // world, 1) * world}"
        ]
    if accumulation and batch % (world * accumulation):
        return [
            f"`spec.training.gradientAccumulationSteps` is {accumulation}; with {world} processes"
            f" it must divide globalBatchSize {batch}; remove it to have it derived"
        ]
    if per_device and per_device * world > batch:
        return [
            f"`spec.training.perDeviceBatchSize` is {per_device}; times {world} processes it must"
            f" not exceed globalBatchSize {batch}; lower it or remove it"
        ]
    return []


def _other_contradictions(spec: FineTuneJobSpec) -> list[str]:
    found = []
    if spec.model.revision and not spec.model.uri.startswith("hf://"):
        found.append(
            f"`spec.model.revision` is {spec.model.revision!r}, but only `hf://` locations have"
            f" revisions, and the uri is {spec.model.uri}; remove it"
        )
    if (
        spec.data
        and spec.data.packing is Packing.PACKED
        and spec.model.attention is Attention.EAGER
    ):
        found.append(
            "`spec.data.packing` is packed, but `spec.model.attention` eager would build the whole"
            " attention matrix of a pack; use `sdpa` or `packing: padded`"
        )
    for index, export in enumerate(spec.exports or []):
        if export.huggingface and export.format is not ExportFormat.HUGGINGFACE:
            found.append(f"`spec.exports[{index}].huggingface` needs `format: huggingface`")
    names = {dataset.name for dataset in spec.datasets}
    for index, dataset in enumerate(spec.eval_datasets or []):
        if dataset.name in names:
            found.append(
                f"`spec.evalDatasets[{index}].name` {dataset.name!r} is also trained on; a loss on"
                " rows that were trained on says nothing; use other data or `validationSplit`"
            )
    return found + _lora_contradictions(spec.lora or Lora())


def _lora_contradictions(lora: Lora) -> list[str]:
    found = []
    modules = lora.target_modules or []
    for name in sorted(set(modules) & set(lora.modules_to_save or [])):
        found.append(
            f"`spec.lora.targetModules` and `spec.lora.modulesToSave` both hold {name}; a module is"
            " adapted or trained in full, not both; remove it from one"
        )
    if "all-linear" in modules and len(modules) > 1:
        found.append(
            "`spec.lora.targetModules` holds all-linear and further names; all-linear already"
            " covers them; keep one"
        )
    if "lm_head" in modules:
        found.append(
            "`spec.lora.targetModules` holds lm_head, whose adapter would never be trained; put it"
            " into `spec.lora.modulesToSave`"
        )
    return found
