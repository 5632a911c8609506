"""The method: networks and diffusion. Start reading at `diffusion.py`."""
