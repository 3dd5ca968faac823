"""Blocks and options that several models of images and text have."""

CLIP = "self_attn[q_proj k_proj v_proj > out_proj] mlp.fc2[mlp.fc1 > mlp.fc2]"
GATED = "mlp.down_proj[mlp.gate_proj mlp.up_proj > mlp.down_proj]"
FUSED_GATED = "mlp.down_proj[mlp.gate_up_proj > mlp.down_proj]"
SELF = "self_attn[q_proj k_proj v_proj > o_proj]"
LLAMA = f"{SELF} {GATED}"
FUSED = "attn[qkv > proj]"
FC = "mlp.fc2[mlp.fc1 > mlp.fc2]"
LINEAR_FC = "mlp.linear_fc2[mlp.linear_fc1 > mlp.linear_fc2]"
SAM = "attn[qkv > proj] mlp.lin2[mlp.lin1 > mlp.lin2]"
BERT = (
    "attention.self[query key value > attention.output.dense] "
    "output.dense[intermediate.dense > output.dense]"
)
QFORMER = (
    "attention.attention[query key value > attention.output.dense] "
    "xcrossattention.attention[query key value > crossattention.output.dense] "
    "output_query.dense[intermediate_query.dense > output_query.dense]"
)
QFORMER_SELF = (
    "attention.attention[query key value > attention.output.dense] "
    "output_query.dense[intermediate_query.dense > output_query.dense]"
)
# With words beside the queries there is a feed-forward for each, and neither is the block's.
TWO_STREAMS, TWO_STREAMS_SELF = (
    text.removesuffix(" output_query.dense[intermediate_query.dense > output_query.dense]")
    for text in (QFORMER, QFORMER_SELF)
)
BART = "self_attn[q_proj k_proj v_proj > out_proj]"
TEXT = f"text (language_model.layers.*) causal 0-1: {LLAMA}"
VISION = f"vision (vision_tower.encoder.layers.*) 0-1: {CLIP}"
VISION_MODEL = f"vision (vision_model.encoder.layers.*) 0-1: {CLIP}"
TOKENS = {
    "image_token_id": 100,
    "video_token_id": 101,
    "vision_start_token_id": 102,
    "vision_end_token_id": 103,
}
SECTIONS = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
DELTA_NET = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
DEEP = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
PATCH_WINDOWS = {"window_size": 28, "fullatt_block_indexes": [1]}
SAM_SIZES = {"image_size": 128, "window_size": 4, "global_attn_indexes": [1]}
LATENT = {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4}
INDEX = {"index_topk": 8, "index_head_dim": 8, "index_n_heads": 2}
DENSE_SPARSE = {"mlp_layer_types": ["dense", "sparse"]}
GEMMA_VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "pooling_kernel_size": 2,
    "patch_size": 4,
    "position_embedding_size": 16,
}
INKLING_SIZES = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "d_rel": 4,
    "rel_extent": 16,
}
GLM_TOKENS = {
    "image_start_token_id": 104,
    "image_end_token_id": 105,
    "video_start_token_id": 106,
    "video_end_token_id": 107,
}
MUSE_VISION = {
    "pos_emb_height": 4,
    "pos_emb_width": 4,
    "max_position_embeddings": 16,
    "layer_types": ["window_attention", "full_attention"],
}
