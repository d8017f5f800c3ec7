"""The fast path: decoder layers of an ordinary transformers model with PEFT adapters, each as one Function.

From the outside the model stays what it is: its parameters, PEFT's adapters, saving, generation. Inside,
a layer that is understood (`spec`) and that computes what it computed before (`probe`) runs as one forward
and one backward over rows laid end to end (`layer`), with the adapters folded into its products
(`products`), and keeps as much for the backward as memory allows (`recompute`). All others stay as they
are, and the log says how many and why.

| where | what |
|---|---|
| `spec` | what a decoder layer is made of, read off its modules; or why it is not understood |
| `adapters` | PEFT's layers: a frozen linear, and the adapter that is on |
| `products` | linears that share an input, as one product with their adapters |
| `kernels/` | what is not a product: norms, rotary embedding, gated activation, log-probabilities |
| `attention` | rows laid end to end, each attending to itself |
| `layer`, `function` | forward and backward of a decoder layer, and autograd's view of it |
| `head` | log-probabilities of the trained positions, never the whole logits |
| `recompute` | what a layer keeps, and how many keep how much |
| `shared` | what the layers of a model share: the batch under way, the adapters that are on |
| `probe`, `patch` | trust and exchange; `release` undoes it |
| `apply` | whether a run takes this path |
"""
