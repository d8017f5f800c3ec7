"""The API of finetune-operator: its resources, their rules, and what operator and trainer agree on."""
