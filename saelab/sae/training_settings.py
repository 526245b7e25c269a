"""Settings in other packages' files that only training used, or that only describe: readers pass them over."""

SAELENS = """
    device dtype metadata model_name model_class_name hook_name hook_point hook_layer hook_point_layer
    hook_head_index hook_point_head_index hook_name_out hook_layer_out hook_head_index_out prepend_bos
    context_size dataset_path dataset_trust_remote_code sae_lens_version sae_lens_training_version
    neuronpedia_id seqpos_slice model_from_pretrained_kwargs exclude_special_tokens l1_coefficient
    l1_warm_up_steps lp_norm l0_coefficient l0_warm_up_steps l0_lambda aux_loss_coefficient
    use_sparse_activations topk_threshold_lr use_matryoshka_aux_loss jumprelu_init_threshold jumprelu_bandwidth
    jumprelu_sparsity_loss_mode jumprelu_tanh_scale pre_act_loss_coefficient decoder_init_norm
    decoder_heuristic_init decoder_heuristic_init_norm decoder_orthogonal_init init_encoder_as_decoder_transpose
    normalize_sae_decoder noise_scale use_ghost_grads mse_loss_normalization
    scale_sparsity_penalty_by_decoder_norm expansion_factor b_dec_init_method from_pretrained_path is_training
"""

PRISMA = """
    device dtype d_out out_hook_point_layer layer_out_subtype model_class_name model_name vit_model_cfg
    model_path hook_point hook_point_layer layer_subtype hook_point_head_index context_size
    use_cached_activations use_patches_only cached_activations_path cls_token_only max_grad_norm
    initialization_method n_batches_in_buffer store_batch_size num_workers num_epochs total_training_images
    total_training_tokens total_training_steps image_size seed verbose b_dec_init_method expansion_factor
    from_pretrained_path l1_coefficient lp_norm lr lr_scheduler_name lr_warm_up_steps train_batch_size
    dataset_name dataset_path dataset_train_path dataset_val_path use_ghost_grads feature_sampling_window
    dead_feature_window dead_feature_threshold log_to_wandb wandb_project wandb_entity wandb_log_frequency
    n_validation_runs n_checkpoints checkpoint_path tokens_per_buffer min_l0 min_explained_variance
    return_out_only is_training run_name unique_hash
"""

DICTIONARY = """
    trainer_class lr l1_penalty l1_warmup_steps warmup_steps sparsity_warmup_steps decay_start steps layer
    lm_name wandb_name submodule_name device seed resample_steps auxk_alpha threshold_beta threshold_start_step
    top_k_aux k_anneal_steps bandwidth sparsity_penalty target_l0 initial_sparsity_penalty group_fractions
    group_weights group_sizes n_sparsity_updates p_start p_end anneal_start anneal_end sparsity_function
    sparsity_queue_length sparsity_loss_type norm_factor dead_feature_threshold
"""

SAEV = """
    exp_factor n_reinit_samples remove_parallel_grads normalize_w_dec seed reinit_blend reinit_enc_dec_tranpose
    reinit_enc_dec_transpose sparsity_coeff l1_coeff ghost_grads use_ghost_grads objective n_prefixes
"""
