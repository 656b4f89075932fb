"""Training of the model in data/tiny_base: a small LLaVA from random weights, in stages, on drawn scenes.

Run it in the repository: python -m dart_train base recipes/tiny_base.yaml"""
