"""The chat verb: a quick try of a model on a picture, and how questions are asked of it from Python."""
