"""A LLaVA of pretrained parts: SmolLM2-135M-Instruct and a DINOv2-small, joined by what was trained on data.things."""
