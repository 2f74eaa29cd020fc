"""What our gradients become on TPU and GPU, compiled without either: `python -m tests.accelerators`.

    contenders   what is compiled: our gradient functions, and what they are compared with
    compilers    XLA's compilers for TPU and GPU, for devices that are not there
    program      what a compiled program makes a device do, as it is read
    promises     what is promised of every program, and the floors that ours are held to

They run ahead of time, on any machine that has their plugins, of JAX's own version:

    pip install -e '.[accelerators]'                             # brings libtpu, for TPU
    pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt      # for GPU, without CUDA: both of JAX's version

Not told: how long anything takes. On GPU, kernels of products are those chosen without measuring (no autotuning).
"""
