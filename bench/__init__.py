"""Benchmarks of the pipeline, beside the plainest copy and what people would use instead; see README.md."""
