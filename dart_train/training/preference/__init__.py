"""Preference and RL training with the reduction on, by TRL's own DPOTrainer and GRPOTrainer."""
