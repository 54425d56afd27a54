"""Caches of what the encoders compute: image latents and text embeddings, as files that runs share."""
