"""`python -m finetune_trainer run|worker|preview|chat --job-file FILE`; `clean --help`."""

import argparse
import sys
from pathlib import Path

from finetune_api.contract import CONTRACT_VERSION, ExitCode, JobFile


def main() -> int:
    """Run one step; return its exit code."""
    if sys.argv[1:2] == ["clean"]:
        from finetune_trainer.clean import main as clean

        return clean(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="finetune_trainer", description=__doc__)
    parser.add_argument("mode", choices=["run", "worker", "preview", "chat"])
    parser.add_argument("--job-file", type=Path, required=True)
    parser.add_argument("--attempt", type=int, help="instead of the job file's")
    parser.add_argument("--micro-batch-divisor", type=int, help="instead of the job file's")
    parser.add_argument("--stop-on-eof", action="store_true", help="stop when standard input ends")
    arguments = parser.parse_args()
    file = JobFile.model_validate_json(arguments.job_file.read_text(encoding="utf-8"))
    if not CONTRACT_VERSION - 1 <= file.contract_version <= CONTRACT_VERSION:
        print(
            f"the job file has contract version {file.contract_version}; this trainer reads"
            f" {CONTRACT_VERSION - 1} and {CONTRACT_VERSION}; use the trainer image of that release",
            file=sys.stderr,
        )
        return ExitCode.USER_ERROR
    match arguments.mode:
        case "run":
            from finetune_trainer.supervise import Supervisor, of_this_attempt

            file, path = of_this_attempt(
                file,
                arguments.job_file,
                attempt=arguments.attempt,
                divisor=arguments.micro_batch_divisor,
            )
            supervisor = Supervisor(file, path)
            return supervisor.run(stop_on_eof=arguments.stop_on_eof)
        case "worker":
            from finetune_trainer.worker import run_worker

            return run_worker(file)
        case "preview":
            from finetune_trainer.preview import preview

            return preview(file)
        case _:
            from finetune_trainer.chat import chat

            return chat(file)


if __name__ == "__main__":
    sys.exit(main())
