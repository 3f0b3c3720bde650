"""veRL's FSDP2 engine over gloo on CPU, registered for ``device="cpu"``."""

import torch
from verl.utils.fsdp_utils import MixedPrecisionPolicy, apply_fsdp2, fsdp2_load_full_state_dict
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead


@EngineRegistry.register(model_type="language_model", backend=["fsdp2"], device="cpu")
class CPUFSDPEngine(FSDPEngineWithLMHead):
    """FSDP2 without off-loading.

    veRL 0.9.1 forces ``CPUOffloadPolicy(pin_memory=True)`` on the reference model; pinning needs an
    accelerator, and a CPU mesh has nothing to off-load.
    """

    def _build_fsdp_module(self, module: torch.nn.Module) -> torch.nn.Module:
        precision = self.engine_config.mixed_precision or {}
        param_dtype = PrecisionType.to_dtype(precision.get("param_dtype", "fp32"))
        if param_dtype == torch.float16:
            raise ValueError(
                "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp16 does not run "
                "on CPU; set fp32 or bf16"
            )
        self._autocast_dtype, self.scaler = param_dtype, None
        settings = {
            "mesh": self.device_mesh,
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=param_dtype,
                reduce_dtype=PrecisionType.to_dtype(precision.get("reduce_dtype", "fp32")),
                cast_forward_inputs=True,
            ),
            "offload_policy": None,
            "reshard_after_forward": self.engine_config.reshard_after_forward,
        }
        full_state = module.state_dict()
        apply_fsdp2(module, settings, self.engine_config)
        fsdp2_load_full_state_dict(module, full_state, self.device_mesh, None)
        return module
