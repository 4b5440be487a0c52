"""Search by a quadratic model of the targets, learnt from values and gradients."""
