"""A small LLaVA trained from nothing on the drawn shapes, in stages: what the demo and the tests stand on."""
