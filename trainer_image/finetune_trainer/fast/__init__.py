"""The fast path: decoder layers of an ordinary transformers model with PEFT adapters, each as one Function.

From the outside the model stays what it is: its parameters, PEFT's adapters, saving, generation. Inside,
a layer that is understood (`spec`) and that computes what it computed before (`probe`) runs as one forward
and one backward over rows laid end to end (`layer`), with the adapters folded into its products
(`products`), and keeps as much for the backward as memory allows (`recompute`). All others stay as they
are, and `report` says which and why.

| where | what |
|---|---|
| `spec` | what a decoder layer is made of, read off its modules; or why it is not understood |
| `products` | linears that share an input, as one product with their adapters |
| `kernels/` | what is not a product: norms, rotary embedding, gated activation, log-probabilities |
| `attention` | rows laid end to end, each attending to itself |
| `layer` | forward and backward of a decoder layer |
| `recompute` | what a layer keeps, and how many keep how much |
| `probe`, `patch` | trust and exchange; `release` undoes it |
"""
