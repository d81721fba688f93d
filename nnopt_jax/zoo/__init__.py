"""Small networks, data and losses for configurations and examples.

Recipes name these functions by `package.module:callable`, like a user's own code.

| name | what |
|---|---|
| `nnopt_jax.zoo.lenet:lenet_300_100`, `...:lenet_300_100_nnx` | 784-300-100-10, 266,610 weights |
| `nnopt_jax.zoo.lenet:lenet5`, `...:lenet5_nnx` | LeNet-5 as in Caffe, 431,080 weights |
| `nnopt_jax.zoo.perceptrons:mlp` | 3 x 1,024 with batch normalization, 2,916,372 weights |
| `nnopt_jax.zoo.perceptrons:projected_mlp` | principal or random components, then 300-100-10 |
| `nnopt_jax.zoo.perceptrons:quantized_mlp` | LeNet-300-100, its activations rounded |
| `nnopt_jax.zoo.convnet:net`, `...:net_nnx` | two convolutions on 32x32x3, 16,858,506 weights |
| `nnopt_jax.zoo.bert:Bert` | the encoder of BERT as a function of a plain tree |
| `nnopt_jax.zoo.llama:Llama` | the decoder of Llama, likewise |
| `nnopt_jax.zoo.data:digits`, `...:digits32` | 5,000 MNIST digits from a Python package |
| `nnopt_jax.zoo.data:mnist` | the full MNIST, from a folder that `nnopt data mnist` fills |
| `nnopt_jax.zoo.losses:cross_entropy`, `...:error_rate` | loss and metric of a classifier |
"""

from nnopt_jax.errors import former_names

__getattr__ = former_names(
    "nnopt_jax.zoo",
    {
        "fetch": "nnopt_jax.zoo.data, which has fetch_mnist",
        "mlp": "nnopt_jax.zoo.perceptrons",
        "net": "nnopt_jax.zoo.convnet",
        "projected": "nnopt_jax.zoo.perceptrons",
        "quantized": "nnopt_jax.zoo.perceptrons",
    },
)
