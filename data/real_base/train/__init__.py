"""Training of the projector and of the language model's adapter: `python -m data.real_base train`."""
