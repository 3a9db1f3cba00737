"""`mtllm-edge eval`: an MT-LLM against its baselines, language by language, with bootstrap intervals."""
