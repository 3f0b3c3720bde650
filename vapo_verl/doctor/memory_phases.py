"""Memory of a run by phase: bytes on each GPU and on each node, from a model's shape and a config.

An estimate by reading veRL 0.9.1 (FSDP engine), torch 2.11 (FSDP 2, AdamW), transformers 5.9
(Qwen2.5-VL) and vLLM 0.24; not measured on a GPU. With P parameters of b bytes, T of them trained,
S ranks that share a copy, p bytes per element that layers compute, r per gradient reduced:

    state       weights P*b/S, gradients T*b/S, Adam 2*T*b/S. `param_offload` and
                `optimizer_offload` hold theirs on the host between the phases that use them, in
                pinned blocks of 2^k bytes; `offload_policy` holds all of it there always. The
                reference is always on the host (veRL forces CPU off-load on a forward-only model)
    units       FSDP gathers two layers at a time, and keeps the root: p*(root + pair) and a copy
                of the larger; backward adds p*pair gradients and r*pair to be reduced.
                `use_no_sync_for_gradient_accumulation` keeps r*T more until the last micro-batch
    activations of N tokens, with gradient checkpointing: the input of every layer, p*H*N*layers
                (text) and p*Hv*4N*depth (vision, were every token of an image), and the largest of
                the logits, one text layer and one vision block, each with its gradients
    logits      N*V times the bytes of :func:`logit_bytes`
    engine      gpu_memory_utilization of the device; asleep, CUDA graphs and context remain.
                With GPUs of its own (separate_async) it shares none: rollout shows the engine's
                GPU, and weight sync the GPU that takes more
    sync        the bucket, and two full tensors of the largest kind being copied into it
    load        the first rank of each shard group reads all P*b to the host, with tied embeddings
                every rank (`get_init_weight_context_manager`: no meta device for tied weights)
    LoRA        T counts the adapters, r*(in + out) for each adapted layer; frozen layers have no
                gradients. There is no reference model. Adapters go to the engine through the host,
                and the sleeping engine keeps its weights there (sleep level 1), in pinned blocks
                of 2^k bytes, which stay when it wakes up. Merged weights
                (`lora.merge`) need a copy of the frozen shards on the host instead
    replay      per prompt 3 bytes a pixel (vapo_verl/data/compact_pixels.py), per response some 80
                a token (ids, masks, positions, log probabilities); the same again while a phase
                holds what it has fetched
"""

from collections.abc import Mapping
from dataclasses import dataclass

from vapo_verl.doctor.findings import GIB
from vapo_verl.doctor.memory_settings import MemorySettings, MicroBatch
from vapo_verl.doctor.model_size import ModelShape

MIB = 1 << 20
GPU_CONTEXT_BYTES = 1.0 * GIB
"""CUDA context, NCCL and cuBLAS of one process, for trainer and engine each. Assumed."""
CUDA_GRAPH_BYTES = 2.0 * GIB
"""The engine's captured graphs, which its sleep does not free. Assumed."""
GPU_PROCESS_BYTES, PROCESS_BYTES = 4.0 * GIB, 0.8 * GIB
"""Host memory of a process that holds a GPU (assumed), and of one that imports torch and vLLM
(measured: the smoke recipe's 11 took 8.9 GiB)."""
PIXEL_BYTES, TOKEN_BYTES = 3, 80
"""Bytes in the replay buffer per pixel of a prompt, and per token of a sequence. A test compares
them with encoded rows."""
REPLAY, FETCHED = "replay buffer", "fetched from it"
PIXELS, WIDEST = "pixels", "logits or a layer"
CHECKPOINTED, ALL_LAYERS = "checkpointed activations", "activations of all layers"
AT_MOST = frozenset({REPLAY, FETCHED, PIXELS, WIDEST, CHECKPOINTED, ALL_LAYERS})
"""Parts that depend on the longest sequences and largest images that the limits allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One phase of a run, at its peak."""

    name: str
    gpu: Mapping[str, float]
    """Part -> bytes on one GPU; empty on CPU."""
    host: Mapping[str, float]
    """Part -> bytes on one node."""

    @property
    def gpu_bytes(self) -> float:
        return sum(self.gpu.values())

    @property
    def host_bytes(self) -> float:
        return sum(self.host.values())

    @property
    def least_host_bytes(self) -> float:
        """Host bytes without the parts in `AT_MOST`."""
        return sum(size for part, size in self.host.items() if part not in AT_MOST)


def memory_phases(
    shape: ModelShape,
    settings: MemorySettings,
    *,
    device_bytes: float,
    num_parameters: float | None = None,
) -> tuple[Phase, ...]:
    """Every phase of a run, in order.

    Args:
        device_bytes: memory of a GPU, of which the engine takes its fraction.
        num_parameters: if it differs from that of ``shape``.
    """
    run = _Run(shape=shape, s=settings, device_bytes=device_bytes, total=num_parameters)
    phases = [run.load(), run.rollout()]
    if settings.recompute_old:
        phases.append(run.old_log_prob())
    if settings.reference_bytes or settings.reference_in_actor:
        phases.append(run.ref_log_prob())
    phases += [run.update(), run.weight_sync()]
    if settings.saves:
        phases += [run.checkpoint(), run.resume()]
    return tuple(phases if settings.on_gpu else map(run.on_host, phases))


def logit_bytes(settings: MemorySettings, *, gradients: bool, entropy: bool) -> int:
    """Peak bytes of one logit in `prepare_model_outputs` and its backward, in half precision.

    Packed: logits 2, and 2 more where a temperature scales them; flash-attn's cross entropy writes
    its gradient over them. Compiled entropy adds a float32 copy, or with gradients one more
    gradient for each of two losses; not compiled, float32 softmax and product, 8, and again as much
    for their gradients. Padded: entropy is never compiled nor chunked (logits 2, softmax 4, product
    4); log probabilities keep a float32 log-softmax, 4, and three copies of the gradient, 2 each.
    """
    if settings.fused_logits:
        return 0
    extra = settings.compute_bytes * (1 + settings.scaled_logits)
    if not settings.packed:
        return (
            extra
            + 8 * entropy
            + (8 if gradients else 2 * (not entropy))
            + 8 * (gradients and entropy)
        )
    if not entropy or settings.entropy_chunk:
        return extra + (6 if entropy and gradients else 0)
    if settings.compiled_entropy:
        return extra + (6 if gradients else 4)
    return extra + (16 if gradients else 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Common parts of the formulas. ``s``: settings."""

    shape: ModelShape
    s: MemorySettings
    device_bytes: float
    total: float | None

    # --- state

    @property
    def parameters(self) -> float:
        return self.total or self.shape.num_parameters

    @property
    def trained(self) -> float:
        """Parameters that have gradients: all, or LoRA's adapters."""
        lora = self.s.lora
        return float(self.shape.adapter_parameters(lora, lora.rank)) if lora else self.parameters

    def shard(self, num_parameters: float, num_bytes: int) -> float:
        return num_parameters * num_bytes / self.s.shard_ranks

    @property
    def weights(self) -> float:
        return self.shard(self.parameters, self.s.parameter_bytes)

    @property
    def gradients(self) -> float:
        return self.shard(self.trained, self.s.parameter_bytes)

    @property
    def adam(self) -> float:
        return 2 * self.gradients

    def pinned(self, num_bytes: int) -> float:
        """A rank's shard on the host: CUDA's host allocator makes blocks of 2^k bytes."""
        if not self.s.on_gpu:
            return self.shard(self.parameters, num_bytes)
        blocks = (
            kind.number
            * _power_of_two(-(-kind.rows // self.s.shard_ranks) * kind.columns * num_bytes)
            for kind in self.shape.tensors()
        )
        return sum(blocks) * self.parameters / self.shape.num_parameters

    def state_on_gpu(self, *, weights: bool = False, adam: bool = False) -> dict[str, float]:
        """State on the GPU in a phase; true: the phase loads it from the host."""
        s, parts = self.s, {}
        if not s.offload_policy:
            parts["weights"] = self.weights if weights or not s.param_offload else 0.0
            parts["Adam"] = self.adam if adam or not s.optimizer_offload else 0.0
        return {name: size for name, size in parts.items() if size}

    def state_on_host(self) -> dict[str, float]:
        """State on one node, except during loading; a process keeps blocks it has pinned."""
        s, ranks, pinned = self.s, self.s.ranks_per_node, self.pinned(self.s.parameter_bytes)
        fraction = self.trained / self.parameters
        parts = {}
        if s.offload_policy:
            parts["weights"] = ranks * pinned
            parts["gradients"] = ranks * pinned * fraction
            parts["Adam"] = ranks * self.adam
        else:
            parts["weights"] = ranks * pinned * s.param_offload
            parts["Adam"] = ranks * 2 * pinned * fraction * s.optimizer_offload
        return {name: size for name, size in parts.items() if size}

    # --- beside the state

    def asleep(self) -> dict[str, float]:
        """CUDA contexts, and the memory of a sleeping engine."""
        s = self.s
        if s.engine_gpus_per_node:
            return {"contexts": GPU_CONTEXT_BYTES}
        contexts = {
            "contexts": 2 * GPU_CONTEXT_BYTES,
            "CUDA graphs": CUDA_GRAPH_BYTES * s.cuda_graphs,
        }
        return contexts if s.sleeps else {**contexts, "engine": self.engine}

    @property
    def engine(self) -> float:
        if self.s.on_gpu:
            return self.s.utilization * self.device_bytes
        return self.engine_weights + self.s.cpu_cache_bytes

    @property
    def engine_weights(self) -> float:
        return self.parameters * self.s.engine_bytes / self.s.tensor_parallel

    @property
    def pinned_engine(self) -> float:
        """The engine's weights on the host: each segment of its pool is a block of 2^k bytes.

        torch's allocator gives a tensor of 10 MiB or more a segment of its own, in units of 2 MiB;
        smaller ones share segments of 20 MiB. A process keeps blocks it has pinned.
        """
        if not self.s.on_gpu:
            return self.engine_weights
        blocks, shared = 0, 0
        for kind in self.shape.engine_tensors():
            size = kind.elements * self.s.engine_bytes // self.s.tensor_parallel
            if size >= 10 * MIB:
                blocks += kind.number * _power_of_two(-(-size // (2 * MIB)) * 2 * MIB)
            else:
                shared += kind.number * size
        blocks += -(-shared // (20 * MIB)) * 32 * MIB
        return blocks * self.parameters / self.shape.num_parameters

    @property
    def engine_adapters(self) -> float:
        """The engine's room for adapters, on each of its GPUs: A is not split between them."""
        lora = self.s.lora
        if lora is None or lora.merged:
            return 0.0
        return float(self.shape.adapter_parameters(lora, lora.engine_rank)) * self.s.engine_bytes

    def processes(self) -> dict[str, float]:
        s = self.s
        heavy = GPU_PROCESS_BYTES if s.on_gpu else PROCESS_BYTES
        per_rank = 2 * heavy + PROCESS_BYTES  # worker and engine core; the engine's server
        num_bytes = s.worker_processes * PROCESS_BYTES + s.ranks_per_node * per_rank
        if s.engine_gpus_per_node:  # beside its engine core a receiver of weights
            num_bytes += s.engine_gpus_per_node * per_rank - s.ranks_per_node * (per_rank - heavy)
        return {"processes": num_bytes}

    def replay(self, *, fetched: bool = False) -> dict[str, float]:
        s = self.s
        tokens = s.group_size * s.max_model_len
        held = s.prompts * (PIXEL_BYTES * s.pixels + TOKEN_BYTES * tokens)
        return {REPLAY: held, FETCHED: held} if fetched else {REPLAY: held}

    def host(
        self, *, images: Mapping[str, float] | None = None, asleep: bool = False
    ) -> dict[str, float]:
        """Parts on one node.

        Args:
            asleep: the engine sleeps, or has slept. With adapters it keeps its weights, on the
                host: they are not sent again.
        """
        s, kept = self.s, {}
        if s.reference_bytes:
            kept["reference"] = s.ranks_per_node * self.pinned(s.reference_bytes)
        if asleep and s.sleeps and s.lora and not s.lora.merged:
            kept["sleeping engine"] = s.ranks_per_node * self.pinned_engine
        if s.kept_copies:
            kept["copies of the weights"] = s.ranks_per_node * s.kept_copies * self.weights
        return {**self.processes(), **self.state_on_host(), **kept, **(images or {})}

    # --- one micro-batch

    @property
    def pair(self) -> int:
        """The largest two units that are gathered together: neighbours in the forward pass."""
        neighbour = 0 if self.shape.tie_word_embeddings else self.shape.embedding_parameters
        return self.shape.layer_parameters + max(self.shape.layer_parameters, neighbour)

    def units(self, *, backward: bool) -> float:
        s, shape = self.s, self.shape
        copied = max(self.pair - shape.layer_parameters, shape.root_parameters)
        gathered = s.compute_bytes * (shape.root_parameters + self.pair + copied)
        fraction = self.trained / self.parameters if s.lora else 1.0
        return gathered + (s.compute_bytes + s.reduce_bytes) * self.pair * backward * fraction

    def text_layer(self, *, gradients: bool) -> int:
        """Bytes a token in one decoder layer: float32 norms, attention, the gated MLP."""
        p, hidden, inner = (
            self.s.compute_bytes,
            self.shape.hidden_size,
            self.shape.intermediate_size,
        )
        key_value = self.shape.key_value_size
        if gradients:
            return 16 * hidden + p * (14 * hidden + 4 * key_value + 7 * inner)
        return 8 * hidden + p * (6 * hidden + 2 * key_value + 3 * inner)

    def vision_block(self, *, gradients: bool) -> int:
        """Bytes an image token in one vision block; its rotary embedding is float32."""
        p, hidden = self.s.compute_bytes, self.shape.vision_hidden_size
        inner = self.shape.vision_intermediate_size
        if gradients:
            patch = 40 * hidden + p * (18 * hidden + 7 * inner)
        else:
            patch = 32 * hidden + p * (8 * hidden + 3 * inner)
        return self.shape.patches_per_token * patch

    def activations(self, batch: MicroBatch, *, gradients: bool, entropy: bool) -> dict[str, float]:
        s, shape = self.s, self.shape
        images = min(batch.tokens * batch.shards, batch.rows * s.max_prompt_tokens)
        text, vision = self.text_layer(gradients=gradients), self.vision_block(gradients=gradients)
        logits = (
            batch.tokens * shape.vocab_size * logit_bytes(s, gradients=gradients, entropy=entropy)
        )
        if entropy and s.entropy_chunk and s.packed:  # float32 logits, softmax and product
            logits += min(s.entropy_chunk, batch.tokens) * shape.vocab_size * 12
        parts = {
            PIXELS: 4.0 * images * shape.patches_per_token * shape.vision_patch_elements,
            WIDEST: float(max(batch.tokens * text, images * vision, logits)),
        }
        if gradients and s.gradient_checkpointing:
            each = s.compute_bytes * shape.vision_hidden_size * shape.patches_per_token
            parts[CHECKPOINTED] = float(
                batch.tokens * s.compute_bytes * shape.hidden_size * shape.num_hidden_layers
                + images * each * shape.vision_depth
            )
        elif gradients:
            parts[ALL_LAYERS] = float(
                batch.tokens * text * shape.num_hidden_layers + images * vision * shape.vision_depth
            )
        return parts

    # --- phases

    def load(self) -> Phase:
        """Load the actor, after the reference and before the engines."""
        s, shape = self.s, self.shape
        loaders = -(-s.ranks_per_node // s.shard_ranks)
        if shape.tie_word_embeddings:
            loaders = s.ranks_per_node
        unit = max(shape.layer_parameters, shape.embedding_parameters)
        host = {**self.host(), "the loaded model": loaders * self.parameters * s.parameter_bytes}
        for part in ("gradients", "Adam"):
            host.pop(part, None)
        if s.offload_policy:
            host["the shards before they are pinned"] = s.ranks_per_node * self.weights
        gpu = {
            "contexts": GPU_CONTEXT_BYTES,
            "weights": self.weights,
            "tensors in transfer": 2.0 * s.parameter_bytes * unit,
        }
        return Phase(name="load", gpu=gpu, host=host)

    def rollout(self) -> Phase:
        s = self.s
        gpu = {
            "contexts": GPU_CONTEXT_BYTES,  # the engine's is in its fraction
            "CUDA graphs": CUDA_GRAPH_BYTES * s.cuda_graphs,
            "engine": self.engine,
            **({} if s.engine_gpus_per_node else self.state_on_gpu()),
        }
        host = self.host(images=self.replay(), asleep=True)  # blocks of an earlier sleep stay
        return Phase(name="rollout", gpu=gpu, host=host)

    def old_log_prob(self) -> Phase:
        gpu = {
            **self.asleep(),
            **self.state_on_gpu(weights=True),
            "gathered units": self.units(backward=False),
            **self.activations(self.s.old, gradients=False, entropy=True),
        }
        host = self.host(images=self.replay(fetched=True), asleep=True)
        return Phase(name="old log prob", gpu=gpu, host=host)

    def ref_log_prob(self) -> Phase:
        """With a separate reference model, or with the actor without its adapters."""
        s = self.s
        gpu = {
            **self.asleep(),
            **self.state_on_gpu(weights=s.reference_in_actor),
            "gathered units": self.units(backward=False),
            **self.activations(s.ref, gradients=False, entropy=False),
        }
        host = self.host(images=self.replay(fetched=True), asleep=True)
        return Phase(name="ref log prob", gpu=gpu, host=host)

    def update(self) -> Phase:
        """The larger of the last backward and Adam's step, which makes a temporary copy."""
        s = self.s
        state = {**self.asleep(), **self.state_on_gpu(weights=True, adam=True)}
        if not s.offload_policy:
            state["gradients"] = self.gradients
        backward = {
            "gathered units": self.units(backward=True),
            **self.activations(s.update, gradients=True, entropy=s.entropy_in_update),
        }
        if s.deferred_sync:
            backward["unreduced gradients"] = self.trained * s.reduce_bytes
        step = {} if s.offload_policy else {"Adam's temporary copy": self.gradients}
        peak = max(backward, step, key=lambda parts: sum(parts.values()))
        host = self.host(images=self.replay(fetched=True), asleep=True)
        return Phase(name="update", gpu={**state, **peak}, host=host)

    def weight_sync(self) -> Phase:
        s, shape = self.s, self.shape
        engine = {} if not s.sleeps else {"engine weights": self.engine_weights}
        gpu = {
            **self.asleep(),
            **self.state_on_gpu(weights=s.lora is not None),  # veRL loads a model with adapters
            **engine,
            "bucket": float(s.bucket_bytes),
            "tensors in transfer": 2.0 * s.parameter_bytes * shape.embedding_parameters,
        }
        host = self.host(images=self.replay(), asleep=True)
        if s.engine_gpus_per_node:
            gpu = max(self.weight_sender(), self.weight_receiver(), key=lambda p: sum(p.values()))
        if s.lora and s.lora.merged:
            host["frozen weights"] = s.ranks_per_node * self.weights
        elif s.lora:
            gpu["tensors in transfer"] = 0.0
            host["adapters"] = s.ranks_per_node * self.trained * s.parameter_bytes
        return Phase(name="weight sync", gpu=gpu, host=host)

    def weight_sender(self) -> dict[str, float]:
        """An actor's GPU if the engine has others: NCCL sends one bucket while one is filled."""
        s = self.s
        return {
            **self.asleep(),
            **self.state_on_gpu(weights=True),
            "buckets": 2.0 * s.bucket_bytes,
            "tensors in transfer": 2.0 * s.parameter_bytes * self.shape.embedding_parameters,
        }

    def weight_receiver(self) -> dict[str, float]:
        """An engine's GPU: two buckets of NCCL, and one on its way to the engine."""
        s = self.s
        return {
            "contexts": 2 * GPU_CONTEXT_BYTES,
            "CUDA graphs": CUDA_GRAPH_BYTES * s.cuda_graphs,
            "engine": self.engine_weights if s.sleeps else self.engine,
            "buckets": 3.0 * s.bucket_bytes,
        }

    def checkpoint(self) -> Phase:
        """FSDP 2 writes its shards tensor by tensor; FSDP 1 copies them to the host first."""
        s = self.s
        host, saved = self.host(images=self.replay(), asleep=True), 0.0
        if s.fsdp1 and s.on_gpu:
            saved = s.ranks_per_node * (self.weights + self.adam * s.saves_optimizer)
        if s.saves_hf_model:
            saved += self.parameters * s.parameter_bytes
        if saved:
            host["copies to be written"] = saved
        gpu = {**self.asleep(), **self.state_on_gpu(weights=True)}
        return Phase(name="checkpoint", gpu=gpu, host=host)

    def resume(self) -> Phase:
        """torch.load puts a shard on the device it was saved from; then it is copied."""
        s, host = self.s, self.host()
        state = self.state_on_gpu(weights=True)
        gpu = {**self.asleep(), **state}
        if s.offload_policy:
            host["the loaded weights"] = s.ranks_per_node * self.weights
        else:
            gpu["the loaded weights"] = self.weights
        return Phase(name="resume", gpu=gpu, host=host)

    def on_host(self, phase: Phase) -> Phase:
        """Move a rank's device memory to its node, for runs without accelerators."""
        device = {
            part: self.s.ranks_per_node * size
            for part, size in phase.gpu.items()
            if part not in ("contexts", "CUDA graphs")
        }
        host = dict(phase.host)
        for part, size in device.items():
            host[part] = host.get(part, 0.0) + size
        return Phase(name=phase.name, gpu={}, host=host)


def _power_of_two(num_bytes: int) -> int:
    """The next power of two."""
    return 1 << (num_bytes - 1).bit_length()


def kv_cache_bytes(
    shape: ModelShape,
    settings: MemorySettings,
    *,
    device_bytes: float,
    num_parameters: float | None = None,
) -> float:
    """Memory left for the KV cache in the engine's fraction of the device; may be negative.

    fraction - weights - adapters - the forward pass of ``max_num_batched_tokens`` that vLLM
    profiles - float32 logits and a copy of them for ``max_num_seqs`` sequences.
    """
    run = _Run(shape=shape, s=settings, device_bytes=device_bytes, total=num_parameters)
    profile = settings.max_batched_tokens * run.text_layer(gradients=False)
    sampler = settings.max_num_seqs * shape.vocab_size * 8
    used = run.engine_weights + run.engine_adapters + (profile + sampler) / settings.tensor_parallel
    return run.engine - used - GPU_CONTEXT_BYTES


def kv_token_bytes(shape: ModelShape, settings: MemorySettings) -> float:
    """Bytes of one token's keys and values in all layers on one engine GPU, one KV head or more."""
    values = 2 * shape.num_hidden_layers * shape.key_value_size
    return values * settings.engine_bytes / min(settings.tensor_parallel, shape.num_key_value_heads)
