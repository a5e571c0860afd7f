"""What the command line does: `python -m diffusion_lib`."""
