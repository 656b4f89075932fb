"""`bash launch/gpu.sh`: every check and measurement that needs a GPU, in stages with a time limit each."""
