"""sdseg: medical volume segmentation with a single-step latent diffusion model."""

__version__ = "0.1.0"
