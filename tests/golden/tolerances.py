"""How far from a golden an answer may be. In fp32 it stands in every expected.json (1e-4), and in bf16 here.

The goldens are made so that mistakes move them far, and so do roundings. PyTorch's own autocast to bf16 (2.15, CPU) is
off by up to 0.070 and 0.086 on them, in the measures below, and by 0.013 and 0.018 on the case in the middle; ours by up
to 0.043 and 0.037 (with clips that the program would call silent, 0.051 at most), and by 0.010 and 0.012. A GPU's
libraries add in another order than the shim's loops do, for which there is a sixth of room.
"""

BF16_LOGIT = 0.06  # the largest difference of a clip's logits, as a part of 1 + the largest of them
BF16_EMBEDDING = 0.06  # the root of the mean square difference of an embedding, as a part of that of itself
BF16_MIDDLE = 0.012  # of logits as above: the median over all cases, which small mistakes would move

# On the CPU, whose convolutions of stride two also round differences of their inputs (docs/cpu.md), bf16 is off by 0.013
# in the middle, like autocast.
CPU_BF16_MIDDLE = 0.015

# int8 on the CPU: every matrix product but those of attention. On the goldens, whose layers are a few numbers wide, it
# is off by up to 0.35, and by 0.036 in the middle.
INT8_LOGIT = 0.5
INT8_MIDDLE = 0.037

# The shipped model on EMO-DB, on the CPU: the root of the mean square difference of all logits as a part of that of
# themselves (0.0039 and 0.0083 were measured), and the largest difference of a logit (0.037 and 0.098). A label that fp32
# puts before the second by more than the latter must stay.
SHIPPED_RMS = {"bf16": 0.006, "int8": 0.012}
SHIPPED_LOGIT = {"bf16": 0.05, "int8": 0.15}
