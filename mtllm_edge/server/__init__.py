"""HTTP server of `mtllm-edge serve`; nothing else in the runtime imports it."""
