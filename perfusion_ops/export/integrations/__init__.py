"""Code that `perfusion export` copies for other programs. It runs there with torch and safetensors alone."""
