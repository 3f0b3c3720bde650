"""Every change of upstream packages beyond settings, registries and subclasses.

Of verl 0.9.1, vllm 0.24.0, ray 2.60.0 and transformers 5.9.0 (hf).
One function each. Functions that replace a module's name may be called again. A test fails when
upstream moves.

=====  ==================================  ======================================================
of     function                            why
=====  ==================================  ======================================================
ray    upstream.keep_sigterm_handler       its handler ends the cluster at once; a run
                                           stops between two steps instead
ray    upstream.session_folder, job_actors where a run's processes are and what they print
ray    upstream.driver_of, free_resources  who else uses a cluster, and what is left of it
verl   upstream.silence_config_print       prints the complete config; a run saves it to a file
verl   upstream.use_replay_buffers         the trainer hard-codes the class; ours counts the
                                           responses and polls at a configurable interval
verl   upstream.mute_separate_trainer      separate_async logs with an unknown argument
verl   upstream.use_weight_sender          no registry function for the sender
verl   upstream.use_bucket_sender          veRL's sender waits forever for a dead engine
verl   upstream.server_of                  `generate` sends one prompt; the probes of a
                                           response go to its server as one request
verl   text_only_forward.apply             fails with transformers 5.9
verl   upstream.use_frozen_tower           declares freeze_vision_tower and never reads it
verl   upstream.with_ragged_positions      equal lengths get the wrong ragged dimension
verl   upstream.restore_buffers            a model in bfloat16 gets rounded rotary frequencies
vllm   upstream.keep_outputs               veRL drops the per-token array of an output
vllm   upstream.send_requests_through      veRL's server sends the images of every request
vllm   upstream.engine_exits               exit code of a dead engine core
vllm   upstream.keep_linear_weights        oneDNN packing drops `weight` on CPU
vllm   flash_attention_lse.install         FlashAttention computes the log-sum-exp and
                                           does not return it
hf     upstream.save_in_hub_layout         writes fused experts as they are in memory, which
                                           vLLM does not load
=====  ==================================  ======================================================

docs/architecture.md has the upstream places and the tests.
"""
