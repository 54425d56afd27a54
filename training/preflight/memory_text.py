"""The sentences of ``docs/memory.md`` around its tables."""

from __future__ import annotations

COMMAND = "python -m training.preflight.memory_table > docs/memory.md"
INTRODUCTION = f"""# Memory

How much memory a training step needs on one GPU, estimated before anything is loaded. `validate` prints the estimate of your own run, with
the sizes of your images. This page is printed by `{COMMAND}`.

- Weights, gradients, state of the optimizer and average are counted from shapes. What the forward pass keeps for the backward pass is
  modelled. For a small model of every family, the sum is within 10 % of the bytes of every tensor that lives in a step, in each row and
  column of the table below (`tests/training/preflight/test_measured_rows.py`). A CPU has no memory apart: what waits on the host is
  measured together with what is on the device, and float32 stands for bfloat16. ControlNets, LyCORIS, token routing and other types are
  measured by `test_measured_memory.py` beside it. Without the weights on this machine, as here, the shapes of the published networks count
  (`shapes.json` of each family).
- At the size of the published weights, in bfloat16, activations were measured with fake tensors: [activations.md](activations.md) has the
  table, without Qwen-Image 2.1, whose network reads numbers of its inputs. `lora_dropout` and adapters in float32 on a base in bfloat16
  keep inputs of their own, and count.
- Prompts count as the longest that a family takes. Krea 2, Qwen-Image and Z-Image need less where captions are shorter.
- The driver, the libraries and the allocator take 1 to 2 GiB more.
- Encoding and validations happen at other times than training. The estimate of `validate` is that of the phase which needs the most; it
  lists all of them, leaves out what is in the caches already, refuses a phase that cannot fit, and warns of a validation that cannot.
- Libraries other than quanto quantise linear layers alone: the convolutions of a UNet stay in bfloat16.
- `int4-torchao`, `fp8-torchao` and `fp8-int4-torchao` run on GPUs only, and were not tried on one. Layers that they compute wrongly are
  noticed when the run starts, and keep their weights.
"""
LOADING = """## While a run loads and encodes

- **Quantising.** Weights are loaded into the memory of the host in the type of the arithmetic, and become smaller layer by layer. The host
  needs the whole network once: 24 GB for Flux in bfloat16. With `quantize_via=accelerator` the device holds the quantised layers and one
  layer that is being quantised; with `quantize_via=cpu` it gets quantised layers alone.
- **Captions**: the text encoders are on the device, before the network is loaded.
- **Latents**: then the autoencoder, which has 84 or 127 million weights. What it needs grows with the image and with `vae_batch_size`.
  Out of memory halves its batch. `vae_enable_slicing` encodes one image at a time, `vae_enable_tiling` no more than a tile.
  Sets that are encoded while training (`vae_cache_ondemand`, `vae_cache_disable`, `vae_cache_clear_each_epoch`) keep it on the device,
  and encode one image at a time. The same holds for text encoders with `text_cache_ondemand` and `text_cache_disable`.
- **Training**: see the table above. An assistant adapter stays on the device. Blocks that tokens skip (`tread_config`) keep less. A frozen
  network beside a ControlNet keeps its weights there, and what the gradients of the ControlNet pass through.
- **Validation** needs the network, the adapter, the state of the optimizer and the autoencoder, but no gradients. The average
  (`use_ema`) takes the place of the trained weights, which are copied meanwhile. Decoding the image usually needs more than the sampler.
- **Checkpoints** are copied to the host while training goes on: as much as the trained weights and their state.

## Phases

GiB a GPU for an adapter of rank 16 as in the table above, images of the same size encoded four at a time, captions one at a time, and one
validation image of that size. The last column is the phase that decides.

"""
ENCODERS = """
## Text encoders

| family | text encoders | type | GiB |
|---|---|---|---|
"""
ERRORS = """
## What rounding costs

Error of a layer's output against float32 weights, as a share of its size, for weights of a normal distribution
(`tests/trainer_engine/weights/quantised`). 4-bit types of quanto err by 0.10, 2-bit ones by 0.5.

| types | error |
|---|---|
| `int8-torchao`, `int8-sdnq`, `uint8-sdnq` | below 0.01 |
| `int8dq-torchao` (inputs rounded, too) | below 0.012 |
| `fp8wo-torchao`, `fp8-native`, `fp8-sdnq` | below 0.03 |
| `int6-sdnq` | below 0.035 |
| `int5-sdnq`, `uint5-sdnq` | below 0.065 |
| `nf4-bnb`, `uint4-sdnq`, `int8dq-int4-torchao` | below 0.11 |
| `uint3-sdnq` | below 0.2 |
| `uint2-sdnq` | below 0.4 |

`int8dq-int4-torchao` keeps its 4-bit numbers in 8 bits and takes as much memory as `int8-torchao`.
"""
