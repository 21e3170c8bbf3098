"""A synthetic video world, a small Qwen2.5-VL trained on it, and the scoring of what it says."""
