"""What stands under the headings of the report: how to read what follows."""

PLOTS = "Bars are 95% intervals; the band is full tokens. Across, latency has the quartiles of its repeats."
QUALITY = """Each figure with its 95% interval (Wilson for shares, bootstrap else) and number of questions.
<i>From full</i>: against full tokens of the same checkpoint on the same questions, in points, by a paired test. Set in
bold where p is below 0.05; of many rows, some will be by chance."""
KINDS = """Percent; below each figure its 95% interval and number of questions. Coloured where a paired test tells it
from full tokens."""
COST = """Milliseconds, the median of {repeats} round(s) in which all rows took turns, warm-up apart, the device
synchronised; {shape}, {new} tokens written. <i>Prefill</i> is the forward over the prompt, vision tower included;
<i>bound</i> is what the prefill's FLOPs allow at most. Peak memory is of the prefill, beyond the weights; KV is
allocated, as the storages of the cache say."""
PAIRS = """The second less the first, on the same questions. Gained and lost: questions on which only one of both is
right, or scores higher. Holm: p, corrected for the number of pairs in this view."""
PAPERS = "Questions of the papers on visual token reduction, as far as these rows can answer them."
REGRESSIONS = "Right with full tokens, wrong reduced; lost by most rows first, kinds of questions in turn."
