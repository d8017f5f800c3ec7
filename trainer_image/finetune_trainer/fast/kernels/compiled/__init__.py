"""What Triton compiles; imported where a tensor is on a GPU only."""
